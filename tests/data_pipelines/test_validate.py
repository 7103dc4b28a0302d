"""A look at raw files: the format is told from content, faults are counted with examples, and nothing ends the look."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.contents import as_pipeline, contents_of, kinds
from data_pipelines.formats import FORMATS
from data_pipelines.pipeline import Settings, build
from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.sniff import MAGIC, PACKED, UNREAD, look
from data_pipelines.sources import CaptionTsv
from data_pipelines.validate import Spread, validate
from mm1.errors import UserError


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            made.addfile(about, io.BytesIO(data))
    return file.getvalue()


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("docs_shard_0_v2.jsonl", data)
    return file.getvalue()


LINES = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file"),
        (bytes(4096), "nothing but zero bytes"),
        (LINES, "lines of JSON with text"),
        (gzip.compress(LINES, mtime=0), "lines of JSON with text, packed with gzip"),
        (zipped(LINES), "lines of JSON with text, packed with zip"),
        (gzip.compress(LINES, mtime=0)[:11], "damaged data, packed with gzip"),
        (
            b'[\n {"id": 1, "conversations": []},\n {"image": "a.jpg"}',
            "a JSON list of objects with id, conversations, image",
        ),
        (b'{\n "images": [],\n "annotations": []\n}', "one JSON object with images, annotations"),
        (b'{"images": [', "text that begins like JSON and is none"),
        (b"[1, 2]", "a JSON list of no objects"),
        (b"[tool]\nname = 1\n", "text"),
        (b"a dog\thttps://x.org/1.jpg\na cat\thttps://x.org/2.jpg\n", "a table parted by tabs, with addresses"),
        (b"<!-- saved --><!DOCTYPE html><p>hi", "a page of HTML"),
        (b"PAR1 and no more", "damaged parquet"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x7fELF\x02\x01\x01\0\0", "binary data (7f 45 4c 46 ...)"),
        (("text of one byte a letter, größer " * 9).encode("latin-1"), "text"),
        (
            tar({"0/1.jpg": b"x", "0/1.txt": b"y", "0/1.json": b'{"url": 1}'}),
            "a tar of jpg, txt, json members, whose JSON has url",
        ),
        (tar({}), "nothing but zero bytes"),
        (b'{"\x1b[31m\\u001b[31m": "\\ud800"}\n' * 2, "text that begins like JSON and is none"),
        (b'{"\\u001b[31m": "\\ud800"}\n' * 2, "lines of JSON with \\x1b[31m"),
    ],
)
def test_a_file_is_told_by_its_content(data: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    assert look(path).told == told


def test_what_is_wrong_is_counted_with_examples(raw: Path, writers: dict[str, Callable[..., Any]]) -> None:
    folder = raw / "captions"
    (folder / "images/c1.jpg").write_bytes((folder / "images/c1.jpg").read_bytes()[:300])
    (folder / "images/c2.jpg").unlink()
    lines = (folder / "train.jsonl").read_bytes()
    (folder / "train.jsonl").write_bytes(b"no JSON\n" + lines + b'{"image": "../../x.jpg", "captions": ["out"]}\n')
    told = validate(folder / "train.jsonl")
    assert "told by     lines of JSON with image, captions" in told
    assert "documents   24 can be used, 2 cannot" in told
    assert "1  line is no JSON object, such as train:1" in told
    assert "1  wrong fields, such as train:26" in told
    assert "24: 22 decode, 2 do not" in told
    assert re.search(r"1  picture does not decode, such as train:3#\d \(c1.jpg\)", told)
    assert re.search(r"1  picture file is missing, such as train:4#\d \(c2.jpg\)", told)
    assert "width, px   min      60   median      60   max        60" in told
    assert "there is more" in validate(folder / "train.jsonl", rows=3)
    assert "there is more" not in validate(folder / "train.jsonl", rows=26)


def test_a_raw_corpus_is_told_by_its_folders_and_a_finished_one_is_read_back(raw: Path, out: Path) -> None:
    told = validate(raw)
    for reader in ("Captions", "Interleaved", "TextLines", "PlainText", "Conversations"):
        assert f".{reader}\n" in told
    assert f"mm1-data shards --data {raw} --out CORPUS" in told
    build(raw, out, Settings(row_tokens=64, tokens_per_image=4, image_px=16))
    (shard,) = out.glob("captions/train-*.tar")
    data = bytearray(shard.read_bytes())
    data[data.index(b"JFIF")] ^= 1
    shard.write_bytes(data)
    told = validate(out)
    assert "23 samples read, 1 damaged" in told
    assert "checksum differs, such as" in told
    assert f"--data.corpus {out}" in told


def test_the_pipeline_that_it_writes_reads_the_same_files(raw: Path, tmp_path: Path) -> None:
    told = validate(raw / "captions/train.jsonl", write=tmp_path / "pipeline.yaml")
    assert f"mm1-data run {tmp_path}/pipeline.yaml --out CORPUS" in told
    pipeline, _ = read_pipeline(tmp_path / "pipeline.yaml")
    ((source,),) = pipeline.inputs.values()
    assert source.files() == [raw / "captions/train.jsonl"]
    assert source.root == raw.resolve()
    again = validate(tmp_path / "pipeline.yaml")
    assert "documents   24 can be used, 0 cannot" in again
    many = as_pipeline(contents_of(raw / "text/lines.jsonl").found)
    assert yaml.safe_load(many)["inputs"]["text"][0]["init_args"]["files"] == str(raw / "text/lines.jsonl")


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("TextLines", {"text": "a", "url": "https://x.org", "language_score": 0.9}),
    ("CaptionTable", {"url": "https://x.org/1.jpg", "text": "a", "clip_similarity_vitb32": 0.3, "punsafe": 0.1}),
    ("CaptionTable", {"URL": "https://x.org/1.jpg", "TEXT": "a", "similarity": 0.3}),
    ("CaptionTable", {"uid": "0" * 32, "url": "https://x.org/1.jpg", "text": "a"}),
    ("CaptionTable", {"image": "GCC_train_000000000.jpg", "caption": "a", "blip_caption": "b", "url": "https://x.org"}),
    ("MMC4", {"url": "https://x.org", "text_list": ["a"], "image_info": [], "similarity_matrix": []}),
    ("ParallelLists", {"images": [None, "https://x.org/1.jpg"], "texts": ["a", None], "metadata": "[]"}),
    ("Conversations", {"id": "1", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    ("Messages", {"messages": [{"role": "user", "content": "a"}], "images": []}),
    ("Answered", {"images": [], "texts": [{"user": "a", "assistant": "b"}]}),
    ("HtmlRows", {"url": "https://x.org", "html": "<p>a</p>"}),
    ("Captions", {"image": "a.jpg", "captions": ["a"]}),
    ("Interleaved", {"items": [{"type": "text", "text": "a"}]}),
    ("CaptionParquet", {"jpg": b"x", "caption": "a", "url": "https://x.org/1.jpg", "key": "0", "status": "success"}),
    ("CaptionParquet", {"image": {"bytes": b"x", "path": None}, "text": "a"}),
]
OURS = ("Captions", "Interleaved")  # lines alone


def written(path: Path, row: dict[str, Any], holder: str) -> Path:
    if holder == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    elif holder == "lines":
        path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    else:
        path.write_text(json.dumps([row, row], indent=2))
    return path


@pytest.mark.parametrize(
    ("reader", "row", "holder"),
    [
        (reader, row, holder)
        for reader, row in SHAPES
        for holder in ("lines", "list", "parquet")
        if (holder == "parquet" or reader != "CaptionParquet") and (holder == "lines" or reader not in OURS)
    ],
)
def test_a_row_of_each_public_format_finds_its_reader(
    reader: str, row: dict[str, Any], holder: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "rows.data", row, holder)
    assert type(contents_of(path).found[0].source).__name__ == reader
    assert "reading stopped" not in validate(path, write=tmp_path / "pipeline.yaml")
    ((source,),) = read_pipeline(tmp_path / "pipeline.yaml")[0].inputs.values()
    assert type(source).__name__ == reader
    assert source.files() == [path]


@pytest.mark.parametrize(
    ("line", "columns"),
    [("a dog\thttps://x.org/1", ["caption", "url"]), ("https://x.org/1\ta dog", ["url", "caption"])],
)
def test_cc3m_and_cc12m_differ_in_order(line: str, columns: list[str], tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(f"{line}\n{line}\n")
    (found,) = contents_of(tmp_path).found
    assert isinstance(found.source, CaptionTsv)
    assert found.source.columns == columns


IMG2DATASET = Path(__file__).parent / "files/img2dataset"


@pytest.mark.parametrize(
    ("mode", "reader"), [("files", "CaptionFolders"), ("parquet", "CaptionParquet"), ("webdataset", "CaptionTars")]
)
def test_what_img2dataset_writes_is_one_thing_with_all_that_lies_beside(mode: str, reader: str) -> None:
    contents = contents_of(IMG2DATASET / mode)
    (found,) = contents.found
    assert type(found.source).__name__ == reader
    assert contents.left == 0
    assert "documents   5 can be used" in validate(IMG2DATASET / mode)


PIPELINE = """
inputs:
  captions: [{{class_path: data_pipelines.sources.Captions, init_args: {{files: "{raw}/captions/train.jsonl"}}}}]
steps:
  - {{class_path: data_pipelines.steps.PictureSize, init_args: {{min_side_px: 50}}}}
  - {{class_path: data_pipelines.steps.Same, init_args: {{by: text}}}}
"""


def test_it_tells_how_many_documents_survive_each_step(
    raw: Path, tmp_path: Path, writers: dict[str, Callable[..., Any]]
) -> None:
    big = [writers["save"](raw / f"captions/images/big{n}.jpg", n) for n in range(3)]
    for picture in big:
        with PIL.Image.open(raw / "captions/images" / picture) as small:
            small.resize((100, 80)).save(raw / "captions/images" / picture)
    rows = [{"image": f"images/{picture}", "captions": [f"one of {n // 2}"]} for n, picture in enumerate(big)]
    with (raw / "captions/train.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "steps.yaml").write_text(PIPELINE.format(raw=raw))
    for told in (
        validate(raw / "captions/train.jsonl", pipeline=tmp_path / "steps.yaml"),
        validate(tmp_path / "steps.yaml"),
    ):
        assert "documents   27 can be used, 0 cannot" in told
        assert re.search(r"PictureSize +27 -> 3\n +24  \S", told)
        assert re.search(r"Same +3 -> 2\n +1  like an earlier document.*, such as train:26", told)


def test_every_format_names_a_reader_that_there_is() -> None:
    known = {kind.__name__ for kind in kinds()}
    assert {format.reader for format in FORMATS} <= known


def test_what_cannot_be_told_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "b.dat").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"nothing to train on: 'a.dat' is binary data \(7f .*\), 'b.dat' is an empty"
    ) as found:
        validate(tmp_path)
    assert "known are" in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=r"--format is 'Nothing'; expected one of .*Captions"):
        validate(tmp_path, reader="Nothing")
    assert "0 can be used" in validate(tmp_path / "a.dat", reader="TextLines")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "socket", "loop", "device", "dangling", "long", "nul"])
def test_no_thing_of_the_file_system_is_a_stack_trace(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path)) if len(str(path)) < 100 else path.touch()
        case "loop":
            path.symlink_to(path)
        case "device":
            path = Path("/dev/zero")
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
        case "long":
            path = tmp_path / ("x" * 5000)
        case "nul":
            path = tmp_path / "a\0b"
    for at in (path, tmp_path):
        with pytest.raises(UserError, match=r"^.*(does not exist|nothing to train on).*$"):
            validate(at)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("text")
    (tmp_path / "it").chmod(0)
    with pytest.raises(UserError, match="not readable"):
        validate(tmp_path)


BEGINNINGS = [
    b"",
    *MAGIC,
    *PACKED,
    *UNREAD,
    b"PAR1",
    b"{",
    b"[",
    b'{"text": "',
    b'[{"conversations": ',
    b"<html>",
    b"a\thttp://x/ ",
]
BEGINNINGS += [tar({"a.jpg": b"x" * 700, "a.txt": b"y"})[:at] for at in (300, 600, 1500, 2200)] + [
    gzip.compress(LINES, mtime=0)[:-9]
]


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=600), st.sampled_from(sorted(k.__name__ for k in kinds())))
def test_whatever_bytes_a_file_has_there_is_a_report_or_a_sentence(
    tmp_path: Path, start: bytes, rest: bytes, reader: str
) -> None:
    path = tmp_path / "thrown"
    path.write_bytes(start + rest)
    for named in (reader, None):
        try:
            told = validate(path, reader=named, rows=20)
        except UserError as error:
            told = str(error)
            assert "\n" not in told
        assert "reading stopped" not in told


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_a_spread_tells_smallest_middle_and_largest(values: list[int]) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    for share, expected in ((0, min(values)), (1, max(values)), (0.5, sorted(values)[(len(values) - 1) // 2])):
        assert expected * 0.99 <= spread.quantile(share) <= expected
    assert len(str(spread)) < 100


def test_a_spread_of_many_numbers_stays_small() -> None:
    spread = Spread()
    for value in range(0, 2_000_000, 7):
        spread.add(value)
    assert len(spread.counts) < 5000
    json.dumps(spread.counts)
