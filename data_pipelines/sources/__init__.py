"""Readers, one class for each kind of raw file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Bytes, Draft, Packed, Place, Rejection, Source, Span
from data_pipelines.sources.caption_tables import CaptionTable, CaptionTsv
from data_pipelines.sources.captions import Captions
from data_pipelines.sources.fewshot import CaptionRuns, QuestionRuns
from data_pipelines.sources.html import HtmlPages, HtmlRows, WarcPages
from data_pipelines.sources.img2dataset import CaptionFolders, CaptionParquet
from data_pipelines.sources.interleaved import Interleaved
from data_pipelines.sources.messages import Answered, Messages
from data_pipelines.sources.mint1t import Mint1tPages
from data_pipelines.sources.mmc4 import MMC4
from data_pipelines.sources.obelics import ParallelLists
from data_pipelines.sources.questions import Questions
from data_pipelines.sources.scored import scored_pictures
from data_pipelines.sources.sft import Conversations, Mix
from data_pipelines.sources.tars import CaptionTars
from data_pipelines.sources.text import PlainText, TextLines
from mm1.errors import UserError

KINDS: tuple[type[Source], ...] = (
    Captions, CaptionTars, Interleaved, TextLines, PlainText, Conversations, Questions, CaptionRuns, QuestionRuns
)  # fmt: skip

__all__ = [
    "KINDS",
    "MMC4",
    "Answered",
    "Bytes",
    "CaptionFolders",
    "CaptionParquet",
    "CaptionTable",
    "CaptionTars",
    "CaptionTsv",
    "Captions",
    "Conversations",
    "Draft",
    "HtmlPages",
    "HtmlRows",
    "Interleaved",
    "Messages",
    "Mint1tPages",
    "Mix",
    "Packed",
    "ParallelLists",
    "Place",
    "PlainText",
    "Rejection",
    "Source",
    "Span",
    "TextLines",
    "WarcPages",
    "scored_pictures",
    "sources",
]


def sources(corpus: Path, captions_per_image: int = 1, also: Collection[str] = ()) -> dict[str, list[Source]]:
    """The readers of a raw corpus folder by stream, those that find files.

    Args:
        corpus: The raw corpus folder.
        captions_per_image: How many captions of a picture become documents.
        also: Streams that are read only when asked for, such as ``vqa`` and ``fewshot``.

    Raises:
        UserError: ``also`` names no such stream.
    """
    corpus = corpus.resolve()
    opt_in = {kind.stream for kind in KINDS if kind.opt_in}
    if unknown := set(also) - opt_in:
        raise UserError(f"also names the stream {min(unknown)!r}; expected some of {', '.join(sorted(opt_in))}")
    found: dict[str, list[Source]] = {}
    for kind in KINDS:
        if kind.opt_in and kind.stream not in also:
            continue
        files = sorted(path for path in corpus.glob(kind.pattern) if kind.takes(path))
        if files:
            several: dict[str, Any] = {"captions_per_image": captions_per_image} if kind is Captions else {}
            found.setdefault(kind.stream, []).append(kind(files, root=corpus, **several))
    return found
