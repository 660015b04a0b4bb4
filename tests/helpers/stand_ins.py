"""Stand-ins for the programs that the launchers call.

They record their calls in the folder CLOUD. Those that imitate a run end after LIFE seconds, in
case nobody ends them.
"""

import sys

LIFE = 120


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


# A project with one slice of two workers. A worker is a folder in which commands are really run.
GCLOUD = (
    RECORD
    + """
import signal
slice, plan = cloud / "slice", cloud / "plan"
homes = [cloud / f"worker{i}" for i in range(2)]

def vanish():
    for home in homes:
        group = home / "drifting_run/group"
        try:
            os.killpg(int(group.read_text()), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass  # nothing runs there
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
    # The plan says what happens after each look at the run, in order.
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


# Makes the environment of a worker. Its Python runs until the file `finish` gives its exit status.
UV = f"""#!/usr/bin/env bash
if [[ $1 == venv ]]; then
  environment="${{@: -1}}"
  mkdir -p "$environment/bin"
  cat > "$environment/bin/python" <<'END'
#!/usr/bin/env bash
echo "${{*:2}}" >> "$CLOUD/started"
echo "$JAX_COMPILATION_CACHE_DIR $LIBTPU_INIT_ARGS" >> "$CLOUD/environments"
echo "a line of main.py"
trap 'echo asked; [[ -f $HOME/deaf ]] || {{ echo saved; exit "${{AT_SIGTERM:-75}}"; }}' TERM
while [[ ! -s $HOME/finish ]] && ((SECONDS < {LIFE})); do sleep 0.02; done
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
# Ends once the file that SRUN_WAITS_FOR names exists, if it names one; SIGUSR1 makes it.
SRUN = (
    RECORD
    + f"""
import signal, time
awaited, deadline = os.environ.get("SRUN_WAITS_FOR"), time.monotonic() + {LIFE}
if awaited:
    signal.signal(signal.SIGUSR1, lambda *_: pathlib.Path(awaited).touch())
    pathlib.Path(awaited + ".waits").touch()
while awaited and not os.path.exists(awaited) and time.monotonic() < deadline:
    time.sleep(0.02)
sys.exit(int(os.environ["SRUN_STATUS"]))
"""
)
SBATCH = """#!/usr/bin/env bash
cp "$1" "$CLOUD/slurm_script"
export SLURM_SUBMIT_DIR=$PWD SLURM_JOB_ID=7
exec bash "$CLOUD/slurm_script" "${@:2}"
"""
KUBECTL = RECORD + '(cloud / "stdin").write_text(sys.stdin.read())\n'
ALL = {
    "gcloud": GCLOUD,
    "uv": UV,
    "findmnt": FINDMNT,
    "gcsfuse": GCSFUSE,
    "sudo": SUDO,
    "kubectl": KUBECTL,
    "scontrol": SCONTROL,
    "srun": SRUN,
    "sbatch": SBATCH,
}

# A Python that ends as --end=PROCESS:STATUS or --end=all:STATUS says, or by a signal.
PROCESS = f"""#!/usr/bin/env bash
for word; do
  case $word in
    --process_id=*) id=${{word#*=}} ;;
    --end=*) end=${{word#*=}} ;;
    --deaf) deaf=1 ;;
  esac
done
trap 'echo "asked to stop"; [[ ${{deaf:-}} ]] || exit 75' TERM
trap 'exit 130' INT
echo "started ${{*:3}}"
echo "$XLA_FLAGS $JAX_PLATFORMS $CUDA_VISIBLE_DEVICES" >&2
[[ $end != all* ]] || exit "${{end#*:}}"
[[ $end != "$id":* ]] || {{ sleep 0.3; exit "${{end#*:}}"; }}
while ((SECONDS < {LIFE})); do sleep 0.05; done
"""
