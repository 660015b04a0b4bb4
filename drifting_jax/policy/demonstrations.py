"""Demonstrations: observations and actions of episodes, read from files and checked."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from drifting_jax.digests import digest_values
from drifting_jax.errors import UserError, first_line
from drifting_jax.policy.readers import READERS, Keys, format_of


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """The steps of all episodes, one episode after another.

    Attributes:
      observations: [T, d_o] float32, in the units of the environment.
      actions: [T, d_a] float32, each taken after the observation of the same step.
      episode_ends: [E] int64, one past the last step of each episode; the last one is T.
    """

    observations: np.ndarray
    actions: np.ndarray
    episode_ends: np.ndarray

    @property
    def episode_starts(self) -> np.ndarray:
        """[E] int64, the first step of each episode."""
        return np.concatenate([[0], self.episode_ends[:-1]])

    @property
    def fingerprint(self) -> str:
        """Digits that tell these demonstrations from others."""
        return digest_values(self.observations, self.actions, self.episode_ends)

    def split(self, held_out: int) -> "tuple[Demonstrations, Demonstrations | None]":
        """Returns all episodes but the last `held_out`, and these; None for none.

        Raises:
          UserError: no episode is left.
        """
        if not held_out:
            return self, None
        count = len(self.episode_ends)
        if held_out >= count:
            raise UserError(
                f"config.data.held_out_episodes must be below the {count} episodes; "
                f"found {held_out}"
            )
        at = int(self.episode_ends[-held_out - 1])
        return (
            Demonstrations(
                self.observations[:at], self.actions[:at], self.episode_ends[:-held_out]
            ),
            Demonstrations(
                self.observations[at:], self.actions[at:], self.episode_ends[-held_out:] - at
            ),
        )


def read_demonstrations(
    path: str,
    *,
    format: str = "auto",
    keys: Keys = Keys(),  # noqa: B008 (a tuple)
) -> Demonstrations:
    """Reads and checks demonstrations.

    Args:
      path: of the file or folder, config.data.path.
      format: a key of `readers.READERS`, or "auto" for what its name says.
      keys: which arrays are the observations and the actions.

    Raises:
      UserError: there is no such file, or it does not hold demonstrations.
    """
    if not path:
        raise UserError(
            "config.data.path must name the demonstrations, such as --config.data.path=demos.npz"
        )
    if not Path(path).exists():
        raise UserError(f"config.data.path={path} does not exist")
    name = format_of(Path(path)) if format == "auto" else format
    try:
        found = READERS[name](Path(path), keys)
    except UserError:
        raise
    except Exception as error:  # readers let errors of many types out
        raise UserError(f"{path} cannot be read as {name}: {first_line(error)}") from None
    return checked(*found, origin=path)


def checked(observations: Any, actions: Any, episode_ends: Any, *, origin: str) -> Demonstrations:
    """Returns demonstrations of arrays, as float32 and int64.

    Raises:
      UserError: shapes that do not fit, numbers that are not finite, or no step at all.
    """
    steps = {}
    for name, values in (("observations", observations), ("actions", actions)):
        array = np.asarray(values)
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "iuf":
            raise UserError(
                f"{name} of {origin} must be numbers [steps, dimensions], not empty; found "
                f"{list(array.shape)} {array.dtype}"
                + (", of one dimension: write values[:, None]" if array.ndim == 1 else "")
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is told below
            array = array.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise UserError(f"{name} of {origin} must be finite; step {bad[0]} is not")
        steps[name] = array
    lengths = {name: len(array) for name, array in steps.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"{origin} must have one action for each observation; found {lengths['observations']} "
            f"observations and {lengths['actions']} actions"
        )
    ends = np.asarray(episode_ends)
    if ends.ndim != 1 or not ends.size or not np.issubdtype(ends.dtype, np.integer):
        raise UserError(
            f"episode_ends of {origin} must be integers [episodes], not empty; found "
            f"{list(ends.shape)} {ends.dtype}"
        )
    ends = ends.astype(np.int64)
    if ends[0] < 1 or np.any(np.diff(ends) < 1) or ends[-1] != lengths["actions"]:
        raise UserError(
            f"episode_ends of {origin} must rise and end with the number of steps, "
            f"{lengths['actions']}; found {ends[0]} to {ends[-1]} for {len(ends)} episodes"
        )
    return Demonstrations(**steps, episode_ends=ends)
