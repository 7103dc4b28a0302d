"""A page of samples: what it shows is what training gets, and nothing on it is obeyed by a browser."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.contents import contents_of
from data_pipelines.pipeline import Settings, build
from data_pipelines.preview import preview
from data_pipelines.shown import Shown, Word, shown, spelled, visible, words
from mm1.batch import IMAGE
from mm1.data.shards import ShardSet
from mm1.data.tokenizer import Tokenizer, train
from mm1.errors import UserError
from mm1.sample import Text

HOSTILE = (
    '</div><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}{% raw %}"\' onmouseover="x" &lt;b&gt;'
    "\u202egnp.exe"
)


class Page(HTMLParser):
    """Tags with their attributes, and the tokens of every card."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[list[tuple[str, str]]] = []
        self._class: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = dict(attrs)
        self.tags.append((tag, about))
        if tag == "article":
            self.cards.append([])
        self._class = about.get("class") if tag == "i" else None

    def handle_data(self, data: str) -> None:
        if self._class is not None and self.cards:
            self.cards[-1].append((self._class, data))

    def handle_endtag(self, tag: str) -> None:
        self._class = None


@pytest.fixture
def corpus(raw: Path, out: Path) -> Path:
    build(raw, out, Settings(row_tokens=64, tokens_per_image=4, image_px=16))
    return out


def test_raw_files_are_shown_with_what_is_wrong_with_them(raw: Path, tmp_path: Path) -> None:
    rows = [{"image": "images/c0.jpg", "captions": [HOSTILE]}, {"image": "images/none.jpg", "captions": ["gone"]}, 7]
    (raw / "captions/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = preview(raw / "captions/train.jsonl", tmp_path / "new/page.html", 5).read_text()
    page = Page(text)
    assert "picture file is missing" in text
    assert "line is no JSON object" in text
    assert [said for card in page.cards for kind, said in card if kind == "l"] == [visible(HOSTILE), "gone"]
    assert "⟨Cf 202E⟩" in text
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "object", "base"}
    assert not [name for _, about in page.tags for name in about if name.startswith("on")]
    pictures = [str(about["src"]) for tag, about in page.tags if tag == "img"]
    assert len(pictures) == 1
    assert pictures[0].startswith("data:image/webp;base64,")
    assert PIL.Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).size == (60, 40)
    assert "default-src 'none'" in html.unescape(text)


def test_every_kind_of_file_has_its_turn(raw: Path, out: Path, tmp_path: Path) -> None:
    text = preview(raw, tmp_path / "page.html", 10, tokenizer=out).read_text()
    for found in contents_of(raw).found:
        assert f'<span class="source">{found.source.stream}</span>' in text
    assert len(Page(text).cards) == 10
    assert "position 1, id " in text


def test_a_finished_corpus_is_shown_in_its_tokens_and_targets(corpus: Path, tmp_path: Path) -> None:
    page = Page(preview(corpus, tmp_path / "page.html", 12).read_text())
    assert len(page.cards) == 12
    (sft, *_) = [card for card in page.cards if "User:" in "".join(said for _, said in card)]
    learned = "".join(said for kind, said in sft if kind.startswith("l"))
    only_read = "".join(said for kind, said in sft if kind.startswith("r"))
    assert "A blob." in learned
    assert "What is it?" in only_read
    shards = ShardSet(corpus, "captions", "train")
    captions = [shards[i].items[1] for i in range(len(shards))]
    texts = [caption.text for caption in captions if isinstance(caption, Text)]
    shown_texts = ["".join(said for kind, said in card if kind == "l") for card in page.cards]
    assert set(shown_texts) & set(texts)


def test_rows_are_shown_as_training_sees_them(corpus: Path, tmp_path: Path) -> None:
    text = preview(corpus, tmp_path / "page.html", 3, rows=True).read_text()
    page = Page(text)
    maps: list[list[dict[str, str | None]]] = []
    for tag, about in page.tags:
        if tag == "div" and about.get("class") == "map":
            maps.append([])
        elif tag == "span" and maps and "flex: " in str(about.get("style")):
            maps[-1].append(about)
    assert len(maps) == 3
    for row in maps:
        assert sum(int(re.findall(r"flex: (\d+)", str(run["style"]))[0]) for run in row) == 64, (
            "every position is drawn"
        )
    firsts = sum("first" in str(run["class"]) for row in maps for run in row)
    pictures = sum("picture" in str(run["class"]) for row in maps for run in row)
    assert firsts == len(page.cards)
    assert pictures == sum(tag == "img" for tag, _ in page.tags)
    assert f"hold {len(page.cards)} documents and {pictures} pictures" in text
    assert preview(corpus, tmp_path / "again.html", 3, rows=True).read_text() == text
    assert preview(corpus, tmp_path / "other.html", 3, rows=True, seed=1).read_text() != text
    only = preview(corpus, tmp_path / "sft.html", 3, rows=True, weights={"sft": 1.0}).read_text()
    assert "sft 100% of positions" in only


def test_a_damaged_document_is_padding_in_its_row_and_is_told(corpus: Path, tmp_path: Path) -> None:
    whole = Page(preview(corpus, tmp_path / "page.html", 40, rows=True).read_text())
    (shard,) = corpus.glob("captions/train-*.tar")
    data = bytearray(shard.read_bytes())
    data[data.index(b"JFIF")] ^= 1
    shard.write_bytes(data)
    text = preview(corpus, tmp_path / "page.html", 40, rows=True).read_text()
    assert "checksum differs" in text
    assert len(Page(text).cards) < len(whole.cards)


def test_rows_of_raw_files_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no finished corpus; expected one for --rows"):
        preview(raw, tmp_path / "page.html", rows=True)
    with pytest.raises(UserError, match="n is 0"):
        preview(raw, tmp_path / "page.html", 0)


TOKENIZER = Tokenizer.from_bytes(train(["a few words of text, Größe 猫 and so on " * 3, "another line"] * 20, 300))


@given(st.text(max_size=60))
def test_tokens_spell_the_text_they_are_of(text: str) -> None:
    ids = TOKENIZER.encode(text) if text.isprintable() else TOKENIZER.encode(visible(text))
    stretches = list(spelled(ids, TOKENIZER))
    assert [i for start, stop, _ in stretches for i in range(start, stop)] == list(range(len(ids)))
    assert "".join(said for *_, said in stretches) == TOKENIZER.decode(ids)


def test_positions_count_pictures() -> None:
    ids = [TOKENIZER.bos, *[IMAGE] * 4, *TOKENIZER.encode("a few"), TOKENIZER.eos]
    made = words(ids, [False] * 5 + [True] * (len(ids) - 5), iter([Shown(None, "x")]), TOKENIZER, 4)
    assert [type(one) for one in made[:3]] == [Word, Shown, Word]
    first, last = made[2], made[-1]
    assert isinstance(first, Word)
    assert isinstance(last, Word)
    assert first.note.startswith("position 5, id ")
    assert (last.text, last.control, last.learned, last.note) == ("end", True, True, f"position {len(ids) - 1}")


@pytest.mark.parametrize("kind", ["CMYK", "I;16", "1", "P", "RGBA"])
def test_pictures_of_every_mode_are_drawn_anew(kind: str) -> None:
    file = io.BytesIO()
    PIL.Image.new(kind, (900, 30)).save(file, "TIFF")
    made = shown(file.getvalue())
    assert made.note == "900 × 30"
    assert PIL.Image.open(io.BytesIO(base64.b64decode(str(made.uri).partition(",")[2]))).size == (320, 11)


def test_a_broken_picture_says_why() -> None:
    assert shown(b"none").uri is None
    assert shown(b"none").note == "picture does not decode"
