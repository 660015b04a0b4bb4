"""The data of a run: data.json identifies it and is compared at every start."""

import json
from pathlib import Path
from typing import Any

import jax

from drifting_jax.config import ConfigDict
from drifting_jax.data.class_names import title
from drifting_jax.data.sources import DataSpec, Source, make_source
from drifting_jax.digests import digest_bytes
from drifting_jax.distributed.agreement import require_same
from drifting_jax.errors import UserError
from drifting_jax.files import read_json, write_json

_TITLES_SHOWN = 5
_REASONS_SHOWN = 8


def open_source(config: ConfigDict, workdir: Path) -> Source:
    """Opens the training split, and checks that it is the data that the run began with.

    The first start of a run writes <workdir>/data.json, which identifies the data.

    Raises:
      UserError: there is no such data, it is not what the run began with, or the processes of the
        run see different data.
    """
    source = make_source(config.data, "train")
    found = {
        "count": len(source),
        "fingerprint": source.fingerprint,
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
    }
    _require_same_everywhere(found)
    path = workdir / "data.json"
    if path.is_file():
        began = read_json(path)
        for name, value in found.items():
            if began.get(name) != value:
                raise UserError(
                    f"the data in {config.data.path or config.data.source} is not what the run in "
                    f"{workdir} began with: {_words(began)} then, {_words(found)} now"
                )
    elif jax.process_index() == 0:
        write_json(path, found)
    return source


def describe_data(source: Source) -> list[str]:
    """Lines for a person: how many images and classes there are, where, and what was skipped."""
    facts, classes = source.facts, source.class_names
    noun = ("image" if len(source.image_shape) == 3 else "point") + "s" * (len(source) != 1)
    titles = ", ".join(title(name) for name in classes[:_TITLES_SHOWN])
    more = ", …" * (len(classes) > _TITLES_SHOWN)
    place = f" in {facts.where}" if facts.where else ""
    lines = [
        f"data: {len(source)} {noun} of {len(classes)} class{'es' * (len(classes) != 1)} "
        f"({titles}{more}){place}, format {facts.format}"
    ]
    for skipped in facts.skipped[:_REASONS_SHOWN]:
        names = ", ".join(skipped.names) + ", …" * (skipped.count > len(skipped.names))
        lines.append(f"skipped {skipped.count} ({skipped.reason}): {names}")
    if others := facts.skipped[_REASONS_SHOWN:]:
        reasons = ", ".join(skipped.reason for skipped in others)
        lines.append(f"skipped {sum(skipped.count for skipped in others)} more ({reasons})")
    return lines


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
    return (
        f"{record.get('count')} records of {len(names) if isinstance(names, list) else 0} classes, "
        f"fingerprint {record.get('fingerprint') or 'none'}"
    )


def _require_same_everywhere(found: dict[str, Any]) -> None:
    require_same(
        digest_bytes(json.dumps(found).encode()).encode(),
        "sees other data than process 0; all must see the same. "
        f"Process {jax.process_index()}: {_words(found)}",
    )
