"""mm1: the open training pipeline for multimodal LLMs after Apple's MM1 (arXiv 2403.09611).

Importing this package imports no torch; :func:`load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mm1.infer.assistant import Assistant, Dtype

__version__ = "0.1.0"


def load(path: str | Path, device: str = "cpu", dtype: Dtype | None = None) -> Assistant:
    """Open a trained model to talk to: ``mm1.load("last.ckpt").generate([picture], "What is this?")``.

    Args:
        path: A training checkpoint (``*.ckpt``) or a folder written by ``mm1-convert export``.
        device: Where the model runs, in torch's words (``cpu``, ``cuda``).
        dtype: Type of its weights, ``bfloat16`` or ``float32``; that of the file if not given.

    Raises:
        mm1.errors.UserError: The path is no checkpoint of ours, or it does not fit its own config.
    """
    from mm1.infer.assistant import load_assistant

    return load_assistant(path, device=device, dtype=dtype)
