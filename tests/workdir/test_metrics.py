"""Metrics: every line is whole, no step stands twice, and a full disk does not stop a run."""

import json
import math
import resource
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drifting_jax.workdir.image_files import image_grid, save_png
from drifting_jax.workdir.metrics import MetricWriter, read_metrics
from drifting_jax.workdir.progress import progress_bar


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _events(directory):
    """Reads TFRecord files: length (8 bytes), its checksum (4), an Event, its checksum (4)."""
    events = []
    for path in sorted(directory.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            events.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return events


def test_numbers_are_not_rounded(tmp_path):
    third = np.float32(1) / np.float32(3)
    scalars = {
        "loss": jnp.float32(third),
        "drift/stem/0.02": 1 / 3,
        "n": np.int64(2**40),
        "ok": True,
    }
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("generator", np.int32(5), scalars)
    (line,) = _lines(tmp_path)
    assert list(line) == ["stage", "step", "loss", "drift/stem/0.02", "n", "ok"]
    assert line["loss"] == float(third)
    assert line["drift/stem/0.02"] == 1 / 3
    assert (line["stage"], line["step"], line["n"], line["ok"]) == ("generator", 5, 2**40, 1)


def test_numbers_that_are_not_finite_come_back(tmp_path):
    values = {"a": np.float32("nan"), "b": jnp.inf, "c": -math.inf, "d": 1.5}
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("toy", 1, values)
    (line,) = _lines(tmp_path)
    assert (line["a"], line["b"], line["c"], line["d"]) == ("NaN", "Infinity", "-Infinity", 1.5)
    (record,) = read_metrics(tmp_path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["d"]) == (math.inf, -math.inf, 1.5)


@pytest.mark.parametrize("scalars", [{"step": 1.0}, {"stage": 1.0}, {"x": np.zeros(2)}])
def test_what_is_not_a_scalar_is_refused(tmp_path, scalars):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match=next(iter(scalars))):
        writer.write_scalars("toy", 1, scalars)
    assert _lines(tmp_path) == []


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write_scalars("encoder", step, {"loss": 1.0})
        for step in (10, 20, 30):
            writer.write_scalars("generator", step, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"stage": "generator", "step": 4')
    with MetricWriter(tmp_path) as writer:
        writer.truncate("generator", 10)
        for step in (20, 30):
            writer.write_scalars("generator", step, {"loss": 2.0})
    found = [(line["stage"], line["step"], line["loss"]) for line in _lines(tmp_path)]
    assert found == [
        *(("encoder", step, 1.0) for step in (10, 20, 30)),
        ("generator", 10, 1.0),
        ("generator", 20, 2.0),
        ("generator", 30, 2.0),
    ]
    assert [line["step"] for line in read_metrics(tmp_path, stage="generator")] == [10, 20, 30]


def test_truncate_while_writing(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2):
            writer.write_scalars("toy", step, {"loss": 1.0})
        writer.truncate("toy", 1)
        writer.write_scalars("toy", 2, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(1, 1.0), (2, 2.0)]
    restarts = [
        e.step for e in _events(tmp_path / "tensorboard" / "toy") if e.HasField("session_log")
    ]
    assert restarts == [2]


@pytest.mark.parametrize(
    ("last", "kept"), [(b'{"stage": "toy", "st', 1), (b'{"stage": "toy", "step": 2}', 2)]
)
def test_a_last_line_without_its_end(tmp_path, last, kept):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"stage": "toy", "step": 1}\n' + last)
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("toy", 3, {})
    assert [line["step"] for line in _lines(tmp_path)] == [*[1, 2][:kept], 3]


def test_tensorboard(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("toy", 7, {"drift/raw/0.05": 0.25})
        writer.write_image("toy", 7, "samples", image)
    first, scalar, picture = _events(tmp_path / "tensorboard" / "toy")
    assert first.file_version == "brain.Event:2"
    assert (scalar.step, scalar.summary.value[0].tag) == (7, "drift/raw/0.05")
    assert scalar.summary.value[0].simple_value == 0.25
    assert (picture.step, picture.summary.value[0].image.height) == (7, 4)
    stored = np.asarray(Image.open(tmp_path / "samples" / "toy_samples_00000007.png"))
    np.testing.assert_array_equal(stored, image)
    assert not any(event.session_log.status == SessionLog.START for event in (scalar, picture))


def test_disabled_writes_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", enabled=False) as writer:
        writer.truncate("toy", 0)
        writer.write_scalars("toy", 1, {"loss": 1.0})
        writer.write_image("toy", 1, "samples", np.zeros((2, 2, 1), np.uint8))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def limit_files():
    """A function that sets the most bytes of a file, as on a full disk; None for no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int | None):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, previous)


def test_a_full_disk_does_not_stop_the_run(tmp_path, errors, limit_files):
    limit_files(40)  # room for the head of an event file, not for an event
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("toy", 1, {})
        writer.write_scalars("toy", 2, {"loss": 1.0})
        writer.write_image("toy", 2, "samples", np.zeros((9, 9, 3), np.uint8))
        limit_files(None)
        writer.write_scalars("toy", 3, {"loss": 1.0})
    assert [line["step"] for line in _lines(tmp_path)] == [1, 3]
    assert any("line of metrics" in message for message in errors)
    assert any("TensorBoard" in message for message in errors)
    assert any("picture" in message for message in errors)


def test_a_line_written_in_part_is_taken_back(tmp_path, errors, limit_files):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(tmp_path) as writer:
        writer.write_scalars("toy", 1, {"loss": 1.0})
        whole = path.read_bytes()
        limit_files(len(whole) + 10)  # the next line fits in part
        writer.write_scalars("toy", 2, {"loss": 1.0})
        limit_files(None)
        assert path.read_bytes() == whole
        writer.write_scalars("toy", 3, {"loss": 1.0})
    assert [line["step"] for line in _lines(tmp_path)] == [1, 3]
    assert any("written in part" in message for message in errors)


def test_opening_on_a_full_disk_loses_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "toy", "step": 1}\n' * 40 + b'{"stage": "to')
    program = (
        "import resource, sys\n"
        "from drifting_jax.workdir.metrics import MetricWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "writer = MetricWriter(sys.argv[1])\n"
        "writer.truncate('toy', 1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert len(_lines(tmp_path)) == 40


def test_parameters_are_counted_and_listed(tmp_path, capsys):
    params = {"layer": {"kernel": np.zeros((3, 400)), "bias": np.zeros(400)}}
    with MetricWriter(tmp_path) as writer:
        writer.write_parameters("toy", params)
    assert capsys.readouterr().out == "toy: 1,600 parameters\n"
    table = (tmp_path / "toy_parameters.txt").read_text()
    assert "layer/kernel" in table and "(3, 400)" in table


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid(channels):
    images = np.random.default_rng(0).integers(1, 256, (5, 3, 2, channels), np.uint8)
    grid = image_grid(images, 2)
    grey = grid[0, 0, 0]
    expected = np.full((13, 7, channels), grey)  # a line of one pixel around each image
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        expected[4 * row + 1 : 4 * row + 4, 3 * column + 1 : 3 * column + 3] = image
    np.testing.assert_array_equal(grid, expected)
    larger = image_grid(images, 2, least=15)  # three pixels for one, so that 7 become 21
    np.testing.assert_array_equal(larger, np.kron(grid, np.ones((3, 3, 1), np.uint8)))


def test_lines_between_large_images_are_wider():
    assert image_grid(np.zeros((2, 96, 64, 3), np.uint8), 1).shape == (2 * 98 + 2, 68, 3)


def test_pictures_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image_grid needs images"):
        image_grid(np.zeros((2, 3, 3, 1), np.float32), 2)
    with pytest.raises(ValueError, match="image_grid needs images"):
        image_grid(np.zeros((0, 3, 3, 1), np.uint8), 2)
    with pytest.raises(ValueError, match=r"an image must be .* found \(3, 3, 2\) uint8"):
        save_png(tmp_path / "x.png", np.zeros((3, 3, 2), np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_save_png(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
    save_png(tmp_path / "a" / "b.png", image)
    stored = np.asarray(Image.open(tmp_path / "a" / "b.png")).reshape(image.shape)
    np.testing.assert_array_equal(stored, image)


def test_progress_bar_is_silent_without_a_terminal(capsys):
    with progress_bar(10, initial=4, description="toy") as bar:
        bar.update(3)
        bar.set_postfix(loss=1.0)
    with progress_bar(10, enabled=False) as bar:
        assert bar.disable
    assert capsys.readouterr().err == ""
