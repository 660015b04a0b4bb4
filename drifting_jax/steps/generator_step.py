"""The pure training step of the generator: shapes, keys and mathematics, no loop."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from drifting_jax.distributed import class_rows, meshes
from drifting_jax.method import feature_losses, guidance
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.method.feature_losses import FeatureSets
from drifting_jax.method.fields import FieldOptions
from drifting_jax.method.losses import DriftingStatistics
from drifting_jax.models import generators
from drifting_jax.steps import sample_queue
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.steps.state import TrainState, apply_gradients


@dataclasses.dataclass(frozen=True)
class GeneratorStepConfig:
    """Sizes and settings of a generator's step (A.8, A.9).

    Attributes:
      labels: c; generated, positives, unconditional: g, p, u of each.
      temperatures, affinity_floor, options: of `losses.drifting_loss`.
      cfg_minimum, cfg_maximum, cfg_power, cfg_probability_of_one: the law of α.
      ema_decays: one moving average of the parameters for each.
      microbatches: pieces of the class rows that are computed one after another, for the memory's
        sake, at about twice the work; numbers do not depend on it.
      shared_statistics: what S and the norms of the drift are over: "batch", exactly, or
        "microbatch", another method, in which each piece has its own, at no further work.
    """

    labels: int
    generated: int
    positives: int
    unconditional: int
    temperatures: tuple[float, ...]
    affinity_floor: float
    options: FieldOptions
    cfg_minimum: float
    cfg_maximum: float
    cfg_power: float
    cfg_probability_of_one: float
    ema_decays: tuple[float, ...]
    microbatches: int = 1
    shared_statistics: str = "batch"


@flax.struct.dataclass
class GeneratorMetrics:
    """What a generator's step tells: the loss says little, the statistics much.

    Attributes:
      updates: [] int32, updates before this step: those that were skipped do not count.
      loss: [] sum over features, nearly constant by construction.
      gradient_norm: [] before the clip.
      cfg_scale: [] mean α of the rows.
      statistics: {feature: DriftingStatistics}.
    """

    updates: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    cfg_scale: jax.Array
    statistics: dict[str, DriftingStatistics]


def draw_labels(key: jax.Array, count: int, num_classes: int) -> jax.Array:
    """[count] int32 class rows of a step: without replacement, or whole permutations in a row."""
    rounds = -(-count // num_classes)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_classes))(
        jax.random.split(key, rounds)
    )
    return permutations.reshape(-1)[:count].astype(jnp.int32)


@flax.struct.dataclass
class _Rows:
    """The class rows of a step, or of a piece of it; real samples are [c, n, h, w, channels].

    Attributes:
      number: [c] their places in the step, which their random numbers depend on.
      label, cfg_scale: [c]. weight: [c] of each unconditional negative.
      input_keys: [c, g] of noise and styles.
      positive, negative: real samples as the queue holds them; None for none.
    """

    number: jax.Array
    label: jax.Array
    cfg_scale: jax.Array
    weight: jax.Array
    input_keys: jax.Array
    positive: jax.Array | None = None
    negative: jax.Array | None = None


def generator_step(
    state: TrainState,
    queue: SampleQueue,
    frozen,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: nn.Module,
    feature_function: FeatureFunction,
    optimizer: optax.GradientTransformation,
    settings: GeneratorStepConfig,
) -> tuple[TrainState, SampleQueue, GeneratorMetrics]:
    """One step: push, draw, generate, drift in feature space, update (3.2-3.5, A.8).

    Args:
      state, queue: donated by the caller's jit.
      frozen: what `feature_function` takes first, an argument and never a constant.
      batch: new real samples {"image": [b, h, w, c], "label": [b]} for the queue.
      key: the run's root key; the step folds in its own number.

    Returns:
      The new state and queue, and `GeneratorMetrics`. A step whose loss or gradient is not finite
      changes neither parameters nor averages and is counted in the state.
    """
    s = settings
    queue = sample_queue.push(queue, batch["image"], batch["label"])
    rows = _draw_rows(jax.random.fold_in(key, state.step), queue, s)
    # Gathered for use: split weights would split the activations, over channels.
    gathered = meshes.replicated(queue.mesh)

    def sets_of(params, rows: _Rows, *, apart: bool) -> FeatureSets:
        return _feature_sets(
            jax.lax.with_sharding_constraint(params, gathered),
            frozen,
            rows,
            queue.mesh,
            apart=apart,
            model=model,
            feature_function=feature_function,
        )

    drift = {
        "temperatures": s.temperatures,
        "affinity_floor": s.affinity_floor,
        "options": s.options,
    }
    (loss, statistics), gradients = _loss_and_gradients(state.params, rows, sets_of, s, drift)
    norm = optax.tree.norm(gradients)
    updates = state.step - state.skipped
    metrics = GeneratorMetrics(updates, loss, norm, jnp.mean(rows.cfg_scale), statistics)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit(statistics),
    )
    return state, queue, metrics


def _draw_rows(key: jax.Array, queue: SampleQueue, s: GeneratorStepConfig) -> _Rows:
    """All class rows of a step, as pieces [microbatches, c / microbatches, ...]."""
    label_key, cfg_key, positive_key, unconditional_key, input_key = jax.random.split(key, 5)
    cfg_scale = guidance.sample_cfg_scale(
        cfg_key,
        (s.labels,),
        minimum=s.cfg_minimum,
        maximum=s.cfg_maximum,
        power=s.cfg_power,
        probability_of_one=s.cfg_probability_of_one,
    )
    rows = _Rows(
        number=jnp.arange(s.labels),
        label=draw_labels(label_key, s.labels, queue.num_classes),
        cfg_scale=cfg_scale,
        weight=guidance.unconditional_weight(
            cfg_scale, generated_per_label=s.generated, unconditional_per_label=s.unconditional
        ),
        input_keys=jax.random.split(input_key, (s.labels, s.generated)),
    )
    pieces = jax.tree.map(lambda x: x.reshape(s.microbatches, -1, *x.shape[1:]), rows)

    def with_real(rows: _Rows) -> _Rows:
        return rows.replace(
            positive=sample_queue.draw(
                queue, positive_key, rows.label, s.positives, rows=rows.number
            ),
            negative=sample_queue.draw_unconditional(
                queue, unconditional_key, rows.number, s.unconditional
            )
            if s.unconditional
            else None,
        )

    if s.microbatches == 1:
        return jax.tree.map(lambda x: x[None], with_real(jax.tree.map(lambda x: x[0], pieces)))
    return jax.lax.map(with_real, pieces)


def _feature_sets(
    params,
    frozen,
    rows: _Rows,
    mesh: Mesh,
    *,
    apart: bool,
    model: nn.Module,
    feature_function: FeatureFunction,
) -> FeatureSets:
    """Generates the samples of some rows; features of them and of the real ones (3.4).

    The generated samples go through the encoders `apart` from the real ones where gradients shall
    flow back through them alone, else together: one program instead of two.
    """
    (c, g), p = rows.input_keys.shape, rows.positive.shape[1]
    sharding = meshes.row_sharding(mesh, c, g)

    def of_rows(per_row: jax.Array) -> jax.Array:
        return class_rows.merge(jnp.broadcast_to(per_row[:, None], (c, g)), sharding)

    draw = jax.vmap(jax.vmap(lambda key: generators.draw_inputs(key, model)))
    noise, styles = (class_rows.merge(x, sharding) for x in draw(rows.input_keys))
    images = model.apply(
        {"params": params}, noise, of_rows(rows.label), styles, of_rows(rows.cfg_scale)
    )
    generated = class_rows.split(class_rows.keep_split(images, sharding), sharding, c, g)
    real = [class_rows.to_float(x) for x in (rows.positive, rows.negative) if x is not None]

    def features_of(*samples: jax.Array) -> dict[str, jax.Array]:
        where = class_rows.real_sharding(mesh, c, sum(x.shape[1] for x in samples))
        joined = jnp.concatenate(samples, axis=1)
        return class_rows.features_of_rows(feature_function, frozen, joined, where)

    if apart:
        of_generated, of_real = features_of(generated), features_of(*real)
    else:
        of_generated, of_real = _cut(features_of(generated, *real), g)
    positive, negative = _cut(of_real, p)
    has_negative = rows.negative is not None
    weight = None
    if has_negative:
        weight = jnp.broadcast_to(rows.weight[:, None], rows.negative.shape[:2])
    return FeatureSets(
        generated=of_generated,
        positive=positive,
        negative=negative if has_negative else None,
        negative_weight=weight,
    )


def _cut(features: dict[str, jax.Array], count: int) -> tuple[dict[str, jax.Array], ...]:
    """Features of the first `count` samples of each row, and of the others."""
    return (
        {name: x[:, :count] for name, x in features.items()},
        {name: x[:, count:] for name, x in features.items()},
    )


def _loss_and_gradients(
    params, pieces: _Rows, sets_of: Callable, s: GeneratorStepConfig, drift: dict
):
    """((loss, statistics), gradients) of a batch in pieces, whole or one after another."""

    def loss_of(params, rows: _Rows):
        sets = sets_of(params, rows, apart=True)
        return feature_losses.feature_drifting_loss(
            sets.generated,
            sets.positive,
            sets.negative,
            negative_weight=sets.negative_weight,
            **drift,
        )

    def with_gradients(rows: _Rows):
        return jax.value_and_grad(loss_of, has_aux=True)(params, rows)

    if s.microbatches == 1:
        return with_gradients(jax.tree.map(lambda x: x[0], pieces))
    if s.shared_statistics == "microbatch":
        total = class_rows.sum_over_pieces(with_gradients, pieces)
        return jax.tree.map(lambda x: x / s.microbatches, total)

    def sums_of(rows: _Rows):
        return feature_losses.distance_sums(sets_of(params, rows, apart=False))

    sums = class_rows.sum_over_pieces(sums_of, pieces)
    scales = {name: x.distance_scale for name, x in sums.items()}

    def drifts_of(rows: _Rows):
        return feature_losses.drift_sums(sets_of(params, rows, apart=False), scales, **drift)

    drifts, entries = (
        class_rows.sum_over_pieces(drifts_of, pieces),
        _entries(sets_of, params, pieces),
    )
    statistics = {
        name: sums[name].statistics(drifts[name] / (s.microbatches * entries[name]))
        for name in sums
    }

    def shared(params, rows: _Rows):
        return feature_losses.shared_loss(sets_of(params, rows, apart=True), statistics, **drift)

    total = class_rows.sum_over_pieces(
        lambda rows: jax.value_and_grad(shared)(params, rows), pieces
    )
    loss, gradients = jax.tree.map(lambda x: x / s.microbatches, total)
    return (loss, statistics), gradients


def _entries(sets_of: Callable, params, pieces: _Rows) -> dict[str, float]:
    """Entries of each feature of the generated samples of a piece; beyond 2³¹ at full size."""
    one = functools.partial(sets_of, apart=True)
    shapes = jax.eval_shape(one, params, jax.tree.map(lambda x: x[0], pieces)).generated
    return {name: float(math.prod(x.shape)) for name, x in shapes.items()}


def drift_culprit(statistics: Mapping[str, DriftingStatistics]) -> jax.Array:
    """[] int32 number of the first drift that is not finite, or one past the last if all are."""
    drifts = jnp.stack([statistics[name].drift_mean_square for name in sorted(statistics)])
    bad = ~jnp.isfinite(drifts).reshape(-1)
    return jnp.where(jnp.any(bad), jnp.argmax(bad), bad.size).astype(jnp.int32)


def culprit_name(culprit: int, names: Sequence[str], temperatures: Sequence[float]) -> str:
    """Words for `drift_culprit`: the feature and temperature, or the gradient."""
    feature, temperature = divmod(culprit, len(temperatures))
    if feature >= len(names):
        return "the gradient (every drift was finite)"
    return f"feature {sorted(names)[feature]} at temperature {temperatures[temperature]:g}"
