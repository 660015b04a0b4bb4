"""Configs: mistakes are one line that names the field, and a run keeps what it began with."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from drifting_jax.config import base as configs
from drifting_jax.config import defaults
from drifting_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def _changed(task="generator", **fields):
    """The base config with "section__field" set, past the lock and the types of ConfigDict."""
    values = configs._plain(configs.base_config(task))
    for name, value in fields.items():
        *sections, last = name.split("__")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    return configs.ConfigDict(values)


@pytest.mark.parametrize("task", ["generator", "toy"])
def test_the_defaults_are_valid_and_locked(task):
    config = configs.base_config(task)
    configs.validate(config)
    assert config.task == task
    with pytest.raises(AttributeError, match="num_steps"):
        config.train.num_stepz = 3
    config.train.num_steps = 3
    assert configs.base_config(task).train.num_steps != 3


def test_tables_of_rules_name_fields_that_exist():
    fields = set().union(*(configs.flat(values) for values in defaults.DEFAULTS.values()))
    for table in ("CHOICES", "MAY_BE_ZERO", "AT_MOST_ONE", "BELOW_ONE", "MAY_BE_EMPTY"):
        assert set(getattr(defaults, table)) <= fields, table
    assert fields >= configs._MAY_GROW


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__num_stepz": 3}, "config.train.num_stepz does not exist.*train.num_steps$"),
        ({"optim__num_steps": 3}, "config.optim.num_steps does not exist.*num_steps$"),
        ({"trian": 3}, r"config.trian does not exist; the nearest .* config.train$"),
        ({"train__num_steps": 0}, "config.train.num_steps must be above zero; found 0"),
        ({"train__num_steps": 2.5}, "config.train.num_steps must be of type int; found 2.5"),
        ({"train__num_steps": True}, "must be of type int; found True"),
        ({"train__num_steps": None}, "must be of type int; found None"),
        ({"data__flip": 1}, "config.data.flip must be of type bool; found 1"),
        ({"drift": 3}, "config.drift is a section"),
        ({"optim__learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"optim__learning_rate": -1.0}, "learning_rate must be above zero; found -1.0"),
        ({"optim__weight_decay": -0.1}, "weight_decay must be zero or above"),
        ({"optim__b2": 1.0}, "config.optim.b2 must be below 1; found 1.0"),
        ({"guidance__probability_of_one": 1.5}, "probability_of_one must be at most 1"),
        ({"guidance__minimum": 5.0}, "guidance.minimum must be at most config.guidance.maximum"),
        ({"drift__temperatures": ()}, "drift.temperatures must have at least one entry"),
        ({"drift__temperatures": (0.1, "x")}, "temperatures must be of type float; found 'x'"),
        ({"drift__temperatures": (0.1, 0.0)}, "temperatures must be above zero"),
        ({"drift__temperatures": 0.1}, "temperatures must be a tuple"),
        ({"drift__kernel": "cubic"}, "config.drift.kernel must be one of .*'cubic'"),
        ({"model__num_heads": 3}, "model.num_heads must divide config.model.width; found 3 and"),
        ({"encoder__groups": 7}, "encoder.groups must divide config.encoder.width"),
        ({"queue__per_class": 2}, "train.positives_per_label must be at most config.queue.per_cl"),
        (
            {"eval__ema_decay": 0.5},
            r"eval.ema_decay must be one of config.train.ema_decays .*; found 0.5",
        ),
        ({"mesh__data": -2}, "config.mesh.data must be above zero"),
        ({"mesh__rules": (("a", "fsdp"),)}, "config.mesh.rules must hold pairs"),
        ({"mesh__rules": (("(", ("fsdp",)),)}, "config.mesh.rules has the bad regex"),
        ({"mesh__rules": (("a", (None, "model")),)}, "may name the mesh axes 'data' and 'fsdp'"),
        ({"mesh__rules": (("a", ("fsdp", "fsdp")),)}, "each once in a rule"),
        ({"guidance__minimum": 0.5}, "guidance.minimum must be at least 1, where guidance is off"),
        (
            {"optim__schedule": "cosine", "optim__warmup_steps": 9, "train__num_steps": 9},
            "train.num_steps must be above config.optim.warmup_steps for a cosine schedule; found",
        ),
        (
            {"encoder__train__schedule": "cosine", "encoder__train__warmup_steps": 2000},
            "encoder.train.num_steps must be above config.encoder.train.warmup_steps",
        ),
        ({"model__num_style_books": 0}, "num_style_books must be above zero"),
        ({"task": "toi"}, "config.task must be one of 'generator', 'encoder', 'toy'; found 'toi'"),
    ],
)
def test_a_mistake_names_its_field(fields, message):
    with pytest.raises(UserError, match=message) as error:
        configs.validate(_changed(**fields))
    assert "\n" not in str(error.value)


def test_what_is_allowed():
    rules = (("attention/.*", (None, "fsdp")), (".*", ()))
    config = _changed(
        mesh__rules=rules,
        drift__temperatures=(1,),
        queue__per_class=2,
        queue__allow_repeats=True,
        features__patch_sizes=(),
        optim__clip_norm=0,
    )
    resolved = configs.resolve(config)
    assert resolved.mesh.rules == rules
    assert resolved.drift.temperatures == (1.0,)
    assert isinstance(resolved.drift.temperatures[0], float)
    assert isinstance(resolved.optim.clip_norm, float)


def test_a_missing_field_is_named():
    config = configs.base_config("toy").copy_and_resolve_references()
    with config.unlocked():
        del config.optim.b1
    with pytest.raises(UserError, match=r"config.optim.b1 is missing"):
        configs.validate(config)


def test_save_and_load(tmp_path):
    config = _changed(eval__cfg_scales=(1, 1.5), mesh__rules=(("x", (None, "fsdp")),), seed=4)
    configs.save_config(tmp_path / "run", config)
    assert configs.load_config(tmp_path / "run").to_dict() == configs.resolve(config).to_dict()
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    packages = {"python", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"}
    assert record["versions"].keys() == packages | {"drifting_jax"}
    assert record["config"]["seed"] == 4
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_workdir_without_a_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        configs.load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"ta')
    with pytest.raises(UserError, match="is not a config that a run wrote"):
        configs.load_config(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"mesh__fsdp": 2},
        {"data__num_workers": 4},
        {"log_every": 1},
        {"train__num_steps": 10**6},
        {"train__sample_every": 7},
        {"train__save_every": 7},
        {"eval__cfg_scales": (3.0,)},
    ],
)
def test_a_resumed_run_may_change(tmp_path, fields):
    configs.save_config(tmp_path, configs.base_config("generator"))
    configs.check_resume(configs.load_config(tmp_path), _changed(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train__num_steps": 1}, "config.train.num_steps may only grow .* it has 3000, now 1;"),
        ({"seed": 1}, "config.seed cannot change .* it has 0, now 1; .*another --workdir"),
        ({"drift__temperatures": (0.1,)}, r"drift.temperatures cannot change .* now \(0.1,\)"),
        ({"data__source": "mnist"}, "data.source cannot change .* 'digits', now 'mnist'"),
        ({"new": 1}, "config.new cannot change .* it has 'absent', now 1"),
    ],
)
def test_a_resumed_run_may_not_change(tmp_path, fields, message):
    configs.save_config(tmp_path, configs.base_config("generator"))
    with pytest.raises(UserError, match=message):
        configs.check_resume(configs.load_config(tmp_path), _changed(**fields))


def test_default_workdir():
    assert configs.default_workdir("configs/digits.py") == Path("runs/digits")
    assert configs.default_workdir("a/b/digits.py:tiny") == Path("runs/digits_tiny")
    assert configs.default_workdir("digits.py:width=3,x/y") == Path("runs/digits_width-3-x-y")


_PROGRAM = """
import sys
from absl import app
from ml_collections import config_flags
from drifting_jax import config as configs
from drifting_jax.commands.command_line import parse_flags

CONFIG = config_flags.DEFINE_config_file("config")

def main(_):
    config = configs.resolve(CONFIG.value)
    print(config.train.num_steps, config.train.ema_decays, config.data.flip)

app.run(main, flags_parser=parse_flags)
"""

_CONFIG_FILE = """
from drifting_jax.config import base_config
from drifting_jax.errors import UserError

def get_config(variant=""):
    if variant not in ("", "long"):
        raise UserError(f"no variant {variant!r}; there is 'long'")
    config = base_config("generator")
    config.train.num_steps = 9 if variant else 5
    return config
"""


def _run(directory, *arguments):
    (directory / "program.py").write_text(_PROGRAM)
    (directory / "small.py").write_text(_CONFIG_FILE)
    return subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_overrides_from_the_command_line(tmp_path):
    done = _run(
        tmp_path,
        "--config=small.py:long",
        "--config.train.ema_decays=0.9,0.999",
        "--config.data.flip",
    )
    assert (done.returncode, done.stdout) == (0, "9 (0.9, 0.999) True\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.num_stepz=3"], "nearest field is config.train.num_steps"),
        (["--config.trian.num_steps", "3"], "nearest field is config.train.num_steps"),
        (["--config.train.num_steps.x=3"], "config.train.num_steps is a value"),
        (["--config.train=3"], "config.train is a section"),
        (["--config.train.num_steps=abc"], "config.train.num_steps=abc: invalid literal"),
        (["--confg.seed=3"], "Unknown command line flag 'confg.seed'"),
        (
            ["--config=nowhere.py"],
            "--config=nowhere.py is not a file that can be read; found there: program.py, small.py",
        ),
        (["--config=small.py:shrt"], "no variant 'shrt'; there is 'long'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, arguments, message):
    first = [] if arguments[0].startswith("--config=") else ["--config=small.py"]
    done = _run(tmp_path, *first, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_a_bug_in_a_config_file_shows_where_it_is(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return int('x')\n")
    done = _run(tmp_path, "--config=broken.py")
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert "return int('x')" in done.stderr


def test_statistics_by_piece_need_a_number_of_pieces_that_stays():
    """Another number of pieces is another method then, so devices must not choose it."""
    by_piece = {"train__shared_statistics": "microbatch"}
    with pytest.raises(UserError, match=r"'microbatch' needs config.train.microbatches as a num"):
        configs.resolve(_changed(**by_piece, train__microbatches=0))
    two, four = (configs.resolve(_changed(**by_piece, train__microbatches=n)) for n in (2, 4))
    with pytest.raises(UserError, match=r"config.train.microbatches cannot change in a run"):
        configs.check_resume(two, four)
    configs.check_resume(*(configs.resolve(_changed(train__microbatches=n)) for n in (2, 4)))


def test_an_encoder_by_itself_may_train_longer():
    long = {"encoder__train__num_steps": 5000}
    for task, grows in (("encoder", True), ("generator", False)):
        found = [configs.resolve(_changed(task, **changes)) for changes in ({}, long)]
        with contextlib.nullcontext() if grows else pytest.raises(UserError, match="num_steps"):
            configs.check_resume(*found)
