"""The plain pipeline of webdataset's documentation: PIL, resize, float, Normalize in the worker; or the same in uint8.

The caption comes as text: nothing is tokenised or packed here.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.trial import report

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def caption(document: dict[str, Any]) -> str:
    """The text of one of our caption documents."""
    return next(item["text"] for item in document["items"] if "text" in item)


def batches(corpus: str, batch: int, size_px: int, floats: bool) -> Iterator[tuple[int, int]]:
    """Pictures of endless batches from one DataLoader worker."""
    import webdataset as wds
    from torchvision import transforms

    steps: list[Any] = [transforms.Resize((size_px, size_px), transforms.InterpolationMode.BICUBIC)]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    tars = sorted(glob.glob(f"{corpus}/captions/train-*.tar"))
    dataset = (
        wds.WebDataset(tars, shardshuffle=False, empty_check=False)
        .repeat()
        .shuffle(1000)
        .decode("pil")
        .to_tuple("0.jpg", "json")
        .map_tuple(transforms.Compose(steps), caption)
        .batched(batch)
    )
    for pictures, _ in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1):
        yield len(pictures), 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(batches)
