"""Changes of a config that take memory off its devices, the cheapest first, each with an estimate.

An estimate takes the peak of the step at hand apart into what is known (the state, the maps, what
blocks keep for the backward pass) and what each generated sample of a microbatch needs besides.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.config.stored import with_values
from drifting_jax.data.sources import data_spec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.models.rematerialisation import POLICIES
from drifting_jax.training import activations, encoder, frozen
from drifting_jax.training.compiled_report import CompiledStep
from drifting_jax.training.loss_memory import is_divided, is_single, loss_bytes
from drifting_jax.training.memory_plan import (
    KEPT_ON_HOST,
    MemoryPlan,
    memory_plan,
    possible_microbatches,
    samples_of_row,
)
from drifting_jax.training.program import Program

Values = dict[str, Any]

MOMENTS = "optim.moments_on_host"
_NETWORKS = ("model", "encoder")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A change to try.

    Attributes:
      values: fields of the config by dotted names.
      peak: estimated bytes of a device.
      is_known: whether the peak follows from known sizes, so that nothing has to be compiled.
      saved: bytes among it that a compilation for a device that is not there does not see.
      is_other_method: whether the numbers of the run change.
    """

    values: Values
    peak: float
    is_known: bool = False
    saved: int = 0
    is_other_method: bool = False


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes of the parts of a generator's step as it was compiled, on each device.

    Attributes:
      peak: of the step.
      maps: of those that it keeps there.
      gradients: what no microbatch makes smaller.
      moments: of the optimizer, where they lie on the devices.
      of_sample: maps of one sample.
      kept: network, policy -> what its blocks keep of one generated sample.
      least: policy of the encoders -> what those of pixels take of a generated sample in any case.
      for_sample: of a generated sample that is computed, besides what blocks keep.
      share: by which `kept` is too high, for a compiler that keeps less.
      features: shapes of those of one sample.
      share_of_loss: by which `loss_bytes` is too high, likewise.
    """

    peak: int
    maps: float
    gradients: int
    moments: int
    of_sample: int
    kept: Callable[[str, str], int]
    least: Callable[[str], int]
    for_sample: float
    share: float
    features: Mapping[str, jax.ShapeDtypeStruct]
    share_of_loss: float


def _policies(config: ConfigDict, remat: str) -> dict[str, str]:
    """What the blocks of each network keep, where a plan says `remat` for "auto"."""
    chosen = {name: config[name].remat for name in _NETWORKS}
    return {name: remat if policy == "auto" else policy for name, policy in chosen.items()}


def _at_once(config: ConfigDict, mesh: Mesh, microbatches: int) -> float:
    t = config.train
    return t.labels_per_step * t.generated_per_label / mesh.size / microbatches


def _kept_maps(config: ConfigDict, mesh: Mesh, plan: MemoryPlan, of_sample: int) -> float:
    """Bytes of the maps that a device keeps between the passes over microbatches."""
    three_passes = plan.microbatches > 1 and config.train.shared_statistics == "batch"
    if not three_passes or plan.keep_maps != "yes":
        return 0
    return of_sample * samples_of_row(config) * config.train.labels_per_step / mesh.size


def _measured(config: ConfigDict, found: Program, step: CompiledStep) -> _Sizes:
    """Splits the peak of a compiled step into its parts."""
    mesh = found.mesh
    spec, (extras, vae) = data_spec(config.data), frozen.expected_networks(config)
    networks: dict[str, Any] = {"extras": extras, "vae": vae}
    state = found.carry.state

    @functools.cache
    def kept(network: str, policy: str) -> int:
        others = {f"{name}.remat": "none" for name in _NETWORKS if name != network}
        alone = with_values(config, {f"{network}.remat": "auto", **others})
        given = (alone, spec, state.params, found.frozen)
        return activations.kept_activations(*given, **networks)(policy)

    @functools.cache
    def least(policy: str) -> int:
        changed = with_values(config, {"encoder.remat": policy})
        return activations.least_of_pixels(changed, spec, found.frozen, **networks)

    of_sample = activations.map_bytes(config, spec, found.frozen, **networks)
    features = activations.feature_shapes(config, spec, found.frozen, **networks)
    plan = MemoryPlan(found.microbatches, found.keep_maps, found.remat)
    maps = _kept_maps(config, mesh, plan, of_sample)
    held = step.held or meshes.bytes_per_device((found.carry, found.frozen, found.batch))
    peak = step.peak or 2 * step.capacity  # a guess, which the compilations correct
    temporary = max(peak - held - maps, 0)
    gradients = min(temporary, meshes.bytes_per_device(state.params))
    loss = loss_bytes(config, mesh, features)
    of_microbatch, share_of_loss = temporary - gradients, 1.0
    if is_single(config, found.microbatches):
        share_of_loss = min(1, of_microbatch / loss)
        of_microbatch -= share_of_loss * loss
    elif not is_divided(config, found.microbatches):
        share_of_loss = min(1, max(peak - held, 0) / loss)
    for_sample = of_microbatch / _at_once(config, mesh, found.microbatches)
    blocks = sum(kept(name, x) for name, x in _policies(config, found.remat).items())
    return _Sizes(
        peak=int(peak),
        maps=maps,
        gradients=int(gradients),
        moments=meshes.bytes_per_device(state.opt_state),
        of_sample=of_sample,
        kept=kept,
        least=least,
        for_sample=max(for_sample - blocks, 0),
        share=min(1, for_sample / blocks) if blocks else 1,
        features=features,
        share_of_loss=share_of_loss,
    )


def _meanwhile(
    config: ConfigDict,
    mesh: Mesh,
    sizes: _Sizes,
    microbatches: int,
    policies: Mapping[str, str],
    maps: float,
) -> float:
    """Bytes that a step with these maps takes besides the state and the gradients."""
    blocks = sum(sizes.kept(name, policy) for name, policy in policies.items())
    for_sample = sizes.for_sample + sizes.share * blocks
    found = maps + _at_once(config, mesh, microbatches) * for_sample
    loss = sizes.share_of_loss * loss_bytes(config, mesh, sizes.features)
    if is_single(config, microbatches):
        return found + loss
    if is_divided(config, microbatches):
        return found  # a row's loss is among what its samples take
    return max(found, loss - sizes.gradients)  # there are none yet


def generator_candidates(
    config: ConfigDict, found: Program, step: CompiledStep
) -> Iterator[Candidate]:
    """Yields candidates for a generator's step, the cheapest first."""
    mesh, sizes = found.mesh, _measured(config, found, step)
    resident = (found.batch,) if config.queue.kind == "dataset" else ()
    held = meshes.bytes_per_device((found.carry, found.frozen, *resident))
    before = _policies(config, found.remat)
    outside = sizes.peak - _meanwhile(config, mesh, sizes, found.microbatches, before, sizes.maps)

    def estimated(values: Values, *, is_other_method: bool = False) -> Candidate | None:
        changed = with_values(config, values)
        on_host = sizes.moments if MOMENTS in values else 0
        try:
            plan = memory_plan(
                changed,
                mesh,
                held=held - on_host,
                maps=sizes.of_sample,
                least=sizes.least(changed.encoder.remat),
                loss=loss_bytes(changed, mesh, sizes.features),
                activations=lambda policy: sum(
                    sizes.kept(name, policy) for name in _NETWORKS if changed[name].remat == "auto"
                ),
            )
        except UserError:
            return None  # it does not split over the devices
        policies = _policies(changed, plan.remat)
        maps = _kept_maps(changed, mesh, plan, sizes.of_sample)
        meanwhile = _meanwhile(changed, mesh, sizes, plan.microbatches, policies, maps)
        saved = int(min(on_host, meanwhile))  # the update needs the moments on the device
        peak = outside - saved + meanwhile
        is_known = plan.microbatches == found.microbatches and policies == before
        return Candidate(values, peak, is_known and not is_other_method, saved, is_other_method)

    for values in _generator_values(config, found, mesh, maps=sizes.maps):
        if candidate := estimated(values):
            yield candidate
    for values in _smaller_sets(config, mesh):
        if candidate := estimated(values, is_other_method=True):
            yield candidate


def _generator_values(
    config: ConfigDict, found: Program, mesh: Mesh, *, maps: float
) -> Iterator[Values]:
    """Yields changes that keep the numbers: each kind alone, then each with those before it."""
    counts = [n for n in possible_microbatches(config, mesh) if n > found.microbatches]
    more: list[Values] = [{"train.microbatches": n} for n in counts]
    if config.train.shared_statistics == "microbatch":
        more = []  # it would be another method
    same: Values = {} if config.train.microbatches else {"train.microbatches": found.microbatches}
    has_host = targets.gpu_of(mesh.devices.flat[0]) and maps <= KEPT_ON_HOST
    elsewhere = [{"train.keep_maps": place} for place in (["host"] if has_host else []) + ["no"]]
    policies = _policies(config, found.remat)
    less: list[Values] = []
    for policy in POLICIES[1:]:
        heavier = [x for x, now in policies.items() if POLICIES.index(now) < POLICIES.index(policy)]
        less += [{f"{name}.remat": policy for name in heavier}] if heavier else []
    host: list[Values] = [] if config.optim.moments_on_host else [{MOMENTS: True}]
    yield from more
    for alone in (elsewhere if maps else [], less, host):
        yield from ({**same, **values} for values in alone)
    so_far: list[Values] = more or [same]
    for kind in (elsewhere, less, host):
        so_far = [{**first, **then} for then in kind for first in so_far] or so_far
        yield from so_far


def _smaller_sets(config: ConfigDict, mesh: Mesh) -> Iterator[Values]:
    """Yields changes with fewer samples in each class row, with all that saves memory besides."""
    t = config.train
    generated, positives = t.generated_per_label, t.positives_per_label
    while generated % 2 == 0 and generated > 2 and positives > 1:
        generated, positives = generated // 2, max(positives // 2, 1)
        values: Values = {
            "train.generated_per_label": generated,
            "train.positives_per_label": positives,
        }
        try:
            most = possible_microbatches(with_values(config, values), mesh)[-1]
        except UserError:
            continue
        yield {
            **values,
            "train.microbatches": most,
            "train.keep_maps": "no",
            "model.remat": "block",
            "encoder.remat": "block",
            MOMENTS: True,
        }


def encoder_candidates(
    config: ConfigDict, found: Program, step: CompiledStep
) -> Iterator[Candidate]:
    """Yields candidates for the training of an encoder: more microbatches, then smaller batches."""
    mesh = found.mesh
    t = config.encoder.train
    held = step.held or meshes.bytes_per_device((found.carry, found.batch))
    peak = step.peak or 2 * step.capacity
    gradients = min(peak - held, meshes.bytes_per_device(found.carry.state.params))
    for_image = (peak - held - gradients) * t.microbatches / t.batch_size
    of_image = meshes.bytes_per_device(found.batch) / t.batch_size
    batch_size = t.batch_size
    while batch_size >= mesh.size:
        is_other_method = batch_size != t.batch_size
        smaller: Values = {"encoder.train.batch_size": batch_size} if is_other_method else {}
        for count in range(1, batch_size // mesh.size + 1):
            values = {**smaller, "encoder.train.microbatches": count}
            if batch_size % count or (not smaller and count <= t.microbatches):
                continue
            try:
                encoder.check_batch(with_values(config, values), mesh)
            except UserError:
                continue
            without = held - of_image * (t.batch_size - batch_size)
            estimate = without + gradients + for_image * batch_size / count
            yield Candidate(values, estimate, is_other_method=is_other_method)
        batch_size //= 2
