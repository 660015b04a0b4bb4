"""Samples: python sample.py --classes=3,7-9 --per_class=8 --out=samples.png (or .npz).

Needs jax, flatbuffers and numpy alone, and the files beside it; config.json describes them.
"""

import argparse
import json
import os
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np

HERE = Path(__file__).parent


def fail(message: str) -> NoReturn:
    """Ends the program with one line."""
    print("error: " + " ".join(message.split())[:400], file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def class_numbers(text, classes, titles):
    """Numbers of the classes that `--classes` names: names, numbers and ranges; all of "".

    A class of exactly that name comes before a number. Ends the program if an entry is no class,
    can be read in two ways, or comes again.
    """
    named = {name: i for names in (titles, classes) for i, name in enumerate(names)}
    found = []
    for word in map(str.strip, text.split(",")) if text else []:
        numbers = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if word in named:
            found.append(named[word])
        elif numbers:
            found += _numbered(word, int(numbers[1]), int(numbers[2] or numbers[1]), classes)
        else:
            fail(f"--classes: {word!r} is no class; config.json lists them")
    if repeated := [i for i in found if found.count(i) > 1]:
        fail(f"--classes names class {repeated[0]} more than once: {text!r}")
    return found if text else list(range(len(classes)))


def _numbered(word, low, high, classes):
    """The classes of a range of numbers, which may also be names: folders 1, 2, 3."""
    if low > high:
        fail(f"--classes: {word!r} runs backwards; write {high}-{low}")
    by_value: dict[int, list[int]] = {}
    for i, name in enumerate(classes):
        if re.fullmatch("[0-9]{1,9}", name):
            by_value.setdefault(int(name), []).append(i)
    span = list(range(low, high + 1)) if high - low < len(classes) else []
    by_name = [by_value.get(value, []) for value in span]
    if high >= len(classes):
        if not by_name or any(len(found) != 1 for found in by_name):
            fail(f"classes run from 0 to {len(classes) - 1}; found {word!r} in --classes")
        return [i for found in by_name for i in found]
    if any(found not in ([], [value]) for value, found in zip(span, by_name, strict=True)):
        fail(f"{word!r} in --classes can be read in two ways, by number and by name: write names")
    return span


def sample(labels, indices, flags):
    """Images [n, h, w, c] uint8; image i depends on seed, labels[i], indices[i] and alpha."""
    import jax.export

    sampler = jax.export.deserialize(bytearray((HERE / "sampler.jax").read_bytes()))
    weights, images = jax.device_put(dict(np.load(HERE / "weights.npz"))), []
    for start in range(0, len(labels), flags.batch_size):
        batch = [x[start : start + flags.batch_size] for x in (labels, indices)]
        made, finite = sampler.call(
            weights, *batch, np.uint32(flags.seed), np.float32(flags.cfg_scale)
        )
        if not np.all(finite):
            fail("samples are not finite: the weights are damaged, or their training diverged")
        images.append(np.asarray(made))
    return np.concatenate(images)


def png(images, columns):
    """Bytes of a PNG file: images [n, h, w, 1 or 3] in rows of `columns`."""
    n, h, w, c = images.shape
    grid = images.reshape(n // columns, columns, h, w, c).swapaxes(1, 2)
    grid = grid.reshape(n // columns * h, columns * w, c)
    factor = max(1, 400 // min(grid.shape[:2]))
    grid = grid.repeat(factor, axis=0).repeat(factor, axis=1)
    header = struct.pack(">2I5B", grid.shape[1], grid.shape[0], 8, 0 if c == 1 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in grid)
    found = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"):
        found += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return found


def main():
    """Reads the flags, samples and writes."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--classes", default="", help="names, numbers, ranges 0-9; else all")
    parser.add_argument("--cfg_scale", type=float, default=1.0, help="guidance scale alpha")
    parser.add_argument("--out", default="samples.png", help=".png or .npz")
    parser.add_argument("--per_class", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=64)
    flags = parser.parse_args()
    if min(flags.per_class, flags.batch_size) < 1 or not 0 <= flags.seed < 2**32:
        fail("--per_class and --batch_size are at least 1, --seed is from 0 to 2**32 - 1")
    if not 0 < flags.cfg_scale < float("inf") or not flags.out.endswith((".png", ".npz")):
        fail("--cfg_scale is a number above 0, --out ends in .png or .npz")
    config = {"jax": "of an unknown version"}
    try:
        config = json.loads((HERE / "config.json").read_text("utf-8"))
        chosen = class_numbers(flags.classes, config["classes"], config["titles"])
        labels = np.repeat(np.array(chosen, np.int32), flags.per_class)
        indices = np.arange(len(labels), dtype=np.int32) % flags.per_class
        kept = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # for lines that the compiler itself prints
        try:
            images = sample(labels, indices, flags)
        finally:
            os.dup2(kept, 2)
        if flags.out.endswith(".npz"):
            np.savez_compressed(flags.out, arr_0=images, arr_1=labels)
        else:
            Path(flags.out).write_bytes(png(images, flags.per_class))
        print(f"{len(images)} samples: {flags.out}")
    except ImportError as error:
        fail(f"{error}: pip install jax flatbuffers")
    except (OSError, LookupError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        fail(f"a file is missing, damaged or cannot be written: {type(error).__name__}: {error}")
    except Exception as error:
        found = getattr(sys.modules.get("jax"), "__version__", "as it is installed")
        reason = f"{type(error).__name__}: {error}"
        fail(f"jax {found} cannot run sampler.jax, which jax {config['jax']} wrote: {reason}")


if __name__ == "__main__":
    main()
