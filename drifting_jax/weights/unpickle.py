"""Reads pickles of weights without running any code that they name.

A pickle may name any Python function and have it called. Here a short list of names stands for
functions that only record their arguments; any other name is an error.
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
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "UntypedStorage": np.dtype(np.uint8),  # of tensors that say their dtype themselves
}
# Dtypes of tensors in a storage without one, which torch has had since 2.1.
UNTYPED_DTYPES = {
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
}


class Storage(NamedTuple):
    """`count` numbers of the `numel` that are stored under `key`, from number `first` on."""

    key: str
    kind: str
    numel: int
    first: int
    count: int

    @property
    def dtype(self) -> np.dtype:
        return _STORAGE_DTYPES[self.kind]


class PickledTensor(NamedTuple):
    """What a pickle says about a tensor, not checked yet.

    `dtype` is one of `UNTYPED_DTYPES` where the storage has none, and None elsewhere.
    """

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: Any = None


class _PickledDtype:
    """What a pickle says about a NumPy dtype, not checked yet."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class PickledArray(_PickledDtype):
    """What a pickle says about a NumPy array, not checked yet."""


def allowed_globals(most: int) -> dict[tuple[str, str], Any]:
    """{(module, name): stand-in} of all that a checkpoint may name.

    Stand-ins are made anew for each checkpoint, because it may set attributes of them. Together
    they make at most `most` bytes and entries: a few bytes of a pickle can name a large object many
    times.
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

    class Settings:
        """An object beside the weights: arguments of a program, a device. Nothing of it is kept."""

        def __init__(self, *_: Any):
            pass

        def __setstate__(self, _: Any) -> None:
            pass

    plain = (*_STORAGE_DTYPES, *UNTYPED_DTYPES)
    names = {("torch", name): name for name in plain} | {
        ("collections", "OrderedDict"): ordered,
        ("torch", "Size"): size,
        ("torch._utils", "_rebuild_tensor"): lambda *args: PickledTensor(*args[:4]),
        ("torch._utils", "_rebuild_tensor_v2"): lambda *args: PickledTensor(*args[:4]),
        ("torch._utils", "_rebuild_tensor_v3"): lambda *args: PickledTensor(*args[:4])._replace(
            dtype=args[6]
        ),
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch.storage", "UntypedStorage"): "UntypedStorage",
        ("torch", "device"): Settings,
        ("argparse", "Namespace"): Settings,
        # A key of a mapping in checkpoints of Lightning, as those of Stable Diffusion are.
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): "ModelCheckpoint",
        ("numpy", "dtype"): lambda *args: _PickledDtype(*args),
        ("numpy", "ndarray"): None,
        ("_codecs", "encode"): encode,  # bytes, in protocol 2
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = lambda *_: None
        names[module, "_reconstruct"] = lambda *args: PickledArray(*args)
    return names


# Instructions that are refused: writable bytes, the registry of extensions, and sets, which hash
# their entries.
_LEFT_OUT = b"".join(
    getattr(pickle, name)
    for name in ["BYTEARRAY8", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET"]
)


def _ordered(*pairs: Any) -> collections.OrderedDict:
    """An OrderedDict whose keys are plain, since hashing a nested tuple may take for ever."""
    found = collections.OrderedDict()
    for key, value in pairs[0] if pairs else ():
        _require_plain(key)
        found[key] = value
    return found


def _require_plain(key: Any) -> None:
    if not isinstance(key, str | int | float | bytes | None):
        raise ValueError(f"a {type(key).__name__} is no name")


class _Unpickler(pickle._Unpickler):
    """Reads a pickle that names nothing but `allowed_globals`.

    It extends the unpickler that is written in Python: the one in C allocates as much memory as a
    damaged index says. The instruction for writable bytes does so too, and is refused, as are those
    for the registry of extensions, which bypasses `find_class`, and for sets. Keys that are not
    plain are refused before they are hashed.
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
        ):  # before anything is hashed or printed: a few bytes can describe an endless tuple
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
    """The content of a pickle of torch, and {key: storage} of its tensors.

    Args:
      file: opened for reading, at the first byte of the pickle; left after its last.
      path: of the file, for its size and for errors.

    Raises:
      UserError: the pickle is damaged, or names something that weights do not need.
    """
    unpickler = _Unpickler(file, path)
    try:
        return unpickler.load(), unpickler.storages
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{path} is damaged: its pickle cannot be read ({_words(error)})") from None


def _words(error: Exception) -> str:
    """The text of an exception without its other arguments, which may be too large to print."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {text:.200}"
