"""What a training step costs: lines, lowering and compile time, FLOPs, temporaries, step time.

    python benchmarks/step.py
    python benchmarks/step.py --setting=digits --against=../other_checkout

With --against, the steps of both checkouts alternate in one run, and the last column is the ratio
of this checkout's figures to the other's: below 1 is better. `small` is a short generator of
latents (4 blocks of 128 channels on 32x32x4, an encoder of 32 channels, 4 class rows), `digits` and
`digits_encoder` are the two steps of configs/digits.py. FLOPs count the body of a loop once.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
SETTINGS = ("small", "digits", "digits_encoder")
UNITS = {
    "StableHLO": "lines", "lowering": "s", "compiling": "s", "FLOPs": "G", "temporaries": "MiB",
    "step": "ms",
}  # fmt: skip


def configured(setting: str):
    """The config of a setting, and its number of classes if the data does not say it."""
    from drifting_jax.config import base_config, file_beside, resolve

    if setting != "small":
        config = file_beside(str(HERE / "configs" / "any.py"), "digits.py").get_config()
        if setting == "digits_encoder":
            config.task = "encoder"
        return resolve(config), None
    config = base_config("generator")
    config.data.source, config.data.latent = "imagenet", True
    config.encoder.width, config.encoder.blocks = 32, (1, 1, 1, 1)
    config.model.update({"width": 128, "depth": 4, "num_heads": 4, "patch_size": 2})
    config.model.num_context_tokens = 16
    config.model.num_style_books, config.model.styles_per_book = 32, 64
    config.train.labels_per_step = 4
    config.train.generated_per_label, config.train.positives_per_label = 8, 8
    config.train.unconditional_per_label = 4
    return resolve(config), 10


def worker(setting: str) -> None:
    """Prints the figures of the checkout on PYTHONPATH, then seconds of a step for each line."""
    import jax
    import numpy as np

    try:
        from drifting_jax.training import build, dry_run

        spec_name = "data_spec"
    except ImportError:  # before the packages of `drifting_jax`
        from drifting_jax import build, dry_run

        spec_name = "describe"
    config, classes = configured(setting)
    if classes:
        spec_of = getattr(dry_run, spec_name)
        of_classes = lambda data: dataclasses.replace(spec_of(data), num_classes=classes)  # noqa: E731
        setattr(dry_run, spec_name, of_classes)
    program = dry_run.program(config, build.make_mesh(config, devices=jax.devices()[:1]))
    began = time.perf_counter()
    lowered = program.lower()
    lowering = time.perf_counter() - began
    began = time.perf_counter()
    compiled = lowered.compile()
    compiling = time.perf_counter() - began
    figures = {
        "StableHLO": lowered.as_text().count("\n"),
        "lowering": lowering,
        "compiling": compiling,
        "FLOPs": compiled.cost_analysis()["flops"] / 1e9,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    print(json.dumps(figures), flush=True)
    rng = np.random.default_rng(0)

    def array(info):
        if np.issubdtype(info.dtype, np.integer):
            return jax.numpy.ones(info.shape, info.dtype)
        return jax.numpy.asarray(0.02 * np.abs(rng.normal(size=info.shape)), info.dtype)

    infos = lowered.args_info[0]
    arguments = [jax.tree.map(array, info) for info in infos]
    donated = [all(x.donated for x in jax.tree.leaves(info)) for info in infos].index(False)
    for _ in sys.stdin:
        began = time.perf_counter()
        results = jax.block_until_ready(compiled(*arguments))
        print(time.perf_counter() - began, flush=True)
        arguments[:donated] = results[:donated]


def started(checkout: Path, setting: str) -> subprocess.Popen:
    """Starts a worker on a checkout."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout), "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, "--worker", setting],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def answers(process: subprocess.Popen) -> Iterator:
    """The lines that a worker prints, as JSON."""
    for line in process.stdout:
        yield json.loads(line)


def measure(setting: str, checkouts: list[Path], rounds: int) -> list[dict]:
    """The figures of each checkout; its steps alternate with those of the others."""
    found, workers = [], []
    for checkout in checkouts:  # one after another: compiling takes all cores
        process = started(checkout, setting)
        lines = answers(process)
        found.append(next(lines))
        workers.append((process, lines))
    seconds: list[list[float]] = [[] for _ in workers]
    for _ in range(rounds + 2):
        for times, (process, lines) in zip(seconds, workers, strict=True):
            process.stdin.write("step\n")
            times.append(next(lines))
    for process, _ in workers:
        process.stdin.close()
        process.wait()
    for figures, times in zip(found, seconds, strict=True):
        figures["step"] = 1e3 * median(times[2:])
    return found


def main() -> None:
    """Prints a line for each figure."""
    from absl import app, flags

    setting = flags.DEFINE_enum("setting", "small", SETTINGS, "What is measured.")
    against = flags.DEFINE_string("against", "", "Another checkout, to compare with.")
    rounds = flags.DEFINE_integer("rounds", 15, "Steps that are timed.", lower_bound=1)

    def run(_) -> None:
        checkouts = [HERE, *([Path(against.value).resolve()] if against.value else [])]
        found = measure(setting.value, checkouts, rounds.value)
        for name, unit in UNITS.items():
            row = [figures[name] for figures in found]
            ratio = f"{row[0] / row[1]:8.2f}" if len(row) > 1 else ""
            print(f"{name:<12}{unit:<6}", *(f"{value:14,.1f}" for value in row), ratio)

    app.run(run)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        main()
