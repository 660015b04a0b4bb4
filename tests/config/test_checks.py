"""Checks of a config: a mistake is one line that names the field."""

import pytest
from changed_config import changed

from drifting_jax.config import base_config, resolve, validate
from drifting_jax.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__num_stepz": 3}, "config.train.num_stepz does not exist.*train.num_steps$"),
        ({"optim__num_steps": 3}, "config.optim.num_steps does not exist.*num_steps$"),
        ({"trian": 3}, r"config.trian does not exist; the nearest .* config.train$"),
        ({"seed": 2**32}, r"config.seed must be at most 4294967295; found 4294967296 \(root"),
        ({"seed": 10**400}, "config.seed must be at most 4294967295"),
        ({"train__num_steps": 0}, "config.train.num_steps must be above zero; found 0"),
        ({"train__num_steps": 2.5}, "config.train.num_steps must be of type int; found 2.5"),
        ({"train__num_steps": True}, "must be of type int; found True"),
        ({"train__num_steps": None}, "must be of type int; found None"),
        ({"data__flip": 1}, "config.data.flip must be of type bool; found 1"),
        ({"drift": 3}, "config.drift is a section"),
        ({"optim__learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"optim__learning_rate": -1.0}, "learning_rate must be above zero; found -1.0"),
        ({"optim__weight_decay": -0.1}, "weight_decay must be zero or above"),
        ({"optim__b2": 1.0}, "config.optim.b2 must be below 1; found 1.0"),
        ({"guidance__probability_of_one": 1.5}, "probability_of_one must be at most 1"),
        ({"guidance__minimum": 5.0}, "guidance.minimum must be at most config.guidance.maximum"),
        ({"drift__temperatures": ()}, "drift.temperatures must have at least one entry"),
        ({"drift__temperatures": (0.1, "x")}, "temperatures must be of type float; found 'x'"),
        ({"drift__temperatures": (0.1, 0.0)}, "temperatures must be above zero"),
        ({"drift__temperatures": 0.1}, "temperatures must be a tuple"),
        ({"drift__kernel": "cubic"}, "config.drift.kernel must be one of .*'cubic'"),
        ({"model__num_heads": 3}, "model.num_heads must divide config.model.width; found 3 and"),
        ({"encoder__groups": 7}, "encoder.groups must divide config.encoder.width"),
        ({"queue__per_class": 2}, "train.positives_per_label must be at most config.queue.per_cl"),
        (
            {"train__nearest_positives": 33},
            "train.nearest_positives must be at most config.train.positives_per_label; found 33 a",
        ),
        ({"train__nearest_positives": -1}, "train.nearest_positives must be zero or above; found"),
        ({"train__nearest_share": 0.0}, "config.train.nearest_share must be above zero; found 0.0"),
        ({"train__nearest_share": 1.5}, "config.train.nearest_share must be at most 1; found 1.5"),
        (
            {"eval__ema_decay": 0.5},
            r"eval.ema_decay must be one of config.train.ema_decays .*; found 0.5",
        ),
        (
            {"train__ema_widths": (0.05, 0.5)},
            "must hold different widths from 0.01 to 0.28",
        ),
        ({"train__ema_widths": (0.05, 0.05)}, r"such as \(0.05, 0.1\); found \(0.05, 0.05\)"),
        ({"train__ema_widths": ("0.05",)}, "train.ema_widths must hold different widths"),
        ({"mesh__data": -2}, "config.mesh.data must be above zero"),
        ({"mesh__rules": (("a", "fsdp"),)}, "config.mesh.rules must hold pairs"),
        ({"mesh__rules": (("(", ("fsdp",)),)}, "config.mesh.rules has the bad regex"),
        ({"mesh__rules": (("a", (None, "model")),)}, "may name the mesh axes 'data' and 'fsdp'"),
        ({"mesh__rules": (("a", ("fsdp", "fsdp")),)}, "each once in a rule"),
        (
            {"guidance__minimum": 0.5},
            "guidance.minimum must be at least 1; found 0.5 .*1 = guidance is off",
        ),
        (
            {"optim__schedule": "cosine", "optim__warmup_steps": 9, "train__num_steps": 9},
            "train.num_steps must be above config.optim.warmup_steps for a cosine schedule; found",
        ),
        (
            {"encoder__train__schedule": "cosine", "encoder__train__warmup_steps": 2000},
            "encoder.train.num_steps must be above config.encoder.train.warmup_steps",
        ),
        ({"model__num_style_books": 0}, "num_style_books must be above zero"),
        ({"task": "toi"}, "config.task must be one of 'generator', .*; found 'toi'"),
    ],
)
def test_a_mistake_names_its_field(changes, message):
    with pytest.raises(UserError, match=message) as error:
        validate(changed(**changes))
    assert "\n" not in str(error.value)


def test_what_is_allowed():
    rules = (("attention/.*", (None, "fsdp")), (".*", ()))
    config = changed(
        mesh__rules=rules,
        drift__temperatures=(1,),
        queue__per_class=2,
        queue__allow_repeats=True,
        features__patch_sizes=(),
        optim__clip_norm=0,
    )
    resolved = resolve(config)
    assert resolved.mesh.rules == rules
    assert resolved.drift.temperatures == (1.0,)
    assert isinstance(resolved.drift.temperatures[0], float)
    assert isinstance(resolved.optim.clip_norm, float)


def test_a_missing_field_is_named():
    config = base_config("toy").copy_and_resolve_references()
    with config.unlocked():
        del config.optim.b1
    with pytest.raises(UserError, match=r"config.optim.b1 is missing"):
        validate(config)


def test_statistics_of_microbatches_need_a_number_of_them():
    """The loss depends on that number then, so the devices must not choose it."""
    with pytest.raises(UserError, match=r"'microbatch' needs config.train.microbatches as a num"):
        resolve(changed(train__shared_statistics="microbatch", train__microbatches=0))
