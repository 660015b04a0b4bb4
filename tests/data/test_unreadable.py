"""Why images cannot be read: told apart, and kept from the decoder to the log and the error."""

import io
import json

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from drifting_jax.commands import packing
from drifting_jax.data import pipeline
from drifting_jax.data.images import ImageSource
from drifting_jax.data.records import open_records
from drifting_jax.data.shard_writer import ShardWriter
from drifting_jax.data.shards import ShardRecords
from drifting_jax.data.transforms import UnreadableImage, load
from drifting_jax.data.unreadable import most_unreadable, read_reasons, without_png_text
from drifting_jax.errors import UserError
from drifting_jax.training.batch_log import known_unreadable, unreadable_records


def encoded(kind="PNG", pixels=None, **how):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise if pixels is None else pixels).save(buffer, kind, **how)
    return buffer.getvalue()


def half(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", r"empty file"),
        (lambda: b"<html>404 Not Found</html>", r"not an image: it begins with b'<html>404"),
        (lambda: half(encoded("JPEG")), r"truncated \(\d+ bytes\)"),
        (lambda: half(encoded("PNG")), r"truncated"),
        (lambda: half(encoded("WEBP")), r"truncated"),
        (lambda: half(encoded("GIF")), r"truncated"),
        (lambda: encoded("JPEG")[:20], r"damaged \(20 bytes\): its header cannot be read"),
        (lambda: encoded()[:60] + b"xxxx" + encoded()[64:], r"damaged .*broken data stream"),
        (
            lambda: encoded(pixels=np.zeros((20000, 20000), bool)),
            r"too many pixels: Image size \(400000000 pixels\) exceeds limit of \d+ pixels$",
        ),
        (lambda: encoded(pixels=np.zeros((5000, 1), np.uint8)), r"too thin: 1x5000"),
    ],
)
def test_reasons_are_told_apart(data, reason, monkeypatch):
    if "thin" in reason:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(UnreadableImage, match="^" + reason) as caught:
        load(data(), 16)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 200


@pytest.mark.parametrize("compressed", [True, False])
def test_a_png_with_much_text_is_read(compressed):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=compressed)
    text.add_itxt("more", "y" * 2_000_000, zip=compressed)
    plain = encoded()
    np.testing.assert_array_equal(load(encoded(pnginfo=text), 16), load(plain, 16))
    assert without_png_text(encoded(pnginfo=text)) == plain
    assert without_png_text(b"no PNG") == b"no PNG"
    with pytest.raises(UnreadableImage, match=r"^(truncated|damaged)"):
        load(half(encoded(pnginfo=text)), 16)


def test_the_limit_is_a_share_and_at_least_one():
    assert [most_unreadable(0.1, count) for count in (1, 9, 19, 20, 1000)] == [1, 1, 1, 2, 100]
    assert most_unreadable(0.0, 1000) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nine readable images and two that are not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for i in range(9):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "data" / "cut.jpg").write_bytes(half(encoded("JPEG")))
    (tmp_path / "data" / "page.jpg").write_text("<html>403 Forbidden")
    return tmp_path / "data"


def read(folder, unreadable, count=6, **options):
    source = ImageSource(open_records(folder, "train"), 16)
    options = {"batch_size": 4, "seed": 0, "unreadable": unreadable} | options
    with pipeline.batches(source, **options) as batches:
        return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_reason_reaches_the_log_and_the_warning(folder, tmp_path, caplog, num_workers):
    taken = read(folder, unreadable_records(tmp_path, 0.5, 11), num_workers=num_workers)
    assert set(taken[0]) == {"image", "label", "index"}
    lines = (tmp_path / "unreadable_0.jsonl").read_text().splitlines()
    found = {record["name"]: record["reason"] for record in map(json.loads, lines)}
    assert found[f"cut.jpg of {folder}"].startswith("truncated")
    assert found[f"page.jpg of {folder}"] == "not an image: it begins with b'<html>403 Forbidden'"
    for name, reason in found.items():
        assert f"{name}: {reason} (" in caplog.text
    # Lines of an older version have no reason, and a kill may cut a line short.
    (tmp_path / "unreadable_1.jsonl").write_text('{"index": 3, "name": "3.jpg"}\n{"index": 4, "na')
    known = known_unreadable(tmp_path)
    assert known[3] == "" and known[9].startswith("truncated") and known.keys() == {3, 9, 10}


def test_the_error_says_the_limit_and_the_reason(folder, tmp_path):
    read(folder, unreadable_records(None, 0.19, 11))  # 2.09: both are allowed
    with pytest.raises(UserError) as caught:
        read(folder, unreadable_records(tmp_path, 0.05, 11))
    message = str(caught.value)
    assert message.startswith(
        "2 records could not be read, more than the 1 that config.data.max_unreadable=0.05 of 11 "
        "records allows; the last was "
    )
    assert "truncated" in message or "not an image" in message
    with pytest.raises(UserError, match=r"1 records could not .* more than the 0 that"):
        read(folder, unreadable_records(None, 0.0, 11))


def test_packing_keeps_the_reasons(folder, tmp_path):
    records = open_records(folder, "train")

    def pack(share, out):
        plan = {"format": "drifting_jax.images", "image_size": 16, "jpeg_quality": 0}
        writer = ShardWriter(tmp_path / out, records, plan=plan, records_per_shard=4)
        writer.open()
        make = packing.shard_records(records, size=16, jpeg_quality=0, threads=1)
        packing.write_shards(writer, make, report=lambda count: None, max_unreadable=share)
        writer.complete()

    with pytest.raises(UserError, match=r"2 images .* more than the 1 that --max_unreadable=0.1 "):
        pack(0.1, "out")
    pack(0.5, "out")  # goes on, and keeps what the first start has found
    reasons = read_reasons(tmp_path / "out" / "unreadable.jsonl")
    assert reasons.keys() == {9, 10} and reasons[10].startswith("not an image")
    assert not list((tmp_path / "out").glob("*.unreadable"))
    with pytest.raises(UnreadableImage, match=r"when it was packed \(truncated"):
        ShardRecords(tmp_path / "out").read(9)
