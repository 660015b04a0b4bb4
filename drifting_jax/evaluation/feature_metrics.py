"""From features to metrics: the samples' features against those of the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.evaluation.metrics.inception_score import TORCH_FIDELITY, inception_score
from drifting_jax.evaluation.metrics.kid import kernel_distance
from drifting_jax.evaluation.metrics.neighbors import manifold_metrics
from drifting_jax.evaluation.metrics.records import MetricRecord
from drifting_jax.evaluation.reference import Reference, are_same_images, moments_of
from drifting_jax.evaluation.setup import Settings

_KID_SUBSET, _KID_SUBSETS, _KID_SEED = 1000, 100, 2020  # torch-fidelity's


def metrics_of_features(
    store: FeatureStore, reference: Reference | None, settings: Settings, *, mesh: Mesh
) -> tuple[list[MetricRecord], list[str]]:
    """Records of the metrics that can be computed, and notes on them and on the others.

    Args:
      store: features of the samples.
      reference: of real images, or None for the metrics that need none.
      settings: which metrics, and how.
      mesh: devices that compare all pairs.

    Raises:
      UserError: too few samples, or a reference that has another number of features.
    """
    notes, wanted = [], []
    for name in settings.metrics:
        missing = _missing(name, store, reference)
        if missing:
            notes.append(f"{name} was not computed: {missing}")
        else:
            wanted.append(name)
    # Without a reference only metrics that need none are wanted.
    comparison = _Comparison(store, reference or Reference({}, {}, {}), settings, mesh)
    records = []
    try:
        for names, measure in _MEASURES.items():
            if chosen := [name for name in wanted if name in names]:
                found, told = measure(comparison, chosen)
                records += found
                notes += told
    except ValueError as error:
        raise UserError(f"the samples cannot be measured: {error}") from None
    order = {name: i for i, name in enumerate(settings.metrics)}
    return sorted(records, key=lambda record: order[record.metric]), notes


def protocol_of_metrics(settings: Settings) -> dict[str, str]:
    """How the metrics are computed, in words by name, for a report."""
    found, wanted = {}, set(settings.metrics)
    if "inception_score" in wanted:
        found["inception score"] = (
            f"{TORCH_FIDELITY.count} splits after a shuffle with seed "
            f"{TORCH_FIDELITY.shuffle_seed}, logits without their bias"
        )
    if "kid" in wanted:
        found["kid"] = (
            f"{_KID_SUBSETS} subsets of {_KID_SUBSET} (or of all, where there are fewer) of the "
            f"samples and of the reference's features, seed {_KID_SEED}"
        )
    if wanted & set(_MANIFOLD):
        found["manifolds"] = (
            f"balls to the {settings.k}-th neighbour; of the samples at most as many as the "
            "reference has features"
        )
    return found


def _missing(name: str, store: FeatureStore, reference: Reference | None) -> str:
    """Why a metric cannot be computed; empty if it can."""
    metric = METRICS[name]
    if metric.features not in store:
        return f"there are no {metric.features} features"
    if not metric.reference:
        return ""
    if reference is None:
        return "there is no --reference"
    known = reference.moments if metric.reference == "moments" else reference.features
    if metric.features not in known:
        return f"the reference holds no {metric.reference} of {metric.features}"
    return ""


class _Comparison(NamedTuple):
    """What a measure is computed from."""

    store: FeatureStore
    reference: Reference
    settings: Settings
    mesh: Mesh


_Found = tuple[list[MetricRecord], list[str]]


def _frechet(comparison: _Comparison, names: Sequence[str]) -> _Found:
    store, reference = comparison.store, comparison.reference
    records, notes = [], []
    for name in names:
        kind = METRICS[name].features
        count, width = len(store.usable), store.width(kind)
        theirs = len(reference.moments[kind].mean)
        if theirs != width:
            raise UserError(
                f"the reference's {kind} statistics have {theirs} features, the samples' {width}: "
                "they are of another network"
            )
        if count <= width:
            notes.append(
                f"{name} of {count} samples in {width} dimensions is far too large: with fewer "
                "samples than dimensions it says little; compare equal numbers only"
            )
        moments = moments_of(store, kind)
        if are_same_images(moments, reference.moments[kind]):
            notes.append(
                f"warning: {name} compares the reference's own images with themselves: the moments "
                "are equal, so the metrics say nothing"
            )
        distance = reference.distance(kind, moments)
        records.append(MetricRecord(name, float(distance)))
    return records, notes


def _inception_score(comparison: _Comparison, names: Sequence[str]) -> _Found:
    (name,) = names
    score = inception_score(comparison.store.array("logits"), splitting=TORCH_FIDELITY)
    return [MetricRecord(name, score.mean, deviation=score.std)], []


def _kid(comparison: _Comparison, names: Sequence[str]) -> _Found:
    (name,), notes = names, []
    kind = METRICS[name].features
    ours, theirs = comparison.store.array(kind), comparison.reference.features[kind]
    size = min(_KID_SUBSET, len(ours), len(theirs))
    if size < _KID_SUBSET:
        notes.append(f"kid is over subsets of {size}, since there are no more; usual are 1000")
    found = kernel_distance(ours, theirs, subsets=_KID_SUBSETS, subset_size=size, seed=_KID_SEED)
    return [MetricRecord(name, found.mean, deviation=found.std)], notes


def _manifold(comparison: _Comparison, names: Sequence[str]) -> _Found:
    real, k = comparison.reference.features["inception"], comparison.settings.k
    fake = comparison.store.take("inception", len(real))
    found = manifold_metrics(real, fake, k=k, mesh=comparison.mesh)
    notes = [f"{', '.join(names)}: {len(fake)} samples, {len(real)} real images, k = {k}"]
    return [MetricRecord(name, getattr(found, name)) for name in names], notes


# How metrics are computed; those of one entry are computed together.
_MANIFOLD = ("precision", "recall", "density", "coverage")
_MEASURES: Mapping[tuple[str, ...], Callable[[_Comparison, Sequence[str]], _Found]] = {
    ("fid", "sfid", "fd_dinov2"): _frechet,
    ("inception_score",): _inception_score,
    ("kid",): _kid,
    _MANIFOLD: _manifold,
}
