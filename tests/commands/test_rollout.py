"""Demonstrations, a policy of them, and its rollouts, by their commands."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from own_flags import run_command

import drifting_jax as dj
from drifting_jax import prepare, rollout
from drifting_jax.errors import UserError
from drifting_jax.files import read_json
from drifting_jax.models.calls import init_params
from drifting_jax.models.conditioned import ConditionedMLP
from drifting_jax.policy.folders import Weights, write_folder
from drifting_jax.policy.policy import load_policy
from drifting_jax.policy.scaling import Scalings
from drifting_jax.policy.windows import Horizons
from drifting_jax.steps.scaling import scaling_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds demos.npz and run/, a policy that has hardly learned."""
    folder = tmp_path_factory.mktemp("two_ways")
    path = folder / "new" / "demos.npz"
    run_command(
        prepare, "demonstrations", "--environment=two_ways", "--episodes=3", f"--out={path}"
    )
    config = dj.base_config("policy")
    config.data.path = str(path)
    config.model.width, config.model.depth, config.condition.width = 8, 1, 8
    config.train.conditions, config.train.generated, config.mesh.data = 8, 2, 1
    config.train.num_steps = config.train.save_every = config.log_every = 2
    config.optim.warmup_steps = 1
    config.eval.conditions, config.eval.samples = 4, 2
    dj.train(dj.resolve_config(config), workdir=folder / "run")
    return folder


def test_demonstrations_are_what_a_policy_reads(folder):
    with np.load(folder / "new" / "demos.npz") as arrays:
        assert set(arrays) == {"observations", "actions", "episode_ends"}
        assert arrays["episode_ends"].shape == (3,) and arrays["episode_ends"][-1] > 60


def test_rollouts_of_a_run_and_the_same_command_again(folder, capsys):
    words = (f"--workdir={folder / 'run'}", "--environment=two_ways", "--episodes=2")
    run_command(rollout, *words, "--seeds=0,1", "--gif_every=8")
    printed = capsys.readouterr().out
    out = folder / "run" / "rollouts" / "two_ways"
    assert "seed 1: 0 of 2 solved" in printed and f"report: {out / 'report.html'}" in printed
    found = read_json(out / "rollouts.json")
    assert found["success_by_seed"] == {"0": 0.0, "1": 0.0} and found["policy"]["step"] == 2
    assert found["milliseconds_per_plan"] > 0
    assert (out / "seed_1_failure.gif").exists() and not (out / "seed_1_success.gif").exists()
    before = (out / "seed_0.json").stat().st_mtime_ns, (out / "seed_0.npz").read_bytes()
    run_command(rollout, *words, "--seeds=0", "--gif_every=8")
    assert ((out / "seed_0.json").stat().st_mtime_ns, (out / "seed_0.npz").read_bytes()) == before
    (out / "seed_0.json").unlink()
    run_command(rollout, *words, "--seeds=0", "--gif_every=0")
    assert (out / "seed_0.npz").read_bytes() == before[1]


def test_beginnings_far_outside_of_the_demonstrations_are_told(folder, tmp_path, capsys):
    policy = load_policy(folder / "run")
    known = policy.scalings.observation
    shifted = known.replace(centre=known.centre + np.float32([0, 40]) * known.half_range)
    weights = {name: getattr(policy, name) for name in Weights._fields}
    weights |= {"scalings": policy.scalings._replace(observation=shifted)}
    write_folder(tmp_path / "hub", Weights(**weights))
    words = ("--environment=two_ways", "--episodes=1", "--seeds=0,1", "--gif_every=0")
    for source, told in (
        (f"--workdir={folder / 'run'}", 0),
        (f"--weights={tmp_path / 'hub'}", 1),
    ):
        run_command(rollout, source, *words, f"--out={tmp_path / str(told)}")
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning")]
        assert len(lines) == told
    low, high = (float(shifted.centre[1] + x * shifted.half_range[1]) for x in (-1, 1))
    assert lines[0].startswith(
        "warning: the first observation of the first episode of 2 of 2 seeds is far outside of the "
        "training range: "
    )
    assert lines[0].endswith(f"in dimension 1, where training had {low:.4g} to {high:.4g}")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds=0,0"], "--seeds must be different numbers"),
        (["--seeds=a"], "found a"),
        (["--environment=nowhere"], "found 'nowhere'"),
        (["--workdir=nowhere"], "nowhere"),
        (["--workdir="], "expected one of --workdir and --weights"),
        (["--weights=x"], "expected one of --workdir and --weights"),
        (["--workdir=", "--weights=x"], "--weights goes with --out"),
        (["--environment=no/my_env.py:Mine"], "there is no file no/my_env.py"),
    ],
)
def test_mistakes_of_rollout(folder, words, message):
    given = [f"--workdir={folder / 'run'}", "--environment=two_ways", *words]
    with pytest.raises(UserError, match=message):
        run_command(rollout, *given)


@pytest.mark.parametrize(
    "words, message",
    [
        (["demonstrations", "--out=x.npz"], "--environment is missing"),
        (["demonstrations", "--out=x", "--environment=two_ways"], "expected --out=FILE.npz"),
        (["demonstrations", "--out=x.npz", "--environment=no"], "found 'no'"),
        (["shards", "--out=x"], "--source is missing"),
        (["others", "--out=x"], "shards, latents and demonstrations; found others"),
    ],
)
def test_mistakes_of_prepare(words, message):
    with pytest.raises(UserError, match=message):
        run_command(prepare, *words)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with the environment of the documentation, my_env.py."""
    text = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n([^`]*class MyEnvironment[^`]*)^```$", text, re.MULTILINE)
    (tmp_path / "my_env.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_environment_of_the_documentation(own, capsys):
    """Its demonstrations, and rollouts of a policy that has learned nothing, from a folder."""
    words = ("--environment=my_env.py:MyEnvironment", "--episodes=2")
    run_command(prepare, "demonstrations", *words, "--out=demos.npz")
    assert "2 demonstrations of my_env.py:MyEnvironment" in capsys.readouterr().out
    with np.load("demos.npz") as arrays:
        scalings = Scalings(*(scaling_of(arrays[n]) for n in ("observations", "actions")))
    model = ConditionedMLP(width=4, depth=1, condition_width=4, condition_depth=1)
    sizes = [len(scaling.centre) for scaling in scalings]
    inputs = np.zeros((1, 1, 4, sizes[1])), np.zeros((1, 2, sizes[0]))
    params = jax.device_get(init_params(model, jax.random.key(0), *inputs))
    write_folder(own / "hub", Weights(model, params, Horizons(2, 4, 2), scalings, 3, 0.99))
    words = (*words, "--weights=hub", "--out=out", "--gif_every=10")
    run_command(rollout, *words)
    found = read_json("out/rollouts.json")
    assert found["environment"] == "my_env.py:MyEnvironment" and found["policy"]["step"] == 3
    assert list(own.glob("out/seed_0_*.gif"))
    before = Path("out/seed_0.json").stat().st_mtime_ns
    run_command(rollout, *words)
    assert Path("out/seed_0.json").stat().st_mtime_ns == before
    with open("my_env.py", "a") as file:  # another environment, so the results are not its own
        file.write("\nMyEnvironment.max_steps = 3\n")
    run_command(rollout, *words)
    episodes = read_json("out/seed_0.json")["episodes"]
    assert max(episode["steps"] for episode in episodes) <= 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", "has no class 'MyEnvironment'; it has Other"),
        ("MyEnvironment = 3", "has no class 'MyEnvironment'; it has none"),
        ("\nraise RuntimeError('of mine')", "my_env.py fails in line 2: RuntimeError: of mine"),
        ("class MyEnvironment:\n    def __init__(self, x): pass", "my_env.py fails: TypeError"),
        (
            "import json\nclass MyEnvironment:\n    def __init__(self):\n        json.loads('{')",
            "my_env.py fails in line 4: JSONDecodeError",
        ),
        ("\nclass MyEnvironment(:", r"my_env.py fails: SyntaxError: .*my_env.py, line 2\)"),
        ("class MyEnvironment:\n    action_size = 2", "lacks observation_size, max_steps, steps_"),
    ],
)
def test_files_without_such_an_environment(tmp_path, code, message):
    (tmp_path / "my_env.py").write_text(code)
    environment = f"--environment={tmp_path / 'my_env.py'}:MyEnvironment"
    with pytest.raises(UserError, match=message):
        run_command(prepare, "demonstrations", environment, f"--out={tmp_path / 'x.npz'}")
