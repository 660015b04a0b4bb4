#!/usr/bin/env bash
# Runs the quick tests and a tiny run with another Python and other versions of the libraries, in an
# environment that is made for it and removed afterwards.
#
# tests/other_python.sh [--root=FOLDER [--bind=PATH]…] PYTHON PINS [arguments of pytest]
#
#   PYTHON          interpreter with the module venv, such as python3.13
#   PINS            colab (JAX 0.7.2, as Colab's TPUs have it), base (JAX 0.10.2, the last for
#                   Python 3.11) or newest (JAX 0.12.0.1)
#   --root=FOLDER   run inside this image of a system, such as debootstrap makes, without HOME; needs
#                   the rights of root. PYTHON is then a path in the image
#   --bind=PATH     a file or folder that the image is to see at the same path, such as pip's
#                   settings and certificates
#
# It fails if a test or the run fails. Its last line names the versions, what passed, and the seconds.

set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# pins NAME: prints pip's constraints.
pins() {
  case $1 in
    colab) echo jax==0.7.2 jaxlib==0.7.2 flax==0.11.2 orbax-checkpoint==0.12.4 numpy==2.1.3 ;;
    base) echo jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 orbax-checkpoint==0.12.8 ;;
    newest)
      echo jax==0.12.0.1 jaxlib==0.12.0.1 flax==0.12.12 numpy==2.5.5 optax==0.2.8 clu==0.0.12 \
        orbax-checkpoint==0.12.8 grain==0.2.18 tensorflow-datasets==4.9.10
      ;;
    *)
      echo "expected the pins colab, base or newest, found '$1'" >&2
      return 2
      ;;
  esac
}

# in_image FOLDER PATHS ARGUMENTS…: this script in an image. What it mounts goes with its processes.
in_image() {
  local image=$1
  # shellcheck disable=SC2016 # the inner shell expands it
  unshare --mount --pid --fork --kill-child bash -euc '
    image=$1 repository=$2
    IFS=: read -ra paths <<<"$3"
    for path in "$repository" /dev /etc/resolv.conf "${paths[@]}"; do
      if [[ -d $path ]]; then mkdir -p "$image$path"; else
        mkdir -p "$(dirname "$image$path")" && touch "$image$path"
      fi
      mount --rbind "$path" "$image$path"
    done
    mount -t proc proc "$image/proc"
    exec chroot "$image" env -u HOME "$repository/tests/other_python.sh" "${@:4}"
  ' bash "$image" "$repository" "$2" "${@:3}"
}

image='' paths=''
while [[ ${1-} == --* ]]; do
  case $1 in
    --root=?*) image=$(cd "${1#*=}" && pwd) ;;
    --bind=?*) paths+=${paths:+:}${1#*=} ;;
    *)
      echo "expected --root=FOLDER or --bind=PATH, found '$1'" >&2
      exit 2
      ;;
  esac
  shift
done
if (($# < 2)); then
  sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [[ $image ]]; then
  in_image "$image" "$paths" "$@"
  exit
fi

interpreter=$1
constraints=$(pins "$2")
shift 2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tr ' ' '\n' <<<"$constraints" >"$folder/constraints.txt"
"$interpreter" -m venv "$folder/environment"
PATH=$folder/environment/bin:$PATH
cd "$repository"
pip install --quiet --constraint="$folder/constraints.txt" --editable '.[test]'
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/compiled}

status=0
python -m pytest "$@" 2>&1 | tee "$folder/tests.log" || status=1
tests=$(tail -n 1 "$folder/tests.log")
tests=${tests% in *}
run=ok
python main.py --config=configs/toy2d.py --workdir="$folder/run" --config.train.num_steps=100 \
  --config.train.save_every=50 --config.eval.num_samples=256 --config.mesh.data=1 || run=failed
[[ $run == ok && -s $folder/run/metrics.jsonl ]] || status=1
versions=$(python -c 'import platform, jax
print(f"python {platform.python_version()}, jax {jax.__version__}")')
echo "$versions: $tests; a tiny run: $run; $SECONDS s"
exit "$status"
