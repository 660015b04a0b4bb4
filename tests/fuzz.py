"""Damages files for many minutes: `python tests/fuzz.py --minutes=20 --seed=0`.

Each crash is printed once, with its target and seed; `tests/test_fuzz.py` runs a few seeds of every
target. Exit status 1 if anything but a documented error was raised, took too long, or asked for
more memory than --gigabytes.
"""

import argparse
import logging
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "helpers")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="memory besides Python's own")
    parser.add_argument("--only", default="", help="targets whose names begin so")
    arguments = parser.parse_args()
    import fuzz_targets
    import fuzzing

    warnings.simplefilter("ignore")
    logging.disable()
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    targets = {
        name: target
        for name, target in fuzz_targets.make_targets().items()
        if name.startswith(arguments.only)
    }
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + int(arguments.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    rng, seen, count = random.Random(arguments.seed), {}, 0
    until = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < until:
        for name, target in targets.items():
            for _ in range(10):
                seed, count = rng.randrange(2**32), count + 1
                (folder / "last").write_text(f"{name} {seed}")
                try:
                    fuzzing.check(target, folder / "work", seed)
                except Exception as error:
                    where = [f for f in traceback.extract_tb(error.__traceback__)
                             if "drifting_jax/" in f.filename][-1:]  # fmt: skip
                    key = (name, type(error).__name__, str(where))
                    seen[key] = seen.get(key, 0) + 1
                    if seen[key] == 1:
                        print(f"\n{name}, seed {seed}:", flush=True)
                        traceback.print_exception(error, limit=-6, file=sys.stdout)
    print(f"{count} inputs of {len(targets)} targets, {len(seen)} kinds of crashes")
    return bool(seen)


if __name__ == "__main__":
    sys.exit(main())
