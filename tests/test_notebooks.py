"""The notebooks are stored without outputs, begin alike and are linked."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
URL = re.search(r'url="(.*?)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
COLAB = URL.replace("https://github.com", "https://colab.research.google.com/github")


def cells_of(path: Path, kind: str) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"text": "".join(cell["source"])} for cell in cells if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean_and_opens_in_colab(path):
    code = cells_of(path, "code")
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    for cell in code:
        ast.parse(cell["text"])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    badge = f"{COLAB}/blob/main/notebooks/{path.name}"
    assert badge in cells_of(path, "markdown")[0]["text"]
    assert badge in (ROOT / "README.md").read_text(encoding="utf-8")


def test_all_begin_with_the_same_two_cells_and_install_before_jax():
    first, second = cells_of(NOTEBOOKS[0], "code")[:2]
    for path in NOTEBOOKS:
        begin = cells_of(path, "code")[:2]
        assert [cell["text"] for cell in begin] == [first["text"], second["text"]]
    assert URL in first["text"]
    assert "jax" not in {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(first["text"]))
        if isinstance(node, ast.Import)
        for name in node.names
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_notebooks_and_pages_exist(path):
    for cell in cells_of(path, "markdown"):
        for target in re.findall(r"\]\((.*?)\)", cell["text"]):
            if target.startswith(f"{URL}/blob/main/"):
                assert (ROOT / target.removeprefix(f"{URL}/blob/main/")).is_file(), target
            elif not target.startswith("http"):
                assert (ROOT / "notebooks" / target).is_file(), target


def test_packages_are_pinned_to_the_version_that_is_imported(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("install", ROOT / "notebooks" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    for folder, name, version in (
        ("old", "an_old.Package", "1.0"),
        ("old", "jax-cuda13-plugin", "7.0"),
        ("new", "an-old-package", "2.0"),
    ):
        record = tmp_path / folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        record.parent.mkdir(parents=True)
        record.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for folder in ("old", "new"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    pins = install.pins(replace=False)
    assert "an-old-package==2.0" in pins and len(pins) == len({pin.split("==")[0] for pin in pins})
    assert {"jax-cuda13-plugin==7.0", "numpy"} <= {
        pin if pin.startswith("jax-cuda") else pin.split("==")[0]
        for pin in install.pins(replace=True)
    }
    assert not [pin for pin in install.pins(replace=True) if pin.startswith("an-old")]
