#!/usr/bin/env bash
# Make .venv in the checkout with mm1 and everything it needs, or do nothing if it is there and up to date.
#   bash scripts/install.sh            PYTHON=python3.12 chooses the interpreter, UV_TORCH_BACKEND=cpu PyTorch's small build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  for PYTHON in python3 python3.12 python3.11 python none; do
    [ "$PYTHON" = none ] && { echo "error: found no Python 3.11 or 3.12; set PYTHON to the path of one" >&2; exit 2; }
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && break
  done
fi
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' ||
  { echo "error: $PYTHON is $("$PYTHON" -V 2>&1); expected Python 3.11 or 3.12 (set PYTHON)" >&2; exit 2; }

stamp=$(cat pyproject.toml scripts/constraints.txt scripts/repair_torchvision.py | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat .venv/installed 2>/dev/null)" = "$stamp" ]; then exit 0; fi

echo "installing mm1 into $PWD/.venv ($("$PYTHON" -V))"
"$PYTHON" -m venv .venv || { echo "error: $PYTHON could not make .venv; on Debian and Ubuntu install python3-venv" >&2; exit 2; }
.venv/bin/python -m pip install --quiet --upgrade uv
# uv reads its own variable for extra package folders; take over pip's where only that is set.
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint scripts/constraints.txt --editable ".[test]"
.venv/bin/python scripts/repair_torchvision.py
echo "$stamp" > .venv/installed
