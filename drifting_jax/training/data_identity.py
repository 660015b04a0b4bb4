"""Which data a run was begun with: data.json, compared at every start."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from drifting_jax.config import ConfigDict
from drifting_jax.data.sources import DataSpec, Source, make_source
from drifting_jax.distributed.agreement import require_same
from drifting_jax.errors import UserError
from drifting_jax.files import write_json

_AHEAD = 2  # batches that wait on the devices


def open_source(config: ConfigDict, workdir: Path) -> Source:
    """The training split, which must be the one that the run began with.

    What identifies it stands in <workdir>/data.json.

    Raises:
      UserError: there is no such data, it is not what the run began with, or the processes of the
        run see different data.
    """
    source = make_source(config.data, "train")
    found = {
        "count": len(source),
        "fingerprint": getattr(getattr(source, "records", None), "fingerprint", ""),
        "image_shape": list(source.image_shape),
        "class_names": list(source.class_names),
    }
    _require_same_everywhere(found)
    path = workdir / "data.json"
    if path.is_file():
        began = json.loads(path.read_text(encoding="utf-8"))
        for name, value in found.items():
            if began.get(name) != value:
                raise UserError(
                    f"the data in {config.data.path or config.data.source} is not what the run in "
                    f"{workdir} began with: {_words(began)} then, {_words(found)} now"
                )
    elif jax.process_index() == 0:
        write_json(path, found)
    return source


def read_data_spec(workdir: Path, config: ConfigDict) -> tuple[DataSpec, list[str]]:
    """Shapes and class names of a run's data, which needs not be there if data.json is.

    Raises:
      UserError: neither is there.
    """
    path = workdir / "data.json"
    if not path.is_file():
        source = make_source(config.data, "train")
        return DataSpec(source.image_shape, source.num_classes), list(source.class_names)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record["class_names"]
        return DataSpec(tuple(record["image_shape"]), len(names)), names
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _words(record: dict[str, Any]) -> str:
    return (
        f"{record.get('count')} records of {len(record.get('class_names', []))} classes, "
        f"fingerprint {record.get('fingerprint') or 'none'}"
    )


def _require_same_everywhere(found: dict[str, Any]) -> None:
    require_same(
        hashlib.sha256(json.dumps(found).encode()).digest(),
        "sees other data than process 0; all must see the same. "
        f"Process {jax.process_index()}: {_words(found)}",
    )
