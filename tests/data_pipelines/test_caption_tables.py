"""Tables of captions and URLs as their publishers wrote them, with pictures from a store."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from data_pipelines.picture_store import HashedPictures, NamedPictures
from data_pipelines.sources import CaptionTable, CaptionTsv, Draft, Rejection
from data_pipelines.steps.base import Pictures
from data_pipelines.steps.subset import Subset
from mm1.errors import UserError

URL = "http://pictures.example/{}.jpg"
MISSING = ("picture is not in the store", False)


@pytest.fixture
def store(tmp_path: Path) -> HashedPictures:
    """Pictures 0 to 4, by the hash of their URLs; what is in them is their number."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        digits = hashlib.sha256(URL.format(number).encode()).hexdigest()
        (tmp_path / "images" / digits).write_text(str(number))
    return HashedPictures(tmp_path / "images")


def told(source: CaptionTable | CaptionTsv) -> tuple[list[tuple[str, str]], list[tuple[str, bool]]]:
    """Captions with what is in their pictures, and reasons; the parts of a file make the whole of it."""
    every = list(source.drafts())
    for path in source.files():
        assert isinstance(path, Path)
        parts = [source.drafts_in(path, span) for span in source.spans(path, 2)]
        assert [one for part in parts for one in part] == list(source.drafts_in(path))
    pairs = [(one.text, one.pictures[0].read_bytes().decode()) for one in every if isinstance(one, Draft)]
    return pairs, [(one.reason, one.fault) for one in every if isinstance(one, Rejection)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("columns", [["caption", "url"], ["url", "caption"]])
def test_cc3m_and_cc12m(tmp_path: Path, store: HashedPictures, columns: list[str], header: bool, packed: bool) -> None:
    rows = [{"caption": f'a "quoted {n}', "url": URL.format(n)} for n in range(6)] + [{"caption": " ", "url": "x"}]
    lines = [columns] * header + [[row[name] for name in columns] for row in rows]
    data = b"".join("\t".join(line).encode() + b"\r\n" for line in lines)
    data += b"no tab\n\n\xff\t\xff\n" + b"\t".join([b"a"] * 3)
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_bytes(gzip.compress(data) if packed else data)
    pairs, reasons = told(CaptionTsv(path, pictures=store, columns=columns if not header else ["caption", "url"]))
    assert pairs == [(f'a "quoted {n}', str(n)) for n in range(5)]
    wrong = [("wrong fields", True), ("text is not UTF-8", True), ("wrong fields", True)]
    assert reasons == [MISSING, ("empty caption", True), *wrong]


def test_a_table_of_more_columns(tmp_path: Path, store: HashedPictures) -> None:
    (tmp_path / "a.tsv").write_text(f"{URL.format(1)}\tone\t0.3\n")
    source = CaptionTsv(tmp_path / "a.tsv", pictures=store, columns=["url", "caption", "similarity"])
    (draft,) = source.drafts()
    assert isinstance(draft, Draft)
    assert (draft.id, draft.group, draft.about) == ("a:1", URL.format(1), {"url": URL.format(1), "similarity": "0.3"})
    with pytest.raises(UserError, match=r"columns is .*expected caption and url"):
        CaptionTsv(tmp_path / "a.tsv", pictures=store, columns=["url", "text"])


LAION = {"NSFW": "UNLIKELY", "similarity": 0.31, "punsafe": 0.0, "HEIGHT": 300}
COYO = {"clip_similarity_vitb32": 0.3, "nsfw_score_opennsfw2": 0.1, "aesthetic_score_laion_v2": 5.0, "embedding": [0.5]}


def rows_of(names: tuple[str, str], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Five rows with their picture, one without, one without a caption, one whose URL is no text."""
    url, text = names
    rows = [{url: URL.format(n), text: f"text {n}", **about} for n in range(6)]
    return [*rows, {url: URL.format(0), text: None, **about}, {url: None, text: "no URL", **about}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])
@pytest.mark.parametrize(("names", "about"), [(("URL", "TEXT"), LAION), (("url", "text"), COYO)], ids=["laion", "coyo"])
def test_metadata(
    tmp_path: Path, store: HashedPictures, ending: str, names: tuple[str, str], about: dict[str, Any]
) -> None:
    path = write(tmp_path / f"part-00000.{ending}", rows_of(names, about))
    source = CaptionTable(path, pictures=store)
    pairs, reasons = told(source)
    assert pairs == [(f"text {n}", str(n)) for n in range(5)]
    assert reasons == [MISSING, ("empty caption", True), ("wrong fields", True)]
    draft = next(iter(source.drafts()))
    assert isinstance(draft, Draft)
    scores = {name: value for name, value in about.items() if name != "embedding"}
    assert (draft.about, draft.group) == ({names[0]: URL.format(0), **scores}, URL.format(0))


def test_text_that_is_no_utf8_costs_its_row(tmp_path: Path, store: HashedPictures) -> None:
    texts = [b"good 0", b"\xff", b"good 2"]
    offsets = numpy.cumsum([0, *map(len, texts)], dtype=numpy.int32)
    bad = pyarrow.StringArray.from_buffers(3, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"".join(texts)))
    path = tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"url": [URL.format(n) for n in range(3)], "text": bad}), path)
    pairs, reasons = told(CaptionTable(path, pictures=store))
    assert pairs == [("good 0", "0"), ("good 2", "2")]
    assert reasons == [("row is not readable", True)]


def test_llava_cc3m(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/GCC_train_000000000.jpg").write_text("0")
    (tmp_path / "secret.jpg").write_text("secret")
    pictures = NamedPictures(tmp_path / "images")
    names = ["GCC_train_000000000.jpg", "GCC_train_000000001.jpg", "../secret.jpg"]
    chat = [
        {
            "id": name[:-4],
            "image": name,
            "conversations": [
                {"from": "human", "value": "Write a terse summary of the image.\n<image>"},
                {"from": "gpt", "value": f"chat of {name}"},
            ],
        }
        for name in names
    ]
    broken = [{"image": names[0], "conversations": said} for said in ([], [{"from": "gpt"}], "no list")]
    pairs, reasons = told(CaptionTable(write(tmp_path / "chat.json", [*chat, *broken]), pictures=pictures))
    assert pairs == [(f"chat of {names[0]}", "0"), ("no list", "0")]
    assert reasons == [MISSING, MISSING, ("wrong fields", True), ("wrong fields", True)]
    about = {"image": names[0], "caption": "caption", "blip_caption": "of BLIP", "url": "http://x"}
    meta = write(tmp_path / "metadata.json", [about])
    assert told(CaptionTable(meta, pictures=pictures, picture="image"))[0] == [("caption", "0")]
    assert told(CaptionTable(meta, pictures=pictures, picture="image", column="blip_caption"))[0] == [("of BLIP", "0")]


def test_a_subset_of_datacomp(tmp_path: Path, store: HashedPictures) -> None:
    uids = [hashlib.md5(str(n).encode()).hexdigest() for n in range(1000)]
    halves = numpy.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids[::2]], dtype="u8,u8")
    halves.sort()
    numpy.save(tmp_path / "subset.npy", halves)
    step: Subset = pickle.loads(pickle.dumps(Subset(tmp_path / "subset.npy")))
    rows = [{"uid": uid, "url": URL.format(n % 5), "text": "t"} for n, uid in enumerate(uids)]
    rows += [{"uid": uid, "url": URL.format(0), "text": "t"} for uid in ("f" * 32, "0" * 32, "no hex", "f" * 60, "-1")]
    source = CaptionTable(write(tmp_path / "metadata.parquet", rows), pictures=store)
    kept = [step(draft, Pictures()) for draft in source.drafts() if isinstance(draft, Draft)]
    assert [isinstance(one, Draft) for one in kept[:1000]] == [True, False] * 500
    reasons = [one.reason for one in kept[1000:] if isinstance(one, Rejection)]
    assert reasons == ["not in the subset"] * 2 + ["uid is missing", "not in the subset", "uid is missing"]


def test_a_file_that_is_no_subset(tmp_path: Path) -> None:
    numpy.save(tmp_path / "floats.npy", numpy.zeros(3))
    (tmp_path / "text.npy").write_text("text")
    for name in ("floats.npy", "text.npy", "nowhere.npy"):
        with pytest.raises(UserError, match=r"file is .*expected"):
            Subset(tmp_path / name)
