"""No picture that is scored stands in what is trained on; one that is planted is found, resized and saved again."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_pipelines.pipeline import Settings, build
from data_pipelines.train_tokenizer import train_tokenizer
from eval.__main__ import main
from eval.contamination import overlap
from eval.task import Query, Task, discover
from mm1.data.shards import FORMAT, ShardWriter
from mm1.runs import read_json, write_json
from mm1.sample import Image, Sample, Text

SHARED = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the small real corpus is not there")


def photo(seed: int, width: int = 160, height: int = 100) -> PIL.Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def jpeg(picture: PIL.Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def task_of(paths: list[Path]) -> Task:
    return Task("vqa/t", "vqa", tuple(Query(path.name, path, "q?", ("a",), "a") for path in paths))


def shard(corpus: Path, stream: str, pictures: list[bytes], resize: str = "squash") -> None:
    """A corpus of one stream, one picture a document."""
    with ShardWriter(corpus / stream, "train") as writer:
        for at, data in enumerate(pictures):
            writer.write(Sample((Image(data), Text("x")), stream, f"{stream}-{at}"), 3)
    manifest = corpus / "manifest.json"
    about = read_json(manifest, "") if manifest.exists() else {"format": FORMAT, "streams": {}}
    about |= {"image_px": 80, "resize": resize, "interpolation": "bicubic"}
    about["streams"][stream] = {"train": {"shards": writer.shards}, "val": {"shards": []}}
    write_json(manifest, about)


@pytest.fixture
def scored(tmp_path: Path) -> Task:
    paths = [tmp_path / f"{at}.jpg" for at in range(5)]
    for at, path in enumerate(paths):
        path.write_bytes(jpeg(photo(at)))
    return task_of(paths)


def test_other_pictures_are_no_overlap_and_equal_files_count_once(scored: Task, tmp_path: Path) -> None:
    shard(tmp_path / "corpus", "captions", [jpeg(photo(100 + at // 2)) for at in range(6)])
    found = overlap([tmp_path / "corpus"], [scored])
    assert found.record() == {"pictures": 0, "scored": 5, "trained": 3, "found": ()}
    assert str(found) == "0 of 3 pictures to train on are among 5 scored ones"


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_a_planted_picture_is_found_in_any_stream_and_corpus(scored: Task, tmp_path: Path, resize: str) -> None:
    planted = photo(3)
    if resize == "crop":
        planted = planted.crop((30, 0, 130, 100))
    size = (80, 50) if resize == "pad" else (80, 80)
    shard(tmp_path / "one", "captions", [jpeg(photo(100))], resize)
    shard(tmp_path / "two", "captions", [jpeg(photo(100))], resize)
    shard(tmp_path / "two", "sft", [jpeg(photo(101)), jpeg(planted.resize(size), quality=75)], resize)
    found = overlap([tmp_path / "one", tmp_path / "two"], [scored])
    assert found.found == (f"sft-1 in {tmp_path / 'two'}/sft/train",)
    assert found.trained == 3


def test_the_count_stands_beside_the_scores(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shard(tmp_path / "one", "captions", [jpeg(photo(100)), (data / "vqa/daquar/images/3.png").read_bytes()])
    shard(tmp_path / "two", "captions", [jpeg(photo(101))])
    settings = ["--shots", "[0]", "--tasks", "[vqa/daquar]", "--out", f"{tmp_path}/out"]
    words = ["run", f"{checkpoint}", "--data", f"{data}", "--corpus", f"{tmp_path}/one", f"{tmp_path}/two", *settings]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *words])
    main()
    found = [f"captions-1 in {tmp_path}/one/captions/train"]
    expected = {"pictures": 1, "scored": 5, "trained": 3, "found": found}
    assert read_json(tmp_path / "out/scores.json", "")["overlap"] == expected
    assert "overlap: 1 of 3 pictures trained on are among 5 scored" in capsys.readouterr().out


def test_the_door_counts_and_fails_where_it_finds(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
        try:
            main()
        except SystemExit as exit:
            return int(str(exit.code))
        return 0

    shard(tmp_path / "corpus", "captions", [jpeg(photo(100))])
    assert call("contamination", tmp_path / "corpus", "--data", data) == 0
    assert capsys.readouterr().out.startswith("0 of 1 pictures to train on are among")
    shard(tmp_path / "corpus", "sft", [(data / "vqa/daquar/images/3.png").read_bytes()])
    assert call("contamination", tmp_path / "corpus", "--data", data) == 1
    assert "1 of 2 pictures" in capsys.readouterr().out
    assert call("contamination", tmp_path / "nowhere", "--data", data) == 2


@real
@pytest.mark.slow
def test_the_real_corpus_trains_on_nothing_that_is_scored(tmp_path: Path) -> None:
    train_tokenizer(SHARED, tmp_path, 2048)
    build(SHARED, tmp_path, Settings(image_px=128, also=("vqa", "fewshot")), workers=2)
    tasks = discover(SHARED)
    scored = sum(len({query.picture for query in task.whole}) for task in tasks)
    found = overlap([tmp_path], tasks)
    assert (found.found, found.scored) == ((), scored)
    assert found.scored == 100 + 263 + 120 + 60
    assert found.trained > 1311 + 856 + 379  # Flickr8k, OpenStax, DAQUAR, and the pictures of documents


@real
def test_a_scored_photograph_is_found_however_it_is_stored(tmp_path: Path) -> None:
    """Every 20th scored photograph, squeezed as shards of the real run would hold it, and nothing else."""
    tasks = discover(SHARED)
    paths = list(dict.fromkeys(query.picture for task in tasks for query in task.whole))[::20]
    planted = [PIL.Image.open(path).convert("RGB").resize((224, 224), PIL.Image.Resampling.BILINEAR) for path in paths]
    other = sorted((SHARED / "interleaved/images").rglob("*.jpg"))[:40]
    assert len(other) == 40
    shard(tmp_path / "corpus", "captions", [jpeg(picture, 75) for picture in planted])
    shard(tmp_path / "corpus", "interleaved", [path.read_bytes() for path in other])
    found = overlap([tmp_path / "corpus"], tasks)
    assert [where.split()[0] for where in found.found] == [f"captions-{at}" for at in range(len(paths))]
