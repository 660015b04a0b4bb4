"""The options of the drift, which travel together from the config to the field."""

import dataclasses
from typing import Literal

Kernel = Literal["laplacian", "gaussian"]
Normalization = Literal["both", "targets", "none"]
Combination = Literal["crossed", "separate"]
Negatives = Literal["default", "own", "kept", "two_fold", "fresh", "stale"]
Cost = Literal["distance", "squared"]


@dataclasses.dataclass(frozen=True)
class DriftOptions:
    """How samples drift. The defaults are the paper's, with the floor of its released code.

    A field reads the options that `fields.table.FIELDS` lists for it.

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
      negatives: which generated samples repel: the samples themselves, each without itself ("own")
        or with itself ("kept"), the other half of the samples ("two_fold"), a second batch
        ("fresh"), or the samples of the step before ("stale", which to a field are a fresh batch);
        "default" is the field's own.
      cost: of transport plans, the distance or its square.
      iterations: K, Sinkhorn iterations of a transport plan.
      neighbours: nearest targets of each side that act; 0 for all.
      projections: L, random directions of the sliced field.
      lookahead: further drifts of each sample, from where the drifts before have moved it.
      lookahead_stride: how far it moves, in units of the drift's own displacement.
      annealed: whether τ falls from 1 to its value over the first half of the training.
      measure_reach: whether the statistics say how many positives pull a sample; of fields that
        give weights, without lookahead.

    Raises:
      ValueError: an unknown choice, or a number out of its range.
    """

    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    affinity_floor: float = 1e-6
    kernel: Kernel = "laplacian"
    normalize: Normalization = "both"
    combine: Combination = "crossed"
    attraction: float = 1.0
    repulsion: float = 1.0
    field: str = "mean_shift"
    negatives: Negatives = "default"
    cost: Cost = "squared"
    iterations: int = 10
    neighbours: int = 0
    projections: int = 128
    lookahead: int = 0
    lookahead_stride: float = 1.0
    annealed: bool = False
    measure_reach: bool = False

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(
                f"temperatures must be one or more positive numbers; found {self.temperatures}"
            )
        for name, allowed in (
            ("kernel", ("laplacian", "gaussian")),
            ("normalize", ("both", "targets", "none")),
            ("combine", ("crossed", "separate")),
            ("negatives", ("default", "own", "kept", "two_fold", "fresh", "stale")),
            ("cost", ("distance", "squared")),
        ):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
        for name, least in (
            ("iterations", 1),
            ("neighbours", 0),
            ("projections", 1),
            ("lookahead", 0),
        ):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}; found {value}")
