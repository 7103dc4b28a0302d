"""How a conversation is written down, once for training, for evaluation and for people who ask.

    <image> User: What colour is the circle?
    Assistant: red</s> User: And the square?
    Assistant: blue</s>

Instructions stand before the first turn, ``System: Be brief.`` and a line end; what a tool answers stands like a user's
turn after ``Tool:``. Only what follows ``Assistant:`` is learned. The wording is ours: MM1's chat template is not
published.
"""

from __future__ import annotations

from mm1.sample import Image, Text

SYSTEM = "System: {text}\n"
USER = "User: {text}\nAssistant:"
TOOL = "Tool: {text}\nAssistant:"
SHORT = "Question: {question} Short answer:"


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
    return not item.learn and item.text.startswith(SYSTEM.partition("{")[0])


def answer(text: str) -> Text:
    """What the assistant says, to learn, closed by an end token."""
    return Text(text.strip(), end=True, after_space=True)


def conversation(images: list[bytes], turns: list[tuple[str, str]]) -> tuple[Text | Image, ...]:
    """A whole conversation about ``images``, which stand before the first question."""
    return (*map(Image, images), *(item for question, answer in turns for item in turn(question, answer)))
