"""How a generator's step uses the memory of a device: microbatches, and what is kept in it.

The plan follows the kind of device, not what is free at the moment, so all processes and all
restarts find the same one. No number of a run depends on it.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import negatives_of
from drifting_jax.models.rematerialisation import POLICIES

_SAMPLES_AT_ONCE = 64  # generated samples of a microbatch on a device, at least
# Memory of a microbatch over that of its maps: 6 was seen for imagenet_latent:ablation on an H100,
# 10 for imagenet_pixel:L on a TPU.
_OVER_MAPS = 10
_USABLE_OF_GPU = 0.75 * 0.9  # what JAX takes by default, less a tenth for workspaces
_USABLE_OF_TPU = 0.85
_KEPT_ELSEWHERE = 4 * 2**30  # bytes of maps that are kept on a device of unknown memory
KEPT_ON_HOST = 32 * 2**30  # bytes of maps that a GPU's host keeps for it


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a step computes at once and what it keeps.

    Attributes:
      microbatches: parts of the class rows, or of the samples of all rows, that are computed one
        after another.
      parts_of_rows: the same number if they are parts of the samples of all rows; 1 if of the rows.
      keep_maps: whether the maps of all samples are kept from the first pass over the microbatches
        to the last: "yes", "host", or "no"; see `GeneratorStepConfig`.
      remat: what the blocks of networks keep whose config says "auto".
    """

    microbatches: int
    keep_maps: str
    remat: str = "none"
    parts_of_rows: int = 1


def memory_plan(
    config: ConfigDict,
    mesh: Mesh,
    *,
    held: int = 0,
    maps: int = 0,
    least: int = 0,
    loss: float = 0,
    activations: Callable[[str], int] = lambda policy: 0,
) -> MemoryPlan:
    """Returns the plan of a generator's step: as configured, or as the devices need it.

    Args:
      config: of the run.
      mesh: the devices.
      held: bytes that a device holds throughout: state, queue and frozen networks.
      maps: bytes of the maps of one sample; 0 to check the config alone.
      least: bytes that the encoders of pixels keep of one generated sample in any case; see
        `activations.least_of_pixels`.
      loss: bytes of the loss of all rows at once; see `loss_memory.loss_bytes`.
      activations: rematerialisation policy -> bytes that the networks whose config says "auto" keep
        of one generated sample until the backward pass.

    Raises:
      UserError: the rows of a step do not split over the microbatches or the mesh.
    """
    t, device = config.train, mesh.devices.flat[0]
    generated = t.labels_per_step * t.generated_per_label / mesh.size
    # Bytes of maps for a generated sample, with its share of the others of its row.
    for_each = maps * samples_of_row(config) / t.generated_per_label
    free, kept = _usable(device) - held, for_each * generated
    needed = max(_OVER_MAPS * for_each, least)  # at once, for a generated sample
    whole = needed * generated  # in one microbatch
    if t.labels_per_step == 1:  # whose maps say little of its loss, of n² pairs
        whole = max(whole, least * generated + loss)

    def place(at_once: float) -> str:
        """Where the maps of all samples lie, beside so many generated samples at once."""
        if t.keep_maps != "auto":
            return t.keep_maps
        if not _usable(device):
            return "yes" if kept <= _KEPT_ELSEWHERE else "no"
        if kept + needed * at_once <= free:
            return "yes"
        return "host" if targets.gpu_of(device) and kept <= KEPT_ON_HOST else "no"

    def planned(count: int, keep_maps: str) -> MemoryPlan:
        parts_of_rows = count if t.labels_per_step % count else 1
        if parts_of_rows > 1:
            keep_maps = "yes"  # the loss needs the features of all samples at once
        elif t.keep_maps == "auto" and not _splits(config, mesh, count):
            keep_maps = "no"
        at_once = generated / count
        room = free - (whole if count == 1 else needed * at_once)
        if count > 1 and keep_maps == "yes":
            room -= kept
        remat = "none" if not _usable(device) else _policy(activations, room / at_once)
        return MemoryPlan(count, keep_maps, remat, parts_of_rows)

    if t.microbatches:
        count = _checked(config, mesh)
        return planned(count, place(generated / count))
    at_once, keep_maps = _SAMPLES_AT_ONCE, place(_SAMPLES_AT_ONCE)
    fitting = possible_microbatches(config, mesh)
    if targets.gpu_of(device) and maps:
        if fitting[0] == 1 and whole <= free:
            return planned(1, keep_maps)  # one microbatch keeps nothing
        if t.labels_per_step == 1 and fitting[0] == 1:
            fitting = fitting[1:] or fitting  # so that its loss does not come on top
        room = free - kept if keep_maps == "yes" else free
        at_once *= max(1, int(room // (needed * at_once)))
    most = generated / at_once
    return planned(next((n for n in fitting if n >= most), fitting[-1]), keep_maps)


def _policy(activations: Callable[[str], int], room: float) -> str:
    """The rematerialisation that keeps most in so many bytes for each sample."""
    return next((x for x in POLICIES[:-1] if activations(x) <= room), POLICIES[-1])


def _usable(device: jax.Device) -> float:
    """Bytes of a device of this kind that a plan may use; 0 if its memory is not known."""
    memory = targets.nominal_memory(device)
    return memory * (_USABLE_OF_GPU if targets.gpu_of(device) else _USABLE_OF_TPU)


def samples_of_row(config: ConfigDict) -> int:
    """Generated samples of a class row, a second batch of them if the field takes one, and real."""
    t, drift = config.train, config.drift
    negatives = negatives_of(DriftOptions(field=drift.field, negatives=drift.negatives))
    batches = 2 if negatives == "fresh" and drift.negatives != "stale" else 1
    return batches * t.generated_per_label + t.positives_per_label + t.unconditional_per_label


def _splits(config: ConfigDict, mesh: Mesh, count: int) -> bool:
    """Whether all samples of a microbatch split over the devices; otherwise each holds all maps."""
    rows = config.train.labels_per_step // count
    try:
        meshes.row_sharding(mesh, rows, samples_of_row(config))
    except ValueError:
        return False
    return True


def _checked(config: ConfigDict, mesh: Mesh) -> int:
    """The configured number of microbatches, which the rows and the mesh must allow."""
    t = config.train
    rows, wanted = t.labels_per_step, t.microbatches
    if rows % wanted and wanted not in _parts_of_rows(config):
        counts = " and ".join(map(str, _per_label(config)))
        samples = f"the samples of each label ({counts}) or " if _parts_of_rows(config) else ""
        raise UserError(
            f"config.train.microbatches must divide {samples}config.train.labels_per_step; found "
            f"{wanted} and {rows}"
        )
    try:
        meshes.row_sharding(mesh, *_at_once(config, wanted))
    except ValueError as error:
        parts = f" (the rows of each of {wanted} microbatches)" if wanted > 1 else ""
        raise UserError(f"config.train does not fit the devices{parts}: {error}") from None
    return wanted


def possible_microbatches(config: ConfigDict, mesh: Mesh) -> list[int]:
    """All numbers of microbatches that the rows and the mesh allow, smallest first."""
    rows = config.train.labels_per_step
    fitting: list[int] = []
    of_rows = [n for n in range(1, rows + 1) if rows % n == 0]
    for count in of_rows + [n for n in _parts_of_rows(config) if n > rows]:
        try:
            meshes.row_sharding(mesh, *_at_once(config, count))
        except ValueError as error:
            refused = error
        else:
            fitting.append(count)
    if not fitting:
        raise UserError(f"config.train does not fit the devices: {refused}")
    return fitting


def _per_label(config: ConfigDict) -> list[int]:
    t = config.train
    counts = (t.generated_per_label, t.positives_per_label, t.unconditional_per_label)
    return [count for count in counts if count]


def _parts_of_rows(config: ConfigDict) -> list[int]:
    """Numbers of parts, above 1, into which the samples of every row can be split, rising."""
    if config.train.shared_statistics == "microbatch":
        return []  # a part of a row has no statistics of its own
    most = math.gcd(*_per_label(config))
    return [n for n in range(2, most + 1) if most % n == 0]


def _at_once(config: ConfigDict, microbatches: int) -> tuple[int, int]:
    """Class rows and generated samples of each that a microbatch has."""
    t = config.train
    if t.labels_per_step % microbatches == 0:
        return t.labels_per_step // microbatches, t.generated_per_label
    return t.labels_per_step, t.generated_per_label // microbatches
