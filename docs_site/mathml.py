"""Formulas as MathML, which browsers show by themselves: no script and no font is loaded."""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator


def mathml(latex: str, display: str) -> str:
    """Returns a formula as a `math` element; `display` is "inline" or "block".

    Raises:
      SphinxError: The formula has a LaTeX command that the converter does not know.
    """
    shown = convert(latex, display=display)
    if "\\" in shown:
        raise SphinxError(f"formula {latex!r} has an unknown LaTeX command")
    return shown


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
