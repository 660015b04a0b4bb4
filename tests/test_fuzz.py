"""Whatever the bytes or the words, the result is a value or a documented error.

The quick suite tries a few of each; DRIFTING_FUZZ_EXAMPLES=1000 tries more, and `tests/fuzz.py`
damages files for many minutes.
"""

import contextlib
import logging
import os
import random

import fuzz_targets
import fuzzing
import jax
import numpy as np
import pytest
import tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from drifting_jax import sample
from drifting_jax.commands import command_line, evaluate_flags
from drifting_jax.config import base_config, resolve
from drifting_jax.config.base import fields
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError

EXAMPLES = int(os.environ.get("DRIFTING_FUZZ_EXAMPLES", "8"))
FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=10 * EXAMPLES)
_OF_ML_COLLECTIONS = (TypeError, AttributeError, ValueError, OverflowError)  # to the config's code
NAMES = ("n01440764", "n02099601", "cat", "t-shirt", "3")
TARGETS = fuzz_targets.make_targets()


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    """Readers warn about what they leave out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        logging.disable()
        yield
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_good_files_are_read(name, tmp_path):
    target = TARGETS[name]
    if name != "image truncated.JPEG" and not name.startswith("data begun"):
        target = fuzzing.Target(target.files, target.read, ())
    with contextlib.suppress(UserError if name == "run data.json again" else ()):
        fuzzing.read_changed(target, tmp_path / "good", {})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_files(name, tmp_path_factory, seed):
    fuzzing.check(TARGETS[name], tmp_path_factory.getbasetemp() / "fuzz_of_files", seed)


words = st.one_of(
    st.text(max_size=12),
    st.text("0123456789-, .eEx_", max_size=8),
    st.sampled_from(["9" * 5000, "0-" + "9" * 30, "٣", "²", "nan", "inf", "1e999", "-0", "0x1"]),
)


@MANY
@given(st.lists(st.one_of(words, st.sampled_from(NAMES)), max_size=4).map(",".join))
def test_class_lists(text):
    with contextlib.suppress(UserError), fuzzing.within(60):
        found = sample.parse_classes(text, NAMES)
        assert len(set(found)) == len(found) and set(found) <= set(range(len(NAMES)))


@MANY
@given(st.lists(words, max_size=3))
def test_lists_of_numbers(listed):
    for read in (evaluate_flags.scales_of, evaluate_flags.seeds_of):
        values = type("Values", (), {"cfg_scales": listed, "seeds": listed})
        with contextlib.suppress(UserError):
            assert all(0 <= x < 2**32 for x in read(values))


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
        st.sampled_from([10**400, -(10**400), 2**63, 2**31, 1e308, "pillow", "train/.*"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
    ),
    max_leaves=5,
)  # fmt: skip


@MANY
@given(st.sampled_from(["generator", "encoder", "toy"]), st.data())
def test_values_of_config_fields(task, data):
    base = tiny_config.get_config() if task == "generator" else base_config(task)
    with base.unlocked():
        for _ in range(data.draw(st.integers(1, 2))):
            name = data.draw(st.sampled_from(sorted(fields(task))))
            *sections, last = name.split(".")
            section = base
            for part in sections:
                section = section[part] if hasattr(section, "keys") else {}
            with contextlib.suppress(*_OF_ML_COLLECTIONS):
                section[last] = data.draw(values)
    with contextlib.suppress(UserError):
        assert resolve(resolve(base)) == resolve(base)


rules = st.lists(
    st.one_of(
        values,
        st.tuples(
            st.one_of(
                st.text("ab/.*+?()[]{}|\\^$0123456789", max_size=8),
                st.sampled_from(["a{99999999999}", "(" * 500 + ")" * 500, "(?P<a", "\\"]),
            ),
            st.lists(st.sampled_from([None, "fsdp", "data", ("data", "fsdp"), "model", [], 3])),
        ),
    ),
    max_size=3,
)


@MANY
@given(rules)
def test_mesh_rules(listed):
    config = tiny_config.get_config()
    with config.unlocked():
        config.mesh.rules = tuple(listed)
    with contextlib.suppress(UserError), fuzzing.within(60):
        config = resolve(config)
        shapes = {"params": {"a": {"kernel": jax.ShapeDtypeStruct((4, 8, 3), np.float32)}}}
        mesh = meshes.make_mesh()
        found = meshes.sharding_for_tree(shapes, mesh, config.mesh.rules)
        assert found["params"]["a"]["kernel"].shard_shape((4, 8, 3))


ROOT_CONFIG = "configs/toy2d.py"


@MANY
@given(st.lists(st.tuples(st.sampled_from([*sorted(fields("toy"))[:40], "no.such", ""]), words)))
def test_overrides_of_the_command_line(overrides):
    """A mistake ends with status 2, as `parse_flags` says; another error would be a traceback."""
    from absl import flags

    holder = flags.FlagValues()
    root = os.path.join(os.path.dirname(__file__), os.pardir, ROOT_CONFIG)
    argv = ["main.py", f"--config={root}"]
    argv += [f"--config.{name}={value}" for name, value in overrides]
    config_flags.DEFINE_config_file("config", flag_values=holder, sys_argv=argv)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line.flags, "FLAGS", holder)
        patch.setattr("sys.argv", argv)
        try:
            command_line.parse_flags(argv)
        except SystemExit as end:
            assert end.code == 2
            return
    with contextlib.suppress(UserError):
        resolve(holder["config"].value)


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_the_same_for_the_same_seed(seed):
    for target in list(TARGETS.values())[:6]:
        data = next(iter(target.files.values()))
        first, again = (fuzzing.mutated(data, random.Random(seed)) for _ in range(2))
        assert first == again
