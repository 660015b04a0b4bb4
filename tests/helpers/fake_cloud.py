"""A folder of stand-ins, and what the launchers were seen to call."""

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/digits.py"
OF_LAUNCHERS = ("JAX_COMPILATION_CACHE_DIR", "CLOUDSDK_CORE_PROJECT")


class Cloud:
    """A folder of stand-ins, what they were called with, and a repository with launch/ in it."""

    def __init__(self, folder, stand_ins, committed, variables):
        """Makes all of it in `folder`; the scripts get `variables` in their environment."""
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
            **variables,
        }

    def stand_in(self, programs):
        """Puts programs, given as name: text, before all others on the PATH."""
        for name, text in programs.items():
            (self.binaries / name).write_text(text)
            (self.binaries / name).chmod(0o755)

    def hide(self, *programs):
        """Takes programs of this machine off the PATH."""
        everything = self.binaries.with_name("bin_without")
        everything.mkdir()
        for folder in os.environ["PATH"].split(os.pathsep):
            for path in Path(folder).glob("*"):
                link = everything / path.name
                if path.name not in programs and not link.is_symlink():
                    link.symlink_to(path)
        self.environment["PATH"] = f"{self.binaries}:{everything}"

    def run(self, script, *arguments, **environment):
        """Calls a script, by its name in launch/, or a stand-in, and waits for its end."""
        return subprocess.run(
            [self.repository / "launch" / script if script.endswith(".sh") else script, *arguments],
            cwd=self.repository,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self):
        """All calls of stand-ins since the last time: [name, argument, …] each."""
        path = self.folder / "calls"
        found = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        path.unlink(missing_ok=True)
        return found

    def set(self, name, text):
        """Tells the stand-ins something: a `plan`, or what is `refused`."""
        (self.folder / name).write_text(text)


def printed(result):
    """The commands of a dry run."""
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def assert_one_line(result, *parts):
    """The script ended with a mistake, in one line that has these parts, and did nothing."""
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: "), result
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""


def wait_until(condition: Callable[[], bool], patience: float = 20.0) -> None:
    """Returns as soon as the condition holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
