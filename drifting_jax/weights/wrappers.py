"""Finds a network among the tensors of a file: groups, prefixes, and what training added."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from drifting_jax.errors import UserError

# Names of the group of weights in a checkpoint that holds several groups: averages and others.
_AVERAGES = ("ema_state_dict", "state_dict_ema", "model_ema", "params_ema", "ema")
_WEIGHTS = ("state_dict", "model_state_dict", "model", "model_state", "params", "net", "network")

_COMPILED = re.compile(r"(^|[./])_orig_mod\.")  # of torch.compile
_COUNTERS = ("n_averaged", "num_batches_tracked")


def select(tensors: Mapping[str, Any], prefix: str | None = None) -> dict[str, Any]:
    """The tensors of one group, without the group's name in front of theirs.

    Args:
      tensors: as `files.read_tensors` names them.
      prefix: the group, such as "state_dict" or "a/b"; "" takes all tensors. None takes all where
        no name has a "/"; else the group that `weight_group` finds.

    Raises:
      UserError: there is no such group; or `prefix` is None, and no group or several fit.
    """
    groups = _groups(tensors)
    if prefix is None and groups:
        prefix = weight_group(tensors)
        if prefix is None:
            raise UserError(
                f"the file holds several groups of tensors, {', '.join(groups)}, none of which is "
                "known to be the network: save the one alone"
            )
    if not prefix:
        return dict(tensors)
    start = prefix.rstrip("/") + "/"
    found = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    if not found:
        there = f"the groups are {', '.join(groups)}" if groups else "there are no groups"
        raise UserError(f"no tensor lies in a group called {prefix!r}; {there}")
    return found


def weight_group(tensors: Mapping[str, Any]) -> str | None:
    """The group of the weights, such as "state_dict" or "state_dict/model"; None if unknown.

    It is the only group, or the only one with a known name. Of a network and its moving average
    it is the average, as for evaluation, if that has every tensor of the network.
    """
    groups = _groups(tensors)
    if len(groups) == 1 and all("/" in name for name in tensors):
        group = groups[0]
    else:
        weights = [group for group in _WEIGHTS if group in groups]
        averages = [group for group in _AVERAGES if group in groups]
        names = {group: _plain_names(tensors, group) for group in weights + averages}
        whole = [
            group
            for group in averages
            if weights and all(names[group] >= names[other] for other in weights)
        ] or ([] if weights else averages)
        found = whole or weights
        if len(found) != 1:
            return None
        group = found[0]
    inner = select(tensors, group)
    if all("/" in name for name in inner) and (deeper := weight_group(inner)):
        return f"{group}/{deeper}"
    return group


def unwrap(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors without the names that torch's wrappers put before or between theirs.

    These are "_orig_mod." of torch.compile, "module." of DistributedDataParallel and AveragedModel,
    and the latter's counter.
    """
    found = {_COMPILED.sub(r"\1", name): x for name, x in tensors.items() if name != "n_averaged"}
    if len(found) < len(tensors) - ("n_averaged" in tensors):
        return dict(tensors)  # a network with parts of these names
    while found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): x for name, x in found.items()}
    return found


def without_prefix(
    tensors: Mapping[str, Any], known: Sequence[str], *, origin: str
) -> dict[str, Any]:
    """The tensors of a network that is a part of another, without the name of the part.

    Args:
      tensors: arrays by name.
      known: tensors that the network has; what precedes one of them is the name of the part, such
        as "first_stage_model.". Without such a name all tensors are taken.
      origin: what to call the file in an error.

    Raises:
      UserError: there are several such networks.
    """
    prefixes = sorted({
        name.removesuffix(end)
        for end in known
        for name in tensors
        if name == end or name.endswith((f".{end}", f"/{end}"))
    })  # fmt: skip
    if len(prefixes) > 1:
        raise UserError(
            f"{origin} holds {len(prefixes)} networks, with the prefixes "
            f"{', '.join(map(repr, prefixes[:4]))}: save the tensors of one alone"
        )
    start = prefixes[0] if prefixes else ""
    return {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}


def _groups(tensors: Mapping[str, Any]) -> list[str]:
    return sorted({name.partition("/")[0] for name in tensors if "/" in name})


def _plain_names(tensors: Mapping[str, Any], group: str) -> set[str]:
    """The names in a group, without wrappers and counters."""
    return {name for name in unwrap(select(tensors, group)) if not name.endswith(_COUNTERS)}
