"""Templates: every turn in other words, hints and instructions where they belong, nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm1.errors import UserError
from mm1.sample import Image, Text
from mm1.template import HINTS, OURS, Template, answer, conversation, short_answer, system, turn

LLAVA = Template.read(Path(__file__).resolve().parents[2] / "configs" / "template" / "llava.yaml")
CHAT = conversation([b"p"], [("What is it?", "A cat."), ("And this?", "A dog.")])


def spelled(items: list[Text | Image]) -> str:
    return "".join("<image>" if isinstance(item, Image) else item.spelled for item in items)


def test_llavas_turns_with_its_instructions() -> None:
    """As LLaVA-1.5's conversation of version v1 writes them, </s> after each answer."""
    told = (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    )
    said = "<image>USER: What is it? ASSISTANT: A cat.</s>USER: And this? ASSISTANT: A dog.</s>"
    assert spelled(LLAVA.applied(CHAT)) == told + said
    assert [item for item in LLAVA.applied(CHAT) if isinstance(item, Text) and item.learn] == [
        answer("A cat."),
        answer("A dog."),
    ]
    assert LLAVA.applied(LLAVA.completed(CHAT)) == LLAVA.applied(CHAT)
    own = LLAVA.applied([system("Be brief."), *CHAT])
    assert spelled(own) == f"Be brief. {said}"


def test_a_picture_inside_a_question_stays_there_and_a_tool_keeps_its_words() -> None:
    words = Template(user="<|user|>{text}<|bot|>", tool="<|tool|>{text}<|end|>", system="<|sys|>{text}")
    inside = [Text("User: is ", learn=False), Image(b"p"), Text(" red?\nAssistant:", learn=False), answer("yes")]
    assert spelled(words.applied(inside)) == "<|user|>is <image> red?<|bot|> yes</s>"
    assert spelled(words.applied([Text("Tool: 4\nAssistant:", learn=False)])) == "<|tool|>4<|end|>"
    assert spelled(words.applied([system("User: no\nAssistant:")])) == "<|sys|>User: no\nAssistant:"


def test_what_is_no_conversation_stays_as_it_is() -> None:
    for items in ([Image(b"p"), Text("User: a caption\nAssistant:")], [*short_answer("What?", "a cat")], [Text("a")]):
        assert LLAVA.applied(items) == items
    assert OURS.applied(CHAT) == list(CHAT)


def test_hints_stand_behind_every_question_once() -> None:
    hinted = OURS.hinted(CHAT, "short")
    assert spelled(hinted).count(f"\n{HINTS['short']}\nAssistant:") == 2
    assert OURS.hinted(hinted, "short") == hinted  # files of LLaVA's mix have them already
    inside = [Text("User: is ", learn=False), Image(b"p"), Text(" red?\nAssistant:", learn=False)]
    assert spelled(OURS.hinted(inside, "option")) == f"User: is <image> red?\n{HINTS['option']}\nAssistant:"
    assert spelled(LLAVA.applied(OURS.hinted(turn("What?"), "sentence"))).endswith(f"{HINTS['sentence']} ASSISTANT:")
    with pytest.raises(UserError, match="no hint is called 'long'; expected one of short, option, sentence"):
        OURS.hinted(CHAT, "long")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("user: 'USER: ASSISTANT:'", r"template\.user is 'USER: ASSISTANT:'; expected words with \{text\} once"),
        ("user: 'USER: {text}'", r"template\.user is 'USER: \{text\}'; expected words after \{text\}"),
        ("usr: a", "has a template that is none; expected system, user, tool, instructions, hints"),
        ("[1, 2]", "has a template that is none"),
        (": {", "is not readable as a template"),
    ],
)
def test_a_file_that_is_no_template(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        Template.read(tmp_path / "t.yaml")
    with pytest.raises(UserError, match="is not readable as a template"):
        Template.read(tmp_path / "none.yaml")
