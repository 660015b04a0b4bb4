"""Runs that older versions began go on, sample, are evaluated and converted.

`tests/fixtures/old_run` has a folder for each version; its README says how to add one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from drifting_jax.config import fields
from drifting_jax.config.values import flat

ROOT = Path(__file__).parents[2]
RUNS = sorted(path.parent for path in (ROOT / "tests/fixtures/old_run").glob("*/flags.txt"))
ITEMS = ("state", "ema", "queue", "position")
RELATIVE = 1e-5  # another CPU may differ by this much
OF_LARGEST = 1e-5  # of an array, for entries near zero
PATIENCE = 900.0  # seconds until a program counts as stuck

OF_CLASSIFIER = ("fd_classifier", "accuracy")  # it is trained anew, which amplifies differences

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning"),
]


def execute(*arguments: str) -> str:
    """What a Python program of the repository prints, run as a user does: one device, no flags."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def unpack(run: Path, directory: Path) -> Path:
    """The workdir of an old run, as its version left it."""
    shutil.unpack_archive(run / "workdir.tar.gz", directory, filter="data")
    return directory / "old_run"


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_checkpoint(directory: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by item and path, read by Orbax alone."""
    found = {}
    for item in ITEMS:
        tree = ocp.PyTreeCheckpointer().restore(directory / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: run.name)
def old(request):
    """The folder of one version."""
    return request.param


@pytest.fixture(scope="module")
def continued(old, tmp_path_factory):
    """An old run that the present version has trained further."""
    (expected,) = old.glob("expected_step_*.npz")
    num_steps = int(expected.stem.rpartition("_")[2])
    workdir = unpack(old, tmp_path_factory.mktemp("continued"))
    before = (workdir / "metrics.jsonl").read_text()
    execute(
        "main.py",
        *(old / "flags.txt").read_text().split(),
        f"--config.train.num_steps={num_steps}",
        f"--workdir={workdir}",
    )
    return SimpleNamespace(workdir=workdir, num_steps=num_steps, expected=expected, before=before)


@pytest.fixture(scope="module")
def untouched(old, tmp_path_factory):
    """An old run that the present version only reads."""
    return unpack(old, tmp_path_factory.mktemp("untouched"))


def test_it_reaches_the_same_checkpoint(continued):
    checkpoints = continued.workdir / "checkpoints"
    last = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
    assert last == continued.num_steps
    found = read_checkpoint(checkpoints / str(last))
    with np.load(continued.expected) as expected:
        assert set(found) == set(expected.files)
        for name in expected.files:
            value = expected[name]
            assert found[name].dtype == value.dtype, name
            largest = np.abs(value).max(initial=0) if value.dtype.kind == "f" else 0
            tolerance = {"rtol": RELATIVE, "atol": OF_LARGEST * largest} if largest else {"rtol": 0}
            np.testing.assert_allclose(found[name], value, **tolerance, err_msg=name)


def test_its_lines_of_metrics_go_on_with_the_same_fields(continued):
    assert (continued.workdir / "metrics.jsonl").read_text().startswith(continued.before)
    lines = metrics(continued.workdir)
    old_lines = len(continued.before.splitlines())
    before = {line["stage"]: set(line) for line in lines[:old_lines]}
    assert {line["stage"] for line in lines[old_lines:]} == {"generator", "evaluation"}
    added = {"tflops_per_device", "mfu", "peak_memory_gib", "compile_seconds"}
    for line in lines[old_lines:]:
        assert set(line) - added == before[line["stage"]], (line["stage"], line["step"])
    steps = [line["step"] for line in lines if line["stage"] == "generator"]
    assert steps == [*range(1, continued.num_steps + 1)]


def test_its_config_gets_the_fields_of_today(continued):
    config = json.loads((continued.workdir / "config.json").read_text())["config"]
    assert flat(config).keys() == fields("generator").keys()
    assert (config["model"]["kind"], config["drift"]["field"]) == ("dit", "mean_shift")


def test_it_samples(untouched, tmp_path):
    out = tmp_path / "samples.npz"
    execute("-m", "drifting_jax.sample", f"--workdir={untouched}", f"--out={out}", "--per_class=2")
    with np.load(out) as samples:
        assert samples["arr_0"].shape == (20, 8, 8, 1) and samples["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(samples["arr_1"], np.repeat(np.arange(10), 2))


def test_it_is_evaluated(untouched):
    (logged,) = [line for line in metrics(untouched) if line["stage"] == "evaluation"]
    execute("-m", "drifting_jax.evaluate", f"--workdir={untouched}")
    found = json.loads((untouched / "evaluation.json").read_text())
    assert found["step"] == logged["step"]
    for alpha, values in found["alpha"].items():
        for name in (name for name in values if not name.endswith("_floor")):
            before = logged[f"{name}/alpha_{alpha}"]
            if name in OF_CLASSIFIER:
                assert np.isfinite(values[name]), name
            else:
                np.testing.assert_allclose(values[name], before, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("part", ["generator", "encoder"])
def test_it_is_converted(untouched, tmp_path, part):
    out = tmp_path / part
    arguments = (f"--source={untouched}", f"--part={part}", f"--out={out}")
    execute("-m", "drifting_jax.convert", *arguments)
    assert (out / "network.json").is_file() and (out / "params.npz").is_file()
