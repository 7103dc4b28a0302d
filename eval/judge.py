"""Judges of long answers: a command, or a server that speaks OpenAI's chat protocol. Without one, nothing is judged.

``mm1-eval judge FOLDER --url http://localhost:8000/v1 --model NAME`` reads the answers of a run, asks about those that
a judge must read, keeps each opinion as it comes (``judgements.jsonl``), and scores the run anew. A score depends on
the judge and on the words it is asked in: both stand in ``scores.json``, and scores by others do not compare.
"""

from __future__ import annotations

import json
import os
import shlex
import string
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from eval.again import metric_of
from eval.metrics.judged import JUDGEMENTS, Judged, mark
from eval.store import Answer, fingerprint
from mm1.errors import UserError
from mm1.runs import json_lines

AGAIN = (408, 409, 429, 500, 502, 503, 504)  # answers of a server after which it may be asked once more
NAMES = frozenset(["question", "reference", "answer", "context"])


class Judge(Protocol):
    """Whoever reads answers."""

    name: str

    def __call__(self, prompt: str) -> str:
        """Its words.

        Raises:
            UserError: It cannot be asked.
        """


@dataclass(frozen=True)
class Wording:
    """The words a judge is asked in, with ``{question}``, ``{reference}``, ``{answer}`` and ``{context}``.

    They ask for what the benchmarks' own words ask for and are not them; the releases' own can be set in their place
    (configs/eval/judge/own.yaml).

    Args:
        llava_bench: Wants two numbers from 1 to 10 on the first line, the reference's and ours.
        mm_vet: Wants a number from 0 to 1.
        mathvista: Wants the final answer alone.
    """

    llava_bench: str = (
        "A picture is described as follows.\n{context}\n\nSomebody asked about it:\n{question}\n\nAssistant 1 "
        "answered:\n{reference}\n\nAssistant 2 answered:\n{answer}\n\nRate how helpful, relevant, accurate and "
        "detailed each answer is, from 1 to 10, whatever their order. Write the two numbers, Assistant 1 first, with a "
        "space between them, on the first line and nothing else there; then explain."
    )
    mm_vet: str = (
        "How right is the prediction? Write one number: 0.0 (all wrong), 0.1, 0.2, .. or 1.0 (all right), and nothing "
        "else. <AND> in what is right parts things that must all be there, <OR> things of which one suffices. A part "
        "of them earns that part of 1.0.\n\nQuestion: {question}\nRight: {reference}\nPrediction: {answer}\nNumber:"
    )
    mathvista: str = (
        "Write the final answer that this response gives, and nothing else: a number, a list such as [1, 2], or the "
        "letter of a choice, as the question wants it.\n\n{question}\n\nResponse: {answer}\n\nFinal answer:"
    )

    def check(self) -> None:
        """Refuse names that no judge is told.

        Raises:
            UserError: Which, and those there are.
        """
        for kind, text in vars(self).items():
            try:
                names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
            except ValueError as error:
                raise UserError(f"{kind} cannot be filled in ({error}); expected {{{{ and }}}} for braces") from None
            if unknown := names - NAMES:
                raise UserError(f"{kind} has {{{min(unknown)}}}; expected {', '.join(sorted(NAMES))} in braces")


class Command:
    """A program that reads a prompt from its standard input and writes its opinion.

    Args:
        command: Program and arguments, as a shell would take them apart.
        timeout_s: How long it may take.
    """

    def __init__(self, command: str, timeout_s: float = 120.0) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise UserError(f"command is {command!r:.60} ({error}); expected a program and arguments") from None
        if not self.words:
            raise UserError("command is empty; expected a program and arguments")
        self.name, self.timeout_s = command, timeout_s

    def __call__(self, prompt: str) -> str:
        """Its output."""
        try:
            done = subprocess.run(
                self.words, input=prompt, capture_output=True, text=True, timeout=self.timeout_s, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "stderr", None) or str(error)
            raise UserError(f"the judge {self.name!r:.60} failed ({str(why).strip()[-100:]}); see --command") from None
        return done.stdout.strip()


class Server:
    """A server of OpenAI's chat protocol, such as vLLM's or OpenAI's own.

    Args:
        url: Up to ``/v1``, without ``/chat/completions``.
        model: The model's name there.
        key_variable: The environment variable that holds the key, if it wants one.
        timeout_s: How long an answer may take.
        tries: How often a busy or broken server is asked, with growing pauses.
        pause_s: The first pause.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout_s: float = 120.0,
        tries: int = 5,
        pause_s: float = 1.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"url is {url!r}; expected http://.. or https://.., up to /v1 (--url)")
        self.name, self.model, self.url = f"{model} at {url}", model, url.rstrip("/") + "/chat/completions"
        self.key_variable, self.timeout_s, self.tries, self.pause_s = key_variable, timeout_s, tries, pause_s

    def __call__(self, prompt: str) -> str:
        """What the model says, at temperature 0."""
        asked = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        why = ""
        for turn in range(self.tries):
            if turn:
                time.sleep(self.pause_s * 2 ** (turn - 1))
            try:
                return self._once(asked)
            except urllib.error.HTTPError as error:
                why = f"{error.code} {error.reason}"
                if error.code not in AGAIN:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                why = str(error) or type(error).__name__
        raise UserError(
            f"the judge at {self.url} gave no opinion ({why:.100}); see --url, --model and {self.key_variable}"
        )

    def _once(self, asked: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(asked).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
            content = json.load(reply)["choices"][0]["message"]["content"]
        if not isinstance(content, str) or not content.strip():
            raise ValueError("an empty opinion")
        return content.strip()


def judge(
    answers: list[Answer],
    folder: Path,
    asked: Judge,
    wording: Wording,
    at_once: int = 1,
    done: Callable[[int], object] = lambda count: None,
) -> int:
    """Ask about every answer that a judge must read; opinions are put beside the answers, in place.

    Opinions of the same judge in the same words are kept in ``folder/judgements.jsonl`` as they come and not asked for
    again.

    Args:
        answers: Of one run.
        folder: Where its files are.
        asked: Who is asked.
        wording: In which words.
        at_once: How many answers it reads at the same time.
        done: Told how many opinions there are more.

    Returns:
        How many opinions could not be read: these answers stay unjudged.

    Raises:
        UserError: There is nothing to judge, or the judge cannot be asked; opinions so far are kept.
    """
    wording.check()
    path = folder / "judgements.jsonl"
    known = {(row["ask"]): row for row in json_lines(path) if row} if path.exists() else {}
    todo = list(_todo(answers, asked, wording))
    if not todo:
        raise UserError(
            f"{folder} holds no answer that a judge reads; expected llava-bench, mm-vet or mathvista among them"
        )
    left = {ask: prompt for ask, prompt, _, _ in todo if ask not in known}
    done(len(todo) - len([one for one in todo if one[0] in left]))
    with path.open("a") as lines, ThreadPoolExecutor(at_once) as threads:
        for ask, text in zip(left, threads.map(asked, left.values()), strict=True):
            known[ask] = {"ask": ask, "judge": asked.name, "text": text}
            lines.write(json.dumps(known[ask], ensure_ascii=False) + "\n")
            lines.flush()
            done(1)
    unread = 0
    for ask, _, answer, metric in todo:
        opinions = answer.setdefault("about", {}).setdefault(JUDGEMENTS, {})
        if metric.readable(known[ask]["text"]):
            opinions[mark(answer["answer"])] = {"text": known[ask]["text"], "judge": asked.name, "ask": ask}
        else:
            opinions.pop(mark(answer["answer"]), None)  # another judge's would be taken for this one's
            unread += 1
    return unread


def count(answers: Sequence[Answer], asked: Judge, wording: Wording) -> int:
    """How many opinions :func:`judge` needs."""
    return len(list(_todo(list(answers), asked, wording)))


def _todo(answers: list[Answer], asked: Judge, wording: Wording) -> list[tuple[str, str, Answer, Judged]]:
    """Of each answer a name for what is asked, the prompt, the answer, and its metric."""
    found = []
    for name in dict.fromkeys(answer["task"] for answer in answers):
        mine = [answer for answer in answers if answer["task"] == name]
        of, metric = metric_of(mine)
        if not isinstance(metric, Judged):
            continue
        for answer in mine:
            told = metric.asks(answer["id"], answer["answer"])
            if told is not None:
                prompt = _filled(getattr(wording, of), told)
                found.append((fingerprint(asked.name, prompt), prompt, answer, metric))
    return found


def _filled(text: str, told: dict[str, str]) -> str:
    """The wording with its names filled in; braces in an answer stay what they are."""
    pieces = string.Formatter().parse(text)
    return "".join(before + (told[name] if name is not None else "") for before, name, _, _ in pieces)
