#!/usr/bin/env bash
# Makes a virtual environment from a lock:  setup.sh VENV LOCK VERSION [VERSION ...]
# Takes the first Python named that is on this machine, or else lets uv download the first. uv itself
# is the one on the PATH, or else pip brings it.
set -euo pipefail
venv=$1 lock=$2
shift 2
here=$(dirname "$0")
uv_version=$(sed -n 's/^uv==//p' "$here/../requirements.lock")
start=$(date +%s)
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

find_uv() {
  uv=uv
  uv --version >/dev/null 2>&1 && return
  uv=$tools/bin/uv
  for python in "$(bash "$here/find_python.sh" "$@" 2>/dev/null)" python3 python; do
    [ -n "$python" ] || continue
    "$python" -m pip install -q --disable-pip-version-check --target "$tools" "uv==$uv_version" \
      >/dev/null 2>&1 && [ -x "$uv" ] && return
    "$python" -m venv "$tools/venv" >/dev/null 2>&1 || continue
    uv=$tools/venv/bin/uv
    "$tools/venv/bin/python" -m pip install -q --disable-pip-version-check "uv==$uv_version" \
      >/dev/null 2>&1 && [ -x "$uv" ] && return
    uv=$tools/bin/uv
  done
  echo "set-up: no uv on the PATH, and pip could not bring it: install uv or pip, then run this again" >&2
  exit 2
}

find_uv "$@"
if ! python=$(bash "$here/find_python.sh" "$@" 2>/dev/null); then
  if ! "$uv" venv -q --python "$1" --python-preference only-managed "$tools/found" 2>/dev/null; then
    echo "set-up: no Python $1 on the PATH, in pyenv or in uv, and uv could not download it: install" \
      "Python $1 (uv python install $1, pyenv install $1, or the system's package), then run this again" >&2
    exit 2
  fi
  python=$("$tools/found/bin/python" -c 'import sys; print(sys._base_executable)')
fi
# Only now, when there is a Python to make it anew.
rm -rf "$venv"
"$uv" venv -q --python "$python" "$venv"
echo "set-up: $("$venv/bin/python" --version) into $venv, $(grep -c '^[^ #].*==' "$lock") packages of $lock"
# The locks are whole. TFX's own metadata refuse Python 3.11, on which it runs.
"$uv" pip install -q --no-deps --python "$venv/bin/python" -r "$lock"
"$uv" pip install -q --no-deps --no-build-isolation --python "$venv/bin/python" -e "$here/.."
echo "set-up: done in $(($(date +%s) - start)) s"
