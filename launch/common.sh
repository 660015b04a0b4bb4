# shellcheck shell=bash
# What the launchers share: options, dry runs, errors of one line. Read by `source`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: expected bash 4.4 or newer, found $BASH_VERSION: install one (macOS: brew install bash)" >&2
  exit 2
fi

program=$0
main_flags=()
variables=() # of --env
dry_run=''

# fail MESSAGE [STATUS]: one line on stderr; 2 is a mistake in the command, as main.py's.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# note MESSAGE: what happens, for whoever watches.
note() {
  printf '%s\n' "$1" >&2
}

# usage: the comment at the top of the script.
usage() {
  sed -n '/^$/q; /^#!/d; s/^# \{0,1\}//p' "$0"
}

# parse_options VALUED SWITCHES ARGUMENT…: sets the variable of each option that is named in the
# first two; what follows -- goes to main_flags, and each --env=NAME=VALUE to variables.
parse_options() {
  local valued=" ${1//[[:space:]]/ } " switches=" $2 " option
  shift 2
  while (($#)); do
    option=${1#--}
    option=${option%%=*}
    case $1 in
      --) main_flags=("${@:2}") && return ;;
      --help | -h) usage && exit 0 ;;
      --?*=*)
        [[ $switches != *" $option "* ]] || fail "expected --$option without a value, found '$1'"
        [[ $valued == *" $option "* ]] || unknown "$1" "$valued$switches"
        if [[ $option != env ]]; then
          printf -v "$option" '%s' "${1#*=}"
        elif [[ ${1#*=} =~ ^[A-Za-z_][A-Za-z0-9_]*= ]]; then
          variables+=("${1#*=}")
        else
          fail "expected --env=NAME=VALUE, found '$1'"
        fi
        ;;
      --?*)
        [[ $valued != *" $option "* ]] || fail "expected --$option=VALUE, found $1 without a value"
        [[ $switches == *" $option "* ]] || unknown "$1" "$valued$switches"
        printf -v "$option" '%s' 1
        ;;
      *) fail "expected options such as --name=VALUE, found '$1'; flags of main.py come after --" ;;
    esac
    shift
  done
}

unknown() {
  local known
  read -ra known <<<"$2"
  fail "unknown option '$1' (flags of main.py come after --); the options are ${known[*]/#/--}; $program --help tells more"
}

# require NAME…: these options were given.
require() {
  local option
  for option; do
    [[ ${!option} ]] || fail "expected --$option=VALUE, found none; $program --help tells more"
  done
}

# require_number LEAST NAME…: these options are whole numbers; a zero in front makes none octal.
require_number() {
  local least=$1 option
  for option in "${@:2}"; do
    if [[ ! ${!option} =~ ^[0-9]{1,9}$ ]] || ((10#${!option} < least)); then
      fail "expected --$option to be a whole number of at least $least, found '${!option}'"
    fi
    printf -v "$option" '%d' "$((10#${!option}))"
  done
}

# require_tool NAME HINT: a program is on the PATH; a dry run needs none.
require_tool() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || fail "expected $1 on the PATH, found none: $2"
}

# main_flag NAME: the value of a flag of main.py, empty where it is not given.
main_flag() {
  local word
  for word in ${main_flags[@]+"${main_flags[@]}"}; do
    [[ $word != --"$1"=* && $word != -"$1"=* ]] || printf '%s\n' "${word#*=}"
  done | tail -n 1
}

# require_config [PLACE]: there are flags of main.py, with a config; PLACE says where they belong.
require_config() {
  local place=${1- after --} word
  for word in ${main_flags[@]+"${main_flags[@]}"}; do
    [[ $word == -* ]] || fail "expected flags of main.py as --flag=VALUE, found '$word'"
  done
  [[ $(main_flag config) ]] ||
    fail "expected flags of main.py with --config=FILE$place, found '${main_flags[*]-}'; $program --help tells more"
}

# require_shared_workdir MOUNT: --workdir lies there; where MOUNT is empty, it is at least a path
# that is the same on every machine.
require_shared_workdir() {
  local workdir
  workdir=$(main_flag workdir)
  [[ $workdir == "${1%/}"/?* && $workdir != *:/* ]] ||
    fail "expected --workdir=${1%/}/… after --, on the disk that all workers share, found '$workdir'"
  [[ /$workdir/ != */../* ]] || fail "expected --workdir without .., found '$workdir'"
}

# keep_compiled [FOLDER]: unless the user chose a place, programs that were compiled once are kept
# there, or else in the user's cache folder: the next start finds them.
keep_compiled() {
  local cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  local folder=${1:-${cache:+$cache/drifting_jax/compiled}}
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$folder}"
}

# command_line: what a run is called with; equal for equal runs.
command_line() {
  quoted ${variables[@]+"${variables[@]}"} main.py "${main_flags[@]}"
}

# quoted WORD…: a command as one would type it, in any locale the same.
quoted() {
  local LC_ALL=C word line=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  printf '%s\n' "${line[*]}"
}

# call COMMAND…: runs it, or prints it in a dry run.
call() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# wait_for PID: the exit status of a child, however often a trapped signal interrupts the waiting.
# Of a child that was killed, bash would print the command.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1" 2>/dev/null || true
  done
  wait "$1" 2>/dev/null
}
