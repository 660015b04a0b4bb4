"""From a config to the objects that it describes."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

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
from drifting_jax.steps.encoder_step import EncoderStepConfig
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.nearest import Nearness
from drifting_jax.steps.optim import learning_rate_schedule, make_optimizer
from drifting_jax.steps.toy_step import ToyStepConfig
from drifting_jax.training import pixel_encoders
from drifting_jax.training.memory_plan import MemoryPlan
from drifting_jax.weights.pixel_encoders import ENCODERS
from drifting_jax.workdir.trackers import TRACKERS

PIXELS = "pixels"  # under which the variables of all encoders of pixels stand


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
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
    vae: VAE | None = None,
    autoencoder: bool = True,
) -> FeatureFunction:
    """Returns the function that makes all features of config.features (3.4, A.4, A.5).

    Args:
      config: of the run.
      spec: of its samples, images or latents.
      extras: {name: network of an encoder of pixels}, as `frozen` prepares them.
      vae: decodes latents for them.
      autoencoder: whether there is one, unless config.encoder.kind says that there is none.

    Returns:
      (variables, images [b, h, w, c]) -> {name: [b, t, d]}. The variables are {"": those of the
      autoencoder, "pixels": {name: those of an encoder}}; behind a VAE, the latter are {"vae": …,
      "encoder": {name: …}}.
    """
    f = config.features
    functions: dict[str, FeatureFunction] = {}
    if config.encoder.kind == "none":
        functions |= {"": encoders.sample_rms()} if f.input_rms else {}
    elif autoencoder:
        of_autoencoder = encoders.autoencoder_features(
            make_encoder(config, spec),
            patch_sizes=tuple(f.patch_sizes),
            partial_patches=f.partial_patches,
            input_rms=f.input_rms,
        )
        joins = f.joint_scale
        functions[""] = encoders.with_joint_scale(of_autoencoder) if joins else of_autoencoder
    if extras:
        of_pixels = encoders.compose(pixel_encoders.feature_functions(config, extras))
        functions[PIXELS] = encoders.through_decoder(vae, of_pixels) if vae else of_pixels
    of_encoders = encoders.compose(functions, prefixed=False)
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
        for kind in config.pixel_encoders.kinds:
            _check_choice("pixel_encoders.kinds", kind, ENCODERS)


def check_models(config: ConfigDict, spec: DataSpec) -> None:
    """Checks the kinds of networks and the field, and that trained networks fit the samples.

    Raises:
      UserError: names the field, or the section: config.model or config.encoder.
    """
    check_choices(config)
    _check_rows(config, spec)
    _check_condition(config)
    model, encoder = make_generator(config, spec), make_encoder(config, spec)
    image = jnp.zeros((1, *spec.image_shape))
    key = stream_key(config, "generator_init")

    def init_generator() -> None:
        generators.init_generator(key, model)

    def init_encoder() -> None:
        grid = layers.patchify(image, encoder.input_patch_size).shape[:3]
        mask = draw_mask(key, *grid, mask_patch_size=encoder.mask_patch_size)
        init_params(encoder, key, image, mask)

    inits = {"model": init_generator, "encoder": init_encoder}
    if config.encoder.kind == "none":
        del inits["encoder"]
    for section, init in inits.items():
        try:
            jax.eval_shape(init)
        except ValueError as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"config.{section} does not fit the data: {reason}") from None


def _check_condition(config: ConfigDict) -> None:
    """Raises UserError if the rows of a step have an α that the generator is not told."""
    m, largest = config.model, config.guidance.maximum
    if m.kind == "unet" and not m.unet.condition_width and largest > 1:
        raise UserError(
            "config.model.unet.condition_width=0 makes a generator that knows no guidance scale: "
            f"set config.guidance.maximum to 1, or a width; found a maximum of {largest:g}"
        )


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


def generator_step_config(
    config: ConfigDict, plan: MemoryPlan, features: Iterable[str]
) -> GeneratorStepConfig:
    """Returns the sizes and settings of a generator's step, whose loss has these features."""
    weights = pixel_encoders.feature_weights(config, features)
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
        microbatches=plan.microbatches if plan.parts_of_rows == 1 else 1,
        parts_of_rows=plan.parts_of_rows,
        keep_maps=plan.keep_maps,
        shared_statistics=t.shared_statistics,
        nearest=t.nearest_positives,
        nearest_share=t.nearest_share,
        ema_widths=tuple(t.ema_widths),
        feature_weights=tuple((name, x) for name, x in weights.items() if x != 1),
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
        end=o.end_learning_rate,
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
