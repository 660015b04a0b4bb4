#!/usr/bin/env bash
# The part of launch/tpu_pod.sh that runs on each worker of a slice. Users need not call it.
#
# tpu_worker.sh setup [--bucket=NAME | --nfs=HOST:/SHARE] [--mount=DIRECTORY]
# tpu_worker.sh start [--mount=DIRECTORY] [--env=NAME=VALUE]… -- FLAGS
#                                  start main.py in the background, with its output in
#                                  ~/drifting_run/log
# tpu_worker.sh status             print one line: "running: COMMAND", "exit STATUS", "lost" (it
#                                  ended without a status) or "none"
# tpu_worker.sh logs               print the end of the log, and follow it
# tpu_worker.sh stop | kill        send SIGTERM, after which main.py saves, however often it comes;
#                                  or SIGKILL, after which it does not save

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

environment=$HOME/drifting_env
state=$HOME/drifting_run
mkdir -p "$state"

# running: whether a run goes on. Its processes hold the lock, which is free again when the last of
# them has ended, also after a reboot. Asking takes a shared lock, so that two processes that ask at
# the same time do not take each other for a run.
running() {
  ! flock --shared --nonblock "$state/lock" true
}

install_packages() {
  # The images have Python 3.10, which is too old; uv installs a newer one.
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  [[ -x $environment/bin/python ]] || uv venv --quiet --python 3.11 "$environment"
  uv pip install --quiet --python "$environment/bin/python" --editable "${root}[tpu]"
}

# apt ARGUMENT…: calls apt-get once its locks are free. A new machine updates itself and holds them
# for a while, also the lock of the package lists, for which apt's own option does not wait.
apt() {
  local said deadline=$((SECONDS + 600))
  until said=$(sudo apt-get -o DPkg::Lock::Timeout=600 --quiet --quiet "$@" 2>&1); do
    if [[ $said != */lock* ]] || ((SECONDS >= deadline)); then
      printf '%s\n' "$said" >&2
      return 1
    fi
    sleep 5
  done
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc url=https://packages.cloud.google.com/apt
  command -v gcsfuse >/dev/null && return
  curl -fsS "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt update
  apt install --yes gcsfuse
}

# mounted: prints what is mounted at $mount; fails if nothing is.
mounted() {
  findmnt --noheadings --output SOURCE --mountpoint "$mount"
}

mount_shared() {
  local source=${bucket:-$nfs} found probe
  found=$(mounted || true)
  if [[ $found == "$source" ]] && ! timeout 60 ls "$mount" >/dev/null; then
    # Its gcsfuse or its server is gone. Nothing runs here during a set-up, so it may be unmounted.
    note "$source at $mount does not answer: mounting it again"
    sudo umount --lazy "$mount"
    found=''
  fi
  if [[ ! $found ]]; then
    sudo mkdir -p "$mount"
    if [[ $bucket ]]; then
      install_gcsfuse
      sudo chown "$(id -un)" "$mount"
      # Checkpoints are folders that are renamed, and each worker must see at once what the others
      # wrote. gcsfuse's limit on renames and its caches would prevent both.
      gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "$bucket" "$mount"
    else
      apt update
      apt install --yes nfs-common
      sudo mount -t nfs "$nfs" "$mount"
    fi
  elif [[ $found != "$source" ]]; then
    fail "expected $source at $mount, found $found: unmount it or give another --mount"
  fi
  probe=$mount/.drifting_jax_$(hostname)
  if ! { touch "$probe" && rm "$probe"; }; then
    fail "expected to write in $mount ($source), found that $(id -un) may not: grant it" 1
  fi
}

# process_group: prints the number of this script's process group. Not every machine has `ps`.
process_group() {
  local fields
  read -ra fields </proc/$$/stat # number (bash) state parent group …
  echo "${fields[4]}"
}

# run_main FLAG…: runs main.py and writes its exit status to a file. The caller holds the lock.
run_main() {
  local status=0
  trap : TERM # a shutdown signals all processes, and this one still has to write the status
  cd "$root"
  process_group >"$state/group"
  "$environment/bin/python" -u main.py "$@" &
  echo $! >"$state/pid"
  wait_for $! || status=$?
  echo "$status" >"$state/status"
}

[[ ${1:-} ]] || fail "expected a command, found none; $0 --help tells more"
worker_command=$1 bucket='' nfs='' mount=/mnt/shared cache=''
shift
case $worker_command in
  --help | -h) usage ;;
  setup)
    parse_options "bucket nfs mount" "" "$@"
    install_packages
    if [[ $bucket$nfs ]]; then mount_shared; fi
    ;;
  start)
    parse_options "mount env" "" "$@"
    if running; then fail "expected no run on $(hostname), found one: stop it first" 1; fi
    if mounted >/dev/null; then
      cache=$mount/.jax_cache
    elif [[ $(main_flag workdir) == "${mount%/}"/* ]]; then
      fail "expected a disk at $mount on $(hostname), found none mounted: checkpoints would be lost with the slice; call setup with --bucket or --nfs"
    fi
    rm -f "$state/status" "$state/pid"
    command_line >"$state/command"
    printf '\n%s %s\n' "$(date --utc +%FT%TZ)" "$(<"$state/command")" >>"$state/log"
    if ((${#variables[@]})); then export "${variables[@]}"; fi
    keep_compiled "$cache"
    setsid nohup flock --timeout 10 "$state/lock" bash "${BASH_SOURCE[0]}" main "${main_flags[@]}" \
      </dev/null >>"$state/log" 2>&1 &
    for ((i = 0; i < 100; i++)); do
      if [[ -f $state/pid ]]; then exit 0; fi
      sleep 0.1
    done
    fail "expected main.py to start on $(hostname), found nothing after 10 s: see $state/log" 1
    ;;
  main) run_main "$@" ;;
  status)
    if running; then
      echo "$(hostname) running: $(cat "$state/command")"
    elif [[ -f $state/status ]]; then
      echo "$(hostname) exit $(<"$state/status")"
    elif [[ -f $state/pid ]]; then
      echo "$(hostname) lost"
    else
      echo "$(hostname) none"
    fi
    ;;
  logs) tail -n 100 -F "$state/log" | sed -u "s/^/$(hostname): /" ;;
  stop | kill)
    if ! running; then
      echo "$(hostname): nothing runs"
    elif [[ $worker_command == kill ]]; then
      kill -KILL -- "-$(<"$state/group")" # the group that setsid made, with the data workers
    else
      kill -TERM "$(<"$state/pid")"
    fi
    ;;
  *) fail "expected setup, start, status, logs, stop or kill, found '$worker_command'" ;;
esac
