"""The evaluation of images against a reference, from the first feature to the page.

`evaluate_images` measures sets of images and writes figures.jsonl, figures.txt and report.html;
`evaluate_reference` measures real images and writes their statistics.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from drifting_jax.digests import digest_values
from drifting_jax.distributed import meshes, processes
from drifting_jax.distributed.agreement import on_all_processes, require_same
from drifting_jax.errors import UserError
from drifting_jax.evaluation import measurement
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.features.extractors import Extractor, load_extractor
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.pictures import class_grids, nearest_training_images
from drifting_jax.evaluation.protocol import protocol_of, size_notes
from drifting_jax.evaluation.reference import (
    Reference,
    check_weights,
    read_reference,
    write_reference,
)
from drifting_jax.evaluation.report.page import Neighbors, Report, write_page
from drifting_jax.evaluation.report.tables import metrics_table
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet, Settings, check_count
from drifting_jax.files import shown, write_bytes
from drifting_jax.steps.generator import Generator
from drifting_jax.workdir.lock import locked_by_main_process

REPORT_FILE, TABLE_FILE = "report.html", "figures.txt"
_CURVE = ("inception_score", "fid")


def prepare_setup(
    settings: Settings,
    *,
    out: Path,
    weights: Mapping[str, str],
    required: bool,
    reference: str,
    batch_size: int,
    keep_features: bool,
    stopped: Callable[[], bool],
) -> tuple[EvaluationSetup, list[str]]:
    """Loads networks and reference; returns the setup, and notes on the networks.

    All processes must call it, and must find the same weights. Nothing is written.

    Args:
      settings: which metrics, and how.
      out: see `EvaluationSetup`.
      weights: of "inception" and "dinov2", files or folders; empty for the usual folder.
      required: whether a lack of DINOv2's weights is an error; else its metric is left out.
      reference: an .npz file of real images; empty for none.
      batch_size: images at once on a device.
      keep_features, stopped: see `EvaluationSetup`.

    Raises:
      UserError: weights or reference are missing, damaged or do not fit together, or the weights
        differ between the processes.
    """
    extractors, notes = on_all_processes(_load_extractors, settings, weights, required)
    _check_same(extractors)
    mesh = meshes.make_mesh()
    setup = EvaluationSetup(
        out=out,
        extractors=extractors,
        settings=settings,
        reference=_read_reference(Path(reference), extractors) if reference else None,
        mesh=mesh,
        batch_size=batch_size * mesh.size,
        keep_features=keep_features,
        is_main_process=processes.is_main_process(),
        stopped=stopped,
    )
    return setup, notes


def _check_same(extractors: Sequence[Extractor]) -> None:
    """Raises UserError if the weights differ between the processes."""
    digest = digest_values([extractor.digest for extractor in extractors])
    require_same(
        digest.encode(),
        "has other weights than process 0: put the same files on all machines",
    )


def _load_extractors(
    settings: Settings, weights: Mapping[str, str], required: bool
) -> tuple[list[Extractor], list[str]]:
    found, notes = [], []
    if settings.features - {"dinov2"}:
        found.append(load_extractor("inception", weights["inception"], flag="--inception"))
    if "dinov2" in settings.features:
        try:
            found.append(load_extractor("dinov2", weights["dinov2"], flag="--dinov2"))
        except UserError as error:
            if required:
                raise
            notes.append(f"fd_dinov2 and nearest training images were left out: {error}")
    return found, [*notes, *(extractor.warning for extractor in found if extractor.warning)]


def _read_reference(path: Path, extractors: Sequence[Extractor]) -> Reference:
    found = read_reference(path)
    check_weights(found, extractors)
    if found.images is not None:
        check_count(ArrayImages(found.images))
    return found


def evaluate_images(
    setup: EvaluationSetup,
    sample_sets: Sequence[SampleSet],
    *,
    title: str,
    notes: Sequence[str],
    generator: Generator | None = None,
    training_images: str = "",
) -> str | None:
    """Measures all sets that are not measured yet, and writes the table and the page.

    Args:
      setup: what to measure with; its folder is made.
      sample_sets: see `SampleSet`.
      title: of the page.
      notes: for the page, besides those of the measurement.
      generator: of the samples; None for images that were given.
      training_images: folder to look for the nearest ones in; empty for that of the generator's
        config.

    Returns:
      The table with the notes below it; None if it was stopped, and on other processes.

    Raises:
      UserError: a set that cannot be measured; one of too few images before anything is written.
    """
    for sample_set in sample_sets:
        check_count(sample_set.images)
    setup.out.mkdir(parents=True, exist_ok=True)
    with locked_by_main_process(setup.out):
        if setup.reference is not None:
            complete = measurement.complete_reference(setup, setup.reference)
            if complete is None:
                return None
            setup = dataclasses.replace(setup, reference=complete)
        found = measurement.measure_all(setup, sample_sets)
        if found is None:
            return None
        # On all processes, as they all generate what is shown.
        protocol, pictures = protocol_of(setup, sample_sets), class_grids(sample_sets)
        neighbors, told = _neighbors(setup, sample_sets[0], generator, training_images)
        if not setup.is_main_process:
            return None
        page = Report(
            title=title,
            protocol=protocol,
            records=found.records,
            pictures=pictures,
            neighbors=neighbors,
            notes=[*notes, *found.notes, *told, *size_notes(protocol)],
        )
        table = _write_report(setup.out, page)
        if not setup.keep_features:
            shutil.rmtree(setup.out / "reference", ignore_errors=True)
        return table


def evaluate_reference(
    setup: EvaluationSetup, images: ImageSet, path: Path, *, keep: int
) -> Reference | None:
    """Measures real images and writes their statistics to an .npz file.

    Args:
      setup: what to measure with; its folder is made, and removed when the file is written.
      images: the real images.
      path: of the file.
      keep: features of each kind that are kept.

    Returns:
      The reference; None if it was stopped, and on other processes.

    Raises:
      UserError: images that cannot be measured; too few before anything is written.
    """
    check_count(images)
    setup.out.mkdir(parents=True, exist_ok=True)
    with locked_by_main_process(setup.out):
        found = measurement.measure_reference(setup, images, keep=keep)
        if found is None or not setup.is_main_process:
            return None
        write_reference(path, found)
        if not setup.keep_features:
            shutil.rmtree(setup.out, ignore_errors=True)
    return found


def _write_report(out: Path, page: Report) -> str:
    """Writes figures.txt and report.html; returns the table with the notes below it."""
    table = "\n".join([metrics_table(page.records), *(f"note: {note}" for note in page.notes)])
    write_bytes(out / TABLE_FILE, shown(table + "\n").encode())
    write_page(out / REPORT_FILE, page, curve=_CURVE if _has_curve(page.records) else None)
    return table


def _has_curve(records: Sequence[MetricRecord]) -> bool:
    """Whether both metrics of the curve are known at several α's."""
    several = len({record.alpha for record in records}) > 1
    return several and {record.metric for record in records} >= set(_CURVE)


def _neighbors(
    setup: EvaluationSetup,
    sample_set: SampleSet,
    generator: Generator | None,
    training_images: str,
) -> tuple[Neighbors | None, list[str]]:
    """Nearest training images of some samples, or a note that says why there are none."""
    if generator is None:
        return None, []
    extractor = next((e for e in setup.extractors if e.name == "dinov2"), None)
    config = generator.config
    folder = training_images or (config.data.path if config else "")
    if extractor is None:
        told = ["nearest training images need fd_dinov2 among --figures"]
        return None, told if training_images else []
    if jax.process_count() > 1:
        return None, ["nearest training images are looked for by a single process alone"]
    if not folder or (config and config.data.latent and not training_images):
        return None, ["nearest training images were left out: no --training_images"]
    try:
        found = nearest_training_images(setup, sample_set, extractor, Path(folder))
    except UserError as error:
        return None, [f"nearest training images were left out: {error}"]
    return found, [] if found else ["nearest training images were left out: stopped"]
