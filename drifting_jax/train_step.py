"""The pure training steps of generator and encoder: shapes, keys and mathematics, no loop."""

import dataclasses
from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from drifting_jax import distributed, guidance, losses, sample_queue, sampling
from drifting_jax.encoders import FeatureFunction
from drifting_jax.fields import FieldOptions
from drifting_jax.losses import DriftingStatistics
from drifting_jax.models import layers
from drifting_jax.models.dit import DiT
from drifting_jax.models.resnet_mae import ResNetMAE, draw_mask, mae_loss
from drifting_jax.sample_queue import SampleQueue
from drifting_jax.state import TrainState, apply_gradients


@dataclasses.dataclass(frozen=True)
class GeneratorStep:
    """Sizes and settings of a generator's step (A.8, A.9).

    Attributes:
      labels: c; generated, positives, unconditional: g, p, u of each.
      temperatures, affinity_floor, options: of `losses.drifting_loss`.
      cfg_minimum, cfg_maximum, cfg_power, cfg_probability_of_one: the law of α.
      ema_decays: one moving average of the parameters for each.
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


@flax.struct.dataclass
class GeneratorMetrics:
    """What a generator's step tells: the loss says little, the statistics much.

    Attributes:
      step: [] int32, the number of this step, from 0.
      loss: [] sum over features, nearly constant by construction.
      gradient_norm: [] before the clip.
      cfg_scale: [] mean α of the rows.
      statistics: {feature: DriftingStatistics}.
    """

    step: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    cfg_scale: jax.Array
    statistics: dict[str, DriftingStatistics]


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pixels -> [-1, 1] float32; latents of any float type -> float32."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 127.5 - 1
    return images.astype(jnp.float32)


def draw_labels(key: jax.Array, count: int, num_classes: int) -> jax.Array:
    """[count] int32 class rows of a step: without replacement, or whole permutations in a row."""
    rounds = -(-count // num_classes)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_classes))(
        jax.random.split(key, rounds)
    )
    return permutations.reshape(-1)[:count].astype(jnp.int32)


def _merge(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """[c, n, ...] -> [c·n, ...], whichever of the two axes is split over devices going first."""
    x = jax.lax.with_sharding_constraint(x, sharding)
    if _samples_first(sharding):
        x = x.swapaxes(0, 1)
    return _keep_split(x.reshape(-1, *x.shape[2:]), sharding)


def _keep_split(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """[c·n, ...] of `_merge`, held to its split.

    Left to itself the compiler splits a convolution as its weights are split, over channels, and
    then each device works on all samples.
    """
    axes = [axis for axis in sharding.spec if axis is not None]
    if len(axes) != 1:  # rows and samples split apart: no axis of the merged array is
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, P(axes[0])))


def _split(x: jax.Array, sharding: NamedSharding, c: int, n: int) -> jax.Array:
    """The inverse of `_merge`."""
    if _samples_first(sharding):
        x = x.reshape(n, c, *x.shape[1:]).swapaxes(0, 1)
    else:
        x = x.reshape(c, n, *x.shape[1:])
    return jax.lax.with_sharding_constraint(x, sharding)


def _samples_first(sharding: NamedSharding) -> bool:
    rows, samples = (*sharding.spec, None, None)[:2]
    return rows is None and samples is not None


def _row_sharding(queue: SampleQueue, rows: int, per_row: int) -> NamedSharding:
    try:
        return distributed.row_sharding(queue.mesh, rows, per_row)
    except ValueError:  # real samples that do not divide are drawn replicated
        return distributed.replicated(queue.mesh)


def _features_of_rows(feature_function, params, images, sharding) -> dict[str, jax.Array]:
    c, n = images.shape[:2]
    found = feature_function(params, _merge(images, sharding))
    return {name: _split(x, sharding, c, n) for name, x in found.items()}


def generator_step(
    state: TrainState,
    queue: SampleQueue,
    frozen,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: DiT,
    feature_function: FeatureFunction,
    optimizer: optax.GradientTransformation,
    settings: GeneratorStep,
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
    label_key, cfg_key, positive_key, unconditional_key, input_key = jax.random.split(
        jax.random.fold_in(key, state.step), 5
    )
    labels = draw_labels(label_key, s.labels, queue.num_classes)  # [c]
    cfg_scale = guidance.sample_cfg_scale(
        cfg_key,
        (s.labels,),
        minimum=s.cfg_minimum,
        maximum=s.cfg_maximum,
        power=s.cfg_power,
        probability_of_one=s.cfg_probability_of_one,
    )
    weight = guidance.unconditional_weight(
        cfg_scale, generated_per_label=s.generated, unconditional_per_label=s.unconditional
    )
    c, g, p, u = s.labels, s.generated, s.positives, s.unconditional
    rows = distributed.row_sharding(queue.mesh, c, g)

    def real_features(images: jax.Array) -> dict[str, jax.Array]:
        sharding = _row_sharding(queue, *images.shape[:2])
        return _features_of_rows(feature_function, frozen, to_float(images), sharding)

    positive = real_features(sample_queue.draw(queue, positive_key, labels, p))
    negative = None
    if u:
        drawn = sample_queue.draw_unconditional(queue, unconditional_key, c, u)
        negative = real_features(drawn)

    input_keys = jax.random.split(input_key, (c, g))
    noise, styles = jax.vmap(jax.vmap(lambda k: sampling.draw_inputs(k, model)))(input_keys)

    def of_rows(per_row: jax.Array) -> jax.Array:
        return _merge(jnp.broadcast_to(per_row[:, None], (c, g)), rows)

    inputs = _merge(noise, rows), of_rows(labels), _merge(styles, rows), of_rows(cfg_scale)

    def loss_function(params):
        # Gathered for use: split weights would split the activations, over channels.
        params = jax.lax.with_sharding_constraint(params, distributed.replicated(queue.mesh))
        images = _keep_split(model.apply({"params": params}, *inputs), rows)
        found = feature_function(frozen, images)
        generated = {name: _split(x, rows, c, g) for name, x in found.items()}
        return losses.feature_drifting_loss(
            generated,
            positive,
            negative,
            negative_weight=jnp.broadcast_to(weight[:, None], (c, u)) if u else None,
            temperatures=s.temperatures,
            affinity_floor=s.affinity_floor,
            options=s.options,
        )

    (loss, statistics), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    norm = optax.tree.norm(gradients)
    metrics = GeneratorMetrics(state.step, loss, norm, jnp.mean(cfg_scale), statistics)
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=drift_culprit(statistics),
    )
    return state, queue, metrics


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


@dataclasses.dataclass(frozen=True)
class EncoderStep:
    """Settings of the masked autoencoder's step (A.3).

    Attributes:
      mask_ratio_min, mask_ratio_max: share of masked squares, drawn per image between the two.
      classifier_start: step at which the linear classifier joins; its weight λ rises linearly to
        `classifier_weight` over `classifier_warmup` steps.
      ema_decays: one moving average of the parameters for each.
      microbatches: parts of the batch whose gradients are added up one after another, for the
        memory's sake; numbers do not depend on it.
    """

    mask_ratio_min: float
    mask_ratio_max: float
    classifier_start: int
    classifier_warmup: int
    classifier_weight: float
    ema_decays: tuple[float, ...]
    microbatches: int = 1


def encoder_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: ResNetMAE,
    optimizer: optax.GradientTransformation,
    settings: EncoderStep,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of the masked autoencoder (A.3).

    Args:
      state: donated by the caller's jit.
      batch: {"image": [b, h, w, c] uint8 or latents, "label": [b] int32}.
      key: the run's root key of this stage; the step folds in its own number.

    Returns:
      The new state, and scalars `step`, `loss`, `reconstruction`, `classification`, `accuracy`,
      `classifier_weight` and `grad_norm`.
    """
    s = settings
    images, labels = to_float(batch["image"]), batch["label"]
    patches = layers.patchify(images, model.input_patch_size)
    mask = draw_mask(
        jax.random.fold_in(key, state.step),
        *patches.shape[:3],
        mask_patch_size=model.mask_patch_size,
        ratio_min=s.mask_ratio_min,
        ratio_max=s.mask_ratio_max,
    )
    progress = (state.step - s.classifier_start) / max(s.classifier_warmup, 1)
    weight = s.classifier_weight * jnp.clip(progress, 0.0, 1.0)

    def loss_function(params, part):
        images, patches, mask, labels = part
        output = model.apply({"params": params}, images, mask)
        loss = mae_loss(output, patches, mask, labels, classification_weight=weight)
        accuracy = jnp.mean(jnp.argmax(output.logits, -1) == labels)
        return jnp.mean(loss.total), (jax.tree.map(jnp.mean, loss), accuracy)

    (loss, (parts, accuracy)), gradients = _mean_over_parts(
        lambda part: jax.value_and_grad(loss_function, has_aux=True)(state.params, part),
        (images, patches, mask, labels),
        s.microbatches,
    )
    norm = optax.tree.norm(gradients)
    metrics = {
        "step": state.step,
        "loss": loss,
        "reconstruction": parts.reconstruction,
        "classification": parts.classification,
        "accuracy": accuracy,
        "classifier_weight": weight,
        "grad_norm": norm,
    }
    state = apply_gradients(
        state,
        gradients,
        optimizer,
        ema_decays=s.ema_decays,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
        culprit=jnp.where(jnp.isfinite(loss), 1, 0),
    )
    return state, metrics


def _mean_over_parts(function, batch, parts: int):
    """The mean of a function of a batch over equal parts of it, one after another.

    Part j holds the rows j, j + parts, …: so each device keeps the rows that it has.
    """
    if parts == 1:
        return function(batch)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = jax.lax.scan(add, zeros, split)
    return jax.tree.map(lambda x: x / parts, total)
