"""MM1's tables: published rows as gathered, ours beside them, and every difference of protocol marked."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.layout import COLUMNS, layout, published_rows
from mm1.errors import UserError


def scored(folder: Path, tasks: dict[str, dict[str, Any]], overlap: Any = None, **settings: Any) -> Path:
    """A ``scores.json`` with the numbers of tasks by shots."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: {"n": 100, "metric": "m", "warnings": [], "shots": shots} for name, shots in tasks.items()}
    about = {"text_only_demonstrations": 2, "limit": None, "style": "plain", **settings}
    text = json.dumps({"format": 3, "settings": about, "overlap": overlap, "tasks": entries})
    (folder / "scores.json").write_text(text)
    return folder


def cells(text: str, model: str) -> list[list[str]]:
    """Rows of a Markdown table that belong to a model."""
    found, mine = [], False
    for line in text.splitlines():
        if line.startswith("| "):
            row = [cell.strip() for cell in line.strip("|").split("|")]
            mine = row[0].strip("*") == model if row[0] else mine
            found += [row[1:]] * mine
    return found


def row(text: str) -> list[str]:
    return text.split()


def test_published_rows_are_those_that_were_gathered() -> None:
    text = layout([])
    assert cells(text, "MM1-3B")[1] == row("8 114.6 104.7 88.8 63.6 44.6 46.4 48.4")
    assert cells(text, "MM1-30B")[2] == [
        *("16", "125.3 (unverified)", "116.0 (unverified)", "97.6 (unverified)"),
        *("71.9", "50.6", "57.9", "59.3 (unverified)"),
    ]
    assert cells(text, "MM1-7B")[2][:2] == ["16 (unverified)", "118.6"]
    assert cells(text, "Emu2-14B") == [row("8 – – – 59.0 – 43.9 –")]
    shots = {(row.model, row.shots) for row in published_rows("fewshot")}
    assert {(f"MM1-{size}B", count) for size in (3, 7, 30) for count in (0, 8, 16)} <= shots
    tuned = layout([], "sft")
    assert cells(tuned, "MM1-3B-MoE-Chat") == [
        row("0 82.5 72.9 76.1 38.6/35.7 32.6 1469.4 303.1 70.8 63.9/69.4 87.6 76.8 42.2")
    ]
    assert cells(tuned, "LLaVA-NeXT-7B")[0][4] == "35.8/–"
    assert "Flamingo" not in layout([], published="mm1")
    assert layout([], published="none").count("\n| ") == 1, "the rule below the heads"


def test_ours_stand_beside_with_dashes_where_nothing_was_asked(tmp_path: Path) -> None:
    tasks = {
        "coco/karpathy-test": {"0": {"sighted": 70.04}, "8": {"sighted": 100.0}},
        "textvqa/val": {"8": {"sighted": 30.25}},
        "textvqa/val-ocr": {"8": {"sighted": 50}},
        "vizwiz/test": {"8": {"sighted": None}},
        "icl": {"0": {"sighted": 50}},
    }
    text = layout([("Ours", scored(tmp_path / "run/eval/fewshot", tasks))])
    assert cells(text, "Ours") == [row("0 70.0 – – – – – –"), row("8 100.0 – – – 30.2 – –")]
    assert "<sup>" not in text, "all as published"


def test_another_protocol_is_marked_with_its_reason(tmp_path: Path) -> None:
    tasks = {
        "coco/val2017": {"0": {"sighted": 70}, "4": {"sighted": 90, "dropped": {"answers": 1, "demonstrations": 2}}},
        "okvqa/val": {"4": {"sighted": 40}},
        "textvqa/val-ocr": {"4": {"sighted": 50}},
    }
    leaks = {"tasks": {"okvqa/val": {"pictures": 3, "questions": 9, "either": 9}}}
    settings = {"text_only_demonstrations": 0, "limit": 100, "demonstrations": "similar"}
    text = layout([("Ours", scored(tmp_path, tasks, leaks, **settings))], published="none")
    notes = [line for line in text.splitlines() if line.startswith("<sup>")]
    assert notes == [
        "<sup>a</sup> coco/val2017, published is coco/karpathy-test",
        "<sup>b</sup> 0 shots with no text-only demonstrations, MM1's have 2",
        "<sup>c</sup> 100 questions of a benchmark at most, drawn by the seed",
        "<sup>d</sup> retrieved demonstrations",
        "<sup>e</sup> OCR tokens stand in the prompt",
        "<sup>f</sup> 3 of 100 questions are about pictures that were trained on",
    ]
    zero, four = cells(text, "Ours")
    assert zero[1] == "70.0<sup>a,b,c</sup>"
    assert four[1] == "90.0†<sup>a,c,d</sup>"
    assert four[5] == "50.0<sup>e,c,d</sup>"
    assert four[7] == "40.0<sup>c,d,f</sup>"
    assert text.splitlines()[-1].startswith("† some prompts exceeded the context")


def test_a_tuned_model_has_two_numbers_in_a_cell_and_halves_of_mme(tmp_path: Path) -> None:
    also = {"sighted": {"perception": 1500.5, "cognition": 300}}
    tasks = {
        "mme": {"0": {"sighted": 1800.5, "also": also}},
        "seed/image": {"0": {"sighted": 70}},
        "mmmu/val": {"0": {"sighted": 35}},
    }
    text = layout([("Ours", scored(tmp_path, tasks, style="chat"))], "sft")
    found = dict(zip(["shots", *COLUMNS["sft"]], cells(text, "Ours")[0], strict=True))
    assert (found["MME-P"], found["MME-C"], found["SEED"], found["MMMU"]) == ("1500.5", "300.0", "–/70.0", "35.0/–")
    assert "<sup>" not in text


def test_mmbench_is_right_in_all_turns_where_that_was_asked(tmp_path: Path) -> None:
    once, turns = {"mmbench/dev_en": {"0": {"sighted": 80}}}, {"mmbench/dev_en-circular": {"0": {"sighted": 60}}}
    at = list(COLUMNS["sft"]).index("MMBench") + 1
    both = layout([("Ours", scored(tmp_path / "both", {**once, **turns}, style="chat"))], "sft", "none")
    assert cells(both, "Ours")[0][at] == "60.0<sup>a</sup>"
    assert "asked once" not in both
    assert "asked once, published is right in all turns" in layout([("Ours", scored(tmp_path / "a", once))], "sft")


def test_another_way_to_ask_is_marked(tmp_path: Path) -> None:
    asked = {"style": "plain", "choosing": "likelihood", "choices": {"reasoning": "{rationale} {answer}"}}
    path = scored(tmp_path, {"seed/image": {"0": {"sighted": 50}}, "pope/coco": {"0": {"sighted": 60}}}, **asked)
    scores = json.loads((path / "scores.json").read_text())
    scores["tasks"]["seed/image"]["metric"] = "choice"
    (path / "scores.json").write_text(json.dumps(scores))
    text = layout([("Ours", path)], "sft", "none")
    found = dict(zip(["shots", *COLUMNS["sft"]], cells(text, "Ours")[0], strict=True))
    assert (found["SEED"], found["POPE"]) == ("–/50.0<sup>a,b,c</sup>", "60.0<sup>a,c</sup>")
    for note in ("without the turns of a conversation", "likeliest choice taken", "reason before they answer"):
        assert note in text


def test_a_judge_and_what_is_missing_are_marked(tmp_path: Path) -> None:
    tasks = {name: {"0": {"sighted": 50}} for name in ("llava-bench/wild", "mathvista/testmini", "pope/coco")}
    path = scored(tmp_path, tasks) / "scores.json"
    scores = json.loads(path.read_text())
    kinds = {"llava-bench/wild": "llava_bench", "mathvista/testmini": "mathvista", "pope/coco": "pope"}
    for name, task in scores["tasks"].items():
        task["metric"] = kinds[name]
    scores["tasks"]["pope/coco"]["warnings"] = ["without random, so that the mean is not POPE's", "prompts hold .."]
    path.write_text(json.dumps(scores))
    text = layout([("Ours", tmp_path)], "sft", "none")
    assert "pope/coco: without random, so that the mean is not POPE's" in text
    assert "prompts hold" not in text
    assert "mathvista/testmini read by rules, published by a language model" in text
    path.write_text(json.dumps({**scores, "judge": {"name": "umpire at home"}}))
    text = layout([("Ours", tmp_path)], "sft", "none")
    for name in ("llava-bench/wild", "mathvista/testmini"):
        assert f"{name} read by umpire at home, published by GPT-4, in other words" in text


@pytest.mark.parametrize(
    "tasks",
    ["[]", '{"mme": 1}', '{"mme": {}}', '{"mme": {"shots": {"x": {}}}}', '{"mme": {"shots": {"0": {"sighted": ""}}}}'],
)
def test_scores_that_are_none_are_told(tmp_path: Path, tasks: str) -> None:
    (tmp_path / "scores.json").write_text(f'{{"tasks": {tasks}}}')
    with pytest.raises(
        UserError, match=r"scores\.json has no (tasks|scores of mme by shots); expected scores written by"
    ):
        layout([("Ours", tmp_path)], "sft")
    (tmp_path / "scores.json").write_text('{"tasks": {"mme": {"n": 1, "shots": {"0": {}}}}}')
    assert cells(layout([("Ours", tmp_path)], "sft"), "Ours") == []


def test_a_table_is_not_written_over_its_scores(tmp_path: Path, monkeypatch, capsys) -> None:
    path = scored(tmp_path, {"okvqa/val": {"8": {"sighted": 41}}}) / "scores.json"
    before = path.read_text()
    monkeypatch.setattr(sys, "argv", ["mm1-eval", "table", str(tmp_path), "--out", str(path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "scores.json is what is read here" in capsys.readouterr().err
    assert path.read_text() == before


def test_csv_has_numbers_alone_and_notes_in_a_column(tmp_path: Path) -> None:
    dropped = {"sighted": 90, "dropped": {"answers": 1, "demonstrations": 2}}
    folder = scored(tmp_path, {"coco/karpathy-test": {"8": dropped}, "nocaps/val": {"8": {"sighted": 80}}})
    rows = list(csv.DictReader(io.StringIO(layout([("Ours", folder)], form="csv"))))
    assert (rows[-1]["model"], rows[-1]["COCO"], rows[-1]["NoCaps"], rows[-1]["VQAv2"]) == ("Ours", "90.0", "80.0", "–")
    assert rows[-1]["notes"] == "demonstrations dropped to fit the context: COCO"
    assert [row["notes"] for row in rows if row["model"] == "MM1-30B"][2] == "unverified: COCO, NoCaps, TextCaps, OKVQA"


def test_the_door_names_runs_and_writes_files(tmp_path: Path, monkeypatch, capsys) -> None:
    scored(tmp_path / "first/eval/fewshot", {"okvqa/val": {"8": {"sighted": 41}}})
    scored(tmp_path / "second/eval/a", {"okvqa/val": {"8": {"sighted": 42}}})
    scored(tmp_path / "second/eval/b", {"nocaps/val": {"8": {"sighted": 43}}})
    names = [tmp_path / "first/eval/fewshot", f"Two={tmp_path / 'second'}"]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", "table", *map(str, names), "--out", f"{tmp_path}/t.csv"])
    main()
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["model"], row["NoCaps"], row["OKVQA"]) for row in rows[-2:]] == [
        ("first", "–", "41.0"),
        ("Two", "43.0", "42.0"),
    ]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", "table", f"{tmp_path}/second", "--published", "mm1"])
    main()
    assert cells(capsys.readouterr().out.partition("\n")[2], "second") == [row("8 – 43.0 – – – – 42.0")]


def test_what_cannot_be_laid_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no scores; expected a run folder"):
        layout([("x", tmp_path)])
    for name in ("a", "b"):
        scored(tmp_path / f"eval/{name}", {"okvqa/val": {"8": {"sighted": 42}}})
    with pytest.raises(UserError, match=r"has okvqa/val at 8 shots twice, also in .*b/scores\.json"):
        layout([("x", tmp_path)])
