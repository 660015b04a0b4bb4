#!/usr/bin/env bash
# One run on a slice of Cloud TPUs, which gcloud requests as a queued resource.
#
# launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [options] [-- flags of main.py]
#
#   create   ask for the slice and wait until it is there
#   setup    install the code and its packages on all workers, and mount the shared disk
#   run      start main.py on all workers; it continues when this machine is switched off
#   logs     follow the output of worker 0, of --worker=N or of --worker=all
#   status   show the state of the request, of the slice and of main.py on each worker
#   resume   do all of the above that is missing, and again after each pre-emption, until the run is
#            done; takes the flags of create, setup and run
#   stop     tell main.py to save, and wait until it has ended; the slice stays, and costs money
#   delete   stop the run, then delete the slice; from then on only the bucket costs money
#
#   --name=NAME --zone=ZONE        of the slice; required
#   --project=PROJECT              default: the project of gcloud's configuration
#   --accelerator_type=v5litepod-64   create, resume
#   --runtime_version=VERSION      create, resume; default: the one for the accelerator type
#   --spot                         create, resume: cheaper, and may be pre-empted at any time
#   --gcloud_flags="FLAGS"         create, resume: more of gcloud's flags, such as --reserved
#   --repo=URL --ref=COMMIT        setup, resume: code to clone; without --repo, a commit of this
#                                  repository is sent (default HEAD). run: the same as for setup.
#                                  With --repo, resume needs the number of a commit: branches move
#   --bucket=NAME                  setup, resume: a bucket to mount, with gcsfuse
#   --nfs=HOST:/SHARE              setup, resume: or a share of an NFS server (Filestore)
#   --mount=DIRECTORY              where to mount it; default: /mnt/shared
#   --env=NAME=VALUE               run, resume: a variable for main.py; may be given several times.
#                                  Compiled programs are kept in JAX_COMPILATION_CACHE_DIR; default:
#                                  .jax_cache on the shared disk
#   --ssh_flags="FLAGS"            more flags of gcloud's ssh and scp, such as --internal-ip
#   --poll=S                       seconds between two looks (default 60; stop, delete: 10)
#   --wait=S                       stop, delete: seconds to wait until main.py ends (default 600)
#   --now                          stop, delete: without a save
#   --max_failures=N               resume: how often to try again after crashes, failed set-ups and
#                                  slices that do not answer (default 10); the count begins again
#                                  when the run was seen running in 20 looks
#   --delete_at_end                resume: delete the slice when the run is done or has failed
#   --dry_run                      print the commands, run none
#
# The --workdir of main.py must be on the shared disk. Exit status: 0 done; 2 a mistake in this
# command or, for resume, in main.py's command or data; 130 for resume, after SIGINT to main.py;
# 1 gcloud refused, something failed too often or, for stop, the run ended neither done nor saved.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$root/launch/common.sh"

command=${1:-}
case $command in
  create | setup | run | logs | status | resume | stop | delete) shift ;;
  --help | -h) usage && exit 0 ;;
  *) fail "expected create, setup, run, logs, status, resume, stop or delete, found '$command'" ;;
esac
name='' zone='' project='' accelerator_type='' runtime_version='' spot='' gcloud_flags=''
repo='' ref='' bucket='' nfs='' mount=/mnt/shared ssh_flags='' worker=0 poll='' wait=600 now=''
max_failures=10 delete_at_end=''
parse_options "name zone project accelerator_type runtime_version gcloud_flags repo ref bucket nfs
  mount env ssh_flags worker poll wait max_failures" "spot now delete_at_end dry_run" "$@"
require name zone
case $command in
  stop | delete) poll=${poll:-10} ;;
  *) poll=${poll:-60} ;;
esac
require_number 0 poll wait max_failures
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  fail "expected --name of small letters, digits and hyphens, found '$name'"
[[ $worker =~ ^([0-9]+|all)$ ]] || fail "expected --worker to be a number or all, found '$worker'"
[[ $mount == /?* ]] || fail "expected --mount to begin with /, found '$mount'"
[[ ! $bucket || ! $nfs ]] || fail "expected one of --bucket and --nfs, found both"
[[ $bucket != */* ]] || fail "expected the bare name of a bucket, found '$bucket'"
[[ ! $nfs || $nfs == ?*:/* ]] || fail "expected --nfs=HOST:/SHARE, found '$nfs'"
[[ $ref != -* ]] || fail "expected --ref to name a commit, found '$ref'"
[[ $command != resume || ! $repo || $ref =~ ^[0-9a-f]{7,40}$ ]] ||
  fail "expected --ref to be the number of a commit, so that the run goes on with the same code after a pre-emption, found '$ref'"
case $command in
  run | resume)
    require_config
    [[ " ${main_flags[*]} " != *" --dry_run"* ]] ||
      fail "expected a run, found main.py's --dry_run, which needs no slice: python main.py --dry_run --topology=…"
    [[ $command == run || $bucket || $nfs ]] ||
      fail "expected one of --bucket and --nfs, found neither: checkpoints would be lost with the slice"
    if [[ $bucket$nfs ]]; then require_shared_workdir "$mount"; else require_shared_workdir ''; fi
    ;;
  *) ((${#main_flags[@]} == 0)) || fail "$command takes no flags of main.py, found '${main_flags[*]}'" ;;
esac
if [[ $command == create || $command == resume ]]; then
  require accelerator_type
  [[ $accelerator_type != v5e-* ]] ||
    fail "expected --accelerator_type=v5litepod-${accelerator_type#v5e-}, which is Google's name for it, found '$accelerator_type'"
  case ${runtime_version:-$accelerator_type} in
    "$runtime_version") ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    *) fail "expected --runtime_version=VERSION for '$accelerator_type', found none: Google's \"TPU software versions\" lists them" ;;
  esac
fi
require_tool gcloud "install the Google Cloud CLI and call gcloud auth login"
[[ $dry_run || $project || ${CLOUDSDK_CORE_PROJECT:-} || $(gcloud config get-value project 2>/dev/null) ]] ||
  fail "expected gcloud to have a project, found none: call gcloud config set project PROJECT, or give --project=PROJECT"

where=("--zone=$zone")
if [[ $project ]]; then where+=("--project=$project"); fi
read -ra more_of_create <<<"$gcloud_flags"
read -ra more_of_ssh <<<"$ssh_flags"
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/drifting_jax
worker_script="bash drifting_jax/launch/tpu_worker.sh"
looks_in_vain=10 # after so many looks without an answer, resume takes the workers for lost
looks_well=20    # after so many looks at a running run, resume forgets its failures

# on_workers WHICH REMOTE_COMMAND: runs a command on worker WHICH, or on all.
on_workers() {
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    ${more_of_ssh[@]+"${more_of_ssh[@]}"} "--command=$2"
}

request_slice() {
  local tier=()
  if [[ $spot ]]; then tier=(--spot); fi
  call gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$accelerator_type" "--runtime-version=$runtime_version" \
    ${tier[@]+"${tier[@]}"} ${more_of_create[@]+"${more_of_create[@]}"}
}

delete_slice() {
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# describe KIND FIELD IN_A_DRY_RUN: sets `answer` to the field, to missing, or to unknown if gcloud
# cannot answer.
describe() {
  local ask=(gcloud compute tpus "$1" describe "$name" "${where[@]}" "--format=value($2)") said
  if [[ $dry_run ]]; then
    quoted "${ask[@]}"
    answer=$3
  elif said=$({ answer=$("${ask[@]}") && echo "$answer" >&3; } 2>&1 3>"$answers"); then
    answer=$(<"$answers")
  elif [[ $said == *NOT_FOUND* ]]; then # gcloud's word; a proxy's 404 has others
    answer=missing
  else
    note "${said##*$'\n'}"
    answer=unknown
  fi
}

# look_at_slice: sets `slice` to missing, waiting, ready, lost (pre-empted or failed) or unknown.
look_at_slice() {
  describe queued-resources state.state ACTIVE
  case $answer in
    missing | unknown) slice=$answer ;;
    SUSPENDED | FAILED) slice=lost ;;
    ACTIVE)
      describe tpu-vm state READY
      case $answer in
        READY) slice=ready ;;
        unknown) slice=unknown ;;
        missing | PREEMPTED | TERMINATED | STOPPED) slice=lost ;;
        *) slice=waiting ;;
      esac
      ;;
    *) slice=waiting ;;
  esac
  if [[ ! $dry_run && $slice-$answer != "${seen_slice:-}" ]]; then
    note "$(date +%T) slice: $slice ($answer)"
    seen_slice=$slice-$answer
  fi
}

# ask_workers: prints the status of each worker, as tpu_worker.sh gives it, or none where nothing
# was set up.
ask_workers() {
  on_workers all "if [ -f drifting_jax/launch/tpu_worker.sh ]; then $worker_script status; else echo \"\$(hostname) none\"; fi"
}

# look_at_run: sets `run` to none, running, ending, done, stopped, lost, unknown or the status of a
# failure, and `commands` to the commands that run.
look_at_run() {
  local lines ended running statuses
  commands=''
  if lines=$(ask_workers); then
    ended=$(grep -cE '^[^ ]+ (exit [0-9]+|lost|none)$' <<<"$lines" || true)
    commands=$(sed -n 's/^[^ ]* running: //p' <<<"$lines")
    running=$(grep -cE '^[^ ]+ running: ' <<<"$lines" || true)
    statuses=" $(sed -n 's/^[^ ]* exit \([0-9]*\)$/\1/p' <<<"$lines" | sort -nu | tr '\n' ' ')"
    case ${followed:+$statuses} in
      *" 2 "*) run=2 ;;
      *" 130 "*) run=130 ;;
      *)
        if ((running)); then
          if ((ended)); then run=ending; else run=running; fi
        elif [[ ! $statuses =~ ^\ (0\ )?(75\ )?$ ]]; then
          run=${statuses% } run=${run##* }
        elif [[ $lines == *" lost"* ]]; then
          run=lost
        elif [[ $statuses == *" 75 "* ]]; then
          run=stopped
        elif [[ $statuses == " 0 " && $lines != *" none"* ]]; then
          run="done"
        else
          run=none
        fi
        ;;
    esac
  else
    run=unknown
  fi
  if [[ $run != "${seen_run:-}" ]]; then note "$(date +%T) run: $run"; fi
  seen_run=$run
}

# stop_run: tells main.py to save and waits until it runs on no worker. `run` is then how it ended.
stop_run() {
  local order=stop deadline=$((SECONDS + 10#$wait))
  if [[ $now ]]; then order="kill"; fi
  if [[ $dry_run ]]; then
    ask_workers
    echo "# where main.py runs, followed by looks every $poll seconds until it has ended:"
    on_workers all "$worker_script $order"
    return
  fi
  followed=1
  look_at_run
  [[ $run != unknown ]] ||
    fail "expected all workers of $name to tell what runs there, found that they do not (ssh's message is above); delete --now gives the slice back all the same" 1
  if [[ $commands ]]; then
    on_workers all "$worker_script $order" ||
      fail "expected all workers of $name to hear that they are to stop, found that they did not (the message is above): call $command again" 1
  fi
  while [[ $commands || $run == unknown ]]; do
    ((SECONDS < deadline)) ||
      fail "expected the run on $name to end within --wait=$wait seconds, found it $run: call $command again to wait longer, or with --now to do without its save" 1
    sleep "$poll"
    look_at_run
  done
  case $run in
    none) note "nothing runs there" ;;
    done) note "the run is done (status 0)" ;;
    stopped) note "the run has stopped and saved (status 75)" ;;
    lost) note "the run ended without a status: it goes on from its last save" ;;
    *) note "the run ended with status $run: it goes on from its last save" ;;
  esac
}

# repository_answers: whether git finds a repository with a commit here.
repository_answers() {
  git -C "$root" rev-parse --quiet --verify HEAD >/dev/null 2>&1
}

# check_ref: fails unless the commit to send exists and has the config.
check_ref() {
  local file
  git -C "$root" rev-parse --quiet --verify "${ref:-HEAD}^{commit}" >/dev/null 2>&1 ||
    fail "expected --ref to name a commit of this repository, found '$ref'"
  file=$(main_flag config)
  file=${file%%:*}
  [[ ! $file || $file == /* ]] || git -C "$root" cat-file -e "${ref:-HEAD}:./$file" 2>/dev/null ||
    fail "expected --config to be a file of ${ref:-HEAD}, which the workers have, found no '$file' there: commit it, or give the --ref or --repo that has it"
}

# check_committed: fails if files are changed or new: the workers would not have them.
check_committed() {
  local changed names
  mapfile -t changed < <(git -C "$root" -c core.quotePath=false status --porcelain \
    --untracked-files=normal -- .)
  ((${#changed[@]})) || return 0
  changed=("${changed[@]#???}") # without the two letters that tell how
  printf -v names '%s, ' "${changed[@]:0:3}"
  names=${names%, }
  if ((${#changed[@]} > 3)); then names+=" and $((${#changed[@]} - 3)) more"; fi
  fail "expected all files to be committed, found $names: commit it, or give --ref=HEAD to run without"
}

# choose_commit: sets `commit`. It is called once, so that a run that is set up again continues with
# the code that it began with.
choose_commit() {
  commit=${ref:-HEAD}
  [[ ! $repo ]] || return 0
  require_tool git "install it, or give --repo"
  if repository_answers; then
    check_ref
    [[ $ref ]] || check_committed
    commit=$(git -C "$root" rev-parse "$commit^{commit}")
  elif [[ ! $dry_run ]]; then
    fail "expected a git repository with a commit, found none in $root: give --repo=URL"
  fi
}

# pack: writes the commit to the file `tar`, which is complete or missing.
pack() {
  tar=$cache/$commit.tar.gz
  if [[ $dry_run ]]; then
    quoted git -C "$root" archive --format=tar.gz "--output=$tar" "$commit"
  elif [[ ! -f $tar ]]; then
    mkdir -p "$cache"
    git -C "$root" archive --format=tar.gz "--output=$tar.$$" "$commit" && mv "$tar.$$" "$tar"
  fi
}

set_up() {
  local get remove worker_flags=("--mount=$mount")
  if [[ $bucket ]]; then worker_flags=("--bucket=$bucket" "${worker_flags[@]}"); fi
  if [[ $nfs ]]; then worker_flags=("--nfs=$nfs" "${worker_flags[@]}"); fi
  remove="{ flock --timeout 5 drifting_run/lock rm -rf drifting_jax || { echo 'error: a run goes on here: stop it first' >&2; exit 1; }; }"
  if [[ $repo ]]; then
    get="git clone --quiet $(quoted "$repo") drifting_jax && git -C drifting_jax checkout --quiet $(quoted "$commit")"
  else
    pack || return
    call gcloud compute tpus tpu-vm scp "$tar" "$name:drifting_jax.tar.gz" "${where[@]}" \
      --worker=all ${more_of_ssh[@]+"${more_of_ssh[@]}"} || return
    get="mkdir drifting_jax && tar -xzf drifting_jax.tar.gz -C drifting_jax"
  fi
  on_workers all "mkdir -p drifting_run && $remove && $get" || return
  on_workers all "$worker_script setup $(quoted "${worker_flags[@]}")"
}

start_run() {
  on_workers all "$worker_script start $(quoted "--mount=$mount" ${variables[@]+"${variables[@]/#/--env=}"} -- "${main_flags[@]}")"
}

wait_for_slice() {
  while look_at_slice && [[ $slice != ready ]]; do
    [[ $slice == waiting || $slice == unknown ]] ||
      fail "expected a slice, found it $slice: see \"$0 status\", then delete it and ask again" 1
    sleep "$poll"
  done
}

# end STATUS MESSAGE: ends resume.
end() {
  note "$2"
  if [[ $slice == missing ]]; then
    note "there is no slice"
  elif [[ ! $delete_at_end ]]; then
    note "the slice is still there and costs: $0 delete --name=$name ${where[*]}"
  elif delete_slice; then
    note "the slice was deleted and costs nothing any more"
  else
    note "could not delete $name: it still costs"
  fi
  exit "$1"
}

# count_failure MESSAGE: counts a failure, and ends resume if there were too many.
count_failure() {
  ((failures < max_failures)) || end 1 "$1: giving up (--max_failures=$max_failures)"
  failures=$((failures + 1))
  note "$1: trying again ($failures of at most $max_failures times)"
}

# follow: begins to follow the run once it is seen running; only then its end counts. The end of an
# earlier run does not count: its command may have had a mistake that this command corrects.
follow() {
  local other
  case $run in
    running)
      other=$(grep --max-count=1 --invert-match --line-regexp --fixed-strings --regexp="$(command_line)" <<<"$commands" || true)
      [[ ! $other ]] ||
        fail "expected no other run on $name, found $other: stop it first, or call resume with its flags"
      followed=1
      ;;
    none | ending | unknown) ;;
    *)
      note "what ran there before ended ($run): starting"
      run=none
      ;;
  esac
}

# one_turn: looks at the slice and the run, and takes the next step.
one_turn() {
  look_at_slice
  case $slice in
    missing)
      # Whatever runs on a slice that this command asked for is this run.
      if request_slice; then followed=1; else count_failure "the request was refused"; fi
      ;;
    lost) delete_slice || note "could not delete $name, trying again" ;;
  esac
  if [[ $slice != ready && $slice != unknown ]]; then in_vain=0 well=0; fi
  [[ $slice == ready ]] || return 0
  look_at_run
  if [[ ! $followed ]]; then follow; fi
  if [[ $run != ending ]]; then endings=0; fi
  if [[ $run != unknown ]]; then in_vain=0; fi
  if [[ $run != unknown && $run != running ]]; then well=0; fi
  case $run in
    running)
      well=$((well + 1))
      if ((well >= looks_well)); then failures=0; fi
      return
      ;;
    unknown)
      # One lost worker is enough for that. gcloud may call such a slice ready for ever, while it
      # costs money and the other workers wait.
      in_vain=$((in_vain + 1))
      ((in_vain >= looks_in_vain)) || return 0
      in_vain=0
      [[ $followed ]] ||
        fail "expected all workers of $name to tell what runs there, found no answer to $looks_in_vain looks: what runs may be another run, so the slice was not deleted, and costs" 1
      count_failure "workers did not answer $looks_in_vain looks in a row, so the slice counts as lost"
      delete_slice || note "could not delete $name, trying again"
      return
      ;;
    done) end 0 "the run is done" ;;
    2) end 2 "main.py found a mistake in its command or its data (status 2): $0 logs shows it" ;;
    130) end 130 "main.py was stopped by SIGINT (status 130)" ;;
    ending)
      # If some workers have ended, the others end soon, or wait for them for ever.
      endings=$((endings + 1))
      ((endings > 5)) || return 0
      on_workers all "$worker_script kill" || true
      count_failure "some workers ended and the others did not"
      ;;
    none | stopped | lost) ;;
    *) count_failure "main.py ended with status $run" ;;
  esac
  if set_up && start_run; then
    followed=1
  else
    count_failure "setting up or starting failed"
  fi
}

answers=$(mktemp)
trap 'rm -f "$answers"' EXIT
case $command in
  create)
    if ! request_slice; then
      look_at_slice
      [[ $slice == waiting || $slice == ready ]] ||
        fail "gcloud could not ask for the slice (its own message is above)" 1
      note "$name was asked for before, maybe of another type: waiting for that one"
    fi
    wait_for_slice
    ;;
  setup)
    choose_commit
    [[ $bucket$nfs ]] ||
      note "no shared disk is mounted: checkpoints will be lost with the slice; --bucket or --nfs mounts one"
    set_up || fail "the set-up failed on a worker (its own message is above): mend it and call setup again" 1
    ;;
  run)
    if [[ ! $repo ]] && repository_answers; then check_ref; fi
    start_run || fail "main.py could not be started on a worker (its own message is above): was it set up?" 1
    ;;
  logs) on_workers "$worker" "$worker_script logs" ;;
  status)
    look_at_slice
    if [[ $slice == ready ]]; then ask_workers; fi
    ;;
  stop)
    stop_run
    [[ $dry_run || $now || $run == none || $run == "done" || $run == stopped ]] || exit 1
    ;;
  delete)
    if [[ ! $now ]]; then
      look_at_slice
      [[ $slice != unknown ]] ||
        fail "expected gcloud to tell whether a run goes on, found that it cannot (its own message is above); --now deletes all the same" 1
      if [[ $slice == missing ]]; then note "there is no slice" && exit 0; fi
      if [[ $slice == ready ]]; then stop_run; fi
    fi
    delete_slice || fail "gcloud could not delete $name (its own message is above): it still costs" 1
    ;;
  resume)
    choose_commit
    if [[ $dry_run ]]; then
      echo "# every $poll seconds:"
      look_at_slice
      ask_workers
      echo "# when it was pre-empted or has failed:"
      delete_slice
      echo "# when there is none:"
      request_slice
      echo "# when it is there and main.py does not run, or ended with another status than 0, 2 and 130:"
      set_up
      start_run
      exit 0
    fi
    failures=0 endings=0 in_vain=0 well=0 followed=''
    while :; do
      one_turn
      sleep "$poll"
    done
    ;;
esac
