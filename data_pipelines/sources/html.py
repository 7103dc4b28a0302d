"""Pages of the web with their pictures, in the order of the DOM, from HTML files, rows with HTML, and WARC archives.

The main text is found by resiliparse (Bevendorff et al. 2018), and not by trafilatura: on a hundred pages of
trafilatura's own evaluation set it took 4.5 against 18 ms a page and kept pictures on 79 against 64 of them, with the
captions of figures, which trafilatura leaves out; the price is somewhat more that is not the article. It is one
library without dependencies besides its own reader of WARC. Each picture is given a word that no page contains as its
alternative text, which then stands where the picture stood.

    <nav>Home</nav><p>It rained.</p><img src="a.jpg"><p>A bridge.</p>     ->     "It rained."  <a.jpg>  "A bridge."
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urljoin, urlsplit

from data_pipelines.picture_store import PictureStore
from data_pipelines.sources.base import WHOLE, Draft, Place, Rejection, Rows, Span, WrongFields
from data_pipelines.sources.lines import CUT, FAULTS, damage, stem, unpacked
from data_pipelines.sources.pictured import Pictured, scalars
from mm1.errors import UserError
from mm1.sample import Text

PAGE_BYTES = 1 << 24
TOO_LONG = f"page of more than {PAGE_BYTES >> 20} MiB"
RECORD_END = b"\r\n\r\n"
HTML = ("text/html", "application/xhtml+xml")
WHERE = ("data-src", "data-original", "data-lazy-src", "src")  # where pages that load late say what they will show
NESTED = 300  # finding what is boilerplate takes the square of it; browsers stop at 512
DEEP = " > ".join(["*"] * NESTED)
TOO_DEEP = f"page nested more than {NESTED} deep"
BOILERPLATE = ["nav", "footer", "aside", "body > header"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a page.

    Args:
        src: Where it is, as the page says it.
        alt: What it shows, as the page says it; may be empty.
    """

    src: str
    alt: str


def content(page: str) -> list[str | Picture]:
    """The main content of a page: stretches of text, and pictures, in the order of the DOM.

    Raises:
        ValueError: It is nested too deeply. The message is the reason, to be counted.
        UserError: resiliparse is not installed.
    """
    html, extract = _resiliparse()
    page = page.encode(errors="replace").decode()  # half a surrogate pair is no text
    tree = html.HTMLTree.parse(page)
    if tree.document.query_selector(DEEP) is not None:
        raise ValueError(TOO_DEEP)
    key = hashlib.sha256(page.encode(errors="surrogatepass")).hexdigest()[:16]
    pictures = []
    for number, image in enumerate(tree.document.get_elements_by_tag_name("img")):
        pictures.append(Picture(_src(image), " ".join((image.getattr("alt") or "").split())))
        image["alt"] = f"[{key}:{number}]"
    text = extract(tree, main_content=True, alt_texts=True, comments=False, skip_elements=BOILERPLATE)
    found: list[str | Picture] = []
    for number, part in enumerate(re.split(rf"\[{key}:(\d+)\]", text)):
        if number % 2:
            found.append(pictures[int(part)])
        elif part.strip():
            found.append(re.sub(r"\n{3,}", "\n\n", part.strip()))
    return found


class Pages(Pictured):
    """What kinds of files with pages share.

    Args:
        files: As for every source.
        root: As for every source.
        stream: As for every source.
        pictures: Where pictures are, by their URL, or as the page calls them where no URL of the page is known. Without
            it they are files beside the page, or else asked for.
        alt: Whether what pages say of their pictures is kept, in ``about["alt"]``; it is never part of the text.
    """

    stream = "interleaved"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        pictures: PictureStore | None = None,
        alt: bool = False,
    ) -> None:
        super().__init__(files, root=root, stream=stream, pictures=pictures)
        self.alt = alt
        _resiliparse()

    def page(self, path: Path, place: str, html: bytes | str, about: dict[str, Any]) -> Draft | Rejection:
        """The document that a page becomes."""
        if len(html) > PAGE_BYTES:
            return Rejection(place, TOO_LONG)
        try:
            parts = content(_decoded(html) if isinstance(html, bytes) else html)
        except ValueError as error:
            return Rejection(place, str(error))
        url = about.get("url")
        items: list[Text | Place] = []
        lost: list[Rejection] = []
        said: list[str] = []
        for part in parts:
            if isinstance(part, str):
                items.append(Text(part))
                continue
            try:
                found = self.shown(path, place, _address(part.src, url if isinstance(url, str) else None))
            except WrongFields:
                found = Rejection(f"{place} {part.src:.200}", "picture's address is of no use", fault=False)
            if isinstance(found, Rejection):
                lost.append(found)
            else:
                items.append(found)
                said.append(part.alt)
        if not any(isinstance(item, Text) for item in items):
            return Rejection(place, "empty document")
        about = about | ({"alt": said} if self.alt else {})
        return Draft(place, self.stream, tuple(items), str(url or place), loose=True, about=about, lost=tuple(lost))


class HtmlPages(Pages):
    """HTML files, a document each."""

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        if path.stat().st_size > PAGE_BYTES:
            yield Rejection(path.name, TOO_LONG)
        else:
            yield self.page(path, stem(path), path.read_bytes(), {})


class HtmlRows(Pages, Rows):
    """Rows with ``html``, and ``url`` if known: JSON lines or parquet."""

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        html = row.get("html")
        if not isinstance(html, str | bytes):
            raise WrongFields
        yield self.page(path, place, html, scalars(row, "html"))


class WarcPages(Pages):
    """WARC archives as crawlers write them, plain, gzip or Zstandard: each answer that is HTML."""

    def read(self, path: Path, span: Span = WHOLE) -> Iterator[Draft | Rejection]:
        from fastwarc.warc import ArchiveIterator, WarcRecordType

        number = 0
        with path.open("rb") as file:
            stream: Any = _Ended(unpacked(file))
            records = ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False)
            while True:
                number += 1
                place = f"{stem(path)}:{number}"
                try:
                    if (record := next(records, None)) is None:
                        break
                    found = _response(record)
                except FAULTS as error:
                    yield Rejection(place, damage(error).reason)
                    return
                if isinstance(found, str):
                    yield Rejection(place, found)
                elif found:
                    yield self.page(path, place, *found)
            if stream.last not in (b"", RECORD_END):
                yield Rejection(place, CUT)


class _Ended:
    """A stream that knows what it ended with, since fastwarc takes a cut between two records for the end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._at, self.last = stream, 0, b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        self.last = (self.last + data)[-len(RECORD_END) :]
        return data

    def tell(self) -> int:
        return self._at


def _response(record: Any) -> tuple[bytes, dict[str, Any]] | str | None:
    """The page that a record of a WARC holds, and where it was, if it holds one; or why not.

    Raises:
        OSError: The record is not whole.
    """
    size = record.content_length
    if size > PAGE_BYTES:
        return TOO_LONG
    record.freeze()
    if record.content_length < size or "Content-Length" not in record.headers:
        raise OSError(CUT)
    record.parse_http(auto_decode="all")
    if (record.http_content_type or "").split(";")[0] not in HTML:
        return None
    return record.reader.read(PAGE_BYTES + 1), {"url": record.headers.get("WARC-Target-URI", "")}


def _resiliparse() -> tuple[Any, Any]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse import html
    except ImportError:
        raise UserError("HTML is read by resiliparse, which is not installed; run pip install 'mm1[html]'") from None
    return html, extract_plain_text


def _decoded(html: bytes) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    return bytes_to_str(html, detect_encoding(html, from_html_meta=True) or "utf-8")


def _src(image: Any) -> str:
    """Where the picture is that an element shows."""
    for attribute in WHERE:
        if value := (image.getattr(attribute) or "").strip():
            return value
    candidates = (image.getattr("srcset") or "").split(",")
    return (candidates[0].split() or [""])[0]


def _address(src: str, url: str | None) -> str:
    """A URL where that of the page is known; else what is called so beside the page."""
    if src.startswith("data:") or not src:
        return src
    try:
        if url or urlsplit(src).netloc:
            return urljoin(url or "https:", src)
        return unquote(urlsplit(src).path)
    except ValueError:  # brackets that hold no address
        return ""
