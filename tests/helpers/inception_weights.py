"""Tensors of FID's Inception-v3 by the rule of tests/fixtures/torch/inception, and a file."""

import json
import zlib
from pathlib import Path

import numpy as np
from torch_files import tensor, write_zip

FOLDER = Path(__file__).parents[1] / "fixtures" / "torch" / "inception"
RECORD = json.loads((FOLDER / "keys_inception.json").read_text())
KEYS = RECORD["keys"]

_VALUES = {
    "conv": lambda n: n * np.sqrt(2 / np.prod(n.shape[1:])),
    "bn_weight": lambda n: 1 + 0.1 * n,
    "bn_bias": lambda n: 0.1 * n,
    "bn_mean": lambda n: 0.1 * n,
    "bn_var": lambda n: np.exp(0.2 * n),
    "fc_weight": lambda n: n * np.sqrt(1 / 2048),
    "fc_bias": lambda n: 0.1 * n,
}


def draw_tensor(name: str) -> np.ndarray:
    """The tensor of that name, float32; a counter is an int64 0."""
    kind, shape = KEYS[name]["kind"], KEYS[name]["shape"]
    if kind == "num_batches_tracked":
        return np.zeros((), np.int64)
    seed = zlib.crc32(name.encode()) + RECORD["seed"]
    noise = np.random.default_rng(seed).standard_normal(shape)
    return _VALUES[kind](noise).astype(np.float32)


def draw_tensors() -> dict[str, np.ndarray]:
    """All 566 tensors by name."""
    return {name: draw_tensor(name) for name in KEYS}


def empty_tensors() -> dict[str, np.ndarray]:
    """Tensors of those names and shapes that are zero and take no memory."""
    found = {name: np.broadcast_to(np.float32(0), entry["shape"]) for name, entry in KEYS.items()}
    counters = (name for name in KEYS if name.endswith("num_batches_tracked"))
    return found | dict.fromkeys(counters, np.zeros((), np.int64))


def write_file(path: Path) -> dict[str, np.ndarray]:
    """Writes a checkpoint of torch with the published names, and a classifier of training.

    All tensors lie in one storage, each a number further than the last, so that the file is small.
    Returns what it holds, counters left out.
    """
    values = np.linspace(1, 2, 3_000_000, dtype=np.float32)
    tree, found = {"AuxLogits.conv0.bn.bias": tensor(values, shape=(3,))}, {}
    for i, (name, entry) in enumerate(KEYS.items()):
        shape = tuple(entry["shape"])
        if name.endswith("num_batches_tracked"):
            tree[name] = tensor(np.zeros(1, np.int64), "1", shape=())
            continue
        tree[name] = tensor(values, offset=i, shape=shape)
        found[name] = values[i : i + int(np.prod(shape))].reshape(shape)
    write_zip(path, tree)
    return found
