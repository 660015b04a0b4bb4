"""What all launchers share."""

import os
import re
import shutil
import subprocess
import sysconfig

import pytest
from fake_cloud import CONFIG, LAUNCH, ROOT, assert_one_line
from tpu_calls import SLICE


def test_shellcheck():
    places = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    if not shellcheck:
        pytest.skip('pip install -e ".[test]" brings shellcheck')
    scripts = [*LAUNCH.glob("*.sh"), *(ROOT / "tests").glob("*.sh"), ROOT / ".ci" / "run"]
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
