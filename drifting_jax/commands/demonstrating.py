"""The work of `prepare demonstrations`: an expert solves episodes, which go into a file."""

import dataclasses
from pathlib import Path

from drifting_jax.control.demonstrations import collect
from drifting_jax.control.environments.table import open_environment
from drifting_jax.errors import UserError
from drifting_jax.files import write_npz
from drifting_jax.workdir.progress import progress_bar


def write_demonstrations(out: str, environment: str, *, episodes: int, seed: int) -> None:
    """Writes an .npz file of demonstrations, and prints what is in it.

    Raises:
      UserError: no such environment, one without an expert, or another kind of file.
    """
    if not environment:
        raise UserError("demonstrations: --environment is missing")
    if not out.endswith(".npz"):
        raise UserError(f"demonstrations: expected --out=FILE.npz; found {out}")
    opened = open_environment(environment)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(episodes, description="demonstrations", enabled=True) as bar:
        found, failures = collect(opened, episodes=episodes, seed=seed, report=bar.update)
    write_npz(out, dataclasses.asdict(found))
    print(
        f"{out}: {episodes} demonstrations of {environment}, {len(found.actions)} steps; "
        f"{failures} other episodes failed and are left out"
    )
