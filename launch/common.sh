# shellcheck shell=bash
# Functions that all launchers share: options, dry runs, errors in one line. Read with `source`.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: expected bash 4.4 or newer, found $BASH_VERSION: install one (macOS: brew install bash)" >&2
  exit 2
fi

program=$0
main_flags=()
variables=() # of --env
dry_run=''

# fail MESSAGE [STATUS]: prints one line on stderr and ends. The default status, 2, means a mistake
# in the command, as for main.py.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

# note MESSAGE: tells on stderr what the script does.
note() {
  printf '%s\n' "$1" >&2
}

# usage: prints the comment at the top of the script.
usage() {
  sed -n '/^$/q; /^#!/d; s/^# \{0,1\}//p' "$0"
}

# parse_options VALUED SWITCHES ARGUMENT…: sets a variable for each option that is given. VALUED
# names the options with a value, SWITCHES those without. Flags after -- go to main_flags, and each
# --env=NAME=VALUE goes to variables.
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

# require NAME…: fails unless these options were given.
require() {
  local option
  for option; do
    [[ ${!option} ]] || fail "expected --$option=VALUE, found none; $program --help tells more"
  done
}

# require_number LEAST NAME…: fails unless these options are whole numbers of at least LEAST. 010 is
# ten.
require_number() {
  local least=$1 option
  for option in "${@:2}"; do
    if [[ ! ${!option} =~ ^[0-9]{1,9}$ ]] || ((10#${!option} < least)); then
      fail "expected --$option to be a whole number of at least $least, found '${!option}'"
    fi
    printf -v "$option" '%d' "$((10#${!option}))"
  done
}

# require_tool NAME HINT: fails unless a program is on the PATH. A dry run needs no program.
require_tool() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || fail "expected $1 on the PATH, found none: $2"
}

# main_flag NAME: prints the value of a flag of main.py, or nothing if it is not given.
main_flag() {
  local word
  for word in ${main_flags[@]+"${main_flags[@]}"}; do
    [[ $word != --"$1"=* && $word != -"$1"=* ]] || printf '%s\n' "${word#*=}"
  done | tail -n 1
}

# require_config [PLACE]: fails unless there are flags of main.py with a config. PLACE says where
# they belong.
require_config() {
  local place=${1- after --} word
  for word in ${main_flags[@]+"${main_flags[@]}"}; do
    [[ $word == -* ]] || fail "expected flags of main.py as --flag=VALUE, found '$word'"
  done
  [[ $(main_flag config) ]] ||
    fail "expected flags of main.py with --config=FILE$place, found '${main_flags[*]-}'; $program --help tells more"
}

# require_shared_workdir MOUNT: fails unless --workdir is below MOUNT. If MOUNT is empty, --workdir
# must be an absolute path, which is the same on every machine.
require_shared_workdir() {
  local workdir
  workdir=$(main_flag workdir)
  [[ $workdir == "${1%/}"/?* && $workdir != *:/* ]] ||
    fail "expected --workdir=${1%/}/… after --, on the disk that all workers share, found '$workdir'"
  [[ /$workdir/ != */../* ]] || fail "expected --workdir without .., found '$workdir'"
}

# keep_compiled [FOLDER]: keeps compiled programs in FOLDER (default: in the user's cache folder),
# where the next start finds them. A JAX_COMPILATION_CACHE_DIR that the user set is not changed.
keep_compiled() {
  local cache=${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}
  local folder=${1:-${cache:+$cache/drifting_jax/compiled}}
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$folder}"
}

# command_line: prints the command of a run. Equal runs have equal commands.
command_line() {
  quoted ${variables[@]+"${variables[@]}"} main.py "${main_flags[@]}"
}

# quoted WORD…: prints a command as one would type it, the same in every locale.
quoted() {
  local LC_ALL=C word line=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=("$word")
  done
  printf '%s\n' "${line[*]}"
}

# call COMMAND…: runs a command, or prints it in a dry run.
call() {
  if [[ $dry_run ]]; then quoted "$@"; else "$@"; fi
}

# wait_for PID: returns the exit status of a child, even if trapped signals interrupt the wait. If a
# child was killed, bash would print its command: that goes to /dev/null.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1" 2>/dev/null || true
  done
  wait "$1" 2>/dev/null
}
