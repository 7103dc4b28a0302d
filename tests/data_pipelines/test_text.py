"""Text in every wrapping, streamed, and its stretches together the file."""

from __future__ import annotations

import gzip
import random
import tracemalloc
from pathlib import Path

import pytest

from data_pipelines.sources import PlainText, TextLines, sources
from data_pipelines.sources import text as text_module
from data_pipelines.sources.text import DOCUMENT_CHARACTERS
from tests.data_pipelines.web import json_lines, packed, parquet, put, read, stretched

ROWS = [{"content": f"Text {n}.", "url": f"http://x/{n}", "score": n / 7, "meta": {"a": 1}} for n in range(9)]
BOOK = "\n\n\n".join(f"Paragraph {n}:\nhead " + "word " * (n * 31 % 400) for n in range(200)).encode()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zip", "a.parquet", "a"])
def test_rows_of_text(tmp_path: Path, name: str) -> None:
    data = parquet(ROWS) if name.endswith("parquet") else packed(name, json_lines(ROWS))
    source = TextLines(put(tmp_path / name, data), column="content")
    drafts, lost = read(source)
    assert [draft.text for draft in drafts] == [row["content"] for row in ROWS]
    assert [draft.id for draft in drafts] == [f"a:{n}" for n in range(1, 10)]
    assert drafts[3].about == {"url": "http://x/3", "score": 3 / 7}
    assert lost == {}
    assert stretched(source, tmp_path / name, 2) == list(source.drafts())
    assert read(TextLines(tmp_path / name))[1] == {"wrong fields": [f"a:{n}" for n in range(1, 10)]}


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_plain_text_and_its_stretches(tmp_path: Path, name: str) -> None:
    damaged = BOOK.replace(b"Paragraph 70", b"Paragraph \xff")
    source = PlainText(put(tmp_path / name, packed(name, damaged)))
    drafts, lost = read(source)
    joined = "\n\n".join(draft.text for draft in drafts)
    assert joined.split("\n\n") == [part for part in BOOK.decode().split("\n\n\n") if "Paragraph 70" not in part]
    assert list(lost) == ["text is not UTF-8"]
    for rows in (1, 2, 5, 1000):
        assert stretched(source, tmp_path / name, rows) == list(source.drafts())
    assert len(source.spans(tmp_path / name, 2)) == (1 if name != "a.txt" else (len(drafts) + 1) // 2)


def test_a_raw_corpus_may_have_its_text_packed(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.gz", "c.txt.zst"):
        put(tmp_path / "text" / name, packed(name, b"Plain words."))
    for name in ("d.jsonl", "e.jsonl.gz"):
        put(tmp_path / "text" / name, packed(name, json_lines([{"text": "A row."}])))
    put(tmp_path / "text/f.parquet", parquet([{"text": "A row."}]))
    put(tmp_path / "text/held_val.jsonl.gz", gzip.compress(json_lines([{"text": "Held out."}])))
    put(tmp_path / "text/README.md", b"no text to learn")
    found = [read(source) for source in sources(tmp_path)["text"]]
    assert [[draft.id for draft in drafts] for drafts, _ in found] == [["d:1", "e:1", "f:1"], ["a:1", "b:1", "c:1"]]
    assert found[0][1] == {"file held out by its name": ["held_val:1"]}


def test_text_without_blank_lines_is_still_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "PARAGRAPH_BYTES", 1000)
    lines = [f"Line {n} of one long paragraph." for n in range(2000)]
    source = PlainText(put(tmp_path / "a.txt", "\n".join(lines).encode()))
    drafts, _ = read(source)
    assert [line for draft in drafts for line in draft.text.split("\n") if line] == lines
    assert max(len(draft.text) for draft in drafts) < DOCUMENT_CHARACTERS + 2000
    assert stretched(source, tmp_path / "a.txt", 2) == list(source.drafts())


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path, name: str) -> None:
    generator = random.Random(0)
    paragraphs = [" ".join(f"{generator.getrandbits(24)}" for _ in range(200)) for _ in range(6_000)]
    data = json_lines({"text": text} for text in paragraphs) if "jsonl" in name else "\n\n".join(paragraphs).encode()
    path = put(tmp_path / name, packed(name, data))
    del data, paragraphs
    source = TextLines(path) if "jsonl" in name else PlainText(path)
    tracemalloc.start()
    characters = sum(len(draft.text) for draft in source.drafts())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters > 8_000_000
    assert peak < 4_000_000
