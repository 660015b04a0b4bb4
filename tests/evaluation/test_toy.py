import numpy as np

from drifting_jax.data.points import sample_target
from drifting_jax.evaluation.toy import measure_toy, toy_json, toy_table


def measured(sample, target="two_modes"):
    return measure_toy(sample, target=target, num_samples=400, directions=256, seed=0)


def test_metrics_and_table_of_the_target_itself():
    rng = np.random.default_rng(3)
    distance, *shares = measured(lambda seed, n: sample_target("two_modes", rng, n))
    assert distance.metric == "sliced_wasserstein"
    assert 0.3 < distance.value / distance.baseline < 3
    assert [share.metric for share in shares] == ["mode_shares"] * 2
    assert abs(shares[0].value - 0.5) < 0.05 and shares[0].baseline == 0.5
    left = measured(lambda seed, n: np.tile(np.float32([-1.5, 0.0]), (n, 1)))
    assert left[0].value > 5 * left[0].baseline
    assert [share.value for share in left[1:]] == [1.0, 0.0]
    lines = toy_table(left, num_samples=400).splitlines()
    assert len(lines) == 3 and "1.000 0.000  real 0.500" in lines[2]
    board = measured(lambda seed, n: sample_target("checkerboard", rng, n), "checkerboard")
    assert len(board) == 1 and len(toy_table(board, num_samples=400).splitlines()) == 2


def test_files_keep_their_fields():
    left = measured(lambda seed, n: np.tile(np.float32([-1.5, 0.0]), (n, 1)))
    found = toy_json(left, num_samples=400)
    assert list(found.items()) == [
        ("num_samples", 400),
        ("sliced_wasserstein", left[0].value),
        ("sliced_wasserstein_floor", left[0].baseline),
        ("mode_shares", [1.0, 0.0]),
    ]
    assert "mode_shares" not in toy_json(left[:1], num_samples=400)
