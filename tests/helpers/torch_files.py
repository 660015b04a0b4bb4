"""Checkpoints of torch, written byte by byte: zip files and the legacy layout, values and views."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

KINDS = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
KIND_OF = {np.dtype(dtype): kind for kind, dtype in KINDS.items()}
MAGIC = 0x1950A86A20F9469CFC6C
LAYOUTS = ["zip", "legacy"]


class Storage:
    """Numbers that lie in a file once, under a key; a view of them in the legacy layout."""

    def __init__(self, values, key="0", view=None):
        self.values, self.key, self.view = np.asarray(values), key, view
        self.kind = ("torch", KIND_OF[self.values.dtype])


class Named:
    """Pickled as the name of something in a module: the pickle reads GLOBAL."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of something: the pickle reads REDUCE, and BUILD if there is a state."""

    def __init__(self, module, name, *args, state=None):
        self.function, self.args, self.state = Named(module, name), args, state


class Pickler(pickle._Pickler):
    """Writes the classes above with the instructions that stand for them."""

    legacy = False

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind = Named(*obj.kind)
        view = (obj.view,) if self.legacy else ()
        return ("storage", kind, obj.key, "cpu", obj.values.size, *view)

    def save(self, obj, *args, **kwargs):
        if isinstance(obj, Named):
            return self.write(b"c%s\n%s\n" % (obj.module.encode(), obj.name.encode()))
        if isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
            return None
        return super().save(obj, *args, **kwargs)


def dumps(tree, *, legacy=False, protocol=2) -> bytes:
    file = io.BytesIO()
    pickler = Pickler(file, protocol)
    pickler.legacy = legacy
    pickler.dump(tree)
    return file.getvalue()


def tensor(values, key="0", *, offset=0, shape=None, strides=None, view=None):
    """A tensor of a storage of its own, all of it in order unless said otherwise."""
    values = np.asarray(values)
    shape = values.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Storage(values.reshape(-1), key, view)
    hooks = Call("collections", "OrderedDict")
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, hooks)


def storages_in(tree) -> list[Storage]:
    if isinstance(tree, Storage):
        return [tree]
    if isinstance(tree, Call):
        return storages_in((tree.args, tree.state))
    if isinstance(tree, dict):
        return storages_in(tuple(tree.values()))
    return [s for x in tree for s in storages_in(x)] if isinstance(tree, tuple | list) else []


def write_zip(
    path, tree, *, pickled=None, storages=None, byteorder="little", root="model", crc=True
):
    """The layout since torch 1.6, each member moved to a multiple of 64 bytes as torch does."""
    storages = storages_in(tree) if storages is None else storages
    pickled = dumps(tree) if pickled is None else pickled
    members = {"data.pkl": pickled, "byteorder": byteorder.encode(), "version": b"3\n"}
    for storage in storages:
        values = storage.values
        if byteorder == "big":
            values = values.view(f"u{values.dtype.itemsize}").byteswap()
        members[f"data/{storage.key}"] = values.tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(f"{root}/{name}")
            start = archive.fp.tell() + 30 + len(info.filename) + 4
            info.extra = b"FB" + struct.pack("<H", -start % 64) + b"Z" * (-start % 64)
            archive.writestr(info, data)
    if not crc:
        data = bytearray(Path(path).read_bytes())
        for info in zipfile.ZipFile(path).infolist():
            data[info.header_offset + 14 : info.header_offset + 18] = bytes(4)
        position = data.find(b"PK\x01\x02")
        while position >= 0:
            data[position + 16 : position + 20] = bytes(4)
            position = data.find(b"PK\x01\x02", position + 4)
        Path(path).write_bytes(data)
    return path


def legacy_bytes(tree, *, first=None, info=None, pickled=None, protocol=1001) -> bytes:
    """The layout before torch 1.6: five pickles, then the storages with their lengths."""
    storages = {storage.key: storage.values for storage in storages_in(tree)}
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    return b"".join(
        [
            dumps(MAGIC) if first is None else first,
            dumps(protocol),
            dumps(machine) if info is None else info,
            dumps(tree, legacy=True) if pickled is None else pickled,
            dumps(sorted(storages)),
            *(
                struct.pack("<q", storages[k].size) + storages[k].tobytes()
                for k in sorted(storages)
            ),
        ]
    )


def write(path, tree, layout):
    if layout == "zip":
        return write_zip(path, tree)
    path.write_bytes(legacy_bytes(tree))
    return path
