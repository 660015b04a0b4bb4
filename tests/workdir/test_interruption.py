"""SIGTERM and Ctrl-C ask a loop to stop; Ctrl-C after that ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_processes import started

from drifting_jax.workdir.interruption import Interruption


@pytest.fixture(autouse=True)
def hang_up_not_ignored():
    """Undoes a nohup around the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
)
def test_a_signal_sets_the_flag(number, status):
    before = signal.getsignal(number)
    with Interruption() as asked:
        assert (asked.requested, asked.exit_status) == (False, 0)
        os.kill(os.getpid(), number)
        assert (asked.requested, asked.exit_status) == (True, status)
    assert (asked.requested, asked.exit_status) == (True, status)
    assert signal.getsignal(number) is before


def test_the_status_of_another_process_counts():
    with Interruption() as asked:
        asked.join(130)
        assert (asked.requested, asked.exit_status) == (True, 130)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.exit_status == 130


def test_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), Interruption():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_signal_decides_the_status():
    with Interruption() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.exit_status == 75


def test_only_a_late_ctrl_c_ends_the_process(monkeypatch):
    now = 100.0
    ended = []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "_exit", ended.append)
    with Interruption():
        os.kill(os.getpid(), signal.SIGTERM)
        now = 100.5
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == []
        now = 102.0
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's, while the run may be saving
        assert ended == []
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [128 + signal.SIGINT]


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_matter(monkeypatch):
    for stream in (None, open(os.devnull)):  # noqa: SIM115 (it cannot be written to)
        monkeypatch.setattr(sys, "stderr", stream)
        with Interruption() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.requested


def test_outside_the_main_thread_nothing_happens():
    seen = []

    def enter():
        with Interruption() as asked:
            seen.append(asked.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [False]


_LOOP = """
import sys, time
from drifting_jax.workdir.interruption import Interruption

with Interruption() as asked:
    print("ready", flush=True)
    while not asked.requested:
        time.sleep(0.01)
    print("saved", flush=True)
    if sys.argv[1] == "hang":
        time.sleep(60)
sys.exit(asked.exit_status)
"""


@contextlib.contextmanager
def _loop(*arguments: str) -> Iterator[subprocess.Popen]:
    with started(
        [sys.executable, "-c", _LOOP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    ) as child:
        assert child.stdout.readline() == "ready\n"
        yield child


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_exit_status_of_a_program(number, status):
    with _loop("stop") as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (status, "saved\n")
    assert f"{signal.Signals(number).name}: saving and stopping" in err


def test_a_second_signal_ends_a_program_that_hangs():
    with _loop("hang") as child:
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "saved\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1.2)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "stopping at once" in err
