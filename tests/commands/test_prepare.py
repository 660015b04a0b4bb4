"""Packed records: complete after any kill, verified, and the same as those of the folder."""

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compiling
from imagenet_like import write_imagenet_like
from PIL import Image
from safetensors.numpy import load_file, save_file

from drifting_jax import digests
from drifting_jax.commands import packing
from drifting_jax.data import pipeline
from drifting_jax.data.journal import Journal
from drifting_jax.data.records import open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import ShardRecords, shard_name
from drifting_jax.data.sources import make_source
from drifting_jax.data.transforms import Augmentation, FailedRead, UnreadableImage, load
from drifting_jax.errors import UserError
from drifting_jax.weights.networks import load_network
from drifting_jax.workdir.lock import locked

VAE_FOLDER = Path(__file__).parents[1] / "fixtures" / "torch" / "vae"
KEPT = {"format": "drifting_jax.images", "image_size": 0}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    write_imagenet_like(root / "in", per_class=6)
    yield root / "in"
    del os.environ["XDG_CACHE_HOME"]


def packed(records, folder, *, make=None, plan=KEPT, per_shard=5):
    writer = ShardWriter(folder, records, plan=plan, records_per_shard=per_shard)
    writer.open()
    make = make or packing.shard_records(records, size=0, jpeg_quality=0, threads=2)
    packing.write_shards(writer, make, report=lambda count: None)
    writer.complete()
    return ShardRecords(folder)


def test_shards_hold_the_files(images, tmp_path):
    records = open_records(images, "train")
    shards = packed(records, tmp_path / "s" / "train")
    assert [shards.read(i) for i in range(len(shards))] == [
        records.read(i) for i in range(len(records))
    ]
    assert shards.fingerprint == records.fingerprint and shards.class_names == records.class_names
    assert [shards.name(i) for i in range(3)] == [records.name(i) for i in range(3)]
    assert len(open_records(tmp_path / "s", "train")) == len(records)


def test_cut_shards_hold_the_reference_crop(images, tmp_path):
    records = open_records(images, "train")
    make = packing.shard_records(records, size=24, jpeg_quality=0, threads=1)
    shards = packed(records, tmp_path / "t", make=make, plan=KEPT | {"image_size": 24})
    readable = 0
    for i in range(len(records)):
        try:
            expected = load(records.read(i)[0], 24)
        except UnreadableImage:
            with pytest.raises(UnreadableImage, match="when it was packed"):
                shards.read(i)
            continue
        np.testing.assert_array_equal(load(shards.read(i)[0], 24), expected)
        readable += 1
    assert readable == len(records) - 1 == len(records) - shards.info["unreadable"]


def test_nothing_is_done_twice_after_a_failure(images, tmp_path):
    records = open_records(images, "train")
    made = []

    def failing(stop):
        def make(indices):
            for i in indices:
                if len(made) == stop:
                    raise KeyboardInterrupt
                made.append(i)
                yield records.read(i)[0]

        return make

    for stop in (3, 11, 12):
        with pytest.raises(KeyboardInterrupt):
            packed(records, tmp_path / "t", make=failing(stop))
    shards = packed(records, tmp_path / "t", make=failing(-1))
    assert made == list(range(len(records)))
    assert shards.read(20) == records.read(20)
    assert not list((tmp_path / "t").glob("*.journal"))


def test_a_journal_keeps_whole_records(tmp_path):
    path = tmp_path / "0.journal"
    journal = Journal(path)
    for data in (b"one", b"", b"three" * 100):
        journal.append(data)
    journal.close()
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 500, len(whole) - 505):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        assert list(again.records()) == [b"one", b""]
        again.append(b"new")
        assert list(again.records()) == [b"one", b"", b"new"]
        again.close()


@pytest.mark.parametrize("tail", [bytes(4096), bytes(12), b"\xff" * 12, b"\x10" + bytes(200)])
def test_what_a_crash_left_at_a_journals_end_is_no_record(tmp_path, tail):
    path = tmp_path / "0.journal"
    journal = Journal(path)
    journal.append(b"one")
    journal.close()
    path.write_bytes(path.read_bytes() + tail)
    again = Journal(path)
    assert len(again) == 1 and list(again.records()) == [b"one"]
    again.close()


class Failing:
    """Records whose disk fails from record `start` on."""

    def __init__(self, records, error, start=12):
        self._records, self._error, self._start = records, error, start

    def __len__(self):
        return len(self._records)

    def __getattr__(self, name):
        return getattr(self._records, name)

    def read(self, index):
        if index >= self._start:
            raise self._error
        return self._records.read(index)


def test_a_failing_disk_is_not_written_down_as_unreadable_images(images, tmp_path):
    records = open_records(images, "train")
    for error, message in (
        (FailedRead("Input/output error"), r"cannot read n.*Input/output.*run the same again"),
        (UnreadableImage("damaged"), r"could not be read, .* --max_unreadable=0\.1 allows"),
    ):
        make = packing.shard_records(Failing(records, error), size=0, jpeg_quality=0, threads=1)
        with pytest.raises(UserError, match=message):
            packed(records, tmp_path / "t", make=make)
    good = open_records(images, "train")
    shards = packed(good, tmp_path / "other")
    assert shards.info["unreadable"] == 0


@pytest.mark.slow
def test_one_prepare_at_a_time_and_one_set_of_weights(images, latents):
    command = [sys.executable, "-m", "drifting_jax.prepare", "shards", f"--source={images}",
               f"--out={latents}"]  # fmt: skip
    with locked(latents / "train"):
        result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "process " in result.stderr and "runs in" in result.stderr
    variables = load_network(str(VAE_FOLDER), kind="vae").variables
    info = ShardRecords(latents / "train").info
    assert info["vae_fingerprint"] == digests.fingerprint_variables(variables)
    changed = jax.tree.map(lambda x: x + 1, variables)
    assert info["vae_fingerprint"] != digests.fingerprint_variables(changed)


def test_a_full_disk_and_damaged_indices_are_one_line(images, tmp_path):
    records = open_records(images, "train")

    partial = tmp_path / "t" / f"{shard_name(0, 5)}".replace(".array_record", ".partial")
    partial.parent.mkdir()
    make = packing.shard_records(records, size=0, jpeg_quality=0, threads=2)
    writer = ShardWriter(tmp_path / "t", records, plan=KEPT, records_per_shard=5)
    writer.open()
    partial.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device.*\): make room, and run"):
        packing.write_shards(writer, make, report=lambda count: None)
    partial.unlink()
    packed(records, tmp_path / "t")
    index = tmp_path / "t" / "index.npz"
    whole = index.read_bytes()
    index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"index\.npz cannot be read"):
        ShardRecords(tmp_path / "t")
    (tmp_path / "t" / "info.json").write_text('{"format": "drifting_jax.images"}')
    with pytest.raises(UserError, match="does not describe prepared records: KeyError"):
        ShardRecords(tmp_path / "t")


def open_files(folder):
    """Names of the files in a folder that this process holds open."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this listing
            links.append(link.readlink())
    return {path.name for path in links if path.parent == folder.resolve()}


def test_few_of_many_shards_are_open_at_once(images, tmp_path):
    records = open_records(images, "train")
    packed(records, tmp_path / "t", per_shard=3)
    found = ShardRecords(tmp_path / "t", max_open=2)
    for i, count in zip((0, 7, 14, 1, 8, 15, 2), (1, 2, 2, 2, 2, 2, 2), strict=True):
        assert found.read(i) == records.read(i)
        assert len(open_files(tmp_path / "t")) == count
    assert pickle.loads(pickle.dumps(found)).read(4) == records.read(4)


def test_other_settings_or_another_folder_are_refused(images, tmp_path):
    records = open_records(images, "train")
    packed(records, tmp_path / "t")
    with pytest.raises(UserError, match="was begun with image_size=0; found 32"):
        packed(records, tmp_path / "t", plan=KEPT | {"image_size": 32})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UserError, match="holds other files"):
        packed(records, tmp_path / "other")


def test_damaged_shards_are_noticed(images, tmp_path):
    records = open_records(images, "train")
    packed(records, tmp_path / "t")
    first = sorted((tmp_path / "t").glob("*.array_record"))[0]
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 255
    first.write_bytes(data)
    shards, damaged = ShardRecords(tmp_path / "t"), 0
    for i in range(5):
        try:
            assert shards.read(i) == records.read(i)
        except UnreadableImage:
            damaged += 1
    assert damaged
    first.unlink()
    with pytest.raises(UserError, match=f"lacks 1 of its .* {first.name}"):
        ShardRecords(tmp_path / "t")


@pytest.fixture(scope="module")
def latents(images, tmp_path_factory):
    """Latents of the tiny VAE, made by the command, which is killed half-way and run again."""
    out = tmp_path_factory.mktemp("latents")
    command = [sys.executable, "-m", "drifting_jax.prepare", "latents", f"--source={images}",
               f"--out={out}", f"--vae={VAE_FOLDER}", "--size=32", "--per_shard=8",
               "--batch_size=2", "--threads=1"]  # fmt: skip
    environment = os.environ | {"XLA_FLAGS": quick_compiling.FLAGS, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:  # kill it once some records are there
        if any(path.stat().st_size > 3000 for path in out.rglob("*.journal")):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and "1, n01440764/truncated.JPEG" in result.stdout, result
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    return out


def data(path, **changes):
    fields = {"source": "imagenet", "path": str(path), "image_size": 32, "latent": False,
              "decoder": "pillow"}  # fmt: skip
    return SimpleNamespace(**(fields | changes))


def test_latents_are_the_encoders_and_mirrored(images, latents):
    source = make_source(data(latents, latent=True), "train")
    pixels = make_source(data(images), "train")
    vae = load_network(str(VAE_FOLDER), kind="vae")
    assert len(source) == len(pixels) and source.image_shape == (16, 16, 4)
    for i in (0, 9, 17):
        image = pixels[i]["image"].astype(np.float32) / 127.5 - 1
        views = np.stack([image, image[:, ::-1]])
        mean, log_variance = vae.model.apply(vae.variables, views, method="encode")
        expected = np.stack([mean, np.exp(log_variance / 2)], 1)
        moments, label = source.moments(i)
        np.testing.assert_allclose(moments, expected, rtol=2e-3, atol=2e-3)
        assert label == pixels[i]["label"]
        np.testing.assert_allclose(source[i]["image"], expected[0, 0] * 0.18215, atol=2e-3)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Four images; the second is white and so has the largest activations."""
    root = tmp_path_factory.mktemp("few")
    for i in range(4):
        path = root / "train" / "c" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = 255 if i == 1 else 40 + 20 * i
        Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(path)
    return open_records(root, "train")


def encoded(records, network):
    views = packing.Views(size=16, crop="center", count=2, min_area=0.2, seed=0)
    make = packing.latent_records(records, views, network, batch_size=1, threads=1)
    return [
        np.frombuffer(data, np.float16) if isinstance(data, bytes) else data
        for data in make(range(len(records)))
    ]


class Encoder(nn.Module):
    """Stands for a VAE whose activations are its input to a power, in its compute dtype."""

    power: int
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    def encode(self, images):
        x = images[:, ::8, ::8].astype(self.dtype)
        powers = jnp.exp(self.power * x).astype(jnp.float32)
        mean = self.scale * powers / np.exp(self.power)
        return mean, jnp.zeros(mean.shape)


def test_activations_that_overflow_are_computed_again(few, monkeypatch, caplog):
    monkeypatch.setattr(packing.VAE, "encode", Encoder.encode)
    found = {
        dtype: encoded(few, SimpleNamespace(model=Encoder(12, dtype=dtype), variables={}))
        for dtype in (jnp.float32, jnp.float16)
    }
    for exact, half in zip(found[jnp.float32], found[jnp.float16], strict=True):
        assert np.isfinite(half).all()
        np.testing.assert_allclose(half, exact, rtol=0.1, atol=1e-3)
    assert np.exp(12) > np.finfo(np.float16).max and found[jnp.float16][1].max() == 1
    assert "unreadable" not in caplog.text


def test_latents_that_are_not_finite_are_never_stored(few, monkeypatch):
    monkeypatch.setattr(packing.VAE, "encode", Encoder.encode)
    found = encoded(few, SimpleNamespace(model=Encoder(12, scale=1e5), variables={}))
    assert str(found.pop(1)) == "its latents are not finite in float16"
    assert len(found) == 3 and all(np.isfinite(x).all() for x in found)
    with pytest.raises(UserError, match="values that are not finite: are these its weights"):
        encoded(few, SimpleNamespace(model=Encoder(12, scale=np.nan), variables={}))


def test_half_precision_weights_of_the_vae_are_float32_here(images, tmp_path):
    tensors = load_file(VAE_FOLDER / "diffusion_pytorch_model.safetensors")
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.safetensors")
    shutil.copy(VAE_FOLDER / "config.json", tmp_path)
    network = load_network(tmp_path, kind="vae")
    assert network.model.dtype == np.float32
    assert {x.dtype for x in jax.tree.leaves(network.variables)} == {np.dtype(np.float32)}


def test_latents_are_drawn_anew_from_their_law(latents):
    source = make_source(data(latents, latent=True), "train")
    moments = source.moments(3)[0].astype(np.float64)
    plain, both = Augmentation(), Augmentation(flip=True)
    drawn = np.stack([source.draw(3, np.random.default_rng(i), plain)["image"] for i in range(400)])
    assert drawn.dtype == np.float16
    scaled = drawn.astype(np.float64) / 0.18215
    error = np.abs(scaled.mean(0) - moments[0, 0])
    assert np.all(error < 6 * moments[0, 1] / 20 + 0.02)
    np.testing.assert_allclose(scaled.std(0), moments[0, 1], rtol=0.25, atol=0.02)
    means = [source.draw(3, np.random.default_rng(i), both)["image"] for i in range(40)]
    near = [np.abs(x / 0.18215 - moments[:, 0]).mean((1, 2, 3)).argmin() for x in means]
    assert 8 < sum(near) < 32


def test_images_and_latents_are_not_taken_for_each_other(images, latents):
    with pytest.raises(UserError, match=r"needs their latents: run .*prepare latents"):
        make_source(data(images, latent=True), "train")
    with pytest.raises(UserError, match="holds latents; a config with"):
        make_source(data(latents), "train")
    with pytest.raises(UserError, match=r"images of side 32; config\.data\.image_size is 64"):
        make_source(data(latents, latent=True, image_size=64), "train")


def test_the_same_order_from_every_format(images, latents, tmp_path):
    packed(open_records(images, "train"), tmp_path / "s" / "train")
    found = []
    for where in (data(images), data(tmp_path / "s"), data(latents, latent=True)):
        source = make_source(where, "train")
        with pipeline.batches(source, batch_size=6, seed=4) as batches:
            taken = [next(batches) for _ in range(8)]
            assert len(batches.unreadable.indices) == 1
        found.append([(b["index"].tolist(), b["label"].tolist()) for b in taken])
    assert found[0] == found[1] == found[2]
