#!/usr/bin/env bash
# Makes what programs of bundles need: bubblewrap, and .venv-programs, the default runtime, with exactly the pinned
# packages. It has no pip, and nothing of the services' own packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# Programs run as a user of their own, who has to be able to read it.
umask 022

if ! command -v bwrap >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing bubblewrap"
    apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null
  else
    echo "bubblewrap is missing: without it environments that bring programs are refused" >&2
    echo "install it (Debian: apt-get install bubblewrap), nothing else has to be done again" >&2
  fi
fi

echo "setting up .venv-programs (under a minute the first time)"
"${PYTHON:-python3}" -m venv --without-pip --clear .venv-programs
.venv/bin/python -m pip --python .venv-programs/bin/python install --quiet --disable-pip-version-check \
  --only-binary :all: --require-hashes -r requirements/programs.txt
