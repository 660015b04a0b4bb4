"""Flags of a config: overrides, and mistakes that are one line on stderr."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from drifting_jax.commands import command_line
from drifting_jax.commands.command_line import parse_plain_flags

ROOT = Path(__file__).parents[2]

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


def _write_files(directory):
    (directory / "program.py").write_text(_PROGRAM)
    (directory / "small.py").write_text(_CONFIG_FILE)


def _run(directory, *arguments):
    _write_files(directory)
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
def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path, monkeypatch, capsys, arguments, message
):
    _write_files(tmp_path)
    first = [] if arguments[0].startswith("--config=") else ["--config=small.py"]
    words, values = ["program.py", *first, *arguments], flags.FlagValues()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    monkeypatch.setattr(command_line.flags, "FLAGS", values)
    with pytest.raises(SystemExit, match="2"):
        command_line.parse_flags(words)
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1 and told.startswith("error: ")


def test_a_mistake_ends_a_program_with_status_two(tmp_path):
    done = _run(tmp_path, "--config=small.py", "--config.train.num_stepz=3")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr


def test_a_bug_in_a_config_file_shows_where_it_is(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return int('x')\n")
    done = _run(tmp_path, "--config=broken.py")
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert "return int('x')" in done.stderr


@pytest.mark.parametrize("flag", ["workdir", "out", "source", "images", "config.data.path"])
def test_a_path_on_the_command_line_begins_in_the_home_folder(monkeypatch, flag):
    monkeypatch.setenv("HOME", "/home/someone")
    values = flags.FlagValues()
    for name in (flag, "vae"):
        flags.DEFINE_string(name, "", "a path", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    for words in ([f"--{flag}=~/a b"], [f"--{flag}", "~/a b"]):
        parse_plain_flags(["program", *words, "--vae=hf://owner/repo"])
        assert (values[flag].value, values.vae) == ("/home/someone/a b", "hf://owner/repo")


def test_a_home_folder_that_is_not_there_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_plain_flags(["program", "--out=~no-such-user/x"])
    assert capsys.readouterr().err.startswith("error: expected a home folder for ~no-such-user/x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("sample", {"workdir", "weights", "ema_decay", "step", "conditions", "out"}),
        ("export", {"workdir", "weights", "vae", "out"}),
        ("evaluate", {"workdir", "weights", "cfg_scales"}),
        ("demo", {"workdir", "weights", "port"}),
    ],
)
def test_help_lists_all_flags_of_a_command(command, expected):
    """Also those that several commands share, and none of a library."""
    program = [sys.executable, "-m", f"drifting_jax.{command}", "--help"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = set(re.findall(r"^ +--(?:\[no\])?(\w+)[:;]", done.stdout, re.MULTILINE))
    assert expected <= found and "verbosity" not in found and "config" not in found
