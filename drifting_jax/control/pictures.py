"""Pictures of rollouts: animations, and the paths of a task in the plane."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from drifting_jax.control.environments import two_ways
from drifting_jax.control.rollouts import Episode
from drifting_jax.drawing import new_figure, own_style

MILLISECONDS = 60  # that an animation shows a picture
_LAST_MILLISECONDS = 1500
_GIF_COLOURS = 48
_COLOURS = {"above": "#1f6f8b", "below": "#c07a1e"}  # of ways; everything else is a failure
_FAILURE = "#b4233f"


def animation(pictures: Sequence[np.ndarray]) -> bytes:
    """Returns a GIF of pictures [h, w, 3] uint8 that runs for ever and rests on its last one."""
    frames = [Image.fromarray(picture).quantize(_GIF_COLOURS) for picture in pictures]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=[MILLISECONDS] * (len(frames) - 1) + [_LAST_MILLISECONDS],
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


@own_style()
def paths_picture(panels: Mapping[str, Sequence[Episode]]) -> bytes:
    """Returns a PNG of all paths of the task two_ways, a panel for each policy.

    Args:
      panels: {title: episodes}.
    """
    figure = new_figure(figsize=(3.0 * len(panels), 3.2), dpi=100, layout="constrained")
    for axes, (title, episodes) in zip(
        np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
    ):
        _draw_arena(axes)
        for episode in episodes:
            colour = _COLOURS[episode.ending] if episode.success else _FAILURE
            axes.plot(*episode.observations.T, color=colour, linewidth=0.7, alpha=0.45)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(_shares(episodes), fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_arena(axes) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), two_ways.OBSTACLE_RADIUS, color="#5c6874"))
    axes.add_patch(Circle(tuple(two_ways.GOAL), two_ways.GOAL_RADIUS, color="#8fc79a"))
    axes.set(xlim=(-1, 1.05), ylim=(-0.85, 0.85), aspect="equal", xticks=[], yticks=[])


def _shares(episodes: Sequence[Episode]) -> str:
    """How the episodes ended, such as "above 49%, below 50%, failed 1%"."""
    ways = {way: sum(e.success and e.ending == way for e in episodes) for way in _COLOURS}
    counts = ways | {"failed": sum(not e.success for e in episodes)}
    return ", ".join(f"{name} {count / len(episodes):.0%}" for name, count in counts.items())
