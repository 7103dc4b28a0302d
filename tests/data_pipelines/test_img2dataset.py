"""What img2dataset itself wrote, in its three output formats, read as it is; and the index of its pictures."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import webdataset

from data_pipelines.engines import Local
from data_pipelines.picture_index import Img2datasetPictures
from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.sources import CaptionFolders, CaptionParquet, CaptionTars, Draft, Rejection, Source
from mm1.data.shards import ShardSet
from mm1.errors import UserError
from mm1.sample import Image, Text

MADE = Path(__file__).parent / "files" / "img2dataset"
ADDRESS = "http://127.0.0.1:18765/"
FORMATS: dict[str, Source] = {
    "webdataset": CaptionTars(str(MADE / "webdataset" / "*.tar")),
    "files": CaptionFolders(MADE / "files"),
    "parquet": CaptionParquet(str(MADE / "parquet" / "{00000..00001}.parquet")),
}


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM1_CACHE", str(tmp_path / "cache"))


def told(found: Iterable[Draft | Rejection]) -> tuple[list[Draft], list[tuple[str, bool]]]:
    """Documents, and reasons."""
    every = list(found)
    drafts = [one for one in every if isinstance(one, Draft)]
    return drafts, [(one.reason, one.fault) for one in every if isinstance(one, Rejection)]


def colour(data: bytes) -> int:
    """Which of the drawn pictures it is."""
    red, _, _ = PIL.Image.open(io.BytesIO(data)).convert("RGB").getpixel((4, 4))  # type: ignore[misc]
    return round(red / 40)


@pytest.mark.parametrize("name", FORMATS)
def test_what_it_wrote(name: str) -> None:
    drafts, reasons = told(FORMATS[name].drafts())
    gone = [("picture was not downloaded", False)] if name == "parquet" else []  # elsewhere it leaves no trace
    assert reasons == [("empty caption", True), *gone]
    assert len({draft.id for draft in drafts}) == 5
    for number, draft in enumerate(drafts):
        picture, caption = draft.items
        assert caption == Text(f"Colour {number} – „ü“.")
        assert colour(picture.read_bytes()) == number  # type: ignore[union-attr]
        ending = ["jpeg", "png", "webp", "jpeg", "gif"][number]
        assert draft.about["url"] == draft.group == f"{ADDRESS}{number}.{ending}"
        assert draft.about["similarity"] == pytest.approx(0.25 + number / 100)
        assert (draft.about["width"], draft.about["original_width"], draft.about["status"]) == (8, 12, "success")
        assert not {"caption", "jpg"} & set(draft.about)


@pytest.mark.parametrize("files", ["webdataset", "files", "parquet", "webdataset/*.tar", "parquet/*.parquet"])
def test_its_pictures_are_found_by_url_and_key(files: str) -> None:
    store = Img2datasetPictures(MADE / files)
    for other in (store, pickle.loads(pickle.dumps(store))):
        for number, ending in enumerate(["jpeg", "png", "webp", "jpeg", "gif", "jpeg"]):
            for name in (f"{ADDRESS}{number}.{ending}", f"0000{number // 4}{number % 4}"):
                place = other.find(name)
                assert place is not None
                assert colour(place.read_bytes()) == number
        for absent in (f"{ADDRESS}gone.jpg", "000012", "", "\ud800"):
            assert other.find(absent) is None


def test_an_index_is_of_files_as_they_are_and_of_keys_that_are_one_pictures(tmp_path: Path) -> None:
    shutil.copytree(MADE / "webdataset", tmp_path / "a")
    (tmp_path / "a/00001.tar").unlink()
    store = Img2datasetPictures(tmp_path / "a")
    assert store.find("000001")
    assert store.find("000010") is None
    shutil.copy(MADE / "webdataset/00001.tar", tmp_path / "a/00001.tar")
    assert Img2datasetPictures(tmp_path / "a").find("000010")
    shutil.copy(MADE / "webdataset/00000.tar", tmp_path / "a/00002.tar")
    both = Img2datasetPictures(tmp_path / "a")
    assert both.find("000001") is None, "two pictures have this key"
    assert both.find(f"{ADDRESS}1.png")


def test_an_index_of_files_elsewhere_fetches_stretches(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("webdataset/00000.tar", "parquet/00001.parquet"):
        store.pipe(f"/indexed/{name}", (MADE / name).read_bytes())
    pictures = Img2datasetPictures(["memory://indexed/webdataset/*.tar", "memory://indexed/parquet/*.parquet"])
    for number, key in ((2, "000002"), (4, "000010")):
        place = pictures.find(key)
        assert place
        assert colour(place.read_bytes()) == number


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    with webdataset.TarWriter(str(path)) as tar:
        for number, sample in enumerate(samples):
            tar.write({"__key__": f"{number:05d}", **sample})
    return path


def test_what_else_tars_hold(tmp_path: Path) -> None:
    tar = write(
        tmp_path / "laion.tar",
        [
            {"webp": b"0", "json": {"caption": "only json", "key": "0", "punsafe": 0.1}},
            {"png": b"1", "txt": "bad json", "json": b"{"},
            {"gif": b"2", "json": {"caption": "said otherwise", "recaption": "said anew"}},
            {"json": {"caption": "lost", "status": "failed_to_download"}},
            {"jpg": b"4", "json": {"url": "no caption"}},
            {"jpg": b"5"},
            {"jpg": b"6", "txt": b"\xff", "json": b"[1]"},
            {"jpeg": b"7", "txt": "a" * (1 << 25)},
        ],
    )
    drafts, reasons = told(CaptionTars(tar).drafts())
    assert [draft.text for draft in drafts] == ["only json", "bad json", "said otherwise"]
    assert [draft.pictures[0].read_bytes() for draft in drafts] == [b"0", b"1", b"2"]
    assert drafts[0].about == {"key": "0", "punsafe": 0.1}
    assert [lost.reason for lost in drafts[1].lost] == ["description is no JSON object"]
    assert reasons == [
        ("picture was not downloaded", False),
        ("no caption beside the picture", True),
        ("no caption beside the picture", True),
        ("caption is not UTF-8", True),
        ("caption is not UTF-8", True),
    ]
    drafts, _ = told(CaptionTars(tar, column="recaption").drafts())
    assert [(draft.text, draft.about) for draft in drafts] == [("said anew", {"caption": "said otherwise"})]


def test_names_that_are_there_twice_pair_nothing(tmp_path: Path) -> None:
    path = tmp_path / "twice.tar"
    with webdataset.TarWriter(str(path)) as tar:
        for key, members in [
            ("a", {"jpg": b"1"}),
            ("a", {"jpg": b"2", "txt": "two"}),
            ("b", {"jpg": b"3", "txt": "3"}),
        ]:
            tar.write({"__key__": key, **members})
        tar.write({"__key__": "a", "jpg": b"4", "txt": "four"})
    drafts, reasons = told(CaptionTars(path).drafts())
    assert [draft.text for draft in drafts] == ["3"]
    assert reasons == [("two files of one name", True)] * 2


def test_folders(tmp_path: Path) -> None:
    shutil.copytree(MADE / "files", tmp_path / "files")
    (tmp_path / "files/00000/000001.txt").unlink()
    (tmp_path / "files/00000/000002.json").write_text("{")
    (tmp_path / "files/00000/000003.jpg").unlink()
    source = CaptionFolders(str(tmp_path / "files"))
    assert [path.name for path in source.files()] == ["00000", "00001"]
    drafts, reasons = told(source.drafts())
    assert [draft.text[7] for draft in drafts] == ["0", "1", "2", "4"]
    assert [reason for reason, _ in reasons] == ["no picture beside the caption", "empty caption"]
    assert [len(draft.lost) for draft in drafts] == [0, 0, 1, 0]
    for wrong in (tmp_path / "nowhere", tmp_path / "files/00000/000000.jpg"):
        with pytest.raises(UserError, match="expected a folder"):
            CaptionFolders(wrong).files()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="without a picture"):
        CaptionFolders(tmp_path / "empty").files()


def test_row_groups_are_parts(tmp_path: Path) -> None:
    rows = [{"key": str(n), "caption": f"c{n}", "image": {"bytes": b"%d" % n, "path": None}} for n in range(50)]
    rows += [{"key": "x", "caption": None, "image": {"bytes": b"x"}}, {"key": "y", "caption": "y", "image": None}]
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
    source = CaptionParquet(path)
    spans = source.spans(path, 14)
    assert len(spans) == 4
    parts = [list(source.drafts_in(path, span)) for span in spans]
    assert [one for part in parts for one in part] == list(source.drafts())
    drafts, reasons = told(source.drafts())
    assert [(draft.text, draft.pictures[0].read_bytes()) for draft in drafts] == [
        (f"c{n}", b"%d" % n) for n in range(50)
    ]
    assert [reason for reason, _ in reasons] == ["empty caption", "no picture beside the caption"]
    assert json.dumps(drafts[0].about) == '{"key": "0"}'


YAML = """
inputs:
  captions:
    - {class_path: CaptionTars, init_args: {files: "MADE/webdataset/{00000..00001}.tar"}}
    - {class_path: CaptionFolders, init_args: {files: MADE/files}}
    - {class_path: CaptionParquet, init_args: {files: MADE/parquet/*.parquet}}
    - class_path: CaptionTsv
      init_args:
        files: TSV
        columns: [url, caption]
        pictures: {class_path: Img2datasetPictures, init_args: {files: "MADE/webdataset/*.tar"}}
settings: {row_tokens: 64, tokens_per_image: 4, image_px: 8, val_share: 0, part_rows: 2}
"""


def test_a_pipeline_of_all_of_them(out: Path, tmp_path: Path) -> None:
    rows = [(f"{ADDRESS}{n}.jpeg", f"of line {n}") for n in (0, 3, 9)]
    (tmp_path / "cc12m.tsv").write_text("".join(f"{url}\t{caption}\n" for url, caption in rows))
    (tmp_path / "p.yaml").write_text(YAML.replace("MADE", str(MADE)).replace("TSV", str(tmp_path / "cc12m.tsv")))
    pipeline, _ = read_pipeline(tmp_path / "p.yaml")
    captions = pipeline.run(out, Local(2))["streams"]["captions"]
    assert captions["train"]["documents"] == 5 + 5 + 5 + 2
    assert {reason: lost["count"] for reason, lost in captions["dropped"].items()} == {
        "empty caption": 3,
        "picture was not downloaded": 1,
        "picture is not in the store": 1,
    }
    for sample in ShardSet(out, "captions", "train"):
        picture, caption = sample.items
        assert isinstance(picture, Image)
        assert isinstance(caption, Text)
        assert str(colour(picture.data)) in caption.text
