"""Which reader takes a file, told from what stands in it. A new kind of file is one more line in :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.sniff import ADDRESS, Seen

PICTURES = {"jpg", "jpeg", "png", "webp", "gif"}
ROWS = ("lines", "list", "parquet")
SCORES = {"uid", "similarity", "punsafe", "pwatermark", "NSFW", "clip_similarity_vitb32", "clip_l14_similarity_score"}
"""Columns of tables of captioned addresses; tables of web pages have a url and a text too, and none of these."""

Settings = Callable[[Seen], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file that has a reader.

    Args:
        title: What its files hold, for people.
        reader: Its class in :mod:`data_pipelines.sources`.
        mark: What it is told by, for people.
        holds: The same for what was seen.
        settings: Arguments of the reader besides ``files`` and ``pictures``, from what was seen.
    """

    title: str
    reader: str
    mark: str
    holds: Callable[[Seen], bool]
    settings: Settings = lambda seen: {}


def store(seen: Seen, pictures: Path) -> dict[str, Any]:
    """Where pictures are that rows name, as a YAML says it: files called so, or by a hash where rows name addresses."""
    values = [one for value in seen.fields.values() for one in (value if isinstance(value, list) else [value])]
    by_address = seen.holder == "parquet" or any(isinstance(one, str) and ADDRESS.match(one) for one in values)
    kind = "HashedPictures" if by_address else "NamedPictures"
    return {"class_path": f"data_pipelines.picture_store.{kind}", "init_args": {"folder": str(pictures)}}


def _tsv(seen: Seen) -> dict[str, Any]:
    return {"columns": ["url", "caption"] if ADDRESS.match(seen.fields["0"].strip()) else ["caption", "url"]}


def _rows(seen: Seen, *names: str) -> bool:
    return seen.holder in ROWS and seen.has(*names)


def _caption_table(seen: Seen) -> bool:
    named = seen.has("URL", "TEXT") or (seen.has("url", "text") and bool(SCORES & seen.fields.keys()))
    return seen.holder in ROWS and (
        named or seen.has("url", "caption") or seen.has("image", "blip_caption") or seen.has("image", "caption")
    )


def _answered(seen: Seen) -> bool:
    texts = seen.fields.get("texts")
    if isinstance(texts, str):  # the type of a column
        return "user" in texts
    return isinstance(texts, list) and bool(texts) and isinstance(texts[0], dict)


def _caption_parquet(seen: Seen) -> bool:
    pictures = [kind for name, kind in seen.fields.items() if name in PICTURES | {"image"}]
    has_bytes = any(str(kind).startswith(("binary", "large_binary", "struct")) for kind in pictures)
    return seen.holder == "parquet" and has_bytes and (seen.has("caption") or seen.has("text"))


FORMATS: tuple[Format, ...] = (
    Format(
        "pictures with captions, one picture a line",
        "Captions",
        "rows with image and captions",
        lambda seen: seen.holder == "lines" and seen.has("image", "captions"),
    ),
    Format(
        "documents with multi-page TIFFs, MINT-1T's PDF part",
        "Mint1tPages",
        "tars of KEY.json beside KEY.tiff",
        lambda seen: seen.holder == "tar" and bool(seen.kinds & {"tiff", "tif"}),
    ),
    Format(
        "web documents with matched sentences, MMC4 in tars",
        "MMC4",
        "tars of KEY.json with text_list and image_info",
        lambda seen: seen.holder == "tar" and seen.has("text_list", "image_info"),
    ),
    Format(
        "captioned pictures in tars, as img2dataset and webdataset write them",
        "CaptionTars",
        "tars of KEY.jpg beside KEY.txt or KEY.json",
        lambda seen: seen.holder == "tar" and bool(seen.kinds & PICTURES),
    ),
    Format(
        "web documents with matched sentences, MMC4",
        "MMC4",
        "rows with text_list and image_info",
        lambda seen: _rows(seen, "text_list", "image_info"),
    ),
    Format(
        "pictures with questions and answers, as The Cauldron and FineVision keep them",
        "Answered",
        "rows with images and texts of user and assistant",
        lambda seen: _rows(seen, "texts") and _answered(seen),
    ),
    Format(
        "web documents in parallel lists: OBELICS, OmniCorpus, MINT-1T",
        "ParallelLists",
        "rows with images and texts",
        lambda seen: _rows(seen, "images", "texts"),
    ),
    Format(
        "documents of text and pictures, one a line",
        "Interleaved",
        "rows with items",
        lambda seen: seen.holder == "lines" and isinstance(seen.fields.get("items"), list),
    ),
    Format(
        "conversations, as LLaVA and ShareGPT keep them",
        "Conversations",
        "rows with conversations",
        lambda seen: seen.holder in (*ROWS, "object") and seen.has("conversations"),
    ),
    Format(
        "conversations, as OpenAI and ms-swift keep them",
        "Messages",
        "rows with messages",
        lambda seen: seen.holder in (*ROWS, "object") and seen.has("messages"),
    ),
    Format(
        "captioned pictures in parquet, as img2dataset writes them",
        "CaptionParquet",
        "parquet with the bytes of pictures and caption",
        _caption_parquet,
    ),
    Format(
        "captions with addresses or names of pictures: LAION, COYO, DataComp, LLaVA's CC3M",
        "CaptionTable",
        "rows with url and text and scores, URL and TEXT, or image and caption",
        _caption_table,
    ),
    Format(
        "captions with addresses of pictures: CC3M, CC12M",
        "CaptionTsv",
        "tables of caption and address",
        lambda seen: seen.holder == "table" and len(seen.fields) == 2 and "tabs" in seen.told,
        _tsv,
    ),
    Format(
        "pages of HTML, one a row",
        "HtmlRows",
        "rows with html",
        lambda seen: _rows(seen, "html"),
    ),
    Format("pages of HTML", "HtmlPages", "HTML", lambda seen: seen.holder == "html"),
    Format("pages of a crawl", "WarcPages", "WARC", lambda seen: seen.holder == "warc"),
    Format(
        "text, a document a row",
        "TextLines",
        "rows with text",
        lambda seen: _rows(seen, "text"),
    ),
    Format(
        "text, a document a row",
        "TextLines",
        "rows with content",
        lambda seen: _rows(seen, "content"),
        lambda seen: {"column": "content"},
    ),
    Format("plain text", "PlainText", "text", lambda seen: seen.holder == "text"),
)
"""In the order in which they are tried."""
