"""Shards come back as they were written, other tools read them, and damage is named."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
import time
import zlib
from pathlib import Path

import numpy
import pytest
import webdataset

from mm1.data.index import write_index
from mm1.data.shards import FORMAT, OPEN_FILES, Damaged, ShardSet, ShardWriter
from mm1.errors import UserError
from mm1.runs import write_json
from mm1.sample import Image, Sample, Text

JPEG, PNG, WEBP = b"\xff\xd8\xff jpeg", b"\x89PNG png", b"RIFF....WEBP webp"


def samples(count: int) -> list[Sample]:
    """Documents with 0 to 12 pictures, each picture different."""
    made = []
    for number in range(count):
        pictures = [Image((JPEG, PNG, WEBP)[n % 3] + bytes([number, n])) for n in range(number % 13)]
        texts = (Text(f"text {number} é\n", learn=False), Text("answer", end=True))
        made.append(Sample((*pictures, *texts), "captions", f"file:{number}"))
    return made


def write(folder: Path, written: list[Sample], shard_bytes: int = 1 << 30) -> Path:
    with ShardWriter(folder / "captions", "train", shard_bytes=shard_bytes) as writer:
        for number, sample in enumerate(written):
            writer.write(sample, 10 + number)
    splits = {"train": {"shards": writer.shards}, "val": {"shards": []}}
    write_json(folder / "manifest.json", {"format": FORMAT, "streams": {"captions": splits}})
    return folder


def test_samples_come_back_in_any_order(tmp_path: Path) -> None:
    written = samples(30)
    corpus = ShardSet(write(tmp_path, written, shard_bytes=30_000), "captions", "train")
    assert len(corpus.shards) > 3
    assert len(corpus) == 30
    for number in [29, 0, 17, *range(30)]:
        assert corpus[number] == written[number]
        assert corpus.sizes(number) == (10 + number, number % 13)
    with pytest.raises(IndexError):
        corpus[30]


def test_an_empty_split_is_legal(tmp_path: Path) -> None:
    assert len(ShardSet(write(tmp_path, samples(1)), "captions", "val")) == 0


def test_webdataset_reads_them_as_its_own(tmp_path: Path) -> None:
    written = samples(5)
    tar = write(tmp_path, written) / "captions" / "train-000000.tar"
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"{number:09d}" for number in range(5)]
    document = json.loads(found[4]["json"])
    assert document["id"] == "file:4"
    assert document["items"][0] == {"image": "0.jpg"}
    assert document["items"][-1] == {"text": "answer", "learn": True, "end": True}
    assert (found[4]["0.jpg"], found[4]["1.png"], found[4]["2.webp"]) == (
        JPEG + bytes([4, 0]), PNG + bytes([4, 1]), WEBP + bytes([4, 2]),
    )  # fmt: skip


def test_the_index_says_where_each_member_stands(tmp_path: Path) -> None:
    folder = write(tmp_path, samples(14)) / "captions"
    with numpy.load(folder / "train-000000.index.npz") as index, tarfile.open(folder / "train-000000.tar") as tar:
        assert index["images"].tolist() == [number % 13 for number in range(14)]
        assert index["text_tokens"].tolist() == [10 + number for number in range(14)]
        extents = iter(index["extents"].tolist())
        for number, images in enumerate(index["images"]):
            names = ["json", *(f"{n}.{('jpg', 'png', 'webp')[n % 3]}" for n in range(images))]
            for member in (tar.getmember(f"{number:09d}.{name}") for name in names):
                assert next(extents) == [member.offset_data, member.size]


def test_parts_have_names_and_keys_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "captions"
    shards = []
    for part in (3, 4):
        with ShardWriter(folder, "train", part=part, shard_bytes=60_000) as writer:
            for sample in samples(14):
                writer.write(sample, 5)
        shards += writer.shards
    names = [shard["file"] for shard in shards]
    assert names[:3] == ["train-000003.tar", "train-000003-01.tar", "train-000004.tar"]
    splits = {"train": {"shards": shards}, "val": {"shards": []}}
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "streams": {"captions": splits}})
    corpus = ShardSet(tmp_path, "captions", "train")
    assert [corpus[i] for i in range(28)] == samples(14) * 2
    tars = [str(folder / name) for name in names]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(tars, shardshuffle=False)]
    assert keys[14] == "000004-000000000"
    assert len(set(keys)) == 28


def test_a_million_samples_open_in_a_second(tmp_path: Path) -> None:
    """The index alone; the tar is a hole of the size that it says."""
    count, tar = 1_000_000, tmp_path / "captions" / "train-000000.tar"
    tar.parent.mkdir()
    with tar.open("wb") as file:
        file.truncate(4096 * count)
    places = numpy.arange(2 * count) * 2048
    extents = numpy.stack([places, numpy.full(2 * count, 1000)], axis=1)
    ones = numpy.ones(count)
    write_index(tar, text_tokens=ones * 25, images=ones, crc32=ones * zlib.crc32(bytes(2000)), extents=extents)
    shards = [{"file": tar.name, "samples": count, "bytes": 4096 * count, "sha256": ""}]
    splits = {"train": {"shards": shards}, "val": {"shards": []}}
    write_json(tmp_path / "manifest.json", {"format": FORMAT, "streams": {"captions": splits}})
    start_s = time.perf_counter()
    corpus = ShardSet(tmp_path, "captions", "train")
    assert time.perf_counter() - start_s < 1
    assert len(corpus) == count
    assert corpus.sizes(999_999) == (25, 1)
    assert corpus._read(999_999) == [bytes(1000), bytes(1000)]


def test_the_same_samples_make_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, samples(20)) / "captions" for name in ("one", "two"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_a_set_survives_pickling_and_forking_with_files_open(tmp_path: Path) -> None:
    written = samples(6)
    corpus = ShardSet(write(tmp_path, written), "captions", "train")
    assert corpus[3] == written[3]
    assert pickle.loads(pickle.dumps(corpus))[5] == written[5]


def test_a_set_keeps_few_files_open(tmp_path: Path) -> None:
    written = samples(OPEN_FILES + 9)
    corpus = ShardSet(write(tmp_path, written, shard_bytes=1), "captions", "train")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    assert [corpus[number] for number in range(len(corpus))] == written
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) - before <= 2 * OPEN_FILES


def test_a_writer_that_fails_leaves_no_half_shard(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path, "train") as writer:
            writer.write(samples(1)[0], 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    corpus = ShardSet(write(tmp_path, samples(5)), "captions", "train")
    corpus.verify()
    with corpus.paths[0].open("r+b") as file:
        file.seek(700)
        file.write(b"\x07")
    with pytest.raises(UserError, match=r"train-000000.tar has checksum .* write it again with mm1-data shards"):
        corpus.verify()


def break_tar(folder: Path) -> None:
    path = folder / "captions" / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-2000])


def drop_tar(folder: Path) -> None:
    (folder / "captions" / "train-000000.tar").unlink()


def drop_index(folder: Path) -> None:
    (folder / "captions" / "train-000000.index.npz").unlink()


def age_index(folder: Path) -> None:
    path = folder / "captions" / "train-000000.index.npz"
    with numpy.load(path) as arrays:
        numpy.savez(path, **{**arrays, "format": 1})


def empty_index(folder: Path) -> None:
    write_index(folder / "captions" / "train-000000.tar", text_tokens=[], images=[], crc32=[], extents=[(0, 0)][:0])


def cut_index(folder: Path) -> None:
    path = folder / "captions" / "train-000000.index.npz"
    path.write_bytes(path.read_bytes()[:-300])


def turn_a_bit_of_the_index(folder: Path) -> None:
    path = folder / "captions" / "train-000000.index.npz"
    data = bytearray(path.read_bytes())
    data[data.index(b"extents.npy") + 300] ^= 1
    path.write_bytes(data)


def age_manifest(folder: Path) -> None:
    write_json(folder / "manifest.json", {"format": 1})


def drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_tar, r"train-000000.tar has \d+ bytes, the manifest says \d+; it was cut short: write it again"),
        (drop_tar, r"train-000000.tar is missing though the manifest names it: write it again"),
        (drop_index, r"index.npz does not exist; expected the index of train-000000.tar; write it again"),
        (age_index, r"index.npz has format 1; this version reads format 2: write it again"),
        (empty_index, r"index.npz does not list the 5 samples that the manifest says: write it again"),
        (cut_index, r"index.npz is not readable as the index of train-000000.tar \(.*\): write it again"),
        (turn_a_bit_of_the_index, r"index.npz is not readable as the index of .* CRC.*: write it again"),
        (age_manifest, r"manifest.json has format 1; this version reads format 2: write it again"),
        (drop_manifest, r"manifest.json does not exist; expected a corpus written by mm1-data shards"),
    ],
)
def test_damage_is_named_with_its_remedy(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path, samples(5))
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        ShardSet(tmp_path, "captions", "train")


@pytest.mark.parametrize("content", [b'"file:1"', JPEG + bytes([1, 0])])
def test_one_changed_bit_of_a_sample_is_named(tmp_path: Path, content: bytes) -> None:
    corpus = ShardSet(write(tmp_path, samples(3)), "captions", "train")
    path = corpus.paths[0]
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) - 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"sample 1 of .*train-000000.tar is damaged .* delete it, then write it again"):
        corpus[1]
    assert (corpus[0], corpus[2]) == (samples(3)[0], samples(3)[2])


def test_a_tar_cut_short_while_training_is_named(tmp_path: Path) -> None:
    corpus = ShardSet(write(tmp_path, samples(3)), "captions", "train")
    os.truncate(corpus.paths[0], 600)
    with pytest.raises(Damaged, match="ends inside a sample") as error:
        corpus[2]
    assert pickle.loads(pickle.dumps(error.value)).reason == "shard is cut short"


def test_streams_and_splits_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, samples(1))
    with pytest.raises(UserError, match="no stream 'text'; it has captions"):
        ShardSet(tmp_path, "text", "train")
    with pytest.raises(UserError, match="no split 'test'"):
        ShardSet(tmp_path, "captions", "test")
