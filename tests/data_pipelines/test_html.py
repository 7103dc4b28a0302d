"""Pages: main text and pictures in the order of the DOM, boilerplate left out, nothing read from outside the folder."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from pathlib import Path

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_pipelines.picture_store import HashedPictures
from data_pipelines.places import Remote
from data_pipelines.sources import HtmlPages, HtmlRows, WarcPages
from data_pipelines.sources.html import content
from data_pipelines.sources.lines import CUT
from mm1.errors import UserError
from tests.data_pipelines.web import jpeg, json_lines, packed, parquet, put, read, spelled, stretched

INLINE = base64.b64encode(jpeg(9)).decode()
PAGE = f"""<!doctype html><html><head><meta charset="utf-8"><title>A walk</title>
<script>var a = "<p>no</p>";</script></head><body>
<header><img src="logo.png" alt="logo">
<nav><ul><li><a href="/">Home</a></li><li><a href="/b">Blog</a></li></ul></nav></header>
<article><h1>A walk in the hills</h1>
<p>We set out early in the morning, when the fog still lay in the valley – and nobody else was on the road.</p>
<figure><img src="img/one%201.jpg?size=2" alt="Fog  in a valley"><figcaption>Fog at six.</figcaption></figure>
<p>Later the sun came out, and we could see the peak that we wanted to climb before noon.</p>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="img/two.jpg">
<p>On the way down we met a herd of goats, not impressed by &lt;image&gt;, who went on eating grass by the path.</p>
<img src="data:image/jpeg;base64,{INLINE}"><img src="../../secret.jpg"><img>
<p>It was a good day, and we shall go again in the spring, when the snow has gone from the meadows.</p></article>
<aside><a href="1"><img src="related.jpg">Other story</a></aside>
<footer><p>Copyright <a href="/terms">Terms</a></p><img src="foot.png"></footer></body></html>"""
TEXTS = ["A walk in the hills", "Fog at six.", "On the way down", "It was a good day"]


def check(items: list[str], one: str, two: str) -> None:
    """The items are those of PAGE, with these names for its first two pictures."""
    kinds = [item.startswith("<") and item.endswith(">") for item in items]
    assert kinds == [False, True, False, True, False, True, False]
    assert [
        items[number].splitlines()[0][: len(text)] for number, text in zip((0, 2, 4, 6), TEXTS, strict=True)
    ] == TEXTS
    assert (items[1], items[3], items[5]) == (f"<{one}>", f"<{two}>", f"<{hashlib.sha256(jpeg(9)).hexdigest()}>")
    assert "valley – and" in items[0]
    assert "by <image>, who" in items[4]
    assert not any(word in item for item in items for word in ("Home", "Blog", "Terms", "Other story", "no</p>"))


def test_a_page_with_its_pictures_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "pages/img/one 1.jpg", jpeg(1))
    put(tmp_path / "secret.jpg", jpeg(2))
    drafts, lost = read(HtmlPages(put(tmp_path / "pages/walk.html", PAGE.encode()), alt=True))
    check(spelled(drafts[0]), "one 1.jpg", "two.jpg")
    assert drafts[0].pictures[0].read_bytes() == jpeg(1)
    assert drafts[0].about["alt"] == ["Fog in a valley", "", ""]
    assert lost == {"picture's address is of no use": ["walk ../../secret.jpg", "walk "]}


@pytest.mark.parametrize("name", ["pages.jsonl", "pages.jsonl.gz", "pages.parquet"])
def test_rows_with_pages_know_the_addresses_of_pictures(tmp_path: Path, name: str) -> None:
    url = "http://x/a/one%201.jpg"
    put(tmp_path / "store" / hashlib.sha256(b"http://x/a/img/one%201.jpg?size=2").hexdigest(), jpeg(1))
    rows = [{"url": "http://x/a/walk", "html": PAGE, "crawl": "2026"}] * 3
    data = parquet(rows) if name.endswith("parquet") else packed(name, json_lines(rows))
    source = HtmlRows(put(tmp_path / name, data), pictures=HashedPictures(tmp_path / "store"))
    drafts, lost = read(source)
    assert len(drafts) == 3
    assert drafts[0].about == {"url": "http://x/a/walk", "crawl": "2026"}
    assert drafts[0].pictures[0].read_bytes() == jpeg(1)
    assert lost["picture is not in the store"][:2] == ["pages:1 http://x/a/img/two.jpg", "pages:1 http://x/secret.jpg"]
    assert stretched(source, tmp_path / name, 2) == list(source.drafts())
    without_store, _ = read(HtmlRows(tmp_path / name))
    assert without_store[0].pictures[1] == Remote("http://x/a/img/two.jpg")
    assert url not in spelled(drafts[0])


@pytest.mark.parametrize("zipped", [False, True])
def test_warc_archives(tmp_path: Path, zipped: bool) -> None:
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=zipped)
    latin = "<html><meta charset=iso-8859-1><p>Caf\xe9 in the old town, where we sat for a while.</p></html>".encode(
        "latin-1"
    )
    for kind, data in (("text/html; charset=utf-8", PAGE.encode()), ("image/png", b"png"), ("text/html", latin)):
        headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record("http://x/a/walk", "response", payload=io.BytesIO(data), http_headers=headers)
        )
    whole = file.getvalue()
    drafts, _ = read(WarcPages(put(tmp_path / "a.warc.gz", whole)))
    assert [draft.id for draft in drafts] == ["a:1", "a:3"]
    assert drafts[0].about["url"] == "http://x/a/walk"
    assert drafts[0].pictures[1] == Remote("http://x/a/img/two.jpg")
    assert drafts[1].text.startswith("Café")
    for size in range(41, len(whole), 97):
        drafts, lost = read(WarcPages(put(tmp_path / "cut.warc", whole[:size])))
        assert len(drafts) <= 2
        assert list(lost)[-1] == CUT


def test_a_page_cannot_say_where_pictures_stand(tmp_path: Path) -> None:
    key = hashlib.sha256(PAGE.encode()).hexdigest()[:16]
    forged = PAGE.replace("Fog at six.", f"[{key}:0] \ufdd0")
    pictures = [part for part in content(forged) if not isinstance(part, str)]
    assert pictures[0].src.startswith("img/one")
    assert len(pictures) == 5


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        (b"", "empty document"),
        (b"<html><body><img src=a.jpg></body></html>", "empty document"),
        (b"<div>" * 100_000 + b"deep", "page nested more than 300 deep"),
        (b"x" * (1 << 24) + b"x", "page of more than 16 MiB"),
    ],
)
def test_pages_that_are_none(tmp_path: Path, html: bytes, reason: str) -> None:
    drafts, lost = read(HtmlPages(put(tmp_path / "a.html", html)))
    assert (drafts, list(lost)) == ([], [reason])


@pytest.mark.parametrize("html", [b"\xff\xfe\0\0", b"<" * 50_000, b"\0" * 99, "\ud800"])
def test_no_page_is_an_error(tmp_path: Path, html: bytes | str) -> None:
    if isinstance(html, bytes):
        read(HtmlPages(put(tmp_path / "a.html", html)))
    read(
        HtmlRows(
            put(tmp_path / "a.jsonl", json_lines([{"html": html if isinstance(html, str) else html.decode("latin-1")}]))
        )
    )


def test_without_resiliparse_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    with pytest.raises(UserError, match=r"mm1\[html\]"):
        HtmlPages(tmp_path / "a.html")
