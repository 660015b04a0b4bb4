"""Two processes measure a set together: they give the metrics of one, and end together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import imagenet_like
import measuring as single
import pytest
import quick_compiling

from drifting_jax.evaluation import measurement
from drifting_jax.evaluation.features.image_sets import open_images
from drifting_jax.evaluation.setup import SampleSet

HELPERS = Path(__file__).parents[1] / "helpers"


def together(folder: Path, name: str) -> list[tuple[int, str]]:
    """Status and errors of two processes of two devices."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    paths = os.pathsep.join([str(HELPERS.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"XLA_FLAGS": quick_compiling.on_devices(2), "PYTHONPATH": paths}
    command = [sys.executable, str(HELPERS / "evaluate_process.py"), address]
    started = [
        subprocess.Popen(
            [*command, number, str(folder), name], env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for number in "01"
    ]  # fmt: skip
    try:
        return [(process.wait(120), process.stderr.read()) for process in started]
    finally:
        for process in started:
            process.kill()


def write_images(folder: Path, *, damaged: int) -> None:
    folder.mkdir()
    for i, image in enumerate(single.pixels(1, 41)):
        data = imagenet_like.encoded(imagenet_like.Image.fromarray(image), "PNG")
        (folder / f"{i:03d}.png").write_bytes(b"damaged" if i in range(9, 9 + damaged) else data)


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path, processes_can_meet):
    write_images(tmp_path / "images", damaged=1)
    expected = measurement.measure(
        single.setup(tmp_path / "alone"), SampleSet(open_images(tmp_path / "images"))
    )
    for status, errors in together(tmp_path, "images"):
        assert status == 0, errors
    found = json.loads((tmp_path / "values.json").read_text())
    assert found == pytest.approx(single.values(expected), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_an_error_of_one_process_ends_both(tmp_path, processes_can_meet):
    write_images(tmp_path / "images", damaged=10)
    for status, errors in together(tmp_path, "images"):
        assert status == 1 and "10 of 41 images cannot be measured" in errors
