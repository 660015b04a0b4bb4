"""A policy as a folder for the Hugging Face Hub: weights, metrics and a model card."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drifting_jax.digests import fingerprint_variables
from drifting_jax.errors import UserError
from drifting_jax.evaluation.single_target_card import (
    DAMAGED,
    EVALUATION,
    has_metrics,
    is_json,
    is_number,
    metrics_table,
    read_evaluation,
)
from drifting_jax.files import check_new, new_folder, read_json, shown, write_bytes, write_json
from drifting_jax.policy.folders import Weights, write_folder
from drifting_jax.policy.policy import Policy, load_policy
from drifting_jax.weights import model_card
from drifting_jax.weights.files import fetch

_PARTS = {"training": "training demonstrations", "held_out": "held out demonstrations"}
_SUMMARY = ("episodes", "max_steps", "success", "success_deviation", "endings")  # of rollouts
# Fields of the config that the card lists.
_RECIPE = (
    "model.kind", "model.width", "model.depth", "model.num_heads", "model.init_from",
    "condition.width", "condition.depth", "drift.field", "drift.temperatures",
    "single_target.statistics", "single_target.learned_temperature", "single_target.neighbours",
    "train.num_steps", "train.conditions", "train.generated", "optim.learning_rate",
    "optim.schedule", "optim.weight_decay", "seed",
)  # fmt: skip
_OF_TRANSFORMER = ("model.num_heads",)  # the mlp does not read it


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
      A line for a person, and one for each damaged file of metrics, which is left out.

    Raises:
      UserError: the folder exists, the licence is no name, or as `load_policy`.
    """
    check_new(out)
    model_card.check_license(license_name)
    policy = load_policy(name, ema_decay=ema_decay)
    found, damaged = _measured(fetch(name), policy)
    weights = Weights(**{field: getattr(policy, field) for field in Weights._fields})
    with new_folder(out) as partial:
        write_folder(partial, weights)
        if found:
            write_json(partial / EVALUATION, found)
        card = _card(out.name, policy, found, license_name)
        write_bytes(partial / "README.md", shown(card).encode())
    line = f"policy of step {policy.step}: {out}; README.md there is its model card"
    return "\n".join([line, *(f"note: {path} is damaged and left out" for path in damaged)])


def _measured(folder: Path, policy: Policy) -> tuple[dict[str, Any], list[Path]]:
    """What evaluation.json says of these weights, with their rollouts, and the damaged files."""
    found, damaged = read_evaluation(folder, _is_evaluation)
    if policy.config is None:  # a folder for the Hub, whose file is of its weights
        return found, damaged
    of_these = found.get("step") == policy.step
    of_these &= found.get("ema_decay", policy.config.eval.ema_decay) == policy.ema_decay
    kept = found if of_these else {}
    rollouts, others = _rollouts(folder, fingerprint_variables(policy.params))
    return kept | ({"rollouts": rollouts} if rollouts else {}), damaged + others


def _rollouts(workdir: Path, parameters: str) -> tuple[list[dict[str, Any]], list[Path]]:
    """The summaries of rollouts of these parameters, without the paths of this machine.

    The damaged files are the second result.
    """
    found, damaged = [], []
    for path in sorted(workdir.glob("rollouts/*/rollouts.json")):
        try:
            record = read_json(path)
            if record["policy"]["parameters"] != parameters:
                continue
            one = {"environment": Path(record["environment"]).name}
            one |= {name: record[name] for name in _SUMMARY}
            if not _is_summary(one):
                raise UserError(f"{path} is no summary of rollouts")
            found.append(one)
        except DAMAGED:
            damaged.append(path)
    return found, damaged


def _is_evaluation(found: Mapping[str, Any]) -> bool:
    """Whether the tables can show it. Raises one of `DAMAGED` if not, too."""
    return has_metrics(found, _PARTS) and all(map(_is_summary, found.get("rollouts", ())))


def _is_summary(one: Mapping[str, Any]) -> bool:
    """Whether the table can show these rollouts. Raises as `_is_evaluation`."""
    deviation = one["success_deviation"]
    return (
        isinstance(one["environment"], str)
        and type(one["episodes"]) is int
        and all(map(is_number, (one["episodes"], one["success"])))
        and (deviation is None or is_number(deviation))
        and is_json(one)
    )


def _card(name: str, policy: Policy, found: Mapping[str, Any], license_name: str) -> str:
    """The model card."""
    horizons, sizes = policy.horizons, policy.sizes
    parts = [
        f"# {html.escape(name)}",
        f"A {model_card.PAPER} as a policy: a chunk of actions is one evaluation of a network. "
        "Trained and written with drifting_jax.",
        f"It sees {horizons.observation} observations of {sizes.observation} numbers, the oldest "
        f"first, and predicts {horizons.prediction} actions of {sizes.action} numbers, of which "
        f"{horizons.action} are carried out. `config.json` has the range of each dimension in the "
        "demonstrations.",
    ]
    if policy.config is not None:
        is_mlp = policy.config.model.kind == "mlp"
        names = [name for name in _RECIPE if not (is_mlp and name in _OF_TRANSFORMER)]
        recipe = model_card.recipe(
            policy.config, names, step=policy.step, ema_decay=policy.ema_decay
        )
        parts += ["## Recipe", recipe]
    if found:
        parts += ["## Metrics", *_tables(found)]
    parts += ["## Use", _USE]
    return model_card.card(parts, tag="robotics", license_name=license_name)


def _tables(found: Mapping[str, Any]) -> list[str]:
    """Tables of the metrics that are there."""
    table = metrics_table(found, _PARTS, "actions from -1 to 1")
    tables = [] if table is None else [table]
    if rollouts := found.get("rollouts"):
        lines = ["| rollouts in | episodes of a seed | success |", "|---|---|---|"]
        for one in rollouts:
            success = f"{100 * one['success']:.1f}%"
            if one["success_deviation"] is not None:
                success += f" ± {100 * one['success_deviation']:.1f}%"
            lines.append(f"| {_cell(one['environment'])} | {one['episodes']} | {success} |")
        tables.append("\n".join(lines))
    return tables


def _cell(text: str) -> str:
    """Text of others as one line in one cell of a Markdown table."""
    return html.escape(" ".join(text.split())).replace("|", "&#124;")


_USE = """\
With drifting_jax and its extra `hub` installed, and this folder or `hf://owner/name`:

```python
from drifting_jax.policy.policy import load_policy

policy = load_policy("hf://owner/name")
actions = policy.act(observations, seed=0)  # [n, observations, numbers], in their own units
```

`--weights` of `drifting_jax.rollout` and `drifting_jax.export` takes it too, and
`config.model.init_from` trains it further."""
