"""config.json: what a run keeps, what an older run lacks, and what a resume may change."""

import contextlib
import json
from pathlib import Path

import pytest
from changed_config import changed

from drifting_jax.config import (
    Field,
    base,
    base_config,
    check_resume,
    fields,
    load_config,
    resolve,
    save_config,
    stored,
    values_to_keep,
    with_values,
)
from drifting_jax.errors import UserError


def test_save_and_load(tmp_path):
    config = changed(eval__cfg_scales=(1, 1.5), mesh__rules=(("x", (None, "fsdp")),), seed=4)
    save_config(tmp_path / "run", config)
    assert load_config(tmp_path / "run").to_dict() == resolve(config).to_dict()
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    packages = {"python", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"}
    assert record["versions"].keys() == packages | {"drifting_jax"}
    assert record["config"]["seed"] == 4
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_workdir_without_a_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: there is no .*config\.json$"):
        load_config(tmp_path)
    for name in ("digits", "images_small"):
        save_config(tmp_path / name, base_config("generator"))
        (tmp_path / name / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"config\.json; .* holds the runs digits, images_small$"):
        load_config(tmp_path / "images")
    (tmp_path / "config.json").write_text('{"config": {"ta')
    with pytest.raises(UserError, match="is not a config that a run wrote"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh__fsdp": 2},
        {"data__num_workers": 4},
        {"log_every": 1},
        {"tracker": "wandb"},
        {"train__num_steps": 10**6},
        {"train__sample_every": 7},
        {"train__save_every": 7},
        {"eval__cfg_scales": (3.0,)},
    ],
)
def test_a_resumed_run_may_change(tmp_path, changes):
    save_config(tmp_path, base_config("generator"))
    check_resume(load_config(tmp_path), changed(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__num_steps": 1}, "config.train.num_steps may only grow .* it has 3000, now 1;"),
        ({"seed": 1}, "config.seed cannot change .* it has 0, now 1; .*another --workdir"),
        ({"drift__temperatures": (0.1,)}, r"drift.temperatures cannot change .* now \(0.1,\)"),
        ({"data__source": "mnist"}, "data.source cannot change .* 'digits', now 'mnist'"),
        ({"drift__field": "other"}, "drift.field cannot change .* has 'mean_shift', now 'other'"),
    ],
)
def test_a_resumed_run_may_not_change(tmp_path, changes, message):
    save_config(tmp_path, base_config("generator"))
    with pytest.raises(UserError, match=message):
        check_resume(load_config(tmp_path), changed(**changes))


def stored_without(workdir: Path, *names: str, **others) -> Path:
    """A workdir whose config.json lacks fields of today and has others at its top."""
    save_config(workdir, base_config("generator"))
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    for name in names:
        section, _, last = name.rpartition(".")
        del record["config"][section][last]
    record["config"] |= others
    path.write_text(json.dumps(record))
    return workdir


def test_a_run_of_an_older_version_lacks_fields_and_goes_on(tmp_path):
    workdir = stored_without(tmp_path, "model.kind", "drift.field", "train.keep_every")
    found = load_config(workdir)
    assert found.to_dict() == base_config("generator").to_dict()
    check_resume(found, resolve(base_config("generator")))


def test_a_new_field_may_have_another_value_in_older_runs(tmp_path, monkeypatch):
    """Such a run goes on with the value that it was begun with, unless the user sets another."""
    workdir = stored_without(tmp_path)
    extra = {"drift.power": Field(2.0, "a field of tomorrow", absent=1.0)}
    for module in (base, stored):
        monkeypatch.setattr(module, "fields", lambda task: fields(task) | extra)
    found = load_config(workdir)
    assert found.drift.power == 1.0
    current = changed(drift__power=2.0)
    with pytest.raises(UserError, match=r"config.drift.power cannot change .* has 1.0, now 2.0"):
        check_resume(found, current)
    assert values_to_keep(found, current) == {"drift.power": 1.0}
    assert values_to_keep(found, current, given=["drift.power"]) == {}
    assert values_to_keep(found, changed(drift__power=3.0)) == {}
    kept = with_values(current, {"drift.power": 1.0})
    check_resume(found, kept)
    save_config(workdir, kept)  # from now on the field is there
    assert values_to_keep(load_config(workdir), current) == {"drift.power": 1.0}


def test_fields_that_no_version_knows_are_named(tmp_path):
    workdir = stored_without(tmp_path, widht=3, drift={"old": 1})
    with pytest.raises(UserError, match=r"does not know: config.*; use the version that") as error:
        load_config(workdir)
    assert "config.widht" in str(error.value) and "config.drift.old" in str(error.value)


def test_a_removed_field_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    workdir = stored_without(tmp_path, widht=3)
    monkeypatch.setitem(stored.REMOVED, "widht", "model.width replaced it")
    assert load_config(workdir).to_dict() == base_config("generator").to_dict()
    assert "config.widht is ignored: model.width replaced it" in caplog.text


def test_a_stored_config_without_a_task_of_ours_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"task": "toi"}}')
    with pytest.raises(UserError, match=r"one of 'generator', .*; found 'toi'"):
        load_config(tmp_path)


def test_an_encoder_by_itself_may_train_longer():
    long = {"encoder__train__num_steps": 5000}
    for task, grows in (("encoder", True), ("generator", False)):
        found = [resolve(changed(task, **changes)) for changes in ({}, long)]
        with contextlib.nullcontext() if grows else pytest.raises(UserError, match="num_steps"):
            check_resume(*found)


def test_the_number_of_microbatches_stays_where_the_loss_depends_on_it():
    of_each = {"train__shared_statistics": "microbatch"}
    two, four = (resolve(changed(**of_each, train__microbatches=n)) for n in (2, 4))
    with pytest.raises(UserError, match=r"config.train.microbatches cannot change in a run"):
        check_resume(two, four)
    check_resume(*(resolve(changed(train__microbatches=n)) for n in (2, 4)))


@pytest.mark.parametrize(("old", "new"), [(False, "none"), (True, "block")])
def test_older_words_of_a_field_are_understood(tmp_path, old, new):
    """`remat` was on or off: in stored configs, and in command lines, which give strings."""
    save_config(tmp_path, base_config("generator"))
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    record["config"]["model"]["remat"] = old
    path.write_text(json.dumps(record))
    assert load_config(tmp_path).model.remat == new
    assert resolve(changed(model__remat=str(old))).model.remat == new
    with pytest.raises(UserError, match=r"config\.model\.remat must be one of .*found 'on'"):
        resolve(changed(model__remat="on"))
