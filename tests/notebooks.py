"""Runs the notebooks top to bottom on the CPU, with small settings.

    pip install -e ".[notebooks]"
    python tests/notebooks.py                        # all; or their names: toy digits
    python tests/notebooks.py --out=FOLDER toy       # keeps the notebooks with their outputs

Their kernel lives in an environment of its own, which holds what Colab's runtime has of JAX until
the first cell of the first notebook installs the checkout. No cell may change these versions.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
OF_COLAB = ("jax==0.7.2", "jaxlib==0.7.2", "flax==0.11.2", "numpy==2.1.3")
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
_SHORT_RUN = {
    "encoder.train.num_steps": 20,
    "encoder.train.classifier_steps": 5,
    "train.generated_per_label": 8,
    "train.positives_per_label": 16,
    "optim.warmup_steps": 5,
    "encoder.train.warmup_steps": 5,
    "log_every": 5,
}
_SHORT_DIGITS = {"train.num_steps": 20, "train.sample_every": 10, "eval.samples_per_class": 16}
SHORT = {  # what each notebook's cell of parameters gets in addition
    "toy": "STEPS, POINTS = 40, 64",
    "digits": f"OVERRIDES = {_SHORT_RUN | _SHORT_DIGITS}",
    "your_images": f"STEPS, OVERRIDES = 20, {_SHORT_RUN}",
    "published_weights": "EACH = 2",
}


def make_kernel(folder: Path) -> str:
    """Makes an environment, and the description by which Jupyter starts its kernel.

    Returns:
      The path of its Python.
    """
    venv.create(folder / "python", with_pip=True)
    python = str(folder / "python" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "ipykernel", *OF_COLAB], check=True)
    kernel = folder / "jupyter" / "kernels" / "short"
    kernel.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    description = {"argv": argv, "display_name": "short", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(description), encoding="utf-8")
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    # The kernel sees the checkout by its first cell, and the package index as this process does.
    for name in ("PYTHONPATH", "JAX_PLATFORMS", "XLA_FLAGS"):
        os.environ.pop(name, None)
    return python


def run(name: str, checkout: Path, parameters: str, *, timeout: int) -> nbformat.NotebookNode:
    """Runs a notebook of a checkout with parameters in place of its own; returns its outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(checkout / "notebooks" / f"{name}.ipynb", as_version=4)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source += f"\n{parameters}"
    client = NotebookClient(
        notebook,
        kernel_name="short",
        timeout=timeout,
        startup_timeout=timeout,  # other processes may come first
        resources={"metadata": {"path": str(checkout / "notebooks")}},
    )
    client.execute()
    return notebook


def main() -> int:
    """Runs the notebooks, and prints each one's seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, help="Folder for the notebooks with their outputs.")
    parser.add_argument("--full", action="store_true", help="With the parameters as they stand.")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and remove the folder below
    with tempfile.TemporaryDirectory() as folder:
        python = make_kernel(Path(folder))
        # A copy, so that what the notebooks write and install does not come into the checkout.
        checkout = Path(folder) / "checkout"
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for file in filter(None, files):
            (checkout / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, checkout / file)
        for name in arguments.names:
            began = time.monotonic()
            parameters = "" if arguments.full else SHORT[name]
            done = run(name, checkout, parameters, timeout=3600)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
            if arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                nbformat.write(done, arguments.out / f"{name}.ipynb")
        freeze = [python, "-m", "pip", "freeze"]
        kept = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.split()
        if changed := set(OF_COLAB) - set(kept):
            print(f"error: a cell replaced {', '.join(sorted(changed))}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
