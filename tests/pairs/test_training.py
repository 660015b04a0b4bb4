"""Whole runs of pairs, tiny: what they leave, how they go on, their samples, what they refuse."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from own_flags import run_command
from PIL import Image

from drifting_jax import sample
from drifting_jax.commands import generator_choice
from drifting_jax.config import base_config, resolve
from drifting_jax.errors import UserError
from drifting_jax.pairs.generator import PairGenerator, load_pairs
from drifting_jax.training import build, dry_run, run
from drifting_jax.training.restore import load_run
from drifting_jax.workdir.metrics import read_metrics

SMALL = {
    "log_every": 1,
    "mesh.data": 1,
    "data.held_out": 4,
    "model.width": 8,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.num_context_tokens": 1,
    "condition.width": 8,
    "optim.warmup_steps": 1,
    "train.num_steps": 4,
    "train.save_every": 2,
    "train.sample_every": 2,
    "train.conditions": 8,
    "train.generated": 3,
    "train.ema_decays": (0.5, 0.9),
    "eval.ema_decay": 0.5,
    "eval.conditions": 5,
    "eval.samples": 3,
}
TIMES = ("seconds", "images_per_second", "compile_seconds", "waiting_for_data", "tflops_per_device")


def config(path, fields=None):
    found = base_config("pairs")
    found.update_from_flattened_dict({**SMALL, "data.path": str(path), **(fields or {})})
    return resolve(found)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Images of 4x4 with the means of their quarters as conditions."""
    image = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    condition = image.reshape(20, 2, 2, 2, 2, 1).mean(axis=(2, 4))
    path = tmp_path_factory.mktemp("pairs") / "pairs.npz"
    np.savez(path, condition=condition, image=image)
    return path


@pytest.fixture(scope="module")
def workdir(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pairs"
    assert run.run(config(pairs), workdir=folder) == 0
    return folder


def lines(folder):
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in read_metrics(folder, stage="pairs")
    ]


def conditions_of(pairs):
    with np.load(pairs) as arrays:
        return arrays["condition"]


def test_a_run_leaves_its_metrics_pictures_and_checkpoints(workdir):
    found = json.loads((workdir / "evaluation.json").read_text())
    assert found["step"] == 4
    assert (found["training"]["conditions"], found["held_out"]["conditions"]) == (5, 4)
    parts = {"training", "held_out", "nearest_pairs", "mean_image"}
    assert set(found) == {"step", "ema_decay"} | parts and found["ema_decay"] == 0.5
    for part in parts:
        assert found[part]["error"] >= found[part]["nearest"] > 0
    (line,) = read_metrics(workdir, stage="evaluation")
    assert line["step"] == 4 and len(line) == 2 + 4 * 4
    assert line["energy_score/held_out"] == found["held_out"]["energy_score"]
    assert line["energy_score/mean_image"] == found["mean_image"]["energy_score"]
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert lines(workdir)[-1]["energy_score"] > 0 and lines(workdir)[-1]["skipped"] == 0
    for step in (2, 4):
        picture = Image.open(workdir / "samples" / f"pairs_samples_{step:08}.png")
        # 4 conditions that are held out; each with its target and 8 samples.
        assert picture.size[0] / picture.size[1] == pytest.approx(10 / 4, rel=0.1)
    assert (workdir / "drift.png").exists() and (workdir / "pairs_parameters.txt").exists()
    assert json.loads((workdir / "data.json").read_text())["image"] == [4, 4, 1]


def test_a_run_goes_on_bit_for_bit(workdir, pairs, tmp_path):
    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "evaluation.json").unlink()
    assert run.run(config(pairs), workdir=again) == 0
    assert lines(again) == lines(workdir)
    ours, theirs = load_pairs(again), load_pairs(workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    files = [json.loads((folder / "evaluation.json").read_text()) for folder in (again, workdir)]
    assert files[0] == files[1]


def test_an_image_depends_on_its_condition_the_seed_and_its_index_alone(workdir, pairs):
    generator = load_pairs(workdir)
    assert (generator.step, generator.ema_decay) == (4, 0.5)
    conditions = conditions_of(pairs)[:7]
    found = generator.predict(conditions, seed=3)
    assert found.shape == (7, 4, 4, 1) and found.dtype == np.float32 and np.abs(found).max() <= 1
    chosen = np.array([5, 2])
    some = generator.predict(conditions[chosen], seed=3, indices=chosen)
    np.testing.assert_array_equal(some, found[chosen])
    many = generator.predict(np.tile(conditions, (10, 1, 1, 1)), seed=3)  # two batches
    np.testing.assert_array_equal(many[:7], found)
    other = conditions.copy()
    other[1:] += 50
    np.testing.assert_array_equal(generator.predict(other, seed=3)[0], found[0])
    assert (np.abs(generator.predict(other, seed=3) - found).max(axis=(1, 2, 3)) > 0)[1:].all()
    assert np.abs(generator.predict(conditions, seed=4) - found).max() > 0
    images = generator.sample(conditions, seed=3)
    np.testing.assert_array_equal(images, np.rint((found + 1) * np.float32(127.5)).astype(np.uint8))
    assert generator.sample(conditions[:0], seed=0).shape == (0, 4, 4, 1)


def test_what_cannot_be_loaded_or_asked(workdir, pairs):
    with pytest.raises(UserError, match=r"keeps the averages of decay \(0.5, 0.9\); found 0.7"):
        load_pairs(workdir, ema_decay=0.7)
    with pytest.raises(UserError, match=r"a run of task 'pairs'; expected 'generator': its train"):
        load_run(workdir)
    generator = load_pairs(workdir)
    with pytest.raises(ValueError, match=r"conditions must be \['n', 2, 2, 1\]; found \[20, 4\]"):
        generator.predict(conditions_of(pairs).reshape(20, 4), seed=0)
    with pytest.raises(UserError, match="conditions must be finite"):
        generator.predict(np.full((1, 2, 2, 1), np.nan), seed=0)


@pytest.fixture
def command(workdir):
    """Runs the sample command on the run with these words."""
    return functools.partial(run_command, [sample, generator_choice], f"--workdir={workdir}")


def test_the_command_samples_the_conditions_of_a_file(command, workdir, pairs, tmp_path, capsys):
    out = tmp_path / "s.npz"
    command(f"--conditions={pairs}", "--classes=3,0", "--per_class=2", "--seed=5", f"--out={out}")
    assert "4 samples of step 4" in capsys.readouterr().out
    with np.load(out) as arrays:
        images, numbers = arrays["arr_0"], arrays["arr_1"]
    np.testing.assert_array_equal(numbers, [3, 3, 0, 0])
    expected = load_pairs(workdir).sample(
        conditions_of(pairs)[numbers], seed=5, indices=np.array([0, 1, 0, 1])
    )
    np.testing.assert_array_equal(images, expected)
    for per, numbers in ((3, "0-4"), (36, "2,1")):
        out = f"--out={tmp_path}/s.png"
        command(f"--conditions={pairs}", f"--classes={numbers}", f"--per_class={per}", out)
        # A row for each condition: it, its target and its samples, with lines around each.
        width, height = Image.open(tmp_path / "s.png").size
        rows = 5 if per == 3 else 2
        assert width * (5 * rows + 1) == height * (5 * (2 + per) + 1)


def test_the_command_warns_of_conditions_far_outside_of_the_training_range(
    command, pairs, tmp_path, capsys
):
    other = conditions_of(pairs)[:3].copy()
    command(f"--conditions={pairs}", "--per_class=1", f"--out={tmp_path}/s.npz")
    assert "warning" not in capsys.readouterr().err
    other[1, 1, 0, 0] = 1000
    np.save(tmp_path / "c.npy", other)
    command(f"--conditions={tmp_path}/c.npy", "--per_class=1", f"--out={tmp_path}/s.npz")
    kept = conditions_of(pairs)[:16]
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
    assert line == (
        "warning: 1 of 3 conditions are far outside of the training range: 1000 in dimension 0, "
        f"where training had {kept.min():.4g} to {kept.max():.4g}"
    )
    command(f"--conditions={tmp_path}/c.npy", "--classes=0,2", f"--out={tmp_path}/s.npz")
    assert "warning" not in capsys.readouterr().err


def test_the_command_reads_images_for_a_picture_alone(command, pairs, tmp_path, monkeypatch):
    larger = tmp_path / "larger.npz"
    np.savez(larger, condition=conditions_of(pairs), image=np.zeros((20, 8, 8, 1), np.uint8))
    command(f"--conditions={larger}", "--classes=1", "--per_class=1", f"--out={tmp_path}/s.npz")
    monkeypatch.setattr(PairGenerator, "sample", None)  # it is refused before
    with pytest.raises(UserError, match=r"4, 4, 1\]; found \[20, 8, 8, 1"):
        command(f"--conditions={larger}", f"--out={tmp_path}/s.png")


def test_mistakes_of_the_command_are_one_line(command, workdir, pairs, tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((2, 5)))
    for words, says in (
        ((), "give --conditions=FILE.npz"),
        ((f"--conditions={pairs}", "--cfg_scale=2"), "--cfg_scale is for generators of classes"),
        ((f"--conditions={pairs}", "--batch_size=8"), "--batch_size is for generators of classes"),
        ((f"--conditions={tmp_path}/no.npz",), "there is no file"),
        ((f"--conditions={tmp_path}/c.npy",), r"are \['n', 2, 2, 1\]; those of .* are \[2, 5\]"),
    ):
        with pytest.raises(UserError, match=says):
            command(*words)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data.path": ""}, "config.data.path must name the pairs"),
        ({"data.held_out": 20}, "held_out must be below the 20 pairs; found 20"),
        ({"model.patch_size": 3}, "patch_size must divide image_size 4, found 3"),
        ({"model.kind": "unet", "model.patch_size": 1}, "must divide by 2 for each level"),
        ({"model.kind": "mlp", "condition.kind": "map"}, "needs config.model.kind 'dit' or 'unet'"),
        ({"train.conditions": 12, "mesh.data": 8}, "multiple of the 8 devices; found 12"),
        ({"single_target.learned_temperature": True}, "learned_temperature needs"),
        ({"single_target.neighbours": 16}, "neighbours must be below the 16 conditions; found 16"),
    ],
    ids=str,
)
def test_configs_that_do_not_go_together(pairs, tmp_path, fields, says):
    with pytest.raises(UserError, match=says):
        run.run(config(pairs, fields), workdir=tmp_path / "run")


def test_maps_need_conditions_that_are_maps(tmp_path):
    image = np.zeros((8, 4, 4, 1), np.uint8)
    for condition, says in (
        (np.zeros((8, 3)), r"needs conditions \[n, h, w, channels\]; found \['n', 3\]"),
        (np.zeros((8, 3, 3, 1)), r"does not fit the data: expected maps .* divide 4x4; found"),
    ):
        np.savez(tmp_path / "p.npz", condition=condition, image=image)
        fields = {"condition.kind": "map", "data.held_out": 0}
        with pytest.raises(UserError, match=says):
            run.run(config(tmp_path / "p.npz", fields), workdir=tmp_path / "run")


def test_a_run_keeps_its_pairs(workdir, tmp_path):
    image = np.zeros((20, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "others.npz", condition=np.zeros((20, 2, 2, 1)), image=image)
    with pytest.raises(UserError, match=r"others\.npz is not what the run in .* began with: 16"):
        run.run(config(tmp_path / "others.npz", {"train.num_steps": 6}), workdir=workdir)


def test_a_run_keeps_its_pairs_that_are_held_out(workdir, pairs, tmp_path):
    with np.load(pairs) as arrays:
        image = arrays["image"].copy()
    image[-1] ^= 1
    np.savez(tmp_path / "others.npz", condition=conditions_of(pairs), image=image)
    with pytest.raises(UserError, match=r"others\.npz is not what the run in .* began with: 16"):
        run.run(config(tmp_path / "others.npz", {"train.num_steps": 6}), workdir=workdir)


@pytest.mark.parametrize(
    "fields",
    [
        {"model.kind": "mlp", "single_target.neighbours": 2, "mesh.data": 8},
        {
            "model.kind": "unet",
            "model.patch_size": 1,
            "model.unet.multipliers": (1,),
            "model.unet.attention_sides": (),
            "model.unet.blocks_per_level": 1,
            "model.unet.groups": 2,
            "condition.kind": "map",
            "drift.field": "mean_shift",
            "drift.temperatures": (10.0,),
            "single_target.learned_temperature": True,
            "single_target.statistics": "row",
        },
    ],
    ids=["mlp, neighbours", "unet, map, learned temperature"],
)
def test_a_step_of_other_networks_and_rules(pairs, fields):
    from drifting_jax.pairs.training import program, read_data

    found = config(pairs, fields)
    made, source = program(found, build.make_mesh(found)), read_data(found).source
    records = [source[i] for i in range(8)]
    batch = {name: np.stack([r[name] for r in records]) for name in records[0]}
    batch = jax.device_put(batch, jax.tree.map(lambda x: x.sharding, dict(made.batch)))
    carry, _ = made.step(made.first_carry(), {}, batch)
    carry, report = made.step(carry, {}, batch)
    assert int(carry.state.skipped) == 0
    scalars = made.to_scalars(jax.device_get(report.metrics))
    assert np.isfinite(list(scalars.values())).all()
    assert ("temperature" in scalars) == ("single_target.learned_temperature" in fields)


def test_a_dry_run_reads_the_shapes_of_the_pairs(pairs):
    assert "pairs: " in dry_run.dry_run(config(pairs))
