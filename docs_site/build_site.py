"""Builds the documentation site: `python docs_site/build_site.py`, into build/site/index.html.

The pages are the files of docs/, as GitHub shows them, with what they lack there: the tables of
config fields, the API reference, the notebooks, and the files at the top of the repository. All are
put together in build/site_pages/, from which Sphinx builds. A broken link or a missing reference is
an error.
"""

import re
import shutil
import sys
from pathlib import Path

import api_pages
import config_tables
import notebook_pages
from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = ROOT / "build"
# {file at the top of the repository: page that shows it}
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# {what a page has between "<!-- site: NAME" and "<!-- site: end -->": what the site shows there}
GENERATED = {"config tables": config_tables.markdown, "public API": api_pages.public}
GENERATED_PART = re.compile(r"<!-- site: (?!end)(.*?) -->.*?<!-- site: end -->", re.DOTALL)
# The order of the pages beside the text: {heading: {page: title}}.
NAVIGATION = {
    "First steps": {
        "quick_start": "Getting started",
        "recipes": "Recipes",
        "toy": "The toy",
        "demo": "The demo",
        "data": "Your data",
        "fashion_mnist": "Fashion-MNIST",
        "conditions": "Images of conditions",
        "control": "Control",
        "rollouts": "Rollouts",
        "reading_a_run": "Reading a run",
        "diagnose": "Before training",
    },
    "Notebooks": {
        "notebook_toy": "The toy in a notebook",
        "notebook_digits": "Digits in a notebook",
        "notebook_your_images": "Your images in a notebook",
        "notebook_published_weights": "Weights in a notebook",
    },
    "Method": {
        "fields": "Method and fields",
        "encoders": "Encoders and features",
        "configs": "Config fields",
        "evaluation": "Evaluation",
        "weights": "Published weights",
        "export": "Export and the Hub",
    },
    "Many devices": {
        "devices": "Devices and processes",
        "launching": "Launching",
        "scaling": "Scaling",
        "gpu": "GPUs",
        "performance": "Performance",
    },
    "Code": {
        "architecture": "Architecture",
        "api": "Public API",
        "api_method": "Modules of the method",
        "contributing": "Contributing",
        "changelog": "Changelog",
    },
}
TITLES = {page: title for pages in NAVIGATION.values() for page, title in pages.items()}


def navigation() -> str:
    """Returns the tables of contents that end the first page."""
    lines = []
    for heading, pages in NAVIGATION.items():
        lines += ["", "```{toctree}", ":hidden:", f":caption: {heading}", ""]
        lines += [*(f"{title} <{page}>" for page, title in pages.items()), "```"]
    return "\n".join(lines)


def with_site_links(text: str, *, is_outside: bool) -> str:
    """Returns a page's text with its links to other pages as they are on the site.

    A link whose text is the name of a file gets the title of the page.

    Args:
      text: the Markdown.
      is_outside: whether the file lies at the top of the repository, not in docs/.
    """
    above = "" if is_outside else r"\.\./"
    for name, page in {**OUTSIDE, "README.md": "index.md"}.items():
        text = re.sub(rf"\]\({above}{re.escape(name)}(?=[#)])", f"]({page}", text)
    text = notebook_pages.with_page_links(text, folder=f"{above}notebooks/")
    if is_outside:
        text = text.replace("](docs/", "](")
    return re.sub(r"\[[\w/.]+\.(?:md|ipynb)\]\((\w+)\.md", _titled, text)


def _titled(link: re.Match[str]) -> str:
    return f"[{TITLES[link[1]]}]({link[1]}.md" if link[1] in TITLES else link[0]


def write_pages(folder: Path) -> None:
    """Puts all pages and pictures into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for path in folder.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        text = GENERATED_PART.sub(lambda found: GENERATED[found[1]](), text)
        path.write_text(with_site_links(text, is_outside=False), encoding="utf-8")
    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        (folder / page).write_text(with_site_links(text, is_outside=True), encoding="utf-8")
    for name, text in notebook_pages.pages().items():
        (folder / f"{name}.md").write_text(with_site_links(text, is_outside=False), "utf-8")
    (folder / "api_method.md").write_text(api_pages.method(), encoding="utf-8")
    with open(folder / "index.md", "a", encoding="utf-8") as file:
        file.write(navigation())


def build(pages: Path, site: Path) -> int:
    """Builds a site from a folder of pages; returns Sphinx's exit status, 0 without a warning."""
    shutil.rmtree(site, ignore_errors=True)
    strict = ["--fail-on-warning", "--quiet", "--fresh-env"]
    return build_main([*strict, f"--conf-dir={HERE}", str(pages), str(site)])


def main() -> int:
    """Builds the site of this checkout and returns the exit status."""
    write_pages(BUILD / "site_pages")
    if status := build(BUILD / "site_pages", BUILD / "site"):
        return status
    print(f"The site is in {BUILD / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
