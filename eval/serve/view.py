"""Conversations as HTML: everything that somebody typed or a model said is escaped by the templates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.serve.conversation import Conversation, Example, Reply, Turn
from eval.serve.speaker import Speaker
from mm1.page import environment, palette


@dataclass(frozen=True)
class Mark:
    """A token of an answer in the colour of its heaviest expert in one layer.

    Args:
        text: As people read it.
        expert: The expert; None where the token visited none.
        colour: Of the expert.
        told: All experts it visited, with their weights.
    """

    text: str
    expert: int | None
    colour: str
    told: str


@dataclass(frozen=True)
class Share:
    """How many of an answer's tokens are an expert's."""

    expert: int
    colour: str
    percent: float


class View:
    """Draws for the models of a page.

    Args:
        speakers: The models.
    """

    def __init__(self, speakers: Sequence[Speaker]) -> None:
        self.speakers = speakers
        self._templates = environment("eval.serve", rate, seconds)

    def heading(self) -> str:
        """The models and what is to know about each."""
        return self._render("heading.html", speakers=self.speakers)

    def past(self, conversation: Conversation, layer: int | None) -> str:
        """All turns but for what is said to the last question."""
        return self._render("past.html", turns=[self._turn(turn, layer) for turn in conversation.turns])

    def now(self, replies: Sequence[Reply], layer: int | None) -> str:
        """What is said to the last question."""
        return self._render("now.html", replies=self._replies(replies, layer))

    def example(self, example: Example) -> str:
        """A demonstration."""
        return self._render("example.html", example=example)

    def refusal(self, message: str) -> str:
        """Why something was not done; nothing for an empty message."""
        return self._render("refusal.html", message=message) if message else ""

    def _render(self, name: str, **values: object) -> str:
        return self._templates.get_template(name).render(**values)

    def _turn(self, turn: Turn, layer: int | None) -> dict[str, object]:
        return {"pictures": turn.pictures, "text": turn.text, "replies": self._replies(turn.replies, layer)}

    def _replies(self, replies: Sequence[Reply], layer: int | None) -> list[dict[str, object]]:
        drawn = []  # nothing where a question has no replies yet
        for speaker, reply in zip(self.speakers, replies, strict=False):
            found = marks(reply, layer, speaker.experts.get(layer, 0)) if layer is not None else []
            drawn.append({"label": speaker.label, "reply": reply, "marks": found, "shares": shares(found)})
        return drawn


def marks(reply: Reply, layer: int, experts: int) -> list[Mark]:
    """The tokens of an answer in the colours of their experts; none where the layer has no experts.

    Args:
        reply: Whose tokens.
        layer: Index of the layer in the decoder.
        experts: Its experts E.
    """
    colours, found = palette(experts), []
    for token in reply.tokens if experts else ():
        if not token.text:  # the first bytes of a character, which its last token shows
            continue
        routes = token.routes.get(layer, ())
        told = " · ".join(f"expert {expert} {100 * weight:.0f} %" for expert, weight in routes)
        first = routes[0][0] if routes else None
        colour = "transparent" if first is None else colours[first]
        found.append(Mark(token.text, first, colour, f"{_visible(token.text)}  {told or 'no expert'}"))
    return found


def shares(found: Sequence[Mark]) -> list[Share]:
    """The experts of an answer, by number."""
    counts = Counter((mark.expert, mark.colour) for mark in found if mark.expert is not None)
    return [Share(at, colour, 100 * count / len(found)) for (at, colour), count in sorted(counts.items())]


def rate(reply: Reply) -> str:
    """Tokens per second as people read it, or nothing."""
    per_s = reply.tokens_per_s
    return "" if per_s is None else f"{per_s:.0f} tokens/s" if per_s >= 10 else f"{per_s:.1f} tokens/s"


def seconds(time_s: float) -> str:
    """A time with two figures."""
    return f"{time_s:.2f} s" if time_s < 1 else f"{time_s:.1f} s"


def _visible(text: str) -> str:
    return f"“{text.strip()}”" if text.strip() else "⟨line⟩" if "\n" in text else "⟨blank⟩"
