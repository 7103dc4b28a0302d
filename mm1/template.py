"""How a conversation is written down, once for training, for evaluation and for people who ask.

    <image> User: What colour is the circle?
    Assistant: red</s> User: And the square?
    Assistant: blue</s>

Only what follows ``Assistant:`` is learned. The wording is ours: MM1's chat template is unpublished.
"""

from __future__ import annotations

from mm1.sample import Image, Text

USER = "User: {text}\nAssistant:"
SHORT = "Question: {question} Short answer:"


def short_answer(question: str, answer: str) -> tuple[Text, Text]:
    """One line of a pre-training document: the question as context, the answer and a newline to learn."""
    return Text(SHORT.format(question=question), learn=False), Text(f"{answer}\n", after_space=True)


def turn(question: str, answer: str | None = None) -> tuple[Text, ...]:
    """One exchange: the question as context, then the answer, if given, to learn and closed by an end token."""
    asked = Text(USER.format(text=question.strip()), learn=False)
    return (asked,) if answer is None else (asked, Text(answer.strip(), end=True, after_space=True))


def conversation(images: list[bytes], turns: list[tuple[str, str]]) -> tuple[Text | Image, ...]:
    """A whole conversation about ``images``, which stand before the first question."""
    return (*map(Image, images), *(item for question, answer in turns for item in turn(question, answer)))
