"""The drifting fields that the benchmarks compare, with five values of each one's scale."""

import numpy as np

from drifting_jax.method.fields.options import DriftOptions

TAUS = (0.02, 0.05, 0.1, 0.2, 0.5)
COSTS = (0.03, 0.1, 0.2, 0.5, 1.0)


def single(values, **options):
    """Candidates of one temperature."""
    return [DriftOptions((value,), 0.0, **options) for value in values]


def candidates():
    """{name of a field: five values of its one scale}."""
    triple = DriftOptions((0.02, 0.05, 0.2), 0.0)
    found = {
        "crossed": [*single(TAUS[:4]), triple],
        "separate": [
            *single(TAUS[:4], combine="separate"),
            DriftOptions((0.02, 0.05, 0.2), 0.0, combine="separate"),
        ],
        "separate, fresh": single(TAUS, combine="separate", negatives="fresh"),
        "separate, annealed": single(TAUS, combine="separate", annealed=True),
    }
    for field, values in (
        ("bias_corrected", TAUS),
        ("kernel_gradient", TAUS),
        ("sharp", TAUS),
        ("kl_chi2", TAUS),
        ("mmd", TAUS),
    ):
        found[field] = single(values, field=field)
    # Fields of transport plans: ε in units of the mean cost, which is 1/2 for a squared cost.
    found["sinkhorn"] = single(COSTS, field="sinkhorn")
    found["w_flow"] = single([c / 2 for c in COSTS], field="w_flow")
    found["w_flow, two_fold"] = single([c / 2 for c in COSTS], field="w_flow", negatives="two_fold")
    found["energy"] = single((1.0,), field="energy")
    found["energy, nearest"] = [
        DriftOptions((1.0,), 0.0, field="energy", neighbours=k) for k in (2, 4, 8, 16, 32)
    ]
    found["sliced"] = single((1.0,), field="sliced")
    found["lookahead"] = [
        DriftOptions((0.2,), 0.0, combine="separate", lookahead=1, lookahead_stride=stride)
        for stride in (0.1, 0.25, 0.5, 1.0, 2.0)
    ]
    return found


def verdict(values: np.ndarray, reference: np.ndarray) -> str:
    """What the rule says of the distances of a field against the paper's, of the same seeds."""
    differences = values - reference
    if abs(differences.mean()) > 2 * reference.std(ddof=1):
        if (differences < 0).all():
            return "better"
        if (differences > 0).all():
            return "worse"
    return "no difference seen"


def shown(options: DriftOptions) -> str:
    """The one scale of a candidate, as the table shows it."""
    if options.neighbours:
        return f"k {options.neighbours}"
    if options.lookahead:
        return f"stride {options.lookahead_stride:g}"
    if options.field in ("energy", "sliced"):
        return ""
    return "τ " + " ".join(f"{t:g}" for t in options.temperatures)
