#!/bin/sh
# Joins the parts beside this script, checks them, and makes the two environments that
# `scripts/gpu-check` takes. Reads no network. Prints the command to run.
#
#     ./unpack.sh [TARGET] [PEER_PYTHON]
#
# TARGET gets the folders repo and release; PEER_PYTHON has PyTorch and transformers, and where the
# pack was made without them, CUDA's libraries. PYTHON names an interpreter, if `python@PYTHON@` is not it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/gpu-check}
peer=${2:-}
python=${PYTHON:-python@PYTHON@}
"$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' ||
  { echo "error: $python is not Python @PYTHON@: pack again with --python" >&2; exit 1; }
(cd "$here" && sha256sum --check --quiet parts.sha256) ||
  { echo "error: a part is missing or was changed on the way: send it again" >&2; exit 1; }

join() { # NAME FOLDER
  mkdir -p "$2"
  if command -v xz > /dev/null; then
    cat "$here/$1".part-* | xz -dc -T0 | tar -x -C "$2"
  else
    cat "$here/$1".part-* | "$python" -c 'import sys, tarfile
tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1])' "$2"
  fi
}
environment() { # NAME FOLDER...
  "$python" -m venv --without-pip "$release/$1"
  at=$("$release/$1/bin/python" -c 'import site; print(site.getsitepackages()[0])')
  shift
  printf '%s\n' "$@" > "$at/gpu-check.pth"
}

mkdir -p "$target"
target=$(cd "$target" && pwd)
repo=$target/repo release=$target/release
rm -rf "$repo" "$release"
join code "$repo" & running=$!
join site "$release/site" & running="$running $!"
if [ -e "$here/gpu.part-000" ]; then
  join gpu "$release/site-cuda13" & running="$running $!"
fi
for one in $running; do
  wait "$one" || { echo "error: not everything was unpacked: is the disk full?" >&2; exit 1; }
done
environment venv "$repo" "$release/site"
if [ -d "$release/site-cuda13" ]; then
  environment venv-cuda13 "$repo" "$release/site-cuda13" "$release/site"
  if [ ! -e "$release/site-cuda13/nvidia" ] && [ -n "$peer" ]; then
    there=$("$peer" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null || true)
    [ -z "$there" ] || ln -s "$there" "$release/site-cuda13/nvidia"
  fi
fi
# The 8B shape writes about 40 GB, which memory takes faster than most disks.
work=$target/work
shm=$(df -Pk /dev/shm 2> /dev/null | awk 'NR == 2 { print $4 }')
[ "${shm:-0}" -lt 47185920 ] || work=/dev/shm/gpu-check
echo "ready; now run, in $repo:"
echo "PYTHONPATH=$repo:$repo/scripts $release/venv/bin/python -m gpu_check --release $release" \
  "--work $work --out $target/out --minutes 10 --wanted 64${peer:+ --peer-python $peer}"
