"""The sweep over averages and α: its numbers, and what it says of the noise."""

import dataclasses
import json

import numpy as np
import pytest
import saved_run

from drifting_jax.config import streams
from drifting_jax.evaluation import sweep
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.metrics.small_images import make_small_reference, measure_small_images
from drifting_jax.evaluation.report.summaries import summarize
from drifting_jax.steps.sampling import class_major
from drifting_jax.training.restore import load_averages

DECAYS = ("decay 0.8", "decay 0.9")


def swept(values, *, alphas=(1.0, 2.0, 3.0), averages=DECAYS, alpha_range=(1.0, 4.0)):
    """A sweep of one metric: values[average][α] are those of its seeds."""
    cells = []
    for i, of_average in enumerate(values):
        for alpha, of_seeds in zip(alphas, of_average, strict=True):
            records = [
                MetricRecord("fd_pixels", x, alpha=alpha, seed=k) for k, x in enumerate(of_seeds)
            ]
            cells.append(sweep.Cell(i, summarize(records)[0], {"fd_pixels": list(of_seeds)}))
    return sweep.Sweep(averages, alphas, cells, {"fd_pixels": 0.5}, alpha_range)


def around(mean, deviation=0.1):
    """Three values of this mean and sample standard deviation."""
    return (mean - deviation, mean, mean + deviation)


def test_a_minimum_that_is_clear_of_its_neighbours_is_said_to_be():
    found = swept([[around(3), around(2), around(3)], [around(4), around(2.5), around(4)]])
    words = sweep.verdict(found, "fd_pixels")
    assert words.startswith("best: decay 0.8, α = 2: 2.000 ± 0.1000; real images 0.5000\n")
    assert words.count("beside it") == 3 and words.count(", worse") == 3
    assert "decay 0.9, α = 2: 2.500 ± 0.1000, worse" in words
    assert "differs from its neighbours by more than the noise" in words
    assert "within the noise" not in words and "edge" not in words


def test_a_minimum_within_the_noise_of_a_neighbour_is_said_to_be():
    found = swept([[around(3), around(2), around(2.19)], [around(2.1), around(9), around(9)]])
    words = sweep.verdict(found, "fd_pixels")
    assert "decay 0.8, α = 3: 2.190 ± 0.1000, within the noise of the best" in words
    assert "this minimum is within the noise of decay 0.8, α = 3: take any of them" in words
    assert "2 of the other 5 are within its noise" in words  # one of them is no neighbour
    best = sweep.to_json(found)["metrics"]["fd_pixels"]
    assert best["best"] == {"average": "decay 0.8", "alpha": 2.0} and best["floor"] == 0.5
    assert best["within_noise"] == [
        {"average": "decay 0.8", "alpha": 3.0},
        {"average": "decay 0.9", "alpha": 1.0},
    ]


def test_a_decay_is_no_neighbour_of_a_width():
    found = swept([[around(2), around(3), around(3)]] * 2, averages=("decay 0.9", "width 0.05"))
    assert [(near.average, near.row.alpha) for near in sweep.neighbors(found, found.cells[0])] == [
        (0, 2.0)
    ]


def test_a_minimum_at_the_largest_alpha_of_the_grid_may_not_be_one():
    falling = [[around(3), around(2), around(1)]]
    words = sweep.verdict(swept(falling, averages=("decay 0.8",)), "fd_pixels")
    assert "at the largest α: a larger one may be better" in words
    words = sweep.verdict(swept(falling, averages=("decay 0.8",), alpha_range=(1, 3)), "fd_pixels")
    assert "largest" not in words  # the training has seen none
    rising = [[around(1), around(2), around(3)]]
    assert "smallest" not in sweep.verdict(swept(rising, averages=("decay 0.8",)), "fd_pixels")


def test_one_seed_says_nothing_of_the_noise():
    words = sweep.verdict(swept([[(3.0,), (2.0,), (2.1,)]], averages=("decay 0.8",)), "fd_pixels")
    assert "one seed: the noise is unknown" in words and "within" not in words


@pytest.fixture(scope="module")
def averages(tmp_path_factory):
    return load_averages(saved_run.save_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def reference(averages):
    config = averages[0].config
    key = streams.stream_key(config, "classifier")
    return make_small_reference(config.data, num_classes=10, key=key)


@pytest.fixture(autouse=True)
def trained_once(request, monkeypatch):
    """The classifier of every test is that of `reference`."""
    if "averages" in request.fixturenames:
        found = request.getfixturevalue("reference")
        monkeypatch.setattr(sweep, "make_small_reference", lambda *_, **__: found)


def test_every_average_is_measured_at_every_alpha_and_seed(averages, reference, tmp_path):
    workdir, tables = tmp_path, []
    found = sweep.sweep_run(
        averages,
        workdir=workdir,
        seeds=(4, 5),
        cfg_scales=(2.0, 1.0),
        report=tables.append,
    )
    assert found.averages == ["decay 0.9", "decay 0.99"] and list(found.alphas) == [1.0, 2.0]
    written = json.loads((workdir / "sweep.json").read_text())
    assert written["step"] == saved_run.STEPS["generator"] and written["seeds"] == [4, 5]
    assert len(written["cells"]) == 4 and set(written["metrics"]) == {"fd_pixels", "fd_classifier"}
    assert [table.split(",")[0] for table in tables] == ["fd_pixels", "fd_classifier"]
    assert all(f"{written['num_samples']} samples" in table for table in tables)

    run = averages[0]
    labels, indices = class_major(range(10), run.config.eval.samples_per_class)
    assert written["num_samples"] == len(labels)
    images = run.sample(labels, indices, seed=5, cfg_scale=2.0)
    for record in measure_small_images(images, labels, **reference._asdict()):
        if record.metric in written["metrics"]:
            cell = written["cells"][1]
            assert cell["average"] == "decay 0.9" and cell["alpha"] == 2.0
            assert cell[record.metric][1] == pytest.approx(record.value, rel=1e-6)
            assert written["metrics"][record.metric]["floor"] == pytest.approx(record.baseline)
    values = np.array([cell["fd_pixels"] for cell in written["cells"]])
    assert len(np.unique(values)) == values.size
    place = written["metrics"]["fd_pixels"]["best"]
    best = written["cells"][int(values.mean(axis=1).argmin())]
    assert place == {"average": best["average"], "alpha": best["alpha"]}


def test_a_sweep_that_is_stopped_writes_nothing(averages, tmp_path):
    assert sweep.sweep_run(averages, workdir=tmp_path, report=print, stopped=lambda: True) is None
    assert not list(tmp_path.iterdir())
    without = dataclasses.replace(averages[0], config=None)
    with pytest.raises(ValueError, match="expected generators that were read from a run"):
        sweep.sweep_run([without], workdir=tmp_path, report=print)
