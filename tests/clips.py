"""A tiny CLIP of open_clip's own making, its weights in a file as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import safetensors.torch
import torch

NAME = "tiny-clip-for-similarity"
VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Make it known to open_clip as ``NAME``; the file of its weights."""
    (folder / f"{NAME}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(seed)
    model = open_clip.create_model(NAME)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # else all texts are much alike
    safetensors.torch.save_file(model.state_dict(), folder / "clip.safetensors")
    return folder / "clip.safetensors"
