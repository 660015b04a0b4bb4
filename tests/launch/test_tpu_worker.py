"""launch/tpu_worker.sh, on the workers of a slice of stand-ins."""

import own_processes
from fake_cloud import wait_until
from stand_ins import RECORD
from tpu_calls import SLICE, TYPE


def test_tpu_pod_starts_no_run_whose_workdir_is_on_no_shared_disk(cloud):
    for arguments in (("create", *TYPE), ("setup", cloud.disk[1])):
        assert cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:]).returncode == 0
    result = cloud.run("tpu_pod.sh", "run", *SLICE, cloud.disk[1], *cloud.flags)
    assert result.returncode == 1 and "found none mounted" in result.stderr
    assert not (cloud.folder / "started").exists()


def test_tpu_pod_mounts_a_disk_again_that_does_not_answer(cloud):
    programs = {
        "umount": RECORD + '(pathlib.Path.home() / "mounted").unlink()\n',
        "ls": "#!/usr/bin/env bash\n[[ -f $HOME/mounted_again ]] || exit 2",
    }
    cloud.stand_in(programs)
    assert cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE).returncode == 0
    for again in (False, True):
        cloud.calls()
        result = cloud.run("tpu_pod.sh", "setup", *SLICE, *cloud.disk)
        assert result.returncode == 0, result
        names = [call[0] for call in cloud.calls() if call[0] != "gcloud"]
        assert names == (["umount", "gcsfuse"] * 2 if again else ["gcsfuse"] * 2)


def test_tpu_pod_waits_for_the_locks_of_apt(cloud, tmp_path):
    """A new machine updates itself while it is set up."""
    busy = (
        'once = pathlib.Path.home() / "-".join(arguments[-2:])\n'
        "if not once.exists():\n"
        "    once.touch()\n"
        '    sys.exit("E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7")\n'
    )
    programs = {
        "apt-get": RECORD + busy,
        "mount": RECORD + '(pathlib.Path.home() / "mounted").write_text(arguments[2])\n',
        "sleep": "#!/usr/bin/env bash",
    }
    cloud.stand_in(programs)
    assert cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE).returncode == 0
    result = cloud.run("tpu_pod.sh", "setup", *SLICE, "--nfs=h:/s", cloud.disk[1])
    assert result.returncode == 0, result
    asked = [call[-1] for call in cloud.calls() if call[0] == "apt-get"]
    assert asked == ["update", "update", "nfs-common", "nfs-common"] * 2

    cloud.set("refused", "update")
    result = cloud.run("tpu_pod.sh", "setup", *SLICE, "--nfs=other:/s", f"--mount={tmp_path}/other")
    assert result.returncode == 1 and "set-up failed on a worker" in result.stderr


def test_a_run_needs_no_program_of_procps(cloud, mark):
    """Bare images have neither `ps` nor `kill`."""
    cloud.hide("ps", "kill", "pkill", "pgrep", "free", "top", "uptime", "w")
    for arguments in (("create", *TYPE), ("setup", *cloud.disk), ("run", cloud.disk[1])):
        more = cloud.flags if arguments[0] == "run" else ()
        result = cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:], *more)
        assert result.returncode == 0, result
    (cloud.folder / "worker1/deaf").touch()
    result = cloud.run("tpu_pod.sh", "stop", *SLICE, "--poll=0", "--now")
    assert result.returncode == 0 and "ended without a status" in result.stderr, result
    [variable] = mark.items()
    wait_until(lambda: not own_processes.marked(*variable))  # main.py, and what it started
