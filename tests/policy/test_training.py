"""Whole runs of a policy, tiny: what they leave, how they go on, and what they refuse."""

import ast
import json
import runpy
import shutil

import jax
import numpy as np
import pytest
from own_flags import run_command
from PIL import Image

from drifting_jax import export
from drifting_jax.commands import generator_choice
from drifting_jax.config import base_config, resolve
from drifting_jax.errors import UserError
from drifting_jax.policy import training
from drifting_jax.policy.policy import load_policy
from drifting_jax.training import dry_run, run
from drifting_jax.workdir.metrics import read_metrics

SMALL = {
    "log_every": 1,
    "mesh.data": 1,
    "data.prediction_horizon": 4,
    "data.action_horizon": 2,
    "data.held_out_episodes": 1,
    "model.width": 16,
    "model.depth": 1,
    "condition.width": 8,
    "optim.warmup_steps": 1,
    "optim.schedule": "constant",
    "train.num_steps": 4,
    "train.save_every": 2,
    "train.sample_every": 2,
    "train.conditions": 8,
    "train.generated": 4,
    "eval.conditions": 6,
    "eval.samples": 3,
}
LEARNED = {
    "drift.field": "mean_shift",
    "drift.temperatures": (10.0,),
    "single_target.learned_temperature": True,
    "single_target.statistics": "row",
    "single_target.neighbours": 2,
}
TIMES = ("seconds", "images_per_second", "compile_seconds", "waiting_for_data", "tflops_per_device")


def config(path, **fields):
    found = base_config("policy")
    named = {name.replace("__", "."): value for name, value in fields.items()}
    found.update_from_flattened_dict({**SMALL, "data.path": str(path), **named})
    return resolve(found)


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Walks in the plane, to the left or to the right."""
    rng = np.random.default_rng(0)
    side = np.repeat(rng.choice([-1.0, 1.0], 5), 10)
    actions = np.stack([side, rng.normal(size=50)], axis=1).astype(np.float32)
    observations = np.concatenate([actions.cumsum(axis=0), np.ones((50, 1))], axis=1)
    path = tmp_path_factory.mktemp("demos") / "demos.npz"
    ends = np.arange(10, 51, 10)
    np.savez(path, observations=observations, actions=actions, episode_ends=ends)
    return path


@pytest.fixture(scope="module")
def workdir(demos, tmp_path_factory):
    """A run that learns its temperature and has neighbours."""
    folder = tmp_path_factory.mktemp("runs") / "policy"
    assert run.run(config(demos, **_dunder(LEARNED)), workdir=folder) == 0
    return folder


def _dunder(fields):
    return {name.replace(".", "__"): value for name, value in fields.items()}


def lines(folder):
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(folder, stage="policy")
    ]


def observations_of(policy, n=5):
    shape = (n, policy.horizons.observation, policy.sizes.observation)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_a_run_leaves_its_metrics_pictures_and_checkpoints(workdir):
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["step"] == 4 and found["training"]["conditions"] == 6
    for part in ("training", "held_out"):
        values = found[part]
        assert values["error"] >= values["nearest"] > 0
        np.testing.assert_allclose(values["energy_score"], values["error"] - values["spread"] / 2)
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    last = lines(workdir)[-1]
    assert 9 < last["temperature"] < 10 and last["drift/mean/learned"] > 0
    assert last["energy_score"] > 0 and last["skipped"] == 0
    ratio = last["energy_score"] / found["training"]["energy_score"]
    assert 0.5 < ratio < 2  # the same unit, of other windows and another average
    for name in ("policy_chunks_00000002.png", "policy_chunks_00000004.png"):
        assert Image.open(workdir / "samples" / name).size[0] > 400
    assert (workdir / "drift.png").exists()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert json.loads((workdir / "data.json").read_text())["count"] == 4 * (10 + 1 + 1 - 4 + 1)


def test_a_complete_run_stays_as_it_is(workdir, demos, capsys):
    assert run.run(config(demos, **_dunder(LEARNED)), workdir=workdir) == 0
    assert "is complete" in capsys.readouterr().out


def test_a_run_goes_on_bit_for_bit(workdir, demos, tmp_path):
    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "evaluation.json").unlink()
    assert run.run(config(demos, **_dunder(LEARNED)), workdir=again) == 0
    assert lines(again) == lines(workdir)
    ours, theirs = load_policy(again), load_policy(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    files = [json.loads((folder / "evaluation.json").read_text()) for folder in (again, workdir)]
    assert files[0] == files[1]


def test_actions_depend_on_the_condition_the_seed_and_the_index_alone(workdir):
    policy = load_policy(workdir, batch_size=4)
    assert (policy.step, policy.ema_decay, policy.sizes) == (4, 0.99, (3, 2))
    seen = observations_of(policy, 7)
    found = policy.predict(seen, seed=3)
    assert found.shape == (7, 4, 2) and found.dtype == np.float32
    np.testing.assert_array_equal(policy.predict(seen, seed=3), found)
    np.testing.assert_array_equal(
        policy.predict(seen[[5, 2]], seed=3, indices=np.array([5, 2])), found[[5, 2]]
    )
    np.testing.assert_array_equal(policy.act(seen, seed=3), found[:, 1:3])
    assert np.abs(policy.predict(seen, seed=4) - found).max() > 1e-3
    same = policy.predict(np.repeat(seen[:1], 3, axis=0), seed=3)
    assert len({chunk.tobytes() for chunk in same}) == 3
    assert policy.predict(seen[:0], seed=0).shape == (0, 4, 2)
    scaling = policy.scalings.action
    assert np.all(np.abs(scaling.scaled(found)) <= 1 + 1e-5)


def test_an_older_checkpoint_and_another_average(workdir):
    early, late = (
        load_policy(workdir, step=2, ema_decay=0.999),
        load_policy(workdir, ema_decay=0.999),
    )
    assert (early.step, late.step) == (2, 4)
    seen = observations_of(early)
    assert np.abs(early.predict(seen, seed=0) - late.predict(seen, seed=0)).max() > 0


def test_what_cannot_be_loaded_or_asked(workdir, tmp_path):
    with pytest.raises(UserError, match=r"keeps the averages of decay \(0.99, 0.999\); found 0.5"):
        load_policy(workdir, ema_decay=0.5)
    with pytest.raises(UserError, match="holds no run"):
        load_policy(tmp_path)
    policy = load_policy(workdir)
    seen = observations_of(policy)
    with pytest.raises(ValueError, match=r"observations must be \[n, 2, 3\]; found \[5, 3\]"):
        policy.predict(seen[:, 0], seed=0)
    with pytest.raises(ValueError, match=r"indices must be \[5\]; found \[2\]"):
        policy.predict(seen, seed=0, indices=np.arange(2))
    with pytest.raises(UserError, match="actions are not finite"):
        policy.predict(np.full_like(seen, np.nan), seed=0)


def test_a_run_keeps_its_demonstrations(workdir, demos, tmp_path):
    with np.load(demos) as arrays:
        changed = {**arrays, "actions": arrays["actions"] + 1}
    np.savez(tmp_path / "others.npz", **changed)
    fields = config(tmp_path / "others.npz", **_dunder(LEARNED), train__num_steps=6)
    with pytest.raises(UserError, match=r"others\.npz is not what the run in .* began with: 36"):
        run.run(fields, workdir=workdir)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"drift__field": "energy"}, "learned_temperature needs a config.drift.field with temper"),
        ({"drift__temperatures": (1.0, 2.0)}, "needs one entry in config.drift.temperatures"),
        ({"drift__annealed": True}, "needs config.drift.annealed=False"),
        ({"drift__negatives": "fresh"}, "needs config.drift.negatives=own"),
        ({"train__generated": 1}, "needs config.train.generated of at least 2"),
        ({"mesh__data": 8, "train__conditions": 12}, "multiple of the 8 devices; found 12"),
        ({"data__prediction_horizon": 2}, "prediction_horizon must be at least"),
        ({"drift__negatives": "stale"}, "must not be 'stale' for a policy"),
        ({"model__kind": "transformer", "model__width": 36}, "width 36 and 4 heads"),
        ({"data__path": ""}, "config.data.path must name the demonstrations"),
        ({"single_target__neighbours": 99}, "neighbours must be below the 36 conditions; found 99"),
        ({"data__held_out_episodes": 5}, "held_out_episodes must be below the 5 episodes"),
    ],
    ids=str,
)
def test_configs_that_do_not_go_together(demos, tmp_path, fields, says):
    with pytest.raises(UserError, match=says):
        found = _dunder(LEARNED) | {"data__path": str(demos)} | fields
        path = found.pop("data__path")
        run.run(config(path, **found), workdir=tmp_path / "run")


@pytest.mark.parametrize(
    "fields",
    [
        {"model__kind": "transformer", "data__prediction_horizon": 3},
        {"drift__field": "w_flow", "drift__temperatures": (0.05,)},
        {"drift__field": "sliced", "train__generated": 1, "drift__annealed": False},
        {"drift__field": "mean_shift", "drift__annealed": True, "mesh__data": 8},
    ],
    ids=str,
)
def test_a_step_of_other_networks_and_fields(demos, fields):
    """With a second batch, with a key, with the progress, and on several devices."""
    from drifting_jax.policy.training import program, read_data
    from drifting_jax.training import build

    found = config(demos, **fields)
    made = program(found, build.make_mesh(found))
    windows = read_data(found).windows
    records = [windows[i] for i in range(8)]
    batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
    batch = jax.device_put(batch, jax.tree.map(lambda x: x.sharding, dict(made.batch)))
    carry, _ = made.step(made.first_carry(), {}, batch)
    carry, report = made.step(carry, {}, batch)
    assert int(carry.state.skipped) == 0
    scalars = made.to_scalars(jax.device_get(report.metrics))
    assert np.isfinite(list(scalars.values())).all() and "temperature" not in scalars


def test_an_exported_policy_acts_as_the_policy_does(workdir, tmp_path):
    words = f"--workdir={workdir}", f"--out={tmp_path / 'out'}"
    run_command([export, generator_choice], *words)
    module = runpy.run_path(str(tmp_path / "out" / "policy.py"))
    assert not [n for n in ast.walk(ast.parse((tmp_path / "out/policy.py").read_text()))
                if isinstance(n, ast.ImportFrom) and "drifting" in n.module]  # fmt: skip
    exported, policy = module["Policy"](tmp_path / "out"), load_policy(workdir)
    seen, indices = observations_of(policy, 70), np.arange(70) + 7
    for seed in (0, 2**32 - 1):
        found = exported.act(seen, seed=seed, indices=indices)
        np.testing.assert_array_equal(found, policy.act(seen, seed=seed, indices=indices))
    assert exported.config["step"] == 4
    with pytest.raises(UserError, match="must be a new folder"):
        run_command([export, generator_choice], *words)


def test_what_has_no_effect_is_said(demos, tmp_path):
    """A constant observation, an action that hardly changes, and an episode of one step."""
    with np.load(demos) as arrays:
        actions = arrays["actions"] * np.float32([1, 1e-6])
        ends = np.array([10, 11, 20, 30, 40, 50])
        np.savez(tmp_path / "demos.npz", **{**arrays, "actions": actions, "episode_ends": ends})
    found = training.read_data(config(tmp_path / "demos.npz", data__prediction_horizon=6)).notes
    for note, said in zip(
        found, ("dimensions 2 of the obs", "dimensions 1 (range", "1 of 6 episodes"), strict=True
    ):
        assert said in note
    assert "fewer than the 4 steps that the horizons need" in found[-1]


def test_a_dry_run_reads_the_sizes_of_the_demonstrations(demos):
    assert "policy: " in dry_run.dry_run(config(demos))
