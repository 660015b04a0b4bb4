"""launch/slurm.sh, against stand-ins of srun and scontrol."""

import re
import signal
import subprocess
import time

import pytest
from fake_cloud import CONFIG, LAUNCH, assert_one_line, printed, wait_until


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
    saved = cloud.folder / "saved"
    environment = cloud.environment | {
        "SRUN_STATUS": "75", "SRUN_WAITS_FOR": str(saved),
        "JOB_STATE": "RUNNING", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    command = [cloud.repository / "launch/slurm.sh", "--python=bash", CONFIG]
    process = subprocess.Popen(command, env=environment)
    wait_until((cloud.folder / "calls").exists)
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    saved.touch()
    assert process.wait(timeout=20) == 75
    assert cloud.calls()[-1] == ["scontrol", "requeue", "7"]


def test_slurm_passes_on_the_signal_that_sbatch_gives_the_shell(cloud):
    """sbatch --signal=B:USR1@300: srun passes the signal on to the tasks, which save."""
    saved = cloud.folder / "saved"
    environment = cloud.environment | {
        "SRUN_STATUS": "75", "SRUN_WAITS_FOR": str(saved),
        "JOB_STATE": "RUNNING", "SLURM_JOB_ID": "7",
    }  # fmt: skip
    command = [cloud.repository / "launch/slurm.sh", "--python=bash", CONFIG]
    process = subprocess.Popen(command, env=environment)
    wait_until((cloud.folder / "saved.waits").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 75
    assert saved.exists()
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
