"""The options of the drift, which travel together from the config to the field."""

import dataclasses
from typing import Literal

Kernel = Literal["laplacian", "gaussian"]
Normalization = Literal["both", "targets", "none"]
Combination = Literal["crossed", "separate"]


@dataclasses.dataclass(frozen=True)
class DriftOptions:
    """How samples drift. The defaults are the paper's, with the floor of its released code.

    Attributes:
      temperatures: τ of the kernels, in units of the mean distance S; one drift for each.
      affinity_floor: lower clip of softmax·softmax before the root; 0 as in Algorithm 2.
      kernel: "laplacian" exp(-r/τ) (12), or "gaussian" exp(-r²/2τ²).
      normalize: softmax over targets and over samples ("both"), over "targets" alone, or "none"
        (Table 11).
      combine: "crossed" weighs each side by the other's total, as Algorithm 2 does; "separate"
        divides each side by its own total, as (8)-(11) read literally.
      attraction: factor on V⁺. With `repulsion` it makes the destructive cases of Table 1.
      repulsion: factor on V⁻.
      field: name in `fields.table.FIELDS`.

    Raises:
      ValueError: an unknown choice, or a temperature that is not above 0.
    """

    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    affinity_floor: float = 1e-6
    kernel: Kernel = "laplacian"
    normalize: Normalization = "both"
    combine: Combination = "crossed"
    attraction: float = 1.0
    repulsion: float = 1.0
    field: str = "mean_shift"

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(
                f"temperatures must be one or more positive numbers; found {self.temperatures}"
            )
        _require_one_of("kernel", self.kernel, ("laplacian", "gaussian"))
        _require_one_of("normalize", self.normalize, ("both", "targets", "none"))
        _require_one_of("combine", self.combine, ("crossed", "separate"))


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
