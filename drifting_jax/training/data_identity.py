"""The data of a run: data.json identifies it and is compared at every start."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from drifting_jax.config import ConfigDict
from drifting_jax.data.facts import describe
from drifting_jax.data.sources import DataSpec, Source, make_earlier_source, make_source
from drifting_jax.digests import digest_bytes
from drifting_jax.distributed.agreement import on_main_process, require_same
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json
from drifting_jax.workdir.opening import has_checkpoints


def open_source(config: ConfigDict, workdir: Path) -> Source:
    """Opens the training split, and checks that it is the data that the run began with.

    <workdir>/data.json identifies the data. It is written at the first start, and anew if the data
    has changed before anything was saved.

    Raises:
      UserError: there is no such data, it is not what the run began with, or the processes of the
        run see different data.
    """
    path = workdir / "data.json"
    began = read_json(path) if path.is_file() else None
    source = _open(config.data, began)
    keep_record(config, workdir, _record(source))
    return source


def keep_record(
    config: ConfigDict,
    workdir: Path,
    found: dict[str, Any],
    *,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Compares what identifies the data with data.json, or writes it if nothing was saved yet.

    Args:
      config: of the run.
      workdir: of the run.
      found: the fields that must not change: "count", "fingerprint" and others.
      more: fields that are written beside them. They are not compared: after the first save they
        stay as they are.

    Raises:
      UserError: the run began with other data, or its processes see different data.
    """
    _require_same_everywhere(found)
    on_main_process(_compare_or_write, config, workdir, found, more)


def _open(data: ConfigDict, began: dict[str, Any] | None) -> Source:
    """The training split. A run that began with an earlier version gets the files it began with."""
    source, refused = None, None
    try:
        source = make_source(data, "train")
    except UserError as error:
        refused = error
    if began is not None and (source is None or not _is_same(began, _record(source))):
        with contextlib.suppress(UserError):
            earlier = make_earlier_source(data)
            if earlier is not None and _is_same(began, _record(earlier)):
                if jax.process_index() == 0:
                    now = _words(_record(source)) if source else str(refused)
                    print(f"note: this run goes on as it began; a new run would read: {now}")
                return earlier
    if refused is not None:
        raise refused
    assert source is not None
    return source


def _record(source: Source) -> dict[str, Any]:
    """What data.json says of the data."""
    return {
        "count": len(source),
        "fingerprint": source.fingerprint,
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
    }


def _is_same(began: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return all(began.get(name) == value for name, value in found.items())


def _compare_or_write(
    config: ConfigDict, workdir: Path, found: dict[str, Any], more: Mapping[str, Any] | None
) -> None:
    path, more = workdir / "data.json", more or {}
    began = read_json(path) if path.is_file() else {}
    saved, same = has_checkpoints(workdir), _is_same(began, found)
    if same and (saved or _is_same(began, more)):
        return
    if began and saved:
        raise UserError(
            f"the data in {config.data.path or config.data.source} is not what the run in "
            f"{workdir} began with: {_words(began)} then, {_words(found)} now; give another "
            "workdir, or the same data"
        )
    if not same:
        for log in workdir.glob("unreadable_*.jsonl"):  # their indices are those of other data
            log.unlink()
    write_json(path, {**found, **more})


def describe_data(source: Source) -> list[str]:
    """Lines for a person: how many images and classes there are, where, and what was skipped."""
    return describe(
        source.facts,
        count=len(source),
        class_names=source.class_names,
        noun="image" if len(source.image_shape) == 3 else "point",
    )


def read_data_spec(workdir: Path, config: ConfigDict) -> tuple[DataSpec, list[str]]:
    """Shapes and class names of a run's data, from data.json or else from the data itself.

    Raises:
      UserError: data.json is damaged, or neither is there.
    """
    path = workdir / "data.json"
    if not path.is_file():
        source = make_source(config.data, "train")
        return DataSpec(source.image_shape, source.num_classes), list(source.class_names)
    try:
        record = read_json(path)
    except (OSError, UserError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    shape = _list_of(int, record.get("image_shape"))
    names = _list_of(str, record.get("class_names"))
    if shape is None or names is None:
        raise UserError(f"{path} cannot be read: it lacks image_shape or class_names")
    return DataSpec(tuple(shape), len(names)), names


def _list_of(kind: type, value: Any) -> list[Any] | None:
    """The value if it is a list with entries of this type alone, else None."""
    is_list = isinstance(value, list) and all(type(entry) is kind for entry in value)
    return value if is_list else None


def _words(record: dict[str, Any]) -> str:
    names = record.get("class_names")
    classes = f" of {len(names)} classes" if isinstance(names, list) else ""
    fingerprint = record.get("fingerprint") or "none"
    return f"{record.get('count')} records{classes}, fingerprint {fingerprint}"


def _require_same_everywhere(found: dict[str, Any]) -> None:
    require_same(
        digest_bytes(json.dumps(found).encode()).encode(),
        "sees other data than process 0; all must see the same. "
        f"Process {jax.process_index()}: {_words(found)}",
    )
