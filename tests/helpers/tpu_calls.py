"""The calls of gcloud and on the workers that launch/tpu_pod.sh is expected to make."""

import subprocess

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
    """The call that runs a command on one worker or on all."""
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
    """How often the bucket was mounted; each time with the flags that checkpoints need."""
    flags = ["--implicit-dirs", "--rename-dir-limit=200000", "--metadata-cache-ttl-secs=0"]
    found = [call for call in calls if call[0] == "gcsfuse"]
    assert all(
        call[1:] == [*flags, "--metadata-cache-negative-ttl-secs=0", "b", mount] for call in found
    )
    return len(found)
