"""The diagnosis before training: its measures against NumPy and their limits, rows, and words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.drawing import import_matplotlib
from drifting_jax.errors import UserError
from drifting_jax.evaluation.diagnosis import measures, rows, summary
from drifting_jax.evaluation.diagnosis.picture import diagnosis_picture
from drifting_jax.method import encoders
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import FIELDS

G, P, SIDE = 8, 16, 2
PIXELS = encoders.with_raw(encoders.compose({}))


def images(seed: int, *, same: bool = False, distance: float = 3.0, number: int = 3):
    """Class rows [G + 2G + 2P, SIDE, SIDE, 1] of latents: q around 0, p around `distance`."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        x = rng.normal(size=(3 * G + 2 * P, SIDE, SIDE, 1)).astype(np.float16)
        x[3 * G :] += np.float16(distance)
        if same:
            x[2 * G : 3 * G], x[3 * G + P :] = x[G : 2 * G], x[3 * G : 3 * G + P]
        found.append(x)
    return found


def diagnose(of_rows, *temperatures, **options) -> measures.Measures:
    found = measures.diagnose(
        PIXELS, {}, of_rows, generated=G, options=DriftOptions(temperatures, **options)
    )
    assert list(found) == ["raw"]
    return found["raw"]


def softmax(logits, axis):
    e = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def written_out(of_rows, temperature, *, kernel="laplacian", floor=1e-6):
    """S, the effective number, the unreached share and the signal of raw vectors, in float64."""
    of_rows = [x.astype(np.float64).reshape(len(x), -1) for x in of_rows]
    every = [np.linalg.norm(x[:G, None] - x[None, G:], axis=-1) for x in of_rows]
    scale = np.mean(every)
    numbers, unreached, drifts = [], [], [[], []]
    for x in of_rows:
        of_row = []
        for draw in range(2):
            z = x[G + draw * G :][:G]
            y = x[3 * G + draw * P :][:P]
            targets = np.concatenate([z, y])
            r = np.linalg.norm(x[:G, None] - targets[None], axis=-1) / scale / temperature
            logits = -r if kernel == "laplacian" else -0.5 * r**2
            of_row.append(1 / (softmax(logits[:, G:], 1) ** 2).sum(1))
            a = np.sqrt(softmax(logits, 1) * softmax(logits, 0))
            unreached.append(a[:, G:].max(axis=1) <= floor**0.5)
            a = np.maximum(a, floor**0.5)
            near, far = a[:, G:], a[:, :G]
            v = far.sum(1, keepdims=True) * (near @ y) - near.sum(1, keepdims=True) * (far @ z)
            drifts[draw].append(v - v.mean(axis=0))
        numbers.append(np.median(of_row))
    v, w = (np.concatenate(d).ravel() for d in drifts)
    signal = v @ w / np.sqrt((v @ v) * (w @ w))
    return scale, np.median(numbers), np.mean(unreached), signal


@pytest.mark.parametrize("kernel", ["laplacian", "gaussian"])
def test_all_measures_against_numpy(kernel):
    temperatures = (0.03, 0.3) if kernel == "laplacian" else (0.2, 0.6)
    of_rows = images(0)
    found = diagnose(of_rows, *temperatures, kernel=kernel)
    for i, temperature in enumerate(temperatures):
        scale, number, unreached, signal = written_out(of_rows, temperature, kernel=kernel)
        np.testing.assert_allclose(found.scale, scale, rtol=1e-5)
        np.testing.assert_allclose(found.effective[i], number, rtol=1e-4)
        np.testing.assert_allclose(found.unreached[i], unreached, atol=1e-6)
        np.testing.assert_allclose(found.signal[i], signal, atol=1e-4)
    assert 0 < found.unreached[0] < 1


def test_a_flat_kernel_sees_all_and_a_sharp_one_the_nearest():
    found = diagnose(images(1), 1e-5, 1e5)
    np.testing.assert_allclose(found.effective, [1, P], rtol=1e-3)
    np.testing.assert_allclose(
        measures.effective_targets(jnp.float32([[0, 0, -1e4], [0, -1e4, -1e4]])), [2, 1], rtol=1e-6
    )


def test_two_equal_draws_agree():
    found = diagnose(images(2, same=True), 0.05, 0.5, combine="separate")
    np.testing.assert_allclose(found.signal, 1, rtol=1e-5)


def test_there_is_no_signal_where_q_is_p():
    rng = np.random.default_rng(3)
    of_rows = [rng.normal(size=(3 * G + 2 * G, SIDE, SIDE, 1)) for _ in range(40)]
    found = diagnose([x.astype(np.float32) for x in of_rows], 0.2, 1.0)
    assert np.abs(found.signal).max() < 0.1
    assert diagnose(images(3, distance=1.5, number=8), 1.0).signal > 0.3


def test_locations_of_a_map_are_measured_alike():
    x = np.concatenate([np.float32(x) for x in images(4, number=1)])
    vectors = jnp.asarray(x).reshape(len(x), 1, -1)
    options = DriftOptions((0.1, 1.0), negatives="fresh")
    measure = jax.jit(measures.measure_row, static_argnames=("generated", "options"))
    one = measure(vectors, jnp.float32(2), generated=G, options=options)
    many = measure(jnp.repeat(vectors, 19, axis=1), jnp.float32(2), generated=G, options=options)
    np.testing.assert_allclose(many.effective, one.effective, rtol=1e-5)
    np.testing.assert_allclose(many.unreached, one.unreached, rtol=1e-5)
    np.testing.assert_allclose(many.products, 19 * one.products, rtol=1e-4)


def test_samples_without_a_floor_are_unreached_where_float32_ends():
    logits = jnp.float32([[0, -5, -6], [0, -400, -500]])
    for field, floor, expected in (
        ("mean_shift", 0.0, [False, True]),
        ("bias_corrected", 1e-6, [False, True]),
        ("mean_shift", 0.5, [True, True]),
    ):
        options = DriftOptions(field=field, affinity_floor=floor, normalize="targets")
        np.testing.assert_array_equal(measures.unreached(logits, 1, options), expected)


def test_kernels_of_the_fields():
    kernels = {name: measures.kernel_of(DriftOptions(field=name)) for name in FIELDS}
    assert kernels["mean_shift"] == "laplacian" and kernels["mmd"] == "gaussian"
    assert kernels["energy"] is None and kernels["sinkhorn"] is None


class Numbered(ArraySource):
    """Images whose pixels are their index; every fifth cannot be read."""

    def __getitem__(self, index):
        if index % 5 == 0:
            raise UnreadableImage("damaged")
        return super().__getitem__(index)


def numbered(classes: int = 3, count: int = 60) -> Numbered:
    pixels = np.broadcast_to(np.arange(count)[:, None, None, None], (count, 2, 2, 1))
    names = [str(i) for i in range(classes)]
    return Numbered(pixels.astype(np.uint8), np.arange(count) % classes, names)


def test_a_row_has_no_image_twice_and_positives_of_its_class():
    source, key = numbered(), jax.random.key(0)
    sizes = rows.row_sizes(source.labels, key, rows=2, generated=5, positives=6)
    assert len(sizes.labels) == 2 and sizes.stand_in == "classes"
    label = sizes.labels[0]
    found = rows.draw_row(source, label, key, sizes)
    assert found.shape == (3 * 5 + 2 * 6, 2, 2, 1) and found.dtype == np.uint8
    indices = found[:, 0, 0, 0].astype(int)
    assert len(set(indices)) == len(indices) and not (indices % 5 == 0).any()
    assert (indices[15:] % 3 == label).all() and len(set(indices[:15] % 3)) > 1
    np.testing.assert_array_equal(found, rows.draw_row(source, label, key, sizes))
    assert (found != rows.draw_row(source, label, jax.random.key(1), sizes)).any()


def test_data_of_one_class_is_blended():
    source, key = numbered(classes=1), jax.random.key(0)
    sizes = rows.row_sizes(source.labels, key, rows=4, generated=50, positives=8)
    assert sizes == rows.RowSizes((0,), 7, 8, "blends")
    sizes = dataclasses.replace(sizes, generated=4)
    assert rows.draw_row(source, 0, key, sizes).shape == (12 + 16, 2, 2, 1)
    with pytest.raises(UserError, match="takes two classes"):
        rows.row_sizes(source.labels, key, rows=4, generated=4, positives=8, stand_in="classes")


def test_too_few_images_are_refused():
    key, sizes = jax.random.key(0), {"rows": 4, "generated": 4, "positives": 8}
    with pytest.raises(UserError, match="largest class has 7 images"):
        rows.row_sizes(np.arange(14) % 2, key, **sizes)
    with pytest.raises(UserError, match="16 images of a class and 6 others at least"):
        rows.row_sizes(np.array([0] * 16 + [1]), key, **sizes)
    sizes = rows.row_sizes(np.arange(60) % 3, key, rows=1, generated=4, positives=10)
    with pytest.raises(UserError, match="of 20 images can be read; the row needs 20"):
        rows.draw_row(numbered(), sizes.labels[0], key, sizes)


def of(effective, signal, scale=1.0) -> measures.Measures:
    return measures.Measures(scale, np.array(effective), np.zeros(len(effective)), np.array(signal))


@pytest.fixture
def diagnosis():
    return summary.Diagnosis(
        title="birds",
        encoder="runs/birds",
        field="mean_shift",
        kernel="laplacian",
        temperatures=(0.01, 0.1, 0.3, 1.0),
        chosen=(0.01, 1.0),
        sizes=rows.RowSizes((0, 1), G, P, "classes"),
        features={
            "convnext/stage1/mean": of([1.6, 3, 7, 15], [0.2, 0.5, 0.52, 0.9]),
            "raw": of([1.2, 9, 12, 15], [0.2, 0.5, np.nan, 0.9]),
            "stage1": of([1.0, 3, 7, 13], [0.2, 0.3, 0.5, 0.9]),
            "stage1/std_2x2": of([1.4, 3, 7, 13], [-0.2, -0.3, -0.5, -0.9]),
            "stem": of([1.0, 5, 7, 13], [0.2, 0.5, 0.5, 0.9]),
            "still": of([1.0, 1, 1, 1], [0, 0, 0, 0], scale=0.0),
        },
        extras=("convnext", "dinov2_b"),
    )


def test_features_are_grouped_by_what_they_are(diagnosis):
    groups = diagnosis.groups
    names = ["raw", "locations", "convnext means", "stds", summary.ALL]
    assert list(groups) == names
    np.testing.assert_allclose(groups["locations"].effective, [1, 4, 7, 13])
    np.testing.assert_allclose(groups[summary.ALL].effective, [1.2, 3, 7, 13])


def test_flat_and_sharp_kernels_are_named(diagnosis):
    still, sharp, flat = summary.warnings(diagnosis)
    assert "still hardly varies" in still
    assert sharp.startswith("warning: at τ = 0.01 the kernel sees the nearest positive alone")
    assert sharp.endswith(": raw (1.2 of 16), locations (1.0 of 16), stds (1.4 of 16)")
    assert flat.startswith("warning: at τ = 1 the kernel is flat")
    assert flat.endswith(": raw (15.0 of 16), convnext means (15.0 of 16)")


def test_suggested_temperatures(diagnosis):
    features, temperatures = diagnosis.features, diagnosis.temperatures
    assert summary.suggested(features["convnext/stage1/mean"], temperatures, P) == (0.1, 0.3)
    assert summary.suggested(features["stage1"], temperatures, P) == (0.3,)
    assert summary.suggested(features["raw"], temperatures, P) == ()
    assert summary.suggested(features["stage1/std_2x2"], temperatures, P) == ()


def test_the_report_and_the_record(diagnosis):
    text = summary.report(diagnosis)
    assert text.startswith("birds: runs/birds; field mean_shift, laplacian kernel\n2 class rows")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "τ (* of the config) 0.01* 0.1 0.3 1*" in lines
    assert "locations (2) 1.0 (6%) 4.0 (25%) 7.0 (44%) 13.0 (81%)" in lines
    assert "suggested τ for raw: none of these" in lines
    assert "stage1/std_2x2" not in text
    assert "stage1/std_2x2" in summary.report(diagnosis, per_feature=True)
    record = summary.record(diagnosis)
    assert record["features"]["raw"]["signal"] == [0.2, 0.5, None, 0.9]
    assert record["suggested"]["stds"] == []
    assert record["groups"]["locations"]["share_of_positives"][1] == 0.25


def test_the_picture_is_drawn_whatever_the_numbers(diagnosis, tmp_path):
    import_matplotlib()
    (tmp_path / "a.png").write_bytes(diagnosis_picture(diagnosis))
    assert Image.open(tmp_path / "a.png").size == (1200, 420)
