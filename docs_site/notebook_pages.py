"""The notebooks as pages of the site: their text and code, with pictures of docs/ for outputs."""

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_REPOSITORY = "https://github.com/drifting-jax/drifting_jax/blob/main/"
_SET_UP = 2  # code cells that all notebooks begin with, folded on a page
_BADGE = re.compile(r"\[!\[Open in Colab\]\(.*?\)\]\((.*?)\)")
# {notebook: {heading: what ends its section, in Markdown}}. Notebooks are stored without outputs.
_PICTURES = {
    "toy": {
        "The field": "![A drifting field](images/field.png)\n\n"
        "*The field of the [toy](toy.md) at the start, on the way and at the end.*",
        "A generator that drifts": "![Points drift onto two modes](images/drift.gif)\n\n"
        "*The [toy](toy.md) from the same start: collapsed on one mode.*",
    },
    "digits": {
        "Training": "![Samples over training](images/digits_over_training.png)\n\n"
        "*Samples of the same noise after 100, 200, 500 and 900 steps.*",
        "Reading the run": "![Drift and diversity](images/digits_drift.png)\n\n"
        "*The drift and the diversity of a run, as [Reading a run](reading_a_run.md) explains.*",
        "Sampling, with guidance": "![Generated digits](images/digits.png)\n\n"
        "*Samples at α = 1, a class in each row.*",
        "Measuring": "![The page of a run](images/report.png)\n\n"
        "*The upper part of `report.html`, see [Evaluation](evaluation.md).*",
    },
    "published_weights": {
        "Samples of some classes": "![Generated digits](images/digits.png)\n\n"
        "*Samples of the generator in `weights/digits` at α = 1, here of all classes.*",
    },
}


def pages() -> dict[str, str]:
    """Returns {page: Markdown} of all notebooks, as "notebook_toy"."""
    return {page_of(path.stem): markdown(path) for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def page_of(notebook: str) -> str:
    """The page of a notebook of this name."""
    return f"notebook_{notebook}"


def markdown(path: Path) -> str:
    """Returns the page of a notebook: its cells in their order, and no outputs.

    Raises:
      ValueError: a picture belongs to a section that is not there.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures = dict(_PICTURES.get(path.stem, {}))
    parts, waiting, code = [], "", 0
    for cell in cells:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "code":
            code += 1
            parts.append(_folded(text) if code <= _SET_UP else _fenced(text))
            continue
        heading = re.match(r"#+ (.*)", text)
        if heading and waiting:
            parts.append(waiting)
            waiting = ""
        if heading:
            waiting = pictures.pop(heading[1], "")
        parts.append(_with_links(text, path.name))
    if pictures:
        raise ValueError(f"{path} has no section {', '.join(pictures)}")
    return "\n\n".join([*parts, *filter(None, [waiting])]) + "\n"


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def _folded(code: str) -> str:
    title = code.partition("\n")[0].lstrip("# ").partition(".")[0]
    return f"<details>\n<summary>{title}</summary>\n\n{_fenced(code)}\n\n</details>"


def with_page_links(text: str, *, folder: str = "") -> str:
    """Returns a text with its links to notebooks as they are on the site.

    Args:
      text: the Markdown.
      folder: what precedes a notebook's name in these links, a regular expression.
    """
    link = rf"\]\({folder}(\w+)\.ipynb\)"
    return re.sub(link, lambda found: f"]({page_of(found[1])}.md)", text)


def _with_links(text: str, name: str) -> str:
    """Text of a cell, with links that lead to pages of the site where there are such pages."""
    here = f"{_REPOSITORY}notebooks/{name}"
    text = _BADGE.sub(rf"[Open in Colab](\1) or [read it on GitHub]({here})", text)
    return with_page_links(text.replace(f"]({_REPOSITORY}docs/", "]("))
