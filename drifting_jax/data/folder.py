"""Image files in folders: their list is kept in a cache, and their bytes are read.

Every class folder `<root>/<class>/` has a label, in sorted order, and may hold files at any depth.
Files that lie in the root alone are one class without labels. The list of files is kept in the
user's cache folder and used again while no folder of the tree has changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from drifting_jax.data.facts import Skipped
from drifting_jax.data.file_list import FileList, scan
from drifting_jax.data.image_formats import readable_suffixes
from drifting_jax.data.names import Names
from drifting_jax.data.transforms import FailedRead, UnreadableImage
from drifting_jax.digests import SHORT, digest_bytes
from drifting_jax.errors import UserError
from drifting_jax.files import cache_folder

_LAYOUT = 2  # version of the cached lists


class FolderRecords:
    """The image files of a folder as encoded records.

    Attributes:
      where: the folder.
      class_names: names of the class folders, sorted; ["unlabelled"] for a flat folder.
      labels: [n] int32.
      fingerprint: 16 digits of the names and labels of all files.
      skipped: files that are no images, and class folders without images.
    """

    format = "folder"
    labels_are_cheap = True

    def __init__(
        self,
        root: Path,
        class_names: list[str],
        labels: np.ndarray,
        names: Names,
        *,
        skipped: tuple[Skipped, ...] = (),
    ):
        self.where, self.class_names, self.labels, self._names = root, class_names, labels, names
        self.skipped = skipped
        self.fingerprint = digest_bytes(
            "\0".join(class_names).encode(errors="surrogateescape"),
            labels.astype("<i4").tobytes(),
            names.data.tobytes(),
            names.ends.astype("<i8").tobytes(),
            digits=SHORT,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of a file, and its label.

        Raises:
          UnreadableImage: the file cannot be read; FailedRead if another attempt may succeed.
          UserError: the whole folder is gone.
        """
        try:
            with open(os.path.join(self.where, self._names[index]), "rb") as file:
                return file.read(), int(self.labels[index])
        except (PermissionError, IsADirectoryError) as error:
            raise UnreadableImage(str(error)) from None
        except OSError as error:
            if not os.path.isdir(self.where):
                raise UserError(f"{self.where} is gone: is the disk still there?") from None
            missing = isinstance(error, FileNotFoundError)
            raise (UnreadableImage if missing else FailedRead)(str(error)) from None

    def name(self, index: int) -> str:
        """The path of a file, relative to the folder."""
        return self._names[index]


def open_folder(
    root: Path,
    *,
    cache: Path | None = None,
    suffixes: Collection[str] | None = None,
    beside: tuple[Skipped, ...] = (),
) -> FolderRecords:
    """Finds the image files of a folder, or takes their list from the cache.

    Args:
      root: holds class folders (files at any depth in them), or files alone.
      cache: folder of the lists; None for the user's cache folder. A folder that cannot be made is
        not used.
      suffixes: endings of image files, in lower case; None for all that Pillow reads.
      beside: what lies beside the folder and is not read, for the `skipped` of the records.

    Raises:
      UserError: there are no image files.
    """
    root = Path(os.path.realpath(root))
    suffixes = readable_suffixes() if suffixes is None else suffixes
    cache = cache or cache_folder()
    kept = cache and cache / _list_name(root, suffixes)
    found = FileList.read(kept) if kept else None
    if found is None or not found.is_current(root):
        found = scan(root, suffixes)
        if kept and found.is_settled():
            with contextlib.suppress(OSError):
                kept.parent.mkdir(parents=True, exist_ok=True)
                found.write(kept)
    return FolderRecords(
        root, list(found.class_names), found.labels, found.names, skipped=(*beside, *found.skipped)
    )


def _list_name(root: Path, suffixes: Collection[str]) -> str:
    """The name of a cached list. Another Pillow, which reads other files, makes another list."""
    folder = digest_bytes(os.fsencode(root), digits=SHORT)
    endings = digest_bytes(" ".join(sorted(suffixes)).encode(), digits=SHORT)
    return f"{folder}-{endings}-{_LAYOUT}.npz"
