"""Pairs leave their workdir: a folder for the Hub, and a sampler that needs JAX alone."""

import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from own_flags import run_command

from drifting_jax import convert, export, sample
from drifting_jax.commands import generator_choice
from drifting_jax.config import base_config, resolve
from drifting_jax.errors import UserError
from drifting_jax.pairs.generator import load_pairs
from drifting_jax.training import run
from drifting_jax.weights.networks import load_network

SMALL = {
    "log_every": 2,
    "mesh.data": 1,
    "data.held_out": 4,
    "model.width": 8,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.num_context_tokens": 1,
    "condition.width": 8,
    "optim.warmup_steps": 1,
    "train.num_steps": 2,
    "train.save_every": 2,
    "train.sample_every": 2,
    "train.conditions": 8,
    "train.generated": 2,
    "train.ema_decays": (0.5, 0.9),
    "eval.ema_decay": 0.5,
    "eval.conditions": 4,
    "eval.samples": 2,
}
UNET = {
    "model.kind": "unet",
    "model.patch_size": 1,
    "model.unet.multipliers": (1,),
    "model.unet.attention_sides": (),
    "model.unet.blocks_per_level": 1,
    "model.unet.groups": 2,
    "condition.kind": "map",
    "drift.field": "mean_shift",
    "drift.temperatures": (0.3,),
}
MLP = {"model.kind": "mlp"}
# Neither this package nor what it is built on can be imported.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(("drifting_jax", "flax", "optax", "orbax", "grain", "absl", "PIL"))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def to_hub(source, out, *words):
    run_command(convert, f"--source={source}", "--to=hub", f"--out={out}", *words)


def run_sample(*words):
    run_command([sample, generator_choice], *words)


def make_run(folder, **fields):
    image = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    condition = image.reshape(20, 2, 2, 2, 2, 1).mean(axis=(2, 4))
    np.savez(folder / "pairs.npz", condition=condition, image=image)
    config = base_config("pairs")
    values = {**SMALL, "data.path": str(folder / "pairs.npz"), **fields}
    config.update_from_flattened_dict(values)
    assert run.run(resolve(config), workdir=folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def hub(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "small<3"
    to_hub(workdir, out, "--license=mit")
    return out


@pytest.fixture(scope="module")
def conditions(workdir):
    with np.load(workdir.parent / "pairs.npz") as arrays:
        return arrays["condition"]


def test_the_folder_has_the_weights_the_metrics_and_a_card(hub, workdir):
    names = {"README.md", "config.json", "evaluation.json", "model.safetensors"}
    assert {path.name for path in hub.iterdir()} == names
    found, measured = (json.loads((f / "evaluation.json").read_text()) for f in (hub, workdir))
    assert found == measured
    card = (hub / "README.md").read_text()
    assert "\nlicense: mit\n" in card and "# small&lt;3" in card
    assert "an array of 2×2×1 numbers, an image one of 4×4×1" in card
    for part, words in (("held_out", "held out pairs"), ("mean_image", "the mean training image")):
        assert f"| {words}" in card and f"{measured[part]['energy_score']:.4f}" in card
    assert "| `drift.field` | fair_energy |" in card and "temperature" not in card.replace(
        "single_target.learned_temperature", ""
    )
    assert "| `model.patch_size` | 2 |" in card and "unet" not in card
    assert str(workdir.parent) not in card


def test_it_samples_as_the_run_does_and_can_be_written_again(hub, workdir, conditions, tmp_path):
    found, of_run = load_pairs(hub), load_pairs(workdir)
    assert (found.step, found.ema_decay, found.config) == (2, 0.5, None)
    images = of_run.sample(conditions, seed=3)
    np.testing.assert_array_equal(found.sample(conditions, seed=3), images)
    words = f"--conditions={workdir.parent}/pairs.npz", "--per_class=2", "--seed=1"
    run_sample(f"--workdir={workdir}", *words, f"--out={tmp_path}/run.npz")
    run_sample(f"--weights={hub}", *words, f"--out={tmp_path}/hub.npz")
    with np.load(tmp_path / "run.npz") as one, np.load(tmp_path / "hub.npz") as other:
        assert one["arr_0"].shape == (40, 4, 4, 1)
        np.testing.assert_array_equal(other["arr_0"], one["arr_0"])
    to_hub(hub, tmp_path / "again")
    for name in ("config.json", "model.safetensors", "evaluation.json"):
        assert (tmp_path / "again" / name).read_bytes() == (hub / name).read_bytes()


@pytest.mark.parametrize("fields", [UNET, MLP], ids=["unet, map", "mlp"])
def test_other_networks(fields, conditions, tmp_path):
    workdir = make_run(tmp_path, **fields)
    to_hub(workdir, tmp_path / "hub", "--ema_decay=0.9")
    found, of_run = load_pairs(tmp_path / "hub"), load_pairs(workdir, ema_decay=0.9)
    assert found.model == of_run.model and found.ema_decay == 0.9
    np.testing.assert_array_equal(
        found.predict(conditions, seed=1), of_run.predict(conditions, seed=1)
    )
    assert not (tmp_path / "hub" / "evaluation.json").exists()  # of another average
    card = (tmp_path / "hub" / "README.md").read_text()
    assert ("`drift.temperatures` | (0.3,)" in card) == (fields is UNET)
    assert ("model.num_heads" in card) == (fields is UNET)
    assert ("model.unet.multipliers" in card) == (fields is UNET)


def test_an_exported_sampler_needs_jax_alone(hub, workdir, conditions, tmp_path):
    pytest.importorskip("flatbuffers")
    out = tmp_path / "sampler"
    run_command([export, generator_choice], f"--weights={hub}", f"--out={out}")
    run = functools.partial(
        subprocess.run, cwd=out, env=os.environ | {"PYTHONPATH": ""}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    command = [sys.executable, "-c", ALONE, str(out / "sample.py"), "--per_class=2", "--seed=5"]
    done = run([*command, f"--conditions={workdir.parent}/pairs.npz", "--out=s.npz"])
    assert done.returncode == 0 and "40 samples: s.npz" in done.stdout, done.stderr
    with np.load(out / "s.npz") as arrays:
        images, numbers = arrays["arr_0"], arrays["arr_1"]
    np.testing.assert_array_equal(numbers, np.repeat(np.arange(20), 2))
    expected = load_pairs(workdir).sample(
        conditions[numbers], seed=5, indices=np.tile(np.arange(2), 20)
    )
    np.testing.assert_array_equal(images, expected)
    np.save(out / "c.npy", np.zeros((3, 5)))
    done = run([*command, "--conditions=c.npy", "--out=t.npz"])
    assert done.returncode == 2
    assert done.stderr == "error: ValueError: conditions must be [n, ...] of [2, 2, 1]\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "policy"}, "of the kind 'policy'; expected 'pairs'"),
        ({"kind": "lstm"}, "describes no pairs: KeyError: 'lstm'"),
        ({"fields": {"width": 32}}, "describes no pairs: TypeError"),
        ({"condition": {"width": 8, "depth": 5000}}, "more layers than the file has tensors"),
        ({"pairs": {}}, "does not hold what a run keeps of its pairs"),
        ({"step": "x"}, "step must be a whole number"),
    ],
    ids=str,
)
def test_damaged_descriptions_are_named(hub, tmp_path, change, message):
    folder = shutil.copytree(hub, tmp_path / "hub")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_pairs(folder)


def test_sizes_of_the_generator_inside_are_checked(hub, tmp_path):
    folder = shutil.copytree(hub, tmp_path / "hub")
    record = json.loads((folder / "config.json").read_text())
    for name, value, message in (
        ("depth", 5000, "more layers than the file has tensors"),
        ("width", -8, "width must be a number that fits"),
    ):
        changed = record | {"fields": record["fields"] | {name: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load_pairs(folder)


def test_damaged_metrics_are_left_out(hub, tmp_path, capsys):
    folder = shutil.copytree(hub, tmp_path / "hub")
    (folder / "evaluation.json").write_text('{"mean_image": 3}')
    to_hub(folder, tmp_path / "x")
    assert "evaluation.json is damaged and left out\n" in capsys.readouterr().out
    assert not (tmp_path / "x" / "evaluation.json").exists()


def test_mistakes_are_one_line(hub, workdir, tmp_path):
    given = f"--conditions={workdir.parent}/pairs.npz"
    for words, message in (
        ((f"--weights={hub}",), "give --conditions=FILE.npz"),
        ((f"--weights={hub}", given, "--step=2"), "--step goes with --workdir"),
        ((f"--weights={hub}", given, "--vae=x"), "--vae is for generators of classes"),
        ((f"--weights={hub}", f"--workdir={workdir}", given), "expected one of --workdir and"),
    ):
        with pytest.raises(UserError, match=message):
            run_sample(*words, f"--out={tmp_path}/s.npz")
    with pytest.raises(UserError, match="is one average of one step"):
        load_pairs(hub, ema_decay=0.5)
    with pytest.raises(UserError, match="of the kind 'pairs'; expected one of generator"):
        load_network(hub)
    with pytest.raises(UserError, match="task 'pairs'; expected 'generator': its training"):
        to_hub(workdir, tmp_path / "x", "--to=plain")
    assert not list(tmp_path.iterdir())
