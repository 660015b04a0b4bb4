"""The whole data set on the devices, for `config.queue.kind` "dataset"."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from drifting_jax.compiler import targets
from drifting_jax.data.sources import DataSpec, Source
from drifting_jax.data.transforms import UnreadableImage
from drifting_jax.distributed import meshes
from drifting_jax.distributed.agreement import on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.workdir.progress import progress_bar

_THREADS = 8  # that read and decode
_AT_ONCE = 256  # records

Batch = dict[str, jax.Array]


def template(spec: DataSpec, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and shardings of what `load` returns.

    Raises:
      ValueError: the number of samples is not known.
    """
    if not spec.count:
        raise ValueError("expected the number of samples in the data's spec, found none")
    everywhere = meshes.replicated(mesh)
    images = (spec.count, *spec.image_shape)
    return {
        "image": jax.ShapeDtypeStruct(images, jnp.uint8, sharding=everywhere),
        "label": jax.ShapeDtypeStruct((spec.count,), jnp.int32, sharding=everywhere),
    }


def check_fits(spec: DataSpec, mesh: Mesh, *, held: int = 0) -> None:
    """Makes sure that the data set lies in the memory of a device, of those whose memory is known.

    Args:
      spec: of the data.
      mesh: the devices.
      held: bytes that a device holds besides, of a step; a CPU's memory then does not count.

    Raises:
      UserError: it does not fit.
    """
    device = mesh.devices.flat[0]
    memory = targets.nominal_memory(device)
    if device.platform == "cpu" and not held:  # a dry run assembles steps of other devices there
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = meshes.bytes_per_device(template(spec, mesh))
    if memory and needed + held > memory:
        besides = f" beside {held / 1e9:.1f} GB of state and networks" if held else ""
        raise UserError(
            f"config.queue.kind='dataset' keeps all {spec.count:,} images on every device, "
            f"{needed / 1e9:.1f} GB{besides}, which do not fit the {memory / 1e9:.1f} GB of a "
            f"{device.device_kind}: use config.queue.kind='class' or smaller images"
        )


def load(source: Source, mesh: Mesh, *, is_main_process: bool = False) -> Batch:
    """Reads all samples and puts them on every device, sorted by label.

    Samples of one label keep their order. All processes must call it.

    Args:
      source: of uint8 images.
      mesh: the devices.
      is_main_process: whether to show progress.

    Returns:
      {"image": [n, h, w, c] uint8, "label": [n] int32, rising}.

    Raises:
      UserError: an image cannot be read.
    """
    images, labels = on_all_processes(_read, source, is_main_process)
    order = np.argsort(labels, kind="stable")
    everywhere = meshes.replicated(mesh)
    host = {"image": images[order], "label": labels[order].astype(np.int32)}
    return {
        name: jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)
        for name, x in host.items()
    }


def _read(source: Source, is_main_process: bool) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    failed: dict[int, str] = {}

    def read(index: int) -> None:
        try:
            record = source[index]
        except UnreadableImage as error:
            failed[index] = str(error)
            return
        images[index], labels[index] = record["image"], record["label"]

    with (
        progress_bar(len(source), description="data set", enabled=is_main_process) as bar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        for start in range(0, len(source), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(source)))
            list(pool.map(read, part))
            bar.update(len(part))
    if failed:
        index, reason = min(failed.items())
        raise UserError(
            f"config.queue.kind='dataset' needs every image; {len(failed)} of {len(source)} cannot "
            f"be read, such as {source.name(index)}: {reason}; remove them from the data"
        )
    return images, labels


class EveryStep(Iterator[Batch]):
    """Hands out the same batch for every step."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def __next__(self) -> Batch:
        return self._batch

    def __enter__(self) -> "EveryStep":
        return self

    def __exit__(self, *exception: object) -> None:
        pass
