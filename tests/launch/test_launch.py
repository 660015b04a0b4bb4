"""The launchers: against stand-ins that record their calls, and one real run of two processes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import yaml

from drifting_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/digits.py"
OF_LAUNCHERS = ("JAX_COMPILATION_CACHE_DIR", "CLOUDSDK_CORE_PROJECT")

RECORD = f"""#!{sys.executable} -SE
import json, os, pathlib, shutil, subprocess, sys
cloud = pathlib.Path(os.environ["CLOUD"])
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(cloud / "calls", "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
refused = cloud / "refused"
if refused.exists() and refused.read_text() in " ".join(arguments):
    sys.exit(os.environ.get("REFUSAL", "ERROR: the stand-in was told to refuse this"))
"""

# A project with one slice of two workers: folders in which commands are really run.
GCLOUD = (
    RECORD
    + """
slice, plan = cloud / "slice", cloud / "plan"
homes = [cloud / f"worker{i}" for i in range(2)]

def vanish():
    for home in homes:
        group = home / "drifting_run/group"
        if group.exists():
            subprocess.run(["kill", "-KILL", "--", "-" + group.read_text().strip()])
        shutil.rmtree(home, ignore_errors=True)

if arguments[0] == "config":
    sys.exit(print(os.environ.get("PROJECT_OF_GCLOUD", "p")))
service, verb = arguments[2:4]
flags = dict(word.partition("=")[::2] for word in arguments)
if verb == "create":
    slice.write_text("ACTIVE")
    for home in homes:
        home.mkdir()
elif verb == "delete":
    slice.unlink()
    vanish()
elif verb == "describe" and not slice.exists():
    sys.exit("ERROR: (gcloud) NOT_FOUND: Resource 'projects/p' was not found")
elif verb == "describe":
    print({"queued-resources": slice.read_text(), "tpu-vm": "READY"}[service])
elif verb == "scp":
    for home in homes:
        shutil.copy(arguments[4], home / arguments[5].partition(":")[2])
elif verb == "ssh" and (homes[1] / "unreachable").exists():
    sys.exit("ssh: connect to host worker1 port 22: Connection timed out")
elif verb == "ssh":
    print("Using ssh batch size of 1.", file=sys.stderr)
    worker = flags["--worker"]
    failed = [
        home
        for home in (homes if worker == "all" else [homes[int(worker)]])
        if subprocess.run(
            ["bash", "-c", flags["--command"]], cwd=home, env={**os.environ, "HOME": str(home)}
        ).returncode
    ]
    # What happens after each look at the run, in the order of the plan.
    if "status" in flags["--command"] and plan.exists() and plan.read_text():
        event, _, rest = plan.read_text().partition(" ")
        plan.write_text(rest)
        if event == "preempted":
            vanish()
            slice.write_text("SUSPENDED")
        elif event == "unreachable":
            (homes[1] / event).touch()
        elif event != "nothing":
            status, _, one = event.partition("@")
            for home in homes[:1] if one else homes:
                (home / "finish").write_text(status)
    sys.exit(1 if failed else 0)
"""
)

# Makes the environment of a worker, whose Python runs until it is told its exit status.
UV = """#!/usr/bin/env bash
if [[ $1 == venv ]]; then
  environment="${@: -1}"
  mkdir -p "$environment/bin"
  cat > "$environment/bin/python" <<'END'
#!/usr/bin/env bash
echo "${*:2}" >> "$CLOUD/started"
echo "$JAX_COMPILATION_CACHE_DIR $LIBTPU_INIT_ARGS" >> "$CLOUD/environments"
echo "a line of main.py"
trap 'echo asked; [[ -f $HOME/deaf ]] || { echo saved; exit "${AT_SIGTERM:-75}"; }' TERM
while [[ ! -s $HOME/finish ]]; do sleep 0.02; done
status=$(<"$HOME/finish")
rm "$HOME/finish"
exit "$status"
END
  chmod +x "$environment/bin/python"
fi
"""
FINDMNT = '#!/usr/bin/env bash\ncat "$HOME/mounted" 2>/dev/null'
GCSFUSE = RECORD + '(pathlib.Path.home() / "mounted").write_text(arguments[-2])\n'
SUDO = '#!/usr/bin/env bash\nexec "$@"'
SCONTROL = RECORD + 'print("JobId=7 JobState=" + os.environ["JOB_STATE"], "Reason=None")\n'
SRUN = RECORD + 'import time\ntime.sleep(float(os.environ.get("SRUN_SECONDS", 0)))\n' + (
    'sys.exit(int(os.environ["SRUN_STATUS"]))\n'
)  # fmt: skip
SBATCH = """#!/usr/bin/env bash
cp "$1" "$CLOUD/slurm_script"
export SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=7
exec bash "$CLOUD/slurm_script" "${@:2}"
"""


class Cloud:
    """A folder of stand-ins, what they were called with, and a repository with launch/ in it."""

    def __init__(self, folder, stand_ins, committed):
        self.folder = folder / "cloud"
        self.repository = folder / "repository"
        self.binaries = folder / "bin"
        shutil.copytree(committed, self.repository)
        for path in (self.folder, self.binaries):
            path.mkdir()
        self.stand_in(stand_ins)
        mount = folder / "shared"
        self.disk = ("--bucket=b", f"--mount={mount}")
        self.flags = ("--", CONFIG, f"--workdir={mount}/run")
        outside = {k: v for k, v in os.environ.items() if k not in OF_LAUNCHERS}
        self.environment = {
            **outside,
            "PATH": f"{self.binaries}:{os.environ['PATH']}",
            "CLOUD": str(self.folder),
            "TMPDIR": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def stand_in(self, programs):
        """Puts programs, given as name: text, before all others on the PATH."""
        for name, text in programs.items():
            (self.binaries / name).write_text(text)
            (self.binaries / name).chmod(0o755)

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            [self.repository / "launch" / script if script.endswith(".sh") else script, *arguments],
            cwd=self.repository,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        """Since the last time."""
        path = self.folder / "calls"
        found = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        path.unlink(missing_ok=True)
        return found

    def set(self, name, text):
        (self.folder / name).write_text(text)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A repository with launch/, and no more than what it looks for."""
    folder = tmp_path_factory.mktemp("committed")
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / "configs").mkdir()
    for file in ("main.py", "configs/digits.py"):
        (folder / file).write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "code"]):
        user = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *user, *words], cwd=folder, check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, committed):
    made = Cloud(
        tmp_path,
        {
            "gcloud": GCLOUD,
            "uv": UV,
            "findmnt": FINDMNT,
            "gcsfuse": GCSFUSE,
            "sudo": SUDO,
            "kubectl": RECORD + '(cloud / "stdin").write_text(sys.stdin.read())\n',
            "scontrol": SCONTROL,
            "srun": SRUN,
            "sbatch": SBATCH,
        },
        committed,
    )
    yield made
    for group in made.folder.glob("worker*/drifting_run/group"):
        subprocess.run(["kill", "-KILL", "--", f"-{group.read_text().strip()}"])


def printed(result):
    """The commands of a dry run."""
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def assert_one_line(result, *parts):
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: "), result
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""


def test_shellcheck():
    places = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    if not shellcheck:
        pytest.skip('pip install -e ".[test]" brings shellcheck')
    scripts = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"]
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR/..", *scripts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_pod.sh", "gke.sh"])
def test_help_names_every_option(script):
    result = subprocess.run([LAUNCH / script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and f"launch/{script}" in result.stdout
    text = (LAUNCH / script).read_text()
    for options in re.findall(r'^parse_options "([^"]*)" "([^"]*)"', text, re.MULTILINE):
        for option in " ".join(options).split():
            assert f"--{option}" in result.stdout


SLICE = ("--name=pod", "--zone=z1", "--project=p")
TYPE = ("--accelerator_type=v5litepod-16", "--spot")
WHERE = ["--zone=z1", "--project=p"]
DESCRIBE = [
    ["gcloud", "compute", "tpus", kind, "describe", "pod", *WHERE, f"--format=value({field})"]
    for kind, field in (("queued-resources", "state.state"), ("tpu-vm", "state"))
]
CREATE = [
    "gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod", *WHERE,
    "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
]  # fmt: skip
DELETE = [
    "gcloud", "compute", "tpus", "queued-resources", "delete", "pod", *WHERE, "--force", "--quiet",
]  # fmt: skip
WORKER = "bash drifting_jax/launch/tpu_worker.sh"


def ssh(command, worker="all"):
    tpu = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", *WHERE]
    return [*tpu, f"--worker={worker}", f"--command={command}"]


STATUS = ssh(
    f"if [ -f drifting_jax/launch/tpu_worker.sh ]; then {WORKER} status; "
    'else echo "$(hostname) none"; fi'
)


def set_up(cloud, mount):
    """The calls of a set-up."""
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=cloud.repository, capture_output=True, text=True)
    tar = f"{cloud.environment['XDG_CACHE_HOME']}/drifting_jax/{head.stdout.strip()}.tar.gz"
    return [
        ["gcloud", "compute", "tpus", "tpu-vm", "scp", tar, "pod:drifting_jax.tar.gz", *WHERE,
         "--worker=all"],
        ssh(
            "mkdir -p drifting_run && { flock --timeout 5 drifting_run/lock rm -rf drifting_jax || "
            "{ echo 'error: a run goes on here: stop it first' >&2; exit 1; }; } && "
            "mkdir drifting_jax && tar -xzf drifting_jax.tar.gz -C drifting_jax"
        ),
        ssh(f"{WORKER} setup --bucket=b --mount={mount}"),
    ]  # fmt: skip


def of_gcloud(calls):
    """Calls of gcloud; where it looked several times and did nothing, one of the looks."""
    kept = []
    for call in calls:
        kept += [call] if call[0] == "gcloud" else []
        if kept[-3:] == kept[-6:-3] == [*DESCRIBE, STATUS]:
            del kept[-3:]
    return kept


def mounts(calls, mount):
    flags = ["--implicit-dirs", "--rename-dir-limit=200000", "--metadata-cache-ttl-secs=0"]
    found = [call for call in calls if call[0] == "gcsfuse"]
    assert all(
        call[1:] == [*flags, "--metadata-cache-negative-ttl-secs=0", "b", mount] for call in found
    )
    return len(found)


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


@pytest.fixture
def running(cloud):
    """A slice on which a run goes on."""
    for arguments in (("create", *TYPE), ("setup", *cloud.disk), ("run", cloud.disk[1])):
        more = cloud.flags if arguments[0] == "run" else ()
        assert cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:], *more).returncode == 0
    cloud.calls()
    return cloud


def test_tpu_pod_stop_waits(running):
    deaf = running.folder / "worker1/deaf"
    deaf.touch()
    stop = ("tpu_pod.sh", "stop", *SLICE, "--poll=0", "--wait=3")
    for command in (stop, stop, ("tpu_pod.sh", "delete", *SLICE, "--poll=0", "--wait=3")):
        result = running.run(*command)
        assert result.returncode == 1 and "to end within --wait=3 seconds" in result.stderr, result
    calls = running.calls()
    assert calls.count(ssh(f"{WORKER} stop")) == 3 and DELETE not in calls
    logs = [(running.folder / f"worker{i}/drifting_run/log").read_text() for i in range(2)]
    assert [log.count("asked") for log in logs] == [1, 3]
    result = running.run(*stop, "--now")
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
    deadline = time.monotonic() + 10
    while not all(path.exists() for path in states) and time.monotonic() < deadline:
        time.sleep(0.05)
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


def test_tpu_pod_starts_no_run_whose_workdir_is_on_no_shared_disk(cloud):
    for arguments in (("create", *TYPE), ("setup", cloud.disk[1])):
        assert cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:]).returncode == 0
    result = cloud.run("tpu_pod.sh", "run", *SLICE, cloud.disk[1], *cloud.flags)
    assert result.returncode == 1 and "found none mounted" in result.stderr
    assert not (cloud.folder / "started").exists()


def test_tpu_pod_resume_starts_again_when_some_workers_are_left_waiting(cloud):
    resume = ("resume", *SLICE, *TYPE, *cloud.disk, "--poll=0", *cloud.flags)
    cloud.set("plan", "nothing 1@first " + "nothing " * 12 + "0 ")
    result = cloud.run("tpu_pod.sh", *resume)
    assert result.returncode == 0, result
    assert "some workers ended and the others did not: trying again (1 of" in result.stderr
    assert ssh(f"{WORKER} kill") in cloud.calls()


def test_tpu_pod_create_waits_for_what_was_asked_for_before(cloud):
    for asked_before in (False, True):
        cloud.set("refused", "queued-resources create" if asked_before else "nothing")
        result = cloud.run("tpu_pod.sh", "create", *SLICE, *TYPE)
        assert result.returncode == 0, result
        assert ("asked for before" in result.stderr) == asked_before
    assert DELETE not in cloud.calls()


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
    time.sleep(1)
    process.terminate()
    _, said = process.communicate(timeout=10)
    calls = cloud.calls()
    assert len(calls) > 1 and all(call in DESCRIBE for call in calls)
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


@pytest.mark.parametrize(
    ("script", "tool", "arguments"),
    [
        ("tpu_pod.sh", "gcloud", ("status", *SLICE)),
        ("gke.sh", "kubectl", ("status", "--name=n")),
        ("slurm.sh", "srun", ("--python=bash", CONFIG)),
    ],
)
def test_a_missing_tool_is_named(tmp_path, script, tool, arguments):
    environment = {"PATH": str(tmp_path), "SLURM_JOB_ID": "7"}
    for name in ("bash", "env", "dirname", "tail"):
        (tmp_path / name).symlink_to(shutil.which(name))
    command = [LAUNCH / script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert_one_line(result, f"expected {tool} on the PATH")


GKE = ("--name=run1", "--image=i:1", "--accelerator=tpu-v6e-slice", "--topology=4x4")
GKE_FLAGS = ("--", CONFIG, "--workdir=/mnt/shared/a", '--config.data.path=/d "x" \\ $(A) $$B')


def test_gke_applies_a_job_set(cloud):
    options = (*GKE, "--bucket=b", "--spot", "--service_account=s", "--namespace=team")
    options += ("--env=A=b c$d", "--env=LIBTPU_INIT_ARGS=")
    told = cloud.run("gke.sh", "apply", *options, "--dry_run", *GKE_FLAGS)
    assert told.returncode == 0 and cloud.calls() == []
    result = cloud.run("gke.sh", "apply", *options, *GKE_FLAGS)
    assert result.returncode == 0, result
    assert cloud.calls() == [["kubectl", "--namespace=team", "create", "--filename=-"]]
    assert "kubectl --namespace=team create --filename=-" in told.stdout.splitlines()[-1]
    manifest = yaml.safe_load((cloud.folder / "stdin").read_text())
    assert manifest == yaml.safe_load(told.stdout)

    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "run1"
    [rule] = manifest["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 100
    [jobs] = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert jobs["replicas"] == 1 and job["completions"] == job["parallelism"] == 4
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    # A mistake and SIGINT are final: 75, and 1 as all other failures, start again.
    [rule] = job["podFailurePolicy"]["rules"]
    exit_codes = {"containerName": "train", "operator": "In", "values": [2, 130]}
    assert rule == {"action": "FailJob", "onExitCodes": exit_codes}
    pod = job["template"]["spec"]
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["restartPolicy"] == "Never" and pod["serviceAccountName"] == "s"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    [container] = pod["containers"]
    assert container["command"] == ["python", "-u", "main.py"]
    # Kubernetes makes $ of $$, and of $(A) the value of A.
    assert [flag.replace("$$", "$") for flag in container["args"]] == list(GKE_FLAGS[1:])
    assert "\\ $$(A) $$$$B" in container["args"][-1]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    cache = {"JAX_COMPILATION_CACHE_DIR": "/mnt/shared/.jax_cache"}
    assert variables == {"A": "b c$$d", "LIBTPU_INIT_ARGS": ""} | cache
    assert told.stderr == ""  # its label is a known one
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert set(places) == {"/mnt/shared", "/dev/shm"} and len(volumes) == 2
    assert places["/mnt/shared"]["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert places["/dev/shm"] == {"emptyDir": {"medium": "Memory"}}


@pytest.mark.parametrize(
    ("topology", "chips", "hosts", "each"),
    [("2x2x1", None, 1, 4), ("1x1", None, 1, 1), ("2x4", 8, 1, 8), ("4x4x8", None, 32, 4)],
)
def test_gke_counts_hosts(cloud, topology, chips, hosts, each):
    options = [*GKE[:3], f"--topology={topology}", "--claim=disk", "--dry_run"]
    options += [f"--chips_per_host={chips}"] if chips else []
    options += ["--accelerator=tpu7x", "--env=JAX_COMPILATION_CACHE_DIR=/a"]
    told = cloud.run("gke.sh", "apply", *options, *GKE_FLAGS)
    job = yaml.safe_load(told.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == each
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}
    assert pod["volumes"] == [{"name": "memory", "emptyDir": {"medium": "Memory"}}, claim]
    variable = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/a"}
    assert pod["containers"][0]["env"] == [variable]
    assert "tpu7x is none of the labels known here" in told.stderr


def test_gke_follows_shows_and_deletes(cloud):
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=run1"
    one = f"{selector},batch.kubernetes.io/job-completion-index=2"
    logs = ["kubectl", "logs", "--follow", "--prefix", "--tail=100", "--max-log-requests=256"]
    expected = {
        ("logs", "--worker=2"): [[*logs, "--container=train", one]],
        ("logs", "--worker=all"): [[*logs, "--container=train", selector]],
        ("status",): [
            ["kubectl", "get", "jobset", "run1"],
            ["kubectl", "get", "pods", selector, "--output=wide"],
        ],
        ("delete",): [["kubectl", "delete", "jobset", "run1", "--ignore-not-found"]],
    }
    for (command, *options), calls in expected.items():
        told = cloud.run("gke.sh", command, "--name=run1", "--dry_run", *options)
        assert printed(told) == calls and cloud.calls() == []
        assert cloud.run("gke.sh", command, "--name=run1", *options).returncode == 0
        assert cloud.calls() == calls


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("start",), ("expected apply, logs", "'start'")),
        (("status",), ("--name",)),
        (("apply", "--name=a", *GKE_FLAGS), ("--image",)),
        (("apply", *GKE, "--bucket=b"), ("--config=FILE",)),
        (("apply", *GKE, *GKE_FLAGS), ("one of --bucket and --claim",)),
        (("apply", *GKE, "--topology=big", "--bucket=b", *GKE_FLAGS), ("4x4", "'big'")),
        (("apply", *GKE, "--topology=08x8", "--bucket=b", *GKE_FLAGS), ("4x4", "'08x8'")),
        (("apply", *GKE, "--accelerator=v6e", "--bucket=b", *GKE_FLAGS), ("tpu-v6e-slice",)),
        (("apply", *GKE, "--bucket=b", *GKE_FLAGS, "--workdir=/mnt/shared/.."), ("without ..",)),
        (("delete", "--name=a", "--", CONFIG), ("delete takes no flags", CONFIG)),
        (("status", "--name=a", "--namespace=a b"), ("--namespace", "'a b'")),
        (("apply", *GKE, "--chips_per_host=5", "--bucket=b", *GKE_FLAGS), ("16 chips", "found 5")),
        (("apply", *GKE, "--bucket=b", "--", CONFIG, "--workdir=/tmp/a"), ("/mnt/shared/…",)),
        (("apply", *GKE, "--bucket=b", *GKE_FLAGS, "--x=a\nb"), ("control characters",)),
    ],
)
def test_gke_mistakes(cloud, arguments, parts):
    assert_one_line(cloud.run("gke.sh", *arguments), *parts)
    assert cloud.calls() == []


def submit(cloud, *arguments, status=0, state="RUNNING", **environment):
    environment = {"SRUN_STATUS": str(status), "JOB_STATE": state} | environment
    return cloud.run("sbatch", "launch/slurm.sh", "--python=bash", *arguments, **environment)


def test_slurm_asks_for_what_main_needs():
    options = re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    # Without B: the tasks themselves get the signal; srun kills them when it is sent one.
    assert {"--requeue", "--open-mode=append", "--signal=TERM@120"} <= set(options)


@pytest.mark.parametrize("status", [0, 2, 130])
def test_slurm_runs_a_task_for_each_gpu(cloud, status):
    nodes = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "12"}
    result = submit(cloud, CONFIG, "--workdir=a b", status=status, **nodes)
    assert result.returncode == status, result
    srun = [
        "srun", "--kill-on-bad-exit=0", "--wait=60", "--label", "--cpus-per-task=12", "bash", "-u",
        f"{cloud.repository}/main.py", CONFIG, "--workdir=a b",
    ]  # fmt: skip
    assert cloud.calls() == [srun]
    compiled = (
        f"JAX_COMPILATION_CACHE_DIR={cloud.environment['XDG_CACHE_HOME']}/drifting_jax/compiled"
    )
    told = submit(cloud, "--dry_run", "--", CONFIG, "--workdir=a b", **nodes)
    ask, requeue = ["scontrol", "show", "job", "7", "--oneliner"], ["scontrol", "requeue", "7"]
    assert printed(told) == [["export", compiled], srun, ask, requeue]
    assert told.returncode == 0 and cloud.calls() == []


@pytest.mark.parametrize("status", [75, 143, 1])
@pytest.mark.parametrize(("state", "again"), [("RUNNING", True), ("COMPLETING", False)])
def test_slurm_queues_a_run_again_unless_it_was_cancelled(cloud, state, again, status):
    result = submit(cloud, CONFIG, status=status, state=state)
    assert result.returncode == status, result
    calls = [call for call in cloud.calls() if call[0] == "scontrol"]
    requeue = [["scontrol", "requeue", "7"]] if again else []
    assert calls == [["scontrol", "show", "job", "7", "--oneliner"], *requeue]


@pytest.mark.parametrize("refused", ["show", "requeue"])
def test_slurm_asks_a_controller_again_that_does_not_answer(cloud, refused):
    cloud.stand_in({"sleep": "#!/usr/bin/env bash"})
    cloud.set("refused", refused)
    result = submit(cloud, CONFIG, status=75)
    assert result.returncode == 75, result
    verbs = [call[1] for call in cloud.calls() if call[0] == "scontrol"]
    assert verbs == (
        ["show"] * 5 + ["requeue"] if refused == "show" else ["show"] + ["requeue"] * 5
    )
    assert ("submit the same command" in result.stderr) == (refused == "requeue")


def test_slurm_gives_up_after_failures_in_a_row(cloud):
    def queued_again(status):
        result = submit(cloud, "--max_failures=2", CONFIG, status=status)
        assert result.returncode == status, result
        return "queueing job 7 again" in result.stderr

    statuses = [1, 143, 75, 134, 75, 75, 75, 1, 1, 143, 1, 2, 1, 1, 0, 1, 1, 1]
    again = [queued_again(status) for status in statuses]
    assert again == [True] * 9 + [False, True, False, True, True, False, True, True, False]
    requeues = [call for call in cloud.calls() if call == ["scontrol", "requeue", "7"]]
    assert len(requeues) == sum(again)
    assert not list(cloud.repository.glob("*.failures"))


def test_slurm_waits_for_its_tasks_when_it_gets_the_signal_too(cloud):
    environment = cloud.environment | {
        "SRUN_STATUS": "75", "SRUN_SECONDS": "1", "JOB_STATE": "RUNNING", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    command = [cloud.repository / "launch/slurm.sh", "--python=bash", CONFIG]
    process = subprocess.Popen(command, env=environment)
    while not (cloud.folder / "calls").exists():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=20) == 75
    assert cloud.calls()[-1] == ["scontrol", "requeue", "7"]


def test_slurm_mistakes(cloud):
    eight = {"SLURM_GPUS_ON_NODE": "8"}
    assert_one_line(submit(cloud, CONFIG, **eight), "1 tasks and 8 GPUs", "--ntasks-per-node=8")
    assert_one_line(submit(cloud, CONFIG, SLURM_GPUS_PER_TASK="1"), "--gpus-per-task=1")
    assert_one_line(submit(cloud, "train", CONFIG), "found 'train'")
    assert_one_line(submit(cloud, "--max_failures=few", CONFIG), "--max_failures", "'few'")
    assert_one_line(submit(cloud), "--config=FILE, found", "launch/slurm.sh --help")
    assert_one_line(cloud.run("slurm.sh", "--python=bash", CONFIG), "no SLURM_JOB_ID", "sbatch")
    assert_one_line(cloud.run("slurm.sh", "--python=none", CONFIG, SLURM_JOB_ID="7"), "'none'")
    assert cloud.calls() == []


# In the place of Python: takes --say, and ends by --end=process:status or by a signal.
PROCESS = """#!/usr/bin/env bash
for word; do
  case $word in
    --process_id=*) id=${word#*=} ;;
    --end=*) end=${word#*=} ;;
    --deaf) deaf=1 ;;
  esac
done
trap 'echo "asked to stop"; [[ ${deaf:-} ]] || exit 75' TERM
trap 'exit 130' INT
echo "started ${*:3}"
echo "$XLA_FLAGS $JAX_PLATFORMS $CUDA_VISIBLE_DEVICES" >&2
[[ $end != all* ]] || exit "${end#*:}"
[[ $end != "$id":* ]] || { sleep 0.3; exit "${end#*:}"; }
while :; do sleep 0.05; done
"""


@pytest.fixture
def local(tmp_path):
    python = tmp_path / "process"
    python.write_text(PROCESS)
    python.chmod(0o755)
    without = ("XLA_FLAGS", "JAX_PLATFORMS", *OF_LAUNCHERS)
    environment = {k: v for k, v in os.environ.items() if k not in without}
    environment["XDG_CACHE_HOME"] = "/cache"
    started = []

    def start(*arguments, **more):
        process = subprocess.Popen(
            # Under nohup signals are ignored, and what is ignored cannot be trapped.
            ["env", "--default-signal", LAUNCH / "local.sh", f"--python={python}", *arguments],
            env=environment | {"CUDA_VISIBLE_DEVICES": ""} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # a failed test; the processes below it end with it
            process.terminate()
            process.wait(timeout=20)


def test_local_starts_processes_of_simulated_devices(local):
    arguments = ("--processes=3", "--devices=2", "--port=29876")
    process = local(*arguments, "--", CONFIG, "--end=all:0", XLA_FLAGS="--a")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    for i in range(3):
        line = f"[{i}] started {CONFIG} --end=all:0 --coordinator=localhost:29876"
        assert f"{line} --num_processes=3 --process_id={i}" in out.splitlines()
        device_flag = "--a --xla_force_host_platform_device_count=2 cpu "
        assert f"[{i}] {device_flag}" in out.splitlines()

    told = local(*arguments, "--dry_run", "--", CONFIG)
    commands = [shlex.split(line) for line in told.communicate(timeout=20)[0].splitlines()]
    assert [c[-1] for c in commands] == [f"--process_id={i}" for i in range(3)]
    assert commands[0][:2] == ["env", "JAX_PLATFORMS=cpu"] and commands[0][6] == f"{ROOT}/main.py"
    assert commands[0][3] == "JAX_COMPILATION_CACHE_DIR=/cache/drifting_jax/compiled"
    told = local(*arguments, "--dry_run", "--", CONFIG, JAX_COMPILATION_CACHE_DIR="")
    assert "JAX_COMPILATION_CACHE_DIR= " in told.communicate(timeout=20)[0]  # the user wants none


def test_local_gives_each_process_a_gpu(local):
    gpus = {"CUDA_VISIBLE_DEVICES": "4,6"}
    process = local("--", CONFIG, "--end=all:0", **gpus)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert {line.split()[-1] for line in out.splitlines() if "started" not in line} == {"4", "6"}
    assert len(re.findall(r"localhost:\d+ --num_processes=2", out)) == 2
    process = local("--processes=3", "--", CONFIG, **gpus)
    assert "at most --processes=2" in process.communicate(timeout=20)[1]
    assert process.returncode == 2


@pytest.mark.parametrize(("status", "end"), [(3, "1:3"), (2, "all:2")])
def test_local_ends_the_others_when_one_fails(local, status, end):
    process = local("--devices=1", "--", CONFIG, f"--end={end}")
    out, err = process.communicate(timeout=20)
    assert process.returncode == status
    if status == 3:
        assert "[0] asked to stop" in out and err == "process 1 ended with status 3\n"


def test_local_kills_what_does_not_end(local):
    process = local("--devices=1", "--grace=1", "--", CONFIG, "--end=1:3", "--deaf")
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 3 and time.monotonic() - began < 10
    first, last = err.splitlines()  # and nothing that bash says of killed children
    assert first == "process 1 ended with status 3"
    assert last == "processes 0 did not end within --grace=1 seconds: killing them, unsaved"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)],
)
def test_local_passes_signals_on(local, number, status):
    process = local("--processes=2", "--devices=1", "--", CONFIG)
    for _ in range(4):
        process.stdout.readline()
    os.killpg(process.pid, number)  # as a terminal does
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (status, "")
    if number != signal.SIGINT:
        assert out.count("asked to stop") == 2


def test_local_mistakes(local):
    for arguments, part in {
        (): "local.sh --help",
        ("--devices=1",): "--config=FILE",
        ("--devices=1", "--port=65536", "--", CONFIG): "at most 65535",
        ("--devices=1", "--port=0", "--", CONFIG): "--port",
        ("--devices=0", "--", CONFIG): "--devices",
        ("--processes=2", "--", CONFIG): "expected GPUs, found none",
        ("--devices=1", "--", CONFIG, "--process_id=1"): "no --process_id",
        ("--python=none", "--devices=1", "--", CONFIG): "found no 'none'",
        ("--gpu", "--", CONFIG): "unknown option '--gpu'",
        ("--gpu=1", "--", CONFIG): "local.sh --help",
    }.items():
        process = local(*arguments, PATH="/usr/bin:/bin")
        out, err = process.communicate(timeout=20)
        assert process.returncode == 2 and out == "", err
        assert len(err.splitlines()) == 1 and err.startswith("error: ") and part in err


@pytest.mark.slow
def test_two_real_processes_stop_at_sigterm_and_go_on(tmp_path):
    command = [
        LAUNCH / "local.sh", f"--python={sys.executable}", "--processes=2", "--devices=2", "--",
        "--config=tests/helpers/tiny_config.py",
        f"--workdir={tmp_path / 'run'}", "--config.mesh.data=-1",
        "--config.task=encoder", "--config.encoder.train.num_steps=100", "--config.log_every=10",
        "--config.encoder.train.classifier_steps=0",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }

    def start(*more):
        return subprocess.Popen(
            [*command, *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = start()
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "stopped and saved" in output

    process = start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "4 cpu device(s)" in output and "[0] done in" in output
    steps = [record["step"] for record in read_metrics(tmp_path / "run", stage="encoder")]
    assert steps == list(range(10, 101, 10))

    process = start("--dry_run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and output.count("a step on 4 cpu") == 1, output

    process = start("--config.encoder.train.batch_size=32")
    output, _ = process.communicate(timeout=120)
    errors = [line for line in output.splitlines() if "error:" in line]
    assert process.returncode == 2 and len(errors) == 2, output  # both end, and say why
    assert all("batch_size" in line for line in errors) and "process 0: " in output
