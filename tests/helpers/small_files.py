"""Writes tiny MNIST and CIFAR data sets in the formats of their authors, byte by byte."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np


def idx_bytes(array):
    """An IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_arrays(count, seed=0):
    """Images [count, 28, 28] and labels [count], both uint8."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def write_idx(folder, *, packed, dotted=False, counts=(30, 10)):
    """Writes the four files, and returns {split: (images, labels)}."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for split, prefix, count in zip(("train", "test"), ("train", "t10k"), counts, strict=True):
        found[split] = arrays = mnist_arrays(count, seed=count)
        for array, kind in zip(arrays, ("images-idx3", "labels-idx1"), strict=True):
            name = f"{prefix}-{kind.replace('-', '.') if dotted else kind}-ubyte"
            data = idx_bytes(array)
            path = folder / f"{name}{'.gz' * packed}"
            path.write_bytes(gzip.compress(data) if packed else data)
    return found


class _Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, which pickled the published files."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content):
    """The pickle of a value by Python 2 with the NumPy of its time."""
    buffer = io.BytesIO()
    _Python2Pickler(buffer, 2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.", b"numpy.core.")


def cifar_files(dataset, *, binary, per_file=6):
    """{name: bytes} of the files of a data set, and {split: (images, labels)} of their contents."""
    fine = dataset == "cifar100"
    splits = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    if fine:
        splits = {"train": ["train"], "test": ["test"]}
    files, found = {}, {}
    rng = np.random.default_rng(7)
    for split, names in splits.items():
        images = rng.integers(0, 256, (len(names) * per_file, 32, 32, 3), dtype=np.uint8)
        labels = rng.permutation(len(images)) * 7 % (100 if fine else 10)
        found[split] = images, labels
        for i, name in enumerate(names):
            part = slice(i * per_file, (i + 1) * per_file)
            # By hand: all red values of an image row by row, then green, then blue.
            rows = np.stack(
                [np.concatenate([x[..., c].ravel() for c in range(3)]) for x in images[part]]
            )
            chosen = labels[part].tolist()
            if binary:
                heads = [bytes([label % 20, label]) if fine else bytes([label]) for label in chosen]
                data = b"".join(h + row.tobytes() for h, row in zip(heads, rows, strict=True))
                files[f"{name}.bin"] = data
                continue
            keys = {"fine_labels": chosen, "coarse_labels": [x % 20 for x in chosen]}
            content = {"data": rows, "batch_label": name, "filenames": ["a.png"] * len(chosen)}
            files[name] = python2_pickle(content | (keys if fine else {"labels": chosen}))
    return files, found


def write_folder(folder, files):
    """Writes files into a new folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path, files, *, inner):
    """Writes a .tar.gz whose files lie in the folder `inner`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
