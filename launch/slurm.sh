#!/usr/bin/env bash
# One run on the GPUs of one or several nodes of a SLURM cluster: a task for each GPU.
#
# sbatch [options of sbatch] launch/slurm.sh [options] [--] --config=FILE [flags of main.py]
# sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=configs/…
#
#   --python=FILE       default: python, of the environment in which sbatch was called
#   --max_failures=N    failures in a row after which the job is queued again (default 3)
#   --dry_run           print the commands, run none (main.py's own --dry_run comes after --)
#
# Call it in the repository. JAX gives each task the GPU of its number on the node. So there must be
# as many tasks as GPUs, and each task must see all GPUs of its node.
#
# Two minutes before the time limit the tasks are told to save. The job is then queued again and
# continues from that save. A pre-empted job saves only if the partition or the QOS has a GraceTime.
# SLURM's default is 0, which leaves no time: what came after the last save is lost. The job is
# also queued again after a failure, but not after a mistake in the command or the data (status 2),
# SIGINT (130) or scancel. The exit status is that of main.py.
#
# Compiled programs are kept in JAX_COMPILATION_CACHE_DIR; default: ~/.cache/drifting_jax/compiled.

#SBATCH --job-name=drifting_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=drifting_jax-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120

# Without "B:", the signal of the line above goes to the tasks themselves. A shell could not pass it
# on: srun reacts to a SIGTERM by killing its tasks, unsaved.

set -euo pipefail
# SLURM runs a copy of this file from one of its own directories.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ ! -f $root/launch/common.sh ]]; then root=${SLURM_SUBMIT_DIR:-$root}; fi
if [[ ! -f $root/launch/common.sh ]]; then
  echo "error: expected sbatch to be called in the repository, found no launch/common.sh in $root: change there" >&2
  exit 2
fi
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

program=launch/slurm.sh
python=python max_failures=3
own=()
while (($#)); do
  case $1 in
    --python=* | --max_failures=* | --dry_run | --help | -h) own+=("$1") && shift ;;
    --) shift && break ;;
    *) break ;;
  esac
done
parse_options "python max_failures" "dry_run" ${own[@]+"${own[@]}"}
main_flags=("$@")
require_config ''
require_number 0 max_failures
[[ $dry_run || ${SLURM_JOB_ID:-} ]] ||
  fail "expected to run in a SLURM job, found no SLURM_JOB_ID: sbatch $program …"
[[ $dry_run ]] || command -v "$python" >/dev/null ||
  fail "expected a Python to run, found no '$python': call sbatch in its environment or give --python=FILE"
require_tool srun "it comes with SLURM"
require_tool scontrol "it comes with SLURM"
[[ -z ${SLURM_GPUS_PER_TASK:-} ]] ||
  fail "expected tasks that see all GPUs of their node, found --gpus-per-task=$SLURM_GPUS_PER_TASK: give --gpus-per-node and --ntasks-per-node"
tasks=${SLURM_NTASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-}
[[ -z $gpus || $gpus == "$tasks" ]] ||
  fail "expected a task for each GPU, found $tasks tasks and $gpus GPUs a node: sbatch --gpus-per-node=$gpus --ntasks-per-node=$gpus"

# All tasks of a run end together. If one has ended, the others end soon, or never by themselves.
command=(srun --kill-on-bad-exit=0 --wait=60 --label)
# Newer versions of srun do not take this over from sbatch.
if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK"); fi
command+=("$python" -u "$root/main.py" "${main_flags[@]}")

keep_compiled # srun passes the variable on

job=${SLURM_JOB_ID:-JOB}
ask=(scontrol show job "$job" --oneliner)
requeue=(scontrol requeue "$job")
if [[ $dry_run ]]; then
  quoted export "JAX_COMPILATION_CACHE_DIR=$JAX_COMPILATION_CACHE_DIR"
  quoted "${command[@]}"
  echo "# if it ends with another status than 0, 2 and 130, and the job was not cancelled:"
  quoted "${ask[@]}"
  quoted "${requeue[@]}"
  exit 0
fi

trap : TERM # the tasks get the signal themselves; this shell waits until they end
trap 'kill -USR1 "$srun" 2>/dev/null || true' USR1 # of sbatch --signal=B:USR1@…; srun passes it on
srun=''
"${command[@]}" &
srun=$!
status=0
wait_for "$srun" || status=$?
# This file outlives each start of the job. It has a line for each failure since the last good end.
failures=${SLURM_SUBMIT_DIR:-$root}/drifting_jax-$job.failures
ended="main.py ended with status $status"
case $status in
  0 | 2 | 130)
    rm -f "$failures"
    exit "$status"
    ;;
  75)
    rm -f "$failures"
    ended="stopped and saved"
    ;;
esac

# again COMMAND…: tries a command for half a minute, because a controller may be busy or restarting.
again() {
  local pause
  for pause in 1 4 10 15; do
    if "$@"; then return; fi
    sleep "$pause"
  done
  "$@"
}

# scancel sends SIGTERM too, and a user who cancels a job does not want it again. If the controller
# does not answer, the job is queued again rather than lost.
if answer=$(again "${ask[@]}") && [[ $answer != *JobState=RUNNING* ]]; then
  rm -f "$failures"
  note "$ended; cancelled or out of time, so it is not queued again"
  exit "$status"
fi
# Status 143, a SIGTERM before main.py could handle it, also counts as a failure: srun sends it to
# tasks that wait for a failed one, and that could repeat for ever.
if ((status != 75)); then
  count=0
  if [[ -f $failures ]]; then count=$(wc -l <"$failures"); fi
  if ((count >= max_failures)); then
    rm -f "$failures"
    note "$ended: giving up (--max_failures=$max_failures)"
    exit "$status"
  fi
  echo "$ended" >>"$failures"
  ended+=", failure $((count + 1)) of at most $max_failures"
fi
note "$ended: queueing job $job again"
again "${requeue[@]}" || note "job $job could not be queued again: submit the same command"
exit "$status"
