"""Readers, one class for each kind of file of a raw corpus folder."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.sources.base import Draft, Packed, Rejection, Source
from data_pipelines.sources.captions import Captions
from data_pipelines.sources.interleaved import Interleaved
from data_pipelines.sources.scored import scored_pictures
from data_pipelines.sources.sft import Conversations
from data_pipelines.sources.tars import CaptionTars
from data_pipelines.sources.text import PlainText, TextLines

KINDS = (Captions, CaptionTars, Interleaved, TextLines, PlainText, Conversations)

__all__ = ["KINDS", "Draft", "Packed", "Rejection", "Source", "scored_pictures", "sources"]


def sources(corpus: Path, captions_per_image: int = 1) -> dict[str, list[Source]]:
    """The readers of a raw corpus folder by stream, those that find files."""
    found: dict[str, list[Source]] = {}
    for kind in KINDS:
        reader = kind(corpus, captions_per_image)
        if reader.files():
            found.setdefault(kind.stream, []).append(reader)
    return found
