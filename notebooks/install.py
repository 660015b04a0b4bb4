"""Installs the checkout that holds this file into the Python that runs it, for a notebook.

    python notebooks/install.py [--extra=hub] [--replace]

A notebook's runtime comes with packages that fit each other and its accelerator. Each of them is
pinned here to the version that it has, so that pip adds packages and replaces none. Where no
versions fit these pins, `--replace` pins JAX and NumPy alone.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
_JAX = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "numpy")


def pins(*, replace: bool) -> list[str]:
    """Returns a pip constraint for each installed package; with `replace`, for JAX's alone."""
    found = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    found.pop("drifting_jax", None)
    kept = {name: found[name] for name in _JAX if name in found} if replace else found
    return [f"{name}=={version}" for name, version in sorted(kept.items())]


def main() -> int:
    """Runs pip; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--extra", default="", help="Of setup.py, such as hub.")
    parser.add_argument("--replace", action="store_true", help="Pin JAX and NumPy alone.")
    arguments = parser.parse_args()
    target = f"{_CHECKOUT}[{arguments.extra}]" if arguments.extra else str(_CHECKOUT)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins(replace=arguments.replace)) + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints)]
        status = subprocess.run([*pip, "-e", target], check=False).returncode
    if status and not arguments.replace:
        print(
            "error: pip found no versions that leave every package of this runtime as it is; its "
            "lines above name them. To replace some, but never JAX or NumPy: "
            "python notebooks/install.py --replace",
            file=sys.stderr,
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
