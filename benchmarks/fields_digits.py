"""Compares the drifting fields on digits, under one protocol; writes JSON and prints a table.

    python benchmarks/fields_digits.py                           # goes on where it was ended
    python benchmarks/fields_digits.py --field=crossed --field=sinkhorn
    python benchmarks/fields_digits.py --table                   # prints the table of the results

Everything but the field is the same: `configs/digits.py` with 500 steps, one encoder on patches of
2x2, a single average and as many positives as samples that repel. A field's one scale is tuned with
seed 0 in runs of 200 steps, over the values of benchmarks/field_candidates.py. Seeds 1 to 3 then
measure; they are paired, with the same initial weights, noise and data in all fields. Fields with a
second batch split the generated samples between the two, so that all generate as many.

The main metric is the Fréchet distance on pixels at α = 1. Better than the paper's field means: all
three paired differences have one sign, their mean exceeds twice the standard deviation of the
paper's field, and recall is not lower by more than .02. Results of other settings are an error.
"""

import contextlib
import hashlib
import io
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from field_candidates import candidates, shown, verdict

from drifting_jax.config import resolve
from drifting_jax.config.config_files import file_beside
from drifting_jax.files import read_json, write_json
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import negatives_of
from drifting_jax.training.run import run
from drifting_jax.workdir.orbax_settings import quiet_orbax

_RESULTS = flags.DEFINE_string(
    "results", "benchmarks/results/fields_digits.json", "JSON of the results, read and written."
)
_ENCODER = flags.DEFINE_string(
    "encoder", "runs/fields_digits_encoder", "Run that trains the encoder of all others."
)
_FIELDS = flags.DEFINE_multi_string("field", [], "Field to measure, repeatable; default: all.")
_TABLE = flags.DEFINE_bool("table", False, "Print the table of the results and end.")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GENERATED = 32  # samples of a class row
TUNING_STEPS, STEPS = 200, 500
TUNING_SEED, SEEDS = 0, (1, 2, 3)
METRICS = ("fd_pixels", "precision", "recall", "accuracy", "nearest_training_ratio")


def config_of(options: DriftOptions | None, *, seed: int, steps: int):
    """The digits' config with a field; without one, that of the encoder."""
    config = file_beside(CONFIGS / "any.py", "digits.py").get_config()
    config.seed = seed
    config.encoder.input_patch_size = 2
    config.train.num_steps = steps
    config.train.save_every = config.train.sample_every = steps
    config.train.ema_decays = (0.98,)
    config.eval.ema_decay = 0.98
    config.eval.cfg_scales = (1.0,)
    config.optim.warmup_steps = min(50, steps // 2)
    config.log_every = min(100, steps)
    if options is None:
        return config
    config.encoder.path = _ENCODER.value
    for name in config.drift:
        if hasattr(options, name):
            config.drift[name] = getattr(options, name)
    negatives = negatives_of(options)
    config.train.generated_per_label = GENERATED // 2 if negatives == "fresh" else GENERATED
    repel = GENERATED // 2 if negatives in ("fresh", "two_fold") else GENERATED
    config.train.positives_per_label = repel
    return config


def settings() -> dict[str, object]:
    """What all runs share, to tell results of other settings."""
    shared = config_of(None, seed=0, steps=STEPS).to_json(sort_keys=True)
    digest = hashlib.sha256(shared.encode()).hexdigest()[:16]
    return {"tuning_steps": TUNING_STEPS, "steps": STEPS, "config": digest}


def trained(config, workdir: Path) -> dict[str, float]:
    """Runs a config quietly; the metrics of its samples at α = 1."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = run(resolve(config), workdir=workdir)
    if status:
        raise SystemExit(status)  # a signal; the run is measured again
    jax.clear_caches()
    return read_json(workdir / "evaluation.json")["alpha"]["1"]


def measured(options: DriftOptions, *, seed: int, steps: int) -> dict[str, float]:
    """The metrics of one run, which leaves nothing behind."""
    if not Path(_ENCODER.value, "evaluation.json").exists():
        trained(config_of(None, seed=0, steps=1), Path(_ENCODER.value))
    workdir = Path(tempfile.mkdtemp())
    try:
        found = trained(config_of(options, seed=seed, steps=steps), workdir)
    finally:
        shutil.rmtree(workdir)
    row = {name: round(found[name], 4) for name in METRICS}
    print(options.field, shown(options), f"seed {seed}, {steps} steps:", row, flush=True)
    return row


def measure(name: str, results: dict) -> None:
    """Tunes a field and measures it; writes the results after each run."""
    tried = candidates()[name]
    row = results["fields"].setdefault(name, {"tuning": {}, "scale": None, "seeds": {}})
    for options in tried if len(tried) > 1 else ():
        if shown(options) not in row["tuning"]:
            found = measured(options, seed=TUNING_SEED, steps=TUNING_STEPS)
            row["tuning"][shown(options)] = found["fd_pixels"]
            write_json(_RESULTS.value, results)
    best = min(tried, key=lambda options: row["tuning"].get(shown(options), 0.0))
    if row["scale"] != shown(best):
        row |= {"scale": shown(best), "seeds": {}}
    for seed in SEEDS:
        if str(seed) not in row["seeds"]:
            row["seeds"][str(seed)] = measured(best, seed=seed, steps=STEPS)
            write_json(_RESULTS.value, results)


def against(row: dict, reference: dict) -> str:
    """What the rule, with recall, says of a field against the paper's."""

    def values(of, name):
        return np.asarray([of["seeds"][str(seed)][name] for seed in SEEDS])

    if row is reference:
        return ""
    found = verdict(values(row, "fd_pixels"), values(reference, "fd_pixels"))
    kept = values(row, "recall").mean() >= values(reference, "recall").mean() - 0.02
    return found if found != "better" or kept else "nearer, with less recall"


def table(fields: dict) -> str:
    """Mean ± standard deviation over the seeds of the fields that have all of them."""
    complete = {n: row for n, row in fields.items() if len(row["seeds"]) == len(SEEDS)}
    head = ["field", "scale", "Fréchet distance", "precision", "recall", "accuracy"]
    head += ["nearest training digit", "against crossed"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---|" * (len(head) - 2)]
    for name, row in complete.items():
        cells = [name, row["scale"]]
        for metric in METRICS:
            values = np.asarray([row["seeds"][str(seed)][metric] for seed in SEEDS])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=1):.3f}")
        cells.append(against(row, complete["crossed"]) if "crossed" in complete else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_) -> None:
    """Measures what the results lack."""
    logging.set_verbosity(logging.WARNING)
    quiet_orbax()
    known = candidates()
    if unknown := set(_FIELDS.value) - set(known):
        raise app.UsageError(f"--field knows {'; '.join(known)}; found {'; '.join(unknown)}")
    path = Path(_RESULTS.value)
    results = read_json(path) if path.exists() else {"settings": settings(), "fields": {}}
    if results["settings"] != settings():
        raise app.UsageError(f"{path} is of other settings; give another --results")
    if not _TABLE.value:
        for name in _FIELDS.value or known:
            measure(name, results)
    print(table(results["fields"]))


if __name__ == "__main__":
    app.run(main)
