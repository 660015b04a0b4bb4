#!/usr/bin/env bash
# Several processes of one run on this machine.
#
# launch/local.sh --devices=M [--processes=N] [options] -- --config=FILE [flags of main.py]
# launch/local.sh [--processes=N] [options] -- --config=FILE [flags of main.py]
#
#   --processes=N   number of processes; default: one for each GPU, or 2 with --devices
#   --devices=M     simulated CPU devices of each process; without it, each process has its own GPU
#   --port=P        port of the coordinator; default: a free one
#   --python=FILE   default: python
#   --grace=S       seconds after the first process failed or stopped until the others are killed
#                   (default 60)
#   --dry_run       print the commands, run none
#
# Compiled programs are kept in JAX_COMPILATION_CACHE_DIR; default: ~/.cache/drifting_jax/compiled.
#
# Each line of output begins with the number of its process. When a process fails, the others are
# ended. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 are passed on: the run saves and stops, and the same
# command continues it. The exit status is that of the first process that failed or stopped: 0 done,
# 2 a mistake in the command, 130 stopped by Ctrl-C, 75 by another signal. All of them save; a
# second Ctrl-C does not.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

processes='' devices='' port='' python=python grace=60
parse_options "processes devices port python grace" "dry_run" "$@"
require_config
require_number 0 grace
for name in coordinator num_processes process_id; do
  [[ -z $(main_flag "$name") ]] || fail "expected no --$name: this script gives it; take it out"
done
[[ $dry_run ]] || command -v "$python" >/dev/null ||
  fail "expected a Python to run, found no '$python': activate its environment or give --python=FILE"

gpus=()
if [[ $devices ]]; then
  processes=${processes:-2}
  require_number 1 devices
else
  if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi >/dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  ((${#gpus[@]})) || fail "expected GPUs, found none: give --devices=M for M simulated CPU devices a process"
  processes=${processes:-${#gpus[@]}}
fi
require_number 1 processes
[[ $devices ]] || ((processes <= ${#gpus[@]})) ||
  fail "expected at most --processes=${#gpus[@]}, one for each GPU, found $processes"

# These ports are below those that systems give to outgoing connections, so that the port stays
# free.
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 10000))
  if (: <>"/dev/tcp/localhost/$port") 2>/dev/null; then port=''; fi
done
require_number 1 port
((10#$port <= 65535)) || fail "expected --port to be at most 65535, found $port"
keep_compiled

# process_command I: sets `command` to the command of process I.
process_command() {
  if [[ $devices ]]; then
    local flags="--xla_force_host_platform_device_count=$devices"
    command=(env JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flags")
  else
    command=(env "CUDA_VISIBLE_DEVICES=${gpus[$1]}")
  fi
  command+=("JAX_COMPILATION_CACHE_DIR=$JAX_COMPILATION_CACHE_DIR" "$python" -u "$root/main.py"
    "${main_flags[@]}" "--coordinator=localhost:$port"
    "--num_processes=$processes" "--process_id=$1")
}

if [[ $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    process_command "$i"
    quoted "${command[@]}"
  done
  exit 0
fi

alive=() printers=() asked=0
pipes=$(mktemp -d)
mkfifo "$pipes/nothing"
exec {nothing}<>"$pipes/nothing"
trap 'kill_all; kill ${printers[@]+"${printers[@]}"} 2>/dev/null || true; rm -rf "$pipes"' EXIT
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP USR1

pass_on() {
  local pid
  asked=$((asked + 1))
  if ((asked > 2)); then kill_all && return; fi
  for pid in ${alive[@]+"${alive[@]}"}; do
    kill -s "$1" "$pid" 2>/dev/null || true
  done
}

# kill_all: kills the group of each process, which contains its data workers too.
kill_all() {
  local pid
  for pid in ${alive[@]+"${alive[@]}"}; do
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
}

# pause SECONDS: waits without `sleep`, which Ctrl-C would end, and the script with it.
pause() {
  read -rt "$1" -u "$nothing" || true
}

for ((i = 0; i < processes; i++)); do
  process_command "$i"
  # Both ends are opened here: opening one end waits for the other, which might never be opened.
  mkfifo "$pipes/$i"
  exec {both}<>"$pipes/$i"
  exec {input}<"$pipes/$i"
  exec {output}>"$pipes/$i" {both}>&-
  # Each process has its own group (set -m), so that Ctrl-C in a terminal reaches only this script,
  # which passes it on once. main.py takes a second Ctrl-C as a wish to stop without saving.
  set -m
  sed -u "s/^/[$i] /" <&"$input" {output}>&- &
  printers+=($!)
  "${command[@]}" </dev/null >&"$output" 2>&1 {input}<&- &
  alive[i]=$!
  set +m
  exec {input}<&- {output}>&-
done

first='' deadline=''
while ((${#alive[@]})); do
  for i in "${!alive[@]}"; do
    if kill -0 "${alive[i]}" 2>/dev/null; then continue; fi
    status=0
    wait_for "${alive[i]}" || status=$?
    unset "alive[i]"
    if ((status == 0)) || [[ $first ]]; then continue; fi
    first=$status
    deadline=$((SECONDS + grace))
    # The processes of a run stop together. Only after a failure do the others have to be told.
    if ((status != 75 && status != 130)); then
      note "process $i ended with status $status"
      if ((asked == 0)); then pass_on TERM; fi
    fi
  done
  if [[ $deadline ]] && ((SECONDS >= deadline && ${#alive[@]})); then
    note "processes ${!alive[*]} did not end within --grace=$grace seconds: killing them, unsaved"
    kill_all
  fi
  pause 0.2
done
for pid in "${printers[@]}"; do
  for ((i = 0; i < 50; i++)); do # the end of the output, which a left-over process may hold open
    kill -0 "$pid" 2>/dev/null || break
    pause 0.1
  done
done
exit "${first:-0}"
