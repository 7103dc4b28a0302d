"""Tars of captioned pictures: read as their own writer wrote them, and used up to where they were cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_pipelines.pipeline import Settings, build
from data_pipelines.sources.base import Draft, Packed, Rejection
from data_pipelines.sources.tars import CUT, CaptionTars
from mm1.data.shards import ShardSet
from mm1.errors import UserError
from mm1.sample import Image, Text

SMALL = Settings(row_tokens=64, tokens_per_image=4, image_px=16)


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"00/{number:05d}", **sample})
    return path


def pair(raw: Path, number: int, **members: Any) -> dict[str, Any]:
    return {"jpg": (raw / f"captions/images/c{number}.jpg").read_bytes(), "txt": f"caption {number}.", **members}


def read(corpus: Path) -> tuple[dict[str, bytes], list[str]]:
    """Pictures by caption, and reasons."""
    found = list(CaptionTars(sorted(corpus.glob("captions/*.tar")), root=corpus).drafts())
    drafts = [one for one in found if isinstance(one, Draft)]
    pairs = {}
    for picture, caption in (draft.items for draft in drafts):
        assert isinstance(picture, Packed)
        assert isinstance(caption, Text)
        pairs[caption.text] = picture.read_bytes()
    assert len({draft.id for draft in drafts}) == len(pairs) == len(drafts)
    return pairs, [one.reason for one in found if isinstance(one, Rejection)]


def test_pictures_come_with_their_captions(raw: Path, tmp_path: Path) -> None:
    samples = [pair(raw, n) for n in range(3)]
    samples += [pair(raw, 3, txt=" ", json={"caption": "from json", "url": "x"}), pair(raw, 4, json={"caption": "no"})]
    samples += [{"jpg": b"", "json": {"caption": None}}, {"txt": "alone"}, pair(raw, 5, txt=b"\xff")]
    write(tmp_path / "corpus/captions/cc3m.tar", samples)
    pairs, reasons = read(tmp_path / "corpus")
    assert list(pairs) == ["caption 0.", "caption 1.", "caption 2.", "from json", "caption 4."]
    assert list(pairs.values()) == [(raw / f"captions/images/c{n}.jpg").read_bytes() for n in range(5)]
    assert reasons == ["empty caption", "no picture beside the caption", "caption is not UTF-8"]


def test_wherever_a_tar_is_cut_what_stands_before_is_used_and_the_cut_is_counted(raw: Path, tmp_path: Path) -> None:
    tar = write(tmp_path / "corpus/captions/cc3m.tar", [pair(raw, n) for n in range(3)])
    whole, data = read(tmp_path / "corpus"), tar.read_bytes()
    assert (len(whole[0]), whole[1]) == (3, [])
    used = []
    for size in range(0, len(data.rstrip(b"\0")), 97):
        tar.write_bytes(data[:size])
        pairs, reasons = read(tmp_path / "corpus")
        assert pairs.items() <= whole[0].items(), "never a picture with another's caption"
        assert reasons[-1:] == [CUT]
        used.append(len(pairs))
    assert used == sorted(used)
    assert set(used) == {0, 1, 2}


def test_a_damaged_header_is_no_silent_end(raw: Path, tmp_path: Path) -> None:
    tar = write(tmp_path / "corpus/captions/cc3m.tar", [pair(raw, n) for n in range(3)])
    data = bytearray(tar.read_bytes())
    header = data.rindex(b"00/00002.jpg")
    data[header : header + 5] = b"?????"
    tar.write_bytes(data)
    pairs, reasons = read(tmp_path / "corpus")
    assert (len(pairs), reasons) == (2, [CUT])


def test_a_tar_cut_short_is_counted_in_the_manifest_and_strict_stops(raw: Path, out: Path) -> None:
    tar = write(raw / "captions/cc3m.tar", [pair(raw, n, txt=f"tarred {n}") for n in range(6)])
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    written = build(raw, out, SMALL)["streams"]["captions"]
    assert written["dropped"][CUT] == {"count": 1, "examples": ["cc3m.tar"]}
    sets = [ShardSet(out, "captions", split) for split in ("train", "val")]
    tarred = [sample for split in sets for sample in split if "tarred" in str(sample.items[1])]
    assert 0 < len(tarred) < 6
    assert all(isinstance(sample.items[0], Image) for sample in tarred)
    with pytest.raises(UserError, match=f"cc3m.tar: {CUT}; mend it"):
        build(raw, out, SMALL, strict=True)
