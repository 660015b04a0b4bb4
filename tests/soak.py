"""Kills tiny runs many times and checks that their results do not show it; to be run by hand.

    python tests/soak.py --kills=20 --processes=1,2 --seed=0

Prints a line for each kill, and the verdict at the end. The exit status is 1 if a killed run
differs in any bit from an undisturbed one, if a run did not go on, or if not all kills took place.
"""

import argparse
import itertools
import os
import signal
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "helpers")]

import faults  # noqa: E402


def soak(folder: Path, *, kills: int, processes: int, seed: int) -> tuple[int, list[str]]:
    """Kills runs until so many kills took place; returns how many did, and what differs."""
    whole = folder / f"whole{processes}"
    with faults.Start(whole, processes=processes) as start:
        start.finish()
    done, wrong = 0, []
    for life in itertools.count():
        draw = seed + 1000 * processes + life
        planned = faults.plan(kills - done, processes=processes, seed=draw)
        workdir, before = folder / f"killed{processes}_{life}", done
        for outcome in faults.survive(workdir, planned, processes=processes):
            done += 1
            print(f"{done} of {kills}: {outcome}", flush=True)
        wrong += faults.differences(workdir, whole)
        if done in (kills, before) or wrong:
            return done, wrong
    raise AssertionError


def main() -> int:
    """Kills runs of each number of processes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", default="1,2", help="numbers of processes, each its own run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the runs
    layouts = [int(number) for number in given.processes.split(",")]
    done, wrong = 0, []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        for i, processes in enumerate(layouts):
            kills = len(range(i, given.kills, len(layouts)))
            if not kills:
                continue
            try:
                found = soak(Path(folder), kills=kills, processes=processes, seed=given.seed)
            except faults.Stuck as stuck:
                print(f"FAILED: {stuck}")
                return 1
            done, wrong = done + found[0], wrong + found[1]
    if wrong or done != given.kills:
        found = "; ".join(wrong) or "the same bits"
        print(f"FAILED: {done} of {given.kills} kills took place; {found}")
        return 1
    print(f"passed: {done} kills, every array and metric has the same bits as without them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
