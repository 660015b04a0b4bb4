"""Sizes and settings of a generator's step."""

import dataclasses

from drifting_jax.method.fields.options import DriftOptions
from drifting_jax.method.fields.table import negatives_of


@dataclasses.dataclass(frozen=True)
class GeneratorStepConfig:
    """Sizes and settings of a generator's step (A.8, A.9).

    Attributes:
      labels: c, class rows of a step.
      generated, positives, unconditional: g, p, u, samples of each row.
      drift: the field and its temperatures.
      num_steps: steps of the run, over which temperatures may be annealed.
      cfg_minimum, cfg_maximum, cfg_power, cfg_probability_of_one: the law of α.
      ema_decays: one moving average of the parameters for each.
      ema_widths: one power-function average of the parameters for each.
      microbatches: parts of the class rows that are computed one after another, which takes less
        memory and more work. The numbers do not depend on it, with `shared_statistics` "batch".
      parts_of_rows: parts of the samples of every row that are encoded one after another, beside
        whole rows (`microbatches` 1); the numbers do not depend on it.
      keep_maps: whether the encoders' maps of all microbatches are kept from the first pass over
        them to the last: "yes", on the devices; "host", in pinned memory of their host; "no", each
        pass computes them again.
      shared_statistics: what S and the norms of the drift are taken over: "batch" is exact;
        "microbatch" is another method, in which each microbatch has its own, at no further work;
        "previous" takes those of the step before, also at no further work.
      nearest: positives of each row that are the nearest to an anchor, at step 0; 0 for none.
      nearest_share: of the run, after which there are none.
      feature_weights: ((feature, weight of its loss), ...); 1 for the others.
    """

    labels: int
    generated: int
    positives: int
    unconditional: int
    drift: DriftOptions
    num_steps: int
    cfg_minimum: float
    cfg_maximum: float
    cfg_power: float
    cfg_probability_of_one: float
    ema_decays: tuple[float, ...]
    microbatches: int = 1
    parts_of_rows: int = 1
    keep_maps: str = "yes"
    shared_statistics: str = "batch"
    nearest: int = 0
    nearest_share: float = 1.0
    ema_widths: tuple[float, ...] = ()
    feature_weights: tuple[tuple[str, float], ...] = ()

    @property
    def shares_statistics(self) -> bool:
        """Whether microbatches take three passes, of which the first can keep maps."""
        return self.shared_statistics == "batch"

    @property
    def negatives(self) -> str:
        """The generated samples that repel: "own", "kept", "two_fold" or "fresh"."""
        return negatives_of(self.drift)

    @property
    def is_stale(self) -> bool:
        """Whether those are the samples of the step before, so that a row keeps its class."""
        return self.drift.negatives == "stale"
