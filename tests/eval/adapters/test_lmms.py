"""lmms-eval runs a checkpoint of ours, offline, on a task file and pictures of its own format (extra lmms)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import PIL.Image
import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (extra lmms, about a hundred packages)")

from lmms_eval.api.instance import Instance

from eval.__main__ import main
from eval.adapters.lmms import MM1Chat, MM1Simple, manifest
from mm1.errors import UserError
from mm1.sample import Image, Text
from mm1.template import answer, system, turn
from tests.eval.conftest import picture, write_rows

ANSWERED = """
task: mini_answers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOSEN = """
task: mini_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_choice: !function utils.choices
doc_to_target: !function utils.gold
metric_list: [{{metric: acc}}]
"""
UTILS = """
import PIL.Image

def pictures(doc):
    return [PIL.Image.open(path).convert("RGB") for path in doc["images"]]

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def choices(doc):
    return ["red", "green"]

def gold(doc):
    return 0 if doc["answer"] == "red" else 1
"""


@pytest.fixture
def tasks(offline: Path) -> Path:
    folder, rows = offline / "tasks", []
    for at, (question, said) in enumerate((("what colour is this?", "red"), ("is this red?", "green"))):
        picture(folder / f"{at}.png", at + 1)
        rows.append({"question": question, "answer": said, "images": [str(folder / f"{at}.png")]})
    write_rows(folder / "questions.jsonl", rows)
    (folder / "utils.py").write_text(UTILS)
    (folder / "answers.yaml").write_text(ANSWERED.format(file=folder / "questions.jsonl"))
    (folder / "choices.yaml").write_text(CHOSEN.format(file=folder / "questions.jsonl"))
    return folder


def requests(lm: MM1Simple, *arguments: tuple, document: dict | None = None) -> list[Instance]:
    lm.task_dict["t"] = {"test": [document or {}]}
    about = {"task": "t", "doc_id": 0, "repeats": 1}
    return [Instance("generate_until", (*given, 0, "t", "test"), 0, about) for given in arguments]


@pytest.mark.slow  # the harness imports for half a minute
@pytest.mark.parametrize(("task", "more"), [("mini_answers", []), ("mini_choices", ["--force_simple"])])
def test_the_door_hands_over_to_the_harness(
    task: str, more: list[str], checkpoint: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    words = ["lmms", checkpoint, "--tasks", task, "--include_path", tasks, "--output_path", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words), "--log_samples", "--verbosity", "DEBUG", *more])
    main()
    assert task in capfd.readouterr().out
    [samples] = (tmp_path / "out").rglob(f"*samples_{task}.jsonl")
    assert len(samples.read_text().splitlines()) == 2
    [results] = (tmp_path / "out").rglob("*results.json")
    assert task in json.loads(results.read_text())["results"]


def test_answers_are_those_of_the_engine(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 3)
    shown = PIL.Image.open(tmp_path / "a.png")
    simple, talking = MM1Simple(str(checkpoint)), MM1Chat(str(checkpoint))
    kwargs = {"max_new_tokens": 4, "temperature": 0, "do_sample": False, "until": ["\n\n"]}
    [said] = simple.generate_until(requests(simple, ("what colour is this?", kwargs, lambda doc: [shown])))
    content = [{"type": "image", "url": shown}, {"type": "text", "text": "what colour is this?"}]
    messages = [{"role": "user", "content": content}]
    [told] = talking.generate_until(requests(talking, ("", lambda doc: messages, kwargs)))
    import mm1

    alone = mm1.load(checkpoint).generate([tmp_path / "a.png"], "what colour is this?", 4)
    assert said == told == alone


def test_likelihoods_are_those_of_the_engine(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 3)
    shown = PIL.Image.open(tmp_path / "a.png")
    lm = MM1Simple(str(checkpoint))
    asked = [("what colour?", said, lambda doc: [shown]) for said in (" red", " green")]
    found = lm.loglikelihood(requests(lm, *asked, ("what colour?", lambda doc: "red", None)))
    prompt = [Image((tmp_path / "a.png").read_bytes()), *turn("what colour?")]
    expected = lm.engine.score([prompt, prompt, list(turn("what colour?"))], ["red", "green", "red"])
    assert [nats for nats, _ in found] == pytest.approx(expected, abs=1e-3)


def test_pictures_stand_where_the_task_puts_them(checkpoint: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 3)
    shown, lm = str(tmp_path / "a.png"), MM1Chat(str(checkpoint))
    image, said = Image((tmp_path / "a.png").read_bytes()), {"type": "text", "text": "Which?"}
    assert lm._prompt("Here <image> is what?", [image])[1:] == [image, Text(" is what?\nAssistant:", learn=False)]
    assert lm._prompt("<image>\n<image>What?", [image])[1] == turn("What?")[0], "markers that fit no picture are none"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "url": shown}, said]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
        {"role": "user", "content": [said]},
    ]
    expected = [system("Be brief."), image, *turn("Which?"), answer("This."), *turn("Which?")]
    assert lm.prompt_of(messages) == expected
    plain = MM1Chat(str(checkpoint), template="none")
    assert plain.prompt_of(messages[1:2]) == [image, Text("Which?")]
    with pytest.raises(UserError, match="neither video nor sound"):
        lm.prompt_of([{"role": "user", "content": [{"type": "image", "url": "a.mp4"}]}])
    with pytest.raises(UserError, match="holds 'video'"):
        lm.prompt_of([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])
    with pytest.raises(UserError, match="template is 'llama'"):
        MM1Chat(str(checkpoint), template="llama")


def test_the_registry_knows_both_classes() -> None:
    from lmms_eval.models import MODEL_REGISTRY_V2

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert MODEL_REGISTRY_V2.get_model_class("mm1") is MM1Chat
    assert MODEL_REGISTRY_V2.get_model_class("mm1", force_simple=True) is MM1Simple
