"""Metrics of large sets: the same for any batch, any devices, and after any stop."""

import json
import os

import imagenet_like
import numpy as np
import pytest
from fake_generator import FakeGenerator
from measuring import COUNT, array_set, features, of_real, pixels, setup, values
from measuring import METRICS_OF_IMAGES as NAMES

from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import measurement, reference
from drifting_jax.evaluation.extraction import open_store
from drifting_jax.evaluation.features.image_sets import GeneratedImages, open_images
from drifting_jax.evaluation.metrics.frechet import frechet_distance, gaussian_statistics
from drifting_jax.evaluation.pictures import class_grids
from drifting_jax.evaluation.reference import Reference, read_reference
from drifting_jax.evaluation.setup import SampleSet, Settings, generated_sample_sets


def test_metrics_are_those_of_all_features_at_once(tmp_path):
    found = measurement.measure_all(setup(tmp_path), [SampleSet(array_set(tmp_path), 1.0, 0)])
    assert set(values(found)) == set(NAMES)
    ours, real = pixels(1), pixels(0)
    for name, kind, of in (
        ("fid", "features", "inception"),
        ("sfid", "spatial", "inception"),
        ("fd_dinov2", "features", "dinov2"),
    ):
        sets = [gaussian_statistics(features(x, kind, of)) for x in (ours, real)]
        assert values(found)[name] == pytest.approx(frechet_distance(*sets), rel=1e-5)
    for record, line in zip(found.records, measurement.read_lines(tmp_path)[:-1], strict=True):
        assert (record.alpha, record.seed) == (line["alpha"], line["seed"]) == (1.0, 0)
        assert (record.metric, record.value) == (line["figure"], line["value"])
        assert line["num_samples"] == COUNT
    assert any("kid is over subsets of 90" in note for note in found.notes)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (1, 90), (8, 8), (4, 64)])
def test_metrics_do_not_depend_on_batches_or_devices(tmp_path, devices, batch_size):
    images = array_set(tmp_path)
    expected = measurement.measure(setup(tmp_path / "a"), SampleSet(images))
    found = measurement.measure(
        setup(tmp_path / "b", devices=devices, batch_size=batch_size), SampleSet(images)
    )
    for name, value in values(expected).items():
        assert values(found)[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_stopped_measurement_continues(tmp_path):
    images, asked = array_set(tmp_path), []
    expected = measurement.measure(setup(tmp_path / "whole"), SampleSet(images))

    def stopped():
        asked.append(1)
        return len(asked) == 3

    halted = setup(tmp_path / "halted", stopped=stopped)
    assert measurement.measure_all(halted, [SampleSet(images)]) is None
    store = open_store(halted, images)
    assert store.done == 48
    found = measurement.measure_all(halted, [SampleSet(images)])
    assert len(asked) == 3 + 3  # the batches that were left
    assert values(found) == pytest.approx(values(expected), rel=1e-6, abs=1e-9)
    assert not list((tmp_path / "halted" / "features").iterdir())


def test_a_kill_between_features_and_metrics_loses_nothing(tmp_path, monkeypatch):
    for sample_set in (SampleSet(array_set(tmp_path)), generated()[0]):
        made = setup(tmp_path / str(len(sample_set.images)))
        with monkeypatch.context() as patch:
            patch.setattr(measurement, "metrics_of_features", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                measurement.measure(made, sample_set)
        assert open_store(made, sample_set.images).done == len(sample_set.images)
        found = measurement.measure(made, sample_set)
        assert set(values(found)) == set(NAMES)


def test_the_limit_on_left_out_images_holds_for_metrics_in_the_file(tmp_path):
    sample_set = generated(bad=(1003,))[0]
    measurement.measure_all(setup(tmp_path), [sample_set])
    strict = setup(tmp_path, settings=Settings(tuple(NAMES), 3, 0.0))
    with pytest.raises(UserError, match="1 of 40 images cannot be measured"):
        measurement.measure_all(strict, [sample_set])


def test_metrics_in_the_file_are_not_measured_again(tmp_path, monkeypatch):
    sample_set = SampleSet(array_set(tmp_path), 2.0)
    first = measurement.measure_all(setup(tmp_path), [sample_set])
    lines = (tmp_path / "figures.jsonl").read_text().splitlines()
    assert len(lines) == len(NAMES) + 1 and all(json.loads(line) for line in lines)
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write('{"figure": "fid", "val')  # of a process that was killed
    monkeypatch.setattr(measurement, "measure", lambda *_: pytest.fail("measured again"))
    assert measurement.measure_all(setup(tmp_path), [sample_set]) == first
    few = Settings(("fid",), 3, 0.05)
    again = measurement.measure_all(setup(tmp_path, settings=few), [sample_set])
    assert list(values(again)) == ["fid"]
    other = setup(tmp_path, reference=of_real(7))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        measurement.measure_all(other, [sample_set])


def test_damaged_images_are_left_out_and_named(tmp_path):
    for i, image in enumerate(pixels(1, 40)):
        path = tmp_path / "images" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(imagenet_like.encoded(imagenet_like.Image.fromarray(image), "PNG"))
    (tmp_path / "images" / "007.png").write_bytes(b"damaged")
    images = open_images(tmp_path / "images")
    found = measurement.measure(setup(tmp_path / "out"), SampleSet(images))
    rest = features(np.delete(pixels(1, 40), 7, axis=0))
    expected = frechet_distance(gaussian_statistics(rest), of_real().moments["inception"])
    assert values(found)["fid"] == pytest.approx(expected, rel=1e-5)
    assert any("1 of 40 images cannot be measured" in n and "007.png" in n for n in found.notes)
    strict = setup(tmp_path / "strict", settings=Settings(("fid",), 3, 0.001))
    with pytest.raises(UserError, match=r"1 of 40 .* 007.png .*--max_excluded allows .* 0.001"):
        measurement.measure(strict, SampleSet(images))


def generated(devices: int = 8, bad: tuple[int, ...] = (), count: int = 40) -> list[SampleSet]:
    generator = FakeGenerator(meshes.make_mesh(devices), bad)
    return generated_sample_sets(generator, count=count, cfg_scales=[1.0, 2.0], seeds=[0, 1])


def test_samples_of_every_scale_and_seed(tmp_path):
    found = measurement.measure_all(setup(tmp_path), generated())
    keys = {(record.alpha, record.seed) for record in found.records}
    assert keys == {(a, s) for a in (1.0, 2.0) for s in (0, 1)}
    assert {line["step"] for line in measurement.read_lines(tmp_path)} == {5}
    again = measurement.measure_all(
        setup(tmp_path / "b", devices=4, batch_size=12), generated(devices=4)
    )
    for a, b in zip(found.records, again.records, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5, abs=1e-6), a


def test_samples_that_are_not_finite_are_left_out_or_an_error(tmp_path):
    found = measurement.measure(setup(tmp_path), generated(bad=(1003,))[0])
    assert any("1 of 40" in n and "sample 3 of class 1, seed 0" in n for n in found.notes)
    assert measurement.read_lines(tmp_path)[0]["num_samples"] == 39
    many = generated(bad=tuple(range(1000, 1010)))[0]
    with pytest.raises(UserError, match=r"10 of 40 images cannot be measured .*not finite"):
        measurement.measure(setup(tmp_path / "b"), many)


def test_too_few_samples_and_other_networks_are_one_line(tmp_path):
    with pytest.raises(UserError, match="the samples cannot be measured: "):
        measurement.measure(setup(tmp_path), generated(count=3)[0])
    with pytest.raises(UserError, match="metrics need two images or more; found 1"):
        measurement.measure_reference(setup(tmp_path / "r"), array_set(tmp_path, 5, 1), keep=9)
    wide = {"inception": gaussian_statistics(np.random.default_rng(0).normal(size=(50, 7)))}
    other = setup(tmp_path, reference=Reference(wide, {}, {}))
    with pytest.raises(UserError, match=r"inception statistics have 7 features, the samples' 6"):
        measurement.measure(other, generated()[0])


def test_metrics_that_the_reference_lacks_are_named(tmp_path):
    alone = setup(tmp_path, reference=None)
    found = measurement.measure(alone, generated()[0])
    assert list(values(found)) == ["inception_score"]
    assert "fid was not computed: there is no --reference" in found.notes
    moments = {"inception": of_real().moments["inception"]}
    found = measurement.measure(
        setup(tmp_path / "b", reference=Reference(moments, {}, {})), generated()[0]
    )
    assert set(values(found)) == {"fid", "inception_score"}
    assert "kid was not computed: the reference holds no features of inception" in found.notes


def test_a_reference_is_written_and_read(tmp_path):
    made = measurement.measure_reference(setup(tmp_path), array_set(tmp_path, 0), keep=20)
    reference.write_reference(tmp_path / "ref.npz", made)
    found = read_reference(tmp_path / "ref.npz")
    expected = of_real()
    assert found.moments.keys() == expected.moments.keys()
    for name, moments in expected.moments.items():
        np.testing.assert_allclose(found.moments[name].mean, moments.mean, atol=1e-6)
        np.testing.assert_allclose(found.moments[name].covariance, moments.covariance, atol=1e-5)
    rows = {row.tobytes() for row in expected.features["inception"]}
    assert found.features["inception"].shape == (20, 6) and len(rows) == COUNT
    assert found.protocol["inception weights"].startswith("sha256 ")
    same = measurement.measure(
        setup(tmp_path / "same", reference=found), SampleSet(array_set(tmp_path, 0))
    )
    assert abs(values(same)["fid"]) < 1e-6 and values(same)["precision"] == 1.0
    warned = [note.split(" ")[1] for note in same.notes if "own images with themselves" in note]
    assert warned == ["fid", "sfid", "fd_dinov2"]
    other = measurement.measure(
        setup(tmp_path / "other", reference=found), SampleSet(array_set(tmp_path, 1))
    )
    assert not any("with themselves" in note for note in other.notes)


def test_files_of_others_are_read(tmp_path):
    mean, covariance = of_real().moments["inception"]
    np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance)
    np.savez(tmp_path / "b.npz", ref_mu=mean, ref_sigma=covariance)
    for name in ("a.npz", "b.npz"):
        found = read_reference(tmp_path / name)
        np.testing.assert_array_equal(found.moments["inception"].covariance, covariance)
        assert not found.features and found.images is None
    np.savez(tmp_path / "adm.npz", arr_0=pixels(0), mu=mean, sigma=covariance)
    found = measurement.complete_reference(setup(tmp_path), read_reference(tmp_path / "adm.npz"))
    np.testing.assert_array_equal(found.moments["inception"].mean, mean)
    assert found.features["inception"].shape == (COUNT, 6) and "spatial" in found.moments


def test_files_without_statistics_give_one_line(tmp_path):
    path = tmp_path / "ref.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no \.npz file of statistics that can be read"):
        read_reference(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match=r"holds no statistics: expected mu and sigma.*found other"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"expected mu \[d\] and sigma \[d, d\]; found \[3\]"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.full((3, 3), np.nan))
    with pytest.raises(UserError, match="not finite"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.triu(np.ones((3, 3))))
    with pytest.raises(UserError, match="is not symmetric"):
        read_reference(path)
    for sigma in (-np.eye(3), np.diag([1.0, 1.0, -0.01])):
        np.savez(path, mu=np.zeros(3), sigma=sigma)
        with pytest.raises(UserError, match="sigma has negative eigenvalues, so it is no covar"):
            read_reference(path)


@pytest.mark.parametrize("rows", [2, 90])
def test_a_covariance_in_float32_may_be_singular(tmp_path, rows):
    features = np.random.default_rng(0).normal(size=(rows, 30)) @ np.diag(10.0 ** -np.arange(30))
    mean, covariance = gaussian_statistics(features)
    np.savez(tmp_path / "a.npz", mu=mean, sigma=covariance.astype(np.float32))
    found = read_reference(tmp_path / "a.npz").moments["inception"].covariance
    np.testing.assert_array_equal(found, covariance.astype(np.float32))


@pytest.mark.parametrize("text", ["50k train images", "[1, 2]"])
def test_the_protocol_of_others_may_be_any_text(tmp_path, text):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3), protocol=np.array(text))
    assert read_reference(tmp_path / "a.npz").protocol["statistics"].endswith(f"which says: {text}")


def test_notes_may_hold_names_that_are_not_utf8(tmp_path, monkeypatch):
    name = os.fsdecode(b"br\xf6ken.jpg")
    monkeypatch.setattr(measurement, "check_usable", lambda *_, **__: [name])
    made = setup(tmp_path, settings=Settings(("fid",), 3, 0.05))
    measurement.measure(made, SampleSet(array_set(tmp_path)))
    assert measurement.read_lines(tmp_path)[-1]["notes"][0] == "br�ken.jpg"


def test_grids_show_the_first_of_each_class(tmp_path):
    pictures = class_grids(generated())
    assert [picture.title for picture in pictures] == ["alpha 1", "alpha 2"]
    assert pictures[0].caption.endswith("a class a row: a, b, c.")
    few = class_grids(generated(count=7))[0]  # three, two and two of each class
    gap = 1
    assert few.image.shape[0] / few.image.shape[1] == (3 * (8 + gap) + gap) / (2 * (8 + gap) + gap)
    labels = GeneratedImages(FakeGenerator(meshes.make_mesh()), *[np.int32([0, 1, 2])] * 2,
                             0, 1.0, "x")  # fmt: skip
    assert labels.pick([2]).shape == (1, 8, 8, 3)
