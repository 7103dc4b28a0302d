"""Prompts read as their templates say, before and after instruction tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from eval.__main__ import parser
from eval.prompts import Prompt, Settings, document, spell
from eval.task import Query
from mm1.errors import UserError
from mm1.sample import Image, Text

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "eval").glob("*.yaml"))
QUERY = Query("1", Path("q.png"), "What is it?", ("cat",), "cat")
SHOT = Query("2", Path("s.png"), "And this?", ("dog",), "dog")
CHAT = Settings(style="chat", vqa=Prompt("{image}{question}"), captions=Prompt("{image}Say it."), icl=Prompt("{image}"))


def items(query: Query, shots: list[Query], kind: str, settings: Settings) -> list:
    return document(query, shots, kind, settings, lambda path: path.name.encode())


def test_a_plain_prompt_stops_where_the_answer_goes() -> None:
    expected = "<image>Question: And this? Short answer: dog;<image>Question: What is it? Short answer:"
    assert spell(items(QUERY, [SHOT], "vqa", Settings(separator=";"))) == expected


def test_a_caption_prompt_ends_with_its_picture() -> None:
    found = items(QUERY, [SHOT], "captions", Settings())
    assert spell(found) == "<image>dog<image>"
    assert [item.data for item in found if not isinstance(item, Text)] == [b"s.png", b"q.png"]


def test_a_chat_prompt_is_what_instruction_tuning_reads() -> None:
    expected = "<image>User: And this?\nAssistant: dog</s><image>User: What is it?\nAssistant:"
    assert spell(items(QUERY, [SHOT], "vqa", CHAT)) == expected


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        (Settings(separator="\n"), "captions", "dog\n<image>"),
        (
            Settings(separator="\n"),
            "vqa",
            "Question: And this? Short answer: dog\n<image>Question: What is it? Short answer:",
        ),
        (CHAT, "vqa", "User: And this?\nAssistant: dog</s><image>User: What is it?\nAssistant:"),
    ],
)
def test_a_text_only_demonstration_is_its_text_alone(settings: Settings, kind: str, expected: str) -> None:
    found = document(QUERY, [SHOT], kind, settings, lambda path: path.name.encode(), text_only=True)
    assert spell(found) == expected
    assert [item.data for item in found if not isinstance(item, Text)] == [b"q.png"]


REASONED = replace(
    Settings(),
    vqa=Prompt(
        "{image}Question: {question} Reason: {answer}",
        reasoning="{rationale}\nAnswer: {answer}",
        extract=r"Answer:\s*(.*)",
        stop=("Question",),
    ),
    separator="\n",
)


def test_demonstrations_reason_before_they_answer() -> None:
    reasoned = replace(SHOT, about={"rationale": "It barks. "})
    expected = (
        "<image>Question: And this? Reason: It barks.\nAnswer: dog\n"
        "<image>Question: And this? Reason: Answer: dog\n"  # its file has no rationale
        "<image>Question: What is it? Reason:"
    )
    assert spell(items(QUERY, [reasoned, SHOT], "vqa", REASONED)) == expected


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("It purrs.\nAnswer: cat", "cat"),
        ("Answer: dog? No.\nAnswer:  cat \nThat is all.", "cat"),
        ("cat", None),
        ("Answer:", ""),
    ],
)
def test_an_answer_is_what_follows_the_last_mark(said: str, taken: str | None) -> None:
    assert REASONED.vqa.taken(said) == taken
    assert Prompt().taken(said) == said


def test_a_group_that_took_no_part_is_no_answer() -> None:
    assert Prompt(extract=r"Answer: (.*)|I do not know").taken("I do not know") is None


@pytest.mark.parametrize("style", [Settings(), CHAT])
def test_only_the_last_demonstrations_are_shown_in_all_views(style: Settings) -> None:
    shots = [replace(SHOT, picture=Path(f"{at}.png")) for at in range(3)]
    for last, views in ((None, "ffff"), (0, "wwwf"), (1, "wwff"), (2, "wfff"), (3, "ffff"), (9, "ffff")):
        found = items(QUERY, shots, "vqa", replace(style, full_resolution_last=last))
        assert "".join(item.views[0] for item in found if isinstance(item, Image)) == views
        assert spell(found) == spell(items(QUERY, shots, "vqa", style))


def test_a_demonstration_brings_its_context_and_all_its_pictures() -> None:
    shot = replace(SHOT, context=(Path("a.png"), "Before. "), others=(Path("t.png"),))
    found = items(replace(QUERY, others=(Path("r.png"),)), [shot], "vqa", Settings(separator="\n"))
    expected = "<image>Before. <image><image>Question: And this? Short answer: dog\n<image><image>Question: What is it?"
    assert spell(found) == expected + " Short answer:"
    names = [b"a.png", b"s.png", b"t.png", b"q.png", b"r.png"]
    assert [item.data for item in found if isinstance(item, Image)] == names


def test_a_context_stands_before_the_picture_asked_about() -> None:
    query = replace(QUERY, context=(Path("a.png"), "This is a dako."))
    assert spell(items(query, [], "icl", Settings())).startswith("<image>This is a dako.<image>Question:")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(Settings(), vqa=Prompt("{question} {answer}")), "expected {image} once"),
        (replace(Settings(), vqa=Prompt("{image}{question}")), "style plain expects {answer} at its end"),
        (replace(CHAT, captions=Prompt("{image}{answer}")), "style chat expects no {answer}"),
        (
            replace(Settings(), vqa=Prompt("{image}{queston} {answer}")),
            r"vqa\.template has {queston}; expected {image}",
        ),
        (replace(Settings(), icl=Prompt(max_new_tokens=0)), r"icl\.max_new_tokens is 0; expected at least 1"),
        (replace(Settings(), icl=Prompt(stop=("\n", ""))), r"icl\.stop is \['\\n', ''\]; expected no empty text"),
        (replace(Settings(), shots=(0, -1)), "shots is -1; expected at least 0"),
        (replace(Settings(), text_only_demonstrations=-1), "text_only_demonstrations is -1; expected at least 0"),
        (replace(Settings(), icl=Prompt(stop=None)), r"icl\.stop is null; expected a value, or the line left out"),
        (replace(Settings(), tasks=None), "tasks is null; expected a value"),
        (replace(Settings(), shots=()), r"shots is \[\] .*; expected at least one of each"),
        (replace(Settings(), shots=(4, 4)), r"shots is \[4, 4\] and arms .*; expected each of them once"),
        (replace(Settings(), arms=("blind", "blind")), r"arms \['blind', 'blind'\]; expected each of them once"),
        (replace(Settings(), seeds=(1, 1)), r"seeds is \[1, 1\]; expected every seed once"),
        (
            replace(Settings(), vqa=replace(Prompt(), reasoning="{why}")),
            r"reasoning is '{why}'; expected {answer} once",
        ),
        (replace(Settings(), vqa=replace(Prompt(), extract="(")), r"vqa\.extract is '\(' .* regular expression"),
        (replace(Settings(), vqa=replace(Prompt(), extract="Answer")), r"vqa\.extract is 'Answer'; expected a group"),
        (replace(Settings(), full_resolution_last=-1), "full_resolution_last is -1; expected at least 0"),
        (replace(Settings(), limit=0), "limit is 0; expected at least 1"),
        (replace(Settings(), features_mb=-1), "features_mb is -1; expected at least 0"),
    ],
)
def test_templates_that_cannot_be_asked_are_refused(settings: Settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings.check()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_complete_and_can_be_asked(path: Path) -> None:
    whole = parser()
    arguments = whole.parse_args(["run", "x.ckpt", "--data", "d", "--config", str(path)])
    names = Settings.__dataclass_fields__
    Settings(**{name: whole.instantiate(arguments).run[name] for name in names}).check()
    assert yaml.safe_load(path.read_text()).keys() == names.keys()


def test_pictures_stand_where_a_question_names_them_and_at_the_front_otherwise() -> None:
    pictures = (Path("b.png"), Path("c.png"))
    query = replace(QUERY, question="Is <image 2> like <image 1>, <image 9>?", others=pictures, inline=True)
    found = items(query, [], "vqa", Settings())
    assert spell(found) == "<image>Question: Is <image> like <image>, <image 9>? Short answer:"
    assert [item.data for item in found if not isinstance(item, Text)] == [b"c.png", b"b.png", b"q.png"]
    assert spell(items(replace(query, inline=False), [], "vqa", CHAT)).startswith(
        "<image><image><image>User: Is <image 2>"
    )
