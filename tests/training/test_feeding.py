"""Images on disk in training: batches, damaged files, and whole runs through kills and formats."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import quick_compiling
import tensorflow_datasets as tfds
import tiny_images_config
from absl import flags
from imagenet_like import CLASSES, write_imagenet_like

from drifting_jax.commands import packing
from drifting_jax.config import base_config, resolve
from drifting_jax.data import pipeline
from drifting_jax.data.folder import FolderRecords
from drifting_jax.data.images import ImageSource
from drifting_jax.data.in_memory import ArraySource
from drifting_jax.data.names import Names
from drifting_jax.data.points import PointsSource
from drifting_jax.data.records import open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.sources import make_source
from drifting_jax.data.transforms import Augmentation, UnreadableImage
from drifting_jax.distributed import transfer
from drifting_jax.distributed.meshes import make_mesh
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json
from drifting_jax.training import data_identity, device_batches, restore, run

ROOT = Path(__file__).parents[2]
VAE = ROOT / "tests" / "fixtures" / "torch" / "vae"
AUGMENTED = Augmentation(crop="random_resized", flip=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    write_imagenet_like(root / "in")
    yield root / "in"
    del os.environ["XDG_CACHE_HOME"]


@pytest.fixture
def config(images):
    config = tiny_images_config.get_config()
    config.data.path = str(images)
    return resolve(config)


class Damaged:
    """Records, some of which cannot be read."""

    format, where, class_names, fingerprint = "folder", Path("/data"), ["a"], "x"
    labels_are_cheap, skipped = True, ()

    def __init__(self, records, damaged):
        self.records, self.damaged = records, damaged
        self.labels = records.labels

    def __len__(self):
        return len(self.records)

    def read(self, index):
        if index in self.damaged:
            raise UnreadableImage("damaged")
        return self.records.read(index)

    def name(self, index):
        return self.records.name(index)


def take(source, count, **options):
    with pipeline.batches(source, **options) as batches:
        return [next(batches) for _ in range(count)], batches.unreadable.indices


def test_an_unreadable_image_is_replaced_and_the_order_stays(images):
    records = open_records(images, "train")
    options = {"batch_size": 8, "seed": 1, "augmentation": AUGMENTED}
    plain, _ = take(ImageSource(records, 16), 12, **options)
    broken, unreadable = take(ImageSource(Damaged(records, {9, 20}), 16), 12, **options)
    assert {9, 20} < unreadable
    for a, b in zip(plain, broken, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        same = ~np.isin(a["index"], list(unreadable))
        np.testing.assert_array_equal(a["image"][same], b["image"][same])
        assert b["image"].any(axis=(1, 2, 3)).all()
    again, _ = take(ImageSource(Damaged(records, {9, 20}), 16), 12, **options)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(broken, again, strict=True))


def test_too_many_unreadable_images_are_an_error(images):
    source = ImageSource(Damaged(open_records(images, "train"), set(range(10))), 16)
    told = []

    def limit(known=()):
        return pipeline.Unreadable(4.7, known=known, on_new=lambda *record: told.append(record))

    with pytest.raises(UserError, match=r"5 records .* the 4 that config.data.max_unreadable"):
        take(source, 30, batch_size=4, seed=0, unreadable=limit())
    assert len(told) == 5
    first = [index for index, *_ in told[:4]]  # which an earlier start has met
    with pytest.raises(UserError, match="5 records"):
        take(source, 30, batch_size=4, seed=0, unreadable=limit(first))
    assert len(told) == 6
    source = ImageSource(Damaged(open_records(images, "train"), set(range(47))), 16)
    with pytest.raises(UserError, match=r"20 records in a row .*: damaged; is the disk"):
        take(source, 30, batch_size=4, seed=0)


def test_workers_hosts_and_resumes_do_not_change_what_is_seen(images):
    flags.FLAGS.mark_as_parsed()
    source = ImageSource(open_records(images, "train"), 16)
    options = {"batch_size": 12, "seed": 7, "augmentation": AUGMENTED}
    whole, _ = take(source, 10, **options)
    workers, _ = take(source, 4, start=6, num_workers=2, **options)
    hosts = [take(source, 10, process_index=i, process_count=3, **options)[0] for i in range(3)]
    for step in range(10):
        for name in ("index", "image"):
            parts = [host[step][name] for host in hosts]
            np.testing.assert_array_equal(np.concatenate(parts), whole[step][name])
            if step >= 6:
                np.testing.assert_array_equal(workers[step - 6][name], whole[step][name])
    assert not multiprocessing.active_children()


def test_another_pass_augments_anew(images):
    source = ImageSource(open_records(images, "train"), 16)
    batches, _ = take(source, 2, batch_size=47, seed=0, augmentation=AUGMENTED)
    first, second = (dict(zip(b["index"].tolist(), b["image"], strict=True)) for b in batches)
    assert first.keys() == second.keys() == set(range(47))
    assert sum(np.array_equal(first[i], second[i]) for i in first) <= 1


def test_the_data_must_stay_what_it_was(config, images, tmp_path):
    source = data_identity.open_source(config, tmp_path)
    described, names = data_identity.read_data_spec(tmp_path, config)
    assert described.image_shape == source.image_shape == (8, 8, 3)
    assert names == list(CLASSES) and described.num_classes == 3
    packed = tmp_path / "packed"
    records = open_records(images, "train")
    writer = ShardWriter(
        packed / "train",
        records,
        plan={"format": "drifting_jax.images", "image_size": 0},
        records_per_shard=50,
    )
    writer.open()
    make = packing.shard_records(records, size=0, jpeg_quality=0, threads=1)
    packing.write_shards(writer, make, report=lambda count: None)
    writer.complete()
    config.data.path = str(packed)  # the same images elsewhere
    data_identity.open_source(config, tmp_path)
    config.data.path = str(images / "train" / CLASSES[0])
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is not what the run .* began with: 47 records of 3"):
        data_identity.open_source(config, tmp_path)


def test_the_other_fields_of_data_json_are_those_of_the_last_start_before_a_save(tmp_path):
    found, path = {"count": 3, "fingerprint": "x"}, tmp_path / "data.json"
    config = base_config("policy")
    config.data.path = "demos.npz"

    def start(scale, **changes):
        more = {"scaling": {"centre": [0.1], "half_range": [scale]}}
        data_identity.keep_record(config, tmp_path, found | changes, more=more)
        return read_json(path)["scaling"]["half_range"]

    (log := tmp_path / "unreadable_0.jsonl").touch()
    assert start(1.0) == [1.0] and not log.exists()
    log.touch()
    assert start(2.5) == [2.5] and log.exists()  # of the same data
    written = path.stat().st_mtime_ns
    assert start(2.5) == [2.5] and path.stat().st_mtime_ns == written
    data_identity.keep_record(config, tmp_path, found)  # without such fields: nothing is lost
    assert path.stat().st_mtime_ns == written
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert start(3.0) == [2.5]
    with pytest.raises(UserError, match="began with: 3 records"):
        start(2.5, count=4)


def test_a_run_of_an_earlier_version_goes_on_with_what_it_began_with(config, tmp_path, capsys):
    def fill(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    fill("d/train/1.jpg", "d/train/2.png", "d/train/3.jfif", "d/bus/1.jpg")
    began = {
        "count": 2,
        "fingerprint": FolderRecords(
            tmp_path, ["unlabelled"], np.zeros(2, np.int32), Names.of(["1.jpg", "2.png"])
        ).fingerprint,
        "image_shape": list(make_source(config.data, "train").image_shape),
        "class_names": ["unlabelled"],
    }
    config.data.path = str(tmp_path / "d")
    with pytest.raises(UserError, match="can be read in two ways"):
        data_identity.open_source(config, tmp_path)
    write_json(tmp_path / "data.json", began)
    source = data_identity.open_source(config, tmp_path)
    assert [source.name(i).split()[0] for i in range(2)] == ["1.jpg", "2.png"]
    assert "note: this run goes on as it began; a new run would read: " in capsys.readouterr().out
    config.data.path = str(tmp_path / "d" / "train")  # two names more are known now
    assert len(data_identity.open_source(config, tmp_path)) == 2
    assert "a new run would read: 3 records of 1 classes" in capsys.readouterr().out
    fill("d/train/4.jpg", "checkpoints/1/state")
    with pytest.raises(UserError, match=r"began with: 2 records .* 4 records"):
        data_identity.open_source(config, tmp_path)


def test_what_was_found_is_described(config, images, tmp_path):
    source = data_identity.open_source(config, tmp_path)
    (line,) = data_identity.describe_data(source)
    titles = "tench, golden retriever, crane"
    assert line == f"data: 47 images of 3 classes ({titles}) in {images}/train, format folder"
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a.png").touch()
    for i in range(5):
        (folder / f"{i}.txt").touch()
    for i in range(10):
        (folder / f"x.ending{i}").touch()
    config.data.path = str(folder)
    first, txt, *lines = data_identity.describe_data(make_source(config.data, "train"))
    assert first == f"data: 1 image of 1 class (unlabelled) in {folder}, format folder"
    assert txt == "skipped 5 (.txt): 0.txt, 1.txt, 2.txt, …"
    assert lines[0] == "skipped 1 (.ending0): x.ending0"
    assert lines[-1] == "skipped 3 more (.ending7, .ending8, .ending9)" and len(lines) == 8
    points = PointsSource("two_modes", 20, seed=0)
    expected = "data: 20 points of 1 class (two_modes), format memory"
    assert data_identity.describe_data(points) == [expected]
    many = ArraySource(np.zeros((8, 1, 1, 1), np.uint8), np.zeros(8), list("abcdefg"))
    assert "8 images of 7 classes (a, b, c, d, e, …)" in data_identity.describe_data(many)[0]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_picture_of_the_first_batch(config, devices):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(6), list("abcdef"))
    with device_batches.make_batches(
        config, source, make_mesh(devices), batch_size=6, start=0
    ) as batches:
        batch = next(batches)
    # With eight devices, the batch ends in two rows of padding.
    whole = np.asarray(batch["image"])[:6]
    with jax.transfer_guard("disallow"):
        four, all_six = (device_batches.first_batch_picture(batch, count) for count in (4, 99))
    assert four.dtype == np.uint8
    np.testing.assert_array_equal(four, whole[:4])
    np.testing.assert_array_equal(all_six, whole)


def test_the_picture_of_latents_and_points():
    latents = np.random.default_rng(0).normal(size=(4, 2, 2, 4)).astype(np.float16)
    batch = transfer.global_batch(make_mesh(2), {"image": latents, "label": np.zeros(4, np.int32)})
    picture = device_batches.first_batch_picture(batch, 2)
    shown = latents[:2, :, :, :3].astype(np.float64)
    expected = (shown - shown.min()) / (shown.max() - shown.min()) * 255
    assert picture.dtype == np.uint8 and picture.min() == 0 and picture.max() == 255
    np.testing.assert_allclose(picture, expected, atol=0.51)
    flat = np.ones((2, 2, 2, 4), np.float16)
    batch = transfer.global_batch(make_mesh(2), {"image": flat, "label": np.zeros(2, np.int32)})
    assert not device_batches.first_batch_picture(batch, 2).any()
    points = {"image": np.zeros((2, 2), np.float32), "label": np.zeros(2, np.int32)}
    batch = transfer.global_batch(make_mesh(2), points)
    assert device_batches.first_batch_picture(batch, 2) is None


def test_batches_come_in_order_and_errors_where_they_are_asked_for(config, images, tmp_path):
    records = open_records(images, "train")
    with device_batches.make_batches(
        config, ImageSource(records, 8), make_mesh(1), batch_size=4, start=0, log=tmp_path
    ) as batches:
        given = [np.asarray(next(batches)["label"]) for _ in range(5)]
    lines = [json.loads(x) for x in (tmp_path / "batches_0.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == list(range(5))
    for label, line in zip(given, lines, strict=True):
        assert len(line["index"]) == len(label) == 4
    with device_batches.make_batches(
        config, ImageSource(records, 8), make_mesh(8), batch_size=4, start=0
    ) as batches:  # with more devices than records
        padded = next(batches)
    assert padded["image"].shape == (8, 8, 8, 3) and padded["label"].sharding.mesh.size == 8
    np.testing.assert_array_equal(padded["label"], [*given[0], -1, -1, -1, -1])
    source = ImageSource(Damaged(records, set(range(47))), 8)
    options = {"batch_size": 4, "start": 0, "log": tmp_path}
    with device_batches.make_batches(config, source, make_mesh(1), **options) as batches:
        for _ in range(2):
            with pytest.raises(UserError, match="could not be read"):
                next(batches)
    noted = [json.loads(x) for x in (tmp_path / "unreadable_0.jsonl").read_text().splitlines()]
    assert noted and all(record["name"].endswith("of /data") for record in noted)
    with device_batches.make_batches(config, source, make_mesh(1), **options) as batches:
        assert batches.unreadable.indices >= {record["index"] for record in noted}


def prepare_tfds(images, folder):
    """Writes the readable training files as tensorflow-datasets does, and returns their number."""
    paths = sorted((images / "train").rglob("*_*.JPEG"))
    paths = [p for p in paths if p.parent.name in p.name]

    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):
                features = tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(names=list(CLASSES)),
                        "file_name": tfds.features.Text(),
                    }
                )
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(), "validation": self._generate_examples()}

            def _generate_examples(self):
                for path in paths:
                    yield (
                        path.name,
                        {"image": str(path), "label": path.parent.name, "file_name": path.name},
                    )

    Imagenet2012(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return len(paths)


def test_images_of_tensorflow_datasets(images, tmp_path):
    count = prepare_tfds(images, tmp_path)
    of_files = open_records(images, "train")
    expected = {of_files.read(i)[0]: int(of_files.labels[i]) for i in range(len(of_files))}
    for where in (
        tmp_path,
        tmp_path / "imagenet2012",
        tmp_path / "imagenet2012" / "5.1.0",
    ):
        records = open_records(where, "train")
        assert records.format == "tfds" and len(records) == count
        assert records.class_names == list(CLASSES)
        for i in (0, 17, 40):
            data, label = records.read(i)
            assert expected[data] == label == records.labels[i]
    assert len(open_records(tmp_path, "test")) == count
    batches, _ = take(ImageSource(records, 16), 2, batch_size=8, seed=0)
    assert batches[0]["image"].shape == (8, 16, 16, 3)


@pytest.fixture(scope="module")
def start(images):
    """Starts main.py on the tiny config of images."""
    environment = os.environ | {
        "XLA_FLAGS": quick_compiling.FLAGS,
        "JAX_PLATFORMS": "cpu",
    }

    def started(workdir, *arguments):
        command = [sys.executable, "main.py", "--config=tests/helpers/tiny_images_config.py",
                   f"--config.data.path={images}", f"--workdir={workdir}", *arguments]  # fmt: skip
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)

    return started


def consumed(workdir):
    return [json.loads(x) for x in (workdir / "batches_0.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_consumes_what_an_undisturbed_one_does(start, tmp_path):
    whole = start(tmp_path / "whole")
    assert whole.wait(240) == 0, whole.stderr.read()
    killed, workers = tmp_path / "killed", 0
    for stage, batch in (("encoder", 9), ("generator", 20), ("generator", 26)):
        process = start(killed, f"--config.data.num_workers={workers}")
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            lines = consumed(killed) if (killed / "batches_0.jsonl").is_file() else []
            if any(x["stage"] == stage and x["batch"] >= batch for x in lines):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        assert process.wait(30) == -signal.SIGKILL, process.stderr.read()
        workers = (workers + 1) % 3
    last = start(killed, f"--config.data.num_workers={workers}")
    assert last.wait(240) == 0, last.stderr.read()
    expected, found = consumed(tmp_path / "whole"), consumed(killed)
    assert len(expected) > 40 and found == expected


@pytest.mark.slow
@pytest.mark.parametrize("format", ["shards", "tfds", "latents"])
def test_whole_runs_from_every_format(images, tmp_path, format):
    """Trains an encoder and a generator, resumes the complete run for more steps, and samples."""
    config = tiny_images_config.get_config()
    config.data.source, config.encoder.train.num_steps = "imagenet", 8
    data = tmp_path / "data"
    if format == "tfds":
        prepare_tfds(images, data)
    else:
        more = [f"--vae={VAE}", "--size=32"] if format == "latents" else []
        command = [sys.executable, "-m", "drifting_jax.prepare", format, f"--source={images}"]
        subprocess.run([*command, f"--out={data}", *more], cwd=ROOT, check=True)
    if format == "latents":
        config.data.latent, config.vae.path, config.data.image_size = True, str(VAE), 32
    config.data.path, config.train.num_steps = str(data), 10
    workdir = tmp_path / "run"
    assert run.run(resolve(config), workdir=workdir) == 0
    config.train.num_steps = 12
    assert run.run(resolve(config), workdir=workdir) == 0
    logged = consumed(workdir)
    assert [x["batch"] for x in logged if x["stage"] == "encoder"] == list(range(8))
    steps = [x["batch"] for x in logged if x["stage"] == "generator"]
    assert steps == list(range(len(steps))) and len(steps) > 12
    made = restore.load_run(workdir).sample(
        np.array([0, 1]), np.array([0, 0]), seed=0, cfg_scale=1.0
    )
    side = config.data.image_size
    assert made.shape == (2, side, side, 3) and made.dtype == np.uint8
