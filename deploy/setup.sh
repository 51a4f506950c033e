#!/usr/bin/env bash
# Create a virtual environment from pyproject.toml and constraints.txt: `deploy/setup.sh [DIR]`, default .venv.
# As root it installs missing Debian packages; otherwise it prints which to install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

need() { # need WHY PACKAGE...
  local why=$1; shift
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing $* ($why)"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
  else
    echo "setup: $why. Install it, then try again:  sudo apt-get install $*" >&2
    exit 1
  fi
}

want() { # want WHY PACKAGE...: like need, but a missing package is not an error
  (need "$@") || echo "setup: continuing without $2" >&2
}

command -v python3.11 >/dev/null || need "Python 3.11 is missing" python3.11
python3.11 -c 'import ensurepip, venv' 2>/dev/null || need "Python's venv module is missing" python3.11-venv
command -v chromium >/dev/null || want "Chromium is missing, the console's tests would be skipped" chromium fonts-dejavu-core

command -v promtool >/dev/null || want "promtool is missing, the alerts' tests would be skipped" prometheus
command -v docker-compose >/dev/null || want "docker-compose is missing, a test of the compose file would be skipped" docker-compose

[ -x "$venv/bin/python" ] || python3.11 -m venv "$venv"
echo "setup: installing into $venv (about 3 GB with torch's CUDA build; minutes on a first run)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[service,trainer,job,wandb,dev]'
"$venv/bin/python" -W ignore -m compileall -qq -j 0 "$venv/lib" || true # on all cores, where pip uses one; some files are templates
echo "setup: ready, $("$venv/bin/python" --version) in $venv"
