"""Features for the loss at several scales: {name: [b, t, d]} from named maps (3.4, A.5)."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

_EPSILON = 1e-6


def location_features(feature_map: jax.Array) -> jax.Array:
    """The locations of a map: [b, h, w, d] -> [b, h·w, d]."""
    b, h, w, d = feature_map.shape
    return feature_map.reshape(b, h * w, d)


def root_mean_square(feature_map: jax.Array) -> jax.Array:
    """Root mean square of each channel over the map: [b, h, w, d] -> [b, 1, d] float32."""
    x = _at_least_float32(location_features(feature_map))
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=1, keepdims=True) + _EPSILON)


def patch_mean_and_std(feature_map: jax.Array, patch_size: int) -> tuple[jax.Array, jax.Array]:
    """Mean and population std of non-overlapping patches.

    Rows and columns at the end that do not fill a patch are ignored.

    Args:
      feature_map: [b, h, w, d], patch_size <= h, w.

    Returns:
      Two [b, (h // patch_size)·(w // patch_size), d], at least float32.
    """
    b, h, w, d = feature_map.shape
    rows, columns = h // patch_size, w // patch_size
    x = feature_map[:, : rows * patch_size, : columns * patch_size]
    # [b, rows, patch row, columns, patch column, d]
    x = _at_least_float32(x).reshape(b, rows, patch_size, columns, patch_size, d)
    mean = jnp.mean(x, axis=(2, 4), keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=(2, 4)) + _EPSILON)
    return mean.reshape(b, rows * columns, d), std.reshape(b, rows * columns, d)


def global_mean_and_std(feature_map: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and population std of the whole map: [b, h, w, d] -> two [b, 1, d]."""
    x = _at_least_float32(location_features(feature_map))
    mean = jnp.mean(x, axis=1, keepdims=True)
    return mean, jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=1, keepdims=True) + _EPSILON)


def multiscale_features(
    maps: Mapping[str, jax.Array],
    *,
    patch_sizes: Sequence[int] = (2, 4),
    partial_patches: bool = False,
) -> dict[str, jax.Array]:
    """All features of the maps of an encoder (A.5).

    A map `stage1` gives its locations as `stage1`, `stage1/mean`, `stage1/std`, and for each patch
    size that divides the map `stage1/mean_2x2` and `stage1/std_2x2`. The map `input`, the
    patchified input of the encoder, gives only `input/rms`. A map of one location has no std.

    Args:
      maps: {name: [b, h, w, d]}.
      patch_sizes: sides of the square patches.
      partial_patches: whether a patch size that does not divide the sides of a map gives features
        of the whole patches in it. The released code leaves such features out.

    Returns:
      {name: [b, t, d]}; means and stds at least float32.
    """
    features = {}
    for name, feature_map in maps.items():
        if name == "input":
            features["input/rms"] = root_mean_square(feature_map)
            continue
        features[name] = location_features(feature_map)
        mean, std = global_mean_and_std(feature_map)
        features[f"{name}/mean"] = mean
        if features[name].shape[1] > 1:
            features[f"{name}/std"] = std
        for size in patch_sizes:
            height, width = feature_map.shape[1:3]
            divides = height % size == 0 and width % size == 0
            if divides or (partial_patches and size <= min(height, width)):
                mean, std = patch_mean_and_std(feature_map, size)
                features[f"{name}/mean_{size}x{size}"] = mean
                features[f"{name}/std_{size}x{size}"] = std
    return features


def joint_features(features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """All features of a map side by side, as one feature with one S and one norm of the drift.

    Args:
      features: {name: [b, t, d]} of `multiscale_features`. The names of one map are the same up to
        their first "/", and so are their channels.

    Returns:
      {"stage1/joint": [b, Σ t, d], ...}; a map with one feature alone keeps it under its name.
    """
    maps: dict[str, list[str]] = {}
    for name in features:
        maps.setdefault(name.partition("/")[0], []).append(name)
    found = {}
    for name, parts in maps.items():
        if len(parts) == 1:
            found[parts[0]] = features[parts[0]]
            continue
        dtype = jnp.result_type(*(features[part] for part in parts))
        found[f"{name}/joint"] = jnp.concatenate(
            [features[part].astype(dtype) for part in parts], axis=1
        )
    return found


def raw_features(images: jax.Array) -> dict[str, jax.Array]:
    """The sample itself as one vector: {"raw": [b, 1, h·w·c]}."""
    return {"raw": images.reshape(images.shape[0], 1, -1)}


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
