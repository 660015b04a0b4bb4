"""Networks are recognised whatever holds them, and survive our own format bit for bit."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
from test_release import unpacked

from drifting_jax.errors import UserError
from drifting_jax.models.convnext import ConvNeXtV2
from drifting_jax.models.dinov2 import DINOv2
from drifting_jax.models.resnet import ResNet
from drifting_jax.models.vae import VAE
from drifting_jax.weights.networks import KINDS, Network, load_network, save_network

TORCH = Path(__file__).parent / "fixtures" / "torch"


def test_the_kind_is_seen_from_config_or_names(tmp_path):
    for kind in ("vae", "dinov2"):
        network = load_network(TORCH / kind)
        assert (network.kind, type(network.model)) == (kind, KINDS[kind])
    bare = tmp_path / "resnet.safetensors"  # nothing beside it
    shutil.copy(TORCH / "resnet50" / "resnet50_tiny.safetensors", bare)
    assert load_network(bare).kind == "resnet"
    figures = read_release.load("E_convnextv2.npz")
    folder = tmp_path / "convnext"
    folder.mkdir()
    np.savez(folder / "model.npz", **{k[3:]: figures[k] for k in figures.files if k[:3] == "hf/"})
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
    kind = next(name for name, cls in KINDS.items() if isinstance(model, cls))
    network = Network(kind, model, {"params": {"a": {"b": np.arange(3.0, dtype=np.float32)}}})
    save_network(tmp_path, network)
    assert load_network(tmp_path).model == model


def test_what_is_not_recognised_is_said(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(
        UserError, match=r"no network that is known here \(1 tensors, the first x\)"
    ):
        load_network(tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"kind of a network is one of .* found 'gan'"):
        load_network(tmp_path, kind="gan")
    with pytest.raises(UserError, match="'generator' is read from our folders"):
        load_network(tmp_path / "other.npz", kind="generator")
    (tmp_path / "network.json").write_text('{"network": "vae", "fields": {"colour": 1}}')
    with pytest.raises(UserError, match="describes no network"):
        load_network(tmp_path)
