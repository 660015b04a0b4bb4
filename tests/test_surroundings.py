"""What other programs have set, or have broken, changes no number and ends no program."""

import fnmatch
import glob
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drifting_jax import surroundings
from drifting_jax.compatibility import NEWER_SETTINGS, enable_x64
from drifting_jax.config.streams import root_key
from drifting_jax.drawing import new_figure, own_style
from drifting_jax.errors import TransientError, UserError
from drifting_jax.files import expanded, shown
from drifting_jax.method.losses import drifting_loss

ROOT = Path(__file__).parents[1]


@pytest.fixture
def foreign_settings():
    """JAX as another program may have set it."""
    others = {
        "jax_enable_x64": True,
        "jax_default_prng_impl": "rbg",
        "jax_default_matmul_precision": "bfloat16",
        "jax_numpy_dtype_promotion": "strict",
        "jax_debug_nans": True,
        "jax_random_seed_offset": 3,
    }
    before = {name: getattr(jax.config, name) for name in others}
    for name, value in others.items():
        jax.config.update(name, value)
    yield others
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_settings_of_others_are_put_aside_and_back(foreign_settings):
    assert surroundings.JAX_SETTINGS.keys() >= foreign_settings.keys()
    with surroundings.settled_jax():
        assert jnp.arange(2.0).dtype == jnp.float32
        assert jnp.arange(2).dtype == jnp.int32
        assert jax.random.key(0).dtype == root_key(0).dtype
        assert (jax.random.key_data(jax.random.key(5)) == np.array([0, 5])).all()
        assert (jnp.float32(1) + jnp.int32(1)).dtype == jnp.float32
        jnp.log(-jnp.ones(1))  # not finite, and no error
    for name, value in foreign_settings.items():
        assert getattr(getattr(jax.config, name), "value", getattr(jax.config, name)) == value


def test_with_statements_of_the_caller_change_no_number():
    with enable_x64(True), jax.default_matmul_precision("bfloat16"):
        with surroundings.settled_jax():
            assert jnp.arange(2.0).dtype == jnp.float32
            assert jax.config.jax_default_matmul_precision is None
        assert jnp.arange(2.0).dtype == jnp.float64
    with jax.threefry_partitionable(False), surroundings.settled_jax():
        assert jax.config.jax_threefry_partitionable


def test_a_command_names_what_it_puts_aside(foreign_settings):
    found = surroundings.settle_jax()
    assert "jax_enable_x64=True" in found and len(found) == len(foreign_settings)
    assert surroundings.settle_jax() == []


def test_every_setting_is_one_of_this_version_and_its_default():
    missing = {name for name in surroundings.JAX_SETTINGS if not hasattr(jax.config, name)}
    assert missing <= NEWER_SETTINGS
    assert surroundings.settle_jax() == []


def test_a_root_key_has_its_implementation_whatever_the_default(foreign_settings):
    jax.config.update("jax_random_seed_offset", 0)
    assert str(jax.random.key_impl(root_key(2**32 - 1))) == "threefry2x32"
    assert jax.random.key_data(root_key(7)).tolist() == [0, 7]


def test_no_key_is_made_in_another_place():
    made = [
        path.name
        for path in (ROOT / "drifting_jax").rglob("*.py")
        if "random.key(" in path.read_text(encoding="utf-8").replace("`jax.random.key`", "")
    ]
    assert made == ["streams.py"]


@pytest.mark.slow
def test_the_loss_is_the_same_with_64_bits_switched_on():
    rng = np.random.default_rng(0)
    generated, positive = (rng.normal(size=(2, n, 1, 3)).astype(np.float32) for n in (5, 6))
    expected, statistics = drifting_loss(generated, positive)
    with enable_x64(True):
        found, theirs = drifting_loss(generated, positive)
    assert found.dtype == expected.dtype and found == expected
    for ours, other in zip(jax.tree.leaves(statistics), jax.tree.leaves(theirs), strict=True):
        assert ours.dtype == other.dtype and (ours == other).all()


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("Unable to initialize backend 'rocm': not known (set JAX_PLATFORMS='' …)", UserError),
        ("Unable to initialize backend 'tpu': ABORTED: already in use", TransientError),
    ],
)
def test_devices_that_are_not_there_are_one_line(monkeypatch, reason, kind):
    def fail():
        raise RuntimeError(reason)

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cpu finds no devices: .*[^)]; ") as error:
        surroundings.check_devices()
    assert type(error.value) is kind and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("there", "platforms", "extra"),
    [
        ("/dev/nvidia3", "", "cuda"),
        ("/dev/accel0", "", "tpu"),
        ("/dev/nvidia0", "cpu", None),
        ("", "", None),
    ],
)
def test_an_accelerator_that_is_not_used_is_named(monkeypatch, capsys, there, platforms, extra):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter([there], pattern))
    previous = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        surroundings.check_devices()
    finally:
        jax.config.update("jax_platforms", previous)
    told = capsys.readouterr().err
    if extra is None:
        assert not told
    else:
        assert f"({there})" in told and f"pip install -e '.[{extra}]'" in told


def test_figures_have_their_own_style(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "figure.dpi": 7}):
        backend = dict.__getitem__(matplotlib.rcParams, "backend")
        with own_style():
            figure = new_figure(figsize=(1, 1))
            figure.subplots().set_title("a title")
            figure.savefig(tmp_path / "a.png")
        assert figure.dpi == 100
        assert matplotlib.rcParams["text.usetex"]
        assert dict.__getitem__(matplotlib.rcParams, "backend") is backend


_DRAW = """
import os
from drifting_jax.drawing import new_figure, own_style
from drifting_jax.training import run
from drifting_jax import evaluate
with own_style():
    new_figure().savefig("a.png")
assert os.environ["MPLBACKEND"].startswith("module://")
"""


def test_a_backend_that_is_not_installed_does_not_matter(tmp_path):
    environment = os.environ | {"MPLBACKEND": "module://none.such", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", _DRAW], check=True, cwd=tmp_path, env=environment)


@pytest.fixture
def streams(monkeypatch):
    """Sets stdout and stderr, and guards them."""

    def guard(**of):
        for name, stream in of.items():
            monkeypatch.setattr(sys, name, stream)
        surroundings.guard_output()

    return guard


class _Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise BrokenPipeError


def test_what_cannot_be_printed_is_dropped(streams):
    closed = io.StringIO()
    closed.close()
    for stream in (_Full(), None, closed):
        streams(stdout=stream, stderr=stream)
        print("text", flush=True)
        print("text", file=sys.stderr, flush=True)
        sys.stdout.writelines(["a", "b"])


def test_characters_that_the_encoding_lacks_are_replaced(streams):
    for encoding, expected in (("ascii", b"? ? a"), ("utf-8", "² � a".encode())):
        raw = io.BytesIO()
        streams(stdout=io.TextIOWrapper(raw, encoding=encoding, errors="strict"))
        print("² \udce9 a", end="", flush=True)
        assert raw.getvalue() == expected


_PRINT = """
import sys
from drifting_jax.surroundings import guard_output
guard_output()
guard_output()
print("text " * 10000)
print("text", file=sys.stderr)
sys.exit(75)
"""


@pytest.mark.parametrize("where", ["> /dev/full 2>&1", ">&- 2>&-", "| head -c 1"])
def test_the_exit_status_stays(where):
    command = f"{sys.executable} -c '{_PRINT}' {where}; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", command], env=environment).returncode == 75


def test_a_path_begins_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("~") == "/home/someone"
    assert expanded("~/runs/x") == "/home/someone/runs/x"
    for text in ("", "runs/~x", "hf://owner/repo", "/a b"):
        assert expanded(text) == text
    with pytest.raises(UserError, match="expected a home folder for ~nobody-of-this-name/x"):
        expanded("~nobody-of-this-name/x")
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UserError, match="expected a home folder for ~/x, found none"):
        expanded("~/x")
    with pytest.raises(UserError, match="zero character"):
        expanded("a\0b")


def test_names_that_are_not_utf8_are_shown():
    assert shown(os.fsdecode(b"caf\xe9 \xc2\xb2")) == "caf\N{REPLACEMENT CHARACTER} ²"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "{tmp}"}, "{tmp}/drifting_jax/compiled"),
        ({"HOME": "{tmp}"}, "{tmp}/.cache/drifting_jax/compiled"),
        ({"XDG_CACHE_HOME": "{tmp}", "JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, "/elsewhere"),
        ({"XDG_CACHE_HOME": "{tmp}", "JAX_COMPILATION_CACHE_DIR": ""}, ""),
        ({"XDG_CACHE_HOME": "/dev/null"}, "None"),  # no folder can be made there
    ],
)
def test_compiled_programs_are_kept_in_the_users_cache_folder(tmp_path, variables, expected):
    inherited = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {name: x for name, x in os.environ.items() if name not in inherited}
    environment |= {name: x.format(tmp=tmp_path) for name, x in variables.items()}
    text = (
        "import jax\nfrom drifting_jax import surroundings\n"
        "surroundings.keep_compiled()\nprint(jax.config.jax_compilation_cache_dir)"
    )
    found = subprocess.run(
        [sys.executable, "-c", text], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout.strip() == expected.format(tmp=tmp_path), found.stderr
