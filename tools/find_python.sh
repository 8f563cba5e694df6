#!/usr/bin/env bash
# Prints a Python of the first version named that runs: find_python.sh 3.12 3.11 ...
# Looks at the PATH, at pyenv and at uv. (A pyenv shim may be there and not run.)
set -u
for version in "$@"; do
  for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python \
                "$(command -v uv >/dev/null 2>&1 && uv python find "$version" 2>/dev/null)"; do
    [ -n "$python" ] || continue
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
    if [ "$found" = "$version" ]; then
      "$python" -c 'import sys; print(sys.executable)'
      exit 0
    fi
  done
done
echo "no Python $* found on the PATH, in pyenv or in uv: install one (pyenv install, uv python install)" >&2
exit 1
