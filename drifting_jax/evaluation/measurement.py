"""Figures of images as large as one likes, against a reference: FID and what stands beside it.

What is measured, `SampleSet`s, are sets of images: samples at every α and seed, or a folder. For
each, features are made and kept in <out>/features until its figures stand in <out>/figures.jsonl,
so that the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.digests import digest_values, fingerprint_variables
from drifting_jax.distributed import meshes, transfer
from drifting_jax.distributed.agreement import from_main_process, on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation import evaluator, reference
from drifting_jax.evaluation.evaluator import Settings
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.features.image_sets import GeneratedImages, balanced_labels
from drifting_jax.evaluation.reference import Reference
from drifting_jax.files import write_bytes
from drifting_jax.steps.generator import Generator
from drifting_jax.workdir.progress import progress_bar

FIGURES_FILE = "figures.jsonl"
_SECONDS_BETWEEN = 15.0  # two lines of progress, where there is no terminal for a bar


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """A set that is measured: its images, and what it is: "alpha", "seed", "step" and the like."""

    images: ImageSet
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
    """What sets are measured with.

    Attributes:
      out: folder that everything goes to.
      extractors: networks that make features.
      settings: which figures, and how.
      reference: what they are compared with, or None.
      mesh: all devices.
      batch_size: images at once.
      keep_features: leave them on the disk when their figures are made.
      is_main_process: whether this process prints and writes.
      stopped: whether to stop.
    """

    out: Path
    extractors: Sequence[Extractor]
    settings: Settings
    reference: Reference | None
    mesh: Mesh
    batch_size: int
    keep_features: bool
    is_main_process: bool
    stopped: Callable[[], bool] = lambda: False

    @functools.cached_property
    def digest(self) -> str:
        """Of all that figures depend on besides the images."""
        compared = self.reference
        arrays = []
        if compared is not None:
            arrays = [x for k in sorted(compared.moments) for x in compared.moments[k]]
            arrays += [compared.features[k] for k in sorted(compared.features)]
        weights = [extractor.digest for extractor in self.extractors]
        return digest_values(weights, self.settings.k, *arrays)


def generated_subjects(
    generator: Generator,
    *,
    count: int,
    cfg_scales: Sequence[float],
    seeds: Sequence[int],
) -> list[SampleSet]:
    """Samples of all classes, `count` of them, as many of each, at every α and seed."""
    labels, indices = balanced_labels(count, len(generator.class_names))
    identity = fingerprint_variables(transfer.fetch(generator.params))
    return [
        SampleSet(
            GeneratedImages(generator, labels, indices, seed, scale, identity),
            {
                "alpha": scale,
                "seed": seed,
                "step": generator.step,
                "ema_decay": generator.ema_decay,
                "weights": identity,
            },
        )
        for scale in cfg_scales
        for seed in seeds
    ]


def measure_all(
    bench: EvaluationSetup, subjects: Sequence[SampleSet]
) -> tuple[list[dict], list[str]] | None:
    """The records and notes of all sets, those known already as they stand in the file.

    Returns:
      None where it was stopped.

    Raises:
      UserError: see `evaluator`.
    """
    records, notes = [], []
    lines = read_records(bench.out)
    for subject in subjects:
        found = _known(lines, bench, subject) if bench.is_main_process else ([], [])
        if not from_main_process(found is not None):
            found = measure(bench, subject)
            if found is None:
                return None
        records += found[0]
        notes += [note for note in found[1] if note not in notes]
    return records, notes


def read_records(out: Path) -> list[dict[str, Any]]:
    """The lines of figures.jsonl; of one that was written in part nothing."""
    found = []
    with contextlib.suppress(OSError):
        for line in (out / FIGURES_FILE).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def _known(
    lines: Sequence[Mapping[str, Any]], bench: EvaluationSetup, subject: SampleSet
) -> tuple[list[dict], list[str]] | None:
    """Figures that were made before, if all that are wanted were."""
    mine = [
        line
        for line in lines
        if (line.get("set"), line.get("bench")) == (subject.images.digest, bench.digest)
    ]
    by_name = {line["figure"]: dict(line) for line in mine if line.get("figure")}
    done = [line for line in mine if "notes" in line]
    if not done or not set(bench.settings.figures) <= set(done[-1]["figures"]):
        return None
    if done[-1]["left_out"] > bench.settings.max_excluded * len(subject.images):
        return None
    records = [by_name[name] for name in bench.settings.figures if name in by_name]
    return records, list(done[-1]["notes"])


def measure(
    bench: EvaluationSetup, subject: SampleSet, *, record: bool = True
) -> tuple[list[dict], list[str]] | None:
    """Records and notes of one set; None where it was stopped.

    Processes other than the first help, and return nothing.

    Args:
      bench: what to measure with.
      subject: the set.
      record: add a line for each figure to figures.jsonl, and one with the notes.

    Raises:
      UserError: see `evaluator`.
    """
    check_count(subject.images)
    store = open_store(bench, subject.images)
    if not fill_store(bench, subject.images, store):
        return None
    if bench.is_main_process:
        print(f"{subject.images.words}: computing figures", file=sys.stderr, flush=True)
    return on_all_processes(_figures, bench, subject, store, record)


def _figures(
    bench: EvaluationSetup, subject: SampleSet, store: FeatureStore | None, record: bool
) -> tuple[list[dict], list[str]]:
    if store is None:
        return [], []
    notes = evaluator.check_usable(subject.images, store, most=bench.settings.max_excluded)
    local = meshes.make_mesh(devices=jax.local_devices())
    records, told = evaluator.figures_of(store, bench.reference, bench.settings, mesh=local)
    notes += told
    facts = {
        **subject.facts,
        "num_samples": len(store.usable),
        "left_out": len(store.unusable),
        "set": subject.images.digest,
        "bench": bench.digest,
    }
    records = [found | facts for found in records]
    if record:
        last = {"notes": notes, "figures": list(bench.settings.figures), **facts}
        _append_lines(bench.out / FIGURES_FILE, [*records, last])
    if not bench.keep_features:
        store.delete()
    return records, notes


def open_store(bench: EvaluationSetup, images: ImageSet) -> FeatureStore | None:
    """Where the features of a set are, or will be; None in processes other than the first."""
    if not bench.is_main_process:
        return None
    weights = [extractor.digest for extractor in bench.extractors]
    made_with = digest_values(weights, sorted(bench.settings.kinds))
    return FeatureStore(
        bench.out / "features" / f"{images.digest}-{made_with}",
        rows=len(images),
        widths=evaluator.widths(bench.extractors, bench.settings.kinds),
    )


def fill_store(bench: EvaluationSetup, images: ImageSet, store: FeatureStore | None) -> bool:
    """Makes the features that a store lacks, with a progress bar; whether all are made."""
    if bench.is_main_process:  # the first batch waits for the compiler
        print(f"{images.words}: features", file=sys.stderr, flush=True)
    done, spoke_at = 0, time.monotonic()

    with progress_bar(len(images), description="features", enabled=bench.is_main_process) as bar:

        def report(count: int) -> None:
            nonlocal done, spoke_at
            done += count
            bar.update(count)
            if (
                bench.is_main_process
                and bar.disable
                and time.monotonic() - spoke_at > _SECONDS_BETWEEN
            ):
                spoke_at = time.monotonic()
                print(f"features of {done} of {len(images)} images", file=sys.stderr, flush=True)

        return evaluator.extract(
            images,
            bench.extractors,
            store,
            bench.mesh,
            kinds=bench.settings.kinds,
            batch_size=bench.batch_size,
            report=report,
            stopped=bench.stopped,
        )


def check_count(images: ImageSet) -> None:
    """Raises UserError where there are too few images for figures."""
    if len(images) < 2:
        raise UserError(f"figures are of two images or more; found {images.words}")


def _append_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    write_bytes(path, before + ("\n".join(lines) + "\n").encode())


def complete_reference(bench: EvaluationSetup, found: Reference) -> Reference | None:
    """A reference whose file holds images, with the features of these; others as they are.

    Returns:
      None where it was stopped.
    """
    if found.images is None:
        return found
    # With a folder of its own, so that the same command need not measure it again.
    apart = dataclasses.replace(bench, out=bench.out / "reference")
    images = ArrayImages(found.images)
    made = measure_reference(apart, images, keep=len(images))
    if made is None:
        return None
    if found.moments:  # of more images than the file holds
        protocol = {k: words for k, words in made.protocol.items() if k == "image size"}
        protocol |= found.protocol
    else:
        protocol = made.protocol
    return dataclasses.replace(
        found,
        moments={**made.moments, **found.moments},
        features=made.features,
        protocol=protocol,
        images=None,
    )


def measure_reference(bench: EvaluationSetup, images: ImageSet, *, keep: int) -> Reference | None:
    """The statistics of real images; their features stay in <out>/features.

    Returns:
      None where it was stopped; in processes other than the first an empty one.

    Raises:
      UserError: too few images, or too many that cannot be measured.
    """
    check_count(images)
    store = open_store(bench, images)
    if not fill_store(bench, images, store):
        return None
    return on_all_processes(_statistics, bench, images, store, keep)


def _statistics(
    bench: EvaluationSetup, images: ImageSet, store: FeatureStore | None, keep: int
) -> Reference:
    if store is None:
        return Reference({}, {}, {})
    notes = evaluator.check_usable(images, store, most=bench.settings.max_excluded)
    protocol = evaluator.protocol_of_features(bench.extractors, images)
    protocol["left out"] = "; ".join(notes) or "none"
    return reference.measure(store, protocol, keep=keep)
