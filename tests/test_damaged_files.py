"""Damaged files that were crashes once: each gives one line that says why, or is done without."""

import contextlib
import dataclasses
import io
import json
import zipfile

import fuzz_targets
import fuzzing
import numpy as np
import pytest
import tiny_config

from drifting_jax.commands.class_choice import parse_classes
from drifting_jax.commands.command_line import parse_flags
from drifting_jax.config import resolve
from drifting_jax.errors import UserError
from drifting_jax.evaluation.measurement import read_lines
from drifting_jax.files import parse_json, read_json_lines
from drifting_jax.workdir.metrics import read_metrics

TARGETS = fuzz_targets.make_targets()
DEEP = b"[" * 200_000
BAD_JSON = {
    "cut": (b'{"a": 1', "cannot be read"),
    "deep": (DEEP, "cannot be read: maximum recursion depth"),
    "not UTF-8": (b'{"a": "\xff"}', "cannot be read: 'utf-8' codec"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read: Exceeds the limit"),
    "list": (b"[1]", "is no object but a list"),
    "text": (b'"x"', "is no object but a str"),
    "twice": (b'{"a": 1, "a": 2}', "a name stands twice"),
}


def edited(target, file, **changes):
    """The JSON file of a target with some entries changed."""
    return json.dumps(json.loads(TARGETS[target].files[file]) | changes).encode()


def with_arrays(target, file, **arrays):
    """The .npz file of a target with some arrays changed; bytes stand there as they are."""
    data = io.BytesIO()
    with np.load(io.BytesIO(TARGETS[target].files[file])) as old:
        kept = {name: old[name] for name in old.files if name not in arrays}
    raw = {name: arrays.pop(name) for name in list(arrays) if isinstance(arrays[name], bytes)}
    np.savez(data, **kept, **arrays)
    with zipfile.ZipFile(data, "a") as archive:
        for name, content in raw.items():
            archive.writestr(f"{name}.npy", content)
    return data.getvalue()


def npy_of(header):
    """The bytes of an .npy file with this header, and no data."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def raises_one_line(folder, target, changed, message):
    strict = dataclasses.replace(TARGETS[target], allowed=())
    with pytest.raises(UserError, match=message) as error:
        fuzzing.read_changed(strict, folder, changed)
    assert "\n" not in str(error.value).strip()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "work"


@pytest.mark.parametrize("data, message", BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_is_no_object(tmp_path, folder, data, message):
    with pytest.raises(UserError, match=f"the JSON of x {message}|the JSON of x .*{message}"):
        parse_json(data, "x")
    (tmp_path / "x").write_bytes(data + b'\n{"b": 2}\n')
    assert read_json_lines(tmp_path / "x") == [{"b": 2}]
    for target, file in (
        ("run data.json", "data.json"),
        ("run data.json again", "data.json"),
        ("run config.json", "config.json"),
        ("data begun", "out/plan.json"),
        ("data shards", "out/info.json"),
        ("network artifact", "mae_latent/params_ema/metadata.json"),
        ("network ours", "network.json"),
    ):
        raises_one_line(
            folder, target, {file: data}, r"\.json.* (cannot be read|is no object|describe)"
        )


@pytest.mark.parametrize(
    ("target", "file", "changes", "message"),
    [
        ("run data.json", "data.json", {"image_shape": 3}, "lacks image_shape or class_names"),
        ("run data.json", "data.json", {"class_names": [1]}, "lacks image_shape or class_names"),
        ("data shards", "out/info.json", {"records_per_shard": "2"}, "records_per_shard"),
        ("data shards", "out/info.json", {"records_per_shard": 0}, "not below zero"),
        ("data shards", "out/info.json", {"class_names": [1]}, "does not describe"),
        ("data shards", "out/info.json", {"class_names": []}, "labels beyond those of 0 classes"),
        ("network vae", "config.json", {"layers_per_block": 5000}, "more layers than the file"),
        ("network vae", "config.json", {"layers_per_block": 2**31}, "too large to be built"),
        ("network dinov2", "config.json", {"num_hidden_layers": 2**19}, "more layers than the"),
    ],
)
def test_wrong_values(folder, target, file, changes, message):
    raises_one_line(folder, target, {file: edited(target, file, **changes)}, message)


def test_a_description_of_a_policy_without_its_kind(folder):
    message = "network.json describes a network of the kind None; expected 'policy'"
    raises_one_line(folder, "run policy plain", {"network.json": b"{}"}, message)


@pytest.mark.parametrize(
    ("target", "file", "arrays", "message"),
    [
        ("data shards", "out/index.npz", {"ends": np.array([9, 2, 3, 4])}, "do not fit"),
        ("data shards", "out/index.npz", {"names": b"abc"}, "cannot be read"),
        ("data shards", "out/index.npz", {"labels": np.zeros((4, 1), np.int32)}, "cannot be read"),
        ("data shards", "out/index.npz", {"labels": np.full(4, 7, np.int32)}, "beyond those"),
        ("evaluation reference", "x.npz", {"mu": np.array(["a"])}, "mu to be an array of numbers"),
        ("evaluation reference", "x.npz", {"mu": npy_of(b"{'shape': (1.5, }\n")}, "can be read"),
        ("evaluation reference", "x.npz", {"protocol": np.ones(2)}, "protocol to be an array of t"),
        ("evaluation reference", "x.npz", {"features": b"abc"}, "features to be an array of num"),
        ("evaluation samples", "x.npz", {"arr_1": b"abc"}, "arr_1 must be 3 labels"),
        ("evaluation samples", "x.npz", {"arr_1": npy_of(b"{'descr': '|O<i8', 'fortran_order': "
                                         b"False, 'shape': (3,), }\n")}, "arr_1 is no array"),
        ("evaluation samples", "x.npz", {"arr_1": np.array([0, 1, 2**40])}, "labels below 1000000"),
        ("evaluation samples", "x.npz", {"arr_0": npy_of(b"{'shape': (\n")}, "arr_0 is no array"),
    ],
)  # fmt: skip
def test_wrong_arrays(folder, target, file, arrays, message):
    raises_one_line(folder, target, {file: with_arrays(target, file, **arrays)}, message)


@pytest.mark.parametrize(
    "line",
    [b'{"step": [1], "stage": "toy"}', b"[1]", DEEP, b"\xff", b'{"stage": 1, "batch": []}',
     b'{"index": {}}', b'{"batch": 0}', b'{"figure": "fid"}', b'{"figure": [], "value": 1}',
     b'{"notes": [], "figures": [[]], "left_out": 0, "set": "s", "bench": "b"}'],
)  # fmt: skip
def test_lines_that_are_none_are_left_out(folder, line):
    for target, file in (
        ("run metrics.jsonl", "metrics.jsonl"),
        ("run logs", "batches_0.jsonl"),
        ("run logs", "unreadable_0.jsonl"),
        ("evaluation figures.jsonl", "figures.jsonl"),
    ):
        good = TARGETS[target].files[file]
        strict = dataclasses.replace(TARGETS[target], allowed=())
        fuzzing.read_changed(strict, folder, {file: line + b"\n" + good})
        if file == "figures.jsonl":
            assert len(read_lines(folder)) == 2
    (folder / "metrics.jsonl").write_bytes(line + b'\n{"stage": "toy", "step": 3, "x": "../.."}\n')
    assert read_metrics(folder)[-1] == {"stage": "toy", "step": 3, "x": "../.."}


@pytest.mark.parametrize("data", [b'{"step": "9"}', b'["step"]', b'{"step": [9]}', DEEP, b"\xff"])
def test_a_damaged_mark_is_no_complete_run(folder, data):
    files = {"evaluation.json": data, "complete.json": data}
    strict = dataclasses.replace(TARGETS["run complete"], allowed=())
    fuzzing.read_changed(strict, folder, files)
    assert not TARGETS["run complete"].read(folder)


def test_a_damaged_store_begins_anew(folder):
    target = dataclasses.replace(TARGETS["evaluation store"], allowed=())
    for name in target.files:
        for data in (b"", DEEP, b'{"done": "x"}', npy_of(b"{'shape': (1.5, }\n")):
            fuzzing.read_changed(target, folder, {name: data})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.num_steps", 10**400, r"config.train.num_steps must be below 2\*\*63"),
        ("mesh.rules", (("a", ({},)),), "may name the mesh axes"),
        ("mesh.rules", (("a", (3,)),), "may name the mesh axes"),
        ("mesh.rules", (("a{99999999999}", ("data",)),), "has the bad regex"),
    ],
)
def test_values_of_a_config(field, value, message):
    config = tiny_config.get_config()
    *sections, last = field.split(".")
    section = config[sections[0]] if sections else config
    section[last] = value
    with pytest.raises(UserError, match=message):
        resolve(config)


def test_words_of_the_command_line(capsys):
    for text in ("9" * 5000, "0-" + "9" * 30, "²"):
        with pytest.raises(UserError):
            parse_classes(text, ("a", "b"))
    with fuzzing.within(60):
        assert len(parse_classes("0-99999", [str(i) for i in range(100_000)])) == 100_000
    config = str(fuzz_targets.TORCH.parents[2] / "configs" / "toy2d.py")
    with pytest.raises(SystemExit, match="2"), contextlib.suppress(KeyError):
        parse_flags(["main.py", f"--config={config}", "--config.=5"])
    assert "config. does not exist" in capsys.readouterr().err
