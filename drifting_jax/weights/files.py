"""Published weight files: finds, downloads, lists and reads them as NumPy arrays."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np

from drifting_jax.errors import UserError
from drifting_jax.files import expanded
from drifting_jax.weights.foreign_files import (
    PIPELINE,
    describe_file,
    describe_folder,
    describe_zip,
)
from drifting_jax.weights.pth import read_pth
from drifting_jax.weights.reading import flatten, map_file, read_json, zip_members
from drifting_jax.weights.safetensors import read_safetensors

# The format of a file by its name, where its content does not tell it.
_SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".msgpack": "msgpack",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".tar"), "pth"),
}
# The names that diffusers and transformers write, preferred ones first.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
# An index of a variant has its name inside: diffusion_pytorch_model.safetensors.index.fp16.json.
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")
_SHARD = re.compile(r"(.*)-\d+-of-\d+(\.\w+)")
_CHECK = "check the name and the network, or download it elsewhere and give the folder"
# Errors of huggingface_hub by the names of their classes, which its versions share.
_HUB_ERRORS = {
    "GatedRepoError": "(its owner grants access on its page): ask there, and set HF_TOKEN",
    "RepositoryNotFoundError": "(there is no such repository, or it is private): check the name; "
    "a private one needs HF_TOKEN",
    "RevisionNotFoundError": "(it has no branch, tag or commit of this name): check the name",
    "RemoteEntryNotFoundError": "(the repository has no such file): check the name",
    "LocalEntryNotFoundError": "(the Hub cannot be reached, and no copy is in the cache): "
    + _CHECK,
}


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weight file, or of the one in a folder (`find_weights`).

    Formats are .safetensors, an index of several (*.index.json), checkpoints of torch (`pth`), .npz
    and flax's .msgpack. The format is recognised by the content, else by the name.

    Returns:
      {name: array}, nested names as "outer/inner", bfloat16 and 8-bit floats as dtypes of
      `ml_dtypes`. An array may be a read-only view of the file, which must not change while the
      array is in use.

    Raises:
      UserError: the file does not exist, is empty, cut off, damaged or of no known format, or holds
        one name twice; see also `find_weights`.
    """
    return _read(find_weights(path), load=True)


def list_tensors(path: str | os.PathLike) -> str:
    """A table of the tensors of a weight file as text: name, shape, dtype, and the totals.

    It reads little more than the names, except of .msgpack. Raises as `read_tensors`.
    """
    inner = Path(path) / "params_ema"  # where the paper's release keeps its weights
    found = _read(find_weights(inner if inner.is_dir() else path), load=False)
    rows = [("name", "shape", "dtype")]
    for name, array in found.items():
        shape = " x ".join(map(str, array.shape)) or "scalar"
        rows.append((name, shape, str(array.dtype)))
    numbers = sum(array.size for array in found.values())
    size = sum(array.size * array.itemsize for array in found.values())
    wide = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{name:{wide[0]}}  {shape:{wide[1]}}  {dtype}" for name, shape, dtype in rows]
    return "\n".join([*lines, f"{len(found)} tensors, {numbers:,} numbers, {size / 1e6:,.1f} MB"])


def find_weights(path: str | os.PathLike) -> Path:
    """The weight file of a folder; the path of a file is returned as it is.

    In a folder this is the file that diffusers or transformers would load (safetensors before .bin;
    diffusion_pytorch_model, model or pytorch_model), or else the only weight file.

    Raises:
      UserError: nothing exists at the path, or the folder holds no weight file or several.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        return path
    if (path / "checkpoints").is_dir() or (path / "encoder" / "checkpoints").is_dir():
        stage = path.name == "encoder" and (path.parent / "config.json").is_file()
        run = path.parent if stage else path
        beside = f" part of {run}," if stage else ""
        raise UserError(
            f"{path} is{beside} the workdir of a run, no file of weights: `python -m "
            f"drifting_jax.convert {shlex.quote(f'--source={run}')} --out=FOLDER` writes them"
        )
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    for ending in _ENDINGS:
        standard = [stem + ending for stem in _STEMS if stem + ending in names]
        if standard:
            return _only(path, standard)
    shards = {name for name in names if _SHARD.fullmatch(name)}
    return _only(path, sorted(name for name in names - shards if _by_name(name)))


def read_config(path: str | os.PathLike) -> dict[str, Any] | None:
    """The config.json in a folder or beside a file; None if there is none.

    Raises:
      UserError: nothing exists at the path, or the config is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    config = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(config) if config.exists() else None


def fetch(name: str | os.PathLike, *, part: str | None = None) -> Path:
    """The local path of a name; downloads it first if it is on the Hugging Face Hub.

    Args:
      name: a path, or "hf://owner/repo", optionally with "@revision" and "/folder" or
        "/folder/file". A "/" in a revision is written "%2F". Of a folder or a repository the
        weights and .json files are downloaded, with a file the config.json beside it.
      part: the folder that alone is downloaded of a whole pipeline of diffusers.

    Returns:
      The path as given; or the downloaded file or folder, in the Hub's cache.

    Raises:
      UserError: the name is malformed; huggingface_hub is not installed; or the download failed.
    """
    if not str(name).startswith("hf://"):
        if "://" in str(name):
            raise UserError(f"{name} is neither a path nor hf://owner/repo: download it yourself")
        return Path(expanded(str(name)))
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/([^/].*?))?/?", str(name))
    if not match:
        raise UserError(f"expected hf://owner/repo[@revision][/file], found {name}")
    repo, revision, inner = match.groups()
    revision = revision and urllib.parse.unquote(revision)
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name} needs huggingface_hub: pip install huggingface_hub, "
            "or download it elsewhere and give the folder"
        ) from None
    try:
        if part and not inner and _is_pipeline(huggingface_hub, repo, revision):
            inner = part
        return _download(huggingface_hub, repo, revision, inner or "")
    except Exception as error:  # errors of the Hub, and of whatever HTTP library it uses
        raise UserError(f"cannot get {name} {_reason_and_advice(error)}") from None


def _reason_and_advice(error: Exception) -> str:
    """Why a download failed and what to do, for a person."""
    for kind in type(error).__mro__:
        if known := _HUB_ERRORS.get(kind.__name__):
            return known
    reason = " ".join(str(error).split())[:200] or repr(error)
    return f"({reason}): {_CHECK}"


def _is_pipeline(hub: Any, repo: str, revision: str | None) -> bool:
    """Whether a repository is a whole pipeline of diffusers, whose networks lie in folders."""
    try:
        hub.hf_hub_download(repo, PIPELINE, revision=revision)
        return True
    except hub.errors.EntryNotFoundError:
        return False


def _download(hub: Any, repo: str, revision: str | None, inner: str) -> Path:
    """Downloads a file or a folder of a repository, or all of it ("")."""
    kind = _by_name(inner)
    if kind and kind != "index":
        file = Path(hub.hf_hub_download(repo, inner, revision=revision))
        beside = f"{inner.rpartition('/')[0]}/config.json".lstrip("/")
        with contextlib.suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repo, beside, revision=revision)
        return file
    folder = inner.rpartition("/")[0] if kind else inner
    patterns = [f"{folder}/*{end}".lstrip("/") for end in (".json", *_SUFFIXES)]
    found = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns), inner)
    if not found.exists():
        raise FileNotFoundError(f"the repository has no weights in {inner}")
    return found


def _by_name(name: str) -> str | None:
    if _INDEX.fullmatch(name):
        return "index"
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _only(folder: Path, names: list[str]) -> Path:
    if len(names) == 1:
        return folder / names[0]
    if names:
        found = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
        raise UserError(f"expected one weight file in {folder}, found {found}: name the file")
    if what := describe_folder(folder):
        raise UserError(f"{folder} is {what}")
    raise UserError(f"expected one weight file in {folder}, found {_instead(folder)}")


def _instead(folder: Path) -> str:
    """What a folder without a weight file holds instead."""
    for path in sorted(folder.iterdir()):
        if shard := _SHARD.fullmatch(path.name):
            index = f"{shard[1]}{shard[2]}.index.json"
            return f"none but parts such as {path.name}: their index {index} is missing"
    inner = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and any(_by_name(entry.name) for entry in path.iterdir())
    )
    if inner:
        more = " …" if len(inner) > 5 else ""
        return f"some in its folders {', '.join(inner[:5])}{more}: name the folder"
    return f"none of {', '.join(_SUFFIXES)}"


def _read(path: Path, *, load: bool) -> dict[str, np.ndarray]:
    """The tensors of a file. Without `load`, data may be left unread and checksums unchecked."""
    match _kind(path):
        case "pth":
            found = read_pth(path, verify=load)
        case "safetensors":
            found = read_safetensors(path)
        case "index":
            found = _read_index(path, load)
        case "npz":
            found = _read_npz(path, load)
        case "msgpack":
            found = _read_msgpack(path)
    if not found:
        raise UserError(f"{path} holds no tensors")
    return found


def _kind(path: Path) -> str:
    """The format of a file, by its first bytes, or else by its name."""
    data = map_file(path)
    head = data[:512]
    if head[:4] == b"PK\x03\x04":
        members = zip_members(path)
        if any(name.endswith("/data.pkl") for name in members):
            return "pth"
        if any(name.endswith(".npy") for name in members) or path.suffix == ".npz":
            return "npz"
        raise UserError(f"{path} is {describe_zip(members)}")
    if int.from_bytes(head[:8], "little") <= len(data) - 8 and head[8:9] == b"{":
        return "safetensors"
    if (head[0] == 0x80 and head[1:2] <= b"\x05") or head[257:262] == b"ustar":
        return "pth"
    if what := describe_file(head, path.name):
        raise UserError(f"{path} is {what}")
    if head.lstrip()[:1] == b"{":
        return "index"
    if re.match(rb"[\x80-\x8f][\xa0-\xbf\xd9]|[\xde\xdf]", head):  # a map whose first key is text
        return "msgpack"
    if kind := _by_name(path.name):
        return kind
    raise UserError(f"{path} is no weight file of a known kind; it begins with {head[:16]!r}")


def _read_index(path: Path, load: bool) -> dict[str, np.ndarray]:
    """The tensors of several files, which an index lists."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} is no index of weight files: it has no weight_map")
    found: dict[str, np.ndarray] = {}
    for shard in sorted({str(place) for place in places.values()}):
        if Path(shard).name != shard or _by_name(shard) in (None, "index"):
            raise UserError(f"{path} names the file {shard!r}, which is no weight file beside it")
        file = find_weights(path.parent / shard)
        if _kind(file) == "index":
            raise UserError(f"{path} names {shard}, which is an index too; expected a weight file")
        tensors = _read(file, load=load)
        expected = {name for name, place in places.items() if place == shard}
        for name in sorted(expected ^ set(tensors)):
            raise UserError(f"{path} and {shard} do not agree about {name}")
        found |= tensors
    return found


def _read_npz(path: Path, load: bool) -> dict[str, np.ndarray]:
    """The numeric arrays; without `load`, arrays of the same shapes and dtypes without memory."""
    found, name = {}, "its list of members"
    zip_members(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name] if load else _npy_shape(archive.zip, name)
                if array.dtype.kind in "SU":
                    continue
                if array.dtype.kind not in "biufc" or name in found:
                    raise ValueError(f"twice there, or {array.dtype}")
                native = array.dtype.newbyteorder("=")
                found[name] = array.astype(native) if load else array
    except Exception as error:  # damaged bytes raise anything
        raise UserError(f"{name} of {path} is no array or damaged ({error!r:.200})") from None
    return found


def _npy_shape(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array with the shape and dtype of a member of an .npz, which takes no memory."""
    with archive.open(f"{name}.npy") as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    try:
        tree = flax.serialization.msgpack_restore(map_file(path)[:])
    except Exception as error:  # damaged bytes raise anything, with text of several lines too
        reason = " ".join(repr(error).split())
        raise UserError(f"{path} is damaged, or no msgpack of flax ({reason:.200})") from None
    found = flatten(tree, (np.ndarray, np.generic), path)
    if "" in found:
        raise UserError(f"{path} holds one array without a name")
    return {name: np.asarray(array) for name, array in found.items()}
