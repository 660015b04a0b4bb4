"""The plan that ends a dry run: whether all stages fit, what makes them fit, hours, energy, price.

Every number is an estimate from compiled programs. No step is run for it.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.config.stored import with_values
from drifting_jax.training import encoder
from drifting_jax.training.compiled_report import CompiledStep, compile_step, report_line
from drifting_jax.training.program import Program
from drifting_jax.training.remedies import Remedy, Values, as_flags, larger_fraction, remedy, room
from drifting_jax.training.run_costs import StageTime, duration, run_cost

Assemble = Callable[[ConfigDict], Program]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What is planned for a stage of a run.

    Attributes:
      name: "encoder", "generator" or "toy".
      steps: of the stage.
      step: as the config has it, compiled.
      remedy: what makes it fit; None if it fits, or if nothing is known that does.
    """

    name: str
    steps: int
    step: CompiledStep
    remedy: Remedy | None

    @property
    def seconds(self) -> float | None:
        """The estimate of a step's time, with the remedy where that was compiled."""
        changed = self.remedy.compiled if self.remedy else None
        return (changed.seconds if changed else None) or self.step.seconds


def plan_lines(
    config: ConfigDict,
    found: Program,
    step: CompiledStep,
    *,
    assemble: Assemble,
    price_per_hour: float | None = None,
) -> list[str]:
    """Returns the plan of a whole run as lines.

    It compiles the training of the encoder too, if the run has one, and what might make a step fit
    that does not.

    Args:
      config: of the run.
      found: the step of its task.
      step: the same, compiled.
      assemble: config -> its step, for the same devices.
      price_per_hour: of one device; None to leave the price out.
    """
    kind, mesh = step.device.device_kind, found.mesh
    if step.fits is None and step.seconds is None:
        return [f"no plan: neither the memory nor the speed of a {kind} is known"]
    stages = []
    if config.task == "generator" and encoder.is_trained_here(config):
        alone = with_values(config, {"task": "encoder"})
        first = assemble(alone)
        _say("compiling the step of the encoder, which the run trains first")
        stages.append(_stage(alone, first, compile_step(first, mesh), assemble))
    stages.append(_stage(config, found, step, assemble))
    return [
        f"plan for {mesh.size} x {kind}, from compiled programs; no step was run:",
        *(line for stage in stages for line in _verdict(stage)),
        *_cost_lines(stages, mesh, price_per_hour),
    ]


def _stage(config: ConfigDict, found: Program, step: CompiledStep, assemble: Assemble) -> StagePlan:
    """Plans one stage; of a step that does not fit, it compiles some changes."""

    def compile_with(values: Values) -> CompiledStep:
        _say(f"compiling the {found.name}'s step again, with {as_flags(values)}")
        return compile_step(assemble(with_values(config, values)), found.mesh)

    wanted = None
    if step.fits is False:
        wanted = remedy(config, found, step, compile_with=compile_with)
    elif step.capacity and step.peak > room(step):
        wanted = larger_fraction(step)
    return StagePlan(found.name, found.num_steps, step, wanted)


def _verdict(stage: StagePlan) -> list[str]:
    """Returns the lines that say whether a stage fits, and what to do."""
    step, change = stage.step, stage.remedy
    if step.fits is None:
        return [report_line(stage.name, "the memory of this kind of device is not known")]
    capacity = f"{step.capacity / 2**30:.1f} GiB"
    told = f"{step.peak / 2**30:.2f} of {capacity}" if step.peak else f"more than its {capacity}"
    if step.fits:
        lines = [report_line(stage.name, f"fits: {told}")]
        if step.peak > room(step):
            lines[0] += "; a tenth should be free for what the compiler does not know"
        return lines + (
            [report_line("", f"to leave a tenth free: {change.words}")] if change else []
        )
    if change is None:
        return [
            report_line(
                stage.name, f"does NOT fit: {told}, and no change that was tried makes it fit;"
            ),
            report_line(
                "", "take a larger device, or split the state over several (config.mesh.fsdp)"
            ),
        ]
    how = "compiled" if change.compiled else "by the sizes of what moves"
    fits = f"{change.peak / 2**30:.2f} GiB ({how})"
    if change.fraction:
        fits = f"the GPU's {targets.nominal_memory(step.device) / 2**30:.1f} GiB"
    method = [
        report_line("", "this is another method: its numbers change")
    ] * change.is_other_method
    return [
        report_line(stage.name, f"does NOT fit: {told}; this makes it fit, in {fits}:"),
        report_line("", change.words),
        *method,
    ]


def _cost_lines(stages: Sequence[StagePlan], mesh: Mesh, price_per_hour: float | None) -> list[str]:
    """Returns the lines on time, energy and price of the whole run."""
    device = stages[-1].step.device
    times = [StageTime(x.name, x.steps, x.seconds) for x in stages if x.seconds is not None]
    if len(times) < len(stages):
        refused = any(x.step.fits is False and not x.step.peak for x in stages)
        of_device = f"there is no estimate for a {device.device_kind}"
        return [report_line("time", "none: a step does not fit" if refused else of_device)]
    watts = targets.board_power(device)
    cost = run_cost(times, devices=mesh.size, watts=watts, price_per_hour=price_per_hour)
    unchanged = {x.name for x in stages if x.remedy and x.remedy.values and not x.remedy.compiled}
    lines = [
        report_line(
            f"time of the {x.name}",
            f"about {duration(x.total)}: {x.steps:,} steps of {duration(x.seconds)}"
            + " without the change" * (x.name in unchanged),
        )
        for x in times
    ]
    if len(times) > 1:
        lines.append(report_line("time of the run", f"about {duration(cost.hours * 3600)}"))
    if cost.kilowatt_hours is None:
        lines.append(report_line("energy", "the power of this kind of device is not known"))
    else:
        bound = f"at most {_number(cost.kilowatt_hours)} kWh in that time: board power, {watts:g} W"
        lines.append(report_line("energy", f"{bound} each, without the host"))
    if cost.price is not None:
        each = f"at {price_per_hour:g} an hour for each device"
        lines.append(report_line("price", f"about {cost.price:,.2f} {each}"))
    lines.append(report_line("not included", "reading data, pictures, checkpoints, evaluation"))
    return lines


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
