"""How a generator's step uses the memory of a device: its microbatches, and the maps that it keeps.

The plan follows the kind of device, not what is free at the moment, so all processes and all
restarts find the same one. No number of a run depends on it.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError

_SAMPLES_AT_ONCE = 64  # generated samples of a microbatch on a device, at least
# Memory of a microbatch over that of its maps: 6 was seen for imagenet_latent:ablation on an H100,
# 10 for imagenet_pixel:L on a TPU.
_OVER_MAPS = 10
_USABLE_OF_GPU = 0.75 * 0.9  # what JAX takes by default, less a tenth for workspaces
_USABLE_OF_TPU = 0.85
_KEPT_ELSEWHERE = 4 * 2**30  # bytes of maps that are kept on a device of unknown memory


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a step computes at once and what it keeps.

    Attributes:
      microbatches: parts of the class rows that are computed one after another.
      keep_maps: whether the maps of all samples are kept from the first pass over the microbatches
        to the last. Otherwise each pass computes them again.
    """

    microbatches: int
    keep_maps: bool


def memory_plan(config: ConfigDict, mesh: Mesh, *, held: int = 0, maps: int = 0) -> MemoryPlan:
    """Returns the plan of a generator's step: as configured, or as the devices need it.

    Args:
      config: of the run.
      mesh: the devices.
      held: bytes that a device holds throughout: state, queue and frozen networks.
      maps: bytes of the maps of one sample; 0 to check the config alone.

    Raises:
      UserError: the rows of a step do not split over the microbatches or the mesh.
    """
    t, device = config.train, mesh.devices.flat[0]
    generated = t.labels_per_step * t.generated_per_label / mesh.size
    drawn = t.positives_per_label + t.unconditional_per_label
    for_each = maps * (1 + drawn / t.generated_per_label)  # bytes of maps for a generated sample
    free, kept = _usable(device) - held, for_each * generated

    def fits(at_once: float) -> bool:
        """Whether the maps of all samples leave room for so many generated samples at once."""
        if not _usable(device):
            return kept <= _KEPT_ELSEWHERE
        return kept + _OVER_MAPS * for_each * at_once <= free

    keeps = fits(_SAMPLES_AT_ONCE) if t.keep_maps == "auto" else t.keep_maps == "yes"
    if t.microbatches:
        count = _checked(config, mesh)
        if t.keep_maps == "auto":
            keeps = fits(generated / count) and _splits(config, mesh, count)
        return MemoryPlan(count, keeps)
    at_once = _SAMPLES_AT_ONCE
    fitting = _counts(config, mesh)
    if targets.gpu_of(device) and maps:
        if fitting[0] == 1 and _OVER_MAPS * for_each * generated <= free:
            return MemoryPlan(1, keeps)  # one microbatch keeps nothing
        room = free - kept if keeps else free
        at_once *= max(1, int(room // (_OVER_MAPS * for_each * at_once)))
    most = generated / at_once
    count = next((n for n in fitting if n >= most), fitting[-1])
    if t.keep_maps == "auto":
        keeps = keeps and _splits(config, mesh, count)
    return MemoryPlan(count, keeps)


def _usable(device: jax.Device) -> float:
    """Bytes of a device of this kind that a plan may use; 0 if its memory is not known."""
    memory = targets.nominal_memory(device)
    return memory * (_USABLE_OF_GPU if targets.gpu_of(device) else _USABLE_OF_TPU)


def _splits(config: ConfigDict, mesh: Mesh, count: int) -> bool:
    """Whether all samples of a microbatch split over the devices; otherwise each holds all maps."""
    t = config.train
    samples = t.generated_per_label + t.positives_per_label + t.unconditional_per_label
    try:
        meshes.row_sharding(mesh, t.labels_per_step // count, samples)
    except ValueError:
        return False
    return True


def _checked(config: ConfigDict, mesh: Mesh) -> int:
    """The configured number of microbatches, which the rows and the mesh must allow."""
    t = config.train
    rows, wanted = t.labels_per_step, t.microbatches
    if rows % wanted:
        raise UserError(
            "config.train.microbatches must divide config.train.labels_per_step; found "
            f"{wanted} and {rows}"
        )
    try:
        meshes.row_sharding(mesh, rows // wanted, t.generated_per_label)
    except ValueError as error:
        parts = f" (the rows of each of {wanted} microbatches)" if wanted > 1 else ""
        raise UserError(f"config.train does not fit the devices{parts}: {error}") from None
    return wanted


def _counts(config: ConfigDict, mesh: Mesh) -> list[int]:
    """All numbers of microbatches that the rows and the mesh allow, smallest first."""
    t = config.train
    rows, fitting = t.labels_per_step, []
    for count in (n for n in range(1, rows + 1) if rows % n == 0):
        try:
            meshes.row_sharding(mesh, rows // count, t.generated_per_label)
        except ValueError as error:
            refused = error
        else:
            fitting.append(count)
    if not fitting:
        raise UserError(f"config.train does not fit the devices: {refused}")
    return fitting
