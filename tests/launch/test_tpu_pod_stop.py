"""launch/tpu_pod.sh stop and delete."""

from fake_cloud import printed, wait_until
from tpu_calls import DELETE, DESCRIBE, SLICE, STATUS, TYPE, WORKER, ssh


def test_tpu_pod_stop_waits(running):
    deaf = running.folder / "worker1/deaf"
    deaf.touch()
    stop = ("tpu_pod.sh", "stop", *SLICE, "--poll=0", "--wait=1")
    saved = running.folder / "worker0/drifting_run/status"
    for command in (stop, stop, ("tpu_pod.sh", "delete", *SLICE, *stop[-2:])):
        result = running.run(*command)
        assert result.returncode == 1 and "to end within --wait=1 seconds" in result.stderr, result
        wait_until(saved.exists)
    calls = running.calls()
    assert calls.count(ssh(f"{WORKER} stop")) == 3 and DELETE not in calls
    logs = [(running.folder / f"worker{i}/drifting_run/log").read_text() for i in range(2)]
    assert [log.count("asked") for log in logs] == [1, 3]
    result = running.run(*stop[:-1], "--now")  # a killed run ends at once, on a busy machine too
    assert result.returncode == 0 and "goes on from its last save" in result.stderr, result
    assert ssh(f"{WORKER} kill") in running.calls()


def test_tpu_pod_stop_says_where_a_save_failed(cloud):
    for arguments in (("create", *TYPE), ("setup", *cloud.disk), ("run", cloud.disk[1])):
        more = cloud.flags if arguments[0] == "run" else ()
        command = ("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:], *more)
        assert cloud.run(*command, AT_SIGTERM="1").returncode == 0
    result = cloud.run("tpu_pod.sh", "stop", *SLICE, "--poll=0")
    assert result.returncode == 1 and "ended with status 1: it goes on from its" in result.stderr


def test_tpu_pod_delete_lets_the_run_save_first(running):
    log = running.folder / "worker0/drifting_run/log"
    kept = running.folder / "log"
    kept.hardlink_to(log)  # the slice takes its files with it
    told = running.run("tpu_pod.sh", "delete", *SLICE, "--dry_run")
    assert printed(told) == [*DESCRIBE, STATUS, ssh(f"{WORKER} stop"), DELETE]
    result = running.run("tpu_pod.sh", "delete", *SLICE, "--poll=0")
    assert result.returncode == 0 and "stopped and saved (status 75)" in result.stderr, result
    calls = running.calls()
    assert calls[:4] == [*DESCRIBE, STATUS, ssh(f"{WORKER} stop")] and calls[-1] == DELETE
    assert "saved" in kept.read_text()


def test_tpu_pod_delete_now_asks_nobody(running):
    (running.folder / "worker1/unreachable").touch()
    refused = running.run("tpu_pod.sh", "delete", *SLICE)
    assert refused.returncode == 1 and "delete --now" in refused.stderr, refused
    running.set("refused", "queued-resources describe")
    refused = running.run("tpu_pod.sh", "delete", *SLICE)
    assert refused.returncode == 1 and "--now" in refused.stderr, refused
    assert DELETE not in running.calls()
    assert running.run("tpu_pod.sh", "delete", *SLICE, "--now").returncode == 0
    assert running.calls() == [DELETE]


def test_tpu_pod_delete_of_a_slice_that_was_never_set_up(cloud):
    assert cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE).returncode == 0
    cloud.calls()
    assert cloud.run("tpu_pod.sh", "delete", *SLICE).returncode == 0
    assert cloud.calls() == [*DESCRIBE, STATUS, DELETE]
    gone = cloud.run("tpu_pod.sh", "delete", *SLICE)
    assert gone.returncode == 0 and "there is no slice" in gone.stderr
