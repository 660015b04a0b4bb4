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
from drifting_jax.data.sources import DataSpec
from drifting_jax.distributed import meshes
from drifting_jax.errors import UserError
from drifting_jax.method import encoders
from drifting_jax.method.encoders import FeatureFunction
from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import FIELDS, check_options, negatives_of
from drifting_jax.models import generators, layers
from drifting_jax.models.calls import init_params
from drifting_jax.models.resnet_mae import ResNetMAE, draw_mask
from drifting_jax.models.vae import VAE
from drifting_jax.steps import sample_queue
from drifting_jax.steps.encoder_step import EncoderStepConfig
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.nearest import Nearness
from drifting_jax.steps.optim import learning_rate_schedule, make_optimizer
from drifting_jax.steps.sample_queue import SampleQueue
from drifting_jax.steps.toy_step import ToyStepConfig
from drifting_jax.training.memory_plan import MemoryPlan
from drifting_jax.weights.networks import ENCODERS
from drifting_jax.workdir.trackers import TRACKERS


def make_mesh(config: ConfigDict, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of config.mesh, of the devices at hand or of others to compile for.

    Raises:
      UserError: it does not fit the devices.
    """
    try:
        return meshes.make_mesh(config.mesh.data, config.mesh.fsdp, devices=devices)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None


def make_generator(config: ConfigDict, spec: DataSpec) -> nn.Module:
    """Returns the generator of config.model for samples of this shape and number of classes.

    Raises:
      UserError: it cannot make images of this shape.
    """
    kind = config.model.kind
    try:
        height, width, channels = spec.image_shape
        return generators.make_generator(
            config.model,
            kind=kind,
            image_shape=(height, width, channels),
            num_classes=spec.num_classes,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_choice(name: str, found: str, choices: Iterable[str]) -> None:
    """Checks a field whose choices stand in a table that the config does not know."""
    if found not in choices:
        raise UserError(f"config.{name} must be one of {listed(tuple(choices))}; found {found!r}")


def make_encoder(config: ConfigDict, spec: DataSpec) -> ResNetMAE:
    """Returns the masked autoencoder of config.encoder for these channels and classes."""
    e = config.encoder
    return ResNetMAE(
        in_channels=spec.image_shape[-1],
        width=e.width,
        blocks=tuple(e.blocks),
        groups=e.groups,
        input_patch_size=e.input_patch_size,
        mask_patch_size=e.mask_patch_size,
        every_k_block=e.every_k_block,
        num_classes=spec.num_classes,
        dtype=jnp.dtype(e.dtype),
        remat="none" if e.remat == "auto" else e.remat,
    )


def make_feature_function(
    config: ConfigDict,
    spec: DataSpec,
    *,
    extra: nn.Module | None = None,
    vae: VAE | None = None,
    autoencoder: bool = True,
) -> FeatureFunction:
    """Returns the function that makes all features of config.features (3.4, A.4, A.5).

    Args:
      config: of the run.
      spec: of its samples, images or latents.
      extra: the network of config.extra_encoder, which sees pixels; None without one.
      vae: decodes latents for it.
      autoencoder: whether there is one.

    Returns:
      (variables, images [b, h, w, c]) -> {name: [b, t, d]}. The variables are {"": those of the
      autoencoder, kind: those of `extra`}; behind a VAE, the latter are {"vae": …, "encoder": …}.
    """
    f, kind = config.features, config.extra_encoder.kind
    patch_sizes = tuple(f.patch_sizes)
    functions = {}
    if autoencoder:
        functions[""] = encoders.autoencoder_features(
            make_encoder(config, spec),
            patch_sizes=patch_sizes,
            partial_patches=f.partial_patches,
            input_rms=f.input_rms,
        )
    if extra is not None:
        of_images = ENCODERS[kind].features(extra, patch_sizes, f.partial_patches)
        functions[kind] = encoders.through_decoder(vae, of_images) if vae else of_images
    of_encoders = encoders.compose(functions)
    return encoders.with_raw(of_encoders) if f.raw else of_encoders


def make_nearness(config: ConfigDict, spec: DataSpec) -> Nearness | None:
    """Returns the feature by which nearest positives are found; None for a run without them.

    It takes the variables of `make_feature_function`, and is that of the autoencoder alone.
    """
    if not config.train.nearest_positives:
        return None
    encoder = make_encoder(config, spec)
    return lambda variables, images: encoders.last_stage_means(encoder, variables[""], images)


def check_choices(config: ConfigDict) -> None:
    """Checks the fields whose choices stand in tables that the config does not know.

    Raises:
      UserError: naming the field and the choices.
    """
    _check_choice("tracker", config.tracker, ("none", *TRACKERS))
    _check_choice("drift.field", config.drift.field, FIELDS)
    _check_drift(config)
    if "encoder" in config:
        _check_choice("model.kind", config.model.kind, generators.GENERATORS)
        _check_choice("extra_encoder.kind", config.extra_encoder.kind, ("none", *ENCODERS))


def check_models(config: ConfigDict, spec: DataSpec) -> None:
    """Checks the kinds of networks and the field, and that trained networks fit the samples.

    Raises:
      UserError: names the field, or the section: config.model or config.encoder.
    """
    check_choices(config)
    _check_rows(config, spec)
    model, encoder = make_generator(config, spec), make_encoder(config, spec)
    image = jnp.zeros((1, *spec.image_shape))
    key = stream_key(config, "generator_init")

    def init_generator() -> None:
        generators.init_generator(key, model)

    def init_encoder() -> None:
        grid = layers.patchify(image, encoder.input_patch_size).shape[:3]
        mask = draw_mask(key, *grid, mask_patch_size=encoder.mask_patch_size)
        init_params(encoder, key, image, mask)

    for section, init in (("model", init_generator), ("encoder", init_encoder)):
        try:
            jax.eval_shape(init)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"config.{section} does not fit the data: {reason}") from None


def _check_rows(config: ConfigDict, spec: DataSpec) -> None:
    """Raises UserError if the rows of a step cannot have the classes of those before."""
    rows, classes = config.train.labels_per_step, spec.num_classes
    if config.drift.negatives == "stale" and rows % classes:
        raise UserError(
            "config.train.labels_per_step must be a multiple of the number of classes for the "
            "samples of the step before as negatives (config.drift.negatives=stale); found "
            f"{rows} rows and {classes} classes"
        )


def drift_options(config: ConfigDict) -> DriftOptions:
    """Returns the options of config.drift."""
    return DriftOptions(**config.drift.to_dict())


def _check_drift(config: ConfigDict) -> None:
    """Raises UserError if options of config.drift do not go together."""
    try:
        options = drift_options(config)
        check_options(options)
    except ValueError as error:
        raise UserError(f"config.drift: {error}") from None
    if options.negatives == "stale" and "queue" not in config:
        raise UserError(
            f"config.drift.negatives must not be 'stale' for a {config.task}, which keeps no "
            "samples from step to step; use 'fresh'"
        )
    generated = config.train.get("generated", config.train.get("generated_per_label"))
    if negatives_of(options) == "two_fold" and generated % 2:
        name = "generated" if "generated" in config.train else "generated_per_label"
        raise UserError(
            f"config.train.{name} must be even for negatives of the other half of the samples "
            f"(config.drift.negatives=two_fold); found {generated}"
        )


def generator_step_config(config: ConfigDict, plan: MemoryPlan) -> GeneratorStepConfig:
    """Returns the sizes and settings of a generator's step."""
    t, g = config.train, config.guidance
    return GeneratorStepConfig(
        labels=t.labels_per_step,
        generated=t.generated_per_label,
        positives=t.positives_per_label,
        unconditional=t.unconditional_per_label,
        drift=drift_options(config),
        num_steps=t.num_steps,
        cfg_minimum=g.minimum,
        cfg_maximum=g.maximum,
        cfg_power=g.power,
        cfg_probability_of_one=g.probability_of_one,
        ema_decays=tuple(t.ema_decays),
        microbatches=plan.microbatches,
        keep_maps=plan.keep_maps,
        shared_statistics=t.shared_statistics,
        nearest=t.nearest_positives,
        nearest_share=t.nearest_share,
        ema_widths=tuple(t.ema_widths),
    )


def encoder_step_config(config: ConfigDict) -> EncoderStepConfig:
    """Returns the settings of the masked autoencoder's step."""
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


def toy_step_config(config: ConfigDict) -> ToyStepConfig:
    """Returns the sizes and settings of a toy's step."""
    return ToyStepConfig(
        generated=config.train.generated,
        noise_features=config.model.noise_features,
        drift=drift_options(config),
        num_steps=config.train.num_steps,
        ema_decays=tuple(config.train.ema_decays),
    )


def generator_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate of a generator or toy by its updates."""
    o = config.optim
    return learning_rate_schedule(
        o.learning_rate,
        warmup_steps=o.warmup_steps,
        num_steps=config.train.num_steps,
        schedule=o.schedule,
    )


def generator_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of a generator or toy."""
    o = config.optim
    return make_optimizer(
        generator_schedule(config),
        b1=o.b1,
        b2=o.b2,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        first_moment_dtype=o.first_moment_dtype,
    )


def encoder_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate of the encoder by its updates."""
    t = config.encoder.train
    return learning_rate_schedule(
        t.learning_rate,
        warmup_steps=t.warmup_steps,
        num_steps=t.num_steps,
        schedule=t.schedule,
    )


def encoder_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of the encoder."""
    t = config.encoder.train
    return make_optimizer(
        encoder_schedule(config),
        b1=t.b1,
        b2=t.b2,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm,
    )


def make_queue(
    config: ConfigDict, spec: DataSpec, mesh: Mesh, *, make=sample_queue.init
) -> SampleQueue:
    """Returns the empty queue of a run, or its shapes with make=`sample_queue.template`."""
    last_stage = config.encoder.width * 2 ** (len(config.encoder.blocks) - 1)  # its channels
    return make(
        spec.num_classes,
        per_class=config.queue.per_class,
        unconditional=config.queue.unconditional,
        shape=spec.image_shape,
        dtype=jnp.float16 if config.data.latent else jnp.uint8,
        mesh=mesh,
        features=last_stage if config.train.nearest_positives else 0,
    )
