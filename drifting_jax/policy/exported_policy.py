"""Acts without the package that trained it: jax, flatbuffers, numpy and the files beside this one.

    from policy import Policy            # run in this folder, or put it on the path

    policy = Policy()
    actions = policy.act(observations, seed=0)

config.json describes the shapes.
"""

import json
from pathlib import Path

import jax
import jax.export
import numpy as np

HERE = Path(__file__).parent


class Policy:
    """The exported policy.

    Attributes:
      config: config.json.
    """

    def __init__(self, folder=HERE):
        folder = Path(folder)
        self.config = json.loads((folder / "config.json").read_text("utf-8"))
        self._sampler = jax.export.deserialize(bytearray((folder / "policy.jax").read_bytes()))
        with np.load(folder / "weights.npz") as weights:
            self._weights = jax.device_put(dict(weights))

    def predict(self, observations, *, seed, indices=None):
        """Chunks of actions [n, H, d_a] float32 of observations [n, h, d_o], the oldest first.

        Row k depends on observations[k], the seed (0 to 2**32 - 1) and indices[k] (default: k).
        """
        observations = np.asarray(observations, np.float32)
        shape, rows = tuple(self.config["observations"]), self.config["rows"]
        if observations.ndim != 3 or observations.shape[1:] != shape:
            raise ValueError(f"observations must be [n, {shape[0]}, {shape[1]}]")
        n = len(observations)
        indices = np.arange(n) if indices is None else np.asarray(indices)
        parts = [np.zeros((0, *self.config["actions"]), np.float32)]
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            missing = rows - len(observations[part])
            padded = np.pad(observations[part], ((0, missing), (0, 0), (0, 0)))
            numbers = np.pad(indices[part].astype(np.uint32), (0, missing))
            found = self._sampler.call(self._weights, padded, numbers, np.uint32(seed))
            parts.append(np.asarray(found)[: rows - missing])
        return np.concatenate(parts)

    def act(self, observations, *, seed, indices=None):
        """The actions to carry out [n, action horizon, d_a]: a part of `predict`."""
        first, last = self.config["executed"]
        return self.predict(observations, seed=seed, indices=indices)[:, first:last]
