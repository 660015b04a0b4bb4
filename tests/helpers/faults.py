"""Interrupts runs of main.py again and again; their results must not show it.

`survive` starts a tiny run, kills it at the moments that `plan` has drawn, and starts it again with
the same command until it is done. `differences` compares its workdir with that of an undisturbed
run.
"""

import contextlib
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
import quick_compiling
from child_processes import started
from etils import epath

from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds after which a run that does not move on counts as stuck
ALONE = 90.0  # seconds in which a process that has lost another must end by itself
STARTING = 5.0  # the same, for one that still waits for all to join; then a launcher would end it
ENCODER, GENERATOR, EVALUATION = 12, 24, 3  # steps; the evaluation counts as three
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
# Metrics that depend on the clock.
_TIMES = {
    "images_per_second", "seconds", "waiting_for_data", "tflops_per_device", "compile_seconds",
}  # fmt: skip


class Stuck(Exception):
    """A run neither went on nor ended as it should."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a run is killed, and how.

    Attributes:
      point: the kill comes after so many steps of encoder, generator and evaluation together;
        below 0: while the run starts.
      delay: seconds to wait after that.
      in_save: whether to wait for the next save to begin, before the delay.
      sent: SIGKILL or SIGTERM.
      victims: numbers of the processes that get the signal.
    """

    point: float
    delay: float = 0.0
    in_save: bool = False
    sent: signal.Signals = signal.SIGKILL
    victims: tuple[int, ...] = (0,)


@dataclasses.dataclass
class Outcome:
    """What one kill did to a run."""

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
    """Returns kills at moments drawn uniformly over a run, in the order of these moments."""
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
    """Context of one start of a run: its processes, what they print, and how far they are."""

    def __init__(
        self,
        workdir: Path,
        *,
        processes: int = 1,
        devices: int = 1,
        flags: Sequence[str] = FLAGS,
    ):
        """Prepares the commands, which start when the context is entered.

        Args:
          workdir: of the run; the output of its processes goes to files beside it.
          processes: how many processes the run has.
          devices: simulated devices of each process.
          flags: of main.py.
        """
        self.workdir, self.began = workdir, 0.0
        self.processes: list[subprocess.Popen] = []
        self._stack = contextlib.ExitStack()
        self._environment = os.environ | {
            "XLA_FLAGS": quick_compiling.on_devices(devices),
            "JAX_PLATFORMS": "cpu",
            # Not the cache of the other tests: a killed process may leave an entry half-written.
            "JAX_COMPILATION_CACHE_DIR": f"{os.environ['JAX_COMPILATION_CACHE_DIR']}/killed",
        }
        together: list[tuple[str, ...]] = [()] * processes
        if processes > 1:
            many = f"--num_processes={processes}", f"--coordinator=localhost:{_free_port()}"
            together = [(*many, f"--process_id={i}") for i in range(processes)]
        command = (sys.executable, "main.py", *flags, f"--workdir={workdir}")
        self._commands = [(*command, *own) for own in together]
        number = len(list(workdir.parent.glob(f"{workdir.name}.*.0.log")))
        self.logs = [Path(f"{workdir}.{number}.{i}.log") for i in range(processes)]

    def __enter__(self) -> "Start":
        self.began = time.monotonic()
        with contextlib.ExitStack() as stack:
            for log, command in zip(self.logs, self._commands, strict=True):
                file = stack.enter_context(log.open("w"))
                child = started(
                    command,
                    cwd=ROOT,
                    env=self._environment,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
                self.processes.append(stack.enter_context(child))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills all processes, with all that they have started."""
        self._stack.close()

    def printed(self, process: int = 0) -> str:
        return self.logs[process].read_text(encoding="utf-8", errors="replace")

    def place(self) -> tuple[float, str]:
        """Returns the steps of the whole run that are done, and the place in words.

        The number is below 0 while the run starts.
        """
        printed = self.printed()
        if "sampling and measuring" in printed or "done in" in printed:
            return ENCODER + GENERATOR, "while it sampled and measured"
        for stage, before in (("generator", ENCODER), ("encoder", 0)):
            if re.search(rf"^{stage}: [\d,]+ parameters$", printed, re.MULTILINE):
                records = read_metrics(self.workdir, stage=stage)
                step = max((record["step"] for record in records), default=0)
                return before + step, f"after {stage} step {step}"
        return -1.0, "while it started"

    def resumed(self) -> str:
        """Returns in words where the run went on."""
        printed = self.printed()
        found = re.findall(r"^(\w+): goes on from step (\d+)$", printed, re.MULTILINE)
        fresh = re.search(r"^(\w+): [\d,]+ parameters$", printed, re.MULTILINE)
        if found:
            return "resumed at {} step {}".format(*found[0])
        if fresh:
            return f"resumed at the first step of the {fresh[1]}"
        measures = self.place()[0] >= ENCODER + GENERATOR
        return "resumed at the evaluation" if measures else Outcome.resumed

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Waits until the condition holds; returns False if all processes ended before.

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
        """Waits for all or some processes to end.

        Returns:
          The exit statuses of all processes, None for those that still run.
        """
        deadline = time.monotonic() + seconds
        chosen = range(len(self.processes)) if of is None else of
        while any(self.statuses()[i] is None for i in chosen) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.statuses()

    def finish(self) -> None:
        """Waits until the run is done.

        Raises:
          Stuck: it ended with an error, or not in time.
        """
        self.wait_for(lambda: False)

    def end(self, number: signal.Signals, victims: Sequence[int] | None = None) -> None:
        """Sends a signal to all or some processes; after SIGKILL waits until they are gone."""
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


def survive(workdir: Path, kills: Sequence[Kill], *, processes: int = 1) -> Iterator[Outcome]:
    """Runs to the end through all kills; a run that ends before the last kills is done.

    Yields:
      The outcome of each kill, as soon as it is known where the run went on.

    Raises:
      Stuck: the run ended with an error, or did not end.
    """
    before: Outcome | None = None
    for kill in [*kills, None]:
        with Start(workdir, processes=processes) as start:
            outcome = None
            if kill is None:
                start.finish()
            elif _wait_for_moment(start, kill):
                outcome = _send(start, kill)
            if before:
                before.resumed = start.resumed()
                yield before
            before = outcome
            if outcome is None:
                return


def _wait_for_moment(start: Start, kill: Kill) -> bool:
    """Waits for the moment of a kill; returns whether it came before the end of the run."""
    came = start.wait_for(lambda: start.place()[0] >= kill.point)
    if came and kill.in_save:
        came = start.wait_for(lambda: bool(unfinished(start.workdir)))
    time.sleep(kill.delay)
    return came and None in start.statuses()


def _send(start: Start, kill: Kill) -> Outcome:
    """Sends the signal, and waits for all processes to end as they should."""
    at, place = start.place()
    saved = newest(start.workdir)
    seconds = time.monotonic() - start.began
    start.end(kill.sent, kill.victims)
    in_save = bool(unfinished(start.workdir))
    sent_at = time.monotonic()
    start.wait(ALONE, kill.victims)
    statuses = start.wait(STARTING if at < 0 else ALONE)
    ending = f"all ended by themselves within {time.monotonic() - sent_at:.1f} s with {statuses}"
    if None in statuses:
        if at >= 0:
            raise Stuck(f"it lives on after {kill}, {place}: {start.last_words()}")
        start.end(signal.SIGKILL)
        ending = "the launcher ended the others, which were still starting"
    outcome = Outcome(kill, len(statuses), seconds, place, in_save, start.statuses(), ending)
    if kill.sent == signal.SIGTERM and 0 <= at < ENCODER + GENERATOR:
        _check_stopped(start, outcome, saved)
    return outcome


def _check_stopped(start: Start, outcome: Outcome, saved: tuple[int, int]) -> None:
    """Checks that SIGTERM ended all processes alike, after a save, and that one says how to resume.

    Raises:
      Stuck: it did not.
    """
    if not set(outcome.statuses) <= {75} and not set(outcome.statuses) <= {0}:
        raise Stuck(f"{outcome}: {start.last_words()}")
    if 75 in outcome.statuses and "goes on from there:\n" not in start.printed():
        raise Stuck(f"it does not say how to go on: {start.last_words()}")
    if newest(start.workdir) < saved or unfinished(start.workdir):
        raise Stuck(f"{outcome}: nothing was saved")


def newest(workdir: Path) -> tuple[int, int]:
    """Returns the newest steps that encoder and generator have saved, -1 for none."""
    return tuple(
        max((int(p.name) for p in (workdir / at).glob("*") if p.name.isdecimal()), default=-1)
        for at in FOLDERS.values()
    )


def unfinished(workdir: Path) -> list[Path]:
    """Returns the folders of saves that have begun and not ended."""
    return [p for at in FOLDERS.values() for p in (workdir / at).glob("*.orbax-checkpoint-tmp*")]


def read_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Reads every array of the last checkpoints of encoder and generator."""
    return {
        f"{stage} {step} {name}": array
        for (stage, folder), step in zip(FOLDERS.items(), newest(workdir), strict=True)
        for name, array in read_step(workdir / folder / str(step)).items()
    }


def read_step(folder: Path) -> dict[str, np.ndarray]:
    """Reads every array of one checkpoint as it lies on the disk: {item/path: array}."""
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
    """Returns in words how a disturbed run differs, in any bit, from an undisturbed one."""
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
