"""A generator of pairs as a folder for the Hugging Face Hub: weights, metrics and a model card."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting_jax.evaluation.single_target_card import (
    EVALUATION,
    has_metrics,
    metrics_table,
    read_evaluation,
)
from drifting_jax.files import check_new, new_folder, shown, write_bytes, write_json
from drifting_jax.pairs.folders import Weights, write_folder
from drifting_jax.pairs.generator import PairGenerator, load_pairs
from drifting_jax.weights import model_card
from drifting_jax.weights.files import fetch

_PARTS = {
    "training": "training pairs",
    "held_out": "held out pairs",
    "nearest_pairs": "images of the nearest training conditions, for those held out",
    "mean_image": "the mean training image, for those held out",
}
# Fields of the config that the card lists.
_RECIPE = (
    "model.kind", "model.patch_size", "model.width", "model.depth", "model.num_heads",
    "model.unet.multipliers", "model.unet.blocks_per_level", "model.unet.attention_sides",
    "condition.kind", "condition.width", "condition.depth", "drift.field", "drift.temperatures",
    "single_target.statistics", "single_target.learned_temperature", "single_target.neighbours",
    "train.num_steps", "train.conditions", "train.generated", "optim.learning_rate",
    "optim.schedule", "optim.weight_decay", "seed",
)  # fmt: skip
# Fields of the recipe that some kinds of networks alone read.
_OF_KINDS = {
    "model.patch_size": ("dit", "unet"),
    "model.depth": ("dit", "mlp"),
    "model.num_heads": ("dit", "unet"),
} | {name: ("unet",) for name in _RECIPE if name.startswith("model.unet.")}


def write_for_hub(name: str, out: Path, *, ema_decay: float | None, license_name: str) -> str:
    """Writes a folder that `upload_folder` of huggingface_hub takes as it is.

    It holds model.safetensors, config.json, README.md (the model card), and evaluation.json if the
    run has measured these weights.

    Args:
      name: the workdir of a run, or such a folder.
      out: the folder, which is made.
      ema_decay: which moving average of a run; None for that of its config.
      license_name: for the card, such as "apache-2.0"; "" if it is not stated.

    Returns:
      A line for a person, and one if the file of metrics is damaged, which is left out.

    Raises:
      UserError: the folder exists, the licence is no name, or as `load_pairs`.
    """
    check_new(out)
    model_card.check_license(license_name)
    generator = load_pairs(name, ema_decay=ema_decay)
    found, damaged = read_evaluation(fetch(name), lambda found: has_metrics(found, _PARTS))
    if generator.config is not None:  # of a run, which measures one average of its last step
        decay = found.get("ema_decay", generator.config.eval.ema_decay)
        of_these = (found.get("step"), decay) == (generator.step, generator.ema_decay)
        found = found if of_these else {}
    weights = Weights(**{field: getattr(generator, field) for field in Weights._fields})
    with new_folder(out) as partial:
        write_folder(partial, weights)
        if found:
            write_json(partial / EVALUATION, found)
        card = _card(out.name, generator, found, license_name)
        write_bytes(partial / "README.md", shown(card).encode())
    line = f"generator of pairs of step {generator.step}: {out}; README.md there is its model card"
    return "\n".join([line, *(f"note: {path} is damaged and left out" for path in damaged)])


def _card(name: str, generator: PairGenerator, found: Mapping[str, Any], license_name: str) -> str:
    """The model card."""
    of_condition, of_image = ("×".join(map(str, shape)) for shape in generator.facts.shapes)
    parts = [
        f"# {html.escape(name)}",
        f"A {model_card.PAPER} that makes images of conditions, each by one evaluation of a "
        "network. Trained and written with drifting_jax.",
        f"A condition is an array of {of_condition} numbers, an image one of {of_image}. "
        "`config.json` has the range of each entry of a condition's last axis in the training.",
    ]
    if (config := generator.config) is not None:
        kind = config.model.kind
        names = [name for name in _RECIPE if kind in _OF_KINDS.get(name, (kind,))]
        recipe = model_card.recipe(
            config, names, step=generator.step, ema_decay=generator.ema_decay
        )
        parts += ["## Recipe", recipe]
    if (table := metrics_table(found, _PARTS, "pixels from -1 to 1")) is not None:
        parts += ["## Metrics", table]
    parts += ["## Use", _USE]
    return model_card.card(parts, tag="image-generation", license_name=license_name)


_USE = """\
With drifting_jax and its extra `hub` installed, and this folder or `hf://owner/name`:

```bash
python -m drifting_jax.sample --weights=hf://owner/name --conditions=FILE.npz --per_class=8 \\
  --out=samples.png
```

The file has the array `condition` [n, ...], in the units of the training. From Python:

```python
from drifting_jax.pairs.generator import load_pairs

images = load_pairs("hf://owner/name").sample(conditions, seed=0)
```

`drifting_jax.export` takes it too."""
