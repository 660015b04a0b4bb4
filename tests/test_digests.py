"""Digests stay the same as on users' disks: the first version computed the literals here."""

import hashlib
import json
import os
from pathlib import Path, PosixPath

import numpy as np
import pytest
from imagenet_like import write_imagenet_like
from tfds_files import write_tfds

from drifting_jax import digests
from drifting_jax.data.folder import FolderRecords, open_folder
from drifting_jax.data.image_formats import readable_suffixes
from drifting_jax.data.names import Names
from drifting_jax.data.records import open_records
from drifting_jax.training.batch_log import BatchLog
from drifting_jax.weights.networks import load_network

VAE = Path(__file__).parent / "fixtures" / "torch" / "vae"
VARIABLES = {
    "params": {
        "b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "a": np.array([1, 2], np.int32),
    },
    "batch_stats": {"mean": np.float32([0.5])},
}


def test_weights():
    assert digests.fingerprint_variables(VARIABLES) == "6adcb1c842f69835"
    params = "7138e1805c2e1429ac4df5372e51d5c3e8dca3ed80705f33c6b3f19a76fd4ad0"
    assert digests.digest_params(VARIABLES["params"]) == params
    vae = load_network(str(VAE), kind="vae").variables
    assert digests.fingerprint_variables(vae) == "6d632861ccba8aee"  # "vae_fingerprint"


def test_values():
    values = ("x", 3, None, (1.5, "y"), ["z"], np.arange(4, dtype=np.int64), PosixPath("/a"))
    assert digests.digest_values(*values) == "d758821f5a8f9c89"
    assert digests.digest_values() == "e3b0c44298fc1c14"


def test_bytes_and_files(tmp_path):
    whole = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert digests.digest_bytes(b"weights") == digests.digest_bytes(b"wei", b"ghts") == whole
    (tmp_path / "weights").write_bytes(b"weights")
    assert digests.digest_file(tmp_path / "weights") == whole
    assert digests.digest_file(tmp_path / "weights", digits=8) == "9a129038"


def test_lists_of_files(tmp_path):
    names = Names.of(["a/1.jpg", "a/é.png", os.fsdecode(b"b/\xff.jpg")])
    classes = ["a", os.fsdecode(b"b\xff")]
    records = FolderRecords(tmp_path, classes, np.array([0, 0, 1], np.int32), names)
    assert records.fingerprint == "40cd9249a7f6d76a"


def test_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_imagenet_like(tmp_path / "in", per_class=3)
    assert open_records(tmp_path / "in", "train").fingerprint == "bd8a7fd6c0c61e05"
    labels = {"train": [0, 1, 1], "test": [0]}
    described = {"version": "3.0.1", "shape": (4, 4, 1), "class_names": ["0", "1"]}
    write_tfds(tmp_path / "tfds", "mnist", labels=labels, **described)
    records = open_records(tmp_path / "tfds" / "mnist" / "3.0.1", "train")
    assert records.fingerprint == "8adf423bfbc8f6be"


def test_the_name_of_a_cached_list(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    os.utime(tmp_path / "in", (1e9, 1e9))
    open_folder(tmp_path / "in", cache=tmp_path / "cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(tmp_path / "in"))).hexdigest()
    (kept,) = (tmp_path / "cache").iterdir()
    folder, suffixes, version = kept.name.split("-")
    endings = hashlib.sha256(" ".join(sorted(readable_suffixes())).encode()).hexdigest()
    assert (folder, suffixes, version) == (digest[:16], endings[:16], "2.npz")


@pytest.mark.parametrize("contiguous", [True, False])
def test_batches(tmp_path, contiguous):
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)[:, ::-1]
    images = np.ascontiguousarray(images) if contiguous else images
    BatchLog(tmp_path, stage="s", start=0).write({"index": np.arange(2), "image": images})
    found = json.loads((tmp_path / "batches_0.jsonl").read_text())
    assert found["sha256"] == "8ab470c4454c6f4c068b6bff6f8f80e3380668f76115543ee7491ab167527a89"
