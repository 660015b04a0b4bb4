import re

import numpy as np
import pytest
from figure_records import INFO, record, several_seeds

from drifting_jax.evaluation.report.summaries import summarize
from drifting_jax.evaluation.report.tables import figures_table, number


def test_summary_is_what_numpy_says():
    records = several_seeds()
    rows = summarize(records)
    assert [row.alpha for row in rows] == [1.0, 1.5, 4.0]
    for row in rows:
        for figure in ("fid", "is"):
            values = [
                r["value"] for r in records if (r["figure"], r["alpha"]) == (figure, row.alpha)
            ]
            found = row.figures[figure]
            assert found.mean == pytest.approx(np.mean(values), rel=1e-12)
            assert found.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
            assert found.seeds == 3 and found.within is None


def test_one_seed_has_no_deviation_over_seeds():
    (first, second) = summarize(
        [record("kid", 2.0, 0.5, deviation=0.1), record("kid", None, 0.25), record("is", None, 9.0)]
    )
    assert first.alpha is None and first.figures["kid"] == (0.25, None, 1, None)
    assert second.alpha == 2.0 and second.figures == {"kid": (0.5, None, 1, 0.1)}
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
        record(figure, alpha, value, seed=seed, **more)
        for figure, alpha, values, more in [
            ("is", 1.0, (200.0, 202.0), {}),
            ("is", 2.0, (300.0, 300.5), {}),
            ("fid", 1.0, (2.0, 2.5), {"floor": 1.68}),
            ("fid", 2.0, (3.0, 3.0), {"floor": 1.68}),
        ]
        for seed, value in enumerate(values)
    ]
    assert figures_table([*records, record("ratio", 2.0, 0.9, seed=0)], INFO) == (
        "figure             α = 1           α = 2    real\n"
        "FID ↓      2.250 ± 0.354*  3.000 ± 0.000   1.680\n"
        "IS ↑         201.0 ± 1.4     300.2 ± 0.4*\n"
        "copies →1              -          0.9000\n"
        "\n"
        "↓ lower is better; ↑ higher is better; →1 nearer to 1 is better; * best α.\n"
        "±: sample standard deviation over 2 seeds.\n"
        "real: the same figure of real images."
    )


def test_table_of_one_set():
    table = figures_table([record("kid", None, 0.00123, deviation=0.0002)], INFO)
    assert table == (
        "figure            samples\n"
        "KID ×10³ ↓  1.230 (0.200)\n"
        "\n"
        "↓ lower is better.\n"
        "In brackets: standard deviation over subsets or splits of one set."
    )


def test_table_is_wrapped():
    table = figures_table([record("fid", float(a), 2.0 + a) for a in range(12)], INFO)
    blocks = table.split("\n\n")
    assert [block.count("α = ") for block in blocks[:3]] == [5, 5, 2]
    assert table.count("*") == 2 and "2.000*" in blocks[0]
    wide = figures_table(several_seeds(tuple(float(a) for a in range(1, 9))), INFO)
    assert max(map(len, wide.splitlines())) <= 100


def test_nearest_to_one_is_the_best_copying_ratio():
    table = figures_table([record("ratio", a, v) for a, v in ((1, 0.8), (2, 1.1), (3, 1.3))], INFO)
    assert re.findall(r"\S+\*", table.splitlines()[1]) == ["1.100*"]
