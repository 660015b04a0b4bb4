"""A diagnosis in words: groups of features, a table, warnings and suggested temperatures."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from drifting_jax.evaluation.diagnosis.measures import Measures
from drifting_jax.evaluation.diagnosis.rows import STAND_INS, RowSizes

ALL = "all features"
_FLAT = 0.9  # share of p; more effective targets make a flat kernel
_NEAREST = 1.5  # effective targets; fewer make a nearest-neighbour kernel
_FEWEST, _LARGEST_SHARE = 2.0, 0.5  # effective targets, and share of p, of a suggested temperature
_OF_BEST = 0.9  # share of the best signal that a suggested temperature has
_ORDER = ("raw", "input rms", "joint", "locations", "means", "stds")  # kinds of features
_KINDS = {"raw": "raw", "rms": "input rms", "joint": "joint", "mean": "means", "std": "stds"}
_LISTED = 3  # features in a message


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was measured.

    Attributes:
      title: the config, for people.
      encoder: where the encoder was read, for people.
      field: name of the drifting field.
      kernel: "laplacian" or "gaussian".
      temperatures: τ that were measured, rising.
      chosen: those that the config has.
      sizes: of the class rows.
      features: {name: Measures}.
      extras: names of encoders of pixels, each of which begins the names of its features.
    """

    title: str
    encoder: str
    field: str
    kernel: str
    temperatures: tuple[float, ...]
    chosen: tuple[float, ...]
    sizes: RowSizes
    features: Mapping[str, Measures]
    extras: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, Measures]:
        """{group of features: medians over its features}; the last is `ALL`, if there are more."""
        names: dict[str, list[str]] = {}
        for name in sorted(self.features, key=lambda name: _ORDER.index(_kind_of(name))):
            if not self.features[name].is_degenerate:
                names.setdefault(self.group_of(name), []).append(name)
        found = {group: self._median(members) for group, members in names.items()}
        if len(found) > 1:
            found[ALL] = self._median([name for members in names.values() for name in members])
        return found

    def group_of(self, name: str) -> str:
        """Returns the group of a feature: its kind, after the name of an encoder of pixels."""
        encoder = name.partition("/")[0]
        return f"{encoder} {_kind_of(name)}" if encoder in self.extras else _kind_of(name)

    def _median(self, names: Sequence[str]) -> Measures:
        members = [self.features[name] for name in names]
        return Measures(
            scale=float(np.median([m.scale for m in members])),
            effective=np.median([m.effective for m in members], axis=0),
            unreached=np.median([m.unreached for m in members], axis=0),
            signal=np.median([m.signal for m in members], axis=0),
        )


def _kind_of(name: str) -> str:
    """Returns what a feature is, one of `_ORDER`."""
    last = name.rpartition("/")[2]
    return _KINDS.get(last.partition("_")[0], "locations")


def report(diagnosis: Diagnosis, *, per_feature: bool = False) -> str:
    """Returns the text of a diagnosis for a terminal.

    Args:
      diagnosis: what was measured.
      per_feature: whether the table has a row for each feature, in place of each group.
    """
    sizes, p = diagnosis.sizes, diagnosis.sizes.positives
    rows: Mapping[str, Measures] = diagnosis.groups
    if per_feature:
        rows = diagnosis.features
    else:
        varying = [name for name, m in diagnosis.features.items() if not m.is_degenerate]
        counts = collections.Counter(map(diagnosis.group_of, varying))
        rows = {f"{name} ({counts[name]})" if name != ALL else name: m for name, m in rows.items()}
    title = f"effective number of positives, and its share of {p}"
    measures: dict[str, Callable[[Measures], list[str]]] = {
        title: lambda m: [f"{x:.1f} ({x / p:.0%})" for x in m.effective],
        "samples that no positive reaches": lambda m: [f"{x:.0%}" for x in m.unreached],
        "signal: correlation of V by two draws of targets": lambda m: [
            f"{x:.2f}" for x in m.signal
        ],
    }
    blocks = [
        _block(diagnosis, title, {name: texts(m) for name, m in rows.items()})
        for title, texts in measures.items()
    ]
    head = (
        f"{diagnosis.title}: {diagnosis.encoder}; field {diagnosis.field}, "
        f"{diagnosis.kernel} kernel\n{len(sizes.labels)} class rows, each with {sizes.generated} "
        f"samples, twice {sizes.generated} negatives and twice {p} positives\n"
        f"samples and negatives are {STAND_INS[sizes.stand_in]}"
    )
    words = [*warnings(diagnosis), *suggestions(diagnosis)]
    return "\n\n".join([head, *blocks, "\n".join(words)])


def warnings(diagnosis: Diagnosis) -> list[str]:
    """Returns a sentence for each temperature of the config whose kernel is flat or too sharp."""
    p, found = diagnosis.sizes.positives, []
    still = [name for name, m in diagnosis.features.items() if m.is_degenerate]
    if still:
        found.append(f"warning: {_listed(still)} hardly varies over the images; the loss omits it")
    kinds: tuple[tuple[Callable[[float], bool], str], ...] = (
        (
            lambda x: x > _FLAT * p,
            f"the kernel is flat: it hardly tells the {p} positives apart. A smaller τ does",
        ),
        (
            lambda x: x < _NEAREST,
            "the kernel sees the nearest positive alone. A larger τ averages over more",
        ),
    )
    for at, temperature in enumerate(diagnosis.temperatures):
        if temperature not in diagnosis.chosen:
            continue
        for is_bad, words in kinds:
            bad = [
                f"{name} ({m.effective[at]:.1f} of {p})"
                for name, m in diagnosis.groups.items()
                if is_bad(m.effective[at]) and name != ALL
            ]
            if bad:
                found.append(f"warning: at τ = {temperature:g} {words}: {', '.join(bad)}")
    return found


def suggestions(diagnosis: Diagnosis) -> list[str]:
    """Returns a sentence of suggested temperatures for each group of features."""
    found = []
    for name, m in diagnosis.groups.items():
        good = suggested(m, diagnosis.temperatures, diagnosis.sizes.positives)
        words = ", ".join(f"{temperature:g}" for temperature in good) or "none of these"
        found.append(f"suggested τ for {name}: {words}")
    return found


def suggested(
    measures: Measures, temperatures: Sequence[float], positives: int
) -> tuple[float, ...]:
    """Returns the temperatures with 2 to p/2 effective positives and nearly the best signal.

    The best is that of the temperatures with so many positives; nearly is 0.9 of it or more. There
    is none if no signal is above 0.
    """
    few = measures.effective >= _FEWEST
    fits = few & (measures.effective <= _LARGEST_SHARE * positives) & (measures.signal > 0)
    if not fits.any():
        return ()
    good = fits & (measures.signal >= _OF_BEST * measures.signal[fits].max())
    return tuple(float(t) for t, is_good in zip(temperatures, good, strict=True) if is_good)


def record(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns the diagnosis for JSON: lists over τ; a number that is not finite is null."""
    sizes = diagnosis.sizes

    def of(m: Measures) -> dict[str, Any]:
        return {
            "distance_scale": _finite([m.scale])[0],
            "effective_positives": _finite(m.effective),
            "share_of_positives": _finite(m.effective / sizes.positives),
            "unreached": _finite(m.unreached),
            "signal": _finite(m.signal),
        }

    return {
        "config": diagnosis.title,
        "encoder": diagnosis.encoder,
        "field": diagnosis.field,
        "kernel": diagnosis.kernel,
        "temperatures": list(diagnosis.temperatures),
        "temperatures_of_config": list(diagnosis.chosen),
        "labels": list(sizes.labels),
        "generated": sizes.generated,
        "positives": sizes.positives,
        "generated_are": STAND_INS[sizes.stand_in],
        "suggested": {
            name: list(suggested(m, diagnosis.temperatures, sizes.positives))
            for name, m in diagnosis.groups.items()
        },
        "groups": {name: of(m) for name, m in diagnosis.groups.items()},
        "features": {name: of(m) for name, m in diagnosis.features.items()},
        "warnings": warnings(diagnosis),
    }


def _block(diagnosis: Diagnosis, title: str, rows: Mapping[str, Sequence[str]]) -> str:
    """Lines of text of one measure; a star marks the temperatures of the config."""
    heads = [f"{t:g}{'*' if t in diagnosis.chosen else ' '}" for t in diagnosis.temperatures]
    lines = {"τ (* of the config)": heads} | {n: [f"{x} " for x in row] for n, row in rows.items()}
    first = max(map(len, lines))
    width = max(len(text) for row in lines.values() for text in row)
    texts = [
        f"{name:<{first}}  {'  '.join(text.rjust(width) for text in row)}".rstrip()
        for name, row in lines.items()
    ]
    return "\n".join([title, *texts])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _finite(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [float(x) if math.isfinite(x) else None for x in values]
