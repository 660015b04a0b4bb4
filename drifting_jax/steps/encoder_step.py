"""The training step of the masked autoencoder (A.3): a pure function, no loop."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from drifting_jax.distributed.class_rows import mean_over_microbatches, to_float
from drifting_jax.models import layers
from drifting_jax.models.calls import apply
from drifting_jax.models.resnet_mae import Reconstruction, ResNetMAE, draw_mask, mae_loss
from drifting_jax.steps.state import TrainState, apply_gradients


@dataclasses.dataclass(frozen=True)
class EncoderStepConfig:
    """Settings of the masked autoencoder's step (A.3).

    Attributes:
      mask_ratio_min, mask_ratio_max: each image draws its share of masked squares between these.
      classifier_start: step at which the linear classifier joins. Its weight λ rises linearly to
        `classifier_weight` over `classifier_warmup` steps.
      ema_decays: one moving average of the parameters for each.
      microbatches: parts of the batch whose gradients are added up one after another, which takes
        less memory. The numbers do not depend on it.
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
    settings: EncoderStepConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Masks images, reconstructs and classifies them, and updates.

    Args:
      state: donated by the caller's jit.
      batch: {"image": [b, h, w, c] uint8 or latents, "label": [b] int32}.
      key: the root key of this stage; the step folds in its own number.
      model: the masked autoencoder.
      optimizer: of the parameters.
      settings: see `EncoderStepConfig`.

    Returns:
      The new state, and the scalars `updates` (before this step), `loss`, `reconstruction`,
      `classification`, `accuracy`, `classifier_weight` and `grad_norm`.
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
        output: Reconstruction = apply(model, params, images, mask)
        loss = mae_loss(output, patches, mask, labels, classification_weight=weight)
        accuracy = jnp.mean(jnp.argmax(output.logits, -1) == labels)
        return jnp.mean(loss.total), (jax.tree.map(jnp.mean, loss), accuracy)

    (loss, (parts, accuracy)), gradients = mean_over_microbatches(
        lambda part: jax.value_and_grad(loss_function, has_aux=True)(state.params, part),
        (images, patches, mask, labels),
        s.microbatches,
    )
    norm = optax.tree.norm(gradients)
    metrics = {
        "updates": state.step - state.skipped,
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
