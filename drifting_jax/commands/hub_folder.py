"""Folders for the Hugging Face Hub: the weights, what they are, and a model card."""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting_jax.config import ConfigDict
from drifting_jax.data.class_names import title
from drifting_jax.distributed import transfer
from drifting_jax.evaluation import small_runs
from drifting_jax.evaluation.metrics.catalogue import METRICS
from drifting_jax.files import new_folder, read_json, shown, write_bytes
from drifting_jax.steps.generator import Generator
from drifting_jax.steps.sampling import class_major
from drifting_jax.weights import model_card
from drifting_jax.weights.networks import Network, save_network
from drifting_jax.workdir.image_files import image_grid, save_png

_EVALUATION = "evaluation.json"
_PICTURE_CLASSES, _PICTURE_COLUMNS = 10, 8
_NAMES_SHOWN = 40
# Fields of the config that the card lists, where the task has them.
_RECIPE = (
    "model.kind", "model.patch_size", "model.width", "model.depth", "model.num_heads",
    "model.unet.multipliers", "model.unet.blocks_per_level", "model.unet.attention_sides",
    "model.unet.dropout", "model.init_from", "drift.field", "drift.combine", "drift.temperatures",
    "guidance.minimum", "guidance.maximum", "guidance.power", "train.num_steps",
    "train.labels_per_step", "train.generated_per_label", "train.positives_per_label",
    "train.unconditional_per_label", "optim.learning_rate", "optim.schedule", "optim.weight_decay",
    "encoder.width", "encoder.blocks", "encoder.train.num_steps", "encoder.kind",
    "extra_encoder.kind", "pixel_encoders.kinds", "seed",
)  # fmt: skip
# Fields of the recipe that one kind of generator alone reads.
_OF_KIND = {"model.depth": "dit"} | {x: "unet" for x in _RECIPE if x.startswith("model.unet.")}


def write_hub_folder(
    out: Path, generator: Generator, *, workdir: Path | None, license_name: str
) -> None:
    """Writes a folder that `upload_folder` of huggingface_hub takes as it is.

    It holds model.safetensors, config.json (the network, class names), README.md (the model card),
    samples.png, and evaluation.json if the run has measured these weights.

    Args:
      out: the folder, which is made.
      generator: of a run or of weights.
      workdir: of the run; None for weights without one.
      license_name: for the card, such as "apache-2.0"; "" if it is not stated.

    Raises:
      UserError: the licence is no name, or as `Generator.sample`.
    """
    model_card.check_license(license_name)
    params = transfer.fetch(generator.params)
    network = Network(
        "generator",
        generator.model,
        {"params": params["generator"] if generator.vae is not None else params},
        generator.step,
        generator.ema_decay,
        tuple(generator.class_names),
        generator.alpha_range,
    )
    picture = _picture(generator) if generator.makes_pixels else None
    metrics = _metrics(workdir, generator) if workdir is not None else None
    card = _card(out.name, generator, workdir, metrics, license_name)
    with new_folder(out) as partial:
        save_network(partial, network, for_hub=True)
        if picture is not None:
            save_png(partial / "samples.png", picture)
        if metrics is not None:
            write_bytes(partial / _EVALUATION, (json.dumps(metrics, indent=2) + "\n").encode())
        write_bytes(partial / "README.md", shown(card).encode())


def _picture(generator: Generator) -> Any:
    classes = range(min(len(generator.class_names), _PICTURE_CLASSES))
    labels, indices = class_major(classes, _PICTURE_COLUMNS)
    images = generator.sample(labels, indices, seed=0, cfg_scale=1.0, batch_size=64)
    return image_grid(images, _PICTURE_COLUMNS, least=400)


def _metrics(workdir: Path, generator: Generator) -> dict[str, Any] | None:
    """The run's evaluation.json, if it is of this step and this average."""
    path = workdir / _EVALUATION
    found = read_json(path) if path.is_file() else {}
    of_these = (found.get("step"), found.get("ema_decay")) == (generator.step, generator.ema_decay)
    return found if of_these and isinstance(found.get("alpha"), dict) else None


def _card(
    name: str,
    generator: Generator,
    workdir: Path | None,
    metrics: Mapping[str, Any] | None,
    license_name: str,
) -> str:
    """The model card."""
    parts = [
        f"# {html.escape(name)}",
        f"A {model_card.PAPER}: each image is one evaluation of a network, guidance included. "
        "Trained and written with drifting_jax.",
    ]
    if generator.makes_pixels:
        parts += [
            "![Samples](samples.png)",
            f"*The first {_PICTURE_COLUMNS} samples of a class in each row, none chosen, α = 1.*",
        ]
    parts += ["## Data", _data(generator, workdir)]
    if generator.config is not None:
        parts += ["## Recipe", _recipe(generator, generator.config)]
    if metrics is not None:
        parts += ["## Metrics", _metrics_table(generator, metrics)]
    parts += ["## Use", _use(generator)]
    return model_card.card(parts, tag="image-generation", license_name=license_name)


def _data(generator: Generator, workdir: Path | None) -> str:
    names = [html.escape(title(name)) for name in generator.class_names[:_NAMES_SHOWN]]
    more = len(generator.class_names) - len(names)
    classes = f"{len(generator.class_names)} classes: {', '.join(names)}" + ", …" * (more > 0)
    if generator.config is None or generator.data_spec is None or workdir is None:
        return classes
    shape, data = "×".join(map(str, generator.data_spec.image_shape)), generator.config.data
    record = read_json(workdir / "data.json") if (workdir / "data.json").is_file() else {}
    kind = "latents" if data.latent else "images"
    return f"`{data.source}`: {record.get('count', 'all')} {kind} of {shape}, of {classes}"


def _recipe(generator: Generator, config: ConfigDict) -> str:
    kind = config.model.kind
    names = [name for name in _RECIPE if _OF_KIND.get(name, kind) == kind]
    return model_card.recipe(config, names, step=generator.step, ema_decay=generator.ema_decay)


def _metrics_table(generator: Generator, metrics: Mapping[str, Any]) -> str:
    """The protocol, and the metrics of each α beside those of real images."""
    protocol = small_runs.protocol_of_run(generator, [metrics.get("seed", 0)])
    lines = [f"* {name}: {words}" for name, words in protocol.items()]
    scales = metrics["alpha"]
    heads = [f"α = {scale}" for scale in scales]
    lines += ["", f"| metric | {' | '.join(heads)} | real images | better |"]
    lines += ["|---" * (len(heads) + 3) + "|"]
    first: Mapping[str, Any] = next(iter(scales.values()), {})
    for name in (name for name in first if f"{name}_floor" in first):
        values = [own.get(name) for own in scales.values()] + [first[f"{name}_floor"]]
        shown_values = (f"{x:.4f}" if isinstance(x, float) else str(x) for x in values)
        better = METRICS[name].better if name in METRICS else ""
        lines.append(f"| {name} | {' | '.join(shown_values)} | {better} |")
    return "\n".join(lines)


def _use(generator: Generator) -> str:
    config = generator.config
    latent = generator.vae is not None or (config is not None and config.data.latent)
    decoder = config.vae.path if config is not None else ""
    decoder = decoder if decoder.startswith("hf://") else "hf://stabilityai/sd-vae-ft-mse"
    vae = f" \\\n  --vae={decoder}" if latent else ""
    known = generator.alpha_range
    alphas = f" α from {known[0]:g} to {known[1]:g} was trained." if known else ""
    return (
        "With drifting_jax and its extra `hub` installed, and this folder or `hf://owner/name`:\n\n"
        "```bash\npython -m drifting_jax.sample --weights=hf://owner/name --per_class=8 "
        f"--cfg_scale=1.0{vae} --out=samples.png\n```\n\n"
        "`drifting_jax.export` takes it too, and `config.model.init_from` trains it further."
        f"{alphas}"
    )
