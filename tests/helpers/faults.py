"""Runs of main.py that are interrupted again and again, and what must be left of it: nothing.

`survive` starts a tiny run, kills it at the moments that `plan` has drawn, starts it again with the
same command until it is done. `differences` compares what it leaves with an undisturbed run's.
"""

import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds until a run that should have moved on counts as stuck
ALONE = 90.0  # seconds in which a process that has lost another must end by itself
STARTING = 5.0  # seconds after which a launcher ends it, where it still waits for all to join
ENCODER, GENERATOR, EVALUATION = 12, 24, 3  # steps, of which the evaluation counts as three
FLAGS = (
    "--config=tests/helpers/tiny_config.py",
    "--config.mesh.data=-1",
    "--config.log_every=1",
    f"--config.encoder.train.num_steps={ENCODER}",
    "--config.encoder.train.classifier_steps=3",
    "--config.encoder.train.save_every=3",
    f"--config.train.num_steps={GENERATOR}",
    "--config.train.generated_per_label=8",
    "--config.train.save_every=3",
    "--config.train.sample_every=12",
    "--config.eval.every=16",
    "--heartbeat_timeout_seconds=20",  # JAX's own, 100, is longer than ALONE
)
FOLDERS = {"encoder": "encoder/checkpoints", "generator": "checkpoints"}
# What depends on the clock, and not on the steps.
_TIMES = {"images_per_second", "seconds", "waiting_for_data"}


class Stuck(Exception):
    """A run did something else than to go on or to end."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a run is killed, and how.

    Attributes:
      point: steps of encoder, generator and evaluation together, after which it is killed; below 0
        while it starts.
      delay: seconds after that.
      in_save: waits for the next save to begin, in between.
      sent: SIGKILL or SIGTERM.
      victims: numbers of the processes that get it.
    """

    point: float
    delay: float = 0.0
    in_save: bool = False
    sent: signal.Signals = signal.SIGKILL
    victims: tuple[int, ...] = (0,)


@dataclasses.dataclass
class Told:
    """What became of one kill."""

    kill: Kill
    processes: int
    seconds: float  # from the start of the processes
    place: str
    in_save: bool
    statuses: list[int]
    ending: str
    resumed: str = "the next kill came before it went on"

    def __str__(self) -> str:
        victims = " and ".join(map(str, self.kill.victims))
        return (
            f"{self.kill.sent.name} to process {victims} of {self.processes}, {self.seconds:.1f} "
            f"s after its start, {self.place}, {'' if self.in_save else 'not '}during a save; "
            f"{self.ending}; {self.resumed}"
        )


def plan(kills: int, *, processes: int, seed: int) -> list[Kill]:
    """Kills at moments drawn uniformly over a run, in the order in which it meets them."""
    draw = random.Random(seed)
    total = ENCODER + GENERATOR + EVALUATION
    found = []
    for point in sorted(draw.uniform(0, total) for _ in range(kills)):
        kind = draw.choices(("step", "save", "start"), (4, 4, 1))[0]
        last = point >= ENCODER + GENERATOR - 1
        in_save = kind == "save" and not last
        longest = 5.0 if kind == "start" else 0.02 if in_save else 1.0 if last else 0.3
        victims = draw.choice([tuple(range(processes)), (draw.randrange(processes),)])
        found.append(
            Kill(
                point=-1.0 if kind == "start" else point,
                delay=draw.uniform(0, longest),
                in_save=in_save,
                sent=draw.choices((signal.SIGKILL, signal.SIGTERM), (4, 1))[0],
                victims=victims,
            )
        )
    return found


class Start:
    """One start of a run: its processes, what they print, how far they are."""

    def __init__(
        self,
        workdir: Path,
        *,
        processes: int = 1,
        devices: int = 1,
        flags: Sequence[str] = FLAGS,
    ):
        """Starts main.py.

        Args:
          workdir: of the run; what is printed goes to files beside it.
          processes: of the run.
          devices: simulated ones of each process.
          flags: of main.py.
        """
        self.workdir, self.began = workdir, time.monotonic()
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_PLATFORMS": "cpu",
            # Apart from those that are not killed: an entry may be left half-written.
            "JAX_COMPILATION_CACHE_DIR": f"{os.environ['JAX_COMPILATION_CACHE_DIR']}/killed",
        }
        together = [()] * processes
        if processes > 1:
            many = f"--num_processes={processes}", f"--coordinator=localhost:{_free_port()}"
            together = [(*many, f"--process_id={i}") for i in range(processes)]
        number = len(list(workdir.parent.glob(f"{workdir.name}.*.0.log")))
        self.logs = [Path(f"{workdir}.{number}.{i}.log") for i in range(processes)]
        self.processes = []
        for log, own in zip(self.logs, together, strict=True):
            command = [sys.executable, "main.py", *flags, f"--workdir={workdir}", *own]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def __enter__(self) -> "Start":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end(signal.SIGKILL)

    def printed(self, process: int = 0) -> str:
        return self.logs[process].read_text(encoding="utf-8", errors="replace")

    def place(self) -> tuple[float, str]:
        """Steps of the whole run that are done, below 0 while it starts, and the same in words."""
        printed = self.printed()
        if "sampling and measuring" in printed or "done in" in printed:
            return ENCODER + GENERATOR, "while it sampled and measured"
        for stage, before in (("generator", ENCODER), ("encoder", 0)):
            if re.search(rf"^{stage}: [\d,]+ parameters$", printed, re.MULTILINE):
                step = max((r["step"] for r in self._metrics(stage)), default=0)
                return before + step, f"after {stage} step {step}"
        return -1.0, "while it started"

    def _metrics(self, stage: str) -> list[dict]:
        return read_metrics(self.workdir, stage=stage)

    def resumed(self) -> str:
        """Where it went on, in words."""
        printed = self.printed()
        found = re.findall(r"^(\w+): goes on from step (\d+)$", printed, re.MULTILINE)
        fresh = re.search(r"^(\w+): [\d,]+ parameters$", printed, re.MULTILINE)
        if found:
            return "resumed at {} step {}".format(*found[0])
        if fresh:
            return f"resumed at the first step of the {fresh[1]}"
        measures = self.place()[0] >= ENCODER + GENERATOR
        return "resumed at the evaluation" if measures else Told.resumed

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Returns as soon as the condition holds; or False, where all processes have ended.

        Raises:
          Stuck: neither happened in time, or a process ended with an error.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition():
            statuses = self.statuses()
            if any(status not in (None, 0) for status in statuses):
                raise Stuck(f"it ended by itself with {statuses}: {self.last_words()}")
            if None not in statuses:
                return False
            if time.monotonic() > deadline:
                raise Stuck(f"it does not move on: {self.last_words()}")
            time.sleep(0.005)
        return True

    def wait(self, seconds: float, of: Sequence[int] | None = None) -> list[int | None]:
        """Waits for all processes or some; all statuses, None for those that have not ended."""
        deadline = time.monotonic() + seconds
        chosen = range(len(self.processes)) if of is None else of
        while any(self.statuses()[i] is None for i in chosen) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.statuses()

    def finish(self) -> None:
        """Waits until it is done.

        Raises:
          Stuck: it ended otherwise.
        """
        self.wait_for(lambda: False)

    def end(self, number: signal.Signals, victims: Sequence[int] | None = None) -> None:
        """Sends a signal to some or all, and where it is SIGKILL waits until they are gone."""
        chosen = [p for i, p in enumerate(self.processes) if victims is None or i in victims]
        for process in chosen:
            if process.poll() is None:
                process.send_signal(number)
        for process in chosen:
            if number == signal.SIGKILL:
                process.wait()

    def statuses(self) -> list[int | None]:
        return [process.poll() for process in self.processes]

    def last_words(self) -> str:
        return "\n".join(self.printed(i)[-2000:] for i in range(len(self.logs)))


def survive(workdir: Path, kills: Sequence[Kill], *, processes: int = 1) -> Iterator[Told]:
    """Runs to the end through kills, and tells of each once it is known where the run went on.

    A run that was quicker than the last kills is spared them.

    Raises:
      Stuck: it ended otherwise, or did not end.
    """
    before: Told | None = None
    for kill in [*kills, None]:
        with Start(workdir, processes=processes) as start:
            told = None
            if kill is None:
                start.finish()
            elif _await(start, kill):
                told = _strike(start, kill)
            if before:
                before.resumed = start.resumed()
                yield before
            before = told
            if told is None:
                return


def _await(start: Start, kill: Kill) -> bool:
    """Waits for the moment of a kill; whether it came before the end."""
    came = start.wait_for(lambda: start.place()[0] >= kill.point)
    if came and kill.in_save:
        came = start.wait_for(lambda: bool(unfinished(start.workdir)))
    time.sleep(kill.delay)
    return came and None in start.statuses()


def _strike(start: Start, kill: Kill) -> Told:
    at, place = start.place()
    saved = newest(start.workdir)
    seconds = time.monotonic() - start.began
    start.end(kill.sent, kill.victims)
    in_save = bool(unfinished(start.workdir))
    struck = time.monotonic()
    start.wait(ALONE, kill.victims)
    statuses = start.wait(STARTING if at < 0 else ALONE)
    ending = f"all ended by themselves within {time.monotonic() - struck:.1f} s with {statuses}"
    if None in statuses:
        if at >= 0:
            raise Stuck(f"it lives on after {kill}, {place}: {start.last_words()}")
        start.end(signal.SIGKILL)
        ending = "the launcher ended the others, which were still starting"
    told = Told(kill, len(statuses), seconds, place, in_save, start.statuses(), ending)
    if kill.sent == signal.SIGTERM and 0 <= at < ENCODER + GENERATOR:
        _check_stopped(start, told, saved)
    return told


def _check_stopped(start: Start, told: Told, saved: tuple[int, int]) -> None:
    """SIGTERM ends all processes alike, after a save, and the command is told."""
    if not set(told.statuses) <= {75} and not set(told.statuses) <= {0}:
        raise Stuck(f"{told}: {start.last_words()}")
    if 75 in told.statuses and "goes on from there:\n" not in start.printed():
        raise Stuck(f"it does not say how to go on: {start.last_words()}")
    if newest(start.workdir) < saved or unfinished(start.workdir):
        raise Stuck(f"{told}: nothing was saved")


def newest(workdir: Path) -> tuple[int, int]:
    """Newest checkpoints of encoder and generator, -1 for none."""
    return tuple(
        max((int(p.name) for p in (workdir / at).glob("*") if p.name.isdecimal()), default=-1)
        for at in FOLDERS.values()
    )


def unfinished(workdir: Path) -> list[Path]:
    """What a save has begun and not ended."""
    return [p for at in FOLDERS.values() for p in (workdir / at).glob("*.orbax-checkpoint-tmp*")]


def read_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoints of encoder and generator."""
    return {
        f"{stage} {step} {name}": array
        for (stage, folder), step in zip(FOLDERS.items(), newest(workdir), strict=True)
        for name, array in read_step(workdir / folder / str(step)).items()
    }


def read_step(folder: Path) -> dict[str, np.ndarray]:
    """Every array of one checkpoint as it lies on the disk: {item/path: array}."""
    found = {}
    for item in sorted(p.parent for p in epath.Path(folder).glob("*/_METADATA")):
        tree = ocp.StandardCheckpointHandler().metadata(item).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        restored = ocp.PyTreeCheckpointHandler().restore(item, args=arguments)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found[f"{item.name}/{name}"] = leaf
    return found


def differences(workdir: Path, expected: Path) -> list[str]:
    """In what a run that was disturbed differs from one that was not, bit for bit; in words."""
    ours, theirs = read_arrays(workdir), read_arrays(expected)
    for item in ("state", "ema", "queue", "position"):
        assert any(f" {item}/" in name for name in theirs), item
    found = [f"{name} is in one of them alone" for name in sorted(ours.keys() ^ theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            found.append(f"{name} has other bits")
    lines = [list(map(_timeless, read_metrics(folder))) for folder in (workdir, expected)]
    if lines[0] != lines[1]:
        found.append("metrics.jsonl has other lines")
    for name in ("evaluation.json", "data.json"):
        if json.loads((workdir / name).read_text()) != json.loads((expected / name).read_text()):
            found.append(f"{name} has other values")
    left = [p for p in workdir.rglob("*") if ".partial" in p.name or "-tmp" in p.name]
    return found + [f"{path} was left" for path in left]


def _timeless(record: Mapping) -> dict:
    return {name: value for name, value in record.items() if name not in _TIMES}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
