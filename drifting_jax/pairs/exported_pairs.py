"""Samples without the package that trained them: jax, flatbuffers, numpy and the files beside this.

    python sample.py --conditions=FILE.npz --per_class=8 --out=samples.npz

    from sample import Sampler            # run in this folder, or put it on the path
    images = Sampler().sample(conditions, seed=0)

config.json describes the shapes.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


class Sampler:
    """The exported generator.

    Attributes:
      config: config.json.
    """

    def __init__(self, folder=HERE):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self._sampler = jax.export.deserialize(bytearray((folder / "sampler.jax").read_bytes()))
        with np.load(folder / "weights.npz") as weights:
            self._weights = jax.device_put(dict(weights))

    def sample(self, conditions, *, seed, indices=None):
        """Images [n, h, w, c] of conditions [n, ...], uint8 or float32 from -1 to 1.

        Image k depends on conditions[k], the seed (0 to 2**32 - 1) and indices[k] (default: k).
        """
        conditions = np.asarray(conditions, np.float32)
        conditions = conditions[:, None] if conditions.ndim == 1 else conditions
        rows, pairs, n = self.config["rows"], self.config["pairs"], len(conditions)
        if list(conditions.shape[1:]) != pairs["condition"]:
            raise ValueError(f"conditions must be [n, ...] of {pairs['condition']}")
        if not np.isfinite(conditions).all():
            raise ValueError("conditions must be finite")
        indices = np.arange(n) if indices is None else np.asarray(indices)
        if indices.shape != (n,):
            raise ValueError(f"indices must be [{n}]")
        parts = [np.zeros((0, *pairs["image"]), np.uint8 if pairs["makes_bytes"] else np.float32)]
        for start in range(0, n, rows):
            some = conditions[start : start + rows]
            missing = rows - len(some)
            padded = np.pad(some, [(0, missing)] + [(0, 0)] * (some.ndim - 1))
            numbers = np.pad(indices[start : start + rows].astype(np.uint32), (0, missing))
            found, finite = self._sampler.call(self._weights, padded, numbers, np.uint32(seed))
            if not np.all(np.asarray(finite)[: len(some)]):
                raise ValueError("the images are not finite: the training diverged")
            parts.append(np.asarray(found)[: len(some)])
        return np.concatenate(parts)


def main():
    """Reads the flags, samples and writes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--conditions", required=True, help=".npz with the array condition, .npy")
    parser.add_argument("--out", default="samples.npz", help=".npz: arr_0 images, arr_1 conditions")
    parser.add_argument("--per_class", type=int, default=8, help="samples of each condition")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    if flags.per_class < 1 or not 0 <= flags.seed < 2**32 or not flags.out.endswith(".npz"):
        parser.error("--per_class is at least 1, --seed from 0 to 2**32 - 1, --out ends in .npz")
    try:
        found = np.load(flags.conditions)
        conditions = found if isinstance(found, np.ndarray) else found["condition"]
        numbers = np.repeat(np.arange(len(conditions)), flags.per_class)
        indices = np.tile(np.arange(flags.per_class), len(conditions))
        images = Sampler().sample(conditions[numbers], seed=flags.seed, indices=indices)
        np.savez_compressed(flags.out, arr_0=images, arr_1=numbers)
    except Exception as error:  # damaged files and other versions of jax raise many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    print(f"{len(images)} samples: {flags.out}")


if __name__ == "__main__":
    main()
