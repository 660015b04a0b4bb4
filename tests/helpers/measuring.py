"""Small sets of images and what they are measured with, at no cost."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from fake_extractor import make_extractor

from drifting_jax.distributed import meshes
from drifting_jax.evaluation.features.array_images import ArrayImages
from drifting_jax.evaluation.measurement import Measurement
from drifting_jax.evaluation.metrics.catalogue import IMAGES, metrics_for
from drifting_jax.evaluation.metrics.frechet import gaussian_statistics
from drifting_jax.evaluation.reference import Reference
from drifting_jax.evaluation.setup import EvaluationSetup, Settings

COUNT, SIZE = 90, 8
METRICS_OF_IMAGES = metrics_for(IMAGES)


def pixels(seed: int, count: int = COUNT) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return np.clip(coarse + rng.normal(0, 9, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def features(images: np.ndarray, kind: str = "features", name: str = "inception") -> np.ndarray:
    extractor = make_extractor(name)
    return np.asarray(extractor.apply(extractor.variables, jnp.asarray(images))[kind])


def array_set(folder, seed: int = 1, count: int = COUNT) -> ArrayImages:
    np.savez(folder / f"{seed}.npz", arr_0=pixels(seed, count))
    return ArrayImages(folder / f"{seed}.npz")


def of_real(seed: int = 0) -> Reference:
    images = pixels(seed)
    found = {"inception": features(images), "dinov2": features(images, name="dinov2")}
    moments = {name: gaussian_statistics(x) for name, x in found.items()}
    moments["spatial"] = gaussian_statistics(features(images, "spatial"))
    return Reference(moments, found, {"images": "made up"})


def setup(out, *, devices: int = 8, batch_size: int = 16, **changes) -> EvaluationSetup:
    made = EvaluationSetup(
        out=out,
        extractors=[make_extractor(), make_extractor("dinov2")],
        settings=Settings(tuple(METRICS_OF_IMAGES), 3, 0.05),
        reference=of_real(),
        mesh=meshes.make_mesh(devices),
        batch_size=batch_size,
        keep_features=False,
        is_main_process=True,
    )
    return dataclasses.replace(made, **changes)


def values(found: Measurement) -> dict[str, float]:
    return {record.metric: record.value for record in found.records}
