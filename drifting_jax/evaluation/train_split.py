"""The protocol `TRAIN_SPLIT`: a run of small images as published FIDs of CIFAR-10 are taken.

Samples are compared with all images of the training split by Inception's features, as
torch-fidelity does it with `--input2 cifar10-train`. The statistics of the training images are
computed once and kept beside the results.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drifting_jax.data.sources import make_source
from drifting_jax.distributed.agreement import on_all_processes, on_main_process
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.features.source_images import SourceImages
from drifting_jax.evaluation.image_evaluation import evaluate_reference
from drifting_jax.evaluation.protocol import TRAIN_SPLIT
from drifting_jax.evaluation.reference import Reference, read_reference
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet

REFERENCE_FILE = "reference_train_split.npz"
_KEEP = 10000  # features of training images, for KID, precision and recall


def with_train_split(setup: EvaluationSetup, data: Any) -> EvaluationSetup | None:
    """Returns the setup with the statistics of the training split as its reference.

    All processes must call it. The statistics are those in `setup.out`, unless they are of other
    images or weights.

    Args:
      setup: without a reference.
      data: the `data` section of the run's config.

    Returns:
      None if it was stopped.

    Raises:
      UserError: the images are missing, or cannot be measured.
    """
    images = on_all_processes(_open, data)
    path = setup.out / REFERENCE_FILE
    if not on_main_process(_is_of, path, images, setup.extractors):
        apart = dataclasses.replace(setup, out=path.with_suffix(".parts"))
        evaluate_reference(apart, images, path, keep=_KEEP)
        if not on_main_process(_is_of, path, images, setup.extractors):
            return None
    return dataclasses.replace(setup, reference=on_all_processes(read_reference, path))


def recorded(sample_sets: Sequence[SampleSet]) -> list[SampleSet]:
    """The sample sets, whose lines and page say that they are measured by this protocol."""
    return [dataclasses.replace(x, facts={**x.facts, "protocol": TRAIN_SPLIT}) for x in sample_sets]


def _open(data: Any) -> ImageSet:
    source = make_source(data, "train", labels=True)
    return SourceImages(source, f"the training split of {data.source}")


def _is_of(path: Path, images: ImageSet, extractors: Sequence[Extractor]) -> bool:
    """Whether a file holds the statistics of these images by these networks."""
    if not path.is_file():
        return False
    try:
        found: Reference = read_reference(path)
    except UserError:  # damaged: it is computed again
        return False
    weights = {f"{e.name} weights": f"sha256 {e.digest}" for e in extractors}
    wanted = {"images": images.words, **weights}
    return all(found.protocol.get(name) == words for name, words in wanted.items())
