"""Metrics of samples of conditions, against loops in float64."""

import numpy as np

from drifting_jax.evaluation.metrics.single_target import measure_samples, table


def apart(a, b):
    return np.sqrt(np.mean((a - b) ** 2))


def test_metrics_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    samples, targets = rng.normal(size=(3, 4, 2, 5)), rng.normal(size=(3, 2, 5))
    to_target = np.array([[apart(x, targets[c]) for x in samples[c]] for c in range(3)])
    pairs = [(c, i, j) for c in range(3) for i in range(4) for j in range(4) if i != j]
    between = np.mean([apart(samples[c, i], samples[c, j]) for c, i, j in pairs])
    found = measure_samples(samples.astype(np.float32), targets.astype(np.float32))
    expected = {
        "conditions": 3,
        "energy_score": to_target.mean() - between / 2,
        "error": to_target.mean(),
        "nearest": to_target.min(axis=1).mean(),
        "spread": between,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    text = table({"held_out": found}, "images").splitlines()
    assert text[0].split() == ["images", *list(expected)[1:]]
    assert text[1].startswith("held out") and f"{found['error']:.4f}" in text[1]
