"""Checkpoints of a run: written in the background, whole or not at all, and checked when read.

A directory holds one subdirectory per step, each with several named trees of arrays ("items") that
belong together. Every array is saved with a checksum of its bits, because a damaged block of a
file often decodes without an error. PRNG keys are not saved: they follow from seed and step.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp
from absl import logging

from drifting_jax.distributed.agreement import any_process, on_all_processes, on_main_process
from drifting_jax.errors import TransientError, UserError, first_line
from drifting_jax.workdir.checkpoint_items import (
    CHECKSUMS,
    NOT_DAMAGE,
    Tree,
    arrays_only,
    is_transient,
    read_step,
)
from drifting_jax.workdir.checksums import named_checksums
from drifting_jax.workdir.orbax_settings import use_barriers_that_time_out

_LAST_SAVE_SECONDS = 20.0  # for the save under way, after this process has failed


class Checkpoints:
    """The checkpoints of one directory; a context manager that waits for the last save.

    A save copies the arrays to the host and returns; a thread writes the files. The step appears in
    the directory only when all of it is written, so a process killed at any moment leaves the
    earlier steps whole. Reading never changes the directory: other programs may read while a run
    writes. With several processes, all of them must call every method, in the same order.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep: int,
        keep_every: int = 0,
        max_failures: int = 3,
        read_only: bool = False,
        barrier_seconds: int = 300,
        retry_seconds: Sequence[float] = (1.0, 5.0, 15.0),
    ) -> None:
        """Names the directory, which the first save makes.

        Args:
          directory: Where the steps are, or will be.
          keep: How many of the newest steps stay; an older one is deleted when a newer one is
            whole.
          keep_every: Steps that are multiples of it are never deleted; 0 = all can be deleted.
          max_failures: After so many failed saves in a row, `save` and `wait` raise.
          read_only: Refuse to save, because another process may be writing here.
          barrier_seconds: How long processes wait for each other in a save.
          retry_seconds: Pauses before each new try to read, after a transient error of the disk.
        """
        self._read_only = read_only
        self._barrier_seconds, self._retry_seconds = barrier_seconds, retry_seconds
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
        """Returns the steps on disk in order, without those that were found damaged."""
        return sorted(set(self._found()) - set(self._damaged))

    def _found(self) -> list[int]:
        if not self._directory.exists():
            return []
        found = ocp.path.step.standard_name_format().find_all(self._directory)
        return sorted(metadata.step for metadata in found)

    def _agreed_steps(self) -> list[int]:
        """Returns the main process's `steps`: a network disk may show the others older ones."""
        return on_main_process(self.steps)

    def save(self, step: int, items: Mapping[str, Tree]) -> None:
        """Waits for the previous save and starts this one, unless the step is saved already.

        A save that fails (a full disk) is logged as an error, and the run goes on. Steps that
        `restore_latest` found damaged are moved to <directory>/damaged first, so that they can be
        saved again.

        Args:
          step: Steps done; larger than any step on disk that is not damaged.
          items: Trees of arrays by name. The JAX arrays of one item lie on one mesh and may be
            donated after the call. Numbers are saved as NumPy arrays.

        Raises:
          ValueError: An item holds a PRNG key or no array, or has a reserved name.
          TransientError: `max_failures` saves in a row have failed.
          RuntimeError: These checkpoints are read-only.
        """
        if self._read_only:
            raise RuntimeError(f"{self._directory} was opened to be read, not to save step {step}")
        items = {name: arrays_only(name, tree) for name, tree in items.items()}
        self.wait()
        try:
            self._set_damaged_aside()
            if on_all_processes(self._start, step, items):
                self._pending = step
        except Exception as error:
            self._failed(step, error)

    def _start(self, step: int, items: Mapping[str, Tree]) -> bool:
        """Starts a save on this process; returns whether the step was not there yet."""
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
                async_options=ocp.AsyncOptions(timeout_secs=self._barrier_seconds),
                # Orbax numbers the barriers of a name; after a failed save the numbers differ.
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
        """Waits for the save under way; returns whether the last save is whole on the disk.

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

        A step that is damaged, or that still cannot be read after all retries, is skipped with a
        warning, and the step before it is tried. Steps that another process deletes while this one
        reads are ignored.

        Args:
          templates: The items to restore: trees of `jax.ShapeDtypeStruct` with shardings, of JAX
            arrays, or of NumPy arrays and numbers, which come back as NumPy arrays.
          padded: Items whose arrays end in rows of zeros, as many as the mesh needs. Their
            templates may have more or fewer of these rows than were saved.

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
        reasons: dict[int, str] = {}  # why a step cannot be read
        transient = False
        while untried := [step for step in self._agreed_steps() if step not in reasons]:
            step = untried[-1]
            try:
                items = self._read(step, templates, padded)
            except Exception as error:  # a damaged file can raise anything
                if any_process(isinstance(error, NOT_DAMAGE)):
                    raise
                reasons[step] = first_line(error)
                transient = transient or is_transient(error)
                logging.warning(
                    f"THE CHECKPOINT OF STEP {step} IS DAMAGED ({reasons[step]}): "
                    f"{self._directory / str(step)}; looking for one before"
                )
                continue
            self._damaged += [step for step in self._agreed_steps() if step in reasons]
            self._newest = step
            return step, items
        # Another process has deleted the steps that are no longer there.
        left = {step: reasons[step] for step in self._agreed_steps() if step in reasons}
        if not left:
            return None
        listed = "; ".join(f"step {step}: {reason}" for step, reason in left.items())
        found = f"no checkpoint in {self._directory} can be read ({listed})"
        if any_process(transient):
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
            return self._read(step, templates)
        except NOT_DAMAGE:
            raise
        except Exception as error:
            transient = is_transient(error)
            others = ", ".join(str(other) for other in steps if other != step)
            raise (TransientError if transient else UserError)(
                f"the checkpoint {self._directory / str(step)} "
                f"{'cannot be read' if transient else 'is damaged'} ({first_line(error)}); "
                f"other steps: {others or 'none'}"
            ) from None

    def _read(
        self, step: int, templates: Mapping[str, Tree], padded: Collection[str] = ()
    ) -> dict[str, Tree]:
        return read_step(
            self._directory / str(step),
            templates,
            padded=padded,
            retry_seconds=self._retry_seconds,
        )

    def close(self) -> None:
        """Waits for the save under way and frees Orbax's threads."""
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
        # The other processes may be waiting for this one in some collective: this process must end
        # without waiting for them, and the message must be printed now.
        logging.error("Process %d ends: %s", jax.process_index(), first_line(error))
        self._leave()

    def _leave(self) -> None:
        """Gives the save under way some seconds, and waits for no other process after that."""
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
        except Exception as error:  # of a failed save, which was logged already
            logging.info("While closing %s: %s", self._directory, first_line(error))

    def _finish(self, step: int) -> None:
        assert self._manager is not None
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
        """Moves the damaged steps, which are the same on all processes, to <directory>/damaged."""
        if not self._damaged:
            return
        on_main_process(self._move_damaged)
        self._close_manager()  # its list of steps is no longer right
        self._damaged = []

    def _move_damaged(self) -> None:
        for step in set(self._damaged) & set(self._found()):
            target = self._directory / "damaged" / str(step)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            os.replace(self._directory / str(step), target)
            logging.warning("Moved the damaged checkpoint of step %d to %s", step, target)
