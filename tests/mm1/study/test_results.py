"""The table of results says what scores.json files say, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mm1.errors import UserError
from mm1.runs import write_json
from mm1.study.__main__ import main
from mm1.study.results import Model, markdown


def at(sighted: float | None, blind: float | None = None, **others: Any) -> dict[str, Any]:
    names = ("blank", "gain", "over_zero_shot")
    none = dict.fromkeys((*names, *(f"{name}_interval" for name in names), "interval", "blind_interval"))
    return {"sighted": sighted, "blind": blind, **none, **others}


def scores(folder: Path, shots: dict[str, Any], style: str = "plain", **task: Any) -> Path:
    entry = {"metric": "vqa_accuracy", "n": 1077, "warnings": [], "question_only": None, "constant": None}
    overlap = {"pictures": 0, "scored": 543, "trained": 2673, "found": []}
    about = {"format": 2, "settings": {"style": style}, "overlap": overlap}
    write_json(folder / "scores.json", {**about, "tasks": {"vqa/daquar": {**entry, **task, "shots": shots}}})
    return folder


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_a_row_for_each_stage_task_and_number_of_shots_and_a_column_for_each_model(tmp_path: Path) -> None:
    zero = at(20.04, 15, gain=5.04, gain_interval=[2, 8.06], interval=[18.5, 21.75])
    four = at(22, None, over_zero_shot=1.96, over_zero_shot_interval=[-1, 4.9])
    dense = scores(tmp_path / "dense/eval/photographs", {"0": zero, "4": four}, question_only=17.9, constant=6.5)
    tuned = scores(tmp_path / "dense-chat/eval/chat", {"0": at(30, 16)}, style="chat")
    moe = scores(tmp_path / "moe", {"0": at(21, 14)})
    blank = scores(tmp_path / "blank", {"0": at(9, blank=17.4), "4": at(18.2)})
    models = [Model("Dense", (dense.parents[1], tuned)), Model("MoE", (moe / "scores.json",))]
    text = markdown(models, [blank])
    assert rows(text) == [
        ["", "n", "Dense", "MoE", "trained without pictures", "question only", "best constant"],
        ["---", *["--:"] * 6],
        [
            "questions · daquar, accuracy, 0-shot",
            "1077",
            "**20.0** / 15.0<br><sub>18.5 to 21.8</sub><br><sub>sight +5.0 (+2.0 to +8.1)</sub>",
            "**21.0** / 14.0",
            "17.4",
            "17.9",
            "6.5",
        ],
        [
            "questions · daquar, accuracy, 4-shot",
            "1077",
            "**22.0** / –<br><sub>shots +2.0 (−1.0 to +4.9)</sub>",
            "–",
            "18.2",
            "17.9",
            "6.5",
        ],
        ["questions · daquar, accuracy, 0-shot after tuning", "1077", "**30.0** / 16.0", "–", "–", "–", "–"],
    ]
    assert "Dense: 0 of 2673 pictures trained on are among 543 scored ones." in text
    assert text.count("Dense: 0 of 2673") == 1, "said once, though two evaluations counted"


def test_columns_that_nothing_fills_are_left_out(tmp_path: Path) -> None:
    text = markdown([Model("Dense", (scores(tmp_path, {"0": at(1)}),))])
    assert rows(text)[0] == ["", "n", "Dense"]


def test_scores_of_format_1_are_still_read(tmp_path: Path) -> None:
    old = {"sighted": 1.0, "blind": 2.0, "interval": None, "blind_interval": None}
    task = {"metric": "cider", "n": 5, "warnings": [], "shots": {"0": old}, "question_only": None, "constant": None}
    write_json(tmp_path / "scores.json", {"format": 1, "settings": {}, "tasks": {"captions/t": task}})
    assert rows(markdown([Model("Old", (tmp_path,))]))[2] == ["captions · t, CIDEr, 0-shot", "5", "**1.0** / 2.0"]


def test_two_scores_for_one_cell_are_refused(tmp_path: Path) -> None:
    paths = tuple(scores(tmp_path / name, {"0": at(1)}) for name in "ab")
    with pytest.raises(UserError, match=r"both have vqa/daquar at 0 shots for Dense; expected one of them"):
        markdown([Model("Dense", paths)])


def test_the_door_prints_or_writes(tmp_path: Path, monkeypatch, capsys) -> None:
    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mm1-study", "results", *map(str, words)])
        main()
        return capsys.readouterr().out

    run = scores(tmp_path / "run/eval/x", {"0": at(1, 2)}).parents[1]
    told = call(f"My model={run}")
    assert told.startswith("| | n | My model |".replace("| |", "|  |"))
    assert call(f"My model={run}", "--out", tmp_path / "new/table.md").strip() == str(tmp_path / "new/table.md")
    assert (tmp_path / "new/table.md").read_text() == told
    for words, message in (([tmp_path], "expected a name and where"), ([f"A={tmp_path}"], "holds no scores; expected")):
        with pytest.raises(SystemExit) as exit:
            call(*words)
        assert exit.value.code == 2
        assert message in capsys.readouterr().err


def test_a_score_with_dropped_demonstrations_is_marked(tmp_path: Path) -> None:
    lost = at(40, 30, dropped={"answers": 3, "demonstrations": 7})
    text = markdown([Model("Dense", (scores(tmp_path, {"8": at(41, 31), "32": lost}),))])
    assert [row[2] for row in rows(text)[2:]] == ["**41.0** / 31.0", "**40.0**† / 30.0"]
    assert "† Some prompts exceeded the context" in text
