"""Measures a policy by rollouts of several seeds: files that a stopped measurement goes on from.

A folder of results holds seed_<n>.json and .npz with every episode, animations of a success and of
a failure, rollouts.json with the summary, and report.html.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from drifting_jax.control.environments.environment import Environment
from drifting_jax.control.pictures import animation
from drifting_jax.control.rollouts import Episode, Planner, outcome, roll_out
from drifting_jax.errors import first_line
from drifting_jax.files import read_json, write_bytes, write_json, write_npz

SUMMARY_FILE, REPORT_FILE = "rollouts.json", "report.html"
KINDS = {"success": True, "failure": False}  # of animations, and whether they succeed
AT_ONCE = 25  # episodes
_TIMED, _UNTIMED = 20, 3  # plans


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      environment: its name.
      policy: what tells the policy from others, such as its workdir and step, in JSON's types.
      episodes: rollouts of each seed.
      max_steps: actions after which an episode ends; 0: what the environment says.
      draw_every: steps between two pictures of an animation; 0: no animations.
      code: digits of the file of an environment that is not ours; "" for one of ours.
    """

    environment: str
    policy: Mapping[str, Any]
    episodes: int
    max_steps: int = 0
    draw_every: int = 2
    code: str = ""

    def identity(self, seed: int) -> dict[str, Any]:
        """What the results of a seed depend on."""
        fields = dataclasses.asdict(self) | {"seed": seed}
        left_out = {"draw_every"} | ({"code"} if not self.code else set())
        return {name: value for name, value in fields.items() if name not in left_out}


def measure(
    planner: Planner,
    open_one: Callable[[], Environment],
    out: Path,
    *,
    settings: Settings,
    seeds: Sequence[int],
    timed: Planner | None = None,
    report: Callable[[str], object] = print,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[int, list[Episode]], dict[str, Any]] | None:
    """Rolls out what the folder lacks, and writes the summary.

    Args:
      planner: the policy.
      open_one: makes an environment.
      out: folder of the results, which is made.
      settings: what is measured.
      seeds: of the rollouts, each with its own beginnings and noise.
      timed: the policy for one observation window at a time, whose time is measured.
      report: is called with a line about each seed.
      stopped: whether to stop, asked before each seed.

    Returns:
      The episodes by seed, without pictures, and the summary; None if it was stopped.

    Raises:
      UserError: as `roll_out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    environments = _Lazy(open_one, min(AT_ONCE, settings.episodes))
    found: dict[int, list[Episode]] = {}
    for seed in seeds:
        if stopped():
            return None
        identity = settings.identity(seed)
        kept = read_seed(out, identity)
        if kept is None:
            for kind in KINDS:  # of an earlier policy
                animation_path(out, seed, kind).unlink(missing_ok=True)
            kept = roll_out(
                planner,
                environments.all(),
                seed=seed,
                episodes=range(settings.episodes),
                max_steps=settings.max_steps,
            )
            if settings.draw_every:
                _animate(planner, environments.all(), out, kept, settings, seed=seed)
            _write_seed(out, identity, kept)  # last: it marks the seed as done
        found[seed] = kept
        report(f"seed {seed}: {sum(e.success for e in kept)} of {len(kept)} solved")
    summary = {
        **{name: value for name, value in settings.identity(0).items() if name != "seed"},
        **summarize(found),
        "milliseconds_per_plan": milliseconds_per_plan(timed or planner),
    }
    write_json(out / SUMMARY_FILE, summary)
    return found, summary


class _Lazy:
    """Environments that are made when they are first needed."""

    def __init__(self, open_one: Callable[[], Environment], count: int) -> None:
        self._open_one, self._count = open_one, count
        self._made: list[Environment] = []

    def all(self) -> list[Environment]:
        while len(self._made) < self._count:
            self._made.append(self._open_one())
        return self._made


def summarize(episodes: Mapping[int, Sequence[Episode]]) -> dict[str, Any]:
    """Success, endings and steps of rollouts by seed; the deviation is over seeds (of a sample)."""
    rates = {seed: float(np.mean([e.success for e in found])) for seed, found in episodes.items()}
    every = [episode for found in episodes.values() for episode in found]
    steps = [episode.steps for episode in every if episode.success]
    values = list(rates.values())
    return {
        "success": float(np.mean(values)),
        "success_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "success_by_seed": {str(seed): rate for seed, rate in rates.items()},
        "endings": {
            ending: count / len(every)
            for ending, count in Counter(e.ending for e in every).most_common()
        },
        "steps_of_a_success": float(np.mean(steps)) if steps else None,
    }


def milliseconds_per_plan(planner: Planner) -> float:
    """The median time in which a policy plans for one observation window, after compilation."""
    window = np.zeros((1, planner.horizons.observation, planner.sizes.observation), np.float32)
    seconds = []
    for index in range(_UNTIMED + _TIMED):
        began = time.perf_counter()
        planner.act(window, seed=0, indices=np.array([index]))
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[_UNTIMED:]))


def read_seed(out: Path, identity: Mapping[str, Any]) -> list[Episode] | None:
    """The episodes of a seed that are kept; None if there are none, or of something else."""
    path = out / f"seed_{identity['seed']}.json"
    try:
        record = read_json(path)
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            observations, ends = arrays["observations"], arrays["episode_ends"]
        entries = record["episodes"]
        whole = len(entries) == len(ends) == identity["episodes"] and ends[-1] == len(observations)
        if record.get("settings") != dict(identity) or not whole or observations.ndim != 2:
            return None
        parts = np.split(observations, ends[:-1])
        found = [
            Episode(entry["episode"], entry["success"], entry["ending"], part, [])
            for entry, part in zip(entries, parts, strict=True)
        ]
        return found if all(map(_is_whole, found, entries)) else None
    except Exception:  # not there, or damaged: it is measured again
        return None


def _is_whole(episode: Episode, entry: Mapping[str, Any]) -> bool:
    """Whether what was read is what `outcome` wrote."""
    kinds = isinstance(episode.success, bool) and isinstance(episode.ending, str)
    return kinds and outcome(episode) == entry and np.isfinite(episode.observations).all()


def _write_seed(out: Path, identity: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
    """Writes the episodes; the .json, which marks them as whole, comes last."""
    path = out / f"seed_{identity['seed']}.json"
    path.unlink(missing_ok=True)
    ends = np.cumsum([len(episode.observations) for episode in episodes])
    observations = np.concatenate([episode.observations for episode in episodes])
    write_npz(path.with_suffix(".npz"), {"observations": observations, "episode_ends": ends})
    write_json(path, {"settings": dict(identity), "episodes": [outcome(e) for e in episodes]})


def _animate(
    planner: Planner,
    environments: Sequence[Environment],
    out: Path,
    episodes: Sequence[Episode],
    settings: Settings,
    *,
    seed: int,
) -> None:
    """Writes an animation of the first success and of the first failure of a seed.

    They are rolled out a second time, with pictures. If none can be drawn, a warning says so.
    """
    for kind, success in KINDS.items():
        first = next((e.index for e in episodes if e.success == success), None)
        if first is None:
            continue
        try:
            (drawn,) = roll_out(
                planner,
                environments,
                seed=seed,
                episodes=[first],
                max_steps=settings.max_steps,
                draw_every=settings.draw_every,
            )
        except Exception as error:  # of drawing libraries, by many names
            logging.warning("No animation of seed %d: %s", seed, first_line(error))
            return
        write_bytes(animation_path(out, seed, kind), animation(drawn.pictures))


def animation_path(out: Path, seed: int, kind: str) -> Path:
    """Where the animation of a seed's first success or failure lies."""
    return out / f"seed_{seed}_{kind}.gif"
