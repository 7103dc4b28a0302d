"""Parts: the same shards for any split of the work, nothing done twice, and what is alike kept once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from data_pipelines import alike
from data_pipelines.__main__ import main
from data_pipelines.describe import describe
from data_pipelines.engines import Engine, Local, Ray
from data_pipelines.parts import parts_of
from data_pipelines.pipeline import Pipeline, Settings
from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.sources import Draft, Rejection
from data_pipelines.sources.text import TextLines
from data_pipelines.steps import Alike, Pictures, Step
from data_pipelines.train_tokenizer import train_tokenizer
from mm1.data.shards import ShardSet
from mm1.errors import UserError
from mm1.sample import Text

ROOT = Path(__file__).resolve().parents[2]
SMALL = Settings(row_tokens=64, tokens_per_image=4, image_px=16, val_share=0.1, part_rows=7)


class LongEnough(Step):
    """At least so many characters, or the process dies: both have to be survived."""

    def __init__(self, least: int, die_at: str = "") -> None:
        self.least, self.die_at = least, die_at

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        if self.die_at and self.die_at in draft.text:
            raise OSError("the disk is gone")
        return draft if len(draft.text) >= self.least else Rejection(draft.id, "too short", fault=False)


class SameEnd(Alike):
    """Documents with the same number at the end are alike; a key that all share tests the groups."""

    keys_per_document = 2

    def keys(self, draft: Draft, pictures: Pictures) -> numpy.ndarray:
        return numpy.array([7, 1000 + int(self.sketch(draft, pictures))], dtype=numpy.uint64)

    def sketch(self, draft: Draft, pictures: Pictures) -> bytes:
        return f"{int(draft.text.split()[-1]):04d}".encode()

    def alike(self, first: bytes, others: list[bytes]) -> numpy.ndarray:
        return numpy.array([first == other for other in others])


def write(folder: Path, documents: int = 60) -> Path:
    """Two files of lines; every text ends with its number modulo 40."""
    (folder / "text").mkdir(parents=True)
    lines = [json.dumps({"text": f"This is line {n:03d}, it ends with {n % 40}"}) + "\n" for n in range(documents)]
    (folder / "text/a.jsonl").write_text("".join(lines[:25]) + "\n" + json.dumps({"text": "short"}) + "\n")
    (folder / "text/b.jsonl").write_text("".join(lines[25:]))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "raw")


@pytest.fixture
def out(raw: Path, tmp_path: Path) -> Path:
    train_tokenizer(raw, tmp_path / "out", 300)
    return tmp_path / "out"


def pipeline(raw: Path, *steps: Step, settings: Settings = SMALL) -> Pipeline:
    files: list[str | Path] = [raw / "text/a.jsonl", raw / "text/b.jsonl"]
    return Pipeline({"text": [TextLines(files)]}, settings, list(steps))


def texts(out: Path) -> list[str]:
    sets = [ShardSet(out, "text", split) for split in ("train", "val")]
    return sorted(item.text for one in sets for n in range(len(one)) for item in one[n].items if isinstance(item, Text))


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_parts_are_blocks_of_lines_and_lose_none(raw: Path) -> None:
    parts = parts_of("text", [TextLines([raw / "text/a.jsonl", raw / "text/b.jsonl"])], 7)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert len(parts) == 4 + 5
    found = [draft.id for part in parts for draft in part.drafts()]
    assert found == [f"a:{n}" for n in [*range(1, 26), 27]] + [f"b:{n}" for n in range(1, 36)]


def test_files_of_one_name_give_documents_of_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jsonl").write_text('{"text": "one"}\n')
    parts = parts_of("text", [TextLines([tmp_path / "a/0.jsonl", tmp_path / "b/0.jsonl"])], 7)
    first, second = (draft.id for part in parts for draft in part.drafts())
    assert first != second
    assert first.startswith("a-")
    assert first.endswith("/0:1")


def test_shards_do_not_depend_on_the_number_of_processes(raw: Path, out: Path, tmp_path: Path) -> None:
    first = pipeline(raw, LongEnough(10), SameEnd()).run(out, Local(1))
    before = files(out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.model").write_bytes((out / "tokenizer.model").read_bytes())
    assert pipeline(raw, LongEnough(10), SameEnd()).run(other, Local(3)) == first
    assert files(other) == before
    assert not (out / "buckets").exists()


def test_of_what_is_alike_the_first_stays_and_all_is_counted(raw: Path, out: Path) -> None:
    manifest = pipeline(raw, LongEnough(10), SameEnd()).run(out, Local(1))
    assert texts(out) == [f"This is line {n:03d}, it ends with {n}" for n in range(40)]
    written = manifest["streams"]["text"]
    assert {reason: found["count"] for reason, found in written["dropped"].items()} == {
        "too short": 1,
        "like an earlier document (SameEnd)": 20,
    }
    assert written["steps"] == [{"step": "LongEnough", "in": 61, "out": 60}, {"step": "SameEnd", "in": 60, "out": 40}]
    assert written["train"]["documents"] + written["val"]["documents"] == 40
    assert pipeline(raw, LongEnough(10), SameEnd()).run(out, Local(1)) == manifest
    assert "  text                   60           40  SameEnd" in describe(manifest)


def test_another_setting_of_a_step_is_another_corpus(raw: Path, out: Path) -> None:
    pipeline(raw, LongEnough(10)).run(out, Local(1))
    assert "short" not in texts(out)
    pipeline(raw, LongEnough(1)).run(out, Local(1))
    assert "short" in texts(out)


def test_a_run_that_broke_goes_on_after_the_last_finished_part(
    raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        pipeline(raw, LongEnough(10, die_at="line 045")).run(out, Local(1))
    assert not (out / "manifest.json").exists()
    done = sorted(path.name for path in (out / "text/parts").glob("*.json"))
    assert done == [f"{n:06d}.json" for n in range(6)], "parts 0 to 5 hold lines 0 to 38"
    dates = {name: (out / "text/parts" / name).stat().st_mtime_ns for name in done}
    monkeypatch.setattr(LongEnough, "__call__", lambda self, draft, pictures: draft)
    pipeline(raw, LongEnough(10, die_at="line 045")).run(out, Local(1))
    assert {name: (out / "text/parts" / name).stat().st_mtime_ns for name in done} == dates
    assert len(texts(out)) == 60, "parts that were done keep what their steps said"


def test_groups_that_share_a_key_by_chance_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "FIRSTS", 3)
    rows = alike.packed((5, number, f"{number % 10:04d}".encode()) for number in range(30))
    lost = alike.Losers(SameEnd()).of(rows)
    assert sorted(int(n) for n in lost) == [n for n in range(10, 30) if n % 10 < 3]


class Bare(Step):
    """A step with a setting of each kind, for the YAML."""

    def __init__(self, least: int = 1, names: list[str] | None = None) -> None:
        self.least, self.names = least, names

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        return draft


YAML = """
out: OUT
inputs:
  text:
    - class_path: data_pipelines.sources.text.TextLines
      init_args: {files: RAW/text/*.jsonl}
settings: {row_tokens: 64, tokens_per_image: 4, image_px: 16}
"""


def written(raw: Path, out: Path, more: str = "") -> Path:
    path = raw.parent / "pipeline.yaml"
    path.write_text(YAML.replace("RAW", str(raw)).replace("OUT", str(out)) + more)
    return path


def test_a_pipeline_is_a_yaml(raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-data", "run", str(written(raw, out)), "--workers", "1"])
    main()
    assert "text         train" in capsys.readouterr().out
    assert len(texts(out)) == 61


@pytest.mark.parametrize("path", sorted((ROOT / "configs/pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_pipeline_of_ours_can_be_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r"folder: ([\w/]+)", path.read_text()):  # stores look for theirs at once
        Path(folder).mkdir(parents=True)
    made, out = read_pipeline(path)
    assert out
    assert all(reader.given for readers in made.inputs.values() for reader in readers)


def test_a_pipeline_gives_a_tokenizer_its_text(raw: Path, tmp_path: Path) -> None:
    path = written(raw, tmp_path / "unused")
    assert train_tokenizer(path, tmp_path / "a", 300).proto == train_tokenizer(raw, tmp_path / "b", 300).proto


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("steps: [{class_path: nowhere.Step}]", "No module named 'nowhere'"),
        ("steps: 3", "steps"),
        ("setings: {row_tokens: 9}", "setings"),
        ("scored: [", "pipeline.yaml"),
    ],
)
def test_what_is_wrong_in_a_pipeline_is_one_sentence(raw: Path, out: Path, more: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        read_pipeline(written(raw, out, more))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_ray_writes_the_same_shards(raw: Path, out: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'mm1[ray]')")
    first = pipeline(raw, LongEnough(10), SameEnd()).run(out, Local(1))
    before = files(out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.model").write_bytes((out / "tokenizer.model").read_bytes())
    engine: Engine = Ray(workers=2)
    try:
        assert pipeline(raw, LongEnough(10), SameEnd()).run(other, engine) == first
        assert files(other) == before
        with pytest.raises(UserError, match="too short"):
            list(engine.map(_complain, [1]))
    finally:
        ray.shutdown()


def _complain(value: int) -> int:
    raise UserError("too short")
