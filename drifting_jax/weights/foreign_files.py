"""Says what a file or a folder is that holds no weights that can be read here, and what to do."""

import re
from collections.abc import Collection
from pathlib import Path

PIPELINE = "model_index.json"  # in the folder of a whole pipeline of diffusers

# The first bytes of a file -> what it is, and what to do. The first match counts.
_FIRST_BYTES: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a pointer of git-lfs, not the file itself", "run git lfs pull"),
    (
        rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|error)",
        "a web page, which a failed download left",
        "download the file again, and look at the page for the reason",
    ),
    (rb"GGUF|ggml|lmgg|ggjt|tjgg", "a GGUF or GGML file", "take the .safetensors of the network"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as of Keras", "save its arrays with numpy.savez"),
    (
        rb"\x08[\x01-\x20]\x12.{0,2}(pytorch|tf2onnx|onnx|skl2onnx|keras2onnx)|\x08[\x01-\x20]:",
        "an ONNX file",
        "take the .safetensors or .pth that it was exported from",
    ),
    (rb".{4}TFL3", "a TensorFlow Lite file", "save its arrays with numpy.savez"),
    (rb"\x93NUMPY", "one array of NumPy without a name", "save all arrays with numpy.savez"),
    (
        rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!",
        "a compressed file",
        "unpack it",
    ),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP", "an image", "give the file of the weights"),
    (rb"%PDF", "a PDF document", "give the file of the weights"),
    (rb"\x00{64}", "a file that begins with zeros, as of a broken download", "download it again"),
)
# The end of a name -> the same, for what the content does not tell.
_NAMES = {
    ".onnx": ("an ONNX file", "take the .safetensors or .pth that it was exported from"),
    ".pb": ("a file of TensorFlow", "save its arrays with numpy.savez"),
    ".tflite": ("a TensorFlow Lite file", "save its arrays with numpy.savez"),
}
_TENSORFLOW_CHECKPOINT = re.compile(r".*\.(index|data-\d+-of-\d+)")


def describe_file(head: bytes, name: str) -> str | None:
    """What a file is and what to do; None where it may hold weights.

    Args:
      head: its first bytes, 512 or all.
      name: its name.
    """
    for pattern, what, advice in _FIRST_BYTES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return f"{what}: {advice}"
    if _TENSORFLOW_CHECKPOINT.fullmatch(name):
        return "a part of a TensorFlow checkpoint: save its arrays with numpy.savez"
    for ending, (what, advice) in _NAMES.items():
        if name.endswith(ending):
            return f"{what}: {advice}"
    return None


def describe_zip(members: Collection[str]) -> str:
    """What a zip file is that is neither torch's nor NumPy's, and what to do."""
    if any(name.endswith((".weights.h5", "keras_metadata.pb")) for name in members):
        return "a model of Keras: save its arrays with numpy.savez"
    listed = ", ".join(sorted(members)[:3]) + (", …" if len(members) > 3 else "")
    return f"a zip archive ({listed or 'empty'}): unpack it, and give the file of the weights"


def describe_folder(folder: Path) -> str | None:
    """What a folder without weight files is, and what to do; None where that is not known."""
    if (folder / PIPELINE).is_file():
        return (
            "a whole pipeline of diffusers: give the folder of one network, "
            f"{', '.join(_folders(folder)) or 'which is missing'}"
        )
    if (folder / "saved_model.pb").is_file() or (folder / "checkpoint").is_file():
        return "a model of TensorFlow: save its arrays with numpy.savez"
    if any((folder / n).exists() for n in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")):
        return "a checkpoint of Orbax: give the workdir of the run, or save its arrays with numpy"
    if (folder / "data.pkl").is_file():
        return "an unpacked file of torch.save: give the file itself"
    return None


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
