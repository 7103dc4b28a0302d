"""No picture that is scored stands in what is trained on; one that is planted is found, resized and saved again."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
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
from tests.eval import releases

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


def shard(corpus: Path, stream: str, pictures: list[bytes], resize: str = "squash", texts: Sequence[str] = ()) -> None:
    """A corpus of one stream, one picture or text a document."""
    with ShardWriter(corpus / stream, "train") as writer:
        for at, data in enumerate(pictures):
            writer.write(Sample((Image(data), Text("x")), stream, f"{stream}-{at}"), 3)
        for at, text in enumerate(texts, len(pictures)):
            writer.write(Sample((Text(text),), stream, f"{stream}-{at}"), len(text))
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
    record = found.record()
    assert (record["pictures"], record["scored"], record["trained"], record["found"]) == (0, 5, 3, ())
    assert str(found).splitlines() == [
        "0 of 3 pictures to train on are among 5 scored ones",
        "0 of 1 scored questions stand in texts to train on",
    ]


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
    expected |= {"questions": 0, "questions_scored": 5, "questions_found": []}
    expected |= {"tasks": {"vqa/daquar": {"pictures": 1, "questions": 0, "either": 1}}}
    assert read_json(tmp_path / "out/scores.json", "")["overlap"] == expected
    assert "overlap: 1 of 3 pictures trained on are among 5 scored" in capsys.readouterr().out


def test_scores_without_what_leaked_stand_beside_and_are_made_again(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch
) -> None:
    """Question 3 by its picture, question 1 by its words; the answer to question 3 is made right by hand."""

    def call(*words: object) -> dict:
        monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
        main()
        return read_json(tmp_path / "out/scores.json", "")

    shard(tmp_path / "one", "captions", [(data / "vqa/daquar/images/3.png").read_bytes()])
    shard(tmp_path / "two", "text", [], texts=["It said: What is thing 1? Nobody knew."])
    settings = ["--shots", "[0]", "--tasks", "[vqa/daquar]", "--out", tmp_path / "out"]
    scores = call("run", checkpoint, "--data", data, "--corpus", tmp_path / "one", tmp_path / "two", *settings)
    assert scores["overlap"]["tasks"] == {"vqa/daquar": {"pictures": 1, "questions": 1, "either": 2}}
    assert scores["tasks"]["vqa/daquar"]["shots"]["0"]["clean_n"] == 3
    path = tmp_path / "out/answers.jsonl"
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    for answer in answers:
        answer["answer"] = "wall clock" if answer["id"] in ("3", "4") else "no"
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    at = call("score", path)["tasks"]["vqa/daquar"]["shots"]["0"]
    assert at["sighted"] == pytest.approx(40)
    assert at["clean"] == pytest.approx(100 / 3)
    assert at["clean_interval"] == [0, 100]
    assert read_json(tmp_path / "out/overlap.json", "") == {"vqa/daquar": {"pictures": ["3"], "questions": ["1"]}}


def test_a_corpus_of_another_tokenizer_is_none_that_the_checkpoint_was_trained_on(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    shard(tmp_path / "one", "captions", [jpeg(photo(100))])
    about = read_json(tmp_path / "one/manifest.json", "")
    write_json(tmp_path / "one/manifest.json", about | {"tokenizer": "0123456789abcdef"})
    monkeypatch.setattr(
        sys, "argv", ["mm1-eval", "run", f"{checkpoint}", "--data", f"{data}", "--corpus", f"{tmp_path}/one"]
    )
    with pytest.raises(SystemExit):
        main()
    assert "was written with tokenizer 0123456789abcdef and" in capsys.readouterr().err


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
    releases.gqa(tmp_path / "rel")
    (tmp_path / "rel/gqa/images").rename(tmp_path / "photos")
    assert call("contamination", tmp_path / "corpus", "--data", tmp_path / "rel") == 2
    assert (
        call(
            "contamination", tmp_path / "corpus", "--data", tmp_path / "rel", "--images", f"{{gqa: {tmp_path}/photos}}"
        )
        == 0
    )


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
