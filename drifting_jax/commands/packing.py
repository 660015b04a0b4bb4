"""Makes the records of shards and of latents from images, and writes them, for `prepare`."""

import dataclasses
import functools
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drifting_jax.data import transforms
from drifting_jax.data.records import Records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import UNREADABLE
from drifting_jax.data.transforms import Augmentation, FailedRead, UnreadableImage
from drifting_jax.data.unreadable import most_unreadable
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.calls import apply_variables
from drifting_jax.models.vae import VAE


def cut_record(records: Records, index: int, *, size: int, jpeg_quality: int) -> bytes:
    """The bytes of a record of `shards`.

    Args:
      records: the images.
      index: of one of them.
      size: side of the centre crop in pixels; 0 keeps the file's bytes.
      jpeg_quality: of the crop's JPEG file; 0 for a PNG file.

    Raises:
      UnreadableImage: the file is no whole image.
    """
    from PIL import Image

    data, _ = records.read(index)
    if not size:
        return data
    crop, buffer = Image.fromarray(transforms.load(data, size)), io.BytesIO()
    if jpeg_quality:
        crop.save(buffer, "JPEG", quality=jpeg_quality, subsampling=0)
    else:
        crop.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of an image that are encoded.

    Attributes:
      size: side of the views in pixels.
      crop: "center": the centre crop and its mirror image; "random_resized": `count` random crops,
        each mirrored with probability one half.
      count, min_area, seed: number, least area and seed of the random crops.
    """

    size: int
    crop: str
    count: int
    min_area: float
    seed: int

    def of(self, records: Records, index: int) -> np.ndarray:
        """The views of one image: [count, size, size, 3] uint8, the same at every call.

        Raises:
          UnreadableImage: the file is no whole image.
        """
        data, _ = records.read(index)
        if self.crop == "center":
            view = transforms.load(data, self.size)
            return np.stack([view, view[:, ::-1]])
        how = Augmentation(crop=self.crop, min_area=self.min_area, flip=True)
        keys = [np.random.default_rng((self.seed, index, view)) for view in range(self.count)]
        views = [transforms.load(data, self.size, augmentation=how, rng=key) for key in keys]
        return np.stack(views)


def write_shards(
    writer: ShardWriter,
    records: Callable[[Sequence[int]], Iterator[bytes | UnreadableImage]],
    *,
    report: Callable[[int], None],
    max_unreadable: float = 0.1,
) -> None:
    """Writes this process's share of the shards, and continues what an earlier start has written.

    Args:
      writer: after `open`.
      records: indices -> an iterator of their records, in order; an error for an unreadable one.
      report: called with the number of records that were just done.
      max_unreadable: largest share of all records that may be unreadable.

    Raises:
      UserError: more records are unreadable, or a disk fails.
    """
    allowed = most_unreadable(max_unreadable, writer.count)
    for shard in range(jax.process_index(), writer.num_shards, jax.process_count()):
        indices = writer.range(shard)
        if writer.is_done(shard):
            report(len(indices))
            continue
        journal = writer.journal(shard)
        start = len(journal)
        report(start)
        for index, data in zip(indices[start:], records(indices[start:]), strict=True):
            if isinstance(data, UnreadableImage):
                reasons = writer.note_unreadable(shard, index, str(data))
                if len(reasons) > allowed:
                    raise UserError(
                        f"{len(reasons)} images could not be read, more than the {allowed} that "
                        f"--max_unreadable={max_unreadable:g} allows of {writer.count}; the last "
                        f"was {writer.name(index)}: {data}. Look at the source, then delete "
                        f"{writer.folder} and begin anew, or allow more"
                    )
                data = UNREADABLE
            journal.append(data)
            report(1)
        writer.finish(shard, journal)


def ahead(function: Callable[[int], Any], indices: Iterable[int], *, threads: int) -> Iterator[Any]:
    """Yields function(i) for all indices in order; threads compute some of them ahead."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque = deque()
        for index in indices:
            pending.append(pool.submit(function, index))
            if len(pending) > 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def shard_records(
    records: Records, *, size: int, jpeg_quality: int, threads: int
) -> Callable[[Sequence[int]], Iterator[bytes | UnreadableImage]]:
    """The records of `shards`, for `write_shards`: see `cut_record`."""

    def one(index: int) -> bytes | UnreadableImage:
        try:
            return cut_record(records, index, size=size, jpeg_quality=jpeg_quality)
        except UnreadableImage as error:
            _require_disk(records, index, error)
            return error

    return functools.partial(ahead, one, threads=threads)


def _require_disk(records: Records, index: int, error: UnreadableImage) -> None:
    """Raises UserError if the disk failed, since an image that is packed as unreadable stays so."""
    if isinstance(error, FailedRead):
        raise UserError(
            f"cannot read {records.name(index)} ({error}): see to the disk, and run the same "
            "again; it goes on from here"
        ) from None


def _finite(moments: np.ndarray) -> np.ndarray:
    """Which images of a batch have finite moments alone: [b] bool."""
    return np.isfinite(moments).all(axis=tuple(range(1, moments.ndim)))


def latent_records(
    records: Records, views: Views, network: Any, *, batch_size: int, threads: int
) -> Callable[[Sequence[int]], Iterator[bytes | UnreadableImage]]:
    """The records of `latents`, for `write_shards`: [views, 2, h, w, 4] float16 of each image.

    Moments that are not finite are computed again in float32. An image whose moments are not finite
    in float16 even then counts as unreadable.

    Raises:
      UserError: of several images of a batch, none has finite moments.
    """
    mesh = meshes.make_mesh(devices=jax.local_devices())
    rows, everywhere = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    variables = jax.device_put(network.variables, everywhere)
    batch_size *= mesh.size

    @functools.partial(jax.jit, static_argnums=0, out_shardings=rows)
    def encode(model: VAE, variables: Any, images: jax.Array) -> jax.Array:
        b, v = images.shape[:2]
        pixels = images.reshape(b * v, *images.shape[2:]).astype(jnp.float32) / 127.5 - 1
        mean, log_variance = apply_variables(model, variables, pixels, method=VAE.encode)
        moments = jnp.stack([mean, jnp.exp(log_variance / 2)], 1).astype(jnp.float16)
        return moments.reshape(b, v, *moments.shape[1:])

    def one(index: int) -> np.ndarray | UnreadableImage:
        try:
            return views.of(records, index)
        except UnreadableImage as error:
            _require_disk(records, index, error)
            return error

    def moments_of(images: np.ndarray) -> np.ndarray:
        """[b, views, 2, h, w, c] float16 of images [b, views, h, w, 3]."""
        on_devices = jax.device_put(images, rows)
        moments = np.array(encode(network.model, variables, on_devices))
        overflown = ~_finite(moments)
        if overflown.any() and network.model.dtype != jnp.float32:
            exact = network.model.clone(dtype=jnp.float32)
            moments[overflown] = np.asarray(encode(exact, variables, on_devices))[overflown]
        return moments

    def encoded(
        indices: Sequence[int], found: list[np.ndarray | UnreadableImage]
    ) -> Iterator[bytes | UnreadableImage]:
        blank = np.zeros((views.count, views.size, views.size, 3), np.uint8)
        padded = [blank if isinstance(x, UnreadableImage) else x for x in found]
        padded += [blank] * (batch_size - len(found))
        moments = moments_of(np.stack(padded))[: len(found)]
        readable = np.array([isinstance(image, np.ndarray) for image in found])
        usable = readable & _finite(moments)
        if readable.sum() > 1 and not usable.any():
            raise UserError("the VAE gave values that are not finite: are these its weights?")
        for image, moment, is_usable in zip(found, moments, usable, strict=True):
            if isinstance(image, UnreadableImage):
                yield image
            elif is_usable:
                yield moment.tobytes()
            else:
                yield UnreadableImage("its latents are not finite in float16")

    def produce(indices: Sequence[int]) -> Iterator[bytes | UnreadableImage]:
        waiting: list[np.ndarray | UnreadableImage] = []
        for done, image in enumerate(ahead(one, indices, threads=threads), start=1):
            waiting.append(image)
            if len(waiting) == batch_size or done == len(indices):
                yield from encoded(indices[done - len(waiting) : done], waiting)
                waiting = []

    return produce
