"""Measures a policy by rollouts: `python -m drifting_jax.rollout --workdir=runs/two_ways`.

    … --workdir=runs/two_ways --environment=two_ways --episodes=50 --seeds=0,1,2
    … --workdir=runs/reach --environment=metaworld:reach-v3 --gif_every=0
    … --weights=hf://owner/name --environment=my_env.py:MyEnvironment --out=rollouts

Writes rollouts.json, report.html with animations, and every episode. Each episode depends on the
policy, the environment, the seed and its number alone. The same command goes on after a stop.
"""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.control.environments.table import find_environment
from drifting_jax.control.measurement import SUMMARY_FILE, Settings, measure
from drifting_jax.control.page import percent, write_page
from drifting_jax.control.rollouts import check_fit, first_outside
from drifting_jax.digests import fingerprint_variables
from drifting_jax.errors import UserError
from drifting_jax.policy.policy import load_policy
from drifting_jax.surroundings import check_devices
from drifting_jax.workdir.interruption import Interruption
from drifting_jax.workdir.lock import locked


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("workdir", "", "Directory of the policy's run.")
    flags.DEFINE_string(
        "weights", "", "Instead of a run: a folder for the Hub, or hf://owner/repo."
    )
    flags.DEFINE_string(
        "environment",
        None,
        "Such as two_ways, metaworld:reach-v3 or my_env.py:MyEnvironment.",
        required=True,
    )
    flags.DEFINE_integer("episodes", 50, "Rollouts of each seed.", lower_bound=1)
    flags.DEFINE_list("seeds", ["0"], "Seeds of beginnings and noise: 0,1,2.")
    flags.DEFINE_integer(
        "max_steps", 0, "Actions of an episode; 0: as the environment has it.", lower_bound=0
    )
    flags.DEFINE_float("ema_decay", None, "Which moving average; default: the config's.")
    flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.", lower_bound=0)
    flags.DEFINE_integer(
        "gif_every", 2, "Steps between two pictures of an animation; 0: none.", lower_bound=0
    )
    flags.DEFINE_string("out", "", "Folder to write; default: rollouts/… in the workdir.")


def main(_: Sequence[str]) -> int:
    """Rolls out, writes the results, and says where they are; returns the exit status."""
    values = flags.FLAGS
    seeds = _seeds(values.seeds)
    name = values.workdir or values.weights
    if bool(values.workdir) == bool(values.weights):
        raise UserError("expected one of --workdir and --weights")
    if values.weights and not values.out:
        raise UserError("--weights goes with --out, the folder of the results")
    check_devices()
    maker = find_environment(values.environment)
    environment = maker.make()
    policy = load_policy(name, ema_decay=values.ema_decay, step=values.step)
    check_fit(policy, environment)
    if (outside := first_outside(policy, environment, seeds)) is not None:
        print(
            f"warning: the first observation of the first episode of {outside.rows} of "
            f"{len(seeds)} seeds is {outside.words}",
            file=sys.stderr,
        )
    folder = Path(values.environment).name.replace(":", "_")
    out = Path(values.out or Path(values.workdir) / "rollouts" / folder)
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        environment=values.environment,
        policy={
            "workdir": name,
            "step": policy.step,
            "average": policy.ema_decay,
            "parameters": fingerprint_variables(policy.params),
        },
        episodes=values.episodes,
        max_steps=values.max_steps,
        draw_every=values.gif_every,
        code=maker.code,
    )
    with locked(out), Interruption(soon="keeping this seed, then stopping") as interruption:
        found = measure(
            policy,
            maker.make,
            out,
            settings=settings,
            seeds=seeds,
            timed=dataclasses.replace(policy, batch_size=1),
            stopped=lambda: interruption.requested,
        )
        if found is None:
            print("stopped; the same command goes on", file=sys.stderr)
            return interruption.exit_status
        episodes, summary = found
        page = write_page(out, episodes, summary, title=f"Rollouts of {name}")
    success = percent(summary["success"], summary["success_deviation"])
    endings = ", ".join(f"{name} {percent(share)}" for name, share in summary["endings"].items())
    print(f"success {success} ({endings})")
    print(f"metrics: {shlex.quote(str(out / SUMMARY_FILE))}\nreport: {shlex.quote(str(page))}")
    return 0


def _seeds(words: Sequence[str]) -> list[int]:
    """The seeds of --seeds."""
    try:
        found = [int(word) for word in words]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or any(not 0 <= x < 2**32 for x in found):
        raise UserError(
            f"--seeds must be different numbers from 0 to 2**32 - 1; found {','.join(words)}"
        )
    return found


def cli() -> None:
    """Entry point of `drifting-rollout`."""
    define_flags()
    run_program(main)


if __name__ == "__main__":
    cli()
