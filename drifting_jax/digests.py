"""Digests: what tells one set of weights, images or settings from another."""

import hashlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict


def fingerprint(variables: Any) -> str:
    """16 hexadecimal digits that tell one set of weights from another."""
    digest = hashlib.sha256()
    for path, array in sorted(flatten_dict(variables, sep="/").items()):
        digest.update(path.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
