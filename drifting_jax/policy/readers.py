"""Readers of demonstrations as other projects store them: low-dimensional observations alone.

Each returns observations [T, d_o], actions [T, d_a] and the ends of the episodes [E]; the caller
checks them. The libraries behind them are imported when they are needed.
"""

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from drifting_jax.errors import UserError

Arrays = tuple[Any, Any, Any]

_NPZ_KEYS = ("observations", "actions", "episode_ends")
_EXTRA = 'pip install "drifting_jax[demonstrations]"'


class Keys(NamedTuple):
    """Names of arrays in a file, of config.data; empty for those that its format usually has.

    Attributes:
      observations: they are put side by side, in this order.
      action: of the actions.
    """

    observations: Sequence[str] = ()
    action: str = ""


def read_npz(path: Path, keys: Keys) -> Arrays:
    """An .npz file of ours, with arrays as `Demonstrations` has them; it has no other names."""
    if keys != Keys():
        raise UserError(
            "config.data.observation_keys and action_key are not for .npz files, which hold the "
            f"arrays {', '.join(_NPZ_KEYS)}: leave them empty"
        )
    with np.load(path) as arrays:
        observations, actions, ends = (_named(arrays, name, path) for name in _NPZ_KEYS)
        return observations[:], actions[:], ends[:]


def read_robomimic(path: Path, keys: Keys) -> Arrays:
    """An HDF5 file of robomimic: data/demo_<i>/obs/<key> and data/demo_<i>/actions.

    Without keys the observations are all arrays [T, d] of `obs`, sorted by name.
    """
    h5py = _imported("h5py", path)
    with h5py.File(path, "r") as file:
        data = _named(file, "data", path)
        demos = sorted((name for name in data if re.fullmatch(r"demo_\d+", name)), key=_number)
        if not demos:
            raise UserError(f"{path} holds no groups data/demo_<number>; found {list(data)}")
        observations, actions = [], []
        for demo in demos:
            group, where = data[demo], f"{path}, data/{demo},"
            arrays = _named(group, "obs", where)
            names = keys.observations or sorted(n for n, a in arrays.items() if a.ndim == 2)
            if not names:
                raise UserError(f"{where} has no observations [T, d]; found {list(arrays)}")
            observations.append(_side_by_side(arrays, names, where))
            actions.append(_vectors(_named(group, keys.action or "actions", where), where))
    lengths = [len(action) for action in actions]
    return np.concatenate(observations), np.concatenate(actions), np.cumsum(lengths)


def read_zarr(path: Path, keys: Keys) -> Arrays:
    """A replay buffer of Diffusion Policy, a folder or a zip: data/<key>, meta/episode_ends.

    Without keys the observations are data/state or data/obs, and the actions data/action.
    """
    zarr = _imported("zarr", path)
    with contextlib.ExitStack() as stack:
        store: Any = str(path)
        if path.is_file():
            store = stack.enter_context(zarr.storage.ZipStore(str(path), mode="r"))
        root = zarr.open_group(store, mode="r")
        data = _named(root, "data", path)
        names = keys.observations or [name for name in ("state", "obs") if name in data][:1]
        if not names:
            raise UserError(
                f"{path} has neither data/state nor data/obs: name its observations with "
                f"config.data.observation_keys; it has {', '.join(data)}"
            )
        ends = _named(_named(root, "meta", path), "episode_ends", path)
        actions = _vectors(_named(data, keys.action or "action", path), path)
        return _side_by_side(data, names, path), actions, np.asarray(ends[:])


def read_lerobot(path: Path, keys: Keys) -> Arrays:
    """A data set of LeRobot (v2 or v3), a folder with data/**/*.parquet, or one parquet file.

    Without keys the observations are the columns observation.state and then
    observation.environment_state, those that are there, and the actions are the column action.
    """
    parquet = _imported("pyarrow.parquet", path)
    files = sorted((path / "data").rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no file data/**/*.parquet, as data sets of LeRobot do")
    columns = parquet.read_schema(files[0]).names
    usual = ("observation.state", "observation.environment_state")
    names = list(keys.observations or (name for name in usual if name in columns))
    if not names:
        raise UserError(
            f"{files[0]} has no column {' or '.join(usual)}: name its observations with "
            f"config.data.observation_keys; it has {', '.join(columns)}"
        )
    order = ["episode_index", "frame_index"]
    wanted = [*order, *names, keys.action or "action"]
    for name in wanted:
        if name not in columns:
            raise UserError(f"{files[0]} has no column {name}; it has {', '.join(columns)}")
    tables = [parquet.read_table(file, columns=wanted) for file in files]
    read = {name: np.concatenate([_column(t[name]) for t in tables]) for name in wanted}
    # Files need not come in the order of their episodes.
    sorting = np.lexsort((read["frame_index"][:, 0], read["episode_index"][:, 0]))
    read = {name: array[sorting] for name, array in read.items()}
    starts = np.flatnonzero(np.diff(read["episode_index"][:, 0])) + 1
    observations = np.concatenate([read[name] for name in names], axis=1)
    return observations, read[wanted[-1]], np.append(starts, len(observations))


READERS: dict[str, Callable[[Path, Keys], Arrays]] = {
    "npz": read_npz,
    "robomimic": read_robomimic,
    "zarr": read_zarr,
    "lerobot": read_lerobot,
}


def format_of(path: Path) -> str:
    """Returns the format of a file or folder, by its name and what lies in it.

    Raises:
      UserError: it is none of `READERS`.
    """
    name = path.name.lower()
    if path.is_dir():
        if name.endswith(".zarr") or (path / "meta" / "episode_ends").is_dir():
            return "zarr"
        if (path / "data").is_dir():
            return "lerobot"
    for ending, format in _ENDINGS.items():
        if path.is_file() and name.endswith(ending):
            return format
    raise UserError(
        f"config.data.path={path} is neither a file that ends in {', '.join(_ENDINGS)} nor a "
        "folder of zarr or LeRobot: rename it, or say what it is with "
        f"--config.data.format={'|'.join(READERS)}"
    )


_ENDINGS = {
    ".npz": "npz",
    ".hdf5": "robomimic",
    ".h5": "robomimic",
    ".zarr.zip": "zarr",
    ".parquet": "lerobot",
}


def _imported(module: str, path: Path) -> ModuleType:
    """A library that reads a format, or one line that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise UserError(f"{path} needs {library}, which is not installed: {_EXTRA}") from None


def _named(group: Mapping[str, Any], name: str, where: object) -> Any:
    """An entry of a group of arrays."""
    if name not in group:
        raise UserError(f"{where} must hold {name}; found {', '.join(group) or 'nothing'}")
    return group[name]


def _side_by_side(group: Mapping[str, Any], names: Iterable[str], where: object) -> np.ndarray:
    """[T, d] arrays of a group, side by side."""
    found = {name: _vectors(_named(group, name, where), where) for name in names}
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"the observations of {where} must be equally long; found {lengths}")
    return np.concatenate(list(found.values()), axis=1)


def _vectors(array: Any, where: object) -> np.ndarray:
    """[T, d] of an array [T, ...] in a file, such as keypoints [T, 9, 2]."""
    found = np.asarray(array[:])
    if found.ndim < 1:
        raise UserError(f"arrays of {where} must be [T, ...]; found a single number")
    return found.reshape(len(found), -1)


def _column(column: Any) -> np.ndarray:
    """[T, d] of a column of numbers or of lists of d numbers."""
    return np.stack([np.atleast_1d(row) for row in column.to_numpy()])


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])
