#!/usr/bin/env bash
# From nothing to a few-shot report, dense beside MoE: installs mm1 into .venv and runs the main job.
#   bash scripts/quickstart.sh                     on the generated world "scenes"
#   bash scripts/quickstart.sh --data DIR          on your own data (layout: docs/data.md)
#   bash scripts/quickstart.sh --help              every option
# A rerun picks up where the last one stopped. The report's path is the last line.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/install.sh"
exec "$root/.venv/bin/mm1-study" quickstart "$@"
