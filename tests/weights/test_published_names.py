"""Files as people have them: other names, wrappers, dtypes and folders give the same tensors."""

import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch_files
from safetensors.numpy import load_file, save_file

from drifting_jax.errors import UserError
from drifting_jax.weights import files
from drifting_jax.weights.networks import load_network

TORCH = Path(__file__).parents[1] / "fixtures" / "torch"
VAE, STANDARD = TORCH / "vae", "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae():
    return load_file(VAE / STANDARD), load_network(VAE).variables


@pytest.fixture(scope="module")
def resnet():
    path = TORCH / "resnet50" / "resnet50_tiny.safetensors"
    return load_file(path), load_network(path).variables


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def original(tensors):
    """The tensors of diffusers' small file with the names and shapes of the original code."""
    renamed = {}
    for name, x in tensors.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("down_blocks.", "down.").replace("resnets.", "block.")
        name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{1 - int(found[1])}", name)
        name = name.replace("mid_block.block.0", "mid.block_1").replace("mid_block.block.1",
                                                                      "mid.block_2")  # fmt: skip
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
        for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            name = name.replace(f"attn_1.{new}.", f"attn_1.{old}.")
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            x = x[:, :, None, None]
        renamed[name] = x
    assert len(renamed) == len(tensors)
    return renamed


def test_the_original_names_are_what_they_are(vae):
    """Names and shapes that stand in `vae-ft-mse-840000-ema-pruned.safetensors`."""
    names = original(vae[0])
    for name in ("encoder.down.0.block.0.norm1.weight", "encoder.down.0.downsample.conv.weight",
                 "encoder.down.1.block.0.nin_shortcut.weight", "encoder.norm_out.bias",
                 "encoder.mid.attn_1.norm.weight", "encoder.mid.block_2.conv2.bias",
                 "decoder.up.0.block.0.nin_shortcut.weight", "decoder.up.1.upsample.conv.weight",
                 "decoder.up.1.block.1.conv1.weight", "quant_conv.weight"):  # fmt: skip
        assert name in names
    assert names["decoder.mid.attn_1.proj_out.weight"].shape == (48, 48, 1, 1)
    assert names["decoder.up.0.block.0.conv1.weight"].shape[0] == 24  # highest resolution


@pytest.mark.parametrize(
    "prefix, others",
    [
        ("", {}),
        ("", {"loss.logvar": 0, "loss.discriminator.main.0.weight": 0, "model_ema.decay": 0}),
        ("first_stage_model.", {"model.diffusion_model.out.0.weight": 0, "betas": 0}),
        ("module.", {}),
    ],
)
def test_original_names_of_the_vae(tmp_path, vae, prefix, others):
    tensors = {f"{prefix}{name}": x for name, x in original(vae[0]).items()}
    path = tmp_path / "vae-ft-mse-840000-ema-pruned.safetensors"
    save_file(tensors | {name: np.zeros(2, np.float32) for name in others}, path)
    shutil.copy(VAE / "config.json", tmp_path)
    for name in (path, tmp_path):
        assert_same(load_network(name, kind="vae").variables, vae[1])
    (tmp_path / "config.json").write_text("{}")
    assert load_network_kind(path) == "vae"


def load_network_kind(path):
    """The kind that is recognised, for a file whose sizes may not fit."""
    try:
        return load_network(path).kind
    except UserError as error:
        return "vae" if "decoder." in str(error) or "autoencoder" in str(error) else str(error)


def test_a_checkpoint_of_stable_diffusion(tmp_path, vae):
    """As written by Lightning: groups, a callback's class as a key, the VAE among others."""
    tree = {f"first_stage_model.{k}": torch_files.tensor(x, k) for k, x in original(vae[0]).items()}
    tree["cond_stage_model.x"] = torch_files.tensor(np.zeros(2, np.float32), "other")
    score = torch_files.tensor(np.float32(0.5).reshape(()), "score")
    callback = torch_files.Named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    pairs = {"state_dict": tree, "global_step": 3}
    pickled = Callbacks(pairs, callback, {"best_model_score": score})
    path = tmp_path / "v1-5-pruned.ckpt"
    torch_files.write_zip(path, [tree, score], pickled=torch_files.dumps(pickled))
    found = files.read_tensors(path)
    assert found["callbacks/ModelCheckpoint/best_model_score"] == 0.5
    shutil.copy(VAE / "config.json", tmp_path)
    assert_same(load_network(path, kind="vae").variables, vae[1])


def Callbacks(pairs, key, value):
    """A mapping whose "callbacks" have the name of a class as their key."""
    items = [(key, value)]
    return torch_files.Call(
        "collections",
        "OrderedDict",
        [*pairs.items(), ("callbacks", torch_files.Call("collections", "OrderedDict", items))],
    )


def test_the_scale_of_another_vae_is_not_guessed(tmp_path, vae):
    tensors = {f"first_stage_model.{name}": x for name, x in original(vae[0]).items()}
    path = tmp_path / "sd_xl_base_1.0.safetensors"
    save_file(tensors | {"conditioner.embedders.0.x": np.zeros(2, np.float32)}, path)
    with pytest.raises(UserError, match="Stable Diffusion XL, whose latents have another scale"):
        load_network(path)
    shutil.copy(VAE / "config.json", tmp_path)
    assert_same(load_network(path).variables, vae[1])


def test_the_vae_of_a_whole_pipeline(tmp_path, vae):
    for name in ("unet", "text_encoder"):
        (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    message = "a whole pipeline of diffusers: give the folder of one network, text_encoder, unet"
    with pytest.raises(UserError, match=message):
        load_network(tmp_path, kind="vae")
    shutil.copytree(VAE, tmp_path / "vae")
    assert_same(load_network(tmp_path, kind="vae").variables, vae[1])
    for kind in ("", "resnet"):
        with pytest.raises(UserError, match=f"{message}, vae"):
            load_network(tmp_path, kind=kind)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "vae."])
def test_wrappers_of_torch(tmp_path, vae, wrapper):
    tree = {f"{wrapper}{k}": torch_files.tensor(x, k) for k, x in vae[0].items()}
    for group in (None, "state_dict", "model", "ema", "model_ema", "net"):
        path = tmp_path / f"{group}.pth"
        torch_files.write_zip(path, {group: tree, "epoch": 3} if group else tree)
        shutil.copy(VAE / "config.json", tmp_path)
        assert_same(load_network(path, kind="vae").variables, vae[1])


def test_a_network_and_its_average(tmp_path, vae):
    trained = {f"module.{k}": torch_files.tensor(x + 1, f"{k}1") for k, x in vae[0].items()}
    average = {k: torch_files.tensor(x, k) for k, x in vae[0].items()}
    options = torch_files.Call("argparse", "Namespace", state={"lr": 0.1})
    torch_files.write_zip(
        tmp_path / "x.pth", {"model": trained, "model_ema": average, "args": options}
    )
    shutil.copy(VAE / "config.json", tmp_path)
    assert_same(load_network(tmp_path / "x.pth").variables, vae[1])


@pytest.mark.parametrize("outer", ["", "state_dict"])
def test_moco_v3(tmp_path, resnet, outer):
    tensors = {f"module.base_encoder.{k}": x for k, x in resnet[0].items() if k[:3] != "fc."}
    tensors |= {
        f"module.momentum_encoder.{k}": np.asarray(x + 1)
        for k, x in resnet[0].items()
        if k[:3] != "fc."
    }
    for name in ("base_encoder.fc.0.weight", "base_encoder.fc.1.running_mean", "predictor.0.weight",
                 "momentum_encoder.fc.0.weight"):  # fmt: skip
        tensors[f"module.{name}"] = np.zeros((3, 3), np.float32)
    if outer:
        tree = {k: torch_files.tensor(x, k) for k, x in tensors.items()}
        torch_files.write_zip(tmp_path / "r-50-1000ep.pth.tar", {"epoch": 9, outer: tree})
    else:
        save_file(tensors, tmp_path / "moco_v3.safetensors")
    assert_same(load_network(next(tmp_path.iterdir()), kind="resnet").variables, resnet[1])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "module._orig_mod."])
def test_wrapped_resnets(tmp_path, resnet, prefix):
    tensors = {f"{prefix}{name}": x for name, x in resnet[0].items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert_same(load_network(tmp_path / "x.safetensors").variables, resnet[1])


def test_backbones_of_dinov2(tmp_path):
    expected = load_network(TORCH / "dinov2").variables
    tensors = load_file(TORCH / "dinov2" / "model.safetensors")
    tree = {f"backbone.{k}": torch_files.tensor(x, k) for k, x in tensors.items()}
    tree["dino_head.mlp.0.weight"] = torch_files.tensor(np.zeros(2, np.float32), "head")
    torch_files.write_zip(tmp_path / "teacher_checkpoint.pth", {"teacher": tree})
    shutil.copy(TORCH / "dinov2" / "config.json", tmp_path)
    assert_same(load_network(tmp_path).variables, expected)


FLOATS = {
    "F64": np.float64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def write_safetensors(path, tensors, code):
    """A file of one dtype, byte by byte."""
    header, position = {}, 0
    for name, x in tensors.items():
        offsets = [position, position + x.nbytes]
        header[name] = {"dtype": code, "shape": list(x.shape), "data_offsets": offsets}
        position += x.nbytes
    text = json.dumps(header).encode()
    data = b"".join(x.tobytes() for x in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("sharded", [False, True])
def test_floats_of_every_size(tmp_path, vae, code, sharded):
    tensors = {name: x.astype(FLOATS[code]) for name, x in vae[0].items()}
    if sharded:
        places, names = {}, sorted(tensors)
        for i, part in enumerate((names[:9], names[9:]), start=1):
            shard = f"diffusion_pytorch_model-0000{i}-of-00002.safetensors"
            write_safetensors(tmp_path / shard, {name: tensors[name] for name in part}, code)
            places |= dict.fromkeys(part, shard)
        (tmp_path / f"{STANDARD}.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        write_safetensors(tmp_path / STANDARD, tensors, code)
    shutil.copy(VAE / "config.json", tmp_path)
    found = load_network(tmp_path).variables
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    save_file({name: x.astype(np.float32) for name, x in tensors.items()}, tmp_path / STANDARD)
    shutil.copy(VAE / "config.json", tmp_path)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(found))
    assert_same(found, load_network(tmp_path).variables)


def test_complex_numbers_are_refused(tmp_path, vae):
    name = "decoder.conv_in.bias"
    tensors = vae[0] | {name: vae[0][name].astype(np.complex64)}
    save_file(tensors, tmp_path / STANDARD)
    shutil.copy(VAE / "config.json", tmp_path)
    message = rf"^{name} of .* is of complex64; expected floating-point numbers$"
    with pytest.raises(UserError, match=message):
        load_network(tmp_path)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bit_floats_of_torch(tmp_path, dtype):
    """Their storages have no dtype: the tensor says it."""
    values = np.linspace(-2, 2, 6).astype(getattr(ml_dtypes, dtype))
    bytes_ = torch_files.Storage(values.view(np.uint8), "0")
    bytes_.kind = ("torch.storage", "UntypedStorage")
    arguments = (bytes_, 2, (2, 2), (2, 1), False, torch_files.Call("collections", "OrderedDict"))
    tensor = torch_files.Call(
        "torch._utils", "_rebuild_tensor_v3", *arguments, torch_files.Named("torch", dtype)
    )
    torch_files.write_zip(tmp_path / "x.pth", {"w": tensor})
    found = files.read_tensors(tmp_path / "x.pth")["w"]
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values[2:].reshape(2, 2))
