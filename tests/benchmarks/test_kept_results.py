"""Benchmarks that go on: they keep what they measured, and nothing of other settings or data."""

from pathlib import Path

import numpy as np
import pytest
from absl import app
from own_flags import load_script

import drifting_jax.policy.training
import drifting_jax.training.run  # noqa: F401 (before the flags of a script are apart)
from drifting_jax.files import read_json, write_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_row_is_measured_once_for_its_settings(tmp_path, monkeypatch, capsys):
    results = tmp_path / "new" / "rows.json"
    words = ["--rules=fair_energy,mean_shift+neighbours", "--seeds=0,1", f"--results={results}"]
    script = load_script(BENCHMARKS / "single_target.py", *words)
    asked = []

    def train(config):
        asked.append((config.drift.field, config.seed))
        return None, {"temperature": 0.5} if config.seed else {}

    monkeypatch.setattr(script, "trained", train)
    monkeypatch.setattr(
        script, "measured", lambda policy: {"both": 1.0, "near": 0.5, "distance": 0.25}
    )
    script.main([])
    fields = ("fair_energy", "mean_shift")
    assert asked == [(field, seed) for seed in (0, 1) for field in fields]
    rows = read_json(results)["rows"]
    assert [(r["rule"], r["seed"], r["temperature"]) for r in rows[1:3]] == [
        ("mean_shift, neighbours", 0, None), ("fair_energy", 1, 0.5)
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        "| fair_energy | 0, 1 | 1.000 ± 0.000 | 0.500 ± 0.000 | 0.250 ± 0.000 | 0.500 |" in printed
    )
    write_json(results, {"rows": rows[1:]})  # as if it had been ended, or a row taken out
    script.main([])
    assert asked[4:] == [("fair_energy", 0)] and len(read_json(results)["rows"]) == 4
    more = load_script(BENCHMARKS / "single_target.py", *words, "--steps=7")
    assert more.kept_row(more.settings_of("fair_energy", 0)) is None


@pytest.fixture
def compare(tmp_path, monkeypatch):
    words = [f"--results={tmp_path / 'cells'}", f"--scratch={tmp_path}", "--episodes=2"]
    words += ["--tasks=two_ways", "--methods=regression", "--seeds=0"]
    script = load_script(BENCHMARKS / "control" / "compare.py", *words)
    demonstrations = script.TASKS["two_ways"]._replace(demonstrations=2)
    monkeypatch.setitem(script.TASKS, "two_ways", demonstrations)
    return script


def test_a_cell_of_other_demonstrations_or_another_rule_is_measured_again(compare, monkeypatch):
    asked = []

    def measure(task, method, seed, identity, cache):
        asked.append(identity["demonstrations"])
        write_json(compare.cell_path(task, method, seed), identity)

    monkeypatch.setattr(compare, "measure_cell", measure)
    compare.main([])
    compare.main([])
    assert len(asked) == 1
    path = compare.demonstrations_path("two_ways")
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "actions": arrays["actions"] + 1})
    compare.main([])
    assert len(asked) == 2 and asked[0] != asked[1]
    monkeypatch.setattr(compare.flags.FLAGS["methods"], "value", ["drifting", "fair_energy"])
    compare.main([])
    compare.main([])
    assert len(asked) == 4
    monkeypatch.setitem(compare.DRIFTING, "drifting", {"drift.temperatures": (0.5,)})
    compare.main([])
    assert len(asked) == 5
    cell = compare.cell_path("two_ways", "fair_energy", 0)
    write_json(cell, {"success": 0.5})  # says neither
    compare.main([])
    assert len(asked) == 6


def test_a_cell_says_its_demonstrations(compare, monkeypatch):
    class Planner:
        pass

    kept = {}

    def measure(policy, open_one, out, *, settings, seeds):
        kept.update(settings.policy)
        names = ("success", "endings", "steps_of_a_success", "episodes", "max_steps")
        return {}, dict.fromkeys(names, 1)

    monkeypatch.setattr(compare, "trained", lambda *given: (Planner(), {"rows": 3}))
    monkeypatch.setattr(compare, "measure", measure)
    compare.main([])
    cell = read_json(compare.cell_path("two_ways", "regression", 0))
    expected = compare.collect_demonstrations("two_ways")
    assert cell["demonstrations"] == kept["demonstrations"] == expected and cell["rows"] == 3


FIELDS = ("crossed", "separate", "w_flow", "sliced", "energy")


@pytest.fixture
def digits(tmp_path):
    words = [f"--results={tmp_path / 'fields.json'}", *(f"--field={name}" for name in FIELDS)]
    return load_script(BENCHMARKS / "fields_digits.py", *words)


def test_a_field_is_tuned_with_one_seed_and_measured_with_others(digits, monkeypatch, capsys):
    asked = []
    # {field: its best temperature, its distance there, its recall}
    of_fields = {
        "crossed": (0.1, 0.5, 0.9), "separate": (0.2, 0.3, 0.9), "w_flow": (0.05, 0.0, 0.7),
        "sliced": (1.0, 0.51, 0.9), "energy": (1.0, 0.7, 0.9),
    }  # fmt: skip

    def trained(config, workdir):
        if not config.encoder.path:
            return {}  # the run of the encoder
        drift, seed = config.drift, config.seed
        name = drift.combine if drift.field == "mean_shift" else drift.field
        asked.append((name, drift.temperatures[0], seed, config.train.num_steps))
        best, distance, recall = of_fields[name]
        found = dict.fromkeys(digits.METRICS, 0.9) | {"recall": recall}
        return found | {"fd_pixels": abs(drift.temperatures[0] - best) + distance + 0.01 * seed}

    monkeypatch.setattr(digits, "trained", trained)
    digits.main([])
    tuned = [call for call in asked if call[3] == digits.TUNING_STEPS]
    assert len(tuned) == 15 and {seed for *_, seed, _ in tuned} == {digits.TUNING_SEED}
    measured = [call for call in asked if call[3] == digits.STEPS]
    assert measured == [
        (name, of_fields[name][0], seed, digits.STEPS) for name in FIELDS for seed in digits.SEEDS
    ]
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("|")}
    assert rows["crossed"].endswith("|  |") and "0.520 ± 0.010" in rows["crossed"]
    verdicts = {name: rows[name].rsplit(" | ", 1)[1].strip("| ") for name in FIELDS[1:]}
    assert verdicts == {
        "separate": "better", "w_flow": "nearer, with less recall",
        "sliced": "no difference seen", "energy": "worse",
    }  # fmt: skip
    count = len(asked)
    digits.main([])
    assert len(asked) == count
    monkeypatch.setattr(digits, "STEPS", 501)
    with pytest.raises(app.UsageError, match="is of other settings; give another --results"):
        digits.main([])


def test_fields_with_a_second_batch_generate_as_many_samples(digits):
    tried = digits.candidates()
    sizes = {}
    for name in ("separate", "separate, fresh", "w_flow", "w_flow, two_fold"):
        config = digits.config_of(tried[name][0], seed=1, steps=digits.STEPS)
        sizes[name] = config.train.generated_per_label, config.train.positives_per_label
        assert config.drift.affinity_floor == 0 and config.seed == 1
    assert sizes == {
        "separate": (32, 32), "separate, fresh": (16, 16),
        "w_flow": (16, 16), "w_flow, two_fold": (32, 16),
    }  # fmt: skip


def test_a_field_that_is_better_is_measured_again_with_further_seeds(tmp_path, monkeypatch, capsys):
    """Of two that are better one stays so; the others are not measured again."""
    path = tmp_path / "toys.json"
    monkeypatch.syspath_prepend(BENCHMARKS)  # where the script's own modules lie
    script = load_script(BENCHMARKS / "fields.py", f"--results={path}")

    def of_seeds(distance, problems):
        return {" ".join(p): [distance - 0.01, distance, distance + 0.01] for p in problems}

    first = {"crossed": 3.0, "separate": 2.8, "bias_corrected": 2.8, "mmd": 3.3, "sharp": 3.01}
    again = iter([3.0, 2.9, 3.0])  # of the first three, in their order
    known = {name: tried for name, tried in script.candidates().items() if name in first}
    rows = {
        name: {
            "scale": script.shown(known[name][0]),
            "distance": of_seeds(first[name], script.PROBLEMS + script.SPIRAL),
            "variation": {"eight_gaussians between": [0.1, 0.1, 0.1]},
        }
        for name in known
    }
    write_json(path, rows)
    asked = []

    def runs(options, problems, seeds):
        asked.append((options, seeds))
        return of_seeds(next(again), problems), 1.0

    monkeypatch.setattr(script, "candidates", lambda: known)
    monkeypatch.setattr(script, "runs", runs)
    monkeypatch.setattr(script, "distances", lambda samples, problems: samples)
    script.main([])
    script.main([])
    better = ("crossed", "separate", "bias_corrected")
    assert asked == [(known[name][0], (4, 5, 6)) for name in better]
    assert [name for name, row in read_json(path).items() if "confirmation" in row] == [*better]
    verdicts = [line.split(" | ")[-1] for line in capsys.readouterr().out.splitlines()[-5:]]
    assert verdicts == [
        " |", "better, confirmed |", "better; with further seeds no difference seen |",
        "no difference seen |", "worse |",
    ]  # fmt: skip
