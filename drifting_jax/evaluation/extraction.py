"""Features of a set of images: made on all devices, kept on the disk."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from drifting_jax.digests import digest_values
from drifting_jax.distributed import meshes, transfer
from drifting_jax.distributed.agreement import from_main_process
from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.extractors import Extractor
from drifting_jax.evaluation.features.feature_store import FeatureStore
from drifting_jax.evaluation.features.image_set import ImageSet
from drifting_jax.evaluation.setup import EvaluationSetup
from drifting_jax.workdir.progress import progress_bar

# {extractor: {its output: the kind of features}}.
_KINDS: Mapping[str, Mapping[str, str]] = {
    "inception": {"features": "inception", "logits": "logits", "spatial": "spatial"},
    "dinov2": {"features": "dinov2"},
}
_FLUSH_SECONDS = 20.0
_REPORT_SECONDS = 15.0  # between lines of progress, where there is no terminal for a bar


def open_store(setup: EvaluationSetup, images: ImageSet) -> FeatureStore | None:
    """Opens the store for the features of a set; None in processes other than the main one."""
    if not setup.is_main_process:
        return None
    weights = [extractor.digest for extractor in setup.extractors]
    made_with = digest_values(weights, sorted(setup.settings.features))
    return FeatureStore(
        setup.out / "features" / f"{images.digest}-{made_with}",
        rows=len(images),
        widths=_widths(setup.extractors, setup.settings.features),
    )


def fill_store(setup: EvaluationSetup, images: ImageSet, store: FeatureStore | None) -> bool:
    """Makes the features that a store lacks, with a progress bar; returns whether all are made."""
    if setup.is_main_process:  # the first batch waits for the compiler
        print(f"{images.words}: features", file=sys.stderr, flush=True)
    done, reported_at = 0, time.monotonic()

    with progress_bar(len(images), description="features", enabled=setup.is_main_process) as bar:

        def report(count: int) -> None:
            nonlocal done, reported_at
            done += count
            bar.update(count)
            if (
                setup.is_main_process
                and bar.disable
                and time.monotonic() - reported_at > _REPORT_SECONDS
            ):
                reported_at = time.monotonic()
                print(f"features of {done} of {len(images)} images", file=sys.stderr, flush=True)

        return _extract(setup, images, store, report)


def check_usable(images: ImageSet, store: FeatureStore, *, max_excluded: float) -> list[str]:
    """Notes on the images that were left out.

    Raises:
      UserError: they are more than a share of `max_excluded`, or all.
    """
    left_out = store.unusable
    if not len(left_out):
        return []
    named = ", ".join(images.name(int(i)) for i in left_out[:5]) + ", …" * (len(left_out) > 5)
    fact = f"{len(left_out)} of {store.rows} images cannot be measured (damaged, or not finite)"
    if len(left_out) > max_excluded * store.rows or len(left_out) == store.rows:
        raise UserError(f"{fact}: {named}; --max_excluded allows a share of {max_excluded:g}")
    return [f"{fact} and were left out: {named}"]


def _extract(
    setup: EvaluationSetup,
    images: ImageSet,
    store: FeatureStore | None,
    report: Callable[[int], Any],
) -> bool:
    """Fills a store with the features of all images, from where it stands.

    Args:
      setup: its batch size is rounded up to a multiple of the devices.
      images: the set.
      store: of the main process; None on the others, which compute alike.
      report: called with the number of images that were done before, then of each batch.

    Returns:
      Whether all features are made; if not, `setup.stopped` asked to stop.
    """
    shardings = meshes.replicated(setup.mesh)
    variables = {e.name: jax.device_put(e.variables, shardings) for e in setup.extractors}
    chosen = tuple(setup.extractors), frozenset(setup.settings.features)
    start = from_main_process(0 if store is None else store.done)
    report(start)
    batch_size = -(-setup.batch_size // setup.mesh.size) * setup.mesh.size
    flushed = time.monotonic()
    if start >= len(images):
        return True
    for batch in images.batches(setup.mesh, start=start, batch_size=batch_size):
        found = transfer.fetch(_features(*chosen, variables, batch.images))
        if store is not None:
            store.append(found, batch.usable)
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                store.flush()
                flushed = time.monotonic()
        report(len(batch.usable))
        if setup.stopped():
            if store is not None:
                store.flush()
            return False
    if store is not None:
        store.flush()
    return True


def _widths(extractors: Sequence[Extractor], kinds: set[str]) -> dict[str, int]:
    """{kind: d} of the kinds that the extractors give."""
    found: dict[str, int] = {}
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    for extractor in extractors:
        outputs = jax.eval_shape(extractor.apply, extractor.variables, image)
        named = _KINDS[extractor.name]
        found |= {named[k]: x.shape[1] for k, x in outputs.items() if named[k] in kinds}
    return found


# Extractors are static, so that a second set of images compiles nothing anew.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(
    extractors: Sequence[Extractor],
    kinds: frozenset[str],
    variables: Mapping[str, Any],
    images: jax.Array,
) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = {}
    for extractor in extractors:
        outputs = extractor.apply(variables[extractor.name], images)
        named = _KINDS[extractor.name]
        found |= {named[k]: x for k, x in outputs.items() if named[k] in kinds}
    return found
