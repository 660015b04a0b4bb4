"""The task "pairs": trains on pairs of a condition and an image, and measures the samples."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh

from drifting_jax.config import ConfigDict
from drifting_jax.distributed.agreement import on_all_processes
from drifting_jax.errors import UserError
from drifting_jax.evaluation.metrics.single_target import NAMES, measure_samples, table
from drifting_jax.files import write_json
from drifting_jax.pairs.baselines import measure_baselines
from drifting_jax.pairs.data import Pairs, PairSource, as_floats, read_pairs
from drifting_jax.pairs.facts import PairFacts, facts_of, frozen_line
from drifting_jax.pairs.generator import PairGenerator, generator_of
from drifting_jax.pairs.pictures import rows_of_pairs
from drifting_jax.pairs.program import pairs_program
from drifting_jax.training import build, stage
from drifting_jax.training.data_identity import keep_record
from drifting_jax.training.hooks import RunContext
from drifting_jax.training.loop import Hook, Moment
from drifting_jax.training.program import Program
from drifting_jax.training.single_target import check_config, drift_labels
from drifting_jax.training.stage import Stage
from drifting_jax.workdir import pictures
from drifting_jax.workdir.image_files import image_grid
from drifting_jax.workdir.layout import generator_checkpoints
from drifting_jax.workdir.metrics import read_metrics

_SHOWN_CONDITIONS, _SHOWN_SAMPLES, _LEAST_GRID_PIXELS = 8, 8, 400


class PairData(NamedTuple):
    """What a run reads.

    Attributes:
      source: of the batches.
      parts: {"training": pairs, "held_out": pairs}, the latter only if some are held out.
      facts: of the pairs that it trains on.
    """

    source: PairSource
    parts: dict[str, Pairs]
    facts: PairFacts

    @property
    def identity(self) -> dict[str, Any]:
        """What tells them from others, the pairs that are held out included."""
        prints = (pairs.fingerprint for pairs in self.parts.values())
        return {"count": len(self.source), "fingerprint": "-".join(prints)}


def train(config: ConfigDict, *, workdir: Path, context: RunContext) -> bool:
    """Trains, measures and draws; returns whether it came to the end (else a signal stopped it)."""
    mesh = build.make_mesh(config)
    check_config(config, mesh)
    data = on_all_processes(read_data, config)
    program_of = pairs_program(config, data.facts.shapes, mesh)
    note = frozen_line(data.facts, data.parts["training"])
    if note and context.is_main_process:
        print(note, flush=True)
    keep_record(config, workdir, data.identity, more=data.facts.record())
    draw = functools.partial(_draw, config, data, context)
    carry = stage.train(
        Stage(
            program=program_of,
            folder=generator_checkpoints(workdir),
            batch_size=config.train.conditions,
            save_every=config.train.save_every,
            hooks=[Hook(config.train.sample_every, draw)],
        ),
        config,
        data.source,
        workdir=workdir,
        context=context,
    )
    if carry is None or context.stops():
        return False
    step, decay = config.train.num_steps, config.eval.ema_decay
    generator = generator_of(config, data.facts, carry.state, step=step, ema_decay=decay)
    if context.is_main_process:
        records = read_metrics(workdir, stage="pairs")
        pictures.write_drift(workdir / "drift.png", records, drift_labels(config))
        found = measure(generator, config, data)
        print(table(found, "images from -1 to 1"))
        scalars = {f"{name}/{part}": x[name] for part, x in found.items() for name in NAMES}
        context.writer.truncate("evaluation", step - 1)  # of a start that was killed here
        context.writer.write_scalars("evaluation", step, scalars)
        # Last: it marks the run as complete.
        write_json(workdir / "evaluation.json", {"step": step, "ema_decay": decay, **found})
    return True


def program(config: ConfigDict, mesh: Mesh) -> Program:
    """Assembles the step for a dry run; the pairs say the shapes.

    Raises:
      UserError: the config does not fit the mesh or the pairs, or these cannot be read.
    """
    check_config(config, mesh)
    return pairs_program(config, read_data(config).facts.shapes, mesh)


def read_data(config: ConfigDict) -> PairData:
    """Reads the pairs of config.data.

    Raises:
      UserError: they cannot be read, or are too few.
    """
    kept, others = read_pairs(config.data.path).split(config.data.held_out)
    facts = facts_of(kept)
    source = PairSource(kept, facts.scaling, neighbours=config.single_target.neighbours)
    parts = {"training": kept} | ({} if others is None else {"held_out": others})
    return PairData(source, parts, facts)


def measure(
    generator: PairGenerator, config: ConfigDict, data: PairData
) -> dict[str, dict[str, float]]:
    """Returns `measure_samples` of some pairs of each part, spread evenly, {part: metrics}.

    If pairs are held out, those of `measure_baselines` for the same pairs follow.
    """
    e, found = config.eval, {}
    for name, pairs in data.parts.items():
        some = pairs.spread(e.conditions)
        samples = generator.predict(np.repeat(some.conditions, e.samples, axis=0), seed=config.seed)
        samples = samples.reshape(-1, e.samples, *samples.shape[1:])
        found[name] = measure_samples(samples, as_floats(some.images))
    if (others := data.parts.get("held_out")) is not None:
        some, scaling = others.spread(e.conditions), data.facts.scaling
        found |= measure_baselines(data.parts["training"], some, scaling)
    return found


def _draw(config: ConfigDict, data: PairData, context: RunContext, moment: Moment) -> None:
    """Writes samples/pairs_samples_<step>.png."""
    decay = config.eval.ema_decay
    generator = generator_of(
        config, data.facts, moment.carry.state, step=moment.step, ema_decay=decay
    )
    if not context.is_main_process:
        return
    some = data.parts.get("held_out", data.parts["training"]).spread(_SHOWN_CONDITIONS)
    try:
        samples = generator.sample(np.repeat(some.conditions, _SHOWN_SAMPLES, axis=0), seed=0)
    except UserError as error:  # the run is worth more
        logging.error("Could not draw the samples: %s", error)
        return
    samples = samples.reshape(-1, _SHOWN_SAMPLES, *samples.shape[1:])
    tiles = rows_of_pairs(some.conditions, some.images, samples, data.facts)
    grid = image_grid(tiles.reshape(-1, *tiles.shape[2:]), tiles.shape[1], least=_LEAST_GRID_PIXELS)
    context.writer.write_image("pairs", moment.step, "samples", grid)
