"""How questions are put: the settings of an evaluation, and a query with its demonstrations as one document.

plain    <image>Question: q Short answer: a<image>Question: q Short answer:          a model before instruction tuning
chat     <image> User: q\\nAssistant: a</s><image> User: q\\nAssistant:               a model after it

A demonstration without its picture is the same text alone, in either style; of a chat it is a turn about nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from eval.failing import masks_of
from eval.similar import Retrieval
from eval.task import Kind, Query
from eval.turns import asked
from mm1 import template
from mm1.errors import UserError, at_least
from mm1.infer.decoding import Decoding
from mm1.sample import Image, Text
from mm1.template import turn

Item = Text | Image
Arm = Literal["sighted", "blind", "blank"]
IN_PLACE = r"<image (\d+)>"  # a picture's place in a question that names its pictures


@dataclass(frozen=True)
class Prompt:
    """How one kind of benchmark is asked.

    Args:
        template: Text with ``{image}``, ``{question}`` and ``{answer}``. A plain one ends with ``{answer}`` and is cut
            there for the query; a chat one has no answer, since the chat template gives it its place.
        stop: Strings before which an answer ends.
        max_new_tokens: Length of an answer at most.
        decoding: Greedy if nothing is set; beams, or what is drawn and by which seed.
        reasoning: What a demonstration shows in the place of its answer, such as ``{rationale} Answer: {answer}``, so
            that the model reasons before it answers (chain of thought, Wei et al. 2022). A demonstration whose file has
            no rationale shows the rest. Empty: the answer alone.
        extract: Regular expression by which an answer is taken out of what was said: the first group of its last match,
            such as ``Answer:\\s*(.*)``. What it does not match is scored as a whole, and counted. Empty: all of it.
    """

    template: str = "{image}Question: {question} Short answer: {answer}"
    stop: tuple[str, ...] = ("\n", "Question")
    max_new_tokens: int = 10
    decoding: Decoding = field(default_factory=Decoding)
    reasoning: str = ""
    extract: str = ""

    def shown(self, query: Query) -> str:
        """What a demonstration shows as its answer."""
        if not self.reasoning:
            return query.answer
        rationale = str(query.about.get("rationale") or "").strip()
        return self.reasoning.replace("{answer}", query.answer).replace("{rationale}", rationale).strip()

    def taken(self, said: str) -> str | None:
        """The answer in what was said; None where there is none to be found."""
        found = list(re.finditer(self.extract, said)) if self.extract else []
        if not self.extract:
            return said
        return found[-1][1].strip() if found and found[-1][1] is not None else None


@dataclass(frozen=True)
class Settings:
    """All that decides what a model is asked. Wording and stop strings of MM1 are unpublished; these are near them.

    Args:
        style: ``plain`` for a pre-trained model, ``chat`` for an instruction-tuned one.
        captions: Captioning.
        vqa: Question answering.
        choices: Multiple choice whose choices stand in the question as A, B, C.
        open: Questions that want more than a few words.
        icl: Made-up words.
        separator: What follows a demonstration.
        shots: Numbers of demonstrations.
        text_only_demonstrations: Demonstrations that come without their pictures, at 0 shots only: they show the form
            of an answer and nothing to look at (two of them are Flamingo's convention, section 3.2 of its paper, and
            that of MM1's 0-shot rows).
        arms: ``sighted`` shows the picture asked about, ``blind`` another one in its place, ``blank`` a grey one in the
            place of every picture, which is how a model is asked that was trained without pictures.
        tasks: Only these benchmarks; all that the data folder holds if empty.
        limit: At most so many questions a benchmark, chosen by the seed; all if null.
        demonstrations: ``random``, or ``similar``: those whose pictures are most like the one asked about, the most
            similar last, at any number of shots but 0.
        retrieval: What ``similar`` means.
        seed: Of demonstrations, of the questions chosen, and of the blind arm's swaps.
        seeds: Of demonstrations alone: every question is asked with those of each. Only ``seed`` if empty.
        max_positions: The context, positions a prompt and its answer may take together. MM1's rows by default; a model
            that was trained on shorter ones has not seen positions beyond them.
        full_resolution_last: Only the last so many demonstrations are shown in all the views that the model takes, and
            those before them in one, so that more of them fit (MM1's mixed resolution); all if null. The picture asked
            about always is.
        when_too_long: ``refuse`` to run with a prompt that is longer, or ``drop`` its earliest demonstrations: each
            answer then names them, and the score is marked.
        batch_positions: Positions decoded at once; changes speed and memory, no answer.
        features_mb: Memory for pictures already encoded, likewise.
        processes: Processes that answer, each on a GPU of its own; likewise.
        compiled: Compile the model's layers, likewise: pays on a GPU for some thousand questions.
        choosing: Answer multiple choice by ``likelihood`` or by ``letter``; null: as each benchmark does.
        images: Folders of pictures by benchmark, where they lie elsewhere than releases put them.
        max_missing_share: Share of a benchmark's questions whose pictures may be missing; more, and it is refused.
        mask_experts: Experts that fail while the model is asked, such as ``3:0,1;5:7``: experts 0 and 1 of decoder
            layer 3, counted from 0, and expert 7 of layer 5.
    """

    style: Literal["plain", "chat"] = "plain"
    captions: Prompt = field(default_factory=lambda: Prompt("{image}{answer}", max_new_tokens=30))
    vqa: Prompt = field(default_factory=Prompt)
    choices: Prompt = field(default_factory=lambda: Prompt("{image}Question: {question}\nAnswer: {answer}"))
    open: Prompt = field(default_factory=lambda: Prompt(stop=("Question:",), max_new_tokens=256))
    icl: Prompt = field(default_factory=Prompt)
    separator: str = ""
    shots: tuple[int, ...] = (0, 4, 8)
    text_only_demonstrations: int = 0
    arms: tuple[Arm, ...] = ("sighted", "blind")
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    demonstrations: Literal["random", "similar"] = "random"
    retrieval: Retrieval = field(default_factory=Retrieval)
    seed: int = 0
    seeds: tuple[int, ...] = ()
    max_positions: int = 4096
    full_resolution_last: int | None = None
    when_too_long: Literal["refuse", "drop"] = "refuse"
    batch_positions: int = 16384
    features_mb: int = 1024
    processes: int = 1
    compiled: bool = False
    choosing: Literal["likelihood", "letter"] | None = None
    images: dict[str, str] = field(default_factory=dict)
    max_missing_share: float = 0.0
    mask_experts: str = ""

    def check(self) -> None:
        """Refuse numbers and templates that cannot be asked.

        Raises:
            UserError: Which one, and what it lacks.
        """
        _given(self, may_lack=("limit", "choosing", "full_resolution_last"))
        if not self.shots or not self.arms:
            raise UserError(f"shots is {list(self.shots)} and arms {list(self.arms)}; expected at least one of each")
        none = ("text_only_demonstrations", "features_mb", "max_missing_share")
        at_least(0, {"shots": min(self.shots), **{name: getattr(self, name) for name in none}})
        at_least(1, {"limit": 1 if self.limit is None else self.limit, "max_positions": self.max_positions})
        at_least(0, {"full_resolution_last": self.full_resolution_last or 0})
        at_least(1, {"processes": self.processes})
        if self.processes > 1 and self.mask_experts:
            raise UserError(f"processes is {self.processes} and mask_experts is set; expected one of them")
        if len(set(self.shots)) < len(self.shots) or len(set(self.arms)) < len(self.arms):
            raise UserError(f"shots is {list(self.shots)} and arms {list(self.arms)}; expected each of them once")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds is {list(self.seeds)}; expected every seed once")
        if self.demonstrations == "similar":
            self.retrieval.check()
        masks_of(self.mask_experts)
        for kind in get_args(Kind):
            prompt = getattr(self, kind)
            _given(prompt, f"{kind}.")
            at_least(1, {f"{kind}.max_new_tokens": prompt.max_new_tokens})
            prompt.decoding.check(f"{kind}.decoding.")
            if "" in prompt.stop:
                raise UserError(f"{kind}.stop is {list(prompt.stop)}; expected no empty text, which ends every answer")
            _check_reasoning(prompt, kind)
            template = prompt.template
            if unknown := set(re.findall(r"{\w*}", template)) - {"{image}", "{question}", "{answer}"}:
                raise UserError(f"{kind}.template has {min(unknown)}; expected {{image}}, {{question}} and {{answer}}")
            ends = template.endswith("{answer}")
            if template.count("{image}") != 1 or "{answer}" in template.removesuffix("{answer}"):
                raise UserError(
                    f"{kind}.template is {template!r}; expected {{image}} once and {{answer}} at its end at most"
                )
            if ends != (self.style == "plain"):
                wanted = (
                    "{answer} at its end" if self.style == "plain" else "no {answer}, which the chat template places"
                )
                raise UserError(f"{kind}.template is {template!r}; style {self.style} expects {wanted}")

    def seeds_for(self, drawn: int) -> tuple[int, ...]:
        """Seeds that a question is asked with: without a demonstration that is drawn, all would ask the same."""
        return (self.seeds or (self.seed,)) if drawn else (self.seeds or (self.seed,))[:1]

    def spaced(self, kind: Kind) -> bool:
        """Whether a space parts an answer from the prompt before it."""
        return self.style == "chat" or self.prompt(kind).template.removesuffix("{answer}").endswith(" ")

    def prompt(self, kind: Kind) -> Prompt:
        """The prompt of a kind of benchmark."""
        found: Prompt = getattr(self, kind)
        return found


def _check_reasoning(prompt: Prompt, kind: str) -> None:
    braces = re.findall(r"{\w*}", prompt.reasoning)
    if prompt.reasoning and (set(braces) - {"{rationale}", "{answer}"} or braces.count("{answer}") != 1):
        raise UserError(f"{kind}.reasoning is {prompt.reasoning!r}; expected {{answer}} once, {{rationale}} before it")
    try:
        groups = re.compile(prompt.extract).groups
    except re.error as error:
        raise UserError(f"{kind}.extract is {prompt.extract!r} ({error}); expected a regular expression") from None
    if prompt.extract and not groups:
        raise UserError(f"{kind}.extract is {prompt.extract!r}; expected a group in it, such as Answer:\\s*(.*)")


def _given(values: Prompt | Settings, where: str = "", may_lack: Sequence[str] = ()) -> None:
    """Refuse a null in a YAML, which the parser lets through."""
    for name, value in vars(values).items():
        if value is None and name not in may_lack:
            raise UserError(f"{where}{name} is null; expected a value, or the line left out")


def document(
    query: Query,
    demonstrations: Sequence[Query],
    kind: Kind,
    settings: Settings,
    read: Callable[[Path], bytes],
    text_only: bool = False,
) -> list[Item]:
    """The whole prompt: demonstrations with their answers, the query's own context, the query without its answer.

    A demonstration has its own context before it, too.

    Args:
        query: What is asked.
        demonstrations: What stands before it, without their pictures if ``text_only``.
        kind: Which prompt of the settings it is asked with.
        settings: All wording.
        read: Bytes of a picture.
        text_only: Whether demonstrations come without their pictures.
    """
    shown: list[Item] = []
    last = settings.full_resolution_last
    for left, shot in zip(range(len(demonstrations), 0, -1), demonstrations, strict=True):
        answer = settings.prompt(shot.kind or kind).shown(shot)
        items = [*_context(shot, read), *_asked(shot, kind, settings, read, answer)]
        if last is not None and left > last:
            items = [replace(item, views="whole") if isinstance(item, Image) else item for item in items]
        shown += items
    if text_only:
        shown = [item for item in shown if isinstance(item, Text)]
    return [*shown, *_context(query, read), *_asked(query, kind, settings, read, None)]


def _context(query: Query, read: Callable[[Path], bytes]) -> list[Item]:
    return [Image(read(item)) if isinstance(item, Path) else Text(item) for item in query.context]


def spell(items: Sequence[Item]) -> str:
    """A prompt as people read it, ``<image>`` for every picture."""
    return "".join("<image>" if isinstance(item, Image) else item.spelled for item in items)


def _asked(
    query: Query, kind: Kind, settings: Settings, read: Callable[[Path], bytes], answer: str | None
) -> list[Item]:
    before, after = settings.prompt(query.kind or kind).template.split("{image}")
    named = _named(query)
    at_front = [picture for at, picture in enumerate(query.shown, 1) if at not in named]
    picture: list[Item] = [*([Text(before)] if before else []), *(Image(read(one)) for one in at_front)]
    after = after.replace("{question}", query.question)
    if settings.style == "chat" and named:
        pieces = _with_pictures(Text(after), query, named, read)
        parts = [piece.text if isinstance(piece, Text) else piece for piece in pieces]
        return [*picture, *asked(parts), *([template.answer(answer)] if answer is not None else [])]
    if settings.style == "chat":
        said: Sequence[Item] = turn(after, answer)
    elif answer is None:
        said = [Text(after.removesuffix("{answer}").rstrip())]  # a blank at the end would be a token of its own
    else:
        said = [Text(after.removesuffix("{answer}") + answer + settings.separator)]
    items = [piece for item in said for piece in _with_pictures(item, query, named, read)]
    return [*picture, *(item for item in items if not (isinstance(item, Text) and not item.text))]


def _named(query: Query) -> set[int]:
    """Which of its pictures a question names where they stand, counted from 1."""
    found = {int(at) for at in re.findall(IN_PLACE, query.question)} if query.inline else set()
    return {at for at in found if 1 <= at <= len(query.shown)}


def _with_pictures(item: Item, query: Query, named: set[int], read: Callable[[Path], bytes]) -> list[Item]:
    """A text with the pictures that it names in their places."""
    if not named or isinstance(item, Image) or not re.search(IN_PLACE, item.text):
        return [item]
    pieces: list[Item] = []
    for at, part in enumerate(re.split(IN_PLACE, item.text)):  # text, number, text, number, .., text
        if at % 2 and int(part) in named:
            pieces.append(Image(read(query.shown[int(part) - 1])))
        else:
            pieces.append(replace(item, text=f"<image {part}>" if at % 2 else part))
    return pieces
