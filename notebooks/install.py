"""Installs the checkout that holds this file into the Python that runs it, for a notebook.

    python notebooks/install.py [--extra=hub] [--replace]

A notebook's runtime comes with packages that fit each other and its accelerator. Each of them is
pinned here to the version that it has, so that pip adds packages and replaces none. Where no
versions fit these pins, `--replace` pins JAX and NumPy alone.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
_JAX = re.compile(r"jax(|lib|-.*)|libtpu|numpy")


def pins(*, replace: bool) -> list[str]:
    """Returns a pip constraint for each installed package; with `replace`, for JAX and NumPy."""
    found: dict[str, str] = {}
    for package in importlib.metadata.distributions():
        if package.name and package.version:
            # Of two versions, Python imports the one that it finds first.
            found.setdefault(re.sub(r"[-_.]+", "-", package.name).lower(), package.version)
    found.pop("drifting-jax", None)
    kept = {name: v for name, v in found.items() if _JAX.fullmatch(name) or not replace}
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
            "lines above name them. To replace some, but never JAX or NumPy, run "
            "!python notebooks/install.py --replace and go on with the next cell",
            file=sys.stderr,
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
