"""What a training step is: what it carries on, what it reports, and its shapes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
from jax.sharding import Mesh

from drifting_jax.distributed import meshes, transfer
from drifting_jax.method.statistics import DriftingStatistics
from drifting_jax.steps.real_samples import Queue
from drifting_jax.steps.state import TrainState

PyTree = Any


@flax.struct.dataclass
class Carry:
    """What a step changes and donates.

    Attributes:
      state: of the trained network.
      queue: of a generator, the real samples, or where it stands in the data set.
      statistics: of a generator with `train.shared_statistics` "previous", those of the last step.
      negatives: of a generator with `drift.negatives` "stale", features [c, g, t, d] of the samples
        of the last step.
    """

    state: TrainState
    queue: Queue | None = None
    statistics: dict[str, DriftingStatistics] | None = None
    negatives: dict[str, jax.Array] | None = None


@flax.struct.dataclass
class Report:
    """What a step returns besides the carry, in arrays of its own: the next step donates the carry.

    Attributes:
      metrics: what the pure step returns.
      skipped, skipped_in_a_row, culprit: [] int32, as in `TrainState`.
    """

    metrics: PyTree
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    culprit: jax.Array


class Step(Protocol):
    """A jitted step: it can be called, or only traced or lowered for shapes of its arguments."""

    def __call__(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.Array], /
    ) -> tuple[Carry, Report]: ...

    def trace(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.ShapeDtypeStruct], /
    ) -> jax.stages.Traced: ...

    def lower(
        self, carry: Carry, frozen: PyTree, batch: Mapping[str, jax.ShapeDtypeStruct], /
    ) -> jax.stages.Lowered: ...


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step, ready to be run or lowered.

    Attributes:
      name: of the stage, such as "encoder" or "toy", as in metrics.jsonl.
      mesh: the devices.
      init: () -> `TrainState`, traceable; that of a generator may be given its parameters.
      make_queue: makes the queue before the first step; None for a program without one.
      carry: tree of `jax.ShapeDtypeStruct` with shardings.
      frozen: likewise, of the frozen networks' variables; empty without any.
      batch: likewise, of a batch.
      step: jitted (carry, frozen, batch) -> (carry, `Report`); donates the carry.
      to_scalars: fetched metrics -> scalars of a line of metrics.jsonl.
      culprit_name: number in `TrainState.culprit` -> words.
      checkpoint_items: (carry, batches taken) -> the trees of a checkpoint.
      prepare: (carry, frozen, batch) -> carry, called once before the first step, with the data
        set if that is the batch of every step, else None; None for nothing.
      num_steps: steps of the whole training.
      images_per_step: what `images_per_second` counts.
      microbatches: parts of a batch that are computed one after another.
      keep_maps: whether the encoders' maps of all microbatches are kept: "yes", "host" or "no".
      remat: what the blocks keep for the backward pass of networks whose config says "auto".
    """

    name: str
    mesh: Mesh
    init: Callable[..., TrainState]
    make_queue: Callable[[], Queue] | None
    carry: Carry
    frozen: PyTree
    batch: Mapping[str, jax.ShapeDtypeStruct]
    step: Step
    to_scalars: Callable[[PyTree], dict[str, float]]
    culprit_name: Callable[[int], str]
    checkpoint_items: Callable[[Carry, int], dict[str, PyTree]]
    num_steps: int
    images_per_step: int
    microbatches: int = 1
    keep_maps: str = "no"
    remat: str = "none"
    prepare: Callable[..., Carry] | None = None

    def lower(self) -> jax.stages.Lowered:
        """Returns the step, lowered for its mesh: nothing is computed and no array is made."""
        return self.step.lower(self.carry, self.frozen, self.batch)

    def first_carry(self, params: PyTree | None = None) -> Carry:
        """Returns the carry before the first step; each device makes its own part.

        Args:
          params: on the host, to start from; None for random ones.
        """
        shardings = jax.tree.map(lambda x: x.sharding, self.carry.state)
        given = () if params is None else (jax.device_put(params, shardings.params),)
        state = jax.jit(self.init, out_shardings=shardings)(*given)
        return Carry(state, self.make_queue() if self.make_queue else None)


def carry_of(items: Mapping[str, PyTree]) -> Carry:
    """Returns the carry in the trees of a checkpoint."""
    state = items["state"]
    if "ema" in items:
        state = dataclasses.replace(state, ema=items["ema"])
    return Carry(state, items.get("queue"), items.get("statistics"), items.get("negatives"))


def jit_step(step: Callable, carry: Carry, mesh: Mesh) -> Step:
    """Returns a step (carry, frozen, batch) -> (carry, report), jitted; it donates the carry."""
    shardings = jax.tree.map(lambda x: x.sharding, carry)

    def training_step(carry: Carry, variables: PyTree, batch: Mapping[str, jax.Array]):
        # It may lie in the host's memory; `out_shardings` puts it back there.
        opt_state = transfer.on_devices(carry.state.opt_state)
        state = dataclasses.replace(carry.state, opt_state=opt_state)
        return step(dataclasses.replace(carry, state=state), variables, batch)

    return jax.jit(
        training_step, donate_argnums=0, out_shardings=(shardings, meshes.replicated(mesh))
    )


def report_of(state: TrainState, metrics: PyTree) -> Report:
    """Returns the report of a step that came to this state."""
    return Report(metrics, state.skipped, state.skipped_in_a_row, state.culprit)
