"""Prepares data sets: `python -m drifting_jax.prepare shards`, `… latents` or `… demonstrations`.

    python -m drifting_jax.prepare shards --source=/data/imagenet --out=/data/shards
    python -m drifting_jax.prepare latents --source=/data/imagenet --out=/data/latents --vae=hf://…
    python -m drifting_jax.prepare demonstrations --environment=two_ways --out=demos.npz

`shards` packs images into ArrayRecord files, as they are or cut to a square.
`latents` encodes images with the Stable Diffusion VAE, on every device of every process. It stores
mean and deviation of several views of each image: the centre crop and its mirror image, or random
crops.
Both can be killed and started again, and continue where they were. Each file is read back and
compared with what was written.
`demonstrations` lets the expert of an environment solve episodes, for a policy to learn from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from drifting_jax.commands.command_line import run_program
from drifting_jax.commands.demonstrating import write_demonstrations
from drifting_jax.commands.packing import (
    Views,
    latent_records,
    shard_records,
    write_shards,
)
from drifting_jax.data import transforms
from drifting_jax.data.records import Records, describe_records, open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import REASONS, ShardRecords, read_info
from drifting_jax.data.unreadable import read_reasons
from drifting_jax.digests import fingerprint_variables
from drifting_jax.distributed import processes
from drifting_jax.distributed.agreement import on_main_process, wait_for_all
from drifting_jax.errors import UserError
from drifting_jax.surroundings import check_devices
from drifting_jax.weights.networks import load_vae
from drifting_jax.workdir.lock import locked_by_main_process
from drifting_jax.workdir.progress import progress_bar


def define_flags() -> None:
    """Registers the command line's flags."""
    flags.DEFINE_string("source", None, "Folder of the images, as config.data.path.")
    flags.DEFINE_string(
        "out", None, "Folder that gets train/ or val/; demonstrations: an .npz file.", required=True
    )
    flags.DEFINE_enum(
        "split", "train", ("train", "test"), "Split of the source; test is written as val."
    )
    flags.DEFINE_integer("per_shard", 4096, "Records in each file.", lower_bound=1)
    flags.DEFINE_integer("threads", 8, "Threads that read and decode.", lower_bound=1)
    flags.DEFINE_integer(
        "size", 0, "Side of the squares; 0: shards keep the files, latents use 256."
    )
    flags.DEFINE_integer(
        "jpeg_quality", 0, "shards, with --size: 0 keeps the pixels exactly (PNG)."
    )
    flags.DEFINE_string("vae", "", "latents: weights, folder, file or hf://owner/repo.")
    flags.DEFINE_enum("crop", "center", transforms.CROPS, "latents: views of each image.")
    flags.DEFINE_integer("views", 2, "latents: random crops of each image.", lower_bound=1)
    flags.DEFINE_float("min_area", 0.2, "latents: least share of the image in a crop.")
    flags.DEFINE_integer(
        "batch_size", 32, "latents: images encoded at once, per device.", lower_bound=1
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "latents: seed of the random crops; demonstrations: of the episodes.",
        lower_bound=0,
        upper_bound=2**32 - 1,
    )
    flags.DEFINE_string("environment", "", "demonstrations: such as two_ways, my_env.py:Mine.")
    flags.DEFINE_integer("episodes", 50, "demonstrations: how many.", lower_bound=1)
    flags.DEFINE_float("max_unreadable", 0.1, "Largest share of unreadable images.")
    flags.DEFINE_string("coordinator", None, "host:port of process 0, for several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the job.")
    flags.DEFINE_integer("process_id", None, "Index of this process in the job.")


def main(argv: Sequence[str]) -> None:
    """Prepares one split."""
    values = flags.FLAGS
    if len(argv) != 2 or argv[1] not in ("shards", "latents", "demonstrations"):
        found = " ".join(argv[1:]) or "nothing"
        raise UserError(
            f"expected one of the words shards, latents and demonstrations; found {found}"
        )
    if argv[1] == "demonstrations":
        write_demonstrations(
            values.out, values.environment, episodes=values.episodes, seed=values.seed
        )
        return
    if values.source is None:
        raise UserError("--source is missing")
    processes.initialize(
        coordinator_address=values.coordinator,
        num_processes=values.num_processes,
        process_id=values.process_id,
    )
    check_devices()
    records = open_records(Path(values.source), values.split)
    if records.format == "drifting_jax.latents":
        raise UserError(f"{records.where} holds latents already; --source takes images")
    folder = Path(values.out) / ("train" if values.split == "train" else "val")
    plan, make = (_plan_shards if argv[1] == "shards" else _plan_latents)(records, values)
    writer = ShardWriter(folder, records, plan=plan, records_per_shard=values.per_shard)
    is_main_process = jax.process_index() == 0
    if is_main_process:
        print("\n".join(describe_records(records)), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with locked_by_main_process(folder):
        on_main_process(writer.open)
        if writer.finished and is_main_process:
            print("prepared already; nothing is done again")
        if not writer.finished:
            total = sum(len(writer.range(shard)) for shard in range(
                jax.process_index(), writer.num_shards, jax.process_count()))  # fmt: skip
            with progress_bar(total, description=argv[1], enabled=is_main_process) as bar:
                write_shards(
                    writer, make(), report=bar.update, max_unreadable=values.max_unreadable
                )
            wait_for_all()
            on_main_process(writer.complete)
        if is_main_process:
            print(_summary(writer))


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
    size, network = values.size or 256, load_vae(values.vae)
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
        "vae_fingerprint": fingerprint_variables(network.variables),
    }
    if values.crop == "random_resized":
        plan |= {"min_area": values.min_area, "seed": values.seed}
    return plan, lambda: latent_records(
        records, views, network, batch_size=values.batch_size, threads=values.threads
    )


def _summary(writer: ShardWriter) -> str:
    """A line about what was written, with the first unreadable images."""
    info = read_info(writer.folder)
    size = sum(path.stat().st_size for path in writer.folder.iterdir()) / 2**20
    text = (
        f"{writer.folder}: {info['count']} records in {writer.num_shards} files, {size:.1f} MiB, "
        f"read back and found as written, checksum {info['checksum']}"
    )
    if info["unreadable"]:
        records = ShardRecords(writer.folder)
        empty = records.unreadable_indices.tolist()
        reasons = read_reasons(writer.folder / REASONS)
        words = [f"{records.name(i)} ({reasons.get(i) or 'reason not known'})" for i in empty[:20]]
        listed = ", ".join(words) + ", …" * (len(empty) > 20)
        text += f"; unreadable, others will take their place in training: {len(empty)}, {listed}"
    return text


def cli() -> None:
    """Entry point of `drifting-prepare`."""
    define_flags()
    run_program(main, words=1)


if __name__ == "__main__":
    cli()
