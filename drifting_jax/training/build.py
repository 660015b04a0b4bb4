"""From a config to the objects that it describes."""

from collections.abc import Iterable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.config.checks import listed
from drifting_jax.config.streams import stream_key
from drifting_jax.data.sources import Source
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.method import encoders, features
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.method.fields import FieldOptions
from drifting_jax.models import generators, layers
from drifting_jax.models.resnet_mae import ResNetMAE, draw_mask
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sample_queue
from drifting_jax.steps.encoder_step import EncoderStepConfig
from drifting_jax.steps.generator_step import GeneratorStepConfig
from drifting_jax.steps.optim import learning_rate_schedule, make_optimizer
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.weights.networks import ENCODERS

_SAMPLES_AT_ONCE = 64  # generated, on a device, where config.train.microbatches is left open


def make_mesh(config: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of config.mesh, of the devices at hand or of others to compile for.

    Raises:
      UserError: it does not fit the devices.
    """
    try:
        return meshes.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None


def make_generator(config: ConfigDict, source: Source) -> nn.Module:
    """The generator of config.model for a source's image shape and classes.

    Raises:
      UserError: there is no such kind, or it cannot make images of this shape.
    """
    kind = config.model.get("kind", generators.DEFAULT_KIND)
    _check_choice("model.kind", kind, generators.GENERATORS)
    try:
        return generators.make_generator(
            config.model,
            kind=kind,
            image_shape=source.image_shape,
            num_classes=source.num_classes,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_choice(name: str, found: str, choices: Iterable[str]) -> None:
    """Checks a field whose choices are a table that the config does not know."""
    if found not in choices:
        raise UserError(f"config.{name} must be one of {listed(tuple(choices))}; found {found!r}")


def make_encoder(config: ConfigDict, source: Source) -> ResNetMAE:
    """The masked autoencoder for a source's channels and classes."""
    e = config.encoder
    return ResNetMAE(
        in_channels=source.image_shape[-1],
        width=e.width,
        blocks=tuple(e.blocks),
        groups=e.groups,
        input_patch_size=e.input_patch_size,
        mask_patch_size=e.mask_patch_size,
        every_k_block=e.every_k_block,
        num_classes=source.num_classes,
        dtype=jnp.dtype(e.dtype),
        remat=e.remat,
    )


def make_feature_function(
    config: ConfigDict, source: Source, *, extra: nn.Module | None = None, vae: VAE | None = None
) -> FeatureFunction:
    """The features of config.features and of every frozen network (3.4, A.4, A.5).

    Args:
      config: of the run.
      source: of its samples, images or latents.
      extra: the network of config.extra_encoder, on pixels.
      vae: decodes latents for it.

    Returns:
      (variables, samples [b, h, w, c]) -> {name: [b, t, d]} with the variables {"": those of the
      autoencoder, kind: those of `extra`, behind a VAE {"vae": …, "encoder": …}}.
    """
    f, kind = config.features, config.extra_encoder.kind
    patch_sizes = tuple(f.patch_sizes)
    functions = {
        "": encoders.autoencoder_features(
            make_encoder(config, source), patch_sizes=patch_sizes, input_rms=f.input_rms
        )
    }
    if extra is not None:
        of_images = ENCODERS[kind].features(extra, patch_sizes)
        functions[kind] = encoders.through_decoder(vae, of_images) if vae else of_images
    of_encoders = encoders.compose(functions)

    def feature_function(variables, samples: jax.Array) -> dict[str, jax.Array]:
        found = of_encoders(variables, samples)
        return found | (features.raw_features(samples) if f.raw else {})

    return feature_function


def check_models(config: ConfigDict, source: Source) -> None:
    """Checks the kinds of networks, and that those which are trained fit the images.

    Raises:
      UserError: naming the field, or the section, config.model or config.encoder.
    """
    _check_choice("extra_encoder.kind", config.extra_encoder.kind, ("none", *ENCODERS))
    model, encoder = make_generator(config, source), make_encoder(config, source)
    image = jnp.zeros((1, *source.image_shape))
    key = stream_key(config, "generator_init")

    def init_generator() -> None:
        generators.init_generator(key, model)

    def init_encoder() -> None:
        grid = layers.patchify(image, encoder.input_patch_size).shape[:3]
        mask = draw_mask(key, *grid, mask_patch_size=encoder.mask_patch_size)
        encoder.init(key, image, mask)

    for section, init in (("model", init_generator), ("encoder", init_encoder)):
        try:
            jax.eval_shape(init)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"config.{section} does not fit the data: {reason}") from None


def field_options(config: ConfigDict) -> FieldOptions:
    d = config.drift
    return FieldOptions(
        kernel=d.kernel,
        normalize=d.normalize,
        combine=d.combine,
        attraction=d.attraction,
        repulsion=d.repulsion,
    )


def make_generator_step(config: ConfigDict, mesh: Mesh) -> GeneratorStepConfig:
    """Sizes and settings of a generator's step on a mesh.

    Raises:
      UserError: the rows of a step do not split over the mesh.
    """
    t, g = config.train, config.guidance
    return GeneratorStepConfig(
        labels=t.labels_per_step,
        generated=t.generated_per_label,
        positives=t.positives_per_label,
        unconditional=t.unconditional_per_label,
        temperatures=tuple(config.drift.temperatures),
        affinity_floor=config.drift.affinity_floor,
        options=field_options(config),
        cfg_minimum=g.minimum,
        cfg_maximum=g.maximum,
        cfg_power=g.power,
        cfg_probability_of_one=g.probability_of_one,
        ema_decays=tuple(t.ema_decays),
        microbatches=microbatches(config, mesh),
        shared_statistics=t.shared_statistics,
    )


def microbatches(config: ConfigDict, mesh: Mesh) -> int:
    """Pieces of a generator's step: config.train.microbatches, or as many as a device needs.

    Raises:
      UserError: the rows of a step do not split over the pieces or the mesh.
    """
    t = config.train
    rows, wanted = t.labels_per_step, t.microbatches
    if wanted:
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
    fitting = []
    for pieces in (n for n in range(1, rows + 1) if rows % n == 0):
        try:
            meshes.row_sharding(mesh, rows // pieces, t.generated_per_label)
        except ValueError as error:
            refused = error
        else:
            fitting.append(pieces)
    if not fitting:
        raise UserError(f"config.train does not fit the devices: {refused}")
    most = rows * t.generated_per_label / mesh.size / _SAMPLES_AT_ONCE
    return next((pieces for pieces in fitting if pieces >= most), fitting[-1])


def make_encoder_step(config: ConfigDict) -> EncoderStepConfig:
    t = config.encoder.train
    return EncoderStepConfig(
        mask_ratio_min=t.mask_ratio_min,
        mask_ratio_max=t.mask_ratio_max,
        classifier_start=t.num_steps - t.classifier_steps,
        classifier_warmup=t.classifier_steps // 3,
        classifier_weight=t.classifier_weight,
        ema_decays=(t.ema_decay,),
        microbatches=t.microbatches,
    )


def generator_schedule(config: ConfigDict) -> optax.Schedule:
    o = config.optim
    return learning_rate_schedule(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        num_steps=config.train.num_steps,
        schedule=o.schedule,
    )


def generator_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    o = config.optim
    return make_optimizer(
        generator_schedule(config),
        b1=o.b1,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
    )


def encoder_schedule(config: ConfigDict) -> optax.Schedule:
    t = config.encoder.train
    return learning_rate_schedule(
        t.learning_rate,
        warmup_steps=t.warmup_steps,
        num_steps=t.num_steps,
        schedule=t.schedule,
    )


def encoder_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    t = config.encoder.train
    return make_optimizer(
        encoder_schedule(config),
        b1=t.b1,
        b2=t.b2,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm,
    )


def make_queue(
    config: ConfigDict, source: Source, mesh: Mesh, *, make=sample_queue.init
) -> SampleQueue:
    """The empty queue of a run, or with `sample_queue.template` its shapes."""
    return make(
        source.num_classes,
        per_class=config.queue.per_class,
        unconditional=config.queue.unconditional,
        shape=source.image_shape,
        dtype=jnp.float16 if config.data.latent else jnp.uint8,
        mesh=mesh,
    )
