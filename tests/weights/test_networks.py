"""Networks are recognised in every format, and our own format keeps every bit."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
from read_release import unpacked

from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sampling
from drifting_jax.weights import release
from drifting_jax.weights.files import list_tensors
from drifting_jax.weights.networks import (
    NETWORKS,
    Network,
    kind_of,
    load_network,
    save_network,
)

TORCH = Path(__file__).parents[1] / "fixtures" / "torch"


def test_the_kind_is_seen_from_config_or_names(tmp_path):
    for kind in ("vae", "dinov2"):
        network = load_network(TORCH / kind)
        assert (network.kind, type(network.model)) == (kind, NETWORKS[kind].module)
    bare = tmp_path / "resnet.safetensors"  # without a config.json beside it
    shutil.copy(TORCH / "resnet50" / "resnet50_tiny.safetensors", bare)
    assert load_network(bare).kind == "resnet"
    arrays = read_release.load("E_convnextv2.npz")
    folder = tmp_path / "convnext"
    folder.mkdir()
    np.savez(folder / "model.npz", **{k[3:]: arrays[k] for k in arrays.files if k[:3] == "hf/"})
    sizes = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 12, 16, 24]}
    (folder / "config.json").write_text(json.dumps({"model_type": "convnextv2"} | sizes))
    assert load_network(folder).model.widths == (8, 12, 16, 24)


def test_artifacts_of_the_release_are_networks(tmp_path):
    generator = load_network(unpacked("gen_latent", tmp_path))
    assert (generator.kind, generator.step, generator.ema_decay) == ("generator", 1234, 0.999)
    autoencoder = load_network(unpacked("mae_latent", tmp_path))
    assert (autoencoder.kind, autoencoder.model.width) == ("autoencoder", 32)
    with pytest.raises(UserError, match="kind 'autoencoder'; expected 'generator'"):
        load_network(tmp_path / "mae_latent", kind="generator")


@pytest.mark.parametrize("name", ["gen_latent", "mae_latent"])
def test_our_format_keeps_every_bit(tmp_path, name):
    network = load_network(unpacked(name, tmp_path))
    save_network(tmp_path / "ours", network)
    found = load_network(tmp_path / "ours")
    assert (found.kind, found.step, found.ema_decay) == (
        network.kind,
        network.step,
        network.ema_decay,
    )
    assert found.model == network.model
    jax.tree.map(np.testing.assert_array_equal, found.variables, network.variables)


@pytest.mark.parametrize(
    "model",
    [
        ConvNeXtV2((1, 1), (4, 8), image_size=32, dtype=jnp.bfloat16),
        ResNet(width=4, blocks=(1, 1, 1, 1), image_size=16),
        DINOv2(width=8, depth=1, num_heads=2, position_grid=2, feature_blocks=(1,)),
        VAE(block_out_channels=(8,), norm_num_groups=4, remat=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_every_kind_keeps_its_fields(tmp_path, model):
    kind = kind_of(model)
    pixels = jax.ShapeDtypeStruct((1, 14, 14, 3) if kind == "dinov2" else (1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    network = Network(kind, model, jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes))
    save_network(tmp_path, network)
    assert load_network(tmp_path).model == model


class Scaled(nn.Module):
    """A generator network besides those of the package: the noise, scaled for each class."""

    side: int
    num_classes: int
    out_channels: int = 3

    @nn.compact
    def __call__(self, noise, labels, styles, cfg_scale):
        scale = self.param("scale", nn.initializers.ones, (self.num_classes,))
        return noise * (scale[labels] * cfg_scale)[:, None, None, None]


SCALED = generators.GeneratorNetwork(
    Scaled,
    lambda section, image_shape, num_classes: Scaled(section["side"], num_classes),
    lambda key, model: (jax.random.normal(key, (model.side,) * 2 + (3,)), jnp.zeros(0, jnp.int32)),
)


def test_a_generator_of_the_table_is_saved_loaded_and_sampled(tmp_path, monkeypatch):
    monkeypatch.setitem(generators.GENERATORS, "scaled", SCALED)
    model = generators.make_generator(
        {"side": 4}, kind="scaled", image_shape=(4, 4, 3), num_classes=2
    )
    params = generators.init_generator(jax.random.key(0), model)
    assert kind_of(model) == "generator" and not release.has_format(model)
    save_network(tmp_path, Network("generator", model, {"params": params}, 5, 0.9))
    assert json.loads((tmp_path / "network.json").read_text())["kind"] == "scaled"
    found = load_network(tmp_path, kind="generator")
    assert (found.model, found.step) == (model, 5)
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"], params)
    mesh = meshes.make_mesh()
    labels = np.arange(mesh.size, dtype=np.int32) % 2
    samples = sampling.make_sampler(found.model, mesh)(
        params, jax.random.key(1), labels, labels, 1.5
    )
    assert samples.images.shape == (mesh.size, 4, 4, 3) and samples.finite.all()


def test_generators_of_older_files_are_dits(tmp_path):
    network = load_network(unpacked("gen_latent", tmp_path))
    save_network(tmp_path / "ours", network)
    assert "kind" not in json.loads((tmp_path / "ours" / "network.json").read_text())
    assert load_network(tmp_path / "ours").model == network.model
    edited(tmp_path / "ours", kind="gan")
    with pytest.raises(UserError, match="describes no network"):
        load_network(tmp_path / "ours")


def test_what_is_not_recognised_is_said(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(
        UserError, match=r"no network that is known here \(1 tensors, the first x\)"
    ):
        load_network(tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"kind of a network is one of .* found 'gan'"):
        load_network(tmp_path, kind="gan")
    with pytest.raises(UserError, match="holds no generator of ours"):
        load_network(tmp_path / "other.npz", kind="generator")
    (tmp_path / "network.json").write_text('{"network": "vae", "fields": {"colour": 1}}')
    with pytest.raises(UserError, match="describes no network"):
        load_network(tmp_path)


def edited(folder, **changes):
    """Replaces entries of network.json, "fields" one by one."""
    record = json.loads((folder / "network.json").read_text())
    record["fields"] |= changes.pop("fields", {})
    (folder / "network.json").write_text(json.dumps(record | changes))


def test_our_format_is_checked_against_the_network(tmp_path):
    save_network(tmp_path / "whole", load_network(unpacked("gen_latent", tmp_path)))
    arrays = dict(np.load(tmp_path / "whole" / "params.npz"))
    name = next(name for name in sorted(arrays) if name.endswith("kernel"))
    others = {n: x for n, x in arrays.items() if n != name}
    for changed, message in (
        (others, f"lacks {name}"),
        (arrays | {"more": np.zeros(3)}, "holds more, which this network has no place for"),
        (arrays | {name: arrays[name][..., :1]}, f"{name} of .* has the shape"),
        (arrays | {name: arrays[name] * np.nan}, f"{name} of .* not finite"),
        (arrays | {name: arrays[name].astype(int)}, f"{name} of .* is of int64"),
    ):
        folder = tmp_path / "changed"
        shutil.copytree(tmp_path / "whole", folder)
        np.savez(folder / "params.npz", **changed)
        with pytest.raises(UserError, match=message):
            load_network(folder)
        shutil.rmtree(folder)
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    np.savez(half / "params.npz", **{n: x.astype(np.float16) for n, x in arrays.items()})
    leaves = jax.tree.leaves(load_network(half).variables)
    assert all(x.dtype == np.float32 for x in leaves)
    edited(half, step=None)
    with pytest.raises(UserError, match="step must be a whole number; found None"):
        load_network(half)
    edited(half, step=1, fields={"depth": 1})
    with pytest.raises(UserError, match="no place for"):
        load_network(half)


@pytest.mark.parametrize(
    "field, value",
    [("num_heads", 3), ("num_heads", 0), ("num_heads", "4"), ("patch_size", 0), ("patch_size", 3),
     ("depth", "2"), ("depth", None), ("num_classes", -1), ("mlp_ratio", None)],
)  # fmt: skip
def test_sizes_that_fit_no_generator(tmp_path, field, value):
    folder = unpacked("gen_latent", tmp_path)
    path = next(folder.rglob("metadata.json"))
    metadata = json.loads(path.read_text())
    metadata["model_config"][field] = value
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError):
        load_network(folder)


@pytest.mark.parametrize(
    "field, value",
    [("norm_num_groups", 7), ("norm_num_groups", 0), ("layers_per_block", None),
     ("block_out_channels", 24), ("scaling_factor", None), ("scaling_factor", 0),
     ("scaling_factor", "0.2"), ("latent_channels", -1), ("_class_name", ["x"])],
)  # fmt: skip
def test_sizes_that_fit_no_vae(tmp_path, field, value):
    shutil.copytree(TORCH / "vae", tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    with pytest.raises(UserError):
        load_network(tmp_path / "vae", kind="vae")


def test_a_part_of_a_network_names_its_folder(tmp_path):
    folder = unpacked("gen_latent", tmp_path)
    part = next(folder.rglob("*.msgpack"))
    with pytest.raises(UserError, match=r"is a part of the network in .*: give that folder"):
        load_network(part)
    assert list_tensors(folder) == list_tensors(part)
