"""PyTorch checkpoints, read without torch and without running anything they say.

A checkpoint is a pickle, and a pickle may name any Python function to be called. Here names are
looked up in a short list of stand-ins that only take notes; the arrays are made from the notes once
the pickle is read, and whatever else is named is an error.
"""

from __future__ import annotations

import collections
import functools
import io
import itertools
import math
import mmap
import os
import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from drifting_jax.errors import UserError

_MAGIC_NUMBER, _PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001
_STORAGE_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_StorageBytes = Callable[["_Storage"], np.ndarray]
_MAX_DEPTH, _MAX_CONTAINERS = 32, 1_000_000  # more than any real file has


def read_pth(path: str | os.PathLike, *, verify: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a file of `torch.save`: a zip, or the layout before torch 1.6.

    Nested mappings and lists are flattened: `{"state_dict": {"conv.weight": …}, "epoch": 3}` gives
    "state_dict/conv.weight"; what is no tensor is left out. `files.select` takes one group.

    Args:
      path: the file; its content decides the layout.
      verify: compare the checksums that a zip stores, for which the whole file is read.

    Returns:
      {name: read-only array}, bfloat16 as `ml_dtypes.bfloat16`. The arrays are views of the file,
      mapped into memory: it must not change while they are in use.

    Raises:
      UserError: not such a file, cut off or damaged; or it names a class that weights do not need.
    """
    data = map_file(path := Path(path))
    if data[:4] == b"PK\x03\x04":
        tree, storage_bytes = _open_zip(path, data, verify)
    elif data[257:262] == b"ustar":
        raise UserError(f"{path} is in torch's oldest layout, a tar: load and save it with torch")
    else:
        tree, storage_bytes = _open_legacy(path, data)
    leaves = flatten(tree, (_Tensor, _NumpyArray), path)
    if not leaves or "" in leaves:
        raise UserError(f"{path} holds no mapping from names to tensors")
    return {
        name: _numpy_array(leaf, f"{name} of {path}")
        if isinstance(leaf, _NumpyArray)
        else _tensor_array(leaf, f"{name} of {path}", storage_bytes)
        for name, leaf in leaves.items()
    }


def flatten(tree: Any, leaves: tuple[type, ...], origin: object) -> dict[str, Any]:
    """{"outer/inner/0": leaf}, for each leaf of these types in mappings, lists and tuples.

    Raises:
      UserError: two leaves share a name, a key is neither text nor an integer, or the nesting has
        no end; `origin` is what the tree is called there.
    """
    found: dict[str, Any] = {}
    containers = itertools.count(1)

    def visit(node: Any, keys: tuple) -> None:
        if isinstance(node, leaves):
            if not all(isinstance(key, str | int) for key in keys):
                raise UserError(f"{origin} holds an array under {keys!r}, which is no name")
            name = "/".join(map(str, keys))
            if name in found:
                raise UserError(f"{origin} holds two arrays that are called {name!r}")
            found[name] = node
        elif isinstance(node, dict | list | tuple):
            if len(keys) > _MAX_DEPTH or next(containers) > _MAX_CONTAINERS:
                raise UserError(f"{origin} is nested without end")
            # Not node.items(): a pickle may have set an attribute of that name.
            for key, child in dict.items(node) if isinstance(node, dict) else enumerate(node):
                visit(child, (*keys, key))

    visit(tree, ())
    return found


def map_file(path: Path) -> mmap.mmap:
    """The bytes of a file, mapped into memory read-only."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UserError(f"{path} is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def zip_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip file by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # damaged bytes raise more than BadZipFile
        raise UserError(f"{path} is a zip file that is cut off or damaged ({error})") from None
    by_name = {info.filename: info for info in members}
    if len(by_name) != len(members):
        raise UserError(f"{path} holds two members of one name")
    return by_name


class _Storage(NamedTuple):
    """`count` numbers, from number `first` on, of the `numel` stored under a key."""

    key: str
    kind: str
    numel: int
    first: int
    count: int

    @property
    def dtype(self) -> np.dtype:
        return _STORAGE_DTYPES[self.kind]


class _Tensor(NamedTuple):
    """What a pickle says of a tensor; nothing of it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _NumpyDtype:
    """What a pickle says of a NumPy dtype; nothing of it is checked yet."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NumpyArray(_NumpyDtype):
    """The same of an array."""


def _allowed_globals() -> dict[tuple[str, str], Any]:
    """What a checkpoint may name: made anew for each, as it may set attributes of what it gets."""
    names = {("torch", name): name for name in _STORAGE_DTYPES} | {
        ("collections", "OrderedDict"): _ordered,
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor"): lambda *args: _Tensor(*args[:4]),
        ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _Tensor(*args[:4]),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("numpy", "dtype"): lambda *args: _NumpyDtype(*args),
        ("numpy", "ndarray"): None,
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes, in protocol 2
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = lambda *_: None
        names[module, "_reconstruct"] = lambda *args: _NumpyArray(*args)
    return names


# Writable bytes, the registry of extensions, and sets, which hash what they hold.
_LEFT_OUT = b"".join(
    getattr(pickle, name)
    for name in ["BYTEARRAY8", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET"]
)


def _ordered(*pairs: Any) -> collections.OrderedDict:
    """An OrderedDict whose keys are plain: to hash a nested tuple may take for ever."""
    found = collections.OrderedDict()
    for key, value in pairs[0] if pairs else ():
        _require_plain(key)
        found[key] = value
    return found


def _require_plain(key: Any) -> None:
    if not isinstance(key, str | int | float | bytes | None):
        raise ValueError(f"a {type(key).__name__} is no name")


class _Unpickler(pickle._Unpickler):
    """Reads a pickle that names no more than `_allowed_globals`.

    It is the one written in Python: that in C takes as much memory as a damaged index says. So
    does the instruction for writable bytes, which is left out, as are those for the registry of
    extensions, which goes around `find_class`, and for sets. Keys are plain, or nothing is hashed.
    """

    dispatch: ClassVar = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code not in _LEFT_OUT
    }

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._globals = _allowed_globals()
        self.storages: dict[str, _Storage] = {}

    def _check_keys(self, pairs: list[Any]) -> None:
        for key in pairs[::2]:
            _require_plain(key)

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack)
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_keys(self.stack)
        super().load_dict()

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            raise UserError(
                f"{self._path} asks for {f'{module}.{name}'!r}, which weights do not need and "
                "nothing here runs: save the state_dict alone, or take a .safetensors file"
            )
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        entries = pid if isinstance(pid, tuple) else ()
        if not all(isinstance(x, str | int | tuple | None) for x in entries) or not all(
            isinstance(x, str | int) for x in entries[:3]
        ):  # before anything is hashed or printed: a few bytes can say a tuple without end
            raise ValueError("no storage")
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or storage_type not in _STORAGE_DTYPES:
            raise ValueError(f"no storage of {storage_type}")
        _, first, count = (view and view[0]) or (key, 0, numel)
        storage = _Storage(str(key), storage_type, numel, first, count)
        if self.storages.setdefault(storage.key, storage)[:3] != storage[:3]:
            raise ValueError(f"storage {key} is declared in two ways")
        return storage


def _unpickle(file: Any, path: Path) -> tuple[Any, dict[str, _Storage]]:
    unpickler = _Unpickler(file, path)
    try:
        return unpickler.load(), unpickler.storages
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path} is damaged: its pickle cannot be read ({_words(error)})") from None


def _words(error: Exception) -> str:
    """What an exception says, without what it holds: that may be too large to be printed."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {text:.200}"


def _open_zip(path: Path, data: mmap.mmap, verify: bool) -> tuple[Any, _StorageBytes]:
    members = zip_members(path)
    roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise UserError(f"{path} is a zip file with {len(roots)} data.pkl, not one of torch.save")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise UserError(f"{path} is a TorchScript program: save its state_dict with torch")

    def member(name: str, verify: bool = True) -> np.ndarray:
        if root + name not in members:
            raise UserError(f"{path} is damaged: it lacks {root + name}")
        return _member_bytes(path, data, members[root + name], verify)

    order = (
        bytes(member("byteorder")).decode("latin1") if f"{root}byteorder" in members else "little"
    )
    if order not in ("little", "big"):
        raise UserError(f"{path} is damaged: its byte order is {order!r}")
    tree, _ = _unpickle(io.BytesIO(member("data.pkl")), path)

    @functools.cache
    def storage_bytes(storage: _Storage) -> np.ndarray:
        raw = member(f"data/{storage.key}", verify)
        size = storage.dtype.itemsize
        if raw.size != storage.numel * size:
            raise UserError(f"{path} is damaged: storage {storage.key} has {raw.size} bytes")
        if order != sys.byteorder and size > 1:
            raw = raw.view(f"u{size}").byteswap().view(np.uint8)
        return raw

    return tree, storage_bytes


def _member_bytes(path: Path, data: mmap.mmap, info: zipfile.ZipInfo, verify: bool) -> np.ndarray:
    """A member of a zip file that is stored as it is, a view of the file: [n] uint8."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(f"{path} is compressed or encrypted, which torch.save does not do")
    header = info.header_offset
    raw = None
    if data[header : header + 4] == b"PK\x03\x04" and header + 30 <= len(data):
        start = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
        if start + info.file_size <= len(data):
            raw = np.frombuffer(data, np.uint8, info.file_size, start)
    # A checksum of 0: torch was told to compute none.
    if raw is None or (verify and info.CRC and zlib.crc32(raw) != info.CRC):
        raise UserError(f"{path} is damaged at {info.filename}")
    return raw


def _open_legacy(path: Path, data: mmap.mmap) -> tuple[Any, _StorageBytes]:
    if data[:1] != pickle.PROTO or _unpickle(data, path)[0] != _MAGIC_NUMBER:
        raise UserError(f"{path} is not a file of torch.save")
    if _unpickle(data, path)[0] != _PROTOCOL_VERSION:
        raise UserError(f"{path} has another version of torch's layout than {_PROTOCOL_VERSION}")
    _unpickle(data, path)  # the machine that wrote it: storages are little-endian from every one
    tree, storages = _unpickle(data, path)
    keys, _ = _unpickle(data, path)
    starts = {}
    position = data.tell()
    for key in keys if isinstance(keys, list) else [None]:
        storage = storages.get(key) if isinstance(key, str) else None
        found = int.from_bytes(data[position : position + 8], "little")
        if storage is None or storage.numel != found:
            raise UserError(f"{path} is damaged: storage {key!r} is not what its pickle says")
        starts[key] = position + 8
        position += 8 + found * storage.dtype.itemsize
    if position > len(data):
        raise UserError(f"{path} is cut off: it has {len(data)} bytes of {position}")

    def storage_bytes(storage: _Storage) -> np.ndarray:
        if storage.key not in starts:
            raise UserError(f"{path} is damaged: it lacks storage {storage.key}")
        size = storage.numel * storage.dtype.itemsize
        return np.frombuffer(data, np.uint8, size, starts[storage.key])

    return tree, storage_bytes


def _tensor_array(tensor: _Tensor, name: str, storage_bytes: _StorageBytes) -> np.ndarray:
    storage, offset, shape, strides = tensor
    if not isinstance(storage, _Storage) or not all(
        isinstance(sizes, tuple | list) and all(type(n) is int and n >= 0 for n in sizes)
        for sizes in (shape, strides, (offset, *storage[2:]))
    ):
        raise UserError(f"{name} is damaged: it is no tensor")
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False)) + 1
    inside = len(shape) == len(strides) and storage.first + storage.count <= storage.numel
    if not inside or (math.prod(shape) and end > storage.count):
        raise UserError(f"{name} is damaged: it reaches beyond its storage")
    raw, dtype = storage_bytes(storage), storage.dtype
    try:
        start = (storage.first + offset) * dtype.itemsize if math.prod(shape) else 0
        return np.ndarray(shape, dtype, raw, start, [step * dtype.itemsize for step in strides])
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} is damaged: {error}") from None


def _numpy_array(array: _NumpyArray, name: str) -> np.ndarray:
    try:
        _, shape, dtype, fortran, data = array.state
        code = dtype.state[1] + dtype.args[0]
        if not re.fullmatch("[<>|][biufc][0-9]+", code):
            raise ValueError(f"of the dtype {code!r}")
        found = np.frombuffer(data, code).reshape(shape, order="F" if fortran else "C")
        return found.astype(found.dtype.newbyteorder("="))
    except Exception as error:  # what the pickle says may be anything
        raise UserError(f"{name} is damaged: it is no array ({error!r})") from None
