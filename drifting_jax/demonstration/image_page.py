"""The page of a generator of images: samples of a class, and samples between two seeds."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drifting_jax.demonstration import choices
from drifting_jax.demonstration.downloads import Files, write_images
from drifting_jax.demonstration.layout import QUEUED, outputs_beside
from drifting_jax.demonstration.studio import Studio, Wish
from drifting_jax.errors import UserError

_STEPS_BETWEEN = 8
_COMPILES = "The first picture with {} samples compiles a program, once. Please wait …"


def image_page(gradio: Any, studio: Studio, *, title: str, folder: Path) -> Any:
    """Returns a page, a `gradio.Blocks`.

    Args:
      gradio: the package.
      studio: makes the pictures.
      title: what is shown, such as the name of a run.
      folder: gets the files of the pictures.
    """
    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(600, 3600), fill_width=False
    ) as page:
        gradio.Markdown(f"# {title}\n{_description(studio)}")
        with gradio.Tab("Samples"):
            _samples_tab(gradio, page, studio, folder)
        with gradio.Tab("Between two seeds"):
            _between_tab(gradio, studio, folder)
    return page


def _description(studio: Studio) -> str:
    generator = studio.generator
    text = f"Step {generator.step}, {len(generator.class_names)} classes. "
    if generator.alpha_range is None:
        return text + "Each sample takes one evaluation of the network."
    low, high = generator.alpha_range
    return text + (
        "Each sample takes one evaluation of the network. "
        f"It was trained for guidance scales α from {low:g} to {high:g}."
    )


def _samples_tab(gradio: Any, page: Any, studio: Studio, folder: Path) -> None:
    label, count = choices.first_count(len(studio.generator.class_names))
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            shared = _shared_controls(gradio, studio, label, prefix="samples")
            rows = gradio.Number(
                count, label=f"Samples (1 to {choices.MOST_SAMPLES})", elem_id="samples-count"
            )
            seed = gradio.Number(0, label="Seed", elem_id="samples-seed")
            with gradio.Row():
                another = gradio.Button("Another seed", elem_id="samples-another")
                make = gradio.Button("Make", variant="primary", elem_id="samples-make")
        outputs = outputs_beside(gradio, prefix="samples")

    def respond(label: Any, alpha: Any, average: Any, rows: Any, seed: Any) -> Iterator[Any]:
        yield from _answers(
            gradio, studio, folder, lambda: _wish(studio, label, alpha, average, rows, (seed,))
        )

    gradio.on(
        [page.load, make.click, rows.submit, seed.submit, *_changes(shared)],
        respond,
        inputs=[*shared, rows, seed],
        outputs=outputs,
        **QUEUED,
    )
    another.click(
        lambda: random.randrange(choices.LARGEST_SEED + 1),
        outputs=seed,
        api_visibility="private",
    ).then(respond, inputs=[*shared, rows, seed], outputs=outputs, **QUEUED)


def _between_tab(gradio: Any, studio: Studio, folder: Path) -> None:
    label, _ = choices.first_count(len(studio.generator.class_names))
    most = choices.MOST_SAMPLES // _STEPS_BETWEEN
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            shared = _shared_controls(gradio, studio, label, prefix="between")
            rows = gradio.Number(4, label=f"Rows (1 to {most})", elem_id="between-count")
            with gradio.Row():
                first = gradio.Number(0, label="Seed on the left", min_width=120)
                last = gradio.Number(1, label="Seed on the right", min_width=120)
            make = gradio.Button("Make", variant="primary", elem_id="between-make")
        outputs = outputs_beside(gradio, prefix="between")

    def respond(label: Any, alpha: Any, average: Any, rows: Any, *seeds: Any) -> Iterator[Any]:
        yield from _answers(
            gradio, studio, folder, lambda: _wish(studio, label, alpha, average, rows, seeds)
        )

    gradio.on(
        [make.click, rows.submit, first.submit, last.submit, *_changes(shared)],
        respond,
        inputs=[*shared, rows, first, last],
        outputs=outputs,
        **QUEUED,
    )


def _shared_controls(gradio: Any, studio: Studio, label: int, *, prefix: str) -> list[Any]:
    """Class, guidance scale and average."""
    low, high = choices.alpha_bounds(studio.generator.alpha_range)
    return [
        gradio.Dropdown(
            choices.class_choices(studio.generator.class_names),
            value=label,
            label="Class (type to search)",
            elem_id=f"{prefix}-class",
        ),
        gradio.Slider(
            low, high, value=1, step=0.05, label="Guidance scale α", elem_id=f"{prefix}-alpha"
        ),
        gradio.Dropdown(
            [(f"{average:g}", average) for average in studio.averages],
            value=studio.generator.ema_decay,
            label="Average of the weights (decay)",
            visible=len(studio.averages) > 1,
            elem_id=f"{prefix}-average",
        ),
    ]


def _changes(shared: list[Any]) -> list[Any]:
    label, alpha, average = shared
    return [label.input, alpha.change, average.input]


def _wish(
    studio: Studio, label: Any, alpha: Any, average: Any, rows: Any, seeds: tuple[Any, ...]
) -> Wish:
    """What the controls say.

    Raises:
      UserError: a value is none that the page offers.
    """
    generator = studio.generator
    columns = _STEPS_BETWEEN if len(seeds) > 1 else 1
    known = [choices.ALL_CLASSES, *range(len(generator.class_names))]
    if len(seeds) != len(set(seeds)):
        raise UserError(f"Seeds: expected two different ones; found {seeds[0]} twice")
    return Wish(
        label=choices.one_of("Class", label, known),
        alpha=choices.number_within("α", alpha, choices.alpha_bounds(generator.alpha_range)),
        average=choices.one_of("Average", average, studio.averages),
        rows=choices.whole_number("Samples", rows, 1, choices.MOST_SAMPLES // columns),
        seeds=tuple(choices.whole_number("Seed", s, 0, choices.LARGEST_SEED) for s in seeds),
        columns=columns,
    )


def _answers(
    gradio: Any, studio: Studio, folder: Path, read: Callable[[], Wish]
) -> Iterator[list[Any]]:
    """New values of the outputs: a line while a program compiles, then all, or what is wrong."""
    kept = [gradio.skip()] * 3
    try:
        wish = read()
        if studio.compiles(wish):
            yield [_COMPILES.format(wish.count), *kept]
        made = studio.make(wish)
    except UserError as error:
        yield [f"**Not made.** {error}", *kept]
        return
    files = _write(studio, wish, folder, made.images, made.labels)
    line = choices.timing_line(wish.count, made.seconds, made.compile_seconds)
    yield [line, str(files.png), str(files.png), str(files.npz)]


def _write(studio: Studio, wish: Wish, folder: Path, images: Any, labels: Any) -> Files:
    num_classes = len(studio.generator.class_names)
    columns = wish.columns
    if columns == 1:
        columns = choices.grid_columns(wish.label, wish.count, num_classes)
    of = "all" if wish.label == choices.ALL_CLASSES else f"class{wish.label}"
    seeds = "_to_".join(map(str, wish.seeds))
    name = f"{of}_alpha{wish.alpha:g}_seed{seeds}"
    return write_images(folder, name, images, labels, columns=columns)
