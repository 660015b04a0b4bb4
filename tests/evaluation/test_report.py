import base64
import io
import os
import re
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
from metric_records import record, several_seeds
from PIL import Image

from drifting_jax.evaluation.report import page
from drifting_jax.evaluation.report.curves import tradeoff_picture
from drifting_jax.evaluation.report.page import Neighbors, Picture, Report, write_page
from drifting_jax.evaluation.report.tables import linked, metrics_table

VOID = {"meta", "img", "source"}


def report(records, **more):
    empty = {"protocol": {}, "pictures": [], "neighbors": None, "notes": []}
    return Report(**{"title": "Digits", "records": records, **empty, **more})


class Page(HTMLParser):
    """Tags, headings and text of a page; fails where tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.headings, self.text, self._open = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data
        if "h2" in self._open:
            self.headings.append(data)

    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


def written(tmp_path, *args, curve=None, **more):
    path = tmp_path / "report.html"
    write_page(path, report(*args, **more), curve=curve)
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    return Page(path)


def decoded(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


class Full(NamedTuple):
    """A page with everything on it, and the images that it shows."""

    page: Page
    source: str
    grey: np.ndarray
    nearest: np.ndarray
    colour: np.ndarray


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    nearest = rng.integers(0, 256, (3, 2, 8, 8, 1)).astype(np.uint8)
    distances = np.array([[0.5, 1.0], [0.25, 2.0], [0.125, 1e-7]])
    colour = rng.integers(0, 256, (20, 1100, 3)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("full")
    page = written(
        folder,
        several_seeds(),
        protocol={"samples": "50 & more", "weights' hash": "<script>alert(1)</script>"},
        pictures=[Picture("Grid <1>", 'of "all"', grey[0]), Picture("Large", "", colour)],
        neighbors=Neighbors(grey, nearest, distances, "Searched <all>, on pixels."),
        notes=["left out: 3 & 4 <b>", "see https://example.org/a?b=1&c=2."],
        curve=("inception_score", "fid"),
    )
    source = (folder / "report.html").read_text(encoding="utf-8")
    return Full(page, source, grey, nearest, colour)


def test_values_that_are_not_finite_show(tmp_path):
    records = [record("fid", 1.0, float("nan")), record("fid", 2.0, 3.0)]
    records += [record("inception_score", 1.0, 10.0), record("inception_score", 2.0, float("inf"))]
    records += [record("kid", 1.0, v, seed=s) for s, v in enumerate((float("inf"), 1.0))]
    table = metrics_table(records)
    assert re.search(r"FID ↓ +NaN +3\.000\*", table)
    assert re.search(r"Inception Score ↑ +10\.00\* +inf", table)
    assert "inf ± NaN" in table
    page = written(tmp_path, records, curve=("inception_score", "fid"))
    assert "NaN" in page.text and "At α = 2, the best of 2 by FID" in page.text


def test_unknown_metrics_are_named(tmp_path):
    with pytest.raises(ValueError, match="no metric is called ssim; there are fid, sfid, "):
        metrics_table([record("ssim", 1.0, 0.5)])
    with pytest.raises(ValueError, match="no metric is called ssim"):
        tradeoff_picture([], x="ssim", y="fid")
    with pytest.raises(ValueError, match="no metric is called ssim"):
        write_page(tmp_path / "x.html", report([record("ssim", 1.0, 0.5)]), curve=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("arXiv:1706.08500", "https://arxiv.org/abs/1706.08500"),
        ("Heusel et al., arXiv 1706.08500", "https://arxiv.org/abs/1706.08500"),
        ("https://arxiv.org/abs/1606.03498.", "https://arxiv.org/abs/1606.03498"),
    ],
)
def test_sources_are_links(words, address):
    assert re.findall(r'href="(.*?)"', linked(words)) == [address]
    assert linked("<MMD> & more") == "&lt;MMD&gt; &amp; more"


@pytest.mark.parametrize(
    "records",
    [
        several_seeds(),
        [record("fid", 1.0, 2.0, baseline=1.0), record("inception_score", 1.0, 9.0)],
        [record("fid", None, 2.0), record("inception_score", None, float("nan"))],
        [record("fid", 3.0, 2.0), record("inception_score", 3.0, 9.0)],
        [record("fid", float(a), 2.0**a) for a in range(8)]
        + [record("inception_score", float(a), 3.0) for a in range(8)],
        [],
    ],
    ids=["seeds", "one α", "not finite", "no baseline", "log", "nothing"],
)
@pytest.mark.filterwarnings("error")
def test_curve_is_a_picture(records):
    image = np.asarray(
        Image.open(io.BytesIO(tradeoff_picture(records, x="inception_score", y="fid")))
    )
    height, width = image.shape[:2]
    assert 600 < height < width < 2000
    assert (image[..., :3] != image[0, 0, :3]).any(axis=-1).mean() > 0.005


def test_dark_curve_is_dark():
    png = tradeoff_picture(several_seeds(), x="inception_score", y="fid", dark=True)
    assert np.median(np.asarray(Image.open(io.BytesIO(png)))[..., :3]) < 60


def test_page_needs_nothing_beside_it(full):
    page = full.page
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "srcset"):
            assert attrs.get(name, "data:").startswith("data:")
        if "href" in attrs:
            assert tag == "a" and attrs["href"].startswith("https://")
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert set(links) == {
        "https://arxiv.org/abs/1706.08500",
        "https://arxiv.org/abs/1606.03498",
        "https://example.org/a?b=1&c=2",
    }
    assert "url(" not in full.source and "@import" not in full.source


def test_words_are_escaped(full):
    page = full.page
    words = ["50 & more", "<script>alert(1)</script>", "Grid <1>", 'of "all"', "3 & 4 <b>"]
    for each in [*words, "Searched <all>, on pixels."]:
        assert each in page.text
    assert page.images()[1]["alt"] == 'Grid <1>: of "all"'


def test_every_image_has_words(full):
    page = full.page
    assert len(page.images()) == 1 + 2 + 3 * 3
    assert all(attrs["alt"] for attrs in page.images())


def test_small_images_are_enlarged_in_whole_pixels(full):
    page, _, grey, nearest, colour = full
    shown = [decoded(attrs["src"]) for attrs in page.images()]
    factor = len(shown[1]) // 8
    assert factor >= 80 and np.array_equal(shown[1][::factor, ::factor], grey[0, :, :, 0])
    assert np.array_equal(shown[2], colour)
    assert int(page.images()[2]["width"]) == colour.shape[1]
    for i, j in np.ndindex(3, 2):
        tile = shown[3 + 3 * i + 1 + j]
        factor = len(tile) // 8
        assert factor >= 28 and np.array_equal(tile[::factor, ::factor], nearest[i, j, :, :, 0])


def test_neighbors_are_shown_with_their_distances(full):
    page = full.page
    captions = ["#1", "0.5000", "1.000", "#2", "0.2500", "2.000", "#3", "0.1250", "1.000e-7"]
    assert "".join(captions) in page.text
    assert page.images()[-1]["alt"] == "Neighbour 2 of sample 3, at 1.000e-7"


def test_sections_without_content_are_left_out(tmp_path):
    page = written(tmp_path, [record("fid", None, 2.5)])
    assert "FID" in page.text and "2.500" in page.text
    assert page.headings == ["Metrics"] and not page.images()
    assert "Bold" not in page.text and "best" not in page.text.partition("Lower is better")[0]


def test_sections_are_in_order(full):
    assert full.page.headings == [
        "Exclusions and warnings",
        "Protocol",
        "Metrics",
        "Trade-off over α",
        "Samples",
        "Nearest training images",
    ]


def test_an_empty_report_is_a_page(tmp_path):
    page = written(tmp_path, [], notes=["nothing could be measured"])
    assert "nothing could be measured" in page.text and not page.images()


def test_best_of_each_metric_is_bold_and_heads_the_page(tmp_path):
    records = [record("fid", a, v) for a, v in ((1.0, 3.0), (2.0, 1.25))]
    records += [record("inception_score", a, v) for a, v in ((1.0, 30.0), (2.0, 20.0))]
    write_page(tmp_path / "report.html", report(records), curve=None)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["1.250", "30.00"]
    assert re.findall(r"<b>(.*?)</b>", text) == ["1.250", "20.00"]
    assert "At α = 2, the best of 2 by FID" in text


def test_all_of_a_tie_are_bold_and_named(tmp_path):
    values = {1.0: (2.4, 2.6), 2.0: (2.2, 2.4), 4.0: (9.0, 9.1)}
    records = [record("fid", a, v, seed=i) for a, vs in values.items() for i, v in enumerate(vs)]
    write_page(tmp_path / "report.html", report(records), curve=None)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["2.500", "2.300"]
    assert "At α = 2, the best of 3 by FID (a tie with α = 1)" in text
    assert "Bold: the best α of a metric, and each α that differs from it by at most" in text


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), "2 channels"])
def test_pictures_are_checked(image):
    image = np.zeros((4, 4, 2), np.uint8) if isinstance(image, str) else image
    with pytest.raises(ValueError, match="expected the picture 'a' as"):
        Picture("a", "b", image)


def test_neighbors_are_checked():
    samples = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match=r"distances \[n,k\], found"):
        Neighbors(samples, np.zeros((2, 3, 4, 4, 1), np.uint8), np.zeros((2, 2)), "")
    with pytest.raises(ValueError, match="expected the neighbours as"):
        Neighbors(samples, np.zeros((2, 3, 4, 4, 1)), np.zeros((2, 3)), "")


def test_names_that_are_not_utf8_are_shown(tmp_path):
    grid = Picture("classes", os.fsdecode(b"caf\xe9"), np.zeros((8, 8, 3), np.uint8))
    found = written(tmp_path, [], pictures=[grid], notes=[os.fsdecode(b"br\xf6ken.jpg")])
    assert "caf�" in found.text and "br�ken.jpg" in found.text


def test_a_curve_that_cannot_be_drawn_is_left_out(tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("no font")

    monkeypatch.setattr(page, "tradeoff_picture", fail)
    found = written(tmp_path, several_seeds(), curve=("fid", "recall"))
    assert "Metrics" in found.headings and not found.images()
    assert "could not be drawn: RuntimeError: no font" in caplog.text
