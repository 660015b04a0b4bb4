"""Damaged inputs: a folder of good files, of which one is changed, and the code that reads it."""

import contextlib
import dataclasses
import io
import json
import random
import shutil
import signal
import struct
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECONDS = 60  # no small file may take longer
# Values that a JSON file may hold in place of the expected ones; the last are not valid JSON.
_VALUES = [
    None, True, False, 0, 1, -1, 3, 0.5, 1e308, -1e-308, 2**31, 2**63, 2**64, 10**30, 10**400,
    float("nan"), float("inf"), "", "x", "0", "\n", "\ud800", "../..", "a/b", "é" * 50, "x" * 3000,
    [], {}, [[]], [None], {"": 0}, [1, "a"], [0] * 100, {"a": {"b": {}}}, [[1, 2], [3]], "float32",
]  # fmt: skip
_RAW = [b"", b"{", b"[" * 200_000, b'{"a":' * 50_000, b"9" * 10_000, b"nul", b"\xff", b'"', b"{}x"]
_NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63,
            2**64 - 1]  # fmt: skip
_HEADERS = [  # of .npy: what stands there, and what may stand there instead
    (b"'descr': '", [b"'descr': '|O", b"'descr': '<U", b"'descr': '>", b"'descr': [('a', '"]),
    (b"'shape': (", [b"'shape': (-1, ", b"'shape': (99999999999, ", b"'shape': (0, ",
                     b"'shape': (2305843009213693952, 8, ", b"'shape': (1.5, ", b"'shape': ("]),
    (b"'fortran_order': False", [b"'fortran_order': True ", b"'fortran_order': 3    "]),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
    """Files and what reads them.

    Attributes:
      files: {path: content} of a good input.
      read: reads the folder with these files.
      allowed: exceptions that it may raise.
      fixed: files that are never changed.
    """

    files: Mapping[str, bytes]
    read: Callable[[Path], Any]
    allowed: tuple[type[Exception], ...]
    fixed: tuple[str, ...] = ()


def check(target: Target, folder: Path, seed: int) -> None:
    """Changes one file of the target, by the seed, and reads it.

    Raises:
      Exception: another exception than those allowed, or TimeoutError.
    """
    rng = random.Random(seed)
    name = rng.choice(sorted(set(target.files) - set(target.fixed)))
    read_changed(target, folder, {name: mutated(target.files[name], rng)})


def read_changed(target: Target, folder: Path, changed: Mapping[str, bytes]) -> None:
    """Reads the files of a target, some of them changed. Raises as `check`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in (dict(target.files) | dict(changed)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with within(SECONDS), contextlib.suppress(*target.allowed):
        target.read(folder)


@contextlib.contextmanager
def within(seconds: int):
    """Raises TimeoutError after so many seconds; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The content of a file with some damage that its format makes likely to be met."""
    if rng.random() < 0.7:
        if data[:2] == b"PK":
            return _mutated_zip(data, rng)
        if data[:6] == b"\x93NUMPY":
            return _mutated_npy(data, rng)
        if data[8:9] == b"{":
            return _mutated_safetensors(data, rng)
        if data[:1] in (b"{", b"["):
            return mutated_json(data, rng)
    return _mutated_bytes(data, rng)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """JSON, or lines of JSON, with some values replaced, moved or left out."""
    if rng.random() < 0.1:
        return rng.choice(_RAW)
    lines = data.decode().strip().splitlines()
    if len(lines) > 1 and all(line[:1] == "{" and line[-1:] == "}" for line in lines):
        at = rng.randrange(len(lines))
        lines[at] = mutated_json(lines[at].encode(), rng).decode(errors="replace")
        return "\n".join(lines).encode()
    tree = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        tree = _replaced(tree, rng)
    return json.dumps(tree).encode()


def _replaced(tree: Any, rng: random.Random) -> Any:
    """A tree with one node, at any depth, replaced."""
    entries = list(tree.items() if isinstance(tree, dict) else enumerate(tree)) if isinstance(
        tree, dict | list) and tree else []  # fmt: skip
    if not entries or rng.random() < 0.08:
        return rng.choice(_VALUES)
    key, value = rng.choice(entries)
    if rng.random() < 0.15:
        if isinstance(tree, dict):
            return {k: v for k, v in tree.items() if k != key} | rng.choice([{}, {"more": value}])
        return [*tree[:key], *tree[key + 1 :]]
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[key] = _replaced(value, rng)
    return copy


def _mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(found) + 1)
        if rng.random() < 0.5:
            at = min(at, rng.randrange(200))  # headers lie in front
        length = min(rng.choice([1, 2, 4, 8, 16, 100, 1000]), len(found) - at)
        match rng.randrange(8):
            case 0:
                del found[at:]
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case 3:
                found[at : at + length] = rng.randbytes(length)
            case 4:
                found[at : at + length] = bytes(length)
            case 5:
                kind = rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
                most = 2 ** (8 * struct.calcsize(kind)) - 1
                found[at : at + struct.calcsize(kind)] = struct.pack(
                    kind, min(rng.choice(_NUMBERS), most)
                )
            case _:
                if at < len(found):
                    found[at] ^= 1 << rng.randrange(8)
    return bytes(found)


def _mutated_safetensors(data: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(data[:8], "little")
    text = mutated_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _mutated_npy(data: bytes, rng: random.Random) -> bytes:
    before, instead = rng.choice(_HEADERS)
    if before not in data or rng.random() < 0.3:
        return _mutated_bytes(data, rng)
    after = rng.choice(instead)
    at, end = data.index(before), data.index(b"\n")
    header = data[10:at] + after + data[at + len(before) : end]
    return data[:8] + struct.pack("<H", len(header) + 1) + header + data[end:]


def _mutated_zip(data: bytes, rng: random.Random) -> bytes:
    """The same archive with whole checksums and a member that is changed, left out or renamed."""
    members = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            members.append([info.filename, archive.read(info), info.compress_type])
    if not members:
        return _mutated_bytes(data, rng)
    member = rng.choice(members)
    match rng.randrange(8):
        case 0:
            members.remove(member)
        case 1:
            member[0] = rng.choice(["x", "x.npy", "a/data.pkl", *(m[0] for m in members)])
        case 2:
            member[1] = rng.choice([m[1] for m in members])
        case 3:
            member[2] = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
        case _:
            member[1] = mutated(member[1], rng)
    buffer = io.BytesIO()
    with contextlib.suppress(UserWarning), zipfile.ZipFile(buffer, "w") as archive:
        for name, content, kind in members:
            archive.writestr(name, content, kind)
    return buffer.getvalue()
