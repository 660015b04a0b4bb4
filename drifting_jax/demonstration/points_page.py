"""The page of a toy: a slider over its training, and fresh points of a seed."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drifting_jax.demonstration import choices
from drifting_jax.demonstration.downloads import Files
from drifting_jax.demonstration.layout import QUEUED, outputs_beside
from drifting_jax.demonstration.points import MOST_POINTS, PointsShow
from drifting_jax.errors import UserError


def points_page(gradio: Any, show: PointsShow, animation: Path, *, title: str, folder: Path) -> Any:
    """Returns a page, a `gradio.Blocks`.

    Args:
      gradio: the package.
      show: draws the points.
      animation: a GIF of the training, which is shown if it exists.
      title: what is shown, such as the name of a run.
      folder: gets the files of the pictures.
    """
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(
            f"# {title}\nA generator of points in the plane drifts onto its target, "
            f"`{show.toy.config.data.target}`. Step {show.toy.step}; each point takes one "
            "evaluation of the network."
        )
        if len(show.steps) > 1:
            with gradio.Tab("Training"):
                _training_tab(gradio, page, show, folder)
        if animation.is_file():
            with gradio.Tab("Animation"):
                gradio.Image(
                    shutil.copy(animation, folder),
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    elem_id="animation",
                )
        with gradio.Tab("Fresh points"):
            _fresh_tab(gradio, page, show, folder)
    return page


def _training_tab(gradio: Any, page: Any, show: PointsShow, folder: Path) -> None:
    last = len(show.steps) - 1
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            number = gradio.Slider(
                0,
                last,
                value=last,
                step=1,
                label=f"Picture (0 to {last}: step {show.steps[0]} to {show.steps[last]})",
                elem_id="frame",
            )
        outputs = outputs_beside(gradio, prefix="frame")

    def respond(number: Any) -> list[Any]:
        return _answer(
            gradio,
            lambda: show.frame(choices.whole_number("Picture", number, 0, last), folder),
        )

    gradio.on([page.load, number.change], respond, inputs=[number], outputs=outputs, **QUEUED)


def _fresh_tab(gradio: Any, page: Any, show: PointsShow, folder: Path) -> None:
    averages = list(show.toy.samplers)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            count = gradio.Number(1024, label=f"Points (1 to {MOST_POINTS})", elem_id="fresh-count")
            seed = gradio.Number(0, label="Seed", elem_id="fresh-seed")
            average = gradio.Dropdown(
                [(f"{decay:g}", decay) for decay in averages],
                value=show.toy.config.eval.ema_decay,
                label="Average of the weights (decay)",
                visible=len(averages) > 1,
            )
            with gradio.Row():
                another = gradio.Button("Another seed")
                make = gradio.Button("Make", variant="primary", elem_id="fresh-make")
        outputs = outputs_beside(gradio, prefix="fresh")

    def respond(count: Any, seed: Any, average: Any) -> list[Any]:
        return _answer(
            gradio,
            lambda: show.fresh(
                choices.whole_number("Points", count, 1, MOST_POINTS),
                choices.whole_number("Seed", seed, 0, choices.LARGEST_SEED),
                choices.one_of("Average", average, averages),
                folder,
            ),
        )

    inputs = [count, seed, average]
    events = [page.load, make.click, count.submit, seed.submit, average.input]
    gradio.on(events, respond, inputs=inputs, outputs=outputs, **QUEUED)
    another.click(
        lambda: random.randrange(choices.LARGEST_SEED + 1), outputs=seed, api_visibility="private"
    ).then(respond, inputs=inputs, outputs=outputs, **QUEUED)


def _answer(gradio: Any, draw: Callable[[], tuple[str, Files]]) -> list[Any]:
    """New values of the outputs, or what is wrong."""
    try:
        line, files = draw()
    except UserError as error:
        return [f"**Not made.** {error}", *[gradio.skip()] * 3]
    return [line, str(files.png), str(files.png), str(files.npz)]
