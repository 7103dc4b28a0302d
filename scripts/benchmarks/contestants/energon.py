"""Megatron-Energon on the same tars, as its quickstart has it for captions; or with our decoder, uint8.

Its interpreter may be another one (``--energon_python``), as it brings many packages along. The caption comes as text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.trial import report


def batches(folder: str, batch: int, size_px: int, decoder: str) -> Iterator[tuple[int, int]]:
    """Pictures of endless batches from one worker; ``decoder`` is ``documented`` or ``ours``."""
    from megatron.energon import DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset

    encoder = DefaultTaskEncoder()
    if decoder == "ours":
        encoder.decoder = functools.partial(decoded, size_px=size_px)
    dataset = get_train_dataset(
        folder,
        batch_size=batch,
        shuffle_buffer_size=100,
        max_samples_per_sequence=100,
        task_encoder=encoder,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=1),
    )
    for arrived in get_loader(dataset):
        yield len(arrived.image), 0


def decoded(sample: dict[str, Any], size_px: int) -> dict[str, Any]:
    """A raw sample with picture and caption decoded."""
    from mm1.batch import ImageSpec
    from mm1.data.image import channels_first, prepare_into, room

    place_ISSC = room(1, size_px)
    prepare_into(place_ISSC[0], sample["0.jpg"], ImageSpec(size_px=size_px, tokens=1))
    return {**sample, "0.jpg": channels_first(place_ISSC)[0], "json": json.loads(sample["json"])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    report(batches)
