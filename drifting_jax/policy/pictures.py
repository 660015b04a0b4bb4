"""Pictures of a policy: predicted chunks of actions over those of the demonstrations."""

import io
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from drifting_jax.drawing import new_figure, own_style
from drifting_jax.errors import first_line
from drifting_jax.policy.policy import Policy
from drifting_jax.policy.windows import WindowSource

_ALL, _SHOWN, _PREDICTED, _EXECUTED = "#9aa5b1", "#22333b", "#d1495b", "#eef1f4"
_WINDOWS, _CHUNKS, _DIMENSIONS = 4, 16, 4
_MOST_POINTS = 4000


def chunks_picture(policy: Policy, source: WindowSource) -> np.ndarray | None:
    """Returns [h, w, 3] uint8: some windows, and the chunks that the policy predicts for them.

    Actions of two dimensions are shown in their plane, over all actions of the demonstrations.
    Others are shown over time, the first four dimensions. A picture that cannot be drawn ends no
    run: an error is logged, and it is None.
    """
    try:
        with own_style():
            return _drawn(policy, source)
    except Exception as error:  # whatever it is, the run is worth more
        logging.error("Could not draw the chunks of actions: %s", first_line(error))
        return None


def _drawn(policy: Policy, source: WindowSource) -> np.ndarray:
    windows = source.spread(_WINDOWS)
    seen = np.repeat(policy.scalings.observation.unscaled(source.observation(windows)), _CHUNKS, 0)
    chunks = policy.predict(seen, seed=0)
    chunks = chunks.reshape(len(windows), _CHUNKS, *chunks.shape[1:])
    shown = policy.scalings.action.unscaled(source.action(windows))  # [n, H, d_a]
    in_plane = policy.sizes.action == 2
    rows = 1 if in_plane else min(policy.sizes.action, _DIMENSIONS)
    size = (3.2 * len(windows), 3.2 if in_plane else 1.7 * rows)
    figure = new_figure(figsize=size, dpi=80, layout="constrained")
    panels = figure.subplots(rows, len(windows), squeeze=False)
    for column, window in enumerate(windows):
        panels[0, column].set_title(source.name(int(window)), fontsize=9)
        if in_plane:
            every = policy.scalings.action.unscaled(source.actions)
            every = every[:: -(-len(every) // _MOST_POINTS)]
            _draw_plane(panels[0, column], every, shown[column], chunks[column])
            continue
        for row in range(rows):
            _draw_time(panels[row, column], policy, shown[column, :, row], chunks[column, ..., row])
            if not column:
                panels[row, column].set_ylabel(f"action {row}", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return np.asarray(Image.open(data).convert("RGB"))


def _draw_plane(axes: Any, every: np.ndarray, shown: np.ndarray, chunks: np.ndarray) -> None:
    """Draws all actions [n, 2], those of one window [H, 2], and predicted ones [k, H, 2]."""
    mark = "." if len(shown) == 1 else ""
    axes.plot(*every.T, ".", color=_ALL, ms=1.5, alpha=0.4)
    for chunk in chunks:
        axes.plot(*chunk.T, color=_PREDICTED, lw=0.9, alpha=0.7, marker=mark)
    axes.plot(*shown.T, color=_SHOWN, lw=1.6, marker=mark)


def _draw_time(axes: Any, policy: Policy, shown: np.ndarray, chunks: np.ndarray) -> None:
    """Draws one dimension of the actions of a window [H], and of predicted ones [k, H]."""
    mark = "." if len(shown) == 1 else ""
    executed = policy.horizons.executed
    axes.axvspan(executed.start - 0.5, executed.stop - 0.5, color=_EXECUTED, zorder=0)
    axes.plot(chunks.T, color=_PREDICTED, lw=0.9, alpha=0.7, marker=mark)
    axes.plot(shown, color=_SHOWN, lw=1.6, marker=mark)
