"""Samples: python sample.py --classes=3,7 --per_class=8 --out=samples.png (or .npz).

Needs jax, flatbuffers and numpy alone, and the files beside it; config.json describes them.
"""

import argparse
import json
import os
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
    parser.add_argument("--classes", default="", help="names or numbers with commas; else all")
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
        names = {str(i): i for i in range(len(config["classes"]))}
        for spelling in ("titles", "classes"):  # the words for a class, and its name
            names |= {name: i for i, name in enumerate(config[spelling])}
        asked = [name.strip() for name in flags.classes.split(",")] if flags.classes else []
        chosen = asked or config["classes"]
        if unknown := [name for name in chosen if name not in names]:
            fail(f"--classes: {unknown[0]!r} is no class; config.json lists them")
        labels = np.repeat(np.array([names[x] for x in chosen], np.int32), flags.per_class)
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
