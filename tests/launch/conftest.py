"""What the tests of all launchers start from."""

import os
import shutil
import subprocess

import own_processes
import pytest
import stand_ins
from fake_cloud import LAUNCH, OF_LAUNCHERS, Cloud
from tpu_calls import SLICE, TYPE


@pytest.fixture(scope="session")
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
def mark(tmp_path):
    """Variables for the processes that a test starts: all that have them end with the test."""
    yield {own_processes.OF_A_TEST: str(tmp_path)}
    own_processes.end(own_processes.OF_A_TEST, str(tmp_path))


@pytest.fixture
def cloud(tmp_path, committed, mark):
    """All stand-ins, and a repository whose launchers call them."""
    return Cloud(tmp_path, stand_ins.ALL, committed, mark)


@pytest.fixture
def running(cloud):
    """A slice on which a run goes on."""
    for arguments in (("create", *TYPE), ("setup", *cloud.disk), ("run", cloud.disk[1])):
        more = cloud.flags if arguments[0] == "run" else ()
        assert cloud.run("tpu_pod.sh", arguments[0], *SLICE, *arguments[1:], *more).returncode == 0
    cloud.calls()
    return cloud


@pytest.fixture
def local(tmp_path, mark):
    """Starts launch/local.sh with a stand-in of Python."""
    python = tmp_path / "process"
    python.write_text(stand_ins.PROCESS)
    python.chmod(0o755)
    without = ("XLA_FLAGS", "JAX_PLATFORMS", *OF_LAUNCHERS)
    environment = {k: v for k, v in os.environ.items() if k not in without}
    environment |= mark | {"XDG_CACHE_HOME": "/cache"}

    def start(*arguments, **more):
        return subprocess.Popen(
            # Under nohup signals are ignored, and what is ignored cannot be trapped.
            ["env", "--default-signal", LAUNCH / "local.sh", f"--python={python}", *arguments],
            env=environment | {"CUDA_VISIBLE_DEVICES": ""} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start
