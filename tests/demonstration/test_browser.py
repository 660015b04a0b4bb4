"""The page in a real browser: Chromium without a window, driven by Playwright."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import demo_runs
import numpy as np
import pytest
from child_processes import started
from PIL import Image

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MILLISECONDS = 240_000  # until a page counts as stuck
WINDOW, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]


@contextlib.contextmanager
def served(workdir: Path):
    """Context with the address of the page of a workdir."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with started(
        [sys.executable, "-m", "drifting_jax.demo", f"--workdir={workdir}", f"--port={port}"],
        cwd=ROOT,
        env=environment | {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": str(workdir)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        assert line == f"The page is at http://127.0.0.1:{port}/ until Ctrl-C\n", line
        yield f"http://127.0.0.1:{port}/"
        process.terminate()
        assert process.wait(60) == 75


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as program:
        found = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def run(browser, tmp_path_factory):
    """The workdir of a generator, and the address of its page."""
    workdir = demo_runs.save_generator(tmp_path_factory.mktemp("runs") / "digits")
    with served(workdir) as address:
        yield workdir, address


class Visitor:
    """A window at a page, and the addresses elsewhere that the page asked for."""

    def __init__(self, browser, address: str, *, size=WINDOW, prefix="samples"):
        self.page = browser.new_context(viewport=size).new_page()
        self.page.set_default_timeout(MILLISECONDS)
        self.elsewhere = []
        own = (address, "data:", "blob:")
        self.page.on(
            "request",
            lambda asked: asked.url.startswith(own) or self.elsewhere.append(asked.url),
        )
        self.prefix = prefix
        self.page.goto(address)
        self.page.wait_for_selector(f"#{prefix}-picture img")

    @property
    def line(self) -> str:
        return self.page.locator(f"#{self.prefix}-line").inner_text()

    @property
    def picture(self) -> str:
        """The address of the picture, which is another for each picture."""
        return self.page.locator(f"#{self.prefix}-picture img").get_attribute("src")

    def type(self, name: str, text: str) -> None:
        box = self.page.locator(f"#{self.prefix}-{name} input:not([type=range])").first
        box.fill(text)
        box.press("Enter")

    def wait_for_picture(self, before: str) -> None:
        self.page.wait_for_function(
            "([place, before]) => document.querySelector(place).getAttribute('src') != before",
            arg=[f"#{self.prefix}-picture img", before],
        )

    def wait_for_line(self, text: str) -> None:
        self.page.locator(f"#{self.prefix}-line").get_by_text(text).wait_for()

    def download(self, kind: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.locator(f"#{self.prefix}-{kind}").click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path


def test_a_visitor_chooses_and_downloads(browser, run, tmp_path):
    visitor = Visitor(browser, run[1])
    assert "40 samples in one network evaluation" in visitor.line
    before = visitor.picture
    visitor.type("class", "7")  # searches, and takes what it finds
    visitor.wait_for_picture(before)
    before = visitor.picture
    slider = visitor.page.locator("#samples-alpha input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    visitor.wait_for_picture(before)
    before = visitor.picture
    visitor.type("count", "5")
    visitor.wait_for_picture(before)
    assert "5 samples in one network evaluation" in visitor.line and "compiled" in visitor.line
    path = visitor.download("npz", tmp_path)
    assert path.name == "class7_alpha1.05_seed0.npz"
    with np.load(path) as file:
        assert file["arr_0"].shape == (5, 8, 8, 1)
        np.testing.assert_array_equal(file["arr_1"], [7] * 5)
    with Image.open(visitor.download("png", tmp_path)) as picture:
        assert picture.format == "PNG" and min(picture.size) >= 512
    assert not visitor.elsewhere


def test_wrong_values_get_a_line_and_leave_the_picture(browser, run):
    visitor = Visitor(browser, run[1])
    before = visitor.picture
    for name, text, message in (
        ("count", "10000", "Samples: expected a whole number from 1 to 64; found 10000"),
        ("count", "", "Samples: expected a whole number from 1 to 64; found nothing"),
        ("seed", "-1", "Seed: expected a whole number from 0 to 4294967295; found -1"),
        ("alpha", "0", "α: expected a number from 1 to 6; found 0"),
    ):
        visitor.type(name, text)
        visitor.wait_for_line(message)
        assert visitor.picture == before
        assert "Traceback" not in visitor.page.content()
        if name != "alpha":  # the box of a slider mends itself
            visitor.type(name, "40" if name == "count" else "0")
            visitor.wait_for_picture(before)
            before = visitor.picture


def test_two_windows_at_once(browser, run):
    visitors = [Visitor(browser, run[1]) for _ in range(2)]
    before = [visitor.picture for visitor in visitors]
    for visitor, seed in zip(visitors, ("11", "12"), strict=True):
        visitor.type("seed", seed)
    for visitor, seed, old in zip(visitors, ("11", "12"), before, strict=True):
        visitor.wait_for_picture(old)
        assert f"seed{seed}.png" in visitor.picture


def test_between_two_seeds_on_a_phone(browser, run):
    visitor = Visitor(browser, run[1], size=PHONE)
    visitor.page.get_by_role("tab", name="Between two seeds").click()
    visitor.page.locator("#between-make").click()
    visitor.prefix = "between"
    visitor.page.wait_for_selector("#between-picture img")
    visitor.page.get_by_label("Seed on the right").fill("0")
    visitor.page.locator("#between-make").click()
    visitor.wait_for_line("Seeds: expected two different ones; found 0 twice")
    visitor.page.get_by_label("Seed on the right").fill("2")
    before = visitor.picture
    visitor.page.locator("#between-make").click()
    visitor.wait_for_picture(before)
    assert "32 samples in one network evaluation" in visitor.line
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    assert len(set(visitor.page.evaluate(widths))) == 1  # nothing to scroll to the side
    assert not visitor.elsewhere


def status_of(address: str) -> int:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_files_of_the_machine_are_not_served(browser, run):
    workdir, address = run
    picture = Visitor(browser, address).picture
    assert status_of(picture) == 200
    for file in (workdir / "config.json", ROOT / "README.md", "/etc/passwd"):
        assert Path(file).is_file()
        for route in ("gradio_api/file=", "file=", "gradio_api//file="):
            assert status_of(f"{address}{route}{file}") == 404, (route, file)


def test_a_toy_shows_its_training_and_fresh_points(browser, tmp_path):
    with served(demo_runs.save_toy(tmp_path / "toy")) as address:
        visitor = Visitor(browser, address, prefix="frame")
        assert visitor.line == "Step 40"
        slider = visitor.page.locator("#frame input[type=range]")
        slider.focus()
        slider.press("ArrowLeft")
        visitor.wait_for_line("Step 1")
        visitor.page.get_by_role("tab", name="Fresh points").click()
        visitor.prefix = "fresh"
        visitor.page.wait_for_selector("#fresh-picture img")
        before = visitor.picture
        visitor.type("seed", "9")
        visitor.wait_for_picture(before)
        assert "1024 points in one network evaluation" in visitor.line
        visitor.type("seed", "0.5")
        visitor.wait_for_line("Seed: expected a whole number from 0 to 4294967295; found 0.5")
        assert not visitor.elsewhere
