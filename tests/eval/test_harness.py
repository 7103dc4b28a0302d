"""A whole evaluation on a tiny random model: its files, its resuming, and its use inside training."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from eval import harness
from eval.harness import Benchmarks, run
from eval.prompts import Prompt, Settings
from mm1.data.image import prepare
from mm1.data.reader import GREY
from mm1.data.tokenizer import Tokenizer, from_hf
from mm1.errors import UserError
from mm1.infer.continuous import Answer as Said
from mm1.infer.engine import Engine
from mm1.model.mm1 import MM1
from mm1.sample import Image
from mm1.template import Template
from tests.mm1.data.hf_folders import write

SETTINGS = Settings(shots=(0, 2), captions=Prompt("{image}{answer}", max_new_tokens=4))
JOBS = 2 * 2 * (6 + 8 + 5) + 2 * 3  # shots x arms x questions, and made-up words without shots


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each call of the engine decoded or scored."""
    counts: list[int] = []

    class Counting(Engine):
        def answers(self, prompts: Any, *more: Any) -> Any:
            for answer in super().answers(prompts, *more):
                counts.append(1)
                yield answer

        def score(self, prompts: Any, continuations: Any) -> list[float]:
            counts.append(len(prompts) // 2)  # two choices each
            return super().score(prompts, continuations)

    monkeypatch.setattr(harness, "Engine", Counting)
    return counts


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_answers_and_scores_are_written_as_agreed(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    scores = run(model, tokenizer, checkpoint, data, SETTINGS, out)
    assert json.loads((out / "scores.json").read_text()) == json.loads(json.dumps(scores))
    assert scores["format"] == 3
    assert scores["checkpoint"] == str(checkpoint)
    assert scores["settings"]["shots"] == (0, 2)
    captions, lessons = scores["tasks"]["captions/mini"], scores["tasks"]["icl"]
    assert (captions["metric"], captions["n"]) == ("cider", 6)
    assert "n = 6" in captions["warnings"][0]
    assert captions["shots"].keys() == {"0", "2"}
    assert captions["shots"]["2"].keys() >= {"sighted", "blind", "blank", "interval", "blind_interval"}
    assert captions["shots"]["2"]["blank"] is None, "an arm that was not asked"
    assert (lessons["shots"].keys(), lessons["constant"], lessons["question_only"]) == ({"0"}, 50, None)
    answers = lines(out)
    names = "task shots arm id seed demonstrations dropped image shown question prompt answer references score"
    more = {"choices", "about", "margin"}
    assert all(answer.get("margin", 0) >= 0 for answer in answers)
    assert any("margin" in answer for answer in answers)
    assert {tuple(name for name in answer if name not in more) for answer in answers} == {tuple(names.split())}
    assert len(answers) == JOBS
    assert max(Counter((a["task"], a["shots"], a["arm"], a["id"]) for a in answers).values()) == 1


def test_the_arms_differ_in_the_querys_picture_alone(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    run(model, tokenizer, checkpoint, data, SETTINGS, tmp_path / "out")
    arms: dict[str, dict] = {"sighted": {}, "blind": {}}
    for answer in lines(tmp_path / "out"):
        arms[answer["arm"]][answer["task"], answer["shots"], answer["id"]] = answer
    assert arms["sighted"].keys() == arms["blind"].keys()
    for key, sighted in arms["sighted"].items():
        blind = arms["blind"][key]
        assert sighted["image"] == sighted["shown"] == blind["image"]
        assert (blind["shown"] == blind["image"]) == (key[0] == "icl")
        assert sighted["prompt"] == blind["prompt"]


def test_demonstrations_without_pictures_stand_before_zero_shots_alone(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, text_only_demonstrations=2, separator="\n", tasks=("vqa/daquar", "icl"))
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert scores["settings"]["text_only_demonstrations"] == 2
    spoken = {a["id"]: a for a in lines(tmp_path / "out") if (a["task"], a["arm"]) == ("vqa/daquar", "sighted")}
    for answer in lines(tmp_path / "out"):
        if answer["task"] == "icl":
            assert answer["prompt"].count("Short answer:") == 1, "made-up words bring their own"
            continue
        pictures = answer["prompt"].count("<image>")
        assert (answer["prompt"].count("Short answer:"), pictures) == (3, 1 if answer["shots"] == 0 else 3)
        assert answer["prompt"].replace("<image>", "") == spoken[answer["id"]]["prompt"].replace("<image>", "")


def test_every_seed_brings_its_own_demonstrations(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int]
) -> None:
    settings = replace(SETTINGS, tasks=("vqa/daquar",), seeds=(3, 4), limit=3)
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    given = lines(tmp_path / "out")
    assert Counter((a["shots"], a["arm"], a["seed"]) for a in given) == {
        **{(0, arm, 3): 3 for arm in ("sighted", "blind")},  # nothing to draw: all seeds would ask the same
        **{(2, arm, seed): 3 for arm in ("sighted", "blind") for seed in (3, 4)},
    }
    assert scores["tasks"]["vqa/daquar"]["shots"]["2"]["seeds"].keys() == {"3", "4"}
    one = replace(settings, seeds=(), seed=4, limit=None)
    run(model, tokenizer, checkpoint, data, one, tmp_path / "one")
    alone = {(a["shots"], a["arm"], a["id"]): a["demonstrations"] for a in lines(tmp_path / "one")}
    mine = {(a["shots"], a["arm"], a["id"]): a["demonstrations"] for a in given if a["seed"] == 4}
    assert mine == {key: alone[key] for key in mine}, "a seed draws the same whatever others there are"
    asked.clear()
    assert run(model, tokenizer, checkpoint, data, settings, tmp_path / "out") == scores
    assert asked == []


def test_answers_are_taken_out_of_what_was_said(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["It ticks. Answer: wall clock", "no idea"] * 5)

    class Reasoning(Engine):
        def answers(self, prompts: Any, *more: Any) -> Any:
            return (Said(at, next(said), (), None) for at, _ in enumerate(prompts))

    monkeypatch.setattr(harness, "Engine", Reasoning)
    vqa = Prompt(reasoning="{rationale} Answer: {answer}", extract=r"Answer:\s*(.*)")
    settings = replace(SETTINGS, shots=(0,), vqa=vqa, arms=("sighted",), tasks=("vqa/daquar",))
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")["tasks"]["vqa/daquar"]
    found = [(a["answer"], a["said"], a["taken"], a["score"]) for a in lines(tmp_path / "out")]
    assert found[:2] == [("wall clock", "It ticks. Answer: wall clock", True, 100), ("no idea", "no idea", False, 0)]
    assert scores["shots"]["0"]["sighted"] == pytest.approx(60)
    assert "in 2 of 5 there was no answer to extract: all that was said was scored" in scores["warnings"]


def test_the_blank_arm_sees_one_grey_picture_and_no_other(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[bytes] = set()

    class Watching(Engine):
        def answers(self, prompts: Any, *more: Any) -> Any:
            seen.update(item.data for prompt in prompts for item in prompt if isinstance(item, Image))
            return super().answers(prompts, *more)

    monkeypatch.setattr(harness, "Engine", Watching)
    settings = replace(SETTINGS, arms=("blank",), tasks=("vqa/daquar", "captions/mini"))
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    [grey] = seen
    trained_on = torch.full((3, 64, 64), GREY, dtype=torch.uint8)
    assert torch.equal(prepare(grey, model.image_spec), trained_on), "what data.blank shows while training"
    assert all(answer["shown"] == "" for answer in lines(tmp_path / "out"))
    shots = scores["tasks"]["vqa/daquar"]["shots"]["2"]
    assert shots["sighted"] is shots["blind"] is None
    assert 0 <= shots["blank_interval"][0] <= shots["blank"] <= shots["blank_interval"][1]


def test_a_run_that_was_killed_asks_only_what_is_left(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int]
) -> None:
    whole = run(model, tokenizer, checkpoint, data, SETTINGS, tmp_path / "whole")
    assert sum(asked) == JOBS
    asked.clear()
    out = tmp_path / "killed"
    run(model, tokenizer, checkpoint, data, SETTINGS, out)
    path = out / "answers.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:30]) + text[30][:50])  # killed while the 31st line was written
    asked.clear()
    assert run(model, tokenizer, checkpoint, data, SETTINGS, out) == whole
    assert sum(asked) == JOBS - 30
    assert sorted(map(str, lines(out))) == sorted(map(str, lines(tmp_path / "whole")))


def test_what_an_earlier_run_left_damaged(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int]
) -> None:
    settings, out = Settings(shots=(0,), tasks=("vqa/daquar",)), tmp_path / "out"
    whole = run(model, tokenizer, checkpoint, data, settings, out)
    with (out / "answers.jsonl").open("ab") as lines:
        lines.write(b"[1]\n3\n{}\n\xff\xfe\n")
    asked.clear()
    assert run(model, tokenizer, checkpoint, data, settings, out) == whole
    assert sum(asked) == 0
    (out / "asked.json").write_text("[]")
    with pytest.raises(UserError, match=r"asked\.json holds a list, no object; .* delete it to ask all of them again"):
        run(model, tokenizer, checkpoint, data, settings, out)


def test_a_scored_picture_that_does_not_decode_is_named(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int], monkeypatch
) -> None:
    """Before anything is asked, however many chunks of questions come before it."""
    monkeypatch.setattr("eval.harness.CHUNK", 1)
    path = data / "vqa/daquar/images/2.png"
    path.write_bytes(path.read_bytes()[:50])
    settings = Settings(shots=(0,), arms=("sighted",), tasks=("vqa/daquar",))
    with pytest.raises(UserError, match=r"images/2\.png is not readable \(picture does not decode\)"):
        run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert not asked
    run(model, tokenizer, checkpoint, data, replace(settings, arms=("blank",)), tmp_path / "out")


def test_a_changed_setting_checkpoint_or_file_starts_over(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int]
) -> None:
    def count(settings: Settings) -> int:
        asked.clear()
        run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
        return sum(asked)

    settings = Settings(shots=(0,), tasks=("vqa/daquar",))
    assert count(settings) == 10
    assert count(settings) == 0
    assert count(replace(settings, batch_positions=500)) == 0, "speed changes no answer"
    assert count(replace(settings, separator="\n")) == 10
    os.utime(checkpoint, (1, 1))
    assert count(replace(settings, separator="\n")) == 10
    rows = (data / "vqa/daquar/test.jsonl").read_text()
    (data / "vqa/daquar/test.jsonl").write_text(rows.replace("wall_clock", "lamp", 1))
    assert count(replace(settings, separator="\n")) == 10


def test_answers_of_another_tokenizer_are_not_thrown_away(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    settings = Settings(shots=(0,), tasks=("vqa/daquar",))
    run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    mark = tmp_path / "out/asked.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "tokenizer": "0123"}))
    before = lines(tmp_path / "out")
    with pytest.raises(UserError, match=r"out holds answers of a checkpoint with tokenizer 0123, this one has .*--out"):
        run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert lines(tmp_path / "out") == before


def test_a_run_that_is_refused_throws_no_answer_away(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int]
) -> None:
    settings = Settings(shots=(0,), tasks=("vqa/daquar",))
    run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    before = lines(tmp_path / "out")
    for refused in (replace(settings, shots=(0, 50)), replace(settings, max_positions=20)):
        with pytest.raises(UserError, match=r"50 shots for question|expected at most 20"):
            run(model, tokenizer, checkpoint, data, refused, tmp_path / "out")
        assert lines(tmp_path / "out") == before
    asked.clear()
    run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert sum(asked) == 0


def test_a_prompt_is_measured_and_stored_in_the_words_that_the_model_sees(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """A template with long instructions takes positions, and drops demonstrations, like all else that is read."""
    words = Template(user="<|u|>{text}<|a|>", instructions="You answer " + "briefly and " * 10 + "well.")
    told = copy.copy(model)
    told.template = words
    settings = Settings(style="chat", vqa=Prompt("{image}{question}"), shots=(3,), tasks=("vqa/daquar",))
    settings = replace(settings, captions=Prompt("{image}"), choices=Prompt("{image}{question}"), arms=("sighted",))
    settings = replace(settings, open=Prompt("{image}{question}"), icl=Prompt("{image}{question}"))
    run(told, tokenizer, checkpoint, data, settings, tmp_path / "out")
    for answer in lines(tmp_path / "out"):
        assert answer["prompt"].startswith(f"System: {words.instructions}\n<image><|u|>what is thing ")
        assert answer["prompt"].count("<|a|> wall clock</s>") == 3
        assert answer["prompt"].endswith("?<|a|>")
        assert "User:" not in answer["prompt"]
    plain = run(model, tokenizer, checkpoint, data, settings, tmp_path / "plain")
    assert plain["tasks"]["vqa/daquar"]["shots"]["3"]["dropped"] is None
    shorter = replace(settings, when_too_long="drop", max_positions=260)
    for of in (told, model):
        name = "short" if of is told else "plain short"
        scores = run(of, tokenizer, checkpoint, data, shorter, tmp_path / name)
        assert bool(scores["tasks"]["vqa/daquar"]["shots"]["3"]["dropped"]) == (of is told)


def test_a_choice_without_a_word_is_refused(model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path) -> None:
    path = data / "icl/test.jsonl"
    path.write_text(path.read_text().replace('["dako", "wupi"]', '["dako", ""]'))
    with pytest.raises(UserError, match="icl, question l0: a choice is empty"):
        run(model, tokenizer, checkpoint, data, Settings(shots=(0,), tasks=("icl",)), data / "out")


def test_a_choice_is_said_as_a_demonstration_says_it(
    model: MM1, tokenizer: Tokenizer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary of bytes has another token for a word behind a space, which is the one that was learned."""
    of_bytes = Tokenizer.from_bytes(from_hf(write("gpt2", tmp_path / "gpt2")))
    said: list[str] = []
    monkeypatch.setattr(Engine, "score", lambda self, prompts, spoken: said.extend(spoken) or [0.0] * len(spoken))
    settings = Settings(shots=(0,), tasks=("icl",), arms=("sighted",), limit=1)
    Benchmarks(str(data), settings)(model, of_bytes)
    Benchmarks(str(data), settings)(model, tokenizer)
    Benchmarks(str(data), replace(settings, icl=Prompt("{image}{question}\n{answer}")))(model, of_bytes)
    assert said == [" dako", " wupi", "dako", "wupi", "dako", "wupi"]


def test_a_folder_is_told_from_another_by_all_its_weights(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    before = harness.identity(tmp_path)
    assert harness.identity(tmp_path) == before
    os.utime(tmp_path / "model-2.safetensors", (1, 1))
    assert harness.identity(tmp_path) != before


def test_a_benchmark_that_is_not_there_is_refused_before_anything_is_asked(data: Path) -> None:
    with pytest.raises(UserError, match=r"tasks names vqa/other.*some of captions/mini, icl, vqa/daquar, vqa/mini"):
        harness.chosen_tasks(data, Settings(tasks=("vqa/other",)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (replace(SETTINGS, max_positions=90), r"prompt of \d+ positions .* expected at most 90"),
        (Settings(shots=(0, 4)), "4 shots for question"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(
    model: MM1, tokenizer: Tokenizer, checkpoint: Path, data: Path, tmp_path: Path, asked: list[int], settings, told
) -> None:
    """Captions come first and fit; a question further on does not."""
    with pytest.raises(UserError, match=told):
        run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    assert asked == []
    assert not (tmp_path / "out/answers.jsonl").exists()


def test_benchmarks_inside_training_leave_the_model_as_it_was(model: MM1, tokenizer: Tokenizer, data: Path) -> None:
    benchmarks = Benchmarks(str(data), Settings(shots=(0,), limit=2))
    model.train()
    scores = benchmarks(model, tokenizer)
    assert model.training
    model.eval()
    names = {"captions/mini/0", "vqa/mini/0", "vqa/daquar/0", "icl/0"}
    assert scores.keys() == names | {f"{name}/blind" for name in names} | {"mean"}
    assert scores["mean"] == pytest.approx(sum(scores[name] for name in names) / 4)
    assert benchmarks(model, tokenizer) == scores


def test_benchmarks_may_ask_a_copy_in_another_type(model: MM1, tokenizer: Tokenizer, data: Path) -> None:
    settings = Settings(shots=(0,), limit=2)
    model.train()
    half = Benchmarks(str(data), settings, dtype="bfloat16")(model, tokenizer)
    assert model.training
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    model.eval()
    assert half.keys() == Benchmarks(str(data), settings)(model, tokenizer).keys()
    with pytest.raises(UserError, match="dtype is 'half'; expected bfloat16 or float32"):
        Benchmarks(str(data), settings, dtype="half")


def test_a_training_yaml_can_name_benchmarks_and_change_single_settings(data: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--evaluator", type=Callable[[MM1, Tokenizer], dict[str, float]])
    given = {
        "class_path": "eval.harness.Benchmarks",
        "init_args": {"data": str(data), "settings": {"limit": 5, "shots": [0]}},
    }
    made = parser.instantiate(parser.parse_object({"evaluator": given})).evaluator
    assert (made.data, made.settings) == (str(data), Settings(limit=5, shots=(0,)))
    with pytest.raises(UserError, match="nowhere is no folder"):
        Benchmarks("nowhere")
    with pytest.raises(UserError, match="limit is 0"):
        Benchmarks(str(data), Settings(limit=0))


@pytest.mark.slow
def test_two_processes_answer_what_one_answers(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """By the door, as a user would: the same answers and scores, whoever came first."""
    flags = ["--data", str(data), "--shots", "[0, 2]", "--captions.max_new_tokens", "4", "--max_positions", "512"]
    flags += ["--vqa.decoding.temperature", "0.8", "--captions.decoding.beams", "2"]
    found = {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        words = [sys.executable, "-m", "eval", "run", str(checkpoint), *flags, "--out", str(out)]
        words += ["--processes", processes]
        subprocess.run(words, cwd=Path(harness.__file__).parents[1], check=True, timeout=600)
        found[processes] = {(a["task"], a["shots"], a["arm"], a["id"], a["seed"]): a for a in lines(out)}
    assert found["1"].keys() == found["2"].keys()
    for key, one in found["1"].items():
        two = found["2"][key]
        assert one["answer"] == two["answer"] or min(one["margin"], two["margin"]) < 1e-4
    scores = [json.loads((tmp_path / n / "scores.json").read_text())["tasks"] for n in ("1", "2")]
    assert scores[0] == scores[1]
