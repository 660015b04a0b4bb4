"""Checkpoints of a run: written beside the training, whole or not at all, checked when read.

A directory holds one subdirectory a step, each with several named trees of arrays ("items") that
belong together. Every array is saved with a checksum of its bits, because a damaged block of a
file often decodes without an error. Typed PRNG keys are not saved: they follow from seed and step.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from drifting_jax.distributed import transfer
from drifting_jax.distributed.agreement import first_line, largest, on_all_processes
from drifting_jax.errors import TransientError, UserError
from drifting_jax.workdir.checkpoint_items import (
    CHECKSUMS,
    NOT_DAMAGE,
    Tree,
    arrays_only,
    may_pass,
    read_step,
)
from drifting_jax.workdir.checksums import named_checksums
from drifting_jax.workdir.orbax_settings import use_barriers_that_time_out

# How long processes wait for each other in a save, and a failing one for the save under way.
_BARRIER_SECONDS, _LAST_SAVE_SECONDS = 300, 20.0


class Checkpoints:
    """The checkpoints of one directory; a context manager that waits for the last save.

    A save copies the arrays to the host and returns; the files are written by a thread. The step
    appears in the directory when all of it is written, so a process killed at any moment leaves the
    steps before whole. Reading never changes the directory: others may read while a run writes.
    With several processes, all of them call every method, in the same order.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        keep_every: int = 0,
        max_failures: int = 3,
        read_only: bool = False,
    ) -> None:
        """Names the directory; it is made by the first save.

        Args:
          directory: Where the steps are, or will be.
          keep: Newest steps kept; older ones are deleted once a newer one is whole.
          keep_every: Multiples of it among the steps are never deleted; 0 = all are.
          max_failures: Failed saves in a row after which `save` and `wait` raise.
          read_only: Refuse to save, where another process may be the one that writes.
        """
        self._read_only = read_only
        self._directory = Path(directory).absolute()
        self._keep, self._keep_every = keep, keep_every
        self._max_failures = max_failures
        self._failures = 0
        self._pending: int | None = None
        self._newest: int | None = None  # known to be whole
        self._damaged: list[int] = []
        self._manager: ocp.CheckpointManager | None = None
        self._managers = 0  # made so far

    def steps(self) -> list[int]:
        """Returns the steps on disk in order, without those found damaged."""
        return sorted(set(self._found()) - set(self._damaged))

    def _found(self) -> list[int]:
        if not self._directory.exists():
            return []
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted(metadata.step for metadata in found)

    def _agreed_steps(self) -> list[int]:
        """`steps` as process 0 sees them: a network disk may show others for a while."""
        steps = self.steps()
        if jax.process_count() == 1:
            return steps
        count = transfer.from_first_process(len(steps))
        padded = np.resize(np.array(steps or [0], np.int64), max(count, 1))
        return [int(x) for x in multihost_utils.broadcast_one_to_all(padded)[:count]]

    def save(self, step: int, items: Mapping[str, Tree]) -> None:
        """Starts saving trees under a step, after waiting for the save before; once per step.

        A save that fails (a full disk) is logged as an error and forgotten. Steps found damaged by
        `restore_latest` are moved to <directory>/damaged first, so that they can be saved again.

        Args:
          step: Steps done; larger than any step on disk, but for damaged ones.
          items: Trees of arrays by name. JAX arrays of one item lie on one mesh and may be donated
            after the call; numbers count as NumPy arrays.

        Raises:
          ValueError: An item holds a PRNG key or no array, or has a reserved name.
          TransientError: `max_failures` saves in a row have failed.
          RuntimeError: this is read-only.
        """
        if self._read_only:
            raise RuntimeError(f"{self._directory} was opened to be read, not to save step {step}")
        items = {name: arrays_only(name, tree) for name, tree in items.items()}
        self.wait()
        try:
            on_all_processes(self._set_damaged_aside)
            if on_all_processes(self._start, step, items):
                self._pending = step
        except Exception as error:
            self._failed(step, error)

    def _start(self, step: int, items: Mapping[str, Tree]) -> bool:
        """Starts a save on this process; whether the step was not there yet."""
        if step in self.steps():
            return False
        sums = {name: named_checksums(tree) for name, tree in items.items()}
        arguments = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        arguments[CHECKSUMS] = ocp.args.JsonSave(sums)
        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                keep_period=self._keep_every or None,
                create=True,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(timeout_secs=_BARRIER_SECONDS),
                # After a failed save, processes have counted different barriers of one name.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=f"{self._directory.name}_{self._managers}"
                ),
            )
            self._managers += 1
            use_barriers_that_time_out()
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._manager.save(step, args=ocp.args.Composite(**arguments), force=True)
        return True

    def wait(self) -> bool:
        """Waits for the save under way; returns whether the last save is whole on disk.

        Raises:
          TransientError: `max_failures` saves in a row have failed.
        """
        if self._pending is not None:
            step, self._pending = self._pending, None
            try:
                on_all_processes(self._finish, step)
                self._failures, self._newest = 0, step
            except Exception as error:
                self._failed(step, error)
        return self._failures == 0

    def restore_latest(
        self, templates: Mapping[str, Tree], *, padded: Collection[str] = ()
    ) -> tuple[int, dict[str, Tree]] | None:
        """Restores the newest step that can be read, onto any mesh.

        A damaged step, or one that cannot be read for twenty seconds, is left for the one before,
        with a warning. Steps that whoever writes the directory deletes meanwhile do not count.

        Args:
          templates: The items wanted, each a tree of `jax.ShapeDtypeStruct` with shardings, of JAX
            arrays, or of NumPy arrays and numbers, which come back as NumPy arrays.
          padded: Items whose first axes end in rows of zeros, as many as a mesh needs: their
            templates may have more or fewer of them than were saved.

        Returns:
          The step and its items, or None if there is no step.

        Raises:
          UserError: An array differs from its template in name, shape or dtype, or all steps are
            damaged.
          TransientError: None can be read, and the disk may be to blame.
          ValueError: A template has no sharding.
        """
        self.wait()
        templates = {name: arrays_only(name, tree) for name, tree in templates.items()}
        reasons: dict[int, str] = {}
        passing = False
        while untried := [step for step in self._agreed_steps() if step not in reasons]:
            step = untried[-1]
            try:
                items = read_step(self._directory / str(step), templates, padded)
            except Exception as error:  # a damaged file can raise anything
                if largest(isinstance(error, NOT_DAMAGE)):
                    raise
                reasons[step], passing = first_line(error), passing or may_pass(error)
                logging.warning(
                    f"THE CHECKPOINT OF STEP {step} IS DAMAGED ({reasons[step]}): "
                    f"{self._directory / str(step)}; looking for one before"
                )
                continue
            self._damaged += [step for step in self._agreed_steps() if step in reasons]
            self._newest = step
            return step, items
        # Steps that are gone were deleted by whoever writes here.
        left = {step: reasons[step] for step in self._agreed_steps() if step in reasons}
        if not left:
            return None
        listed = "; ".join(f"step {step}: {reason}" for step, reason in left.items())
        found = f"no checkpoint in {self._directory} can be read ({listed})"
        if largest(passing):
            raise TransientError(f"{found}; give the same command again when the disk answers")
        raise UserError(f"{found}; move the directory elsewhere to start from the first step")

    def restore_step(self, step: int, templates: Mapping[str, Tree]) -> dict[str, Tree]:
        """Restores the items of one step, as `restore_latest`.

        Raises:
          UserError: There is no such step, it is damaged, or it differs from a template.
          TransientError: It cannot be read, and the disk may be to blame.
          ValueError: A template has no sharding.
        """
        self.wait()
        templates = {name: arrays_only(name, tree) for name, tree in templates.items()}
        if step not in (steps := self.steps()):
            raise UserError(
                f"{self._directory} has no checkpoint of step {step}; "
                f"there are {', '.join(map(str, steps)) or 'none'}"
            )
        try:
            return read_step(self._directory / str(step), templates)
        except NOT_DAMAGE:
            raise
        except Exception as error:
            passing = may_pass(error)
            others = ", ".join(str(other) for other in steps if other != step)
            raise (TransientError if passing else UserError)(
                f"the checkpoint {self._directory / str(step)} "
                f"{'cannot be read' if passing else 'is damaged'} ({first_line(error)}); "
                f"other steps: {others or 'none'}"
            ) from None

    def close(self) -> None:
        """Waits for the save under way and frees what saving holds."""
        try:
            self.wait()
        finally:
            self._close_manager()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or jax.process_count() == 1:
            self.close()
            return
        # The other processes may be anywhere, and wait for this one there: it must end, and what
        # its message says must not wait.
        logging.error("Process %d ends: %s", jax.process_index(), first_line(error))
        self._leave()

    def _leave(self) -> None:
        """Gives the save under way some time, and waits for no other process beyond that."""
        manager, self._manager = self._manager, None
        self._pending = None
        if manager is None:
            return

        def finish() -> None:
            with contextlib.suppress(Exception):
                manager.wait_until_finished()

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(_LAST_SAVE_SECONDS)

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.close()
        except Exception as error:  # a failed save, told again
            logging.info("While closing %s: %s", self._directory, first_line(error))

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        if not (self._directory / str(step)).is_dir():
            raise OSError("it is not in the directory")

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        logging.error(
            f"THE CHECKPOINT OF STEP {step} WAS NOT SAVED ({first_line(error)}). Failed in a row: "
            f"{self._failures}; the run stops at {self._max_failures}. "
            f"The newest whole step: {self._newest}, in {self._directory}"
        )
        self._close_manager()
        if self._failures >= self._max_failures:
            raise TransientError(
                f"{self._failures} checkpoints in a row could not be saved in {self._directory} "
                f"({first_line(error)}); make room and run the same command again: it goes on "
                f"from step {self._newest}"
            ) from None

    def _set_damaged_aside(self) -> None:
        """Moves them on process 0; what the others know of the directory is forgotten."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in set(self._damaged) & set(self._found()):
                target = self._directory / "damaged" / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                os.replace(self._directory / str(step), target)
                logging.warning("Moved the damaged checkpoint of step %d to %s", step, target)
        self._close_manager()  # its list of steps is no longer right
        self._damaged = []
