"""Fills the sample queue before the first step, and checks that every class has enough samples."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from drifting_jax.config import ConfigDict
from drifting_jax.data.images import RecordSource
from drifting_jax.data.probing import Probe, probe, seconds_for, still_unreadable
from drifting_jax.data.sources import Source
from drifting_jax.distributed.agreement import on_main_process
from drifting_jax.errors import UserError
from drifting_jax.steps import nearest
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.training import device_batches
from drifting_jax.training.batch_log import known_unreadable
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.opening import has_checkpoints
from drifting_jax.workdir.progress import progress_bar

_LISTED = 10  # classes in a message

PyTree = Any
Push = Callable[[SampleQueue, Mapping[str, jax.Array]], SampleQueue]


def make_push(variables: PyTree, nearness: nearest.Nearness | None) -> Push:
    """Returns (queue, batch) -> queue, which donates the queue.

    Args:
      variables: of the frozen networks.
      nearness: the feature that the queue keeps of each sample; None for a queue without.
    """
    push: Callable = functools.partial(nearest.push, nearness=nearness)
    if nearness is not None:
        push = jax.jit(push, donate_argnums=0)
    return lambda queue, batch: push(queue, variables, batch)


def fill(
    queue: SampleQueue,
    batches: device_batches.GlobalBatches,
    source: Source,
    batch_size: int,
    *,
    push: Push,
    is_main_process: bool = False,
    stopped: Callable[[int], bool] = lambda step: False,
) -> tuple[SampleQueue, int] | None:
    """Pushes batches until every ring is full, for one pass over the data at most.

    Args:
      queue: empty.
      batches: of `batch_size` records of the source.
      source: the data.
      batch_size: records in a batch.
      push: see `make_push`.
      is_main_process: whether to show progress.
      stopped: called with the number of batches taken; True stops the filling.

    Returns:
      The queue and the number of batches taken; None if it was stopped.
    """
    per_class = queue.by_class.images.shape[1]
    room = queue.num_classes * per_class + len(queue.unconditional.images)
    taken = 0
    with progress_bar(room, description="queue", enabled=is_main_process) as bar:
        for taken in range(-(-len(source) // batch_size)):
            if stopped(taken):
                if is_main_process:
                    logging.warning("Stopped before the queue was full: its filling begins anew")
                return None
            if taken % 16 == 0:
                held = _held(queue)
                bar.update(held - bar.n)
                if held == room:
                    return queue, taken
            queue = push(queue, next(batches))
        bar.total = _held(queue)  # a class with fewer images than its ring holds leaves room
        bar.update(bar.total - bar.n)
    return queue, taken + 1


def _held(queue: SampleQueue) -> int:
    """The number of images in all rings."""
    return int(np.asarray(queue.by_class.filled)[: queue.num_classes].sum()) + int(
        queue.unconditional.filled
    )


def check_source(config: ConfigDict, source: Source, workdir: Path | None = None) -> None:
    """Checks, before anything is trained, that the data holds enough samples of every class.

    Records are counted, and some of every class are read, since a whole class of error pages counts
    as images by their names. If the labels need a pass over all records, or the generator has
    begun, only `check_queue` checks.

    Args:
      config: of the run.
      source: the data.
      workdir: of the run; its logs name records that an earlier start could not read.

    Raises:
      UserError: some classes hold too few samples; the message names them. Raised on all processes.
    """
    if source.labels_are_cheap:
        on_main_process(_check_source, config, source, workdir)


def check_after_encoder(config: ConfigDict, source: Source, workdir: Path) -> None:
    """Checks the data once more, with what the encoder's batches could not read.

    Raises:
      UserError: as `check_source`.
    """
    if source.labels_are_cheap:
        on_main_process(_check_known, config, source, workdir)


def check_queue(config: ConfigDict, queue: SampleQueue, class_names: Sequence[str]) -> None:
    """Checks, on the host, that a filled queue holds enough samples for the draws.

    Raises:
      UserError: some classes, or the ring of unconditional samples, hold too few.
    """
    filled = np.asarray(queue.by_class.filled)[: queue.num_classes]
    found = int(queue.unconditional.filled)
    listed = [f"{name} ({count})" for name, count in zip(class_names, filled, strict=True)]
    _require_enough(config, filled, found, listed, place="the queue", begun=True)


def check_labels(config: ConfigDict, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """Raises UserError if a class has too few samples, in data whose labels are all known."""
    counts = np.bincount(labels, minlength=len(class_names))
    listed = [f"{name} ({count})" for name, count in zip(class_names, counts, strict=True)]
    _require_enough(config, counts, len(labels), listed, place="the data", begun=True)


def _check_source(config: ConfigDict, source: Source, workdir: Path | None) -> None:
    counts = np.bincount(source.labels, minlength=source.num_classes)
    begun = workdir is not None and has_checkpoints(workdir)
    _require_readable(config, source, counts, {}, begun=begun)
    if workdir is not None and any(generator_checkpoints(workdir).glob("[0-9]*")):
        return
    if not isinstance(source, RecordSource):
        return
    if workdir is not None:
        _check_known(config, source, workdir)
    found = probe(source, least=_least(config, "positives_per_label"), seconds=seconds_for(source))
    _warn(source, counts, found)
    _require_readable(config, source, counts, found.unreadable, begun=begun)


def _check_known(config: ConfigDict, source: Source, workdir: Path) -> None:
    """Checks with the records that a log of the run names, if these still cannot be read."""
    known = [i for i in known_unreadable(workdir) if 0 <= i < len(source)]
    counts = np.bincount(source.labels, minlength=source.num_classes)
    left = counts - np.bincount(source.labels[known], minlength=source.num_classes)
    short = left < _least(config, "positives_per_label")
    again = [i for i in known if short[source.labels[i]]]
    if again:
        unreadable = still_unreadable(source, again, seconds=seconds_for(source))
        begun = has_checkpoints(workdir)
        _require_readable(config, source, counts, unreadable, begun=begun)


def _warn(source: Source, counts: np.ndarray, found: Probe) -> None:
    """Logs how many of the probed records are unreadable, and classes without a readable one."""
    if not found.unreadable:
        return
    index, reason = min(found.unreadable.items())
    logging.warning(
        "%d of the %d images that were tried before the training cannot be read, such as %s: %s",
        len(found.unreadable),
        found.tried.sum(),
        source.name(index),
        reason,
    )
    for label in np.flatnonzero((found.tried > 0) & (found.readable == 0))[:_LISTED]:
        logging.warning(
            "class %s: none of the %d images that were tried can be read; it has %d",
            source.class_names[label],
            found.tried[label],
            counts[label],
        )


def _require_readable(
    config: ConfigDict,
    source: Source,
    counts: np.ndarray,
    unreadable: Mapping[int, str],
    *,
    begun: bool,
) -> None:
    """Raises UserError if a class has too few records besides the unreadable ones."""
    labels = np.array([source.labels[i] for i in unreadable], np.int64)
    lost = np.bincount(labels, minlength=source.num_classes)
    example = {int(label): index for label, index in zip(labels, unreadable, strict=True)}
    listed = []
    for label, name in enumerate(source.class_names):
        words = f"{counts[label]}"
        if lost[label]:
            index = example[label]
            words = (
                f"{counts[label] - lost[label]} of {counts[label]}, the others cannot be read, "
                f"such as {source.name(index)}: {unreadable[index]}"
            )
        listed.append(f"{name} ({words})")
    left = counts - lost
    _require_enough(config, left, int(left.sum()), listed, place="the data", begun=begun)


def _least(config: ConfigDict, field: str) -> int:
    """How many samples a draw needs."""
    drawn = config.train[field]
    return min(drawn, 1) if config.queue.allow_repeats else drawn


def _require_enough(
    config: ConfigDict,
    counts: np.ndarray,
    total: int,
    listed: Sequence[str],
    *,
    place: str,
    begun: bool,
) -> None:
    """Raises UserError if a class has too few samples, or all classes together.

    Args:
      config: says how many are drawn.
      counts: [classes] samples of each class.
      total: samples of all classes that unconditional draws are made of.
      listed: what the message says of each class.
      place: where the samples are.
      begun: whether checkpoints exist, so that the config and the list of files must stay.
    """
    least = _least(config, "positives_per_label")
    short = np.flatnonzero(counts < least)
    if short.size:
        words = ", ".join(listed[label] for label in short[:_LISTED])
        few = counts[short][counts[short] > 0]
        remedies = [_remedy_for_none(begun=begun)] if len(few) < short.size else []
        if few.size:
            remedies.append(_remedy_for_few("positives_per_label", few.min(), begun=begun))
        raise UserError(
            f"expected at least {least} samples of each class in {place}, found fewer of "
            f"{short.size} classes: {words}{', …' * (short.size > _LISTED)}; " + "; ".join(remedies)
        )
    least = _least(config, "unconditional_per_label")
    if total < least:
        raise UserError(
            f"expected at least {least} samples of any class in {place}, found {total}; "
            + _remedy_for_few("unconditional_per_label", total, begun=begun)
        )


def _remedy_for_none(*, begun: bool) -> str:
    """What to do about a class without samples: fewer draws or repeats do not help."""
    if begun:
        return (
            "put readable files in place of the unreadable ones, under the same names, or begin "
            "another --workdir with data without the class"
        )
    return "add readable files to a class that has none, or remove it from the data"


def _remedy_for_few(field: str, most: int, *, begun: bool) -> str:
    """What to do about too few samples."""
    if begun:
        return (
            f"begin another --workdir that draws fewer (--config.train.{field}={most}) or lets "
            "draws repeat (--config.queue.allow_repeats=True); --config.encoder.path=<this "
            "workdir> keeps the encoder"
        )
    return (
        f"draw fewer (--config.train.{field}={most}) or let draws repeat "
        "(--config.queue.allow_repeats=True)"
    )
