"""The page of a run on a folder of images: samples beside their nearest training images."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.evaluation.nearest_page import PAGE, Features, write_nearest_page
from drifting_jax.files import expanded
from drifting_jax.method.encoders import last_stage_means
from drifting_jax.steps.generator import Generator
from drifting_jax.surroundings import settled_jax
from drifting_jax.training import build
from drifting_jax.training.encoder import read_trained
from drifting_jax.training.restore import load_run

PyTree = Any

_WORDS = "the features of the run's own encoder, the mean of each channel of its last stage"
_BATCH = 256


@settled_jax()
def show_nearest(workdir: str | Path, *, training_images: str = "") -> str:
    """Writes the page of a finished run, see `evaluation.nearest_page`; returns two lines about it.

    Args:
      workdir: of the run.
      training_images: where they are now; empty for config.data.path.

    Raises:
      UserError: the run is of other data than a folder of images, of latents, or of several
        processes; or its images are not there.
    """
    workdir = Path(expanded(str(workdir)))
    run = load_run(workdir)
    config = run.config
    assert config is not None  # it is of a run
    if config.data.source != "images" or config.data.latent:
        raise UserError(
            "the nearest training images without downloaded networks are of runs on the pixels of "
            f"a folder (config.data.source images); {workdir} is of {config.data.source}"
        )
    if jax.process_count() > 1:
        raise UserError("nearest training images are looked for by a single process alone")
    found = write_nearest_page(
        run,
        workdir=workdir,
        folder=Path(training_images or config.data.path),
        features=_features_of(run, workdir),
        words=_WORDS,
    )
    return f"{found.words}\nsamples and their nearest training images: {workdir / PAGE}"


def _features_of(run: Generator, workdir: Path) -> Features:
    """Returns the features [n, d] of images [n, h, w, 3] uint8, in batches of one size."""
    assert run.config is not None and run.data_spec is not None  # it is of a run
    model = build.make_encoder(run.config, run.data_spec)
    _, params = read_trained(run.config, run.data_spec, run.mesh, workdir)

    @jax.jit
    def apply(params: PyTree, images: jax.Array) -> jax.Array:
        return last_stage_means(model, {"params": params}, images.astype(jnp.float32) / 127.5 - 1)

    def features(images: np.ndarray) -> np.ndarray:
        found = []
        for first in range(0, len(images), _BATCH):
            batch = images[first : first + _BATCH]
            padded = np.pad(batch, ((0, _BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            found.append(np.asarray(apply(params, padded))[: len(batch)])
        return np.concatenate(found)

    return features
