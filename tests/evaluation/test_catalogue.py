import json
import re

import pytest

from drifting_jax.evaluation.metrics.catalogue import (
    IMAGES,
    METRICS,
    SMALL_IMAGES,
    TOYS,
    Metric,
    metrics_for,
)
from drifting_jax.evaluation.metrics.records import MetricRecord, as_scalars, from_json, to_json

NAMES = ["fid", "sfid", "inception_score", "kid"]
NAMES += ["precision", "recall", "density", "coverage", "fd_dinov2"]


def test_each_kind_has_its_metrics_in_order():
    assert metrics_for(IMAGES) == NAMES
    assert metrics_for(SMALL_IMAGES) == [
        "fd_pixels",
        "fd_classifier",
        "accuracy",
        "precision",
        "recall",
        "nearest_training_ratio",
    ]
    assert metrics_for(TOYS) == ["sliced_wasserstein", "mode_shares"]
    lower = [name for name in NAMES if METRICS[name].better == "lower"]
    assert lower == ["fid", "sfid", "kid", "fd_dinov2"]
    with pytest.raises(TypeError):
        METRICS["fid"] = None
    with pytest.raises(ValueError, match=r"better is one of lower, higher, near 1.*; found 'up'"):
        Metric("FID", "up", "", "")


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is_and_where_it_comes_from(name):
    metric = METRICS[name]
    assert metric.name.replace(" ", "_").replace("-", "_").lower() == name
    assert metric.better in ("lower", "higher")
    assert re.search(r"arXiv \d{4}\.\d{5}$", metric.source)
    assert "\n" not in metric.definition and len(metric.definition) > 60
    assert metric.features in ("inception", "spatial", "logits", "dinov2")
    assert metric.reference in ("moments", "features", "")


def test_records_keep_the_names_of_their_fields_in_files():
    record = MetricRecord("kid", 0.5, alpha=2.0, seed=3, baseline=0.25, deviation=0.125)
    line = {"figure": "kid", "value": 0.5, "floor": 0.25, "deviation": 0.125}
    line |= {"alpha": 2.0, "seed": 3}
    assert list(to_json(record).items()) == list(line.items())
    assert from_json(json.loads(json.dumps(line))) == record
    least = MetricRecord("fid", 0.5)
    assert to_json(least) == {"figure": "fid", "value": 0.5, "alpha": None, "seed": None}
    assert from_json({"figure": "fid", "value": 0.5}) == least
    assert as_scalars([record, least]) == {"kid": 0.5, "fid": 0.5, "kid_floor": 0.25}
