"""The command that diagnoses an encoder and temperatures: its files, words and mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import quick_compiling
from PIL import Image

ROOT = Path(__file__).parents[2]
SIZES = (
    "--config.train.labels_per_step=2",
    "--config.train.generated_per_label=4",
    "--config.train.positives_per_label=6",
)
CONFIG = f"--config={ROOT / 'configs' / 'digits.py'}"


def run(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "drifting_jax.diagnose", *words],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
            "HOME": str(folder),
            "XLA_FLAGS": quick_compiling.FLAGS,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_raw_pixels_of_digits(tmp_path):
    done = run(tmp_path, CONFIG, *SIZES, "--temperatures=0.1,1", "--rows=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 1347 images of 10 classes")
    assert "digits: no encoder; field mean_shift" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert (
        lines.count(["τ", "(*", "of", "the", "config)", "0.02*", "0.05*", "0.1", "0.2*", "1"]) == 3
    )
    assert sum(line[:2] == ["raw", "(1)"] for line in lines) == 3
    assert "note: name an encoder with --encoder=" in done.stdout
    assert "warning: at τ = 0.02 the kernel sees the nearest positive alone" in done.stdout
    out = tmp_path / "diagnose" / "digits"
    record = json.loads((out / "diagnosis.json").read_text())
    assert record["temperatures"] == [0.02, 0.05, 0.1, 0.2, 1.0] and len(record["labels"]) == 2
    numbers = record["features"]["raw"]["effective_positives"]
    assert numbers == sorted(numbers) and 1 <= numbers[0] < 3 < numbers[-1] <= 6
    assert Image.open(out / "diagnosis.png").format == "PNG"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperatures=0.1,x"], "--temperatures must be numbers above 0"),
        (["--temperatures=0"], "--temperatures must be numbers above 0"),
        (["more"], "expected flags alone; found 'more'"),
        (
            ["--config.drift.field=energy", "--config.drift.combine=crossed"],
            "config.drift.field=energy has no kernel",
        ),
        (["--encoder=nowhere"], "must be the workdir of a run with a trained encoder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, words, message):
    done = run(tmp_path, CONFIG, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "diagnose").exists()
