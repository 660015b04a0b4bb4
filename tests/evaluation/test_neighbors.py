import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from drifting_jax.distributed.meshes import make_mesh
from drifting_jax.evaluation.metrics import blocks, distances
from drifting_jax.evaluation.metrics.distances import BlockSizes
from drifting_jax.evaluation.metrics.neighbors import (
    manifold_metrics,
    nearest_distances,
    nearest_indices,
    precision_recall,
)

FIXTURES = Path(__file__).parents[1] / "fixtures/torch/metrics"
RESULTS = json.loads((FIXTURES / "results.json").read_text())["results"]


def normal(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def pairwise(a, b):
    return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(axis=2))


def by_brute_force(real, fake, k):
    """Precision, recall, density and coverage from the matrices of all distances."""
    radii_real, radii_fake = (np.sort(pairwise(x, x), axis=1)[:, k] for x in (real, fake))
    across = pairwise(real, fake)
    return (
        np.mean((across <= radii_real[:, None]).any(axis=0)),
        np.mean((across <= radii_fake[None]).any(axis=1)),
        np.mean((across < radii_real[:, None]).sum(axis=0)) / k,
        np.mean(across.min(axis=1) < radii_real),
    )


@pytest.fixture(params=["host", "device", "mesh"])
def places(request):
    """Arguments for the work to be done in one place, in several blocks with the last one short."""
    sizes = BlockSizes(host_rows=7, device_rows=22, columns=27)
    if request.param == "mesh":
        return {"mesh": make_mesh(data=4, fsdp=2), "sizes": sizes}
    if request.param == "device":
        return {"sizes": sizes._replace(host_pairs=0)}
    return {"sizes": sizes}


def test_metrics_by_brute_force(places, k=3):
    real, fake = normal(0, 45, 3), 1.2 * normal(1, 37, 3) + 0.8
    found = manifold_metrics(real, fake, k=k, **places)
    np.testing.assert_allclose(found, by_brute_force(real, fake, k), rtol=1e-14)
    assert precision_recall(real, fake, k=k, **places) == found[:2]
    assert all(0 < value < 1 for value in found)
    shuffled = np.random.default_rng(2).permutation(45)
    assert manifold_metrics(real[shuffled], fake[::-1], k=k, **places) == found


@pytest.mark.parametrize("name", ["prc_main", "prc_lowd"])
@pytest.mark.parametrize("devices", [0, 8])
def test_agrees_with_torch_fidelity(name, devices):
    io, expected = np.load(FIXTURES / "io.npz"), RESULTS[name]["float64"]
    fake, real = (io[f"{name}/{side}"] for side in ("generated", "real"))
    mesh = make_mesh(data=devices) if devices else None
    found = manifold_metrics(real, fake, k=3, mesh=mesh)
    for key, value in (("precision", found.precision), ("recall", found.recall)):
        assert np.float32(value) == pytest.approx(expected[key], rel=1e-7)
    np.testing.assert_allclose(found, by_brute_force(real, fake, 3), rtol=1e-14)
    for side, points in (("generated", fake), ("real", real)):
        radii = distances.nearest(points, points, 3, others=True, mesh=mesh).squared[:, -1]
        np.testing.assert_allclose(np.sqrt(radii), io[f"{name}/radii_{side}_k3_f64"], rtol=1e-12)
    squared = [distances.nearest(x, x, 3, others=True).squared[:, -1] for x in (real, fake)]
    members = distances.memberships(real, fake, *squared, mesh=mesh)
    np.testing.assert_array_equal(members.b_in_a, io[f"{name}/generated_in_real_manifold"])
    np.testing.assert_array_equal(members.a_in_b, io[f"{name}/real_in_generated_manifold"])


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float16, 1.0), (np.float32, 1.0), (np.float32, 1e-25), (np.float64, 1e22)],
)
def test_equal_sets_are_within_each_other(places, dtype, scale):
    # Far from 0, and with squares that float32 has no numbers for.
    x = ((normal(3, 54, 8) + 30.0) * scale).astype(dtype)
    assert manifold_metrics(x, x[::-1], k=3, **places) == (1.0, 1.0, 1.0, 1.0)


def test_copies_count_as_within_balls_of_no_size(places):
    # Some points stand five times: their third neighbour is at distance 0, their open balls empty.
    points = normal(4, 30, 8).astype(np.float32) * 1e-4 + 7.0
    real = np.concatenate([points, *[points[:6]] * 4])
    found = manifold_metrics(real, real, k=3, **places)
    assert found.precision == found.recall == 1.0
    np.testing.assert_allclose(found, by_brute_force(real, real, 3), rtol=1e-14)
    assert 0.4 < found.coverage < 0.5


def test_clusters_far_apart_keep_their_digits(places):
    # The distances within are far below what float32 leaves of the distances between.
    places = places | {"sizes": places["sizes"]._replace(many_open=20)}
    centres = 1e4 * normal(5, 3, 4)
    real, fake = (
        centres[np.arange(50) % 3] + 1e-3 * normal(seed, 50, 4) * (seed - 5) for seed in (6, 7)
    )
    found = manifold_metrics(real, fake, k=2, **places)
    np.testing.assert_allclose(found, by_brute_force(real, fake, 2), rtol=1e-14)
    near = nearest_indices(fake, real, count=2, **places)
    expected = np.argsort(pairwise(fake, real), axis=1)[:, :2]
    np.testing.assert_array_equal(near.indices, expected)


def test_what_a_lost_mode_costs():
    left, right = normal(8, 200, 2), normal(9, 200, 2) + 100.0
    real = np.concatenate([left, right])
    found = manifold_metrics(real, left + 0.01, k=5)
    assert found.precision > 0.98 and 0.45 < found.recall <= 0.5
    assert 1.0 < found.density < 1.2 and 0.45 < found.coverage <= 0.5
    assert manifold_metrics(left, right, k=5) == (0.0, 0.0, 0.0, 0.0)


def test_nearest_rows_by_brute_force(places, tmp_path):
    a, b = normal(10, 20, 5), normal(11, 61, 5)
    expected = np.sort(pairwise(a, b), axis=1)
    for count in (4, 61):
        found = nearest_indices(a, b, count=count, **places)
        np.testing.assert_allclose(found.distances, expected[:, :count], rtol=1e-12)
        order = np.argsort(pairwise(a, b), axis=1)[:, :count]
        np.testing.assert_array_equal(found.indices, order)
    np.save(tmp_path / "b.npy", b)
    on_disk = np.load(tmp_path / "b.npy", mmap_mode="r")
    np.testing.assert_allclose(nearest_distances(a, on_disk, **places), expected[:, 0], rtol=1e-12)


def test_a_copy_is_at_distance_zero(places):
    b = normal(12, 30, 8) + 1e4
    b[20] = b[9]
    found = nearest_indices(b[[4, 9]], b, count=2, **places)
    np.testing.assert_array_equal(found.distances[:, 0], [0.0, 0.0])
    np.testing.assert_array_equal(found.indices[:, 0], [4, 9])
    assert found.indices[1, 1] == 20 and found.distances[1, 1] == 0.0


def test_devices_share_the_work_in_full_precision():
    def array(*shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    for step, left, right in (
        (
            blocks.closer,
            (array(16, 4), array(16, dtype=np.int32), array(16, 3), array(16, 3, dtype=np.int32)),
            (array(24, 4), array(24, dtype=np.int32)),
        ),
        (
            blocks.compare,
            (array(16, 4), array(16), array(16, dtype=bool)),
            (array(24, 4), array(24), array(24, dtype=bool)),
        ),
    ):
        lowered = blocks.on_devices.lower(step, make_mesh(), left, right)
        assert "HIGHEST" in lowered.as_text()
        assert not re.search("all-(gather|reduce)", lowered.compile().as_text())


def test_mistakes_are_named():
    a = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"k = 6 points on both sides, found 6 and 6"):
        precision_recall(a, a, k=6)
    with pytest.raises(ValueError, match="k of 1 or more"):
        manifold_metrics(a, a, k=0)
    with pytest.raises(ValueError, match=r"found \(6, 2\) and \(6, 3\)"):
        nearest_distances(a, np.zeros((6, 3)))
    with pytest.raises(ValueError, match="neither empty"):
        nearest_distances(a, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="count from 1 to 6 rows of b, found 7"):
        nearest_indices(a, a, count=7)
    with pytest.raises(ValueError, match="found 1 rows of 6 that are not"):
        manifold_metrics(a, np.where(np.arange(6)[:, None] == 2, np.nan, a), k=1)
