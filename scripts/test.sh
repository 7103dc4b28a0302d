#!/usr/bin/env bash
# Install mm1 into .venv and run its tests.
#   bash scripts/test.sh           the tests that every change must pass (at most 10 minutes on 2 cores, no network)
#   bash scripts/test.sh --all     the slow ones too, and the quickstart with its bar asserted (at most 50 minutes)
#   bash scripts/test.sh ARGS      anything else goes to pytest, for example: bash scripts/test.sh tests/mm1/model -k rope
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/install.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two test processes on two cores; and sums in one order
pytest=(.venv/bin/python -m pytest --numprocesses 2 --dist worksteal --durations 10)
if [ "${1:-}" = --all ]; then
  shift
  echo "== the quickstart, its bar asserted"
  bash scripts/quickstart.sh --out runs/test-quickstart --assert-bar
  echo "== all tests"
  "${pytest[@]}" -m "not gpu" "$@" && exit
  echo "== those that failed once more, one at a time: a busy machine upsets tests of kills, ranks and browsers"
  exec .venv/bin/python -m pytest -m "not gpu" --last-failed --last-failed-no-failures none "$@"
fi
exec "${pytest[@]}" "$@"
