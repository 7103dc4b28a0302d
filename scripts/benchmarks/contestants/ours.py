"""Ours: one worker of the loader that training uses, with mixture, tokenising, packing and collating."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.trial import report
from mm1.batch import ImageSpec
from mm1.data.shards import read_manifest
from mm1.data.streams import Loader, Recipe, Windows


def batches(corpus: str, batch: int, workers: int = 1) -> Iterator[tuple[int, int]]:
    """Pictures and positions of endless micro-batches of caption pairs, ``batch`` pictures each."""
    manifest = read_manifest(corpus)
    per_row = manifest["images_per_row"]
    spec = ImageSpec(size_px=manifest["image_px"], tokens=manifest["tokens_per_image"])
    recipe = Recipe(
        corpus=Path(corpus),
        image_spec=spec,
        weights={"captions": 1},
        row_tokens=manifest["row_tokens"],
        images_per_row=per_row,
        rows_per_step=max(1, batch // per_row),
    )
    windows = Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    for arrived in Loader(windows, workers):
        yield len(arrived.images_ICHW), arrived.tokens


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(batches)
