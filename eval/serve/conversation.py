"""What stands before a question on the page, and how all of it becomes one prompt: examples, turns, the question.

chat     <image> User: q\\nAssistant: a</s><image> User: q\\nAssistant:      as instruction tuning wrote it
plain    <image>q a\\n<image>q                                             a document that the model goes on with

Two models that answer the same questions each read their own answers of earlier turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eval.serve.uploads import Picture
from mm1.sample import Image, Text
from mm1.template import turn

Template = Literal["chat", "plain"]
Items = list[Text | Image]
Routes = Mapping[int, tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class Spoken:
    """A token of an answer as people read it.

    Args:
        text: What it adds to the answer; empty where a character takes several tokens, all but its last.
        routes: For each sparse layer the experts it visited with their weights, the heaviest first.
    """

    text: str
    routes: Routes = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What one model has said so far.

    Args:
        text: Its answer.
        tokens: The same token by token.
        count: Tokens made, the end token not among them.
        first_s: Time until the first token, pictures and prompt read.
        time_s: Time since the model began, waiting for its turn not counted.
        done: Whether it has ended.
        note: Why it ended where that was not its own choice.
        error: Why there is no answer.
    """

    text: str = ""
    tokens: tuple[Spoken, ...] = ()
    count: int = 0
    first_s: float = 0.0
    time_s: float = 0.0
    done: bool = False
    note: str = ""
    error: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """Rate after the first token; None while there is nothing to measure."""
        span_s = self.time_s - self.first_s
        return (self.count - 1) / span_s if self.count > 1 and span_s > 0 else None


@dataclass(frozen=True)
class Example:
    """A demonstration somebody added by hand: pictures, what is asked about them, the answer."""

    pictures: tuple[Picture, ...]
    text: str
    answer: str


@dataclass(frozen=True)
class Turn:
    """A question, with the reply of each model."""

    pictures: tuple[Picture, ...]
    text: str
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """All turns, the one being answered last."""

    turns: tuple[Turn, ...] = ()

    def pictures(self) -> list[Picture]:
        """Pictures of all turns."""
        return [picture for turn in self.turns for picture in turn.pictures]

    def replied(self, replies: Sequence[Reply]) -> Conversation:
        """The same with what the models say to the last question."""
        last = self.turns[-1]
        return Conversation((*self.turns[:-1], Turn(last.pictures, last.text, tuple(replies))))


def prompt(examples: Sequence[Example], conversation: Conversation, model: int, template: Template) -> Items:
    """What a model is asked: examples, earlier turns with its own answers, the last question.

    Args:
        examples: Demonstrations, which come first.
        conversation: Its last turn is what is asked. Turns to which the model said nothing are left out.
        model: Which of the models.
        template: How a turn is written down.
    """
    items: Items = []
    for example in examples:
        items += _asked(example.pictures, example.text, example.answer, template)
    *before, last = conversation.turns
    for earlier in before:
        said = earlier.replies[model].text if model < len(earlier.replies) else ""
        if said:
            items += _asked(earlier.pictures, earlier.text, said, template)
    return items + _asked(last.pictures, last.text, None, template)


def _asked(pictures: Sequence[Picture], text: str, answer: str | None, template: Template) -> Items:
    shown: Items = [Image(picture.data) for picture in pictures]
    if template == "chat":
        return [*shown, *turn(text, answer)]
    text = text.rstrip(" ")  # a blank at the end would be a token of its own
    asked: Items = [Text(text)] if text else []
    if answer is None:
        return shown + asked
    return [*shown, *asked, Text(f"{answer.strip()}\n", after_space=bool(text))]
