"""Pickles of weights, read without running anything that they say.

A pickle may name any Python function to be called. Here names are looked up in a short list of
stand-ins that only take notes; whatever else is named is an error.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from drifting_jax.errors import UserError

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


class Storage(NamedTuple):
    """`count` numbers, from number `first` on, of the `numel` stored under a key."""

    key: str
    kind: str
    numel: int
    first: int
    count: int

    @property
    def dtype(self) -> np.dtype:
        return _STORAGE_DTYPES[self.kind]


class PickledTensor(NamedTuple):
    """What a pickle says of a tensor; nothing of it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _PickledDtype:
    """What a pickle says of a NumPy dtype; nothing of it is checked yet."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledArray(_PickledDtype):
    """The same of an array."""


def allowed_globals(most: int) -> dict[tuple[str, str], Any]:
    """What a checkpoint may name: made anew for each, as it may set attributes of what it gets.

    Together these make no more than `most` bytes and entries: a few bytes of a pickle can name a
    large object many times.
    """

    def spend(count: int) -> None:
        nonlocal most
        most -= count
        if most < 0:
            raise ValueError("it grows without end")

    def encode(text: str, _: str) -> bytes:
        spend(len(text))
        return text.encode("latin1")

    def size(entries: Any = ()) -> tuple:
        spend(len(entries))
        return tuple(entries)

    def ordered(*pairs: Any) -> collections.OrderedDict:
        spend(len(pairs[0]) if pairs else 0)
        return _ordered(*pairs)

    names = {("torch", name): name for name in _STORAGE_DTYPES} | {
        ("collections", "OrderedDict"): ordered,
        ("torch", "Size"): size,
        ("torch._utils", "_rebuild_tensor"): lambda *args: PickledTensor(*args[:4]),
        ("torch._utils", "_rebuild_tensor_v2"): lambda *args: PickledTensor(*args[:4]),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("numpy", "dtype"): lambda *args: _PickledDtype(*args),
        ("numpy", "ndarray"): None,
        ("_codecs", "encode"): encode,  # bytes, in protocol 2
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = lambda *_: None
        names[module, "_reconstruct"] = lambda *args: PickledArray(*args)
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
    """Reads a pickle that names no more than `allowed_globals`.

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
        self._globals = allowed_globals(path.stat().st_size + 2**20)
        self.storages: dict[str, Storage] = {}

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

    def persistent_load(self, pid: Any) -> Storage:
        entries = pid if isinstance(pid, tuple) else ()
        if not all(isinstance(x, str | int | tuple | None) for x in entries) or not all(
            isinstance(x, str | int) for x in entries[:3]
        ):  # before anything is hashed or printed: a few bytes can say a tuple without end
            raise ValueError("no storage")
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or storage_type not in _STORAGE_DTYPES:
            raise ValueError(f"no storage of {storage_type}")
        _, first, count = (view and view[0]) or (key, 0, numel)
        storage = Storage(str(key), storage_type, numel, first, count)
        if self.storages.setdefault(storage.key, storage)[:3] != storage[:3]:
            raise ValueError(f"storage {key} is declared in two ways")
        return storage


def unpickle(file: Any, path: Path) -> tuple[Any, dict[str, Storage]]:
    """What a pickle of torch holds, and the storages that its tensors name.

    Args:
      file: opened for reading, at the pickle's first byte; left after its last.
      path: what to call it in an error.

    Raises:
      UserError: it is damaged, or names what weights do not need.
    """
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
