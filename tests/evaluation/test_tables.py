import re

import numpy as np
import pytest
from metric_records import record, several_seeds

from drifting_jax.evaluation.report.summaries import best_rows, summarize
from drifting_jax.evaluation.report.tables import metrics_table, number


def test_summary_is_what_numpy_says():
    records = several_seeds()
    rows = summarize(records)
    assert [row.alpha for row in rows] == [1.0, 1.5, 4.0]
    for row in rows:
        for metric in ("fid", "inception_score"):
            values = [r.value for r in records if (r.metric, r.alpha) == (metric, row.alpha)]
            found = row.metrics[metric]
            assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert found.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
            assert found.seeds == 3 and found.within is None


def test_one_seed_has_no_deviation_over_seeds():
    (first, second) = summarize(
        [
            record("kid", 2.0, 0.5, deviation=0.1),
            record("kid", None, 0.25),
            record("inception_score", None, 9.0),
        ]
    )
    assert first.alpha is None and first.metrics["kid"] == (0.25, None, 1, None)
    assert second.alpha == 2.0 and second.metrics == {"kid": (0.5, None, 1, 0.1)}
    assert summarize([]) == []


def test_two_records_of_one_seed_are_an_error():
    with pytest.raises(ValueError, match=r"two records of fid at alpha 1\.0 and seed 3"):
        summarize([record("fid", 1.0, 2.0, seed=3), record("fid", 1.0, 2.1, seed=3)])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.31, "2.310"),
        (9.99996, "10.00"),
        (-0.01234567, "-0.01235"),
        (54321.6, "54322"),
        (1.5e7, "1.500e7"),
        (0.000123456, "1.235e-4"),
        (0.0, "0"),
        (float("nan"), "NaN"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_have_four_digits(value, words):
    assert number(value) == words


def test_table_of_several_seeds():
    records = [
        record(metric, alpha, value, seed=seed, **more)
        for metric, alpha, values, more in [
            ("inception_score", 1.0, (200.0, 202.0), {}),
            ("inception_score", 2.0, (300.0, 300.5), {}),
            ("fid", 1.0, (2.0, 2.5), {"baseline": 1.68}),
            ("fid", 2.0, (3.0, 3.0), {"baseline": 1.68}),
        ]
        for seed, value in enumerate(values)
    ]
    assert metrics_table([*records, record("nearest_training_ratio", 2.0, 0.9, seed=0)]) == (
        "metric                                  α = 1           α = 2    real\n"
        "FID ↓                           2.250 ± 0.354*  3.000 ± 0.000   1.680\n"
        "Inception Score ↑                 201.0 ± 1.4     300.2 ± 0.4*\n"
        "Distance to training images →1              -          0.9000\n"
        "\n"
        "↓ lower is better; ↑ higher is better; →1 nearer to 1 is better.\n"
        "*: the best α of a metric, and each α that differs from it by at most the sum of both "
        "deviations.\n"
        "±: sample standard deviation over 2 seeds.\n"
        "real: the same metric of real images."
    )


def test_table_of_one_set():
    table = metrics_table([record("kid", None, 0.00123, deviation=0.0002)])
    assert table == (
        "metric            samples\n"
        "KID ×10³ ↓  1.230 (0.200)\n"
        "\n"
        "↓ lower is better.\n"
        "In brackets: standard deviation over subsets or splits of one set."
    )


def test_table_is_wrapped():
    table = metrics_table([record("fid", float(a), 2.0 + a) for a in range(12)])
    blocks = table.split("\n\n")
    assert [block.count("α = ") for block in blocks[:3]] == [5, 5, 2]
    assert table.count("*") == 2 and "2.000*" in blocks[0]
    wide = metrics_table(several_seeds(tuple(float(a) for a in range(1, 9))))
    assert max(map(len, wide.splitlines())) <= 100


def test_nearest_to_one_is_the_best_copying_ratio():
    table = metrics_table(
        [record("nearest_training_ratio", a, v) for a, v in ((1, 0.8), (2, 1.1), (3, 1.3))]
    )
    assert re.findall(r"\S+\*", table.splitlines()[1]) == ["1.100*"]


def over_seeds(values: dict[float, tuple[float, ...]], metric: str = "fid"):
    return [record(metric, a, v, seed=i) for a, vs in values.items() for i, v in enumerate(vs)]


def marked(records) -> list[str]:
    return re.findall(r"\S+(?: ± \S+)?\*", metrics_table(records).splitlines()[1])


def test_a_tie_within_the_deviations_is_marked_as_one():
    # Deviations of √2/10 each: means that differ by up to 0.28 tie.
    near = {1.0: (2.4, 2.6), 1.5: (2.2, 2.4), 2.0: (2.5, 2.7)}
    assert marked(over_seeds(near)) == ["2.500 ± 0.141*", "2.300 ± 0.141*"]
    best, other = best_rows(summarize(over_seeds(near)), "fid")
    assert (best.alpha, other.alpha) == (1.5, 1.0)
    assert "*: the best α of a metric, and each α that differs from it by at most the sum of" in (
        metrics_table(over_seeds(near))
    )
    higher = over_seeds(near, "inception_score")
    assert marked(higher) == ["2.500 ± 0.141*", "2.600 ± 0.141*"]
    # Without seeds nothing is known of deviations: only equal values tie.
    single = [record("fid", a, v) for a, v in ((1.0, 2.31), (1.5, 2.3), (2.0, 2.3))]
    assert marked(single) == ["2.300*", "2.300*"]
    assert "*: the best α of a metric." in metrics_table(single)


def test_a_row_of_one_seed_ties_by_the_deviation_of_the_other():
    found = {1.0: (2.2, 2.4), 1.5: (2.58,), 2.0: (2.6,)}
    assert marked(over_seeds(found)) == ["2.300 ± 0.141*", "2.580*"]


def test_metrics_whose_best_is_that_of_real_data_have_no_best_row():
    rows = summarize([record("mode_shares", a, v) for a, v in ((1.0, 0.5), (2.0, 0.4))])
    assert best_rows(rows, "mode_shares") == []
