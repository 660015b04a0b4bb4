"""What each drifting field costs: FLOPs, transcendentals and time, over the paper's field.

    python benchmarks/field_costs.py

Compiles the loss of one feature and its gradient (36) with each field, at one temperature, for 4
class rows of 64 generated samples, 64 positives and 16 unconditional samples. FLOPs and
transcendentals are XLA's count for the devices at hand, with Sinkhorn's loops unrolled so that each
trip counts. Each round times all fields in a random order; the ratio of times is the median of
those of the rounds. A second batch of samples is counted as targets; generating and encoding it is
not.
"""

import functools
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.config.streams import root_key
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import FIELDS, negatives_of
from drifting_jax.method.losses import drifting_loss

ROUNDS = 101
SIZES = {"generated": 64, "positive": 64, "unconditional": 16, "fresh": 64}
ROWS, CHANNELS = 4, (768, 64)
REFERENCE = "mean_shift, crossed"


def candidates() -> dict[str, DriftOptions]:
    """Every field with its default negatives, and options that change the cost."""
    one = functools.partial(DriftOptions, (0.2,))
    others = {name: one(field=name) for name in FIELDS if name != "mean_shift"}
    return {
        REFERENCE: one(),
        "mean_shift, separate": one(0.0, combine="separate"),
        "mean_shift, fresh": one(negatives="fresh"),
        "mean_shift, lookahead 1": one(lookahead=1),
        "mean_shift, measure_reach": one(measure_reach=True),
        **others,
        "w_flow, 1 iteration": one(field="w_flow", iterations=1),
        "w_flow, two_fold": one(field="w_flow", negatives="two_fold"),
        "energy, 8 neighbours": one(field="energy", neighbours=8),
    }


def unrolled(start, end, body, value):
    """`jax.lax.fori_loop` as so many copies of its body."""
    for i in range(start, end):
        value = body(i, value)
    return value


def lowered(options: DriftOptions, sets: dict[str, jax.Array]) -> jax.stages.Lowered:
    """The loss and its gradient with respect to the generated samples."""
    sets = {n: x for n, x in sets.items() if n != "fresh" or negatives_of(options) == "fresh"}
    key = root_key(0) if FIELDS[options.field].draws else None

    def loss(generated, others):
        return drifting_loss(generated, **others, options=options, key=key)

    others = {name: x for name, x in sets.items() if name != "generated"}
    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(sets["generated"], others)


def measure(channels: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """FLOPs and transcendentals of each candidate, and the seconds of each round."""
    rng = np.random.default_rng(0)
    shapes = {name: (ROWS, n, 1, channels) for name, n in SIZES.items()}
    sets = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    programs, counts = {}, {}
    for name, options in candidates().items():
        programs[name] = counted = lowered(options, sets).compile()
        if "iterations" in FIELDS[options.field].reads:
            with mock.patch.object(jax.lax, "fori_loop", unrolled):
                counted = lowered(options, sets).compile()
        found = counted.cost_analysis()
        counts[name] = np.array([found["flops"], found.get("transcendentals", 0.0)])
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name in rng.permutation(list(programs)):
            has_fresh = negatives_of(candidates()[name]) == "fresh"
            others = {n: x for n, x in sets.items() if n != "generated"}
            if not has_fresh:
                del others["fresh"]
            began = time.perf_counter()
            jax.block_until_ready(programs[name](sets["generated"], others))
            seconds[name].append(time.perf_counter() - began)
    return counts, {name: np.array(x) for name, x in seconds.items()}


def main() -> None:
    """Prints a table of ratios, and what one stands for."""
    rows: dict[str, list[float]] = {name: [] for name in candidates()}
    for channels in CHANNELS:
        counts, seconds = measure(channels)
        flops, transcendentals = counts[REFERENCE]
        print(
            f"{REFERENCE}, d = {channels}: {flops / 1e6:.1f} MFLOP, {transcendentals / 1e3:.0f} "
            f"thousand transcendentals, {1e3 * np.median(seconds[REFERENCE]):.2f} ms"
        )
        for name, row in rows.items():
            row += [*(counts[name] / counts[REFERENCE])]
            row.append(float(np.median(seconds[name] / seconds[REFERENCE])))
    what = ("FLOPs", "transcendentals", "time")
    columns = [f"{one}, d = {channels}" for channels in CHANNELS for one in what]
    print("| field | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in row) + " |")


if __name__ == "__main__":
    main()
