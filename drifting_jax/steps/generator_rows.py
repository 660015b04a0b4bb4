"""The class rows of a generator's step: labels, α, keys of noise, and real samples (A.8)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from drifting_jax.distributed import class_rows
from drifting_jax.method import guidance
from drifting_jax.method.fields.table import field_named, weighing_negatives
from drifting_jax.steps import dataset_queue, nearest, sample_queue
from drifting_jax.steps.dataset_queue import Chosen, Dataset
from drifting_jax.steps.generator_settings import GeneratorStepConfig
from drifting_jax.steps.rings import Nearest
from drifting_jax.steps.sample_queue import SampleQueue

PyTree = Any

# Numbers of a step's further keys: 0 to 4 are those that `draw_rows` splits off.
_FRESH, _FIELD, _ANCHORS = 5, 6, 7


@flax.struct.dataclass
class Rows:
    """The class rows of a step or microbatch; real samples are [c, n, h, w, channels].

    Attributes:
      number: [c] int32, places of the rows in the step; their random numbers depend on it.
      label, cfg_scale: [c].
      weight: [c], the weight of each unconditional sample.
      input_keys: [c, g] keys of noise and styles.
      fresh_keys: [c, g] the same of a second batch that repels the first; None for none.
      stale: {name: [c, g, t, d]} features of the samples of the step before, which repel; or None.
      positive, unconditional: real samples as the queue holds them; None for none.
    """

    number: jax.Array
    label: jax.Array
    cfg_scale: jax.Array
    weight: jax.Array
    input_keys: jax.Array
    fresh_keys: jax.Array | None = None
    stale: Mapping[str, jax.Array] | None = None
    positive: jax.Array | None = None
    unconditional: jax.Array | None = None


def draw_labels(key: jax.Array, count: int, num_classes: int) -> jax.Array:
    """Returns [count] int32 labels of the class rows of a step.

    They are drawn without replacement; for more rows than classes, whole permutations follow each
    other.
    """
    rounds = -(-count // num_classes)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_classes))(
        jax.random.split(key, rounds)
    )
    return permutations.reshape(-1)[:count].astype(jnp.int32)


def row_labels(key: jax.Array, s: GeneratorStepConfig, num_classes: int) -> jax.Array:
    """Returns [c] int32 labels of the rows of a step; those of stale negatives stay in place."""
    if s.is_stale:
        return jnp.arange(s.labels, dtype=jnp.int32) % num_classes
    return draw_labels(key, s.labels, num_classes)


def draw_fresh_keys(key: jax.Array, s: GeneratorStepConfig) -> jax.Array:
    """Returns [c, g] keys of a second batch of samples."""
    return jax.random.split(jax.random.fold_in(key, _FRESH), (s.labels, s.generated))


def draw_rows(
    key: jax.Array,
    step: jax.Array,
    queue: SampleQueue | Dataset,
    s: GeneratorStepConfig,
    stale: Mapping[str, jax.Array] | None = None,
) -> Rows:
    """Draws all class rows of a step: [microbatches, c / microbatches, ...].

    `queue` is one that `real_samples.open_queue` has opened; `stale` are the features {name:
    [c, g, t, d]} that join the rows as negatives.
    """
    label_key, cfg_key, positive_key, unconditional_key, input_key = jax.random.split(key, 5)
    cfg_scale = guidance.sample_cfg_scale(
        cfg_key,
        (s.labels,),
        minimum=s.cfg_minimum,
        maximum=s.cfg_maximum,
        power=s.cfg_power,
        probability_of_one=s.cfg_probability_of_one,
    )
    has_fresh = s.negatives == "fresh" and not s.is_stale
    fresh_keys = draw_fresh_keys(key, s) if has_fresh else None
    rows = Rows(
        number=jnp.arange(s.labels),
        label=row_labels(label_key, s, queue.num_classes),
        cfg_scale=cfg_scale,
        weight=guidance.unconditional_weight(
            cfg_scale,
            negatives=weighing_negatives(s.drift, s.generated),
            unconditional=s.unconditional,
        ),
        input_keys=jax.random.split(input_key, (s.labels, s.generated)),
        fresh_keys=fresh_keys,
    )
    chosen: dict[str, Chosen] | None = None
    if isinstance(queue, Dataset):
        drawn_of_row = {"positives": s.positives, "unconditional": s.unconditional}
        chosen = dataset_queue.choose_rows(queue, rows.label, **drawn_of_row)
    keys, near = (positive_key, unconditional_key), _nearest(key, step, s)

    def with_real_samples(piece: tuple[Rows, dict[str, Chosen] | None]) -> Rows:
        rows, chosen = piece
        if isinstance(queue, Dataset):
            assert chosen is not None
            found = {group: dataset_queue.take(queue, x) for group, x in chosen.items()}
        else:
            found = _of_rings(queue, rows, keys, s, near)
        of_any = found.get("unconditional")
        return dataclasses.replace(rows, positive=found["positive"], unconditional=of_any)

    if s.microbatches == 1:
        drawn = jax.tree.map(lambda x: x[None], with_real_samples((rows, chosen)))
    else:
        drawn = jax.lax.map(with_real_samples, in_microbatches((rows, chosen), s))
    return dataclasses.replace(drawn, stale=in_microbatches(stale, s))


def _of_rings(
    queue: SampleQueue,
    rows: Rows,
    keys: tuple[jax.Array, jax.Array],
    s: GeneratorStepConfig,
    near: Nearest | None,
) -> dict[str, jax.Array]:
    """Draws the real samples of some rows from rings, by the keys of positives and of others."""
    positive = sample_queue.draw(
        queue, keys[0], rows.label, s.positives, rows=rows.number, nearest=near
    )
    if not s.unconditional:
        return {"positive": positive}
    of_any = sample_queue.draw_unconditional(queue, keys[1], rows.number, s.unconditional)
    return {"positive": positive, "unconditional": of_any}


def _nearest(key: jax.Array, step: jax.Array, s: GeneratorStepConfig) -> Nearest | None:
    """Returns which positives of a step are nearest ones; None for a run without."""
    if not s.nearest:
        return None
    count = nearest.count_at(step, start=s.nearest, share=s.nearest_share, num_steps=s.num_steps)
    return Nearest(jax.random.fold_in(key, _ANCHORS), count)


def in_microbatches(of_rows: PyTree, s: GeneratorStepConfig) -> PyTree:
    """Splits arrays [c, ...] into [microbatches, c / microbatches, ...]."""
    return jax.tree.map(lambda x: x.reshape(s.microbatches, -1, *x.shape[1:]), of_rows)


def first_microbatch(microbatches: Rows) -> Rows:
    """Returns the rows of the first microbatch, or of all if there is one."""
    return jax.tree.map(lambda x: x[0], microbatches)


def real_samples(rows: Rows) -> dict[str, jax.Array]:
    """Returns the real samples of some rows as floats: {group: [c, n, h, w, channels]}."""
    drawn = {"positive": rows.positive, "unconditional": rows.unconditional}
    return {group: class_rows.to_float(x) for group, x in drawn.items() if x is not None}


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a field may know of its step: a key to draw from, and the done share of the run."""

    key: jax.Array | None
    progress: jax.Array | None


def moment_of(key: jax.Array, step: jax.Array, s: GeneratorStepConfig) -> Moment:
    """Returns what the field of these settings needs; None for what it does not."""
    draws = field_named(s.drift.field).draws
    return Moment(
        key=jax.random.fold_in(key, _FIELD) if draws else None,
        progress=step / s.num_steps if s.drift.annealed else None,
    )
