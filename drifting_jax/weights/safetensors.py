"""Reads and writes the .safetensors format."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.files import write_bytes
from drifting_jax.weights.reading import map_file, read_json

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file by name, as read-only views of it.

    The file is 8 bytes with the length of the header, the header, which says where each tensor
    lies, and the data.

    Raises:
      UserError: it is cut off or damaged, or holds numbers of a dtype that NumPy has not.
    """
    data = map_file(path)
    start = 8 + int.from_bytes(data[:8], "little")
    if start > len(data):
        raise UserError(f"{path} is cut off, or no .safetensors: {len(data)} bytes of {start}")
    header = read_json(path, 8, start)
    header.pop("__metadata__", None)
    found, position, name = {}, 0, "its header"
    try:
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if entry["dtype"] not in _DTYPES:
                raise UserError(
                    f"{name} of {path} has the dtype {entry['dtype']!r:.40}, which cannot be read "
                    f"here: save the file as one of {', '.join(_DTYPES)}"
                )
            dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
            size = math.prod(shape) * dtype.itemsize
            if entry["data_offsets"] != [position, position + size]:
                raise ValueError(entry)
            found[name] = np.ndarray(shape, dtype, data, start + position if size else 0)
            position += size
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is cut off or damaged at {name} ({error!r:.200})") from None
    if start + position != len(data):
        raise UserError(f"{path} is damaged: {len(data) - start - position} bytes too many")
    return found


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file that `read_safetensors` and the package safetensors read, whole or not at all.

    Args:
      path: of the file.
      tensors: arrays by name, of dtypes that the format has.
    """
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    parts, end = [], 0
    for name, tensor in sorted(tensors.items()):
        parts.append(np.ascontiguousarray(tensor).tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    write_bytes(path, b"".join([len(text).to_bytes(8, "little"), text, *parts]))
