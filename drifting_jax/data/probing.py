"""Reads some records of every class, to find classes without readable ones before the training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from drifting_jax.data.sources import Source
from drifting_jax.data.transforms import FailedRead, UnreadableImage

_THREADS = 8
_SMALL = 20_000  # records of a data set that is probed for longer
_SECONDS, _SECONDS_OF_SMALL = 0.5, 3.0


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found.

    Attributes:
      unreadable: {index: reason}.
      readable: [classes] int64, how many records of each class were read.
      tried: [classes] int64, how many records of each class were tried.
    """

    unreadable: dict[int, str]
    readable: np.ndarray
    tried: np.ndarray


def seconds_for(source: Source) -> float:
    """How long to probe a source: a few seconds, or less than one if it is large."""
    return _SECONDS_OF_SMALL if len(source) <= _SMALL else _SECONDS


def probe(source: Source, *, least: int, seconds: float) -> Probe:
    """Reads records in threads until every class has `least` readable ones, or the time is over.

    First it looks for one readable record of every class, then for the others, the smallest classes
    first. A class that has fewer is read completely, if there is time.

    Args:
      source: whose labels are cheap.
      least: how many readable records of a class are enough.
      seconds: after them, no further record is read.
    """
    until = time.monotonic() + seconds
    labels = source.labels
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=source.num_classes)
    starts = np.cumsum(counts) - counts
    found = Probe({}, np.zeros(len(counts), np.int64), np.zeros(len(counts), np.int64))

    def look(label: int, wanted: int) -> None:
        """Reads more records of a class; each class belongs to one thread at a time."""
        order = np.random.default_rng(label).permutation(counts[label])
        while found.readable[label] < wanted and found.tried[label] < counts[label]:
            if time.monotonic() > until:
                return
            index = int(by_class[starts[label] + order[found.tried[label]]])
            reason = _reason(source, index)
            found.tried[label] += 1
            if reason is None:
                found.readable[label] += 1
            elif reason:
                found.unreadable[index] = reason

    classes = np.argsort(counts, kind="stable").tolist()
    with ThreadPoolExecutor(_THREADS) as pool:
        for wanted in (1, least):
            list(pool.map(look, classes, [wanted] * len(classes)))
    return found


def still_unreadable(source: Source, known: Iterable[int], *, seconds: float) -> dict[int, str]:
    """{index: reason} of those records that were unreadable once and are so now.

    Somebody may have replaced them. Records that there is no time to read count as unreadable.
    """
    until = time.monotonic() + seconds

    def look(index: int) -> str | None:
        return _reason(source, index) if time.monotonic() < until else "not read again"

    known = list(known)
    with ThreadPoolExecutor(_THREADS) as pool:
        reasons = list(pool.map(look, known))
    return {index: reason for index, reason in zip(known, reasons, strict=True) if reason}


def _reason(source: Source, index: int) -> str | None:
    """Why a record cannot be read; None if it can; "" if the disk failed, which tells nothing."""
    try:
        source[index]
    except FailedRead:
        return ""
    except UnreadableImage as error:
        return str(error) or type(error).__name__
    return None
