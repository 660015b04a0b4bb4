"""The picture of a diagnosis: each measure over the temperature."""

import io
import itertools
from typing import Any

from drifting_jax.drawing import import_matplotlib, new_figure, own_style
from drifting_jax.evaluation.diagnosis.measures import Measures
from drifting_jax.evaluation.diagnosis.summary import ALL, Diagnosis

_INK, _SOFT, _GOOD = "#22333b", "#9aa5b1", "#e6f2e4"
_COLOURS = ("#d1495b", "#8d6cab", "#2e86ab", "#e59500", "#3a9d5d")


@own_style()
def diagnosis_picture(diagnosis: Diagnosis) -> bytes:
    """Returns a PNG of three panels over τ: effective positives, unreached samples, signal.

    A thick line is the median of a group of features, a thin one a feature. Dotted lines mark the
    temperatures of the config, and a green band 2 to p/2 effective positives.
    """
    p = diagnosis.sizes.positives
    figure = new_figure(figsize=(12, 4.2), dpi=100, layout="constrained")
    number, reach, signal = figure.subplots(1, 3)
    number.axhspan(2, p / 2, color=_GOOD, lw=0)
    number.set(yscale="log", ylim=(0.9, 1.15 * p), title="effective positives")
    ticks = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if n < p / 1.5] + [p]
    number.set_yticks(ticks, [f"{n} ({n / p:.0%})" for n in ticks])
    number.yaxis.set_minor_locator(import_matplotlib().ticker.NullLocator())
    reach.set(ylim=(-0.02, 1.02), title="share of unreached samples")
    signal.set(title="signal: correlation of V by two draws")
    for axes, name in ((number, "effective"), (reach, "unreached"), (signal, "signal")):
        _draw(axes, diagnosis, name)
    low = min(m.signal.min() for m in diagnosis.features.values())
    signal.set_ylim(min(-0.02, low - 0.05), 1.02)
    figure.legend(
        *signal.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=7,
        fontsize=9,
        frameon=False,
    )
    figure.suptitle(f"{diagnosis.title}: {diagnosis.encoder}", fontsize=11, color=_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, diagnosis: Diagnosis, measure: str) -> None:
    groups = diagnosis.groups
    colours = dict(zip(groups, itertools.cycle(_COLOURS), strict=False)) | {ALL: _INK}
    for temperature in diagnosis.chosen:
        axes.axvline(temperature, color=_SOFT, lw=1, ls=":")

    def line(m: Measures, **style: Any) -> None:
        axes.plot(diagnosis.temperatures, getattr(m, measure), **style)

    for name, m in diagnosis.features.items():
        if not m.is_degenerate:
            line(m, color=colours[diagnosis.group_of(name)], lw=0.6, alpha=0.35)
    for name, m in groups.items():
        style = "--" if name == ALL else "-"
        line(m, color=colours[name], lw=2, ls=style, label=name, marker="o", ms=3.5)
    axes.set_xscale("log")
    axes.set_xlabel("τ")
    ticks = diagnosis.temperatures
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_locator(import_matplotlib().ticker.NullLocator())
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10.5)
