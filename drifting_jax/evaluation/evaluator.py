"""From images to figures: features made on all devices, kept on the disk, and compared."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from drifting_jax.distributed import meshes, transfer
from drifting_jax.distributed.agreement import from_main_process
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.metrics.inception_score import TORCH_FIDELITY, inception_score
from drifting_jax.evaluation.metrics.kid import kernel_distance
from drifting_jax.evaluation.metrics.neighbors import manifold_figures
from drifting_jax.evaluation.reference import Reference, moments_of

# What each figure is made of, as `FeatureStore` names it, and whether of the reference moments or
# features are needed.
NEEDS = {
    "fid": ("inception", "moments"),
    "sfid": ("spatial", "moments"),
    "inception_score": ("logits", ""),
    "kid": ("inception", "features"),
    "precision": ("inception", "features"),
    "recall": ("inception", "features"),
    "density": ("inception", "features"),
    "coverage": ("inception", "features"),
    "fd_dinov2": ("dinov2", "moments"),
}
_MANIFOLD = ("precision", "recall", "density", "coverage")
# Where an extractor's outputs go.
_KINDS = {
    "inception": {"features": "inception", "logits": "logits", "spatial": "spatial"},
    "dinov2": {"features": "dinov2"},
}
_KID_SUBSET, _KID_SUBSETS, _KID_SEED = 1000, 100, 2020  # torch-fidelity's
_FLUSH_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How figures are made.

    Attributes:
      figures: names of `NEEDS`, those wanted.
      k: neighbours that make a ball.
      max_excluded: share of the images that may be left out because they cannot be measured.
    """

    figures: Sequence[str]
    k: int
    max_excluded: float

    @property
    def kinds(self) -> set[str]:
        """What must be extracted."""
        return {NEEDS[name][0] for name in self.figures}


def widths(extractors: Sequence[Extractor], kinds: set[str]) -> dict[str, int]:
    """{kind: d} of the kinds that the extractors give."""
    found = {}
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    for extractor in extractors:
        outputs = jax.eval_shape(extractor.apply, extractor.variables, image)
        named = _KINDS[extractor.name]
        found |= {named[k]: x.shape[1] for k, x in outputs.items() if named[k] in kinds}
    return found


def extract(
    images: ImageSet,
    extractors: Sequence[Extractor],
    store: FeatureStore | None,
    mesh: Mesh,
    *,
    kinds: set[str],
    batch_size: int,
    report: Callable[[int], Any] = lambda count: None,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Fills a store with the features of all images, from where it stands.

    Args:
      images: the set.
      extractors: networks; their variables are put on the devices.
      store: of process 0; None on the others, which compute alike.
      mesh: devices that share a batch.
      kinds: which features.
      batch_size: images at once; made a multiple of the devices.
      report: told how many more are done.
      stopped: asked after each batch whether to stop.

    Returns:
      Whether all is done; if not, `stopped` said so.
    """
    place = meshes.replicated(mesh)
    variables = {e.name: jax.device_put(e.variables, place) for e in extractors}
    chosen = tuple(extractors), frozenset(kinds)
    start = from_main_process(0 if store is None else store.done)
    report(start)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    flushed = time.monotonic()
    if start >= len(images):
        return True
    for batch in images.batches(mesh, start=start, batch_size=batch_size):
        found = transfer.fetch(_features(*chosen, variables, batch.images))
        if store is not None:
            store.append(found, batch.usable)
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                store.flush()
                flushed = time.monotonic()
        report(len(batch.usable))
        if stopped():
            if store is not None:
                store.flush()
            return False
    if store is not None:
        store.flush()
    return True


# Extractors are static: those of a second set of images are not compiled anew.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(extractors, kinds, variables, pixels):
    found = {}
    for extractor in extractors:
        outputs = extractor.apply(variables[extractor.name], pixels)
        named = _KINDS[extractor.name]
        found |= {named[k]: x for k, x in outputs.items() if named[k] in kinds}
    return found


def check_usable(images: ImageSet, store: FeatureStore, *, most: float) -> list[str]:
    """What is to be said of images that were left out.

    Raises:
      UserError: they are more than a share of `most`, or all.
    """
    left_out = store.unusable
    if not len(left_out):
        return []
    named = ", ".join(images.name(int(i)) for i in left_out[:5]) + ", …" * (len(left_out) > 5)
    told = f"{len(left_out)} of {store.rows} images cannot be measured (damaged, or not finite)"
    if len(left_out) > most * store.rows or len(left_out) == store.rows:
        raise UserError(f"{told}: {named}; --max_excluded allows a share of {most:g}")
    return [f"{told} and were left out: {named}"]


def figures_of(
    store: FeatureStore, reference: Reference | None, settings: Settings, *, mesh: Mesh
) -> tuple[list[dict[str, Any]], list[str]]:
    """The figures that can be made, and what is to be said of them and of the others.

    Args:
      store: features of the samples.
      reference: of real images, or None for the figures that need none.
      settings: which figures, and how.
      mesh: shares the work of comparing all pairs.

    Returns:
      Records {"figure", "value", perhaps "deviation"}, and notes.

    Raises:
      UserError: too few samples, or a reference that has another number of features.
    """
    records, notes = [], []
    wanted = []
    for name in settings.figures:
        missing = _missing(name, store, reference)
        if missing:
            notes.append(f"{name} was not computed: {missing}")
        else:
            wanted.append(name)
    try:
        for name in ("fid", "sfid", "fd_dinov2"):
            if name in wanted:
                records.append(_distance(name, store, reference, notes))
        if "inception_score" in wanted:
            score = inception_score(store.array("logits"), splitting=TORCH_FIDELITY)
            records.append(_record("inception_score", score.mean, score.std))
        if "kid" in wanted:
            records.append(_kid(store, reference, notes))
        if manifold := [name for name in _MANIFOLD if name in wanted]:
            records += _manifold(manifold, store, reference, settings.k, mesh, notes)
    except ValueError as error:
        raise UserError(f"the samples cannot be measured: {error}") from None
    order = {name: i for i, name in enumerate(settings.figures)}
    return sorted(records, key=lambda record: order[record["figure"]]), notes


def _missing(name: str, store: FeatureStore, reference: Reference | None) -> str:
    """Why a figure cannot be made; empty if it can."""
    kind, of_reference = NEEDS[name]
    if kind not in store:
        return f"there are no {kind} features"
    if not of_reference:
        return ""
    if reference is None:
        return "there is no --reference"
    if kind not in getattr(reference, of_reference):
        return f"the reference holds no {of_reference} of {kind}"
    return ""


def _record(name: str, value: float, deviation: float | None = None) -> dict[str, Any]:
    found = {"figure": name, "value": float(value)}
    return found if deviation is None else found | {"deviation": float(deviation)}


def _distance(name: str, store: FeatureStore, reference: Reference, notes: list[str]) -> dict:
    kind = NEEDS[name][0]
    theirs = reference.moments[kind]
    count, width = len(store.usable), store.width(kind)
    if len(theirs.mean) != width:
        raise UserError(
            f"the reference's {kind} statistics have {len(theirs.mean)} features, the samples' "
            f"{width}: they are of another network"
        )
    if count <= width:
        notes.append(
            f"{name} of {count} samples in {width} dimensions is far too large: with fewer samples "
            "than dimensions it says little; compare equal numbers only"
        )
    return _record(name, reference.distance(kind, moments_of(store, kind)))


def _kid(store: FeatureStore, reference: Reference, notes: list[str]) -> dict[str, Any]:
    ours, theirs = store.array("inception"), reference.features["inception"]
    size = min(_KID_SUBSET, len(ours), len(theirs))
    if size < _KID_SUBSET:
        notes.append(f"kid is over subsets of {size}, since there are no more; usual are 1000")
    found = kernel_distance(ours, theirs, subsets=_KID_SUBSETS, subset_size=size, seed=_KID_SEED)
    return _record("kid", found.mean, found.std)


def _manifold(
    names: Sequence[str], store: FeatureStore, reference: Reference, k: int, mesh: Mesh, notes
) -> list[dict[str, Any]]:
    real = reference.features["inception"]
    fake = store.take("inception", len(real))
    notes.append(f"{', '.join(names)}: {len(fake)} samples, {len(real)} real images, k = {k}")
    found = manifold_figures(real, fake, k=k, mesh=mesh)
    return [_record(name, getattr(found, name)) for name in names]


def protocol_of_features(extractors: Sequence[Extractor], images: ImageSet) -> dict[str, str]:
    """How features are made, in words by name; of generated images all processes call it."""
    height, width = images.pick([0]).shape[1:3]
    found = {"images": images.words, "image size": f"{height}x{width}"}
    for extractor in extractors:
        found[f"{extractor.name} weights"] = f"sha256 {extractor.digest}"
        found[f"{extractor.name} resize"] = extractor.resize
    return found


def protocol_of(
    extractors: Sequence[Extractor], settings: Settings, images: ImageSet
) -> dict[str, str]:
    """How figures are made, in words by name, for a report; see `protocol_of_features`."""
    found = protocol_of_features(extractors, images)
    wanted = set(settings.figures)
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
