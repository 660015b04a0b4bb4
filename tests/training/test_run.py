"""Whole runs: what a workdir holds, what may change, and that a stopped run goes on unchanged."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from drifting_jax import sample
from drifting_jax.config import resolve
from drifting_jax.data.sources import make_source, spec_of
from drifting_jax.distributed import meshes, transfer
from drifting_jax.errors import UserError
from drifting_jax.evaluation import small_runs
from drifting_jax.training import build, programs, restore, run
from drifting_jax.training import encoder as train_mae
from drifting_jax.workdir.checkpoint import Checkpoints
from drifting_jax.workdir.metrics import read_metrics
from drifting_jax.workdir.opening import open_workdir

ROOT = Path(__file__).parents[2]
CONFIG = "tests/helpers/tiny_config.py"
MORE_STEPS = 110
PATIENCE = 300.0  # seconds until a run that should have moved on counts as stuck


def config(**changes):
    """The tiny config with fields changed: train__num_steps=3."""
    found = tiny_config.get_config()
    found.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return resolve(found)


def start(*arguments: str) -> subprocess.Popen:
    """A Python process in the repository, on one device."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(directory: Path) -> list[int]:
    """Whole checkpoints in a directory."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdecimal())


def last_logged(workdir: Path) -> int:
    """Step of the generator's last line of metrics."""
    return max((r["step"] for r in read_metrics(workdir, stage="generator")), default=0)


def leaves(tree) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(transfer.fetch(tree))
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def read_checkpoint(directory: Path, at: int, tmp_path: Path) -> dict[str, np.ndarray]:
    """Every array of one checkpoint of the generator."""
    alone = tmp_path / f"{directory.parent.name}_{at}"
    alone.mkdir()
    (alone / str(at)).symlink_to(directory / str(at))
    source = make_source(config().data, "train")
    mesh = build.make_mesh(config())
    program = programs.generator_program(config(), source, mesh)
    template = program.checkpoint_items(program.carry, 0)
    with Checkpoints(alone, keep=1, read_only=True) as checkpoints:
        step, items = checkpoints.restore_latest(template)
    assert step == at
    return leaves(items)


@pytest.fixture(scope="module")
def launch():
    """Starts main.py on the tiny config."""
    started = []

    def launched(workdir: Path, *arguments: str) -> subprocess.Popen:
        flags = (f"--config={CONFIG}", f"--workdir={workdir}", *arguments)
        started.append(start("main.py", *flags))
        return started[-1]

    yield launched
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen) -> SimpleNamespace:
    out, error = process.communicate(timeout=PATIENCE)
    return SimpleNamespace(status=process.returncode, out=out, error=error)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Returns as soon as the condition holds, while the process still runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "the run did not come that far"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """A run from start to end: its workdir and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = finish(launch(workdir))
    assert result.status == 0, result
    return SimpleNamespace(workdir=workdir, out=result.out, error=result.error)


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(finished):
    workdir = finished.workdir
    record = json.loads((workdir / "config.json").read_text())
    assert record["versions"]["jax"] == jax.__version__
    assert record["config"]["train"]["num_steps"] == 100
    assert steps(workdir / "checkpoints") == [90, 100]
    assert steps(workdir / "encoder" / "checkpoints") == [40, 48]
    for stage in ("encoder", "generator", "evaluation"):
        assert list((workdir / "tensorboard" / stage).glob("events*"))
    for step in (60, 100):
        picture = Image.open(workdir / "samples" / f"generator_samples_{step:08d}.png")
        assert picture.size == (400, 400) or min(picture.size) > 400
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert (figures["step"], figures["num_samples"]) == (100, 80)
    for name, value in figures["alpha"]["1"].items():
        assert (
            np.isfinite(value) and f"{name.removesuffix('_floor')}_floor" in figures["alpha"]["1"]
        )
    with np.load(workdir / "samples" / "final.npz") as samples:
        assert samples["arr_0"].shape == (80, 8, 8, 1) and samples["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(samples["arr_1"], np.repeat(np.arange(10), 8))
    assert (workdir / "samples" / "final.png").is_file()
    assert Image.open(workdir / "drift.png").size == (1000, 380)
    for name in ("fd_classifier", "evaluation.json", "metrics.jsonl", "checkpoints", "done in"):
        assert name in finished.out
    assert "Traceback" not in finished.error
    left = [p for p in workdir.rglob("*") if ".partial" in p.name or "tmp" in p.name]
    assert not left


@pytest.mark.slow
def test_metrics_are_logged_once_a_step(finished):
    encoder, generator = (read_metrics(finished.workdir, stage=s) for s in ("encoder", "generator"))
    assert [r["step"] for r in encoder] == [*range(5, 46, 5), 48]
    assert [r["step"] for r in generator] == list(range(5, 101, 5))
    last = generator[-1]
    wanted = {"loss", "grad_norm", "learning_rate", "images_per_second", "seconds", "skipped"}
    drifts = {f"drift/{name}/{t}" for name in ("raw", "stage1", "mean") for t in ("0.05", "0.2")}
    assert wanted | drifts <= set(last)
    assert all(np.isfinite(v) for k, v in last.items() if k != "stage")
    assert last["learning_rate"] == np.float32(config().optim.learning_rate)
    assert encoder[-1]["reconstruction"] < encoder[0]["reconstruction"]


@pytest.mark.slow
def test_a_complete_run_says_so(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p.is_file()}
    assert run.run(config(), workdir=finished.workdir) == 0
    out = capsys.readouterr().out
    assert f"the run in {finished.workdir} is complete" in out and "--config.train.num_steps" in out
    after = {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p.is_file()}
    assert {p.name for p in before if after[p] != before[p]} <= {"config.json", ".lock"}


@pytest.mark.slow
def test_only_some_fields_may_change(finished):
    for changes, message in [
        ({"model__width": 32}, r"config\.model\.width cannot change .* it has 16, now 32"),
        ({"optim__learning_rate": 1e-3}, r"config\.optim\.learning_rate cannot change"),
        ({"encoder__train__mask_ratio_max": 0.9}, r"config\.encoder\.train\.mask_ratio_max"),
        ({"train__num_steps": 50}, r"config\.train\.num_steps may only grow .* 100, now 50"),
    ]:
        with pytest.raises(UserError, match=message):
            run.run(config(**changes), workdir=finished.workdir)
    stored = (finished.workdir / "config.json").read_text()
    other = {"train__num_steps": MORE_STEPS, "mesh__data": 2, "eval__k": 2, "train__save_every": 7}
    other |= {"train__keep": 5, "train__keep_every": 50}
    with open_workdir(config(**other), finished.workdir):
        pass
    assert (finished.workdir / "config.json").read_text() != stored
    with open_workdir(config(**other), finished.workdir):
        pass
    (finished.workdir / "config.json").write_text(stored)


@pytest.mark.slow
def test_an_encoder_by_itself_is_trained_and_serves(tmp_path, capsys):
    alone = {"task": "encoder", "encoder__train__num_steps": 12, "encoder__train__microbatches": 2}
    found = tiny_config.get_config()
    changes = {k.replace("__", "."): v for k, v in alone.items()}
    found.update_from_flattened_dict(changes | {"encoder.train.classifier_steps": 4})
    workdir = tmp_path / "encoder"
    assert run.run(resolve(found), workdir=workdir) == 0
    assert "encoder_parameters.txt" in capsys.readouterr().out
    assert steps(workdir / "encoder" / "checkpoints") == [8, 12]
    assert [r["step"] for r in read_metrics(workdir)] == [5, 10, 12]
    assert run.run(resolve(found), workdir=workdir) == 0
    assert "is complete" in capsys.readouterr().out
    source, mesh = make_source(found.data, "train"), build.make_mesh(config())
    step, params = train_mae.read_trained(config(), spec_of(source), mesh, workdir)
    assert step == 12 and "classifier" in params


def test_a_workdir_of_others_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no config\.json"):
        run.run(config(), workdir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"must be a directory; .*notes\.txt is a file"):
        run.run(config(), workdir=tmp_path / "notes.txt")


def test_a_mistake_can_be_mended_in_the_same_workdir(tmp_path, capsys):
    for changes, message in [
        ({"mesh__data": 3, "mesh__fsdp": 3}, r"config\.mesh: .* found data=3 fsdp=3; with 8"),
        ({"mesh__data": 8, "train__generated_per_label": 3}, r"config\.train does not fit"),
        ({"model__patch_size": 3}, r"config\.model does not fit .* must divide image_size 8"),
        ({"encoder__mask_patch_size": 3}, r"config\.encoder does not fit .* mask_patch_size 3"),
        ({"encoder__path": str(tmp_path / "none")}, r"config\.encoder\.path must be the work"),
    ]:
        with pytest.raises(UserError, match=message):
            run.run(config(**changes), workdir=tmp_path / "run")


@pytest.mark.slow
def test_sampling_a_run(finished, tmp_path, monkeypatch, capsys):
    values = SimpleNamespace(
        workdir=str(finished.workdir),
        weights="",
        vae="",
        classes="7,0-2",
        per_class=3,
        cfg_scale=9.0,
        seed=5,
        ema_decay=0.99,
        batch_size=5,
        step=None,
        out=str(tmp_path / "samples.npz"),
    )
    monkeypatch.setattr(sample, "flags", SimpleNamespace(FLAGS=values))
    sample.main([])
    told = capsys.readouterr()
    assert "12 samples of step 100" in told.out
    assert "alpha from 1 to 4; 9 is outside" in told.err
    with np.load(values.out) as file:
        images, labels = file["arr_0"], file["arr_1"]
    np.testing.assert_array_equal(labels, np.repeat([7, 0, 1, 2], 3))
    assert len({image.tobytes() for image in images}) == 12
    values.step = 90
    sample.main([])
    assert "12 samples of step 90" in capsys.readouterr().out
    with np.load(values.out) as file:
        assert (file["arr_0"] != images).any()
    with pytest.raises(UserError, match=r"has no checkpoint of step 91; there are 90, 100"):
        restore.load_run(finished.workdir, step=91)
    loaded = restore.load_run(finished.workdir, ema_decay=0.99)
    again = loaded.sample(labels[4:6], np.int32([1, 2]), seed=5, cfg_scale=9.0)
    assert np.abs(again.astype(int) - images[4:6]).max() <= 1
    other_average = restore.load_run(finished.workdir)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, other_average.params, loaded.params)
    with pytest.raises(UserError, match=r"keeps the averages of decay \(0\.9, 0\.99\); found 0\.5"):
        restore.load_run(finished.workdir, ema_decay=0.5)


def test_there_is_nothing_to_sample(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        restore.load_run(tmp_path)
    with open_workdir(config(), tmp_path / "run"):
        pass
    with pytest.raises(UserError, match="has no generator yet"):
        restore.load_run(tmp_path / "run")


@pytest.mark.slow
def test_a_trained_encoder_serves_another_run(finished, tmp_path):
    source = make_source(config().data, "train")
    mesh = meshes.make_mesh(4, 2)

    def params(workdir=tmp_path / "other", trained=finished.workdir, **changes):
        changed = config(encoder__path=str(trained), **changes)
        return train_mae.encoder_params(changed, source, mesh, workdir=workdir, context=None)

    encoder = build.make_encoder(config(), source)
    shapes = jax.eval_shape(
        encoder.init, jax.random.key(0), np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8))
    )["params"]
    taken = params()
    assert jax.tree.map(np.shape, taken) == jax.tree.map(lambda x: x.shape, shapes)
    assert steps(tmp_path / "other" / "encoder" / "checkpoints") == [48]
    again = params(trained=tmp_path / "gone")  # the copy serves from now on
    jax.tree.map(np.testing.assert_array_equal, again, taken)
    with pytest.raises(UserError, match=r"of the checkpoint .* holds .*this run needs"):
        params(tmp_path / "wider", encoder__width=8)
    unfinished = tmp_path / "unfinished"
    (unfinished / "encoder").mkdir(parents=True)
    record = json.loads((finished.workdir / "config.json").read_text())
    record["config"]["encoder"]["train"]["num_steps"] = 64
    (unfinished / "config.json").write_text(json.dumps(record))
    (unfinished / "encoder" / "checkpoints").symlink_to(finished.workdir / "encoder/checkpoints")
    with pytest.raises(UserError, match=r"has 48 of its 64 steps: run that to its end first"):
        params(tmp_path / "early", trained=unfinished)


@pytest.mark.slow
def test_figures_of_another_seed_stand_in_a_file_of_their_own(finished, capsys):
    before = (finished.workdir / "evaluation.json").read_bytes()
    asked = []

    def stopped_at_the_second_question():
        asked.append(True)
        return len(asked) > 1

    settings = {"workdir": finished.workdir, "report": print, "seeds": [3]}
    settings["stopped"] = stopped_at_the_second_question
    loaded = restore.load_run(finished.workdir, ema_decay=0.99)
    found = small_runs.evaluate_run(loaded, **settings)
    assert {(record.alpha, record.seed) for record in found} == {(1.0, 3)}
    assert "FD of the classifier" in (finished.workdir / "report_seed_3_ema_0.99.html").read_text()
    assert small_runs.evaluate_run(loaded, **settings) is None
    record = json.loads((finished.workdir / "evaluation_seed_3_ema_0.99.json").read_text())
    assert (record["seed"], record["ema_decay"]) == (3, 0.99)
    assert (finished.workdir / "evaluation.json").read_bytes() == before


def test_a_bucket_is_no_directory():
    with pytest.raises(UserError, match=r"mount a bucket first.* gs:/bucket/run"):
        run.run(config(), workdir=Path("gs://bucket/run"))


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(finished, launch, tmp_path):
    """SIGTERM in the encoder, SIGKILL in the generator, then to the end and further."""
    workdir = tmp_path / "stopped"
    encoder, generator = workdir / "encoder" / "checkpoints", workdir / "checkpoints"

    process = launch(workdir)
    wait_for(lambda: steps(encoder), process)
    seen = steps(encoder)[-1]
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.status == 75, result
    assert "SIGTERM: saving and stopping" in result.error
    command = shlex.join([sys.executable, "main.py", f"--config={CONFIG}", f"--workdir={workdir}"])
    assert f"the same command goes on from there:\n  {command}\n" in result.error
    stopped_at = steps(encoder)[-1]
    assert seen < stopped_at < 48 and not steps(generator)

    process = launch(workdir)
    wait_for(lambda: steps(generator) and last_logged(workdir) > steps(generator)[-1], process)
    process.send_signal(signal.SIGKILL)
    assert finish(process).status == -signal.SIGKILL
    assert steps(generator)[-1] < 100
    assert steps(encoder)[-1] == 48
    encoder_files = {p: p.stat().st_mtime_ns for p in encoder.rglob("*")}

    result = finish(launch(workdir, f"--config.train.num_steps={MORE_STEPS}"))
    assert result.status == 0, result
    assert steps(generator) == [100, MORE_STEPS]
    assert {p: p.stat().st_mtime_ns for p in encoder.rglob("*")} == encoder_files
    assert json.loads((workdir / "evaluation.json").read_text())["step"] == MORE_STEPS

    expected = read_checkpoint(finished.workdir / "checkpoints", 100, tmp_path)
    found = read_checkpoint(generator, 100, tmp_path)
    assert set(found) == set(expected)
    assert {name for name in expected if "batches" in name or "images" in name}
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)

    once = {"encoder": [*range(5, 46, 5), 48], "generator": [*range(5, MORE_STEPS + 1, 5)]}
    for stage, logged in once.items():
        records = read_metrics(workdir, stage=stage)
        assert [r["step"] for r in records] == logged
        undisturbed = {r["step"]: r for r in read_metrics(finished.workdir, stage=stage)}
        for record in records:
            if record["step"] in undisturbed:
                assert record["loss"] == undisturbed[record["step"]]["loss"]
