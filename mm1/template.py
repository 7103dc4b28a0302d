"""How a conversation is written down, once for training, for evaluation and for people who ask.

    <image> User: What colour is the circle?
    Assistant: red</s> User: And the square?
    Assistant: blue</s>

Instructions stand before the first turn, ``System: Be brief.`` and a line end; what a tool answers stands like a user's
turn after ``Tool:``. Only what follows ``Assistant:`` is learned. The wording is ours: MM1's chat template is not
published.

Conversations are written like that everywhere; :meth:`Template.applied` alone turns them into the words of another
template, for shards and for prompts alike. Which one it was travels with the corpus and the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.sample import Image, Text

SYSTEM = "System: {text}\n"
USER = "User: {text}\nAssistant:"
TOOL = "Tool: {text}\nAssistant:"
SHORT = "Question: {question} Short answer:"
HINTS = {
    "short": "Answer the question using a single word or phrase.",
    "option": "Answer with the option's letter from the given choices directly.",
    "sentence": "Provide a one-sentence caption for the provided image.",
}
"""LLaVA-1.5's, to which MM1's mix of instruction data goes back."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """The words around what is said.

    Args:
        system: Around instructions, with ``{text}``.
        user: Around a question, with ``{text}``; it ends with what the assistant speaks after.
        tool: Likewise around what a tool answered.
        instructions: What a conversation without any is told first; nothing if empty.
        hints: Sentences that say what form an answer has, by name; they stand on a line of their own behind a question.

    Raises:
        UserError: ``{text}`` is missing or stands there twice, or a question begins like instructions.
    """

    system: str = SYSTEM
    user: str = USER
    tool: str = TOOL
    instructions: str = ""
    hints: Mapping[str, str] = field(default_factory=lambda: dict(HINTS))

    def __post_init__(self) -> None:
        for name in ("system", "user", "tool"):
            words = getattr(self, name)
            if not isinstance(words, str) or words.count("{text}") != 1:
                raise UserError(f"template.{name} is {words!r}; expected words with {{text}} once among them")
        if not self.user.partition("{text}")[2].strip():
            raise UserError(f"template.user is {self.user!r}; expected words after {{text}} that an answer follows")

    @property
    def plain(self) -> bool:
        """Whether it changes nothing."""
        return self.says(OURS)

    def says(self, other: Template) -> bool:
        """Whether it says the same, hints aside."""
        return all(getattr(self, name) == getattr(other, name) for name in ("system", "user", "tool", "instructions"))

    def applied(self, items: Sequence[Text | Image]) -> list[Text | Image]:
        """A document of ours in this template's words; what is no conversation stays as it is."""
        return self.spelled(self.completed(items))

    def completed(self, items: Sequence[Text | Image]) -> list[Text | Image]:
        """The document, with the template's own instructions first where it is a conversation without any."""
        begun = [item for item in items if isinstance(item, Text) and not item.learn]
        asks = any(item.text.endswith(_END) for item in begun)
        told = any(is_system(item) for item in begun)
        return [system(self.instructions), *items] if self.instructions and asks and not told else [*items]

    def hinted(self, items: Sequence[Text | Image], name: str) -> list[Text | Image]:
        """The document with a hint behind every question that does not end with it already.

        Raises:
            UserError: No hint of that name.
        """
        if name not in self.hints:
            raise UserError(f"no hint is called {name!r}; expected one of {', '.join(self.hints)} (template.hints)")
        hint = self.hints[name].strip()
        return [self._behind(item, hint) if isinstance(item, Text) else item for item in items]

    @staticmethod
    def _behind(item: Text, hint: str) -> Text:
        asked = item.text.removesuffix(_END).rstrip()
        if item.learn or not item.text.endswith(_END) or item.text.startswith(_TOOL) or asked.endswith(hint):
            return item
        border = "" if asked == _USER.rstrip() else "\n"
        return Text(f"{asked}{border or ' '}{hint}{_END}", learn=False)

    def spelled(self, items: Sequence[Text | Image]) -> list[Text | Image]:
        """Every turn in this template's words, item by item."""
        if self.plain:
            return [*items]
        found, closing = [], self.user
        for item in items:
            if isinstance(item, Text) and not item.learn:
                text = item.text
                if is_system(item):
                    text = self.system.replace("{text}", text.removeprefix(_SYSTEM).removesuffix("\n"))
                else:
                    for begin, words in ((_USER, self.user), (_TOOL, self.tool)):
                        if text.startswith(begin):
                            closing, text = words, words.partition("{text}")[0] + text.removeprefix(begin)
                    if text.endswith(_END):
                        text = text.removesuffix(_END) + closing.partition("{text}")[2]
                item = Text(text, learn=False, end=item.end, after_space=item.after_space)
            found.append(item)
        return found

    def record(self) -> dict[str, Any]:
        """Plain values, for manifests and checkpoints."""
        return {**asdict(self), "hints": dict(self.hints)}

    @staticmethod
    def of(values: Any, origin: object) -> Template:
        """The template of plain values, ours if there are none.

        Raises:
            UserError: Other values, with where they stand.
        """
        if values is None:
            return OURS
        try:
            return Template(**values)
        except TypeError:
            known = ", ".join(Template.__dataclass_fields__)
            raise UserError(f"{origin} has a template that is none; expected {known}") from None

    @staticmethod
    def read(path: str | Path) -> Template:
        """The template of a YAML file, such as ``configs/template/llava.yaml``.

        Raises:
            UserError: It is not there, or no template.
        """
        import yaml

        try:
            return Template.of(yaml.safe_load(Path(path).read_text(encoding="utf-8")), path)
        except (OSError, ValueError, yaml.YAMLError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} is not readable as a template ({error})") from None


_SYSTEM, _USER, _TOOL = (words.partition("{text}")[0] for words in (SYSTEM, USER, TOOL))
_END = USER.partition("{text}")[2]
OURS = Template()


def short_answer(question: str, answer: str) -> tuple[Text, Text]:
    """One line of a pre-training document: the question as context, the answer and a newline to learn."""
    return Text(SHORT.format(question=question), learn=False), Text(f"{answer}\n", after_space=True)


def turn(question: str, said: str | None = None) -> tuple[Text, ...]:
    """One exchange: the question as context, then the answer, if given."""
    asked = Text(USER.format(text=question.strip()), learn=False)
    return (asked,) if said is None else (asked, answer(said))


def system(text: str) -> Text:
    """Instructions for a whole conversation, read and not learned."""
    return Text(SYSTEM.format(text=text.strip()), learn=False)


def is_system(item: Text) -> bool:
    """Whether a text that opens a conversation is its instructions and no question."""
    return not item.learn and item.text.startswith(_SYSTEM)


def answer(text: str) -> Text:
    """What the assistant says, to learn, closed by an end token."""
    return Text(text.strip(), end=True, after_space=True)


def conversation(images: list[bytes], turns: list[tuple[str, str]]) -> tuple[Text | Image, ...]:
    """A whole conversation about ``images``, which stand before the first question."""
    return (*map(Image, images), *(item for question, answer in turns for item in turn(question, answer)))
