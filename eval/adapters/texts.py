"""Prompts as the strings that harnesses pass around, from which our documents come back whole.

A harness joins a chat to one string and may put a choice behind it. No text of ours ever becomes a control token, so
three characters of the private use area say where a text ends, and where an answer begins and ends::

    System: Be brief.\\n|User: q\\nAssistant:>a<User: q\\nAssistant:>         | = BORDER, > = BEGIN, < = END

A string without them is one text, spelled as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mm1 import template
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.sample import Text

BORDER, BEGIN, END = "\ue0a0", "\ue0a1", "\ue0a2"
_MARK = re.compile(f"[{BORDER}{BEGIN}{END}]")


def chat(messages: Iterable[Mapping[str, str]]) -> str:
    """A conversation as one string; its last answer is still to be finished by what is put behind it.

    Args:
        messages: ``role`` (system, user, assistant) and ``content`` of each.

    Raises:
        UserError: Another role.
    """
    found = ""
    for message in messages:
        text = _MARK.sub("", message["content"])
        match message["role"]:
            case "system":
                found += template.SYSTEM.format(text=text.strip()) + BORDER
            case "user":
                found += template.USER.format(text=text.strip()) + BEGIN
            case "assistant":
                found += text.strip() + END
            case other:
                raise UserError(f"a message has role {other!r}; expected system, user or assistant")
    return found.removesuffix(END)


def items(string: str) -> list[Text]:
    """The texts of a document that a string stands for; what follows the last BEGIN is an answer that goes on."""
    found: list[Text] = []
    for turn in _turns(string):
        before, began, answer = turn.partition(BEGIN)
        if not began and before.endswith(END):  # of an answer whose question was cut away
            before, answer = "", before
        ended = answer.endswith(END)
        found += [Text(text, learn=not began) for text in before.split(BORDER) if text]
        if answer := answer.removesuffix(END).removeprefix(" "):
            found.append(Text(answer, end=ended, after_space=True))
    return found


def ids(string: str, tokenizer: Tokenizer, words: template.Template = template.OURS) -> list[int]:
    """Ids of a string, spelled as training spelled the document it stands for, without begin token."""
    found: list[int] = []
    for item in words.applied(items(string)):
        if isinstance(item, Text):
            found += tokenizer.encode(tokenizer.spelling(item)) + [tokenizer.eos] * item.end
    return found


def _turns(string: str) -> list[str]:
    """Stretches that each end where an answer ends, the last as it is."""
    return [turn for turn in re.split(f"(?<={END})", string) if turn]
