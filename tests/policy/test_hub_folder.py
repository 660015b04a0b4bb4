"""A policy as a folder for the Hub: written by the command, loaded, exported, trained further."""

import json
import shutil

import jax
import numpy as np
import pytest
from own_flags import run_command

from drifting_jax import convert, export
from drifting_jax.commands import generator_choice
from drifting_jax.config import base_config, resolve
from drifting_jax.digests import fingerprint_variables
from drifting_jax.errors import UserError
from drifting_jax.policy.policy import load_policy
from drifting_jax.steps.scaling import scaling_of
from drifting_jax.training import dry_run, run
from drifting_jax.workdir.metrics import read_metrics

SMALL = {
    "log_every": 2,
    "mesh.data": 1,
    "data.prediction_horizon": 4,
    "data.action_horizon": 2,
    "model.width": 16,
    "model.depth": 1,
    "condition.width": 8,
    "optim.warmup_steps": 1,
    "optim.schedule": "constant",
    "train.num_steps": 2,
    "train.save_every": 2,
    "train.sample_every": 2,
    "train.conditions": 8,
    "train.generated": 4,
    "eval.conditions": 6,
    "eval.samples": 3,
}


def config(path, **fields):
    found = base_config("policy")
    found.update_from_flattened_dict({**SMALL, "data.path": str(path), **fields})
    return resolve(found)


def to_hub(source, out, *words):
    run_command(convert, f"--source={source}", "--to=hub", f"--out={out}", *words)


def run_export(weights, out, *words):
    run_command([export, generator_choice], f"--weights={weights}", f"--out={out}", *words)


def write_demos(path, scale=1.0, observation=3):
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.uniform(-1, 1, (40, observation)), "actions": rng.uniform(
        -1, 1, (40, 2)) * scale, "episode_ends": np.arange(10, 41, 10)}  # fmt: skip
    np.savez(path, **arrays)
    return arrays


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "demos.npz"
    write_demos(path)
    return path


@pytest.fixture(scope="module")
def workdir(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "policy"
    assert run.run(config(demos), workdir=folder) == 0
    policy = {"parameters": fingerprint_variables(load_policy(folder).params)}
    for name, parameters in (("mine.py_Mine", policy), ("other", {"parameters": "0"})):
        summary = {"environment": f"/home/me/{name}", "policy": parameters, "episodes": 50,
                   "max_steps": 0, "success": 0.625, "success_deviation": None,
                   "endings": {"done": 0.625, "out of time": 0.375}}  # fmt: skip
        path = folder / "rollouts" / name / "rollouts.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def hub(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "reach<3"
    to_hub(workdir, out, "--license=mit")
    return out


def test_the_folder_has_the_weights_the_metrics_and_a_card(hub, workdir):
    names = {"README.md", "config.json", "evaluation.json", "model.safetensors"}
    assert {path.name for path in hub.iterdir()} == names
    found, measured = (json.loads((f / "evaluation.json").read_text()) for f in (hub, workdir))
    assert found.pop("rollouts") == [
        {"environment": "mine.py_Mine", "episodes": 50, "max_steps": 0, "success": 0.625,
         "success_deviation": None, "endings": {"done": 0.625, "out of time": 0.375}}
    ]  # fmt: skip
    assert found == measured and found["ema_decay"] == 0.99
    card = (hub / "README.md").read_text()
    assert "\nlicense: mit\n" in card and "# reach&lt;3" in card and "robotics" in card
    assert "It sees 2 observations of 3 numbers" in card and "| `model.width` | 16 |" in card
    assert f"| training demonstrations | {measured['training']['energy_score']:.4f} |" in card
    assert "| mine.py_Mine | 50 | 62.5% |" in card and "/home" not in card
    assert "| `drift.field` | mmd |" in card
    assert "| `drift.temperatures` | (0.05, 0.2, 1.0, 3.0) |" in card
    # Neither the field nor the network reads these.
    assert "drift.combine" not in card and "model.num_heads" not in card


def test_it_acts_as_the_run_does_and_can_be_written_again(hub, workdir, tmp_path):
    run_policy, found = load_policy(workdir), load_policy(hub)
    assert (found.step, found.ema_decay, found.horizons) == (2, 0.99, run_policy.horizons)
    seen = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    expected = run_policy.act(seen, seed=3)
    np.testing.assert_array_equal(found.act(seen, seed=3), expected)
    to_hub(hub, tmp_path / "again")
    for name in ("config.json", "model.safetensors", "evaluation.json"):
        assert (tmp_path / "again" / name).read_bytes() == (hub / name).read_bytes()
    pytest.importorskip("flatbuffers")
    run_export(hub, tmp_path / "exported")
    with np.load(tmp_path / "exported" / "weights.npz") as arrays:
        assert fingerprint_variables({n: arrays[n] for n in arrays}) == fingerprint_variables(
            run_policy.params
        )


def test_text_of_others_stays_in_its_cell(hub, tmp_path):
    folder = shutil.copytree(hub, tmp_path / "hub")
    found = json.loads((folder / "evaluation.json").read_text())
    found["rollouts"][0]["environment"] = "a|b\n| <c> |"
    (folder / "evaluation.json").write_text(json.dumps(found))
    to_hub(folder, tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    assert "\n| a&#124;b &#124; &lt;c&gt; &#124; | 50 | 62.5% |\n" in card


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"energy_score": "x", "error": 1, "nearest": 1, "spread": 1}},
        {"held_out": 3},
        {"training": {}},
        {"rollouts": 3},
        {"rollouts": [{"environment": "x", "episodes": "|", "success": 1.0}]},
        {"rollouts": [{"environment": 3, "episodes": 1, "success": 1, "success_deviation": None}]},
        {"ema_decay": float("nan")},
        {"training": {"energy_score": 10**400, "error": 1, "nearest": 1, "spread": 1}},
    ],
    ids=str,
)
def test_damaged_metrics_of_others_are_left_out(hub, tmp_path, capsys, change):
    folder = shutil.copytree(hub, tmp_path / "hub")
    path = folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    to_hub(folder, tmp_path / "x")
    assert f"note: {path} is damaged and left out\n" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "x").iterdir()} == {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert "## Metrics" not in (tmp_path / "x" / "README.md").read_text()


def test_damaged_files_of_a_run_are_left_out(workdir, tmp_path, capsys):
    folder = shutil.copytree(workdir, tmp_path / "run")
    damaged = folder / "evaluation.json", folder / "rollouts" / "other" / "rollouts.json"
    damaged[0].write_text("{")
    record = json.loads(damaged[1].read_text())
    damaged[1].write_text(json.dumps(record | {"policy": 3}))
    to_hub(folder, tmp_path / "x")
    printed = capsys.readouterr().out
    assert all(f"note: {path} is damaged and left out\n" in printed for path in damaged)
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    assert [one["environment"] for one in found.pop("rollouts")] == ["mine.py_Mine"] and not found


def test_other_averages_have_no_metrics(workdir, tmp_path):
    to_hub(workdir, tmp_path / "x", "--ema_decay=0.999")
    assert not (tmp_path / "x" / "evaluation.json").exists()
    assert load_policy(tmp_path / "x").ema_decay == 0.999


@pytest.fixture
def badly_rounded(hub, tmp_path):
    """The folder with other observations in its scaling, and demonstrations of a wider range.

    float32 cannot hold the middle of the wider range, so some observations lie outside of what the
    scaling of them says.
    """
    rng = np.random.default_rng(1)
    before, now = (
        (rng.uniform(-1, 1, (40, 3)) * reach + 1024.05).astype(np.float32) for reach in (0.025, 0.1)
    )
    found = scaling_of(now)
    low, high = found.centre - found.half_range, found.centre + found.half_range
    assert np.all((now.min(axis=0) < low) | (now.max(axis=0) > high))
    folder = shutil.copytree(hub, tmp_path / "hub")
    record = json.loads((folder / "config.json").read_text())
    record["scaling"]["observation"] = scaling_of(before).record()
    (folder / "config.json").write_text(json.dumps(record))
    arrays = write_demos(tmp_path / "wider.npz", scale=2.0) | {"observations": now}
    np.savez(tmp_path / "wider.npz", **arrays)
    return folder, tmp_path / "wider.npz", arrays


def test_a_run_starts_from_it_and_goes_on_bit_for_bit_without_it(badly_rounded, tmp_path):
    start_folder, demos, arrays = badly_rounded
    fields = {"model.init_from": str(start_folder), "seed": 5, "train.num_steps": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run.run(config(demos, **fields), workdir=whole) == 0
    start, further = load_policy(start_folder), load_policy(whole)
    jax.tree.map(  # random parameters of another seed would be farther away
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), further.params, start.params
    )
    for scaling, name in zip(further.scalings, ("observations", "actions"), strict=True):
        expected = np.ptp(np.float64(arrays[name]), axis=0) / 2
        np.testing.assert_allclose(scaling.half_range, expected, rtol=1e-6)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "4")
    (parts / "evaluation.json").unlink()
    shutil.rmtree(start_folder)
    assert run.run(config(demos, **fields), workdir=parts) == 0
    again = load_policy(parts)
    jax.tree.map(np.testing.assert_array_equal, again.params, further.params)
    jax.tree.map(np.testing.assert_array_equal, again.scalings, further.scalings)
    for folder in (whole, parts):
        assert read_metrics(folder, stage="policy")[-1]["step"] == 4
    found = [json.loads((folder / "evaluation.json").read_text()) for folder in (whole, parts)]
    assert found[0] == found[1]


def test_a_range_within_that_of_the_start_stays(hub, tmp_path):
    write_demos(tmp_path / "narrow.npz", scale=0.1)
    fields = {"model.init_from": str(hub), "train.num_steps": 1}
    assert run.run(config(tmp_path / "narrow.npz", **fields), workdir=tmp_path / "run") == 0
    found, start = load_policy(tmp_path / "run").scalings, load_policy(hub).scalings
    jax.tree.map(np.testing.assert_array_equal, found, start)


@pytest.mark.parametrize(
    ("given", "fields", "message"),
    [
        ({}, {"model.width": 8}, "differs from the config: width 16 there, 8 here"),
        ({}, {"data.action_horizon": 1}, "action 2 there, 1 here"),
        (
            {},
            {"model.kind": "transformer"},
            "kind 'mlp' there, 'transformer' here",
        ),
        ({"observation": 2}, {}, "observations of 3 and actions of 2 .* have 2 and 2"),
        ({}, {"model.init_from": "nowhere"}, "nowhere .* is no folder of a policy: .*--to=hub"),
    ],
)
def test_starts_that_do_not_fit(hub, tmp_path, given, fields, message):
    write_demos(tmp_path / "demos.npz", **given)
    found = config(tmp_path / "demos.npz", **{"model.init_from": str(hub), **fields})
    with pytest.raises(UserError, match=message):
        run.run(found, workdir=tmp_path / "run")
    with pytest.raises(UserError, match=message):
        dry_run.dry_run(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "vae"}, "of the kind 'vae'; expected 'policy'"),
        ({"kind": "lstm"}, "describes no policy: KeyError: 'lstm'"),
        ({"fields": {"width": 32}}, "has the shape|lacks|shape"),
        ({"horizons": {"observation": 2, "prediction": 10**9, "action": 2}}, "describes no policy"),
        ({"horizons": {"observation": 3, "prediction": 4, "action": 3}}, "must be at least"),
        ({"scaling": {}}, "does not hold the scaling of a policy"),
        ({"step": "x"}, "step must be a whole number"),
    ],
    ids=str,
)
def test_damaged_descriptions_are_named(hub, tmp_path, change, message):
    folder = shutil.copytree(hub, tmp_path / "hub")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_policy(folder)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--vae=x", "--vae and --kind are for generators"),
        ("--license=my licence", "--license must be a name"),
        ("--ema_decay=0.5", r"keeps the averages of decay \(0.99, 0.999\); found 0.5"),
        ("--to=plain", "task 'policy'; expected 'generator': python -m drifting_jax.rollout"),
        ("--out=.", "must be a new folder"),
    ],
)
def test_mistakes_of_convert(workdir, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        to_hub(workdir, tmp_path / "x", given)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_one_average(hub, tmp_path):
    with pytest.raises(UserError, match="is one average of one step"):
        load_policy(hub, ema_decay=0.99)
    with pytest.raises(UserError, match="--step goes with --workdir"):
        run_export(hub, tmp_path / "x", "--step=2")
