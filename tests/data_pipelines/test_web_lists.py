"""OBELICS, OmniCorpus and MINT-1T: order kept, lost pictures counted, and no page of a TIFF at another one's place."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest

from data_pipelines.picture_store import HashedPictures
from data_pipelines.sources import Mint1tPages, ParallelLists
from mm1.data.image import decode
from tests.data_pipelines.conftest import photo
from tests.data_pipelines.web import jpeg, json_lines, parquet, put, read, spelled, stretched, tar, tiff

URL = "http://x/a picture.jpg"


def obelics_row(n: int = 0, **changes: Any) -> dict[str, Any]:
    """A document as OBELICS has it, with one picture that was downloaded and one that was not."""
    return {
        "images": [None, URL, None, "http://x/gone.jpg"],
        "texts": [f"Text {n}.", None, " More. ", None],
        "metadata": json.dumps([None, {"src": URL, "alt_text": "a bridge"}, None, {"src": "http://x/gone.jpg"}]),
        "general_metadata": json.dumps({"url": f"http://x/{n}", "warc_filename": "a.warc.gz", "warc": {"length": 3}}),
        **changes,
    }


def omnicorpus_row(**changes: Any) -> dict[str, Any]:
    """The same as OmniCorpus has it: metadata are no texts, and pictures may be marked."""
    about = {"domain": ["x"], "fluency_prob": 0.9, "id": "1", "url": "http://x/0"}
    return obelics_row(metadata=[{"img_url_sha": "3a"}] * 2, general_metadata=about, **changes)


@pytest.fixture
def store(tmp_path: Path) -> HashedPictures:
    put(tmp_path / "store" / hashlib.sha256(URL.encode()).hexdigest(), jpeg(0))
    return HashedPictures(tmp_path / "store")


def test_parallel_lists_become_one_in_their_order(tmp_path: Path, store: HashedPictures) -> None:
    path = put(tmp_path / "train-00000-of-01335.parquet", parquet([obelics_row(n) for n in range(5)]))
    source = ParallelLists(path, pictures=store)
    drafts, lost = read(source)
    first, picture, second = drafts[3].items
    assert (first.text, second.text) == ("Text 3.", "More.")
    assert picture.read_bytes() == jpeg(0)
    assert drafts[3].about["url"] == drafts[3].group == "http://x/3"
    assert drafts[3].about["warc_filename"] == "a.warc.gz"
    assert len(lost["picture is not in the store"]) == 5
    assert stretched(source, path, 2) == list(source.drafts())
    assert len(source.spans(path, 2)) == 3


def test_omnicorpus_marks_pictures_by_picture_or_by_place(tmp_path: Path, store: HashedPictures) -> None:
    rows = [omnicorpus_row(valid_image=valid) for valid in ([True, True], [False, True], [True, False, True, True])]
    drafts, lost = read(ParallelLists(put(tmp_path / "a.parquet", parquet(rows)), pictures=store))
    assert [len(draft.pictures) for draft in drafts] == [1, 0, 0]
    assert lost["picture is marked as not valid"] == [f"a:2 {URL}", f"a:3 {URL}"]
    assert drafts[0].about["fluency_prob"] == 0.9


def test_wrong_lists_are_counted(tmp_path: Path, store: HashedPictures) -> None:
    wrong = [
        {"images": [None]},
        {"images": [URL] * 4},
        {"images": 3},
        {"texts": [1, None, None, None]},
        {"valid_image": [True]},
        {"valid_image": "yes"},
    ]
    rows = [obelics_row(**change) for change in wrong]
    rows += [
        obelics_row(texts=[None, None, " ", None], images=[None] * 4),
        obelics_row(general_metadata="[", texts=["x"] * 4, images=[None] * 4),
    ]
    drafts, lost = read(ParallelLists(put(tmp_path / "a.jsonl", json_lines(rows)), pictures=store))
    assert [spelled(draft) for draft in drafts] == [["x"] * 4]
    assert {reason: len(ids) for reason, ids in lost.items()} == {"wrong fields": len(wrong), "empty document": 1}


def mint_row(**changes: Any) -> bytes:
    row = {
        "images": ["page_0_image_85", None, "page_1_image_3", None],
        "texts": [None, "Figure 1. A blob.", None, "Figure 2."],
        "image_metadata": [{"page": 0, "xref": 85, "width": 60, "height": 40, "sha256": "x"}] * 2,
        "language_id_whole_page_fasttext": {"en": 0.9},
        "url": "http://x/a.pdf",
        **changes,
    }
    return json.dumps(row).encode()


def test_each_page_of_a_tiff_is_a_picture(tmp_path: Path) -> None:
    members = {
        "a/x.tiff": tiff([5, 6]),
        "a/x.json": mint_row(),
        "a/y.json": mint_row(images=[None] * 4, texts=["t"] * 4),
    }
    drafts, lost = read(Mint1tPages(put(tmp_path / "CC-0.tar", tar(members))))
    assert [draft.id for draft in drafts] == ["CC-0:a/x", "CC-0:a/y"]
    assert [type(item).__name__ for item in drafts[0].items] == ["Page", "Text", "Page", "Text"]
    for picture, seed in zip(drafts[0].pictures, (5, 6), strict=True):
        assert numpy.array_equal(decode(picture.read_bytes()), photo(seed))
    assert drafts[0].about["url"] == "http://x/a.pdf"
    assert lost == {}


def test_pages_that_may_be_another_pictures_are_not_used(tmp_path: Path) -> None:
    members = {
        "1.json": mint_row(), "1.tiff": tiff([5]),
        "2.json": mint_row(),
        "3.json": mint_row(), "3.tiff": b"II*\0 no tiff",
        "4.json": b"{", "4.tiff": tiff([5]),
        "5.tiff": tiff([5]),
        "6.json": mint_row(texts=["a"]), "6.tiff": tiff([5, 6]),
        "7.json": mint_row(texts=[None] * 4), "7.tiff": tiff([5, 6]),
        "8.json": mint_row(), "8.tiff": jpeg(5),
    }  # fmt: skip
    drafts, lost = read(Mint1tPages(put(tmp_path / "a.tar", tar(members))))
    assert drafts == []
    assert lost == {
        "pages and names of pictures do not match": ["a:1", "a:2", "a:3", "a:8"],
        "wrong fields": ["a:4", "a:5", "a:6"],
        "empty document": ["a:7"],
    }


def test_a_page_that_is_too_large_is_not_decoded(tmp_path: Path) -> None:
    data = bytearray(tiff([5]))
    for value, tag in ((9_000, 0x100), (9_000, 0x101)):
        at = data.index(tag.to_bytes(2, "little") + b"\3\0\1\0\0\0")
        data[at + 8 : at + 12] = value.to_bytes(4, "little")
    row = mint_row(images=["a", None], texts=[None, "t"])
    drafts, _ = read(Mint1tPages(put(tmp_path / "a.tar", tar({"1.json": row, "1.tiff": bytes(data)}))))
    with pytest.raises(OSError, match="page"):
        drafts[0].pictures[0].read_bytes()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "RGBA"])
def test_pages_of_any_kind_are_read(tmp_path: Path, mode: str) -> None:
    import io

    file = io.BytesIO()
    page = PIL.Image.new("I;16", (20, 10)) if mode == "I;16" else photo(3).convert(mode)
    page.save(file, "TIFF")
    row = mint_row(images=["a", None], texts=[None, "t"])
    drafts, _ = read(Mint1tPages(put(tmp_path / "a.tar", tar({"1.json": row, "1.tiff": file.getvalue()}))))
    assert decode(drafts[0].pictures[0].read_bytes()).size == page.size
