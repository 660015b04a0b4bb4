"""Features at several scales, against NumPy in float64 and the released numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import read_release
import release_names

from drifting_jax.method import features

RELEASE = Path(__file__).parents[1] / "fixtures" / "release" / "D_mae_latent.npz"
SUFFIXES = {
    "": "",
    "_mean": "/mean",
    "_std": "/std",
    **{f"_{what}_{k}": f"/{what}_{k}x{k}" for what in ("mean", "std") for k in (2, 4)},
}
multiscale = jax.jit(
    features.multiscale_features, static_argnames=("patch_sizes", "partial_patches")
)


def pooled(x: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and stds of [b, h, w, d] over squares, one by one, in float64."""
    b, h, w, d = x.shape
    means, stds = [], []
    for i in range(h // side):
        for j in range(w // side):
            square = x[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            square = square.astype(np.float64).reshape(b, side * side, d)
            means.append(square.mean(axis=1))
            stds.append(np.sqrt(square.var(axis=1) + 1e-6))
    return np.stack(means, axis=1), np.stack(stds, axis=1)


def random_map(*shape: int, seed: int = 0) -> np.ndarray:
    """Channels of different means and widths."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * rng.uniform(0.1, 3.0, shape[-1]) + rng.normal(size=shape[-1])
    return x.astype(np.float32)


def released() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Maps and all features of the released encoder, in this package's names."""
    arrays = np.load(RELEASE)
    found = {k.removeprefix("act/"): arrays[k] for k in arrays.files if k.startswith("act/")}
    images = read_release.load_x(arrays)
    expected = {"input/rms": found.pop("norm_x")}
    maps = {"input": images}
    is_map = [k for k in found if not any(k.endswith(s) for s in SUFFIXES if s)]
    for name in is_map:
        side = round(found[name].shape[1] ** 0.5)
        maps[release_names.map_name(name)] = found[name].reshape(2, side, side, -1)
        for theirs, ours in SUFFIXES.items():
            if name + theirs in found:
                expected[release_names.map_name(name) + ours] = found[name + theirs]
    return maps, expected


def test_equals_the_release():
    maps, expected = released()
    found = multiscale(maps)
    assert len(expected) == 1 + 7 * 7 - 2  # the last map is too small for squares of 4
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        scale = np.abs(value).max()
        np.testing.assert_allclose(found[name], value, atol=2e-6 * scale, err_msg=name)


def test_equals_float64_where_squares_do_not_fill_the_map():
    x = random_map(2, 5, 7, 3)
    found = multiscale({"stem": x}, patch_sizes=(2, 3), partial_patches=True)
    assert found["stem/mean_2x2"].shape == (2, 6, 3)
    for side in (2, 3):
        for what, value in zip(("mean", "std"), pooled(x, side), strict=True):
            got = found[f"stem/{what}_{side}x{side}"]
            np.testing.assert_allclose(got, value, rtol=2e-6, atol=2e-6)
    flat = x.reshape(2, 35, 3)
    np.testing.assert_array_equal(found["stem"], flat)
    whole = flat.astype(np.float64)
    np.testing.assert_allclose(found["stem/mean"][:, 0], whole.mean(1), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        found["stem/std"][:, 0], np.sqrt(whole.var(1) + 1e-6), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 6), (5, 7), (1, 8)])
def test_squares_that_do_not_divide_the_map_are_left_out(height, width):
    found = multiscale({"stage": random_map(2, height, width, 2)}, patch_sizes=(2, 3, 4))
    divide = [k for k in (2, 3, 4) if height % k == 0 and width % k == 0]
    squares = {f"stage/{what}_{k}x{k}" for k in divide for what in ("mean", "std")}
    assert set(found) == {"stage", "stage/mean", "stage/std"} | squares


def test_squares_larger_than_the_map_are_left_out():
    x = random_map(2, 3, 8, 2)
    found = multiscale({"stage": x}, patch_sizes=(2, 4), partial_patches=True)
    assert set(found) == {"stage", *(f"stage/{w}" for w in ("mean", "std", "mean_2x2", "std_2x2"))}
    without = multiscale({"stage": random_map(2, 3, 8, 2)}, patch_sizes=())
    assert set(without) == {"stage", "stage/mean", "stage/std"}


def test_joint_statistics_stand_side_by_side():
    a, b = random_map(2, 4, 4, 3), random_map(2, 1, 1, 5)
    apart = multiscale({"a": a, "b": b, "input": a})
    joint = jax.jit(lambda x: features.joint_features(features.multiscale_features(x)))(
        {"a": a, "b": b, "input": a}
    )
    parts = ("a", "a/mean", "a/std", "a/mean_2x2", "a/std_2x2", "a/mean_4x4", "a/std_4x4")
    assert set(joint) == {"a/joint", "b/joint", "input/rms"}
    np.testing.assert_array_equal(joint["a/joint"], np.concatenate([apart[x] for x in parts], 1))
    np.testing.assert_array_equal(joint["input/rms"], apart["input/rms"])


def test_one_location_has_no_std():
    assert set(multiscale({"stage": random_map(2, 1, 1, 4)})) == {"stage", "stage/mean"}


def test_input_gives_its_root_mean_square_alone():
    x = random_map(3, 4, 4, 5)
    found = multiscale({"input": x})
    expected = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=(1, 2)) + 1e-6)[:, None]
    assert set(found) == {"input/rms"}
    np.testing.assert_allclose(found["input/rms"], expected, rtol=2e-6)


def test_pooling_of_bfloat16_is_float32():
    x = jnp.asarray(random_map(2, 8, 8, 4), jnp.bfloat16)
    found = multiscale({"stem": x, "input": x})
    assert found["stem"].dtype == jnp.bfloat16
    assert {v.dtype for k, v in found.items() if k != "stem"} == {jnp.dtype(jnp.float32)}
    mean, std = pooled(np.asarray(x, np.float64), 4)
    np.testing.assert_allclose(found["stem/mean_4x4"], mean, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found["stem/std_4x4"], std, rtol=2e-6, atol=2e-6)


def test_std_keeps_its_digits_beside_a_large_mean():
    x = 1e3 + random_map(1, 4, 4, 2)
    expected = np.sqrt(x.astype(np.float64).var(axis=(1, 2)) + 1e-6)
    np.testing.assert_allclose(multiscale({"m": x})["m/std"][:, 0], expected, rtol=1e-4)


def test_gradient_of_a_constant_map_is_finite():
    gradient = jax.grad(lambda x: sum(v.sum() for v in multiscale({"m": x, "input": x}).values()))
    assert np.isfinite(gradient(jnp.zeros((1, 4, 4, 2)))).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_raw_is_the_sample_in_one_vector(dtype):
    x = jnp.asarray(random_map(2, 3, 4, 5), dtype)
    found = features.raw_features(x)
    assert set(found) == {"raw"} and found["raw"].dtype == dtype
    np.testing.assert_array_equal(found["raw"], np.asarray(x).reshape(2, 1, 60))
