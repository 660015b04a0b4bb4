"""Reads PyTorch checkpoints without torch and without running any code in them.

A checkpoint holds a pickle (`unpickle`) that says in which part of the file each tensor lies. The
arrays are made once the pickle has been read.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.unpickle import (
    UNTYPED_DTYPES,
    PickledArray,
    PickledTensor,
    Storage,
    numpy_array,
    unpickle,
)
from drifting_jax.weights.reading import flatten, map_file, zip_members

_MAGIC_NUMBER, _PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001
_MOST_REPEATED = 2**20  # most entries of a tensor that repeats fewer numbers, as of `expand`
_StorageBytes = Callable[[Storage], np.ndarray]


def read_pth(path: str | os.PathLike, *, verify: bool = True) -> dict[str, np.ndarray]:
    """The tensors of a file of `torch.save`: a zip, or the layout before torch 1.6.

    Nested mappings and lists are flattened: `{"state_dict": {"conv.weight": …}, "epoch": 3}` gives
    "state_dict/conv.weight". What is not a tensor is left out. `files.select` takes one group.

    Args:
      path: the file; its content decides the layout.
      verify: whether to check the checksums of a zip, for which the whole file is read.

    Returns:
      {name: read-only array}, bfloat16 as `ml_dtypes.bfloat16`. The arrays are views of the file,
      which is mapped into memory: it must not change while they are in use.

    Raises:
      UserError: the file is of another kind, cut off or damaged, or it names a class that weights
        do not need.
    """
    data = map_file(path := Path(path))
    if data[:4] == b"PK\x03\x04":
        tree, storage_bytes = _open_zip(path, data, verify)
    elif data[257:262] == b"ustar":
        raise UserError(
            f"{path} is a tar: unpack it if it is an archive; if it is in torch's oldest layout, "
            "load and save it with torch"
        )
    else:
        tree, storage_bytes = _open_legacy(path, data)
    leaves = flatten(tree, (PickledTensor, PickledArray), path)
    if not leaves or "" in leaves:
        raise UserError(f"{path} holds no mapping from names to tensors")
    return {
        name: numpy_array(leaf, f"{name} of {path}")
        if isinstance(leaf, PickledArray)
        else _tensor_array(leaf, f"{name} of {path}", storage_bytes)
        for name, leaf in leaves.items()
    }


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
    tree, _ = unpickle(io.BytesIO(member("data.pkl").data), path)

    @functools.cache
    def storage_bytes(storage: Storage) -> np.ndarray:
        raw = member(f"data/{storage.key}", verify)
        size = storage.dtype.itemsize
        if raw.size != storage.numel * size:
            raise UserError(f"{path} is damaged: storage {storage.key} has {raw.size} bytes")
        if order != sys.byteorder and size > 1:
            raw = raw.view(f"u{size}").byteswap().view(np.uint8)
        return raw

    return tree, storage_bytes


def _member_bytes(path: Path, data: mmap.mmap, info: zipfile.ZipInfo, verify: bool) -> np.ndarray:
    """The bytes of an uncompressed member of a zip file, as a view of the file: [n] uint8."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise UserError(f"{path} is compressed or encrypted, which torch.save does not do")
    header = info.header_offset
    raw = None
    if data[header : header + 4] == b"PK\x03\x04" and header + 30 <= len(data):
        start = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
        if start + info.file_size <= len(data):
            raw = np.frombuffer(data, np.uint8, info.file_size, start)
    # A checksum of 0 means that torch was told to compute none.
    if raw is None or (verify and info.CRC and zlib.crc32(raw.data) != info.CRC):
        raise UserError(f"{path} is damaged at {info.filename}")
    return raw


def _open_legacy(path: Path, data: mmap.mmap) -> tuple[Any, _StorageBytes]:
    if data[:1] != pickle.PROTO or unpickle(data, path)[0] != _MAGIC_NUMBER:
        raise UserError(f"{path} is not a file of torch.save")
    if unpickle(data, path)[0] != _PROTOCOL_VERSION:
        raise UserError(f"{path} has another version of torch's layout than {_PROTOCOL_VERSION}")
    unpickle(data, path)  # describes the machine; storages are little-endian in any case
    tree, storages = unpickle(data, path)
    keys, _ = unpickle(data, path)
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

    def storage_bytes(storage: Storage) -> np.ndarray:
        if storage.key not in starts:
            raise UserError(f"{path} is damaged: it lacks storage {storage.key}")
        size = storage.numel * storage.dtype.itemsize
        return np.frombuffer(data, np.uint8, size, starts[storage.key])

    return tree, storage_bytes


def _tensor_array(tensor: PickledTensor, name: str, storage_bytes: _StorageBytes) -> np.ndarray:
    storage, offset, shape, strides, untyped = tensor
    if not isinstance(storage, Storage) or not all(
        isinstance(sizes, tuple | list) and all(type(n) is int and n >= 0 for n in sizes)
        for sizes in (shape, strides, (offset, *storage[2:]))
    ):
        raise UserError(f"{name} is damaged: it is no tensor")
    dtype, unit = storage.dtype, 1  # numbers of the storage in one of the tensor
    if storage.kind == "UntypedStorage" and untyped is not None:
        if not isinstance(untyped, str) or untyped not in UNTYPED_DTYPES:
            raise UserError(f"{name} is damaged: it has no dtype")
        dtype = UNTYPED_DTYPES[untyped]
        unit = dtype.itemsize
    count = storage.length // unit
    end = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False)) + 1
    inside = len(shape) == len(strides) and storage.first + storage.length <= storage.numel
    if not inside or (math.prod(shape) and end > count):
        raise UserError(f"{name} is damaged: it reaches beyond its storage")
    if math.prod(shape) > max(count, _MOST_REPEATED):
        raise UserError(f"{name} is damaged: it has {math.prod(shape)} entries of {count} numbers")
    raw, first = storage_bytes(storage), storage.first * storage.dtype.itemsize
    try:
        start = first + offset * dtype.itemsize if math.prod(shape) else 0
        return np.ndarray(shape, dtype, raw, start, [step * dtype.itemsize for step in strides])
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} is damaged: {error}") from None
