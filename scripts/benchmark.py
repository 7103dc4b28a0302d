"""The door to the benchmarks: a loader worker beside its bound and its peers, the pipeline, a sparse layer.

    python scripts/benchmark.py data --seconds 5 --repeats 5
    python scripts/benchmark.py pipeline
    python scripts/benchmark.py moe                # a sparse layer, needs a GPU
    python scripts/benchmark.py moe_kernels        # its pieces beside torch's operators, needs a GPU
    python scripts/benchmark.py decoder            # a step of a sparse decoder beside its dense twin, needs a GPU
    python scripts/benchmark.py train              # a whole training step beside its peer, needs a GPU
    python scripts/benchmark.py mix                # the same on packed rows of a mix, needs a GPU
    python scripts/benchmark.py plan_check         # what mm1-study plan says beside what runs take, needs a GPU
    python scripts/benchmark.py checkpoint         # how long a checkpoint of 2B stops training, needs a GPU
    python scripts/benchmark.py generate           # eight-shot captioning beside transformers' generate, needs a GPU
    python scripts/benchmark.py answers CKPT DATA  # the same captions by both of a trained model, and their CIDEr
    torchrun --nproc_per_node 2 scripts/benchmark.py experts    # sparse layers whose experts GPUs share
    torchrun --nproc_per_node 2 scripts/benchmark.py scale      # a whole training step on one GPU and on several

docs/benchmarks says what the figures mean. Every command appends rows to a CSV file there, with machine and date.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.answers import answers  # noqa: E402
from benchmarks.checkpoint import checkpoint  # noqa: E402
from benchmarks.data import data  # noqa: E402
from benchmarks.experts_parallel import experts  # noqa: E402
from benchmarks.generate import generate  # noqa: E402
from benchmarks.mix import mix  # noqa: E402
from benchmarks.moe import moe  # noqa: E402
from benchmarks.moe_kernels import moe_kernels  # noqa: E402
from benchmarks.pipeline import pipeline  # noqa: E402
from benchmarks.plan_check import plan_check  # noqa: E402
from benchmarks.scale import scale  # noqa: E402
from benchmarks.sparse_decoder import decoder  # noqa: E402
from benchmarks.train import train  # noqa: E402

from mm1.errors import door, underscored  # noqa: E402


def main() -> None:
    """Run a command."""
    from jsonargparse import auto_cli

    commands = {
        "data": data,
        "pipeline": pipeline,
        "moe": moe,
        "moe_kernels": moe_kernels,
        "decoder": decoder,
        "experts": experts,
        "scale": scale,
        "plan_check": plan_check,
        "train": train,
        "mix": mix,
        "checkpoint": checkpoint,
        "generate": generate,
        "answers": answers,
    }
    door(lambda: auto_cli(commands, args=underscored(sys.argv[1:]), prog="benchmark.py", exit_on_error=False))


if __name__ == "__main__":
    main()
