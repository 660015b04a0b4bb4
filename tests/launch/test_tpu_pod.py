"""launch/tpu_pod.sh: the way of a run, what it sends, and mistakes."""

import shutil
import subprocess

import pytest
from fake_cloud import CONFIG, assert_one_line, printed, wait_until
from tpu_calls import (
    CREATE,
    DELETE,
    DESCRIBE,
    SLICE,
    STATUS,
    TYPE,
    WORKER,
    mounts,
    of_gcloud,
    set_up,
    ssh,
)


def test_tpu_pod_from_nothing_over_a_preemption_to_the_end(cloud, tmp_path):
    mount, disk = str(tmp_path / "shared"), cloud.disk
    flags = ("--", CONFIG, f"--workdir={mount}/a run", "--config.log_every=1")
    arguments = "--env=LIBTPU_INIT_ARGS=--a --b"

    def step(*arguments):
        """Runs a command for real and checks that its dry run tells the same calls."""
        told = cloud.run("tpu_pod.sh", *arguments[:1], *SLICE, "--dry_run", *arguments[1:])
        assert told.returncode == 0, told
        assert cloud.calls() == []
        result = cloud.run("tpu_pod.sh", *arguments[:1], *SLICE, *arguments[1:])
        assert result.returncode == 0, result
        calls = cloud.calls()
        assert of_gcloud(calls) == [c for c in printed(told) if c[0] == "gcloud"]
        return calls, result

    calls, _ = step("create", *TYPE)
    assert calls == [CREATE, *DESCRIBE]

    calls, _ = step("setup", *disk)
    assert of_gcloud(calls) == set_up(cloud, mount)
    assert mounts(calls, mount) == 2  # one for each worker

    command = f"main.py {CONFIG} '--workdir={mount}/a run' --config.log_every=1"
    start = ssh(
        f"{WORKER} start --mount={mount} '{arguments}' -- {command.removeprefix('main.py ')}"
    )
    calls, _ = step("run", disk[1], arguments, *flags)
    assert calls == [start]
    started = [f"main.py {CONFIG} --workdir={mount}/a run --config.log_every=1"] * 2
    assert (cloud.folder / "started").read_text().splitlines() == started
    environments = [f"{mount}/.jax_cache --a --b"] * 2
    assert (cloud.folder / "environments").read_text().splitlines() == environments

    refused = cloud.run("tpu_pod.sh", "run", *SLICE, disk[1], *flags)  # while it runs
    assert refused.returncode == 1 and "stop it first" in refused.stderr
    refused = cloud.run("tpu_pod.sh", "setup", *SLICE, *disk)
    assert refused.returncode == 1 and "stop it first" in refused.stderr
    cloud.calls()

    calls, result = step("status")
    assert calls == [*DESCRIBE, STATUS]
    says = f"running: 'LIBTPU_INIT_ARGS=--a --b' {command}"
    assert [line.partition(" ")[2] for line in result.stdout.splitlines()] == [says] * 2

    # Pre-empted at the second look, told to stop at the next but one, then done.
    cloud.set("plan", "nothing preempted nothing 75 nothing nothing 0 ")
    result = cloud.run("tpu_pod.sh", "resume", *SLICE, *TYPE, *disk, "--poll=0", arguments, *flags)
    assert result.returncode == 0, result
    assert "the run is done" in result.stderr and "still there and costs" in result.stderr
    calls = cloud.calls()
    again = [*set_up(cloud, mount), start]
    assert of_gcloud(calls) == [
        *DESCRIBE,
        STATUS,
        DESCRIBE[0],  # SUSPENDED
        DELETE,
        DESCRIBE[0],  # NOT_FOUND
        CREATE,
        *DESCRIBE,
        STATUS,
        *again,
        *DESCRIBE,
        STATUS,  # running, then status 75
        *again,
        *DESCRIBE,
        STATUS,  # running, then done
    ]
    assert mounts(calls, mount) == 2  # only on the new machines
    assert (cloud.folder / "started").read_text().splitlines() == started * 3
    assert (cloud.folder / "worker1/drifting_run/status").read_text() == "0\n"

    calls, _ = step("delete", "--now")
    assert calls == [DELETE]


def test_tpu_pod_stops_and_follows(cloud):
    flags = ("--", CONFIG, "--workdir=/shared/run")
    for arguments in (("create", *TYPE), ("setup",), ("run",)):
        more = flags if arguments[0] == "run" else ()
        result = cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:], *more)
        assert result.returncode == 0, result
        assert ("checkpoints will be lost" in result.stderr) == (arguments[0] == "setup")
    stopped = cloud.run("tpu_pod.sh", "stop", *SLICE, "--poll=0")
    assert stopped.returncode == 0 and "stopped and saved (status 75)" in stopped.stderr, stopped
    statuses = [cloud.folder / f"worker{i}/drifting_run/status" for i in range(2)]
    assert [path.read_text() for path in statuses] == ["75\n"] * 2
    log = (cloud.folder / "worker0/drifting_run/log").read_text()
    assert "a line of main.py\nasked\nsaved\n" in log and f"main.py {CONFIG}" in log
    caches = (cloud.folder / "environments").read_text().split()
    assert caches == [f"{cloud.environment['XDG_CACHE_HOME']}/drifting_jax/compiled"] * 2
    cloud.calls()
    told = cloud.run("tpu_pod.sh", "logs", *SLICE, "--worker=1", "--dry_run")
    assert printed(told) == [ssh(f"{WORKER} logs", worker=1)]


def test_tpu_pod_create_waits_for_what_was_asked_for_before(cloud):
    for asked_before in (False, True):
        cloud.set("refused", "queued-resources create" if asked_before else "nothing")
        result = cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE)
        assert result.returncode == 0, result
        assert ("asked for before" in result.stderr) == asked_before
    assert DELETE not in cloud.calls()


@pytest.mark.parametrize(
    "refusal", ["ERROR: (gcloud) no network", "ERROR: (gcloud) proxy answered 404 Not Found"]
)
@pytest.mark.parametrize("kind", ["queued-resources", "tpu-vm"])
def test_tpu_pod_does_nothing_where_gcloud_cannot_tell(cloud, kind, refusal):
    """A laptop without a network must not delete a slice that runs."""
    assert cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE).returncode == 0
    cloud.calls()
    cloud.set("refused", f"{kind} describe")
    resume = ["resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", *cloud.flags]
    process = subprocess.Popen(
        [cloud.repository / "launch/tpu_pod.sh", *resume],
        env=cloud.environment | {"REFUSAL": refusal},
        stderr=subprocess.PIPE,
        text=True,
    )
    recorded = cloud.folder / "calls"
    wait_until(lambda: recorded.exists() and len(recorded.read_text().splitlines()) > 6)
    process.terminate()
    _, said = process.communicate(timeout=10)
    calls = cloud.calls()
    assert len(calls) > 6 and all(call in DESCRIBE for call in calls)
    assert refusal in said and said.count("slice: unknown") == 1


def test_tpu_pod_says_what_gcloud_refused(cloud):
    cloud.set("refused", "queued-resources create")
    result = cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: gcloud could not ask for the slice")


def test_tpu_pod_says_how_to_choose_a_project(cloud):
    status = ("status", "--name=pod", "--zone=z1")
    result = cloud.run("tpu_pod.sh", *status, PROJECT_OF_GCLOUD="")
    assert_one_line(result, "gcloud config set project PROJECT", "--project=")
    assert cloud.run("tpu_pod.sh", *status).returncode == 0


@pytest.mark.parametrize("dry_run", [(), ("--dry_run",)])
def test_tpu_pod_sends_committed_code_only(cloud, dry_run):
    setup = ("tpu_pod.sh", "setup", *SLICE, *dry_run)
    resume = ("tpu_pod.sh", "resume", *SLICE, *TYPE, *cloud.disk, *dry_run)
    run = ("tpu_pod.sh", "run", *SLICE, *cloud.disk, *dry_run)
    assert_one_line(cloud.run(*setup, "--ref=nosuch"), "--ref", "'nosuch'")
    assert_one_line(cloud.run(*run, "--ref=-x", *cloud.flags), "--ref", "'-x'")

    mine = ("--", "--config=configs/my.py:a", cloud.flags[-1])
    (cloud.repository / "configs/my.py").write_text("")
    assert_one_line(cloud.run(*setup), "found configs/my.py: commit it", "--ref=HEAD")
    assert_one_line(cloud.run(*resume, *mine), "'configs/my.py'", "commit it")
    assert_one_line(cloud.run(*resume, "--ref=HEAD", *mine), "'configs/my.py'", "commit it")
    assert_one_line(cloud.run(*run, *mine), "'configs/my.py'", "commit it")
    (cloud.repository / "main.py").write_text("changed")
    for name in ("a b", "c"):
        (cloud.repository / name).write_text("")
    assert_one_line(cloud.run(*setup), "found main.py, ", " and 1 more: commit it")
    assert cloud.run(*setup[:-1], "--dry_run", "--ref=HEAD").returncode == 0

    shutil.rmtree(cloud.repository / ".git")
    if not dry_run:
        assert_one_line(cloud.run(*setup), "expected a git repository", "--repo=URL")
    told = cloud.run("tpu_pod.sh", "setup", *SLICE, "--repo=https://x/y", "--ref=abc", "--dry_run")
    remote = printed(told)[0][-1]
    assert "git clone --quiet https://x/y drifting_jax && git -C drifting_jax checkout" in remote
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("expected create, setup", "found ''")),
        (("launch",), ("found 'launch'",)),
        (("create", "--zone=z"), ("--name",)),
        (("create", "--name=n"), ("--zone",)),
        (("create", *SLICE), ("--accelerator_type",)),
        (("create", *SLICE, "--accelerator_type=v99-8"), ("--runtime_version", "v99-8")),
        (("create", *SLICE, "--acelerator=x"), ("'--acelerator=x'", "--accelerator_type")),
        (("create", *SLICE, "--zone"), ("--zone=VALUE",)),
        (("create", *SLICE, *TYPE, "--", CONFIG), ("create takes no flags", CONFIG)),
        (("create", "--name=My_pod", "--zone=z"), ("My_pod",)),
        (("create", *SLICE, "--accelerator_type=v5e-64"), ("=v5litepod-64", "'v5e-64'")),
        (("setup", *SLICE, "--bucket=gs://b"), ("bare name", "gs://b")),
        (("setup", *SLICE, "--bucket=b/folder"), ("bare name", "b/folder")),
        (("setup", *SLICE, "--nfs=1.2.3.4"), ("--nfs=HOST:/SHARE", "1.2.3.4")),
        (("create", *SLICE, "--spot=yes"), ("--spot without a value", "'--spot=yes'")),
        (("run", *SLICE, "--", CONFIG, "--workdir=/a/b", "--dry_run"), ("needs no slice",)),
        (("setup", *SLICE, "--bucket=b", "--nfs=h:/s"), ("one of --bucket and --nfs",)),
        (("logs", *SLICE, "--worker=first"), ("number or all", "first")),
        (("run", *SLICE), ("--config=FILE after --",)),
        (("run", *SLICE, CONFIG), ("after --", CONFIG)),
        (("run", *SLICE, "--", CONFIG), ("--workdir=/…", "found ''")),
        (("run", *SLICE, "--", CONFIG, "--workdir=runs/a"), ("found 'runs/a'",)),
        (("run", *SLICE, "--", CONFIG, "--workdir=gs://b/a"), ("gs://b/a",)),
        (
            ("run", *SLICE, "--bucket=b", "--", CONFIG, "--workdir=/mnt/other"),
            ("/mnt/shared/…", "/mnt/other"),
        ),
        (("run", *SLICE, "--", "config", CONFIG), ("found 'config'",)),
        (("run", *SLICE, "--", CONFIG, "--workdir=/mnt/shared/../a"), ("without ..",)),
        (("run", *SLICE, "--env=A", "--", CONFIG), ("--env=NAME=VALUE", "'--env=A'")),
        (("setup", *SLICE, "--mount=/"), ("--mount", "'/'")),
        (("resume", *SLICE, *TYPE, "--", CONFIG, "--workdir=/a"), ("--bucket and --nfs", "lost")),
        (("stop", *SLICE, "--wait=long"), ("--wait", "'long'")),
        (("resume", *SLICE, *TYPE, "--poll=soon", "--", CONFIG), ("--poll", "soon")),
        (("resume", *SLICE, *TYPE, "--repo=u", "--ref=main", "--", CONFIG), ("commit", "'main'")),
    ],
)
def test_tpu_pod_mistakes(cloud, arguments, parts):
    assert_one_line(cloud.run("tpu_pod.sh", *arguments), *parts)
    assert cloud.calls() == []
