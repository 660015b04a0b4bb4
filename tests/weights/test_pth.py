"""Checkpoints of torch, written here byte by byte: values, views, and malicious pickles."""

import collections
import os
import pickle
import struct
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import (
    KINDS,
    LAYOUTS,
    MAGIC,
    Call,
    Named,
    Storage,
    dumps,
    legacy_bytes,
    tensor,
    write,
    write_zip,
)

from drifting_jax import unpickle
from drifting_jax.errors import UserError
from drifting_jax.weights import pth


def numbers(dtype, n, seed=0):
    values = np.random.default_rng(seed).integers(0, 2 if dtype == np.bool_ else 100, n)
    return values.astype(dtype)


def assert_same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_spelled_out_by_hand(tmp_path):
    """Without a pickler: these are the instructions that torch writes."""
    storage = b"(X\x07\x00\x00\x00storageq\x02ctorch\nFloatStorage\nq\x03X\x01\x00\x00\x000q\x04"
    storage += b"X\x03\x00\x00\x00cpuq\x05K\x06tq\x06Q"
    numbers_of = b"K\x00K\x03K\x02\x86q\x07K\x01K\x03\x86q\x08\x89"
    hooks = b"ccollections\nOrderedDict\nq\x09)Rq\x0a"
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x01("
        + storage
        + numbers_of
        + hooks
        + b"tq\x0bRq\x0c"
    )
    pickled = b"\x80\x02}q\x00X\x01\x00\x00\x00w" + call + b"s."
    values = np.arange(6, dtype=np.float32)
    path = write_zip(tmp_path / "x.pt", None, pickled=pickled, storages=[Storage(values)])
    found = pth.read_pth(path)
    assert list(found) == ["w"]
    assert_same(found["w"], values.reshape(2, 3).T)
    assert not found["w"].flags.writeable


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_checkpoint(tmp_path, layout):
    """Nesting, parameters, the attribute that torch sets on a state dict, and other values."""
    w, b, m = numbers(np.float32, 6).reshape(2, 3), numbers(np.int64, 1), numbers(np.float16, 4)
    state = Call(
        "collections",
        "OrderedDict",
        [
            ["conv.weight", Call("torch._utils", "_rebuild_parameter", tensor(w, "0"), True, {})],
            ["steps", tensor(b, "1", shape=())],
        ],
        state={"_metadata": {"": {"version": 1}}, "items": Named("collections", "OrderedDict")},
    )
    optimizer = {"state": {0: {"exp_avg": tensor(m, "2")}}, "param_groups": [{"params": [0, 1]}]}
    shape = Call("torch", "Size", [2, 3])
    best = Call("numpy.core.multiarray", "scalar", numpy_dtype("f8", "<"), b"\0" * 8)
    tree = {"state_dict": state, "optimizer": optimizer, "epoch": 3, "shape": shape, "best": best}
    tree |= {"lists": [tensor(w, "0"), None, (1.5, "text")]}
    found = pth.read_pth(write(tmp_path / "x.pth", tree, layout))
    assert set(found) == {
        "state_dict/conv.weight",
        "state_dict/steps",
        "optimizer/state/0/exp_avg",
        "lists/0",
    }
    assert_same(found["state_dict/conv.weight"], w)
    assert_same(found["state_dict/steps"], b.reshape(()))
    assert_same(found["optimizer/state/0/exp_avg"], m)
    assert np.shares_memory(found["lists/0"], found["state_dict/conv.weight"])


def numpy_dtype(code, order):
    return Call("numpy", "dtype", code, False, True, state=(3, order, None, None, None, -1, -1, 0))


def numpy_array(values, order="<", fortran=False, code=None):
    data = values.astype(values.dtype.newbyteorder(order)).tobytes("F" if fortran else "C")
    code = code or values.dtype.str[1:]
    data = Call("_codecs", "encode", data.decode("latin1"), "latin1")
    state = (1, values.shape, numpy_dtype(code, order), fortran, data)
    empty = Call("_codecs", "encode", "b", "latin1")
    ndarray = Named("numpy", "ndarray")
    module = "numpy._core.multiarray"
    return Call(module, "_reconstruct", ndarray, (0,), empty, state=state)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_numpy(tmp_path, order, fortran):
    values = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    tree = {"mean": numpy_array(values, order, fortran), "dtype": numpy_dtype("f4", "<")}
    found = pth.read_pth(write(tmp_path / "x.pth", tree, "zip"))
    assert list(found) == ["mean"]
    assert_same(found["mean"], values)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(tmp_path, kind, layout):
    values = numbers(KINDS[kind], 12).reshape(3, 4)
    found = pth.read_pth(write(tmp_path / "x.pth", {"x": tensor(values)}, layout))
    assert_same(found["x"], values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_big_endian_file(tmp_path, kind):
    values = numbers(KINDS[kind], 5)
    tree = {"x": tensor(values), "y": tensor(values, shape=(2,), offset=1)}
    found = pth.read_pth(write_zip(tmp_path / "x.pth", tree, byteorder="big"))
    assert_same(found["x"], values)
    assert_same(found["y"], values[1:3])
    assert np.shares_memory(found["x"], found["y"])


def test_views_of_a_storage_in_the_legacy_layout(tmp_path):
    values = numbers(np.float32, 10)
    tree = {"all": tensor(values), "view": tensor(values, shape=(2,), offset=1, view=("1", 4, 3))}
    path = tmp_path / "x.pth"
    path.write_bytes(legacy_bytes(tree))
    found = pth.read_pth(path)
    assert_same(found["all"], values)
    assert_same(found["view"], values[5:7])
    tree["view"] = tensor(values, shape=(3,), offset=1, view=("1", 4, 3))
    path.write_bytes(legacy_bytes(tree))
    with pytest.raises(UserError, match=r"view of .*x.pth is damaged: it reaches beyond"):
        pth.read_pth(path)


SIZES = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(KINDS)), st.sampled_from(LAYOUTS), SIZES)
def test_strided_views(tmp_path_factory, data, kind, layout, shape):
    """A view inside its storage is read as NumPy reads it; one that reaches outside is an error."""
    strides = data.draw(st.lists(st.integers(0, 6), min_size=len(shape), max_size=len(shape)))
    offset, count = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 40))
    values = numbers(KINDS[kind], count)
    tree = {"x": tensor(values, offset=offset, shape=tuple(shape), strides=tuple(strides))}
    path = tmp_path_factory.getbasetemp() / f"strided.{layout}"
    path.unlink(missing_ok=True)  # a mapped file must not be overwritten
    write(path, tree, layout)
    reach = [
        offset + sum(i * s for i, s in zip(index, strides, strict=True))
        for index in np.ndindex(*shape)
    ]
    if max(reach, default=-1) >= count:
        with pytest.raises(UserError, match="reaches beyond its storage"):
            pth.read_pth(path)
    else:
        assert_same(pth.read_pth(path)["x"], values[reach].reshape(shape))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "change",
    [
        {"offset": -1},
        {"shape": (-2,)},
        {"strides": (-1,)},
        {"strides": (-1,), "offset": 5},
        {"strides": (1, 1)},
        {"strides": ()},
        {"shape": (2.0,)},
        {"shape": 6},
        {"offset": None},
        {"shape": (2**70,), "strides": (0,)},
        {"shape": (1,) * 80, "strides": (1,) * 80},
        {"shape": (2, 2**62), "strides": (1, 0)},
    ],
)
def test_impossible_tensors(tmp_path, change, layout):
    fine = {"shape": (6,), "strides": (1,)}
    tree = {"x": tensor(numbers(np.float32, 6), **fine | change)}
    with pytest.raises(UserError, match=r"x of .*x\.pth is damaged"):
        pth.read_pth(write(tmp_path / "x.pth", tree, layout))


def bomb(path):
    """Every way to name a function that would create the file, as the bytes of one value."""
    touch = f"touch {path}"
    code = f"open({str(path)!r}, 'w')"
    yield "posix.system", dumps(Call("posix", "system", touch))
    yield "os.system", dumps(Call("os", "system", touch))
    yield (
        "builtins.eval",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93" + dumps((code,))[2:-1] + b"R.",
    )
    yield "__builtin__.exec", dumps(Call("__builtin__", "exec", code))
    yield "builtins.getattr", dumps(Call("builtins", "getattr", Named("os", "path"), "os"))
    yield "os.path", dumps(Call("collections", "OrderedDict", [["a", Named("os", "path")]]))
    yield "os.system", f"(S'{touch}'\nios\nsystem\n.".encode()
    yield "os.system", f"(cos\nsystem\nS'{touch}'\no.".encode()
    yield "os.system", b"\x80\x02cos\nsystem\n" + dumps((touch,))[2:-1] + b"\x81."
    yield (
        "collections.OrderedDict.update",
        (b"\x80\x04\x8c\x0bcollections\x8c\x12OrderedDict.update\x93."),
    )
    yield "collections.abc.sys.modules", b"\x80\x04\x8c\x0fcollections.abc\x8c\x0bsys.modules\x93."
    yield "collections.abc", b"\x80\x02ccollections\nabc\n."
    yield "torch._utils.os", b"\x80\x02ctorch._utils\nos\n."
    yield "torch.load", dumps(Call("torch", "load", str(path)))
    yield "numpy.load", dumps(Call("numpy", "load", str(path), None, True))
    yield "antigravity.fly", dumps(Named("antigravity", "fly"))
    hidden = Call("torch._utils", "_rebuild_parameter", Call("os", "system", touch), True, {})
    yield "os.system", dumps({"epoch": 1, "a": [{"b": (1, hidden)}]})
    yield "os.system", dumps(Call("torch", "Size", [1], state=Call("os", "system", touch)))
    yield "os.system", b"\x80\x02" + dumps(Call("os", "system", touch))[2:-1] + b"Q."


BOMBS = range(len(list(bomb("x"))))


@pytest.mark.parametrize("place", ["zip", "first", "machine", "object"])
@pytest.mark.parametrize("number", BOMBS)
def test_nothing_is_ever_run(tmp_path, monkeypatch, number, place):
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    marker, path = tmp_path / "marker", tmp_path / "x.pth"
    name, pickled = list(bomb(marker))[number]
    if place == "first" and not pickled.startswith(b"\x80"):
        pickled = b"\x80\x02" + pickled
    if place == "zip":
        write_zip(path, {}, pickled=pickled)
    else:
        key = {"first": "first", "machine": "info", "object": "pickled"}[place]
        path.write_bytes(legacy_bytes({}, **{key: pickled}))
    with pytest.raises(UserError, match=f"'{name}'") as error:
        pth.read_pth(path)
    assert not marker.exists()
    assert "antigravity" not in sys.modules
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 7])
def test_an_ordinary_unpickler_would_run_them(tmp_path, number):
    marker = tmp_path / "marker"
    pickle.loads(list(bomb(marker))[number][1])
    assert marker.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02\x82\x01.",  # the registry of extensions
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # a terabyte of writable bytes
        b"\x80\x02" + b"]r\xff\xff\xff\x7f.",  # entry 2147483647 of the memo
        b"\x80\x04B\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        b"\x80\x02Pstorage\n.",
        b"\x80\x02.",
        b"\x80\x02}h\x05.",
        b"\x80\x09}.",
        b"",
        b"\x80\x02X\x03\x00\x00\x00\xff\xfe\xfd.",
        dumps(Call("torch", "FloatStorage", 1)),
        dumps(Call("numpy", "ndarray", (1,))),
        dumps(Call("torch._utils", "_rebuild_parameter")),
        dumps({"x": Call("torch._utils", "_rebuild_tensor_v2", *"abcd")}),
        dumps({"x": Call("torch._utils", "_rebuild_tensor_v2", "a")}),
        dumps({"x": numpy_array(np.zeros(2, np.float32), code="O8")}),
        dumps({"x": numpy_array(np.zeros(2, np.float32), code="f4,O")}),
        dumps({"x": numpy_array(np.zeros(2, np.float32), code="f8")}),
        dumps({"x": Call("numpy.core.multiarray", "_reconstruct", 1)}),
        dumps({"x": Call("numpy.core.multiarray", "_reconstruct", 1, state=(1, 2))}),
        dumps({(1, 2): tensor(np.zeros(1, np.float32))}),
        dumps(
            {"a/b": tensor(np.zeros(1, np.float32)), "a": {"b": tensor(np.zeros(1, np.float32))}}
        ),
        dumps({0: tensor(np.zeros(1, np.float32)), "0": tensor(np.zeros(1, np.float32))}),
        dumps({"x": tensor(np.zeros(1, np.float32)), "y": tensor(np.zeros(1, np.int32))}),
        dumps({"x": tensor(np.zeros(1, np.float32)), "y": tensor(np.zeros(2, np.float32))}),
        dumps({"epoch": 3}),
        dumps(tensor(np.zeros(1, np.float32))),
        dumps(3),
    ],
)
def test_pickles_that_make_no_sense(tmp_path, pickled):
    path = tmp_path / "x.pth"
    write_zip(path, {}, pickled=pickled, storages=[Storage(np.zeros(1, np.float32))])
    with pytest.raises(UserError, match=r"x\.pth") as error:
        pth.read_pth(path)
    assert "\n" not in str(error.value)
    path = tmp_path / "y.pth"
    path.write_bytes(legacy_bytes({}, pickled=pickled))
    with pytest.raises(UserError, match=r"y\.pth"):
        pth.read_pth(path)


def test_nesting_without_end(tmp_path):
    circle = {}
    circle["self"] = circle
    laughs = {"a": 1}
    for _ in range(31):
        laughs = {"a": laughs, "b": laughs}
    for name, tree in {"circle": circle, "laughs": laughs}.items():
        path = tmp_path / name
        write_zip(path, {}, pickled=pickle.dumps(tree, 2))
        with pytest.raises(UserError, match="nested without end"):
            pth.read_pth(path)


def test_a_few_bytes_cannot_stand_for_many(tmp_path):
    values = np.zeros(1, np.float32)
    path = write(
        tmp_path / "repeated", {"x": tensor(values, shape=(10**6, 10**6), strides=(0, 0))}, "zip"
    )
    with pytest.raises(UserError, match=r"x of .* it has 1000000000000 entries of 1 numbers"):
        pth.read_pth(path)
    text = "a" * 10**6
    pickled = b"\x80\x02" + dumps(text)[2:-1] + b"q\x01"
    call = dumps(Named("_codecs", "encode"))[2:-1] + b"h\x01" + dumps("latin1")[2:-1] + b"\x86R0"
    path = write_zip(tmp_path / "many", {}, pickled=pickled + call * 1500 + b"}.")
    with pytest.raises(UserError, match="it grows without end"):
        pth.read_pth(path)


def test_a_pickle_changes_nothing_for_the_next(tmp_path):
    """BUILD may set attributes of the stand-ins, which are made anew for each file."""
    values = np.arange(3, dtype=np.float32)
    stains = {"__defaults__": ("stain",), "__setstate__": 1, "dtype": 1, "args": 1}
    names = [(m, n) for m, n in unpickle.allowed_globals(2**20) if n != "ndarray"]
    for module, name in names:
        for state in (stains, (None, stains)):
            pickled = dumps(Named(module, name))[:-1] + dumps(state)[2:-1] + b"b."
            path = write_zip(tmp_path / "bad", {}, pickled=pickled)
            with pytest.raises(UserError, match="bad"):
                pth.read_pth(path)
    assert not hasattr(collections.OrderedDict, "args")
    for layout in LAYOUTS:
        found = pth.read_pth(write(tmp_path / layout, {"x": tensor(values)}, layout))
        assert_same(found["x"], values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_off_anywhere_is_an_error(tmp_path, layout):
    whole = write(tmp_path / "whole", {"a": tensor(numbers(np.float32, 9))}, layout).read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path = tmp_path / str(length)
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=str(path)):
            pth.read_pth(path)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(LAYOUTS), st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_byte_is_an_error_or_does_no_harm(tmp_path_factory, layout, position, change):
    folder = tmp_path_factory.getbasetemp()
    tree = {"a": tensor(numbers(np.float32, 9)), "b": {"c": tensor(numbers(np.int8, 4, 1), "1")}}
    data = bytearray(write(folder / f"whole.{layout}", tree, layout).read_bytes())
    data[position % len(data)] ^= change
    path = folder / "damaged"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    try:
        found = pth.read_pth(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    if layout == "zip":  # which has checksums
        assert_same(found["a"], numbers(np.float32, 9))
        assert_same(found["b/c"], numbers(np.int8, 4, 1))


def test_checksums(tmp_path):
    values = np.full(64, 1.5, np.float32)
    path = write_zip(tmp_path / "x.pth", {"x": tensor(values)})
    data = path.read_bytes()
    bad = tmp_path / "bad.pth"
    bad.write_bytes(data.replace(values.tobytes(), b"\1" + values.tobytes()[1:]))
    with pytest.raises(UserError, match=r"bad\.pth is damaged at model/data/0"):
        pth.read_pth(bad)
    assert pth.read_pth(bad, verify=False)["x"].shape == (64,)
    without = write_zip(tmp_path / "without.pth", {"x": tensor(values)}, crc=False)
    assert_same(pth.read_pth(without)["x"], values)


def members_changed(path, source, change, **options):
    """A copy of a zip file with other members."""
    with zipfile.ZipFile(source) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_zip_files_that_are_no_checkpoints(tmp_path):
    fine = write_zip(tmp_path / "x.pth", {"x": tensor(numbers(np.float32, 4))})
    for message, change in {
        "with 0 data.pkl": lambda m: {"readme": b""},
        "with 2 data.pkl": lambda m: m | {"other/data.pkl": b""},
        "TorchScript": lambda m: m | {"model/constants.pkl": b""},
        "lacks model/data/0": lambda m: {k: v for k, v in m.items() if "data/" not in k},
        "storage 0 has 15 bytes": lambda m: m | {"model/data/0": b"0" * 15},
        "byte order is 'middle'": lambda m: m | {"model/byteorder": b"middle"},
    }.items():
        path = members_changed(tmp_path / "bad.pth", fine, change)
        with pytest.raises(UserError, match=message):
            pth.read_pth(path)
    path = members_changed(tmp_path / "c.pth", fine, dict, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        pth.read_pth(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(fine, "a") as archive:
        archive.writestr("model/data/0", b"")
    with pytest.raises(UserError, match="two members of one name"):
        pth.read_pth(fine)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"cannot read .*x\.pth: No such file"):
        pth.read_pth(path)
    with pytest.raises(UserError, match="cannot read"):
        pth.read_pth(tmp_path)
    for data, message in {
        b"": "is empty",
        b"hello": "not a file of torch.save",
        dumps({"a": 1}): "not a file of torch.save",
        dumps(MAGIC + 1): "not a file of torch.save",
        legacy_bytes({}, protocol=1002): "another version",
    }.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match=message):
            pth.read_pth(str(path))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match=r"is a tar: .* in torch's oldest layout"):
        pth.read_pth(path)


def test_storages_that_the_legacy_layout_does_not_declare(tmp_path):
    path, tree = tmp_path / "x.pth", {"x": tensor(numbers(np.float32, 4))}
    fine = legacy_bytes(tree)
    for old, new in {
        dumps(["0"]): dumps(["1"]),
        dumps(["0"])[2:]: dumps([])[2:],
        struct.pack("<q", 4): struct.pack("<q", 3),
        struct.pack("<q", 4)[:7]: struct.pack("<q", -4)[:7],
    }.items():
        assert fine.count(old) == 1
        path.write_bytes(fine.replace(old, new))
        with pytest.raises(UserError, match=r"x\.pth is damaged"):
            pth.read_pth(path)


def test_the_file_is_read_no_further_than_needed(tmp_path):
    """A storage of 8 GB that is a hole in the file takes neither memory nor time."""
    path, n = tmp_path / "x.pth", 2**31
    tree = {"x": tensor(np.broadcast_to(np.float32(0), 1))}
    head = legacy_bytes(
        tree,
        pickled=dumps(tree, legacy=True).replace(
            b"K\x01N", b"\x8a\x05" + n.to_bytes(5, "little") + b"N"
        ),
    )
    path.write_bytes(head[:-12] + struct.pack("<q", n))
    os.truncate(path, len(head) - 4 + 4 * n)
    assert_same(pth.read_pth(path)["x"], np.zeros(1, np.float32))


@pytest.mark.parametrize("place", ["storage", "key", "ordered"])
def test_a_tuple_too_large_to_print_or_hash_is_refused_at_once(tmp_path, place):
    """Sixty doublings in a hundred bytes: to print or to hash it would never end."""
    bomb = b"(K\x01t" + b"2\x86" * 60
    pickled = {
        "storage": b"\x80\x02(X\x07\x00\x00\x00storage" + bomb + b"tQ.",
        "key": b"\x80\x02}" + bomb + b"K\x01s.",
        "ordered": b"\x80\x02ccollections\nOrderedDict\n((" + bomb + b"K\x01tt\x85R.",
    }[place]
    write_zip(tmp_path / "x.pth", {}, pickled=pickled, storages={})
    with pytest.raises(UserError, match="damaged"):
        pth.read_pth(tmp_path / "x.pth")
