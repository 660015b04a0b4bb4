"""Snapshots of a training: kept, resumed, and made into an average of another width."""

import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saved_run
from tiny_run import config, finish, launch, steps, wait_for

from drifting_jax.distributed import transfer
from drifting_jax.errors import UserError
from drifting_jax.steps import state as states
from drifting_jax.steps.power_averages import gamma_of
from drifting_jax.training import restore
from drifting_jax.training.loop import Moment
from drifting_jax.training.program import Carry
from drifting_jax.training.snapshots import open_snapshots, snapshot_hooks
from drifting_jax.workdir.layout import snapshots
from drifting_jax.workdir.snapshots import write_snapshot

WIDTHS, STEPS, RESUMED = (0.05, 0.1), 96, 40
OPTIMIZER = optax.sgd(0.05)


@jax.jit
def descend(state):
    """A noisy descent to 1; step 10 is not finite."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step), (5,))
    return states.apply_gradients(
        state,
        {"w": state.params["w"] - 1 + noise},
        OPTIMIZER,
        ema_decays=(0.9,),
        ema_widths=WIDTHS,
        finite=state.step != 9,
        culprit=0,
    )


def train(workdir, state, *, until):
    """Trains from wherever a state stands; returns it, and the parameters of each update."""
    hooks = snapshot_hooks(
        config(train__num_steps=STEPS, train__ema_widths=WIDTHS), workdir=workdir, writes=True
    )
    recorded = []
    for step in range(int(state.step) + 1, until + 1):
        state = descend(state)
        if step != 10:
            recorded.append(np.asarray(state.params["w"], np.float64))
        moment = Moment(step, {}, Carry(state), None, is_last=step == STEPS)
        for hook in hooks:
            if hook.is_due(moment):
                hook.function(moment)
    return state, np.stack(recorded)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with snapshots, its state at step `RESUMED`, and the parameters of each update."""
    workdir = tmp_path_factory.mktemp("run")
    params = {"w": jnp.zeros(5)}
    state = states.create_state(params, OPTIMIZER, ema_decays=(0.9,), ema_widths=WIDTHS)
    state, before = train(workdir, state, until=RESUMED)
    _, after = train(workdir, state, until=STEPS)
    return workdir, transfer.fetch(state), np.concatenate([before, after])


def files(workdir):
    return {path.name: path.read_bytes() for path in snapshots(workdir).iterdir()}


@pytest.mark.parametrize("width", [0.05, 0.07, 0.1, 0.15])
def test_an_average_of_any_width_is_that_of_the_recorded_parameters(trained, width):
    workdir, _, recorded = trained
    found = open_snapshots(workdir)
    assert found.steps[-1] == STEPS and found.times[-1] == STEPS - 1 == len(recorded)
    assert len(set(found.steps)) == 32
    ends = (np.arange(len(recorded) + 1.0) / len(recorded)) ** (gamma_of(width) + 1)
    expected = np.diff(ends) @ recorded
    fit = found.fit(width)
    np.testing.assert_allclose(found.average(fit)["w"], expected, atol=2e-3)
    assert fit.error < 4e-3 and (fit.error < 1e-6) == (width in WIDTHS)


def test_an_earlier_snapshot_may_be_the_last(trained):
    workdir, _, recorded = trained
    found = open_snapshots(workdir, step=60)
    ends = (np.arange(60.0) / 59) ** (gamma_of(0.1) + 1)
    average = found.average(found.fit(0.1))["w"]
    np.testing.assert_allclose(average, np.diff(ends) @ recorded[:59], atol=2e-3)
    with pytest.raises(UserError, match=r"there is no snapshot of step 61 in .*; there are \[3, 6"):
        open_snapshots(workdir, step=61)


@pytest.mark.parametrize("width", [0.01, 0.281, -1.0])
def test_a_width_that_the_snapshots_cannot_express_is_refused(trained, width):
    found = open_snapshots(trained[0])
    low, *_, high = found.expressible()
    assert 0.015 <= low <= 0.03 and 0.2 <= high <= 0.28
    told = f"up to step 96 express averages of a width from {low:g} to {high:g}; found {width:g}"
    with pytest.raises(UserError, match=told):
        found.fit(width)


def test_a_resumed_training_writes_the_same_files(trained):
    workdir, state, _ = trained
    before = files(workdir)
    for name in list(before)[::3]:
        (snapshots(workdir) / name).write_bytes(b"of a run that went on, and was killed")
    kept = [name for name in before if int(name.partition(".")[0]) > RESUMED]
    (snapshots(workdir) / "00000041.npz").write_bytes(b"of another interval")
    train(workdir, jax.tree.map(jnp.asarray, state), until=STEPS)
    after = files(workdir)
    assert set(after) == set(before) and len(kept) > 15
    assert all(after[name] == before[name] for name in kept)
    for name, content in before.items():
        (snapshots(workdir) / name).write_bytes(content)


def test_a_full_disk_costs_a_snapshot_and_not_the_run(trained, tmp_path):
    _, state, _ = trained
    (tmp_path / "snapshots").write_text("no folder can be made here")
    train(tmp_path, jax.tree.map(jnp.asarray, state), until=RESUMED + 3)


def test_a_run_without_widths_keeps_none(tmp_path):
    assert snapshot_hooks(config(), workdir=tmp_path, writes=True) == []
    with pytest.raises(UserError, match=r"holds no snapshots of averages; a run with config.train"):
        open_snapshots(tmp_path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's workdir with snapshots of its two averages of a decay, as if of widths."""
    folder = saved_run.save_run(tmp_path_factory.mktemp("saved") / "run")
    first, second = (transfer.fetch(run.params) for run in restore.load_averages(folder))
    for step in (2, 4, 7):
        averages = dict(zip(WIDTHS, (first, second), strict=True))
        write_snapshot(snapshots(folder), step=step, updates=step, averages=averages)
    return folder


def test_a_run_is_read_with_an_average_of_a_width(workdir):
    expected, run = restore.load_averages(workdir), restore.load_run(workdir, ema_sigma=0.05)
    assert (run.step, run.average, run.fit_error < 1e-6) == (7, "width 0.05", True)
    assert run.average_record == {"ema_sigma": 0.05, "fit_error": run.fit_error}
    close = partial(np.testing.assert_allclose, rtol=2**-10, atol=1e-6)
    jax.tree.map(close, transfer.fetch(run.params), transfer.fetch(expected[0].params))
    assert [each.average for each in expected[:2]] == ["decay 0.9", "decay 0.99"]
    assert {each.average for each in expected[2:]} >= {"width 0.05", "width 0.1"}
    assert len({id(each.sampler) for each in expected}) == 1
    with pytest.raises(UserError, match=r"one of ema_decay and ema_sigma; found 0.9 and 0.05"):
        restore.load_run(workdir, ema_decay=0.9, ema_sigma=0.05)


def test_snapshots_of_another_network_are_refused(workdir):
    other = {width: {"w": np.ones(3, np.float32)} for width in WIDTHS}
    write_snapshot(snapshots(workdir), step=9, updates=9, averages=other)
    try:
        with pytest.raises(UserError, match=r"the snapshot of step 7 .* holds other parameters"):
            restore.load_run(workdir, ema_sigma=0.05)
    finally:
        (snapshots(workdir) / "00000009.npz").unlink()


def has_come_further(workdir, *, than):
    """Whether a run has saved a checkpoint, and snapshots beyond it."""
    kept = sorted(snapshots(workdir).glob("*.npz"))
    return steps(workdir / "checkpoints") and kept and int(kept[-1].stem) > than


@pytest.mark.slow
def test_a_killed_run_leaves_the_snapshots_of_one_that_was_not(tmp_path):
    flags = ("--config.train.ema_widths=(0.05, 0.1)", "--config.train.num_steps=40")
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    with launch(killed, *flags, "--config.train.snapshot_every=1") as process:
        wait_for(lambda: has_come_further(killed, than=10), process)
        process.send_signal(signal.SIGKILL)
        finish(process)
    assert 10 <= steps(killed / "checkpoints")[-1] < 40
    for workdir in (killed, undisturbed):
        with launch(workdir, *flags, "--config.train.snapshot_every=4") as process:
            assert finish(process).status == 0
    found, expected = files(killed), files(undisturbed)
    assert set(found) > set(expected)  # of the first start, before its checkpoint
    assert sorted(expected) == [f"{step:08d}.npz" for step in range(4, 41, 4)]
    assert {name: found[name] for name in expected} == expected
    assert restore.load_run(killed, ema_sigma=0.07).fit_error < 0.05
