"""launch/tpu_pod.sh resume: what it starts again, and when it gives up."""

import shutil
from pathlib import Path

import pytest
from fake_cloud import CONFIG, wait_until
from tpu_calls import CREATE, DELETE, DESCRIBE, SLICE, STATUS, TYPE, WORKER, set_up, ssh


def test_tpu_pod_resume_ends_at_a_mistake_and_after_too_many_failures(cloud):
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", "--max_failures=1")
    resume += ("--delete_at_end", *cloud.flags)
    cloud.set("plan", "nothing nothing 2 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 2 and "mistake" in result.stderr
    assert "the slice was deleted and costs nothing any more" in result.stderr
    calls = cloud.calls()
    assert calls[:2] == [DESCRIBE[0], CREATE] and calls[-1] == DELETE

    cloud.set("plan", "nothing nothing 130 ")
    assert cloud.run("tpu_pod.sh", *resume).returncode == 130
    assert cloud.calls()[-1] == DELETE

    cloud.set("plan", "nothing 1 nothing nothing 134 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 1, result
    assert "ended with status 1: trying again (1 of at most 1 times)" in result.stderr
    assert "ended with status 134: giving up (--max_failures=1)" in result.stderr
    assert cloud.calls()[-1] == DELETE


@pytest.mark.slow
def test_tpu_pod_resume_replaces_a_slice_whose_workers_do_not_answer(cloud):
    """gcloud calls it ready, and bills it, for as long as nobody deletes it."""
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", "--max_failures=1", *cloud.flags)
    cloud.set("plan", "nothing unreachable nothing 0 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 0 and "the run is done" in result.stderr, result
    [line] = [line for line in result.stderr.splitlines() if "did not answer" in line]
    assert "10 looks in a row" in line and line.endswith("trying again (1 of at most 1 times)")
    calls = cloud.calls()
    assert calls.count(DELETE) == 1 and calls.count(CREATE) == 2
    assert calls[: calls.index(DELETE)].count(STATUS) == 2 + 10

    assert cloud.run("tpu_pod.sh", "delete", *SLICE).returncode == 0
    cloud.set("plan", "nothing unreachable nothing unreachable ")
    result = cloud.run("tpu_pod.sh", *resume, "--config.seed=1")
    assert result.returncode == 1 and "giving up (--max_failures=1)" in result.stderr, result


def test_tpu_pod_resume_deletes_no_slice_on_which_another_run_may_go_on(running):
    (running.folder / "worker1/unreachable").touch()
    resume = ("resume", *SLICE, *TYPE, *running.disk, "--poll=0", "--delete_at_end")
    result = running.run("tpu_pod.sh", *resume, *running.flags)
    assert result.returncode == 1 and "may be another run" in result.stderr, result
    assert DELETE not in running.calls()


@pytest.mark.parametrize("left", [2, 130, 0, 1])
def test_tpu_pod_resume_starts_where_another_run_has_ended(running, left):
    """A corrected command must not end by what the one before it left on the workers."""
    for home in running.folder.glob("worker*"):
        (home / "finish").write_text(str(left))
    states = [running.folder / f"worker{i}/drifting_run/status" for i in range(2)]
    wait_until(lambda: all(path.exists() for path in states))
    running.set("plan", "nothing nothing 0 ")
    options = ("--poll=0", "--delete_at_end", "--max_failures=0", *running.flags, "--config.seed=1")
    result = running.run("tpu_pod.sh", "resume", *SLICE, *TYPE, *running.disk, *options)
    assert result.returncode == 0 and "the run is done" in result.stderr, result
    assert "what ran there before ended" in result.stderr
    started = (running.folder / "started").read_text().splitlines()
    assert [line.endswith("--config.seed=1") for line in started] == [False, False, True, True]
    calls = running.calls()
    assert calls.count(DELETE) == 1 and calls[-1] == DELETE


def test_tpu_pod_resume_follows_the_same_run_and_no_other(running):
    resume = ("resume", *SLICE, *TYPE, *running.disk, "--poll=0", *running.flags)
    other = running.run("tpu_pod.sh", *resume[:-1], "--workdir=" + running.flags[-1][10:] + "2")
    assert other.returncode == 2 and f"found main.py {CONFIG} --workdir=" in other.stderr
    assert all(call in [*DESCRIBE, STATUS] for call in running.calls())
    running.set("plan", "nothing 0 ")
    result = running.run("tpu_pod.sh", *resume)
    assert result.returncode == 0 and "the run is done" in result.stderr, result
    assert len((running.folder / "started").read_text().splitlines()) == 2


def test_tpu_pod_resume_starts_again_when_some_workers_are_left_waiting(cloud):
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", *cloud.flags)
    cloud.set("plan", "nothing 1@first " + "nothing " * 12 + "0 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 0, result
    assert "some workers ended and the others did not: trying again (1 of" in result.stderr
    assert ssh(f"{WORKER} kill") in cloud.calls()


@pytest.mark.slow
def test_tpu_pod_resume_counts_failures_anew_after_running_well(cloud):
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", "--max_failures=1", *cloud.flags)
    cloud.set("plan", "nothing 1 " + "nothing " * 21 + "1 nothing 0 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 0, result
    assert result.stderr.count("trying again (1 of at most 1 times)") == 2


def test_tpu_pod_packs_the_commit_again_where_the_file_is_gone(cloud):
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", *cloud.flags)
    cloud.set("plan", "nothing preempted nothing 0 ")
    packed = Path(set_up(cloud, "")[0][5])
    sent = cloud.folder / "sent"
    removing = (
        f'#!/usr/bin/env bash\nrm -f {packed}\necho >> {sent}\nexec {shutil.which("tar")} "$@"'
    )
    cloud.stand_in({"tar": removing})
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 0, result
    assert sent.read_text() == "\n" * 4  # two workers, twice
