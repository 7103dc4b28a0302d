#!/usr/bin/env bash
# Trained parts, real photographs, one GPU: DINOv2-small and SmolLM2-135M joined, pre-trained, tuned and scored.
#   bash scripts/real_run.sh --data DIR                     everything (docs/real_run.md); DIR as docs/data.md lays it out
#   bash scripts/real_run.sh --data DIR --only dense        one side; the others may follow on another day
#   bash scripts/real_run.sh --help                         every option
# A rerun goes on where the last one stopped.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/install.sh"
bash "$root/scripts/install_parts.sh"
exec "$root/.venv/bin/mm1-study" real-run "$@"
