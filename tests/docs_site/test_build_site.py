"""The site builds without a warning, has all pages, and asks nothing of the network."""

import html
import json
import re

import pytest

pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
pytest.importorskip("latex2mathml")

import api_pages
import build_site
import docstrings
import mathml
import notebook_pages
from sphinx.errors import SphinxError

import drifting_jax as dj

ROOT = build_site.ROOT


def test_the_navigation_has_every_page():
    of_docs = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    of_docs |= {f"notebook_{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(build_site.TITLES) == of_docs | {"contributing", "changelog", "api_method"}


def test_a_notebook_is_a_page_with_its_text_and_code():
    cells = json.loads((ROOT / "notebooks" / "digits.ipynb").read_text("utf-8"))["cells"]
    page = build_site.with_site_links(notebook_pages.pages()["notebook_digits"], is_outside=False)
    fenced = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert [text.strip() for text in fenced] == [text.strip() for text in code]
    assert page.count("<details>") == page.count("</details>") == 2  # the set-up is folded
    assert "[Your images in a notebook](notebook_your_images.md)" in page
    assert "[Reading a run](reading_a_run.md)" in page and "badge" not in page
    (after,) = (i for i, line in enumerate(page.splitlines()) if "digits_drift.png" in line)
    assert "## Sampling, with guidance" in page.splitlines()[after + 4]


def test_a_picture_of_a_section_that_is_gone_is_an_error(tmp_path):
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# Digits"]}]}
    (tmp_path / "digits.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(ValueError, match="has no section Training, Reading the run"):
        notebook_pages.markdown(tmp_path / "digits.ipynb")


def test_the_reference_has_every_public_name_and_module():
    named = [name for names in api_pages.public_groups().values() for name in names]
    assert sorted(named) == sorted(dj.__all__)
    page = api_pages.method()
    for path in (ROOT / "drifting_jax").glob("method/**/[!_]*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert f".. automodule:: {module}\n" in page


def test_links_lead_to_pages_of_the_site():
    text = "[a](../README.md#quick-start), [docs/gpu.md](gpu.md#memory), [b](../CONTRIBUTING.md)"
    assert build_site.with_site_links(text, is_outside=False) == (
        "[a](index.md#quick-start), [GPUs](gpu.md#memory), [b](contributing.md)"
    )
    text = "[the toy](../notebooks/toy.ipynb), [notebooks/toy.ipynb](../notebooks/toy.ipynb)"
    assert build_site.with_site_links(text, is_outside=False) == (
        "[the toy](notebook_toy.md), [The toy in a notebook](notebook_toy.md)"
    )
    text = "[docs/fields.md](docs/fields.md), [CHANGELOG.md](CHANGELOG.md)"
    assert build_site.with_site_links(text, is_outside=True) == (
        "[Method and fields](fields.md), [Changelog](changelog.md)"
    )


def test_sections_of_a_docstring_become_fields():
    lines = [
        "Returns x.",
        "",
        "Args:",
        "  x, y: [g, d] points: two of them,",
        "    in any order.",
        "  z: more.",
        "",
        "Returns:",
        "  The loss [] and {name: statistics}.",
        "",
        "Raises:",
        "  ValueError: x is empty.",
    ]
    assert [line for line in docstrings.with_fields(lines) if line] == [
        "Returns x.",
        ":param x: [g, d] points: two of them,",
        "    in any order.",
        ":param y: as x",
        ":param z: more.",
        ":returns:",
        "    The loss [] and {name: statistics}.",
        ":raises ValueError: x is empty.",
    ]
    with pytest.raises(ValueError, match="'what is this'"):
        docstrings.with_fields(["Args:", "  what is this"])


def test_formulas_are_mathml():
    assert "<mfrac>" in mathml.mathml(r"\frac{1}{n}", "inline")
    with pytest.raises(SphinxError, match="unknown LaTeX command"):
        mathml.mathml(r"\nothing", "inline")


@pytest.mark.parametrize(
    "text", ["[a](none.md)", "[a](#none)", "![a](none.png)", "```{eval-rst}\n:py:none:`a`\n```"]
)
def test_a_broken_link_or_reference_fails(tmp_path, text, capfd):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# Title\n\n{text}\n")
    assert build_site.build(tmp_path / "pages", tmp_path / "site") == 1
    assert "none" in capfd.readouterr().err


@pytest.mark.slow
def test_the_site(tmp_path):
    build_site.write_pages(tmp_path / "pages")
    assert build_site.build(tmp_path / "pages", tmp_path / "site") == 0
    pages = {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {"index", *build_site.TITLES} <= pages.keys()
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)\"", page)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"([^\"]+)\"", page)
        assert loaded and not [url for url in loaded if "//" in url], name
        assert "<!-- site:" not in page, name
    for path in (tmp_path / "site").glob("_static/**/*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text()), path
    assert pages["evaluation"].count("<math ") >= 10 and "$" not in re.sub(
        r"<pre>.*?</pre>|<code.*?</code>", "", pages["evaluation"], flags=re.DOTALL
    )
    assert 'id="drifting_jax.drifting_loss"' in pages["api"]
    text = html.unescape(re.sub(r"<[^>]+>", "", pages["configs"]))
    assert "encoder.train.classifier_steps" in text
