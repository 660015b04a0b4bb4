"""The table of drifting fields: a new field is one file of this folder and one line here."""

import dataclasses
from collections.abc import Callable

import jax

from drifting_jax.method.fields.bias_corrected import bias_corrected
from drifting_jax.method.fields.energy import energy, fair_energy, mmd
from drifting_jax.method.fields.kernel_gradient import kernel_gradient, kl_chi2, sharp
from drifting_jax.method.fields.mean_shift import mean_shift
from drifting_jax.method.fields.options import DriftOptions, Kernel, Negatives
from drifting_jax.method.fields.sets import ScaledSets, acting_negatives
from drifting_jax.method.fields.sliced import sliced
from drifting_jax.method.fields.transport import sinkhorn, w_flow

_NEGATIVES: tuple[Negatives, ...] = ("own", "kept", "two_fold", "fresh")
# Options of every field. The floor is that of the paper's field; others have none.
_COMMON = ("temperatures", "affinity_floor", "field", "negatives")
_OF_WEIGHTS = ("lookahead", "lookahead_stride", "measure_reach")


@dataclasses.dataclass(frozen=True)
class Field:
    """A drifting field of one row and location.

    Attributes:
      function: (sets, temperature, options) -> weights w [g, n] of the targets, with which the
        samples x drift by V = Σ w·(y - x) over the targets y; or V [g, d] itself.
      gives_weights: whether it gives weights.
      negatives: the kinds of generated samples that may repel; the first is the default.
      reads: options that it reads besides temperatures and negatives.
      scale: what S is of the distances: their "mean", or their root mean square ("rms", S₂).
      has_temperature: whether it depends on τ.
      draws: whether it draws random numbers and needs a key.
      is_guided_linearly: whether guidance adds (α - 1)(T_y - T_o), T the attraction of one set. If
        not, unconditional targets join the negatives.
      kernel: of a field with a temperature that does not read the option; None without a kernel.
      is_pointwise: whether a picture may show V at the points of a grid in place of samples. Plans
        and ranks are of all samples together, so there a grid would change them.
    """

    function: Callable[[ScaledSets, float | jax.Array, DriftOptions], jax.Array]
    reads: tuple[str, ...] = ()
    _: dataclasses.KW_ONLY
    negatives: tuple[Negatives, ...] = _NEGATIVES
    gives_weights: bool = True
    scale: str = "mean"
    has_temperature: bool = True
    draws: bool = False
    is_guided_linearly: bool = True
    kernel: Kernel | None = None
    is_pointwise: bool = True

    @property
    def options(self) -> set[str]:
        """Names of the options that matter to it."""
        annealed = ("annealed",) if self.has_temperature else ()
        return {*_COMMON, *self.reads, *(_OF_WEIGHTS if self.gives_weights else ()), *annealed}


_KEPT_FIRST: tuple[Negatives, ...] = ("kept", "own", "two_fold", "fresh")
_KERNEL = ("kernel",)
_TRANSPORT = ("cost", "iterations")

FIELDS: dict[str, Field] = {
    "mean_shift": Field(
        mean_shift,
        ("kernel", "normalize", "combine", "attraction", "repulsion"),
        is_guided_linearly=False,
    ),
    "bias_corrected": Field(bias_corrected, ("kernel", "normalize"), is_guided_linearly=False),
    "kernel_gradient": Field(kernel_gradient, _KERNEL),
    "sharp": Field(sharp, _KERNEL),
    "kl_chi2": Field(kl_chi2, kernel="gaussian"),
    "sinkhorn": Field(
        sinkhorn,
        _TRANSPORT,
        negatives=_KEPT_FIRST,
        is_guided_linearly=False,
        is_pointwise=False,
    ),
    "w_flow": Field(
        w_flow,
        _TRANSPORT,
        negatives=("fresh", "two_fold", "own", "kept"),
        scale="rms",
        is_pointwise=False,
    ),
    "energy": Field(energy, ("neighbours",), negatives=_KEPT_FIRST, has_temperature=False),
    "fair_energy": Field(fair_energy, negatives=("own", "fresh"), has_temperature=False),
    "mmd": Field(mmd, negatives=_KEPT_FIRST, kernel="gaussian"),
    "sliced": Field(
        sliced,
        ("projections",),
        negatives=("own",),
        gives_weights=False,
        has_temperature=False,
        draws=True,
        is_pointwise=False,
    ),
}


def field_named(name: str) -> Field:
    """Returns the field of `DriftOptions.field`.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in FIELDS:
        raise ValueError(f"field must be one of {', '.join(FIELDS)}; found {name!r}")
    return FIELDS[name]


def negatives_of(options: DriftOptions) -> str:
    """Returns which generated samples repel: "own", "kept", "two_fold" or "fresh".

    Stale ones are a second batch as well, so they are "fresh" here.

    Raises:
      ValueError: the field does not take those that the options name.
    """
    field = field_named(options.field)
    if options.negatives == "default":
        return field.negatives[0]
    found = "fresh" if options.negatives == "stale" else options.negatives
    if found not in field.negatives:
        raise ValueError(
            f"the field {options.field!r} takes negatives of {', '.join(field.negatives)}; found "
            f"{options.negatives!r}"
        )
    return found


def temperatures_of(options: DriftOptions) -> tuple[float, ...]:
    """Returns the temperatures of the drifts; a field without any has one drift."""
    return options.temperatures if field_named(options.field).has_temperature else (1.0,)


def weighing_negatives(options: DriftOptions, generated: int) -> int:
    """Returns the negatives whose weight that of the unconditional samples is compared with (A.7).

    For linear guidance it is at least one, so that a row of one sample is guided too.
    """
    acting = acting_negatives(generated, negatives_of(options))
    return max(acting, 1) if field_named(options.field).is_guided_linearly else acting


def drift_names(options: DriftOptions) -> tuple[str, ...]:
    """Returns the names of the drifts that are normalised one by one: "0.05", or "0.05+1"."""
    found = []
    for temperature in temperatures_of(options):
        found.append(f"{temperature:g}")
        found += [f"{temperature:g}+{term + 1}" for term in range(options.lookahead)]
    return tuple(found)


def check_options(options: DriftOptions) -> None:
    """Checks that the field reads every option that differs from its default.

    Raises:
      ValueError: names the option.
    """
    field = field_named(options.field)
    negatives_of(options)
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if value != option.default and option.name not in field.options:
            raise ValueError(
                f"the field {options.field!r} does not read {option.name}; found {value!r}, set it "
                f"to {option.default!r}"
            )
    if options.lookahead_stride != 1 and not options.lookahead:
        raise ValueError(
            f"lookahead_stride needs lookahead of at least 1; found {options.lookahead}"
        )
    if options.measure_reach and options.lookahead:
        raise ValueError(f"measure_reach needs lookahead of 0; found {options.lookahead}")
