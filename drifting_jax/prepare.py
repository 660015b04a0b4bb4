"""Makes data sets ready: `python -m drifting_jax.prepare shards` or `… latents`.

    python -m drifting_jax.prepare shards --source=/data/imagenet --out=/data/shards
    python -m drifting_jax.prepare latents --source=/data/imagenet --out=/data/latents --vae=hf://…

`shards` packs images into ArrayRecord files, as they are or cut to a square once and for all.
`latents` encodes them with the Stable Diffusion VAE, on every device of every process, and keeps
mean and deviation of several views of each: the centre crop and its mirror image, or random crops.
Either may be killed and started again: nothing that was done is done twice. Each file is read back
and compared with what was written.
"""

import dataclasses
import functools
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from drifting_jax import distributed
from drifting_jax.command_line import run_program
from drifting_jax.data import transforms
from drifting_jax.data.imagenet import Records, open_records
from drifting_jax.data.shards import ShardRecords, ShardWriter, read_info
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.errors import UserError
from drifting_jax.metrics import progress_bar
from drifting_jax.models.vae import VAE
from drifting_jax.weights.networks import load_network

_UNREADABLE = b""  # the record of an image that could not be read


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("source", None, "Folder of the images, as config.data.path.", required=True)
    flags.DEFINE_string("out", None, "Folder that gets train/ or val/.", required=True)
    flags.DEFINE_enum("split", "train", ("train", "test"), "Of the source; test is written as val.")
    flags.DEFINE_integer("per_shard", 4096, "Records of a file.", lower_bound=1)
    flags.DEFINE_integer("threads", 8, "Threads that read and decode.", lower_bound=1)
    flags.DEFINE_integer("size", 0, "Side of the squares; 0: shards keep files, latents take 256.")
    flags.DEFINE_integer("jpeg_quality", 0, "Of cut shards; 0 keeps the pixels exactly (PNG).")
    flags.DEFINE_string("vae", "", "Weights for latents: folder, file or hf://owner/repo.")
    flags.DEFINE_enum("crop", "center", transforms.CROPS, "Views of latents.")
    flags.DEFINE_integer("views", 2, "Random crops kept of an image.", lower_bound=1)
    flags.DEFINE_float("min_area", 0.2, "Least share of the image in a random crop.")
    flags.DEFINE_integer("batch_size", 32, "Images encoded at once, a device.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of random crops.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, if several.")
    flags.DEFINE_integer("num_processes", None, "Processes of the job, if several.")
    flags.DEFINE_integer("process_id", None, "Number of this process, if several.")


def cut_record(records: Records, index: int, *, size: int, jpeg_quality: int) -> bytes:
    """A record of `shards`: the file's bytes, or those of its centre crop of side `size`.

    Raises:
      UnreadableImage: it is no whole image.
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
    """Which views of an image become latents.

    Attributes:
      size: side of the views in pixels.
      crop: "center": the crop and its mirror image; "random_resized": `count` random crops, each
        mirrored with probability one half.
      count, min_area, seed: of random crops.
    """

    size: int
    crop: str
    count: int
    min_area: float
    seed: int

    def of(self, records: Records, index: int) -> np.ndarray:
        """[count, size, size, 3] uint8, the same every time. Raises UnreadableImage."""
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
    records: Callable[[Sequence[int]], Iterator[bytes]],
    *,
    report: Callable[[int], None],
) -> None:
    """Writes this process's share of the shards, from wherever they stand.

    Args:
      writer: open.
      records: indices -> their records, in order, one after another.
      report: given the number of records that are done, one after another or many at once.
    """
    for shard in range(jax.process_index(), writer.num_shards, jax.process_count()):
        indices = writer.range(shard)
        if writer.is_done(shard):
            report(len(indices))
            continue
        journal = writer.journal(shard)
        report(len(journal))
        for data in records(indices[len(journal) :]):
            journal.append(data)
            report(1)
        writer.finish(shard, journal)


def ahead(function: Callable[[int], Any], indices: Iterable[int], *, threads: int) -> Iterator[Any]:
    """function(i) for all indices in order, computed by threads some way ahead."""
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
) -> Callable[[Sequence[int]], Iterator[bytes]]:
    """What `shards` writes, for `write_shards`."""

    def one(index: int) -> bytes:
        try:
            return cut_record(records, index, size=size, jpeg_quality=jpeg_quality)
        except UnreadableImage:
            return _UNREADABLE

    return functools.partial(ahead, one, threads=threads)


def latent_records(
    records: Records, views: Views, network: Any, *, batch_size: int, threads: int
) -> Callable[[Sequence[int]], Iterator[bytes]]:
    """What `latents` writes, for `write_shards`: [views, 2, h, w, 4] float16 of each image."""
    mesh = distributed.make_mesh(devices=jax.local_devices())
    rows, everywhere = distributed.batch_sharding(mesh), distributed.replicated(mesh)
    variables = jax.device_put(network.variables, everywhere)
    batch_size *= mesh.size

    @functools.partial(jax.jit, out_shardings=rows)
    def encode(variables, images: jax.Array) -> jax.Array:
        b, v = images.shape[:2]
        pixels = images.reshape(b * v, *images.shape[2:]).astype(jnp.float32) / 127.5 - 1
        mean, log_variance = network.model.apply(variables, pixels, method=VAE.encode)
        moments = jnp.stack([mean, jnp.exp(log_variance / 2)], 1).astype(jnp.float16)
        return moments.reshape(b, v, *moments.shape[1:])

    def one(index: int) -> np.ndarray | None:
        try:
            return views.of(records, index)
        except UnreadableImage:
            return None

    def encoded(found: list[np.ndarray | None]) -> Iterator[bytes]:
        blank = np.zeros((views.count, views.size, views.size, 3), np.uint8)
        padded = [blank if x is None else x for x in found]
        padded += [blank] * (batch_size - len(found))
        moments = np.asarray(encode(variables, jax.device_put(np.stack(padded), rows)))
        for image, moment in zip(found, moments, strict=False):
            if image is not None and not np.isfinite(moment).all():
                raise UserError("the VAE gave values that are not finite: are these its weights?")
            yield _UNREADABLE if image is None else moment.tobytes()

    def produce(indices: Sequence[int]) -> Iterator[bytes]:
        waiting: list[np.ndarray | None] = []
        for image in ahead(one, indices, threads=threads):
            waiting.append(image)
            if len(waiting) == batch_size:
                yield from encoded(waiting)
                waiting = []
        if waiting:
            yield from encoded(waiting)

    return produce


def main(argv: Sequence[str]) -> None:
    """Prepares one split."""
    values = flags.FLAGS
    if len(argv) != 2 or argv[1] not in ("shards", "latents"):
        found = " ".join(argv[1:]) or "nothing"
        raise UserError(f"expected one of the words shards and latents; found {found}")
    distributed.initialize(
        coordinator_address=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    records = open_records(Path(values.source), values.split)
    if records.format == "drifting_jax.latents":
        raise UserError(f"{records.where} holds latents already; --source takes images")
    folder = Path(values.out) / ("train" if values.split == "train" else "val")
    plan, make = (_plan_shards if argv[1] == "shards" else _plan_latents)(records, values)
    writer = ShardWriter(folder, records, plan=plan, records_per_shard=values.per_shard)
    speaks = jax.process_index() == 0
    if speaks:
        print(f"{records.where}: {len(records)} images of {len(records.class_names)} classes")
    _together(writer.open, "opened")
    if writer.finished and speaks:
        print("prepared already; nothing is done again")
    if not writer.finished:
        total = sum(len(writer.range(shard)) for shard in range(
            jax.process_index(), writer.num_shards, jax.process_count()))  # fmt: skip
        with progress_bar(total, description=argv[1], enabled=speaks) as bar:
            write_shards(writer, make(), report=bar.update)
        _together(lambda: None, "written")
        _together(writer.complete, "completed")
    if speaks:
        print(_summary(writer))


def _together(function: Callable[[], Any], name: str) -> None:
    """Runs in process 0 while the others wait for it."""
    if jax.process_count() > 1 and name != "opened":
        multihost_utils.sync_global_devices(f"drifting_jax: before {name}")
    if jax.process_index() == 0:
        function()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"drifting_jax: {name}")


def _plan_shards(records: Records, values: Any):
    if values.jpeg_quality and not values.size:
        raise UserError("--jpeg_quality goes with --size: without it files are kept as they are")
    plan = {
        "format": "drifting_jax.images",
        "image_size": values.size,
        "jpeg_quality": values.jpeg_quality,
    }
    return plan, lambda: shard_records(
        records, size=values.size, jpeg_quality=values.jpeg_quality, threads=values.threads
    )


def _plan_latents(records: Records, values: Any):
    if not values.vae:
        raise UserError(
            "--vae must say where its weights are, such as hf://stabilityai/sd-vae-ft-mse"
        )
    size, network = values.size or 256, load_network(values.vae, kind="vae")
    factor = network.model.downsampling
    if size % factor:
        raise UserError(f"--size must be a multiple of {factor} for latents; found {size}")
    count = values.views if values.crop == "random_resized" else 2
    views = Views(size, values.crop, count, values.min_area, values.seed)
    plan = {
        "format": "drifting_jax.latents",
        "image_size": size,
        "crop": values.crop,
        "views": count,
        "latent_shape": [size // factor, size // factor, network.model.latent_channels],
        "scale": network.model.scaling_factor,
        "vae": values.vae,
    }
    if values.crop == "random_resized":
        plan |= {"min_area": values.min_area, "seed": values.seed}
    return plan, lambda: latent_records(
        records, views, network, batch_size=values.batch_size, threads=values.threads
    )


def _summary(writer: ShardWriter) -> str:
    """What was written, for a person."""
    info = read_info(writer.folder)
    size = sum(path.stat().st_size for path in writer.folder.iterdir()) / 2**20
    text = (
        f"{writer.folder}: {info['count']} records in {writer.num_shards} files, {size:.1f} MiB, "
        f"read back and found as written, checksum {info['checksum']}"
    )
    if info["unreadable"]:
        records = ShardRecords(writer.folder)
        empty = np.flatnonzero(records.checksums == zlib.crc32(_UNREADABLE))
        listed = ", ".join(records.name(int(i)) for i in empty[:20]) + ", …" * (len(empty) > 20)
        text += f"; unreadable, others will take their place in training: {len(empty)}, {listed}"
    return text


def cli() -> None:
    """Entry point of `drifting-prepare`."""
    define_flags()
    run_program(main, words=1)


if __name__ == "__main__":
    cli()
