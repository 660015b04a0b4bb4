"""The release's artifacts are read with the right architecture and written back bit for bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
import release_names
from flax.traverse_util import flatten_dict
from read_release import unpacked

from drifting_jax.errors import UserError
from drifting_jax.models.dit import DiT, stack_blocks
from drifting_jax.models.resnet_mae import ResNetMAE
from drifting_jax.weights import release_generator
from drifting_jax.weights.release import model_of, read_artifact, write_artifact


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_generator_is_read_and_gives_the_reference_images(tmp_path):
    artifact = read_artifact(unpacked("gen_latent", tmp_path))
    assert artifact.metadata["step"] == 1234 and artifact.model.depth == 2
    assert_same(
        artifact.params,
        release_names.generator_params(read_release.load_params("C_generator_latent.npz")),
    )
    arrays = read_release.load("C_generator_latent.npz")
    arguments = [arrays[f"in/{key}"] for key in ("x", "c", "noise_labels", "cfg_scale")]
    images = jax.jit(artifact.model.apply)({"params": artifact.params}, *arguments)
    np.testing.assert_allclose(images, arrays["out/samples"], atol=1e-5, rtol=0)


def test_an_autoencoder_is_read(tmp_path):
    folder = unpacked("mae_latent", tmp_path) / "params_ema"  # or the folder itself
    artifact = read_artifact(folder)
    assert artifact.model == ResNetMAE(4, 32, 7, (1, 2, 2, 1), 1, 2)
    expected = release_names.encoder_params(read_release.load_params("D_mae_latent.npz"))
    assert_same(artifact.params, expected)


@pytest.mark.parametrize("name", ["gen_latent", "mae_latent"])
def test_written_again_it_is_the_same_file(tmp_path, name):
    source = unpacked(name, tmp_path)
    artifact = read_artifact(source)
    step, ema_decay = artifact.metadata["step"], artifact.metadata["ema_decay"]
    folder = write_artifact(
        tmp_path / "again", artifact.model, artifact.params, step=step, ema_decay=ema_decay
    )
    stored = json.loads((source / "params_ema" / "metadata.json").read_text())
    assert json.loads((folder / "metadata.json").read_text()) == stored
    raw, expected = (
        (f / "ema_params.msgpack").read_bytes() for f in (folder, source / "params_ema")
    )
    ours, theirs = read_release.read_msgpack(raw), read_release.read_msgpack(expected)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
    assert_same(read_artifact(tmp_path / "again").params, artifact.params)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"swiglu": False, "rope": False, "rms_norm": False, "qk_norm": False},
        {"rms_norm": False, "num_context_tokens": 0},
        {"styles_per_book": 0, "condition_width": 24},
        {"scan": True, "dtype": jnp.bfloat16, "remat": True},
        {"dtype": jnp.bfloat16, "attention_dtype": jnp.float32},
    ],
)
def test_every_kind_of_generator_survives_the_way_there_and_back(tmp_path, changes):
    sizes = {"image_size": 8, "in_channels": 3, "out_channels": 3, "patch_size": 4, "width": 16}
    model = DiT(**sizes | {"depth": 2, "num_heads": 2, "num_classes": 3} | changes)
    inputs = np.zeros((1, 8, 8, 3)), np.zeros(1, int), np.zeros((1, 32), int), np.ones(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    write_artifact(tmp_path, model, params, step=7, ema_decay=0.5)
    found = read_artifact(tmp_path)
    assert (found.metadata["step"], found.metadata["ema_decay"]) == (7, 0.5)
    back = stack_blocks(found.params) if model.scan else found.params
    assert_same(back, params)
    for field in ("width", "depth", "rope", "swiglu", "qk_norm", "rms_norm", "remat", "dtype"):
        assert getattr(found.model, field) == getattr(model, field), field
    attention = found.model.attention_dtype or found.model.dtype
    assert jnp.dtype(attention) == jnp.dtype(model.attention_dtype or model.dtype)


def test_missing_extra_and_mis_shaped_tensors_are_named(tmp_path):
    artifact = read_artifact(unpacked("gen_latent", tmp_path))
    tensors = release_generator.to_tensors(artifact.model, artifact.params)
    qkv = "LightningDiT_0/blocks_1/Attention_0/TorchLinear_0/Dense_0/kernel"
    for change, message in [
        ({qkv: None}, f"lacks {qkv}"),
        ({"noise_embeds_1/embedding": None}, "lacks noise_embeds_1/embedding"),
        ({"noise_embeds_3/embedding": np.zeros((8, 32))}, "holds noise_embeds_3/embedding"),
        ({"noise_embeds_0/embedding": np.zeros((9, 32))}, r"noise_embeds_0.* shape \(9, 32\)"),
        ({"more/kernel": np.zeros(3)}, "holds more/kernel, which this network has no place for"),
        ({qkv: np.zeros((32, 95))}, rf"{qkv} .* shape \(32, 95\).* block_1/attention/qkv/kernel"),
    ]:
        changed = {name: x for name, x in (tensors | change).items() if x is not None}
        with pytest.raises(UserError, match=message):
            release_generator.from_tensors(artifact.model, changed)
    found = release_generator.from_tensors(artifact.model, tensors)
    assert set(flatten_dict(found)) == set(flatten_dict(artifact.params))


def test_what_is_no_artifact_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is no released artifact: metadata\.json is neither"):
        read_artifact(tmp_path)
    folder = unpacked("gen_latent", tmp_path) / "params_ema"
    metadata = json.loads((folder / "metadata.json").read_text())
    whole = (folder / "ema_params.msgpack").read_bytes()
    (folder / "ema_params.msgpack").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"ema_params\.msgpack cannot be read as flax's msgpack"):
        read_artifact(folder)
    with pytest.raises(UserError, match=r"must be 'gen' or 'mae'.* found 'vae'"):
        model_of(metadata | {"kind": "vae"})
    del metadata["model_config"]["depth"]
    with pytest.raises(UserError, match="model_config lacks 'depth'"):
        model_of(metadata)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"JSON of .*metadata\.json cannot be read"):
        read_artifact(folder)


def test_an_autoencoder_that_the_format_cannot_say_is_refused(tmp_path):
    model = ResNetMAE(3, 8, 2, (1, 1), groups=4)
    with pytest.raises(UserError, match="holds autoencoders of 4 stages and 32 groups"):
        write_artifact(tmp_path, model, {}, step=0, ema_decay=0.0)
    assert not list(tmp_path.iterdir())
