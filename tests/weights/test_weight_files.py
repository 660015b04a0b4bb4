"""Weight files of all formats are found, read, listed and downloaded; broken ones are errors."""

import json
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from drifting_jax.errors import UserError
from drifting_jax.weights import files, wrappers

RELEASE = Path(__file__).parents[1] / "fixtures" / "release"
DTYPES = {
    "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


def tensors():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(2, 3, 1, 1)).astype(np.float32),
        "conv.bias": rng.normal(size=2).astype(ml_dtypes.bfloat16),
        "steps": np.array(3, np.int64),
        "none": np.zeros((0, 4), np.float16),
    }


def header_of(arrays):
    header, position = {}, 0
    for name, x in arrays.items():
        offsets = [position, position + x.nbytes]
        header[name] = {"dtype": CODES[x.dtype], "shape": [*x.shape], "data_offsets": offsets}
        position += x.nbytes
    return header


def safetensors_bytes(arrays, header=None) -> bytes:
    """The published layout, by hand."""
    header = header_of(arrays) if header is None else header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(x.tobytes() for x in arrays.values())


def write_safetensors(path, arrays):
    path.write_bytes(safetensors_bytes(arrays))
    return path


def write_legacy(path, name="w", n=3):
    """A checkpoint of torch before 1.6 with one float32 tensor of zeros."""
    text = pickle.UNICODE + name.encode() + b"\n"
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI%d\nNtQ" % n
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"I0\n(I%d\nt(I1\nttR" % n
    pickles = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
    pickles += [b"\x80\x02}" + text + tensor + b"s.", pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(pickles) + struct.pack("<q", n) + bytes(4 * n))
    return path


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        np.testing.assert_array_equal(found[name], x)


def test_safetensors(tmp_path):
    path = write_safetensors(tmp_path / "model.safetensors", tensors())
    assert_same(files.read_tensors(path), tensors())
    path.write_bytes(
        safetensors_bytes(tensors(), {"__metadata__": {"format": "pt"}} | header_of(tensors()))
    )
    found = files.read_tensors(str(path))
    assert_same(found, tensors())
    np.testing.assert_array_equal(jnp.asarray(found["conv.bias"]), tensors()["conv.bias"])


def test_safetensors_as_the_package_writes_them(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {name: x for name, x in tensors().items() if x.dtype != ml_dtypes.bfloat16}
    package.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    assert_same(files.read_tensors(tmp_path / "x.safetensors"), arrays)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"),
        st.sampled_from(sorted(DTYPES)).flatmap(
            lambda code: hnp.arrays(np.int8, hnp.array_shapes(min_dims=0, min_side=0)).map(
                lambda x: x.astype(DTYPES[code])
            )
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_safetensors(tmp_path_factory, arrays):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.unlink(missing_ok=True)  # a mapped file must not be overwritten
    assert_same(files.read_tensors(write_safetensors(path, arrays)), arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "4 bytes too many"),
        ({"a": {"dtype": "F32", "shape": [-3, -1], "data_offsets": [0, 12]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [3.0], "data_offsets": [0, 12]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 12]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [2**70], "data_offsets": [0, 2**72]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "damaged at a"),
        (
            {"a": {"dtype": "F4", "shape": [24], "data_offsets": [0, 12]}},
            "a of .* has the dtype 'F4', which cannot be read here: save the file as one of BOOL",
        ),
        ({"a": {"dtype": [], "shape": [12], "data_offsets": [0, 12]}}, "damaged at a"),
        ({"a": {"dtype": "F32", "shape": [3]}}, "damaged at its header"),
        ({"a": 3}, "damaged at its header"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": "xy"}}, "damaged at a"),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            "damaged at b",
        ),
        (b'{"a": 1, "a": 1}', "stands twice"),
        (b'{"a": [}', "cannot be read"),
        (b'{"\xff": 1}', "cannot be read"),
        (b'{"a": ' + b"[" * 100_000, "cannot be read"),
        (b"[1]", "no object but a list"),
        (b"", "cannot be read"),
    ],
)
def test_broken_safetensors(tmp_path, change, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes({"a": np.zeros(3, np.float32)}, change))
    with pytest.raises(UserError, match=message) as error:
        files.read_tensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "msgpack", "pth"])
def test_a_file_cut_off_anywhere_is_an_error(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    arrays = {name: x for name, x in tensors().items() if x.dtype != ml_dtypes.bfloat16}
    if kind == "safetensors":
        write_safetensors(whole, arrays)
    elif kind == "npz":
        np.savez(whole, **arrays)
    elif kind == "msgpack":
        whole.write_bytes(flax.serialization.msgpack_serialize(arrays))
    else:
        write_legacy(whole)
    data = whole.read_bytes()
    for length in [*range(0, len(data), 11), len(data) - 1]:
        path = tmp_path / f"{length}.{kind}"
        path.write_bytes(data[:length])
        for read in (files.read_tensors, files.list_tensors):
            with pytest.raises(UserError, match=str(path)) as error:
                read(path)
            assert "\n" not in str(error.value)


def test_several_files_and_their_index(tmp_path):
    a, b = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_safetensors(tmp_path / a, {"x": np.ones(2, np.float32)})
    write_safetensors(tmp_path / b, {"y": np.zeros(1, np.int8), "z": np.zeros(1, np.int8)})
    index = tmp_path / "model.safetensors.index.json"

    def read(places):
        index.write_text(json.dumps({"metadata": {"total_size": 10}, "weight_map": places}))
        return files.read_tensors(tmp_path)

    whole = {"x": a, "y": b, "z": b}
    assert set(read(whole)) == {"x", "y", "z"}
    assert "3 tensors, 4 numbers" in files.list_tensors(index)
    for places, message in [
        (whole | {"z": a}, "do not agree about z"),
        ({"x": a, "y": b}, "do not agree about z"),
        (whole | {"w": a}, "do not agree about w"),
        (whole | {"w": "model-3.safetensors"}, "no file or folder .*model-3"),
        (whole | {"w": "../x.safetensors"}, "'../x.safetensors', which is no weight file"),
        (whole | {"w": ".."}, "'..', which is no weight file"),
        (whole | {"w": 3}, "'3', which is no weight file"),
        (whole | {"w": index.name}, "no weight file beside"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ]:
        with pytest.raises(UserError, match=message):
            read(places)
    inner = tmp_path / "inner.bin"
    inner.write_text(json.dumps({"weight_map": {"w": "inner.bin"}}))
    with pytest.raises(UserError, match="which is an index too"):
        read({"w": "inner.bin"})
    (tmp_path / b).unlink()
    with pytest.raises(UserError, match="no file or folder"):
        read(whole)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    arrays = {name: x for name, x in tensors().items() if x.dtype != ml_dtypes.bfloat16}
    arrays["big"] = np.arange(3).astype(">f4")
    np.savez_compressed(path, config=np.array("{}"), **arrays)
    found = files.read_tensors(path)
    assert found["big"].dtype == np.float32
    assert_same(found, arrays | {"big": arrays["big"].astype(np.float32)})
    np.savez(path, x=np.zeros(2, ml_dtypes.bfloat16))
    with pytest.raises(UserError, match=r"x of .*x\.npz is no array or damaged .*V2"):
        files.read_tensors(path)
    np.savez(path, x=np.array([{"a": 1}]))
    for read in (files.read_tensors, files.list_tensors):
        with pytest.raises(UserError, match=r"x of .*x\.npz is no array"):
            read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"hello")
    with pytest.raises(UserError, match=r"readme of .* is no array"):
        files.read_tensors(path)
    for name, message in [
        ("vae/x.safetensors", r"a zip archive \(vae/x.safetensors\): unpack it"),
        ("model.weights.h5", "a model of Keras: save its arrays"),
    ]:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, b"hello")
        with pytest.raises(UserError, match=message):
            files.read_tensors(tmp_path / "x.zip")
    np.savez(path)
    with pytest.raises(UserError, match="holds no tensors"):
        files.read_tensors(path)


def test_a_damaged_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.full(20_000, 7, np.uint8))
    path.write_bytes(path.read_bytes().replace(b"\7" * 20_000, b"\7" * 19_999 + b"\6"))
    with pytest.raises(UserError, match=r"x of .*x\.npz is no array or damaged"):
        files.read_tensors(path)
    assert "20,000" in files.list_tensors(path)


def test_msgpack(tmp_path):
    path = tmp_path / "x.msgpack"
    tree = {"params": {"a": {"kernel": np.ones((2, 1), np.float32)}, "b": [np.int8(3)]}, "step": 4}
    tree["params"]["c"] = jnp.ones(2, jnp.bfloat16)
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    expected = {
        "params/a/kernel": tree["params"]["a"]["kernel"],
        "params/b/0": np.array(3, np.int8),
        "params/c": np.ones(2, ml_dtypes.bfloat16),
    }
    assert_same(files.read_tensors(path), expected)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="no msgpack of flax") as error:
        files.read_tensors(path)
    assert "\n" not in str(error.value)
    path.write_bytes(flax.serialization.msgpack_serialize({"step": 4}))
    with pytest.raises(UserError, match="holds no tensors"):
        files.read_tensors(path)
    path.write_bytes(flax.serialization.msgpack_serialize(np.ones(2)))
    with pytest.raises(UserError, match="one array without a name"):
        files.read_tensors(path)


def test_a_released_artifact():
    folder = RELEASE / "artifacts" / "gen_latent" / "params_ema"
    expected = np.load(RELEASE / "C_generator_latent.npz")
    found = files.read_tensors(folder)
    for name in found:
        np.testing.assert_array_equal(found[name], expected[f"params/{name}"])
    assert files.read_config(folder) is None


def test_checkpoints_of_torch(tmp_path):
    for name in ("pytorch_model.bin", "x.pth", "x.pt", "x.ckpt", "x.pth.tar", "x"):
        found = files.read_tensors(write_legacy(tmp_path / name))
        assert_same(found, {"w": np.zeros(3, np.float32)})
    bad = tmp_path / "x.safetensors"
    bad.write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(UserError, match=r"'os\.system'"):
        files.read_tensors(bad)


def test_the_content_decides(tmp_path):
    write_safetensors(tmp_path / "x.pth", tensors())
    assert_same(files.read_tensors(tmp_path / "x.pth"), tensors())
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    (tmp_path / "x.npz").rename(tmp_path / "x.bin")
    assert_same(files.read_tensors(tmp_path / "x.bin"), {"a": np.ones(2)})
    (tmp_path / "x.pt").write_bytes(flax.serialization.msgpack_serialize({"a": np.ones(2)}))
    assert_same(files.read_tensors(tmp_path / "x.pt"), {"a": np.ones(2)})
    # A header of 640 bytes begins like a pickle.
    (tmp_path / "x.bin").write_bytes(safetensors_bytes({}, b"{}".ljust(640)))
    with pytest.raises(UserError, match="holds no tensors"):
        files.read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.bin", b"", "is empty"),
        ("x.new", b"whatever else", "no weight file of a known kind; it begins with"),
        ("x.bin", b"whatever else", "not a file of torch.save"),
        ("x.safetensors", b"whatever else", "is cut off, or no .safetensors"),
        ("x.msgpack", b"whatever else", "no msgpack of flax"),
        ("x.npz", b"whatever else", "is a zip file that is cut off or damaged"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "HDF5 file, as of Keras: save its arrays with numpy"),
        ("x.html", b"<!DOCTYPE html>", "a web page, which a failed download left: download"),
        ("x.safetensors", b"\n <html><body>404", "a web page"),
        ("x.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page"),
        ("x.bin", b"version https://git-lfs.github.com/spec/v1\noid", "pointer of git-lfs"),
        ("x.gguf", b"GGUF\3\0\0\0", "GGUF or GGML file: take the .safetensors"),
        ("x.onnx", b"\x08\x07\x12\x07pytorch\x1a", "an ONNX file: take the"),
        ("x.onnx", b"\x0a\x07", "an ONNX file: take the"),
        ("x.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite file"),
        ("saved_model.pb", b"\x08\x01\x12\x97", "a file of TensorFlow: save its arrays"),
        ("model.ckpt-5.index", b"\0\0", "a part of a TensorFlow checkpoint"),
        ("model.ckpt.data-00000-of-00001", b"\1\2", "a part of a TensorFlow checkpoint"),
        ("x.npy", b"\x93NUMPY\1\0", "one array of NumPy without a name"),
        ("x.tar.gz", b"\x1f\x8b\x08", "a compressed file: unpack it"),
        ("x.png", b"\x89PNG\r\n", "an image: give the file of the weights"),
        ("x.safetensors", bytes(600), "begins with zeros, as of a broken download"),
        (
            "x.tar",
            b"vae/x.bin".ljust(257, b"\0") + b"ustar" + bytes(300),
            "is a tar: unpack it if it is an archive",
        ),
        ("config.json", b'{"a": 1}', "no weight_map"),
        ("x", b"\x80", "damaged"),
        ("x", b"\x81\xa1a", "no msgpack"),
    ],
)
def test_files_of_another_kind(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    for read in (files.read_tensors, files.list_tensors):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_such_file(tmp_path):
    for call in (files.read_tensors, files.list_tensors, files.find_weights, files.read_config):
        with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
            call(tmp_path / "nowhere")


def test_the_weights_of_a_folder(tmp_path):
    def found(*names):
        for path in tmp_path.iterdir():
            path.unlink()
        for name in (*names, "config.json", "README.md"):
            (tmp_path / name).write_bytes(b"x")
        return files.find_weights(tmp_path).name

    assert found("x.pth") == "x.pth"
    assert found("ema_params.msgpack") == "ema_params.msgpack"
    assert found("model.safetensors", "pytorch_model.bin", "x.bin") == "model.safetensors"
    assert found("pytorch_model.bin", "training_args.bin") == "pytorch_model.bin"
    assert found("flax_model.msgpack", "pytorch_model.bin") == "pytorch_model.bin"
    standard = "diffusion_pytorch_model.safetensors"
    assert found(standard, "diffusion_pytorch_model.fp16.safetensors") == standard
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert found(index, *shards) == index
    assert found("other.safetensors.index.json", *shards) == "other.safetensors.index.json"
    assert files.find_weights(tmp_path / "README.md") == tmp_path / "README.md"
    for names, message in [
        ([], "expected one weight file in .* found none"),
        (shards, r"none but parts such as .*model\.safetensors\.index\.json is missing"),
        (["a.pth", "b.npz"], r"found a\.pth, b\.npz: name the file"),
        (["model.safetensors", standard], f"found {standard}, model.safetensors"),
        ([f"{i}.pt" for i in range(9)], r"4\.pt …:"),
    ]:
        with pytest.raises(UserError, match=message):
            found(*names)


def test_an_index_of_a_variant(tmp_path):
    names = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in names:
        write_safetensors(tmp_path / name, {name: np.ones(1, np.float16)})
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": {name: name for name in names}}))
    assert set(files.read_tensors(tmp_path)) == set(names)


def test_sharded_files_of_torch(tmp_path):
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for i, name in enumerate(names):
        write_legacy(tmp_path / name, name=f"w{i}")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"w0": names[0], "w1": names[1]}}))
    zeros = np.zeros(3, np.float32)
    assert_same(files.read_tensors(tmp_path), {"w0": zeros, "w1": zeros})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("model_index.json", "a whole pipeline of diffusers: give the folder of one network, vae"),
        ("saved_model.pb", "a model of TensorFlow: save its arrays"),
        ("checkpoint", "a model of TensorFlow"),
        ("_METADATA", "a checkpoint of Orbax: give the workdir"),
        ("data.pkl", "an unpacked file of torch.save"),
        ("README.md", r"found some in its folders vae: name the folder"),
    ],
)
def test_folders_of_another_kind(tmp_path, entry, message):
    (tmp_path / entry).write_text("x")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "x.safetensors").write_text("x")
    with pytest.raises(UserError, match=message) as error:
        files.find_weights(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_run_is_no_file_of_weights(tmp_path):
    (tmp_path / "encoder" / "checkpoints").mkdir(parents=True)
    for use in (files.list_tensors, files.read_tensors):
        with pytest.raises(UserError, match=r"is the workdir of a run.*convert --source="):
            use(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"part of {tmp_path},.*--source={tmp_path} "):
        files.read_tensors(tmp_path / "encoder")


def test_the_config_beside_a_file(tmp_path):
    file = write_safetensors(tmp_path / "model.safetensors", tensors())
    assert files.read_config(file) is None and files.read_config(tmp_path) is None
    config = tmp_path / "config.json"
    config.write_text('{"depths": [3, 3], "hidden_act": "gelu"}')
    assert (
        files.read_config(file)
        == files.read_config(str(tmp_path))
        == json.loads(config.read_text())
    )
    for text, message in {
        "[1]": "no object but a list",
        "{": "cannot be read",
        "": "empty",
    }.items():
        config.write_text(text)
        with pytest.raises(UserError, match=rf"config\.json.*{message}"):
            files.read_config(file)


def test_the_table(tmp_path):
    table = files.list_tensors(write_safetensors(tmp_path / "model.safetensors", tensors()))
    assert table == files.list_tensors(tmp_path)
    assert [line.rstrip() for line in table.splitlines()] == [
        "name         shape          dtype",
        "conv.weight  2 x 3 x 1 x 1  float32",
        "conv.bias    2              bfloat16",
        "steps        scalar         int64",
        "none         0 x 4          float16",
        "4 tensors, 9 numbers, 0.0 MB",
    ]


def test_the_table_of_a_large_file_takes_no_memory(tmp_path):
    path, n = tmp_path / "x.safetensors", 10**12
    header = {"a": {"dtype": "F32", "shape": [n // 4], "data_offsets": [0, n]}}
    path.write_bytes(safetensors_bytes({}, header))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + n)
    assert "1 tensors, 250,000,000,000 numbers, 1,000,000.0 MB" in files.list_tensors(path)
    np.savez(tmp_path / "x.npz", a=np.zeros((0, 7), ">f4"))
    data = (tmp_path / "x.npz").read_bytes().replace(b"(0, 7), }       ", b"(7, 9999999999)}")
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(UserError):
        files.read_tensors(tmp_path / "x.npz")


def test_groups():
    x, y = np.zeros(1), np.ones(1)
    flat, nested = {"a.b": x, "c": y}, {"state_dict/a": x, "state_dict/b/c": y, "optimizer/0": y}
    assert wrappers.select(flat) == wrappers.select(flat, "") == flat
    assert wrappers.select(nested) == wrappers.select(nested, "state_dict/") == {"a": x, "b/c": y}
    assert wrappers.select(nested, "state_dict/b") == {"c": y}
    assert wrappers.select(nested, "") == nested
    assert wrappers.select({"teacher/a": x}) == {"a": x}
    for tensors, prefix, message in [
        (nested, "model", "'model'; the groups are optimizer, state_dict"),
        (nested, "state", "no tensor lies in a group called 'state'"),
        (flat, "model", "there are no groups"),
        ({"model/a": x, "net/a": y}, None, "several groups of tensors, model, net"),
        ({"encoder/a": x, "head/a": y}, None, "several groups of tensors, encoder, head"),
    ]:
        with pytest.raises(UserError, match=message):
            wrappers.select(tensors, prefix)


@pytest.mark.parametrize(
    "names, group",
    [
        (["state_dict/model/a.weight", "state_dict/model/b.bias"], "state_dict/model"),
        (["model/state_dict/a", "epoch/0"], "model/state_dict"),
        (["net/a", "optimizer/0"], "net"),
        (["model/a", "model_ema/a", "optimizer/0"], "model_ema"),
        (["state_dict/module.a", "state_dict_ema/a", "state_dict/module.b.num_batches_tracked"],
         "state_dict_ema"),
        (["model/a", "ema/shadow_params/0"], "model"),  # an average without the names
        (["model/a", "model/b", "ema/a"], "model"),  # one that lacks a tensor
        (["ema/a", "optimizer/0"], "ema"),
        (["model/a", "ema/a", "params_ema/a"], None),
    ],
)  # fmt: skip
def test_the_group_of_the_weights(names, group):
    assert wrappers.weight_group(dict.fromkeys(names, 0)) == group


def test_names_of_wrappers():
    def unwrapped(*names):
        return set(wrappers.unwrap(dict.fromkeys(names, 0)))

    assert unwrapped("module.a.b", "module.c") == {"a.b", "c"}
    assert unwrapped("_orig_mod.module.a", "_orig_mod.module.b") == {"a", "b"}
    assert unwrapped("module._orig_mod.a", "n_averaged") == {"a"}
    assert unwrapped("encoder._orig_mod.a", "b") == {"encoder.a", "b"}
    assert unwrapped("module.a", "b") == {"module.a", "b"}
    assert unwrapped("a", "_orig_mod.a") == {"a", "_orig_mod.a"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub with one repository, which records what it is asked for."""

    class EntryNotFoundError(Exception):
        pass

    calls = []
    repository = ["config.json", "model.safetensors", "vae/x.safetensors", "vae/m.index.json"]
    for name in repository:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def hf_hub_download(repo_id, filename, *, revision=None):
        calls.append((repo_id, filename, revision))
        if filename not in repository:
            raise EntryNotFoundError(f"404\nno {filename}")
        return str(tmp_path / filename)

    def snapshot_download(repo_id, *, revision=None, allow_patterns):
        calls.append((repo_id, allow_patterns, revision))
        return str(tmp_path)

    fake = types.SimpleNamespace(
        hf_hub_download=hf_hub_download,
        snapshot_download=snapshot_download,
        errors=types.SimpleNamespace(EntryNotFoundError=EntryNotFoundError),
        calls=calls,
        folder=tmp_path,
        repository=repository,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def test_paths_are_fetched_from_where_they_lie():
    assert files.fetch("a/b.pth") == Path("a/b.pth")
    assert files.fetch(Path("/a")) == Path("/a")


def test_files_of_the_hub(hub):
    assert files.fetch("hf://o/r/model.safetensors") == hub.folder / "model.safetensors"
    assert hub.calls == [("o/r", "model.safetensors", None), ("o/r", "config.json", None)]
    hub.calls.clear()
    assert (
        files.fetch("hf://o/r@refs%2Fpr%2F1/vae/x.safetensors") == hub.folder / "vae/x.safetensors"
    )
    assert hub.calls == [
        ("o/r", "vae/x.safetensors", "refs/pr/1"),
        ("o/r", "vae/config.json", "refs/pr/1"),
    ]
    with pytest.raises(UserError, match=r"cannot get hf://o/r/no\.pth \(404 no no\.pth\)") as error:
        files.fetch("hf://o/r/no.pth")
    assert "\n" not in str(error.value) and "give the folder" in str(error.value)


def test_folders_of_the_hub(hub):
    assert files.fetch("hf://o/r@main") == files.fetch("hf://o/r@main/") == hub.folder
    repo, patterns, revision = hub.calls[0]
    assert (repo, revision) == ("o/r", "main")
    assert {"*.json", "*.safetensors", "*.bin"} <= set(patterns)
    assert files.fetch("hf://o/r/vae") == files.fetch("hf://o/r/vae/") == hub.folder / "vae"
    assert hub.calls[-1] == ("o/r", [f"vae/{pattern}" for pattern in patterns], None)
    assert files.fetch("hf://o/r/vae/m.index.json") == hub.folder / "vae" / "m.index.json"
    assert hub.calls[-1] == hub.calls[-2]
    with pytest.raises(UserError, match="the repository has no weights in unet"):
        files.fetch("hf://o/r/unet")


def test_one_part_of_a_pipeline_of_the_hub(hub):
    assert files.fetch("hf://o/r", part="vae") == hub.folder  # no pipeline
    assert [call[1] for call in hub.calls] == ["model_index.json", hub.calls[1][1]]
    assert "*.safetensors" in hub.calls[1][1]
    hub.repository.append("model_index.json")
    assert files.fetch("hf://o/r@v1", part="vae") == hub.folder / "vae"
    assert "vae/*.safetensors" in hub.calls[-1][1] and hub.calls[-1][2] == "v1"
    assert files.fetch("hf://o/r/vae", part="vae") == hub.folder / "vae"


@pytest.mark.parametrize(
    "name", ["hf://", "hf://o", "hf://o/", "hf://o//x", "hf://o/r@/x", "hf:///o/r"]
)
def test_malformed_names(hub, name):
    with pytest.raises(UserError, match="expected hf://owner/repo"):
        files.fetch(name)


def test_other_addresses():
    with pytest.raises(UserError, match="neither a path nor hf://owner/repo"):
        files.fetch("https://example.org/x.pth")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        files.fetch("hf://o/r")


@pytest.mark.parametrize("name", ["hf://o/r", "hf://o/r/x.pth", "hf://o/r@v1/vae", "hf://o r/x"])
def test_the_package_itself_without_a_network(monkeypatch, tmp_path, name):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=f"cannot get {name} .*check the name and the network"
    ) as error:
        files.fetch(name)
    assert "\n" not in str(error.value)


def test_the_package_itself_with_a_filled_cache(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    repository = tmp_path / "models--o--r"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors())
    file = files.fetch("hf://o/r/model.safetensors")
    assert_same(files.read_tensors(file), tensors())
    assert files.read_config(file) is None
    assert_same(files.read_tensors(files.fetch("hf://o/r")), tensors())
