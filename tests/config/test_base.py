"""Configs of each task, made from their fields."""

import pytest

from drifting_jax.config import base_config, fields, resolve, sections, validate
from drifting_jax.errors import UserError

TASKS = ("generator", "encoder", "toy", "policy", "pairs")


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_are_valid_and_locked(task):
    config = base_config(task)
    validate(config)
    assert config.task == task
    with pytest.raises(AttributeError, match="num_steps"):
        config.train.num_stepz = 3
    config.train.num_steps = 3
    assert base_config(task).train.num_steps != 3


@pytest.mark.parametrize("task", TASKS)
def test_every_field_is_described_once(task):
    found = fields(task)
    assert len(found) == sum(len(section.fields) for section in sections(task))
    for name, field in found.items():
        assert field.doc and "\n" not in field.doc and not field.doc.endswith("."), name
        assert field.on_resume in ("fixed", "may change", "may grow"), name
    for section in sections(task):
        assert section.doc.endswith(".") and "\n" not in section.doc, section.name


def test_other_tasks_are_refused():
    for function in (base_config, fields, sections):
        with pytest.raises(UserError, match=r"one of 'generator', .*'pairs'; found 'toi'"):
            function("toi")


def test_fields_that_older_runs_lack_keep_their_behaviour():
    for task in ("generator", "encoder"):
        assert fields(task)["model.kind"].default == "dit"
    for task in ("generator", "encoder", "toy"):
        assert fields(task)["drift.field"].default == "mean_shift"


def test_resolving_gives_the_types_of_the_defaults():
    config = base_config("generator").copy_and_resolve_references()
    with config.ignore_type():
        config.drift.temperatures = [1, 2]
        config.optim.clip_norm = 0
    found = resolve(config)
    assert found.drift.temperatures == (1.0, 2.0)
    assert {type(number) for number in found.drift.temperatures} == {float}
    assert isinstance(found.optim.clip_norm, float)
    assert found.is_locked


def test_a_path_begins_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = base_config("generator")
    config.data.path, config.eval.reference, config.encoder.path = "~/a", "~/b.npz", "~/c"
    config.vae.path, config.extra_encoder.path = "hf://owner/repo", "~/e"
    found = resolve(config)
    assert (found.data.path, found.eval.reference) == ("/home/someone/a", "/home/someone/b.npz")
    assert (found.encoder.path, found.extra_encoder.path) == ("/home/someone/c", "/home/someone/e")
    assert found.vae.path == "hf://owner/repo"
    paths = {name for name in fields("generator") if name.rpartition(".")[2] == "path"}
    assert all(fields("generator")[name].is_path for name in paths)
