"""One whole tiny run: trained, stopped, killed, resumed, trained on, sampled and evaluated.

The tests read what it left, and compare it with a run that nobody disturbed.
"""

import json
import shlex
import signal
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image
from tiny_run import (
    CONFIG,
    config,
    finish,
    last_logged,
    launch,
    read_checkpoint,
    start,
    steps,
    wait_for,
)

from drifting_jax import sample
from drifting_jax.config import resolve
from drifting_jax.data.sources import make_source, spec_of
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import small_runs
from drifting_jax.training import build, restore, run
from drifting_jax.training import encoder as train_mae
from drifting_jax.workdir.metrics import read_metrics
from drifting_jax.workdir.opening import open_workdir

STEPS, MORE_STEPS = 100, 110  # of the tiny config, and of the last start of the resumed run


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run stopped by SIGTERM in the encoder and by SIGKILL in the generator, and then finished.

    Its workdir, what each of its three starts printed, and how far it was between them.
    """
    workdir = tmp_path_factory.mktemp("runs") / "resumed"
    encoder, generator = workdir / "encoder" / "checkpoints", workdir / "checkpoints"
    with launch(workdir) as process:
        wait_for(lambda: steps(encoder), process)
        seen = steps(encoder)[-1]
        process.send_signal(signal.SIGTERM)
        stopped = finish(process)
    stopped.seen, stopped.encoder, stopped.generator = seen, steps(encoder), steps(generator)

    with launch(workdir) as process:
        wait_for(lambda: steps(generator) and last_logged(workdir) > steps(generator)[-1], process)
        process.send_signal(signal.SIGKILL)
        killed = finish(process)
    killed.encoder, killed.generator = steps(encoder), steps(generator)
    killed.encoder_files = {p: p.stat().st_mtime_ns for p in encoder.rglob("*")}

    with launch(workdir, f"--config.train.num_steps={MORE_STEPS}") as process:
        finished = finish(process)
    assert finished.status == 0, finished
    return SimpleNamespace(workdir=workdir, stopped=stopped, killed=killed, finished=finished)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run from start to end, which is measured only at its end."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    with launch(workdir, "--config.eval.every=0") as process:
        result = finish(process)
    assert result.status == 0, result
    assert steps(workdir / "checkpoints") == [STEPS - 10, STEPS]
    return workdir


def test_sigterm_saves_and_says_how_to_go_on(resumed):
    stopped = resumed.stopped
    assert stopped.status == 75, stopped
    assert "SIGTERM: saving and stopping" in stopped.error
    arguments = [f"--config={CONFIG}", f"--workdir={resumed.workdir}"]
    command = shlex.join([sys.executable, "main.py", *arguments])
    assert f"the same command goes on from there:\n  {command}\n" in stopped.error
    assert stopped.seen < stopped.encoder[-1] < 48 and not stopped.generator


def test_a_killed_run_trains_nothing_again(resumed):
    killed = resumed.killed
    assert killed.status == -signal.SIGKILL, killed
    assert killed.generator[-1] < STEPS and killed.encoder[-1] == 48
    assert steps(resumed.workdir / "checkpoints") == [STEPS, MORE_STEPS]
    encoder = resumed.workdir / "encoder" / "checkpoints"
    assert {p: p.stat().st_mtime_ns for p in encoder.rglob("*")} == killed.encoder_files


@pytest.mark.slow
def test_a_disturbed_run_has_the_bits_of_one_that_was_not(resumed, undisturbed, tmp_path):
    expected = read_checkpoint(undisturbed / "checkpoints", STEPS, tmp_path)
    found = read_checkpoint(resumed.workdir / "checkpoints", STEPS, tmp_path)
    assert set(found) == set(expected)
    assert {name for name in expected if "batches" in name or "images" in name}
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)

    once = {"encoder": [*range(5, 46, 5), 48], "generator": [*range(5, MORE_STEPS + 1, 5)]}
    for stage, logged in once.items():
        records = read_metrics(resumed.workdir, stage=stage)
        assert [r["step"] for r in records] == logged
        losses = {r["step"]: r["loss"] for r in read_metrics(undisturbed, stage=stage)}
        assert list(losses) == [step for step in logged if step <= STEPS]
        for record in records[: len(losses)]:
            assert record["loss"] == losses[record["step"]]


def test_a_run_leaves_what_it_promises(resumed):
    workdir = resumed.workdir
    record = json.loads((workdir / "config.json").read_text())
    assert record["versions"]["jax"] == jax.__version__
    assert record["config"]["train"]["num_steps"] == MORE_STEPS
    assert steps(workdir / "encoder" / "checkpoints") == [40, 48]
    for stage in ("encoder", "generator", "evaluation"):
        assert list((workdir / "tensorboard" / stage).glob("events*"))
    for step in (60, MORE_STEPS):
        picture = Image.open(workdir / "samples" / f"generator_samples_{step:08d}.png")
        assert picture.size == (400, 400) or min(picture.size) > 400
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert (figures["step"], figures["num_samples"]) == (MORE_STEPS, 80)
    for name, value in figures["alpha"]["1"].items():
        assert (
            np.isfinite(value) and f"{name.removesuffix('_floor')}_floor" in figures["alpha"]["1"]
        )
    with np.load(workdir / "samples" / "final.npz") as samples:
        assert samples["arr_0"].shape == (80, 8, 8, 1) and samples["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(samples["arr_1"], np.repeat(np.arange(10), 8))
    assert (workdir / "samples" / "final.png").is_file()
    assert Image.open(workdir / "drift.png").size == (1000, 380)
    assert Image.open(workdir / "samples" / "training.gif").n_frames == 2  # one of each start
    for name in ("fd_classifier", "evaluation.json", "metrics.jsonl", "checkpoints", "done in"):
        assert name in resumed.finished.out
    assert "Traceback" not in resumed.finished.error
    left = [p for p in workdir.rglob("*") if ".partial" in p.name or "tmp" in p.name]
    assert not left


def test_metrics_are_logged_once_a_step(resumed):
    encoder, generator = (read_metrics(resumed.workdir, stage=s) for s in ("encoder", "generator"))
    assert [r["step"] for r in encoder] == [*range(5, 46, 5), 48]
    assert [r["step"] for r in generator] == list(range(5, MORE_STEPS + 1, 5))
    last = generator[-1]
    wanted = {"loss", "grad_norm", "learning_rate", "images_per_second", "seconds", "skipped"}
    drifts = {f"drift/{name}/{t}" for name in ("raw", "stage1", "mean") for t in ("0.05", "0.2")}
    assert wanted | drifts <= set(last)
    assert all(np.isfinite(v) for k, v in last.items() if k != "stage")
    assert last["learning_rate"] == np.float32(config().optim.learning_rate)
    assert encoder[-1]["reconstruction"] < encoder[0]["reconstruction"]


def test_a_complete_run_says_so(resumed, capsys):
    before = {p: p.stat().st_mtime_ns for p in resumed.workdir.rglob("*") if p.is_file()}
    assert run.run(config(train__num_steps=MORE_STEPS), workdir=resumed.workdir) == 0
    out = capsys.readouterr().out
    assert f"the run in {resumed.workdir} is complete" in out and "--config.train.num_steps" in out
    after = {p: p.stat().st_mtime_ns for p in resumed.workdir.rglob("*") if p.is_file()}
    assert {p.name for p in before if after[p] != before[p]} <= {"config.json", ".lock"}


def test_only_some_fields_may_change(resumed):
    for changes, message in [
        ({"model__width": 32}, r"config\.model\.width cannot change .* it has 16, now 32"),
        ({"optim__learning_rate": 1e-3}, r"config\.optim\.learning_rate cannot change"),
        ({"encoder__train__mask_ratio_max": 0.9}, r"config\.encoder\.train\.mask_ratio_max"),
        ({"train__num_steps": 50}, r"config\.train\.num_steps may only grow .* 110, now 50"),
    ]:
        with pytest.raises(UserError, match=message):
            changed = {"train__num_steps": MORE_STEPS} | changes
            run.run(config(**changed), workdir=resumed.workdir)
    stored = (resumed.workdir / "config.json").read_text()
    other = {"train__num_steps": 120, "mesh__data": 2, "eval__k": 2, "train__save_every": 7}
    other |= {"train__keep": 5, "train__keep_every": 50}
    with open_workdir(config(**other), resumed.workdir):
        pass
    assert (resumed.workdir / "config.json").read_text() != stored
    with open_workdir(config(**other), resumed.workdir):
        pass
    (resumed.workdir / "config.json").write_text(stored)


def test_sampling_a_run(resumed, tmp_path, monkeypatch, capsys):
    values = SimpleNamespace(
        workdir=str(resumed.workdir),
        weights="",
        vae="",
        classes="7,0-2",
        per_class=3,
        cfg_scale=9.0,
        seed=5,
        ema_decay=0.99,
        ema_sigma=None,
        batch_size=5,
        step=None,
        interpolate=None,
        conditions="",
        out=str(tmp_path / "samples.npz"),
    )
    monkeypatch.setattr(sample, "flags", SimpleNamespace(FLAGS=values))
    sample.main([])
    told = capsys.readouterr()
    assert f"12 samples of step {MORE_STEPS}" in told.out
    assert "alpha from 1 to 4; 9 is outside" in told.err
    with np.load(values.out) as file:
        images, labels = file["arr_0"], file["arr_1"]
    np.testing.assert_array_equal(labels, np.repeat([7, 0, 1, 2], 3))
    assert len({image.tobytes() for image in images}) == 12
    values.interpolate = 4
    sample.main([])
    with np.load(values.out) as file:
        ways = file["arr_0"].reshape(4, 3, 4, 8, 8, 1)
        np.testing.assert_array_equal(file["arr_1"], np.repeat([7, 0, 1, 2], 12))
    np.testing.assert_array_equal(ways[:, :, 0], images.reshape(4, 3, 8, 8, 1))
    np.testing.assert_array_equal(ways[:, :2, -1], ways[:, 1:, 0])
    values.interpolate, values.step = None, STEPS
    capsys.readouterr()
    sample.main([])
    assert f"12 samples of step {STEPS}" in capsys.readouterr().out
    with np.load(values.out) as file:
        assert (file["arr_0"] != images).any()
    with pytest.raises(UserError, match=r"has no checkpoint of step 91; there are 100, 110"):
        restore.load_run(resumed.workdir, step=91)
    loaded = restore.load_run(resumed.workdir, ema_decay=0.99)
    again = loaded.sample(labels[4:6], np.int32([1, 2]), seed=5, cfg_scale=9.0)
    assert np.abs(again.astype(int) - images[4:6]).max() <= 1
    other_average = restore.load_run(resumed.workdir)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, other_average.params, loaded.params)
    with pytest.raises(UserError, match=r"keeps the averages of decay \(0\.9, 0\.99\); found 0\.5"):
        restore.load_run(resumed.workdir, ema_decay=0.5)


def test_metrics_of_another_seed_go_to_a_file_of_their_own(resumed):
    before = (resumed.workdir / "evaluation.json").read_bytes()
    flags = (f"--workdir={resumed.workdir}", "--seeds=3", "--ema_decay=0.99")
    with start("-m", "drifting_jax.evaluate", *flags) as process:
        result = finish(process)
    assert result.status == 0 and "alpha 1: 80 samples" in result.out, result
    assert "FD of the classifier" in (resumed.workdir / "report_seed_3_ema_0.99.html").read_text()
    record = json.loads((resumed.workdir / "evaluation_seed_3_ema_0.99.json").read_text())
    assert (record["seed"], record["ema_decay"]) == (3, 0.99) and set(record["alpha"]) == {"1"}
    assert (resumed.workdir / "evaluation.json").read_bytes() == before


def test_an_evaluation_that_is_stopped_has_no_metrics(resumed, monkeypatch):
    monkeypatch.setattr(small_runs, "make_small_reference", lambda *_, **__: None)  # not reached
    loaded = restore.load_run(resumed.workdir)
    settings = {"workdir": resumed.workdir, "report": print, "seeds": [4]}
    assert small_runs.evaluate_run(loaded, stopped=lambda: True, **settings) is None
    assert not list(resumed.workdir.glob("*_seed_4*"))


def test_a_trained_encoder_serves_another_run(resumed, tmp_path):
    source = make_source(config().data, "train")
    mesh = meshes.make_mesh(4, 2)

    def params(workdir=tmp_path / "other", trained=resumed.workdir, **changes):
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
    record = json.loads((resumed.workdir / "config.json").read_text())
    record["config"]["encoder"]["train"]["num_steps"] = 64
    (unfinished / "config.json").write_text(json.dumps(record))
    (unfinished / "encoder" / "checkpoints").symlink_to(resumed.workdir / "encoder/checkpoints")
    with pytest.raises(UserError, match=r"has 48 of its 64 steps: run that to its end first"):
        params(tmp_path / "early", trained=unfinished)


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
