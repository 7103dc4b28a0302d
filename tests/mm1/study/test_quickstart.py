"""The main job: its list of stages, its bar, and what wrong folders get. scripts/test.sh --all runs the job."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mm1.errors import UserError
from mm1.study.quickstart import check_bar, quickstart, report, stages
from tests.mm1.study.made_up import make_run, make_scores


@pytest.mark.parametrize("data", [None, Path("somewhere")])
def test_every_stage_stands_after_what_it_needs(data: Path | None) -> None:
    job = stages(data, Path("out"), 2000)
    names = [stage.name for stage in job]
    assert ("scenes" in names) == (data is None)
    for i, stage in enumerate(job):
        assert set(stage.after) <= set(names[:i]), stage.name
        assert find_spec(stage.command[0]) is not None


def test_models_take_turns_so_that_they_run_side_by_side() -> None:
    names = [stage.name for stage in stages(None, Path("out"), 2000)][3:]
    assert names[:2] == ["dense-pretrain", "moe-pretrain"]
    assert [name.partition("-")[0] for name in names] == ["dense", "moe"] * 4


def test_every_yaml_of_the_job_is_there() -> None:
    for stage in stages(None, Path("out"), 2000) + stages(Path("data"), Path("out"), 2000):
        for word in stage.command:
            assert not word.endswith(".yaml") or Path(word).is_file(), word


def test_a_stage_that_starts_anew_empties_only_folders_inside_the_output() -> None:
    for stage in stages(Path("precious"), Path("out"), 2000):
        assert all(Path("out") in folder.parents for folder in stage.writes), stage.name


def made(out: Path, sighted: float, n: int = 500) -> Path:
    """An output folder as the stages leave it, with a made-up score."""
    for name, moe in (("dense", False), ("moe", True)):
        make_run(out / name, moe=moe, steps=60)
        chat = make_run(out / f"{name}-chat", moe=moe, kind="sft", steps=60)
        make_scores(chat, "chat", out / "pictures", shots=(0,), better=0)
        path = chat.folder / "eval" / "chat" / "scores.json"
        scores = json.loads(path.read_text())
        task = scores["tasks"]["scenes_vqa"]
        task["n"] = n
        task["shots"]["0"] |= {"sighted": sighted, "blind": 30.0}
        path.write_text(json.dumps(scores))
    return out


def test_the_bar_is_twenty_points_over_the_higher_of_both_baselines(tmp_path: Path) -> None:
    check_bar(made(tmp_path / "high", sighted=56.5))  # question only: 36.5
    with pytest.raises(UserError, match=r"dense: 56\.4 %.*19\.9 points"):
        check_bar(made(tmp_path / "low", sighted=56.4))


def test_too_few_questions_prove_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="399 questions; expected at least 400"):
        check_bar(made(tmp_path, sighted=99.0, n=399))


def test_the_report_is_written_from_what_stages_leave(tmp_path: Path) -> None:
    out = made(tmp_path, sighted=60.0)
    scenes = {"seconds": 20, "began": 0, "ended": 20, "side": "", "says": "draw the generated world", "done": True}
    (out / "phases.json").write_text(json.dumps({"format": 1, "stages": {"scenes": scenes}}))
    split = {"documents": 900, "text_tokens": 12_000, "images": 900, "cuts": 1}
    dropped = {"dropped": {"picture does not decode": {"count": 3, "examples": []}}}
    (out / "corpus").mkdir()
    streams = {"captions": {"train": split, "val": split, **dropped}}
    (out / "corpus" / "manifest.json").write_text(json.dumps({"streams": streams}))
    page = report(out, data=None).read_text()
    for shown in ("generated world", "draw the generated world", "20 s", "picture does not decode 3", "60.0<small> %"):
        assert shown in page, shown
    given = report(out, data=Path("photographs")).read_text()
    assert "the folder “photographs”" in given
    assert "a generated world" not in given


def test_data_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        quickstart(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
