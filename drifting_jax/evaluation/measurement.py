"""Measures sets of images against a reference, and goes on wherever it was stopped.

For each set features are made and kept in <out>/features until its metrics are written to
<out>/figures.jsonl, so that the same command continues after a stop. `measure_reference` measures
the real images themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from drifting_jax.distributed import meshes
from drifting_jax.distributed.agreement import from_main_process, on_all_processes
from drifting_jax.evaluation import protocol, reference
from drifting_jax.evaluation.extraction import check_usable, fill_store, open_store
from drifting_jax.evaluation.feature_metrics import metrics_of_features
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.metrics.records import MetricRecord, from_json, to_json
from drifting_jax.evaluation.reference import Reference
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet, check_count
from drifting_jax.files import read_json_lines, shown, write_bytes

RECORDS_FILE = "figures.jsonl"


class Measurement(NamedTuple):
    """The records of one set or several, and notes on what they leave out.

    Both are empty in processes other than the main one, unless the file held them.
    """

    records: list[MetricRecord]
    notes: list[str]


def measure_all(setup: EvaluationSetup, sample_sets: Sequence[SampleSet]) -> Measurement | None:
    """Measures all sets except those whose metrics are in the file already.

    Returns:
      None if it was stopped.

    Raises:
      UserError: as `measure`.
    """
    records: list[MetricRecord] = []
    notes: list[str] = []
    lines = read_lines(setup.out)
    for sample_set in sample_sets:
        found: Measurement | None = Measurement([], [])
        if setup.is_main_process:
            found = _known(lines, setup, sample_set)
        if not from_main_process(found is not None):
            found = measure(setup, sample_set)
        if found is None:
            return None
        records += found.records
        notes += [note for note in found.notes if note not in notes]
    return Measurement(records, notes)


def measure(
    setup: EvaluationSetup, sample_set: SampleSet, *, record: bool = True
) -> Measurement | None:
    """Measures one set; returns None if it was stopped.

    Args:
      setup: what to measure with.
      sample_set: the set.
      record: add a line for each metric to figures.jsonl, and one with the notes.

    Raises:
      UserError: too few images, too many that cannot be measured, or another network's reference.
    """
    check_count(sample_set.images)
    store = open_store(setup, sample_set.images)
    if not fill_store(setup, sample_set.images, store):
        return None
    if setup.is_main_process:
        print(f"{sample_set.images.words}: computing metrics", file=sys.stderr, flush=True)
    return on_all_processes(_compute, setup, sample_set, store, record)


def read_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of figures.jsonl; one that was written only in part is left out."""
    with contextlib.suppress(OSError):
        return [line for line in read_json_lines(out / RECORDS_FILE) if _is_whole(line)]
    return []


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line is what `_compute` writes: a record of a metric, or the last of its set."""
    if "notes" in line:
        lists = (line["notes"], line.get("figures"))
        listed = all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in lists)
        return listed and isinstance(line.get("left_out"), int | float)
    return isinstance(line.get("figure"), str) and isinstance(line.get("value"), int | float)


def _known(
    lines: Sequence[Mapping[str, Any]], setup: EvaluationSetup, sample_set: SampleSet
) -> Measurement | None:
    """What the file holds of a set, if it holds all metrics that are wanted."""
    own = [
        line
        for line in lines
        if (line.get("set"), line.get("bench")) == (sample_set.images.digest, setup.digest)
    ]
    by_name = {line["figure"]: from_json(line) for line in own if line.get("figure")}
    done = [line for line in own if "notes" in line]
    if not done or not set(setup.settings.metrics) <= set(done[-1]["figures"]):
        return None
    if done[-1]["left_out"] > setup.settings.max_excluded * len(sample_set.images):
        return None
    records = [by_name[name] for name in setup.settings.metrics if name in by_name]
    return Measurement(records, list(done[-1]["notes"]))


def _compute(
    setup: EvaluationSetup, sample_set: SampleSet, store: FeatureStore | None, record: bool
) -> Measurement:
    """The metrics of the features in a store."""
    if store is None:
        return Measurement([], [])
    images, settings = sample_set.images, setup.settings
    notes = check_usable(images, store, max_excluded=settings.max_excluded)
    local = meshes.make_mesh(devices=jax.local_devices())
    found, told = metrics_of_features(store, setup.reference, settings, mesh=local)
    notes += told
    alpha, seed = sample_set.alpha, sample_set.seed
    records = [dataclasses.replace(each, alpha=alpha, seed=seed) for each in found]
    if record:
        facts = {
            "alpha": alpha,
            "seed": seed,
            **sample_set.facts,
            "num_samples": len(store.usable),
            "left_out": len(store.unusable),
            "set": images.digest,
            "bench": setup.digest,
        }
        last = {"notes": notes, "figures": list(settings.metrics), **facts}
        lines = [*(to_json(each) | facts for each in records), last]
        _append_lines(setup.out / RECORDS_FILE, lines)
    if not setup.keep_features:
        store.delete()
    return Measurement(records, notes)


def _append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    texts = [json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines]
    write_bytes(path, before + shown("\n".join(texts) + "\n").encode())


def complete_reference(setup: EvaluationSetup, found: Reference) -> Reference | None:
    """Adds the features of the images that a reference's file holds, if it holds images.

    Returns:
      None if it was stopped.
    """
    if found.images is None:
        return found
    # With a folder of its own, so that the same command need not measure it again.
    apart = dataclasses.replace(setup, out=setup.out / "reference")
    images = ArrayImages(found.images)
    made = measure_reference(apart, images, keep=len(images))
    if made is None:
        return None
    words = dict(made.protocol)
    if found.moments:  # of more images than the file holds
        words = {name: text for name, text in words.items() if name == "image size"}
        words |= found.protocol
    return dataclasses.replace(
        found,
        moments={**made.moments, **found.moments},
        features=made.features,
        protocol=words,
        images=None,
    )


def measure_reference(setup: EvaluationSetup, images: ImageSet, *, keep: int) -> Reference | None:
    """The statistics of real images; their features stay in <out>/features.

    Returns:
      None if it was stopped; an empty one in processes other than the main one.

    Raises:
      UserError: too few images, or too many that cannot be measured.
    """
    check_count(images)
    store = open_store(setup, images)
    if not fill_store(setup, images, store):
        return None
    return on_all_processes(_statistics, setup, images, store, keep)


def _statistics(
    setup: EvaluationSetup, images: ImageSet, store: FeatureStore | None, keep: int
) -> Reference:
    if store is None:
        return Reference({}, {}, {})
    notes = check_usable(images, store, max_excluded=setup.settings.max_excluded)
    words = protocol.protocol_of_features(setup.extractors, images)
    words["left out"] = "; ".join(notes) or "none"
    return reference.reference_of_features(store, words, keep=keep)
