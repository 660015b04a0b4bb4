"""Reads the reference numbers of tests/fixtures/release: arrays, parameters and metadata."""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "release"
ARTIFACTS = FOLDER / "artifacts"


def load(name: str) -> Any:
    """The arrays of one file, such as "A_drift_loss.npz"."""
    return np.load(FOLDER / name)


def meta(arrays: Any, key: str) -> Any:
    """A JSON entry, such as "config"."""
    return json.loads(str(arrays[key]))


def load_x(arrays: Any) -> np.ndarray:
    """Inputs that are stored as int8 and a scale."""
    return arrays["in/x_int8"].astype(np.float32) * arrays["in/x_scale"]


def load_params(path: str | Path) -> dict[str, np.ndarray]:
    """{the release's parameter path: float32 array} of a file, which may point to another one."""
    path = FOLDER / path
    arrays = np.load(path)
    if "params_from" in arrays:
        source = path.parent / meta(arrays, "params_from")
        if source.suffix == ".xz":
            return read_msgpack(lzma.open(source).read())
        return load_params(source)
    params = {name[7:]: arrays[name] for name in arrays.files if name.startswith("params/")}
    for name in arrays.files:
        if name.startswith("pq/"):  # quantised: offset + q·scale, exact in float32
            scale, offset = arrays["ps/" + name[3:]]
            params[name[3:]] = (arrays[name].astype(np.float32) * scale + offset).astype(np.float32)
    return params


def read_msgpack(raw: bytes) -> dict[str, np.ndarray]:
    """Decodes flax's msgpack without flax, flat."""

    def array(code: int, data: bytes) -> Any:
        assert code == 1, f"unexpected extension {code}"
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        return np.frombuffer(buffer, dtype=np.dtype(dtype.decode())).reshape(shape)

    tree = msgpack.unpackb(raw, ext_hook=array, raw=False, strict_map_key=False)
    flat: dict[str, np.ndarray] = {}

    def walk(node: dict, path: list[str]) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, [*path, name])
            else:
                flat["/".join([*path, name])] = value

    walk(tree, [])
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def unpacked(name, folder):
    """A copy of a stored artifact whose parameters may lie there compressed."""
    target = folder / name / "params_ema"
    target.mkdir(parents=True)
    for path in (ARTIFACTS / name / "params_ema").iterdir():
        if path.suffix == ".xz":
            (target / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copy(path, target)
    return folder / name
