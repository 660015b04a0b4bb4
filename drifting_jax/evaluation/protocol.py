"""The protocol of an evaluation: how its metrics were made, in words by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drifting_jax.evaluation.feature_metrics import protocol_of_metrics
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.setup import EvaluationSetup, SampleSet

TRAIN_SPLIT = "train_split"
# Protocols with a name, which each line of figures.jsonl has, and what they are.
PROTOCOLS = {
    TRAIN_SPLIT: "compared with the whole training split, without flips, by the Inception network "
    "and the resize of torch-fidelity",
}


def protocol_of_features(extractors: Sequence[Extractor], images: ImageSet) -> dict[str, str]:
    """How features are made. All processes must call it if the images are generated."""
    height, width = images.pick([0]).shape[1:3]
    found = {"images": images.words, "image size": f"{height}x{width}"}
    for extractor in extractors:
        found[f"{extractor.name} weights"] = f"sha256 {extractor.digest}"
        found[f"{extractor.name} resize"] = extractor.resize
    return found


def protocol_of(setup: EvaluationSetup, sample_sets: Sequence[SampleSet]) -> dict[str, str]:
    """How the metrics of a report are made: samples, networks, reference and devices.

    All processes must call it if the images are generated.
    """
    first = sample_sets[0]
    found = protocol_of_features(setup.extractors, first.images)
    found |= protocol_of_metrics(setup.settings)
    if "weights" in first.facts:
        count, classes = len(first.images), len(first.images.class_names)
        seeds = sorted({each.seed for each in sample_sets if each.seed is not None})
        found |= {
            "images": f"{count} samples for each alpha and seed, one network evaluation each",
            "labels": f"balanced: {count / classes:g} of each of {classes} classes"
            if classes > 1
            else "none",
            "seeds": ", ".join(map(str, seeds)),
            "generator": f"step {first.facts['step']}, average of {_average(first.facts)}, "
            f"weights {first.facts['weights']}",
        }
    if name := first.facts.get("protocol"):
        found["protocol"] = f"{name}: {PROTOCOLS[name]}"
    if setup.reference is not None:
        for name, words in setup.reference.protocol.items():
            if found.get(name) != words:
                found[f"reference: {name}"] = words
    return found | {"devices": f"{setup.mesh.size} {setup.mesh.devices.flat[0].device_kind}"}


def _average(facts: Mapping[str, Any]) -> str:
    if "ema_decay" in facts:
        return f"decay {facts['ema_decay']:g}"
    return f"width {facts['ema_sigma']:g} (error of its fit {facts['fit_error']:.2g})"


def size_notes(protocol: Mapping[str, str]) -> list[str]:
    """A note if samples and reference are of different sizes."""
    if not (theirs := protocol.get("reference: image size")):
        return []
    return [
        f"the images are {protocol['image size']}, those of the reference {theirs}: published "
        "metrics compare images of one size"
    ]
