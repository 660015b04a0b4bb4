"""Demonstrations, a policy of them, and its rollouts, by their commands."""

import functools

import numpy as np
import pytest
from absl import flags

import drifting_jax as dj
from drifting_jax import prepare, rollout
from drifting_jax.errors import UserError
from drifting_jax.files import read_json


class Flags:
    """absl's flags, in a set of their own."""

    def __init__(self):
        self.FLAGS = flags.FlagValues()

    def __getattr__(self, name):
        return functools.partial(getattr(flags, name), flag_values=self.FLAGS)


def run_command(module, *words):
    """Runs the main function of a command with a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "flags", stand_in := Flags())
        module.define_flags()
        return module.main(stand_in.FLAGS(["command", *words]))


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


@pytest.mark.parametrize(
    "words, message",
    [
        (["--seeds=0,0"], "--seeds must be different numbers"),
        (["--seeds=a"], "found a"),
        (["--environment=nowhere"], "found 'nowhere'"),
        (["--workdir=nowhere"], "nowhere"),
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
