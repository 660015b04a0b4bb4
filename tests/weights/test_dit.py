"""Generators in the state dicts of PyTorch code: names, layouts, prefixes and what is not known."""

import json

import jax
import numpy as np
import pytest
import tiny_generator
import torch_files
from safetensors.numpy import save_file
from torch_generator import state_dict

from drifting_jax import convert
from drifting_jax.errors import UserError
from drifting_jax.models import generators
from drifting_jax.weights.networks import load_network

MODEL = tiny_generator.MODEL.clone(depth=2, in_channels=4, out_channels=4, condition_width=12)
PLAIN = MODEL.clone(swiglu=False, qk_norm=False, rms_norm=False, num_context_tokens=0,
                    styles_per_book=0, num_style_books=0)  # fmt: skip


def random_params(model):
    shapes = jax.eval_shape(lambda: generators.init_generator(jax.random.key(0), model))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return {model: random_params(model) for model in (MODEL, PLAIN)}


def apart(tensors, *, names=("q_proj", "k_proj", "v_proj")):
    """Queries, keys and values in tensors of their own; so are the three of SwiGLU."""
    found = {}
    for name, x in tensors.items():
        if ".qkv." in name:
            for part, piece in zip(names, np.split(x, 3), strict=True):
                found[name.replace("qkv", part)] = np.ascontiguousarray(piece)
        elif ".w12." in name:
            gate, up = map(np.ascontiguousarray, np.split(x, 2))
            found |= {name.replace("w12", "w1"): gate, name.replace("w12", "w3"): up}
        else:
            found[name.replace("mlp.w3", "mlp.w2")] = x  # Llama's w2 is the last layer
    return found


def load(tmp_path, tensors, config=None):
    save_file(tensors, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return load_network(tmp_path)


def assert_is(network, model, params):
    assert (network.kind, network.model) == ("generator", model)
    jax.tree.map(np.testing.assert_array_equal, network.variables["params"], params)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "generator.", "net.model."])
def test_the_names_of_dit(tmp_path, params, prefix):
    tensors = {prefix + name: x for name, x in state_dict(MODEL, params[MODEL]).items()}
    assert_is(load(tmp_path, tensors), MODEL, params[MODEL])


@pytest.mark.parametrize("form", ["inner", "apart", "xformers", "linear patches"])
def test_other_forms_of_the_same_network(tmp_path, params, form):
    tensors = state_dict(MODEL, params[MODEL])
    if form == "inner":  # the transformer is a part, and its embeddings lie outside
        tensors = {("model." if n.startswith(("blocks", "final", "x_", "pos")) else "") + n: x
                   for n, x in tensors.items()}  # fmt: skip
    elif form == "apart":
        tensors = apart(tensors)
    elif form == "xformers":
        split = apart(tensors, names=("to_q", "to_k", "to_v"))
        swapped = {"mlp.w2.": "mlp.w3.", "mlp.w3.": "mlp.w2."}
        tensors = {}
        for name, x in split.items():
            old = next((old for old in swapped if old in name), "")
            tensors[name.replace(old, swapped[old]) if old else name] = x
    else:
        kernel = params[MODEL]["patch_embedding"]["kernel"]
        tensors["x_embedder.weight"] = np.ascontiguousarray(kernel.T)
        tensors["x_embedder.bias"] = tensors.pop("x_embedder.proj.bias")
        del tensors["x_embedder.proj.weight"]
    assert_is(load(tmp_path, tensors), MODEL, params[MODEL])


def test_a_convolution_over_patches_is_our_linear_map(tmp_path, params):
    tensors = state_dict(MODEL, params[MODEL])
    network = load(tmp_path, tensors)
    patch = np.random.default_rng(1).normal(size=(2, 2, 4))  # [row, column, channel]
    weight = tensors["x_embedder.proj.weight"].astype(np.float64)  # [out, channel, row, column]
    expected = np.einsum("ochw,hwc->o", weight, patch)
    ours = network.variables["params"]["patch_embedding"]["kernel"]
    np.testing.assert_allclose(patch.reshape(-1) @ ours, expected, rtol=1e-6)


def test_fields_that_no_tensor_shows(tmp_path, params):
    tensors = state_dict(PLAIN, params[PLAIN])
    found = load(tmp_path, tensors)
    assert (found.model.num_heads, found.model.rope) == (1, True)  # of 16 channels
    model = PLAIN.clone(num_heads=4, rope=False)
    found = load(tmp_path, tensors, {"fields": {"num_heads": 4, "rope": False}})
    assert_is(found, model, params[PLAIN])
    for fields, message in (
        ({"heads": 4}, "a generator has no field 'heads'"),
        ({"num_heads": 3}, "must be num_heads times an even head width"),
        ({"num_heads": "4"}, "describes no network|must be a number"),
        ({"width": 32}, r"does not give .* \(.*32.*\)"),
    ):
        with pytest.raises(UserError, match=message):
            load(tmp_path, tensors, {"fields": fields})


def test_an_average_is_taken_and_a_file_of_torch_is_converted(tmp_path, params):
    tensors = state_dict(MODEL, params[MODEL])
    both = {f"model.{n}": x + 1 for n, x in tensors.items()}
    both |= {f"ema.{n}": x for n, x in tensors.items()}
    assert_is(load(tmp_path, both), MODEL, params[MODEL])

    tree = {"ema": tensors, "model": {n: x + 1 for n, x in tensors.items()}, "steps": 3}
    keys = iter(range(1000))
    tree = {
        group: {n: torch_files.tensor(x, str(next(keys))) for n, x in value.items()}
        if isinstance(value, dict) else value
        for group, value in tree.items()
    }  # fmt: skip
    path = torch_files.write_zip(tmp_path / "checkpoint.pth", tree)
    network = convert.read_source(str(path), kind="generator")
    assert_is(network, MODEL, params[MODEL])
    convert.write_network(tmp_path / "ours", network, to="plain")
    assert_is(load_network(tmp_path / "ours"), MODEL, params[MODEL])
    convert.write_network(tmp_path / "release", network, to="release")
    model = MODEL.clone(attention_dtype=np.dtype("float32"))  # what the release's format says
    assert_is(load_network(tmp_path / "release"), model, params[MODEL])


def test_an_unknown_name_is_named_with_the_nearest_of_ours_and_can_be_given(tmp_path, params):
    tensors = state_dict(MODEL, params[MODEL])
    tensors["in_ctx.weight"] = tensors.pop("cls_proj.weight")
    tensors["rope.freqs"] = np.ones(4, np.float32)
    with pytest.raises(UserError) as error:
        load(tmp_path, tensors)
    message = str(error.value)
    assert "\n" not in message and "(and 1 more)" in message
    assert "holds in_ctx.weight (16, 12) (and 1 more), which has no place known" in message
    assert "nearest of ours is context_projection/kernel (12, 16)" in message
    names = {"in_ctx.weight": "context_projection/kernel"}
    assert json.dumps({"names": names}) in message
    with pytest.raises(UserError, match=r"holds rope.freqs \(4,\), which has no place known;"):
        load(tmp_path, tensors, {"names": names})
    assert_is(
        load(tmp_path, tensors, {"names": names | {"rope.freqs": None}}), MODEL, params[MODEL]
    )
    for names, message in (
        ({"none": None}, "names 'none', which is not in the file"),
        ({"in_ctx.weight": "context_projection/kernal", "rope.freqs": None},
         "nearest of ours is context_projection/kernel"),
        ({"in_ctx.weight": "final/output/kernel", "rope.freqs": None},
         "holds in_ctx.weight and final_layer.linear.weight, both for final/output/kernel|"
         "holds final_layer.linear.weight and in_ctx.weight, both for final/output/kernel"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            load(tmp_path, tensors, {"names": names})


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("cls_proj.bias", None, r"lacks a tensor for context_projection/bias \(16,\)$"),
        ("blocks.1.norm1.weight", None, r"lacks a tensor for block_1/attention_norm/scale \(16,\)"),
        ("x_embedder.proj.weight", None, "lacks a tensor for patch_embedding/kernel$"),
        ("pos_embed", lambda x: x[0, 0], r"position_embedding must have 2 axes; found \(16,\)"),
        ("pos_embed", lambda x: x[:, :3], r"pos_embed \(1, 3, 16\), does not give position_embed"),
        ("blocks.1.attn.proj.weight", lambda x: x[:, :4],
         r"blocks.1.attn.proj.weight \(16, 4\), does not give block_1/attention/out/kernel"),
        ("blocks.0.mlp.w12.weight", lambda x: x[:-1], r"w12.weight \(127, 16\)"),
        ("noise_embeds.1.weight", lambda x: x[:3], "noise_embeds"),
        ("cls_embed", lambda x: x * np.nan, "context_embedding of .* not finite"),
        ("cls_embed", lambda x: x.astype(np.int32), "context_embedding of .* int32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, params, name, change, message):
    tensors = state_dict(MODEL, params[MODEL])
    array = tensors.pop(name)
    if change is not None:
        tensors[name] = np.ascontiguousarray(change(array))
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, tensors)
    assert "\n" not in str(error.value)


def test_two_networks_under_one_name_are_refused(tmp_path, params):
    tensors = state_dict(MODEL, params[MODEL])
    both = {f"{p}{n}": x for n, x in tensors.items() for p in ("gan.a.", "gan.b.")}
    with pytest.raises(UserError, match=r"holds 2 networks, with the prefixes 'gan\.a\.'"):
        load(tmp_path, both)
    renamed = {n.replace("x_embedder.proj", "entry"): x for n, x in tensors.items()}
    with pytest.raises(UserError, match=r"unknown names is entry\.weight \(16, 4, 2, 2\): if it"):
        load(tmp_path, renamed)
