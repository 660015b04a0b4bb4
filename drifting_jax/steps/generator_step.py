"""The training step of the generator (3.2-3.5, A.8): a pure function, no loop.

The road of the samples: draw class rows and real samples → `generate` → features of all samples →
drifting loss → gradients → new state.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from drifting_jax.distributed import class_rows, transfer
from drifting_jax.method import feature_losses
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.method.feature_losses import FeatureSets, loss_and_cotangents, loss_by_previous
from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.steps import nearest, parts_of_rows
from drifting_jax.steps.culprit import drift_culprit
from drifting_jax.steps.generator_networks import Networks
from drifting_jax.steps.generator_rows import (
    Moment,
    Rows,
    draw_fresh_keys,
    draw_rows,
    first_microbatch,
    in_microbatches,
    moment_of,
)
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.real_samples import Opened, Queue, close_queue, open_queue
from drifting_jax.steps.state import TrainState, apply_gradients

PyTree = Any
_ByGroup = Mapping[str, dict[str, jax.Array]]  # features {group: {name: [c, n, t, d]}}


@flax.struct.dataclass
class GeneratorMetrics:
    """What a generator's step reports. The loss says little, the statistics much.

    Attributes:
      updates: [] int32, updates before this step; skipped steps do not count.
      loss: [] weighted sum over features, nearly constant by construction.
      gradient_norm: [] before the clip.
      cfg_scale: [] mean α of the rows.
      statistics: {feature: DriftingStatistics}.
      features: {feature: [c, g, t, d]} of the generated samples, which repel those of the next step
        with stale negatives; None without.
    """

    updates: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    cfg_scale: jax.Array
    statistics: dict[str, DriftingStatistics]
    features: dict[str, jax.Array] | None = None


def generator_step(
    state: TrainState,
    queue: Queue,
    frozen: PyTree,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: nn.Module,
    feature_function: FeatureFunction,
    optimizer: optax.GradientTransformation,
    settings: GeneratorStepConfig,
    previous: Mapping[str, DriftingStatistics] | None = None,
    nearness: nearest.Nearness | None = None,
    stale: Mapping[str, jax.Array] | None = None,
) -> tuple[TrainState, Queue, GeneratorMetrics]:
    """Takes new real samples, draws rows, generates, drifts in feature space, and updates.

    Args:
      state, queue: donated by the caller's jit.
      frozen: variables of the frozen networks, the first argument of `feature_function`. They are
        an argument and never a constant of the program.
      batch: new real samples {"image": [b, h, w, c], "label": [b]} for the rings of the queue; for
        a `DatasetQueue` all samples.
      key: the root key of this stage; the step folds in its own number.
      model: the generator.
      feature_function: (frozen, images [b, h, w, c]) -> {name: [b, t, d]}.
      optimizer: of the parameters.
      settings: see `GeneratorStepConfig`.
      previous: statistics of the step before, for `shared_statistics` "previous".
      nearness: the feature that tells which positives are nearest, if the settings draw such.
      stale: `GeneratorMetrics.features` of the step before, for negatives "stale".

    Returns:
      The new state and queue, and `GeneratorMetrics`. If the loss or a gradient is not finite, the
      step changes neither parameters nor averages, and the state counts it.
    """
    s = settings
    opened = open_queue(queue, frozen, batch, key, nearness)
    key = jax.random.fold_in(key, state.step)
    microbatches = draw_rows(key, state.step, opened, s, stale)
    networks = Networks(model, feature_function, frozen, opened.mesh)
    ((loss, statistics), gradients), generated = _loss_and_gradients(
        state.params, microbatches, networks, s, moment_of(key, state.step, s), previous
    )
    norm = optax.tree.norm(gradients)
    updates_before, cfg_scale = state.step - state.skipped, jnp.mean(microbatches.cfg_scale)
    metrics = GeneratorMetrics(updates_before, loss, norm, cfg_scale, statistics, generated)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        ema_widths=s.ema_widths,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit(statistics),
    )
    return state, close_queue(opened, microbatches.label.reshape(-1), s), metrics


def first_statistics(
    state: TrainState,
    queue: Opened,
    frozen: PyTree,
    key: jax.Array,
    *,
    model: nn.Module,
    feature_function: FeatureFunction,
    settings: GeneratorStepConfig,
    stale: Mapping[str, jax.Array] | None = None,
) -> dict[str, DriftingStatistics]:
    """Returns the statistics of the rows that the next step would draw if it pushed nothing.

    A run with `shared_statistics` "previous" starts with them. The arguments are those of
    `generator_step`, and `queue` has been opened.
    """
    s = dataclasses.replace(settings, keep_maps="no")
    key = jax.random.fold_in(key, state.step)
    microbatches = draw_rows(key, state.step, queue, s, stale)
    networks = Networks(model, feature_function, frozen, queue.mesh)
    moment = moment_of(key, state.step, s)
    if s.parts_of_rows > 1:
        rows = first_microbatch(microbatches)
        features = parts_of_rows.features_in_parts(state.params, rows, networks, s.parts_of_rows)
        found = loss_and_cotangents(_sets(features, rows, s, moment), s.drift)[2]
        return {name: x.without_reach for name, x in found.items()}
    found, _ = _shared_statistics(state.params, microbatches, networks, s, moment)
    return {name: x.without_reach for name, x in found.items()}


def first_negatives(
    state: TrainState,
    queue: Opened,
    frozen: PyTree,
    key: jax.Array,
    *,
    model: nn.Module,
    feature_function: FeatureFunction,
    settings: GeneratorStepConfig,
) -> dict[str, jax.Array]:
    """Returns {feature: [c, g, t, d]} of a fresh batch of samples for the rows of the next step.

    A run with stale negatives starts with them. The arguments are those of `generator_step`, and
    `queue` has been opened.
    """
    s = settings
    key = jax.random.fold_in(key, state.step)
    microbatches = draw_rows(key, state.step, queue, s)
    networks = Networks(model, feature_function, frozen, queue.mesh)

    def features(piece: tuple[Rows, jax.Array]) -> dict[str, jax.Array]:
        rows, keys = piece
        fresh = {"fresh": networks.generate(state.params, rows, keys)}
        return networks.features(networks.maps(fresh))["fresh"]

    fresh_keys = draw_fresh_keys(key, s)
    if s.parts_of_rows > 1:
        rows, parts = first_microbatch(microbatches), s.parts_of_rows
        of_parts = parts_of_rows.in_parts(fresh_keys, parts)
        return parts_of_rows.whole(jax.lax.map(lambda keys: features((rows, keys)), of_parts))
    keys = in_microbatches(fresh_keys, s)
    return _of_all_rows(jax.lax.map(features, (microbatches, keys)))


def _sets(features: _ByGroup, rows: Rows, s: GeneratorStepConfig, moment: Moment) -> FeatureSets:
    weight = None
    if rows.unconditional is not None:
        weight = jnp.broadcast_to(rows.weight[:, None], rows.unconditional.shape[:2])
    return FeatureSets(
        features["generated"],
        features["positive"],
        features.get("unconditional"),
        weight,
        fresh=features.get("fresh", rows.stale),
        key=moment.key,
        progress=moment.progress,
        weights=s.feature_weights,
    )


def _loss_and_gradients(
    params: PyTree,
    microbatches: Rows,
    networks: Networks,
    s: GeneratorStepConfig,
    moment: Moment,
    previous: Mapping[str, DriftingStatistics] | None = None,
) -> tuple[tuple[tuple[jax.Array, dict[str, DriftingStatistics]], PyTree], PyTree]:
    """Returns ((loss, statistics), gradients) of a batch, in one piece or in microbatches.

    Beside them stand the features [c, g, t, d] of its generated samples, or None (`features` of
    `GeneratorMetrics`).
    """

    def of_piece(rows: Rows, real=None, statistics=None, function=loss_and_cotangents):
        """Of some rows, given the maps of their real samples and what they share with others."""

        def generated_features(params: PyTree) -> dict[str, jax.Array]:
            generated = {"generated": networks.generate(params, rows, rows.input_keys)}
            return networks.features(networks.maps(generated))["generated"]

        generated, pull_back = jax.vjp(generated_features, params)
        if real is None:
            real = networks.maps(networks.other_samples(params, rows))
        sets = _sets({"generated": generated} | networks.features(real), rows, s, moment)
        loss, cotangents, found = function(sets, s.drift, statistics)
        kept = generated if s.is_stale else None
        return ((loss, found), pull_back(cotangents)[0]), kept

    if s.parts_of_rows > 1:
        rows = first_microbatch(microbatches)
        return _in_parts_of_rows(params, rows, networks, s, moment, previous)
    if s.shared_statistics == "previous":
        by_previous = functools.partial(of_piece, statistics=previous, function=loss_by_previous)
        total, kept = class_rows.sum_and_stack(by_previous, microbatches)
        # The sums of distances need no division: only their ratios count.
        (loss, measured), gradients = jax.tree.map(lambda x: x / s.microbatches, total)
        statistics = {name: sums.statistics(means) for name, (sums, means) in measured.items()}
        return ((loss, statistics), gradients), _of_all_rows(kept)
    if s.microbatches == 1:
        return of_piece(first_microbatch(microbatches))
    if s.shared_statistics == "microbatch":
        total, kept = class_rows.sum_and_stack(of_piece, microbatches)
        return jax.tree.map(lambda x: x / s.microbatches, total), _of_all_rows(kept)
    statistics, real = _shared_statistics(params, microbatches, networks, s, moment)

    def of_microbatch(piece):
        rows, real = piece
        found, kept = of_piece(rows, real and transfer.on_devices(real), statistics)
        (loss, _), gradients = found
        return (loss, gradients), kept

    total, kept = class_rows.sum_and_stack(of_microbatch, (microbatches, real))
    loss, gradients = jax.tree.map(lambda x: x / s.microbatches, total)
    return ((loss, statistics), gradients), _of_all_rows(kept)


def _in_parts_of_rows(
    params: PyTree,
    rows: Rows,
    networks: Networks,
    s: GeneratorStepConfig,
    moment: Moment,
    previous: Mapping[str, DriftingStatistics] | None,
) -> tuple[tuple[tuple[jax.Array, dict[str, DriftingStatistics]], PyTree], PyTree]:
    """`_loss_and_gradients` of rows whose samples are encoded in parts."""

    def loss(features: _ByGroup):
        sets = _sets(features, rows, s, moment)
        if s.shared_statistics == "previous" and previous is not None:
            loss, cotangents, measured = loss_by_previous(sets, s.drift, previous)
            return loss, cotangents, {n: x.statistics(y) for n, (x, y) in measured.items()}
        return loss_and_cotangents(sets, s.drift)

    found, kept = parts_of_rows.loss_and_gradients(loss, params, rows, networks, s.parts_of_rows)
    return found, kept if s.is_stale else None


def _shared_statistics(
    params: PyTree,
    microbatches: Rows,
    networks: Networks,
    s: GeneratorStepConfig,
    moment: Moment,
) -> tuple[dict[str, DriftingStatistics], dict[str, PyTree] | None]:
    """Returns the statistics of a batch in microbatches, and the kept maps of its other samples.

    One pass encodes all samples and adds up distances; their maps are kept, in the dtype in which
    they were computed. A second pass over the maps alone gives the norms of the drifts.
    """

    places = {"yes": lambda x: x, "host": transfer.on_host, "no": lambda x: None}

    def encoded(rows: Rows):
        maps = networks.maps_of_all(params, rows)
        sets = _sets(networks.features(maps), rows, s, moment)
        sums = feature_losses.distance_sums(sets, s.drift)
        return places[s.keep_maps](maps), sums

    maps, sums = jax.lax.map(encoded, microbatches)
    sums = _of_all(jnp.sum, sums)
    scales = {name: x.distance_scale for name, x in sums.items()}

    def drifts(piece: tuple[Rows, dict[str, PyTree] | None]):
        rows, maps = piece
        maps = networks.maps_of_all(params, rows) if maps is None else transfer.on_devices(maps)
        sets = _sets(networks.features(maps), rows, s, moment)
        return feature_losses.drift_means(sets, scales, s.drift)

    means = _of_all(jnp.mean, jax.lax.map(drifts, (microbatches, maps)))
    statistics = {name: sums[name].statistics(means[name]) for name in sums}
    if maps is None:
        return statistics, None
    return statistics, {group: x for group, x in maps.items() if group != "generated"}


def _of_all_rows(of_microbatches: PyTree) -> PyTree:
    """[microbatches, rows of one, ...] -> [c, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_microbatches)


def _of_all(function: Callable, of_microbatches: PyTree) -> PyTree:
    return jax.tree.map(lambda x: function(x, axis=0), of_microbatches)
