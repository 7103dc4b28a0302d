"""What a model can do without pictures, and what instruction tuning did to it: perplexity, and choices by likelihood.

MM1 reports such skills as TextCore (section 3.3); ``mm1-eval lm`` runs those benchmarks by a published harness. Here is
the small check that needs no network: held-out text, and a file of questions, one a line::

    {"context": "The capital of France is", "choices": ["Paris", "Rome"], "answer": 0}      the likelier choice
    {"context": "... and so he opened the", "target": "door"}                               the last words, greedily
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

import mm1
from eval.files import rows
from eval.metrics.interval import interval, interval_of
from eval.scores import aligned
from mm1.data.shards import Damaged, ShardSet
from mm1.errors import UserError, at_least
from mm1.infer.assistant import Assistant, Dtype
from mm1.infer.likelihood import Reading, likelihoods, windows
from mm1.sample import Text
from mm1.template import turn

DOCUMENT_CHARACTERS = 8_000  # of plain text, as when it is trained on
LN2 = float(np.log(2))


@dataclass(frozen=True, slots=True)
class Question:
    """A context and what may follow it.

    Args:
        id: Unique within its file.
        context: What is read.
        choices: What may follow; one alone must be what greedy decoding says.
        right: Which of them does.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Asked:
    """How a model is measured.

    Args:
        template: ``none`` reads context and choice as one text, ``chat`` the context as a user's turn.
        max_positions: The context; longer documents are read in windows of this length.
        overlap: Tokens of the window before that are read again.
        batch_positions: Positions read at once; changes speed and memory.
        limit: At most so many documents and so many questions, the first; all if null.
    """

    template: Literal["none", "chat"] = "none"
    max_positions: int = 4096
    overlap: int = 1
    batch_positions: int = 16384
    limit: int | None = None


@dataclass
class Measured:
    """What was measured of one model.

    Args:
        documents: Of each document its name, the nats of its tokens, tokens, and bytes of UTF-8.
        questions: Of each question its id, 100 where the likelier choice is right, and 100 where the choice of the
            most likelihood a byte is.
    """

    documents: list[tuple[str, float, int, int]] = field(default_factory=list)
    questions: list[tuple[str, float, float]] = field(default_factory=list)


def measure(
    assistant: Assistant,
    documents: Sequence[tuple[str, str]],
    questions: Sequence[Question],
    asked: Asked,
    progress: str = "",
) -> Measured:
    """Read documents and questions with a model.

    Args:
        assistant: The model and its tokenizer.
        documents: Name and text of each.
        questions: What else is asked.
        asked: How.
        progress: What the bar of progress is called; none is shown if empty.

    Raises:
        UserError: A question does not fit the context.
    """
    model, tokenizer, found = assistant.model, assistant.tokenizer, Measured()
    cut = [
        list(windows(tokenizer.encode(text), tokenizer.bos, asked.max_positions, asked.overlap))
        for _, text in documents
    ]
    chosen = [[_reading(assistant, question, choice, asked) for choice in question.choices] for question in questions]
    everything = [reading for several in (*cut, *chosen) for reading in several]
    with tqdm(total=len(everything), unit=" readings", desc=progress, disable=not progress) as bar:
        left = iter(likelihoods(model, tokenizer, everything, batch_positions=asked.batch_positions, done=bar.update))
    for (name, text), parts in zip(documents, cut, strict=True):
        nats, tokens = sum(next(left).nats for _ in parts), sum(part.scored for part in parts)
        found.documents.append((name, nats, tokens, len(text.encode())))
    for question in questions:
        said = [next(left) for _ in question.choices]
        if len(said) == 1:
            right = normalised = said[0].greedy
        else:
            octets = [max(1, len(choice.encode())) for choice in question.choices]
            right = _best([one.nats for one in said]) == question.right
            normalised = _best([one.nats / size for one, size in zip(said, octets, strict=True)]) == question.right
        found.questions.append((question.id, 100.0 * right, 100.0 * normalised))
    return found


def run(
    checkpoints: Sequence[str],
    documents: Path | None,
    questions: Path | None,
    asked: Asked,
    device: str = "cpu",
    dtype: Dtype | None = None,
) -> dict[str, Any]:
    """Measure one checkpoint, or several on the same text: the last of them against the first.

    Args:
        checkpoints: Of mm1-train, or exported folders.
        documents: Held-out text (:func:`read_documents`), if any.
        questions: Questions (:func:`read_questions`), if any.
        asked: How they are measured.
        device: Where the models run, one after another.
        dtype: Type of their weights; those of the files if not given.

    Raises:
        UserError: Nothing to read, or something wrong with it, before a model is loaded.
    """
    check(asked)
    if documents is None and questions is None:
        raise UserError("neither documents nor questions are given; expected one of them (--documents, --questions)")
    texts = read_documents(documents)[: asked.limit] if documents else []
    put = read_questions(questions)[: asked.limit] if questions else []
    measured, spelled = [], set()
    for checkpoint in checkpoints:
        assistant = mm1.load(checkpoint, device=device, dtype=dtype)
        spelled.add(assistant.tokenizer.fingerprint)
        measured.append(measure(assistant, texts, put, asked, _label(checkpoint)))
    found = record(checkpoints, measured, asked)
    if len(spelled) > 1 and found["change"]:  # tokens of another tokenizer are longer or shorter
        found["change"].pop("perplexity", None)
        found["warnings"] = ["the tokenizers differ: perplexities a token do not compare, bits a byte do"]
    return found


def read_documents(path: Path) -> list[tuple[str, str]]:
    """Held-out text: the text stream's ``val`` split of a corpus, ``*.jsonl`` with a ``text`` a row, or plain text.

    Plain text is cut at blank lines into documents of at most ``DOCUMENT_CHARACTERS``, as when it is trained on.

    Raises:
        UserError: It is none of these, or holds no text.
    """
    if path.is_dir():
        found = list(_of_corpus(path))
    elif path.suffix == ".jsonl":
        found = [(str(at), row["text"]) for at, row in enumerate(rows(path, None, {"text": str}))]
    else:
        try:
            found = [(str(at), text) for at, text in enumerate(_of_plain(path.read_text()))]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not readable as text ({error}); expected text, *.jsonl or a corpus") from None
    found = [(name, text) for name, text in found if text.strip()]
    if not found:
        raise UserError(f"{path} holds no text; expected a document at least (--documents)")
    return found


def read_questions(path: Path) -> list[Question]:
    """Questions of a file of one a line.

    Raises:
        UserError: A line lacks its context or choices, or names a choice that is none.
    """
    found = []
    for at, row in enumerate(rows(path, None, {"context": str})):
        choices = [row["target"]] if isinstance(row.get("target"), str) else row.get("choices")
        right = row.get("answer", 0 if "target" in row else None)
        if isinstance(right, str) and isinstance(choices, list) and right in choices:
            right = choices.index(right)
        texts = isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)
        if not texts or not choices or not isinstance(right, int) or not 0 <= right < len(choices):
            raise UserError(
                f"{path}: line {at + 1} has choices {choices!r:.60} and answer {row.get('answer')!r:.40}; expected "
                f"texts and the number of one of them, counted from 0, or a target"
            )
        found.append(Question(str(row.get("id", at)), row["context"], tuple(choices), right))
    if not found:
        raise UserError(f"{path} holds no question; expected one a line at least (--questions)")
    if twice := len(found) - len({question.id for question in found}):
        raise UserError(f"{path} names {twice} questions like another; expected every id once")
    return found


def check(asked: Asked) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: Which, and what was expected.
    """
    at_least(2, {"max_positions": asked.max_positions})
    limit = 1 if asked.limit is None else asked.limit
    at_least(1, {"overlap": asked.overlap, "batch_positions": asked.batch_positions, "limit": limit})
    if asked.overlap >= asked.max_positions:
        raise UserError(f"overlap is {asked.overlap}; expected less than max_positions, {asked.max_positions}")


def record(names: Sequence[str], measured: Sequence[Measured], asked: Asked) -> dict[str, Any]:
    """Everything as ``text.json`` keeps it: each model's numbers with 95 % intervals, and what the last changed."""
    models = [{"checkpoint": name, **_numbers(one)} for name, one in zip(names, measured, strict=True)]
    change = _change(measured[0], measured[-1]) if len(measured) > 1 else None
    return {"format": 1, "settings": asdict(asked), "models": models, "change": change}


def told(found: dict[str, Any]) -> str:
    """The same as a table for a terminal."""
    lines = [["", *(_label(model["checkpoint"]) for model in found["models"])]]
    for name, title in NUMBERS.items():
        if name in found["models"][0]:
            lines.append([title, *(_spell(model[name]) for model in found["models"])])
    if found["change"]:
        lines[0].append("change")
        for line in lines[1:]:
            name = next(name for name, title in NUMBERS.items() if title == line[0])
            line.append(_spell(found["change"].get(name), sign=True))
    return "\n".join([*aligned(lines), *found.get("warnings", ())])


NUMBERS = {
    "documents": "documents",
    "perplexity": "perplexity a token",
    "bits_per_byte": "bits a byte",
    "questions": "questions",
    "accuracy": "accuracy, %",
    "accuracy_by_byte": "accuracy by byte, %",
}


def _numbers(one: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if one.documents:
        counts_DK = np.array([document[1:] for document in one.documents])
        keys = [document[0] for document in one.documents]
        for name, value in (("perplexity", _perplexity), ("bits_per_byte", _bits)):
            found[name] = [float(value(counts_DK.sum(axis=0))), *interval_of(value, counts_DK, keys)]
        found["documents"] = len(one.documents)
    if one.questions:
        found["questions"] = len(one.questions)
        for at, name in enumerate(("accuracy", "accuracy_by_byte"), start=1):
            scores = [float(question[at]) for question in one.questions]
            found[name] = [float(np.mean(scores)), *interval(scores)]
    return found


def _change(before: Measured, after: Measured) -> dict[str, Any]:
    """The last model minus the first, on the same documents and questions."""
    found: dict[str, Any] = {}
    if before.documents:
        pairs = zip(before.documents, after.documents, strict=True)
        counts_DK = np.array([[*one[1:], *other[1:]] for one, other in pairs])
        keys = [document[0] for document in before.documents]
        for name, value in (("perplexity", _perplexity), ("bits_per_byte", _bits)):

            def difference(sums_K: np.ndarray, value: Callable[[np.ndarray], np.ndarray] = value) -> np.ndarray:
                return value(sums_K[..., 3:]) - value(sums_K[..., :3])

            found[name] = [float(difference(counts_DK.sum(axis=0))), *interval_of(difference, counts_DK, keys)]
    if before.questions:
        for at, name in enumerate(("accuracy", "accuracy_by_byte"), start=1):
            scores = [
                float(other[at]) - float(one[at]) for one, other in zip(before.questions, after.questions, strict=True)
            ]
            found[name] = [float(np.mean(scores)), *interval(scores)]
    return found


def _perplexity(sums_K: np.ndarray) -> np.ndarray:
    """e to the nats that a token costs; comparable where the vocabulary is the same."""
    return np.asarray(np.exp(-sums_K[..., 0] / sums_K[..., 1]))


def _bits(sums_K: np.ndarray) -> np.ndarray:
    """Bits that a byte of the documents costs; comparable between vocabularies."""
    return np.asarray(-sums_K[..., 0] / LN2 / sums_K[..., 2])


def _reading(assistant: Assistant, question: Question, choice: str, asked: Asked) -> Reading:
    """Context and choice, with a blank between them, in the spelling that training gave such a text."""
    tokenizer = assistant.tokenizer
    if asked.template == "chat":
        context = assistant.model.template.applied(turn(question.context))
        before = [id for item in context if isinstance(item, Text) for id in tokenizer.encode(tokenizer.spelling(item))]
        said = tokenizer.encode(tokenizer.spelling(Text(choice.strip(), after_space=True)))
    else:
        before = tokenizer.encode(question.context.rstrip())
        said = tokenizer.encode(f"{question.context.rstrip()} {choice.strip()}")[len(before) :]
    length = 1 + len(before) + len(said)
    if length > asked.max_positions:
        raise UserError(
            f"question {question.id} takes {length} positions; expected at most max_positions, {asked.max_positions}"
        )
    return Reading([tokenizer.bos, *before, *said], len(said))


def _label(checkpoint: str) -> str:
    """What people call a checkpoint: its run, since most are called ``last.ckpt``."""
    path = Path(checkpoint)
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda at: values[at])


def _of_corpus(folder: Path) -> Iterator[tuple[str, str]]:
    shards = ShardSet(folder, "text", "val")
    for at in range(len(shards)):
        try:
            sample = shards[at]
        except Damaged as damage:
            raise UserError(str(damage)) from None
        yield sample.id, "\n".join(item.text for item in sample.items if isinstance(item, Text))


def _of_plain(text: str) -> Iterator[str]:
    gathered: list[str] = []
    for paragraph in (part.strip("\n") for part in text.replace("\r\n", "\n").split("\n\n")):
        if gathered and sum(map(len, gathered)) + len(paragraph) > DOCUMENT_CHARACTERS:
            yield "\n\n".join(gathered)
            gathered = []
        gathered += [paragraph] if paragraph.strip() else []
    if gathered:
        yield "\n\n".join(gathered)


def _spell(value: Any, sign: bool = False) -> str:
    """``12.3 (11.0 to 13.9)``; a count as it is."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    number, low, high = value
    form = "+.3f" if sign else ".3f"
    return f"{number:{form}} ({low:{form}} to {high:{form}})"
