"""launch/local.sh: with a stand-in of Python, and one real run of two processes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import quick_compiling
from fake_cloud import CONFIG, LAUNCH, ROOT

from drifting_jax.workdir.metrics import read_metrics


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
def test_two_real_processes_stop_at_sigterm_and_go_on(tmp_path, mark):
    command = [
        LAUNCH / "local.sh", f"--python={sys.executable}", "--processes=2", "--devices=2", "--",
        "--config=tests/helpers/tiny_config.py",
        f"--workdir={tmp_path / 'run'}", "--config.mesh.data=-1",
        "--config.task=encoder", "--config.encoder.train.num_steps=100", "--config.log_every=10",
        "--config.encoder.train.classifier_steps=0",
    ]  # fmt: skip
    flags = {"XLA_FLAGS": quick_compiling.FLAGS}

    def start(*more):
        return subprocess.Popen(
            [*command, *more],
            cwd=ROOT,
            env=os.environ | mark | flags,
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
