"""Traces of some steps, as TensorBoard and xprof open them."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from drifting_jax.training.profiling import Profiler


def moment(step, last=20):
    return SimpleNamespace(step=step, report=jnp.zeros(()), is_last=step == last)


@pytest.fixture
def traces(monkeypatch):
    """What is begun and ended, in order, by the steps done."""
    found = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: found.append(("begin", folder)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: found.append("end"))
    return found


@pytest.mark.parametrize(
    ("begins", "ends", "seen"),
    [
        (0, 20, [(5, "begin"), (8, "end")]),
        (6, 20, [(7, "begin"), (8, "end")]),  # a resume within the trace
        (9, 20, []),
        (0, 6, [(5, "begin"), (6, "end")]),  # the run ends within it
    ],
)
def test_the_steps_of_a_trace(traces, tmp_path, begins, ends, seen):
    profiler = Profiler(tmp_path, start=5, steps=3)
    found = []
    for step in range(begins + 1, ends + 1):
        profiler(moment(step, ends))
        while traces:
            event = traces.pop(0)
            found.append((step, event if event == "end" else event[0]))
    profiler.close()
    assert found == seen and not traces


def test_an_interrupted_trace_is_written(tmp_path):
    profiler = Profiler(tmp_path, start=1, steps=5)
    profiler(moment(1))
    (jnp.ones(3) + 1).block_until_ready()
    profiler.close()
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_a_trace_that_cannot_be_written_costs_only_itself(monkeypatch, tmp_path):
    monkeypatch.setattr("jax.profiler.start_trace", lambda _: _full())
    profiler = Profiler(tmp_path, start=1, steps=5)
    for step in range(1, 8):
        profiler(moment(step))
    profiler.close()


def _full():
    raise OSError(28, "No space left on device")
