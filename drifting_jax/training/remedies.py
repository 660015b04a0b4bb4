"""What makes a step fit that is too large for its device: the cheapest change of the config.

The first candidate (`memory_candidates`) whose estimate fits is compiled. A change of known size
alone needs no compilation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from drifting_jax.compiler import targets
from drifting_jax.config import ConfigDict
from drifting_jax.training.compiled_report import CompiledStep
from drifting_jax.training.memory_candidates import (
    MOMENTS,
    Values,
    encoder_candidates,
    generator_candidates,
)
from drifting_jax.training.program import Program

_LARGEST_FRACTION = 0.92  # of a GPU's memory, where nothing else uses it
_SPARE = 0.1  # of the memory, for what a compiler does not know of a GPU that is not there
_MOST_COMPILATIONS = 3


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A change with which a step fits.

    Attributes:
      values: fields of the config by dotted names; none if `fraction` is all.
      fraction: share of a GPU's memory that JAX is to take; 0 for the share that it takes now.
      peak: bytes of a device that the step then needs.
      compiled: the changed step; None where the sizes of its parts were enough.
      is_other_method: whether the numbers of the run change.
    """

    values: Values
    fraction: float
    peak: int
    compiled: CompiledStep | None
    is_other_method: bool

    @property
    def words(self) -> str:
        """What to put in front of the command, or to add to it."""
        if self.fraction:
            return f"{targets.FRACTION}={self.fraction:g}"
        return as_flags(self.values)


def as_flags(values: Mapping[str, Any]) -> str:
    """Returns fields of a config as the flags that set them."""
    return " ".join(f"--config.{name}={value}" for name, value in values.items())


def room(step: CompiledStep) -> float:
    """Bytes that a remedy may need: all, or nine tenths where the GPU's own choices are unknown."""
    unknown = step.device.platform == "gpu" and not targets.is_present(step.device)
    return step.capacity * (1 - _SPARE if unknown else 1)


def larger_fraction(step: CompiledStep) -> Remedy | None:
    """Returns the remedy for a step that fits the GPU, but not the share of it that JAX takes."""
    if step.device.platform != "gpu" or not step.peak:
        return None
    whole = _LARGEST_FRACTION * targets.nominal_memory(step.device)
    if whole <= step.capacity or step.peak > whole * (1 - _SPARE):
        return None
    return Remedy({}, _LARGEST_FRACTION, step.peak, None, is_other_method=False)


def remedy(
    config: ConfigDict,
    found: Program,
    step: CompiledStep,
    *,
    compile_with: Callable[[Values], CompiledStep],
) -> Remedy | None:
    """Returns the cheapest change with which a step fits its devices; None if none is known.

    Args:
      config: of the step.
      found: the step.
      step: the same, compiled; it does not fit.
      compile_with: fields -> the step with these, compiled.
    """
    if step.capacity and (fraction := larger_fraction(step)):
        return fraction
    candidates = {"generator": generator_candidates, "encoder": encoder_candidates}.get(found.name)
    if candidates is None or not step.capacity:
        return None
    compilations, too_low = 0, 1.0
    for candidate in candidates(config, found, step):
        if candidate.peak * too_low > room(step):
            continue
        if candidate.is_known and step.peak:
            return Remedy(candidate.values, 0, int(candidate.peak), None, is_other_method=False)
        if compilations == _MOST_COMPILATIONS:
            break
        compilations += 1
        seen = {name: x for name, x in candidate.values.items() if name != MOMENTS}
        compiled = compile_with(seen)
        peak = compiled.peak - candidate.saved
        is_refused = bool(compiled.refusal) and not (candidate.saved and compiled.peak)
        if not is_refused and peak <= room(step):
            return Remedy(candidate.values, 0, peak, compiled, candidate.is_other_method)
        too_low = max(too_low, peak / candidate.peak)
    return None
