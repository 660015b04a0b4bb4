"""The two-dimensional toy: where q starts, where it ends, and the pictures it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_tracker
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_toy import config

from drifting_jax.config import file_beside, resolve
from drifting_jax.data.points import MODE_STD, sample_target
from drifting_jax.errors import UserError
from drifting_jax.models.mlp import MLP
from drifting_jax.training import build, programs, run, toy
from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CENTRES = {"collapsed": (-1.5, 0.0), "between": (0.0, 0.0), "far": (5.0, 5.0)}


def toy2d():
    """The config file, as a module."""
    return file_beside(ROOT / "configs" / "any.py", "toy2d.py")


@pytest.mark.parametrize(
    "drift",
    [
        {"drift__field": "w_flow", "drift__temperatures": (0.05,), "drift__measure_reach": True},
        {"drift__field": "sliced", "drift__projections": 16},
        {"drift__lookahead": 1, "drift__annealed": True},
    ],
    ids=str,
)
def test_a_step_of_every_kind_of_field(drift):
    """With a second batch, with a key, and with the progress; its drifts have their names."""
    found = config(start="between", **drift)
    program = programs.toy_program(found, build.make_mesh(found))
    points = jnp.asarray(sample_target("two_modes", np.random.default_rng(0), 64))
    batch = {"image": points, "label": jnp.zeros(64, jnp.int32)}
    carry, report = program.step(program.first_carry(), {}, batch)
    carry, again = program.step(carry, {}, batch)
    assert int(carry.state.skipped) == 0
    scalars = program.to_scalars(jax.device_get(report.metrics))
    drifts = [n for n in scalars if "drift/" in n]
    assert len(drifts) == {"sliced": 1, "w_flow": 1}.get(found.drift.field, 4)
    reach = [n for n in scalars if n in ("effective_positives/0.05", "unreached/0.05")]
    assert len(reach) == (2 if found.drift.measure_reach else 0)
    assert report.metrics.gradient_norm != again.metrics.gradient_norm


def test_a_toy_has_no_samples_of_the_step_before():
    with pytest.raises(UserError, match="must not be 'stale' for a toy"):
        build.check_choices(config(drift__negatives="stale"))


@pytest.mark.parametrize("start", list(CENTRES))
def test_q_starts_where_the_config_says(start):
    found = config(start=start)
    model = MLP(widths=found.model.widths)
    state = programs.toy_program(found, build.make_mesh(found)).first_carry().state
    noise = jax.random.normal(jax.random.key(0), (2000, found.model.noise_features))
    points = np.asarray(model.apply({"params": state.params}, noise))
    np.testing.assert_allclose(points.mean(axis=0), CENTRES[start], atol=0.05)
    spread = np.linalg.norm(points - points.mean(axis=0), axis=1)
    assert 1e-3 < np.median(spread) < MODE_STD


@pytest.mark.slow
def test_q_comes_to_cover_both_modes_and_leaves_its_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(toy, "_FRAMES", 4)  # drawing is slow
    calls = fake_tracker.install(monkeypatch, "wandb")
    workdir = tmp_path / "toy"
    assert run.run(config(tracker="wandb"), workdir=workdir) == 0
    told = capsys.readouterr().out
    assert "sliced Wasserstein" in told and "mass per mode" in told

    figures = json.loads((workdir / "evaluation.json").read_text())
    assert (figures["step"], figures["num_samples"]) == (300, 512)
    shares = figures["mode_shares"]
    assert min(shares) > 0.25 and abs(sum(shares) - 1) < 0.02  # it began on one of the two
    assert figures["sliced_wasserstein"] < 0.35
    assert 0 < figures["sliced_wasserstein_floor"] < figures["sliced_wasserstein"]

    frames = {int(p.stem): np.load(p) for p in (workdir / "frames").glob("*.npy")}
    assert sorted(frames) == [0, 33, 133, 300]
    assert frames[0][:, 0].max() < 0 < frames[300][:, 0].max()
    with Image.open(workdir / "drift.gif") as animation:
        assert animation.n_frames == 4
    for name in ("field.png", "drift.png"):
        assert Image.open(workdir / name).size[0] > 400
    records = read_metrics(workdir, stage="toy")
    assert [r["step"] for r in records] == list(range(50, 301, 50))
    for temperature in ("0.05", "0.2"):
        assert records[-1][f"drift/mean/{temperature}"] > 0
    assert records[-1]["diversity/mean"] > 3 * records[0]["diversity/mean"] > 0
    assert [line["toy/step"] for line in fake_tracker.logged(calls)] == list(range(50, 301, 50))
    assert calls[0][2]["config"]["train"]["num_steps"] == 300
    assert calls[-1] == ("finish", (), {"exit_code": 0})
    assert [name for name, _, _ in calls].count("finish") == 1
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"150", "300"}

    touched = ("config.json", ".lock")
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.name not in touched}
    assert run.run(config(), workdir=workdir) == 0
    assert "is complete" in capsys.readouterr().out
    assert all(p.stat().st_mtime_ns == then for p, then in before.items() if p.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["collapsed", "attraction_only"])
def test_q_reaches_the_target_and_with_attraction_alone_never(tmp_path, variant):
    """From one mode to both, or not, compiled as users have it; the first is the run that ships."""
    words = [f"--config=configs/toy2d.py:{variant}", f"--workdir={tmp_path / 'toy'}"]
    if variant == "attraction_only":  # as many as show that it does not move
        words.append("--config.train.num_steps=500")
    subprocess.run(
        [sys.executable, "main.py", *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        check=True,
    )
    figures = json.loads((tmp_path / "toy" / "evaluation.json").read_text())
    distance = figures["sliced_wasserstein"] / figures["sliced_wasserstein_floor"]
    if variant == "collapsed":
        assert distance < 2
        assert max(abs(share - 0.5) for share in figures["mode_shares"]) < 0.02
    else:
        assert distance > 20
        assert figures["mode_shares"][0] > 0.98


def test_frames_are_closer_together_at_first():
    for num_steps in (1, 7, 2000):
        steps = sorted(toy.frame_steps(num_steps))
        assert steps[0] == 0 and steps[-1] == num_steps and len(steps) <= 60
    gaps = np.diff(steps)
    assert gaps[0] <= 1 and np.all(np.diff(gaps) >= -1) and gaps[-1] > 20


def test_batches_must_split_over_the_devices(tmp_path):
    with pytest.raises(UserError, match=r"config\.train\.positives .* 8 devices; found 60"):
        run.run(config(mesh__data=8, train__positives=60), workdir=tmp_path / "toy")


def test_every_variant_of_the_config_is_a_config():
    module = toy2d()
    default = resolve(module.get_config())
    assert (default.start, default.data.target) == ("collapsed", "two_modes")
    for start in module.STARTS:
        assert resolve(module.get_config(start)).start == start
    for target in module.TARGETS:
        assert resolve(module.get_config(target)).data.target == target
    for variant, factors in module.DESTRUCTIVE.items():
        drift = resolve(module.get_config(variant)).drift
        assert (drift.attraction, drift.repulsion) == factors != (1.0, 1.0)
    several = resolve(module.get_config("far,checkerboard,attraction_only"))
    assert (several.start, several.data.target) == ("far", "checkerboard")
    assert several.drift.repulsion == 0.0
    assert set(module.STARTS) == set(CENTRES)


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="no variant 'farr'; it knows collapsed, between, far"):
        toy2d().get_config("checkerboard,farr")
