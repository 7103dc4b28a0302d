"""A checkpoint that answers while somebody waits: one question at a time, token by token, and it stops when told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.serve.conversation import Items, Reply, Spoken
from mm1.errors import UserError, at_least
from mm1.infer.assistant import Assistant
from mm1.infer.decoding import Decoding
from mm1.infer.spelling import Spelling
from mm1.infer.visits import weighed
from mm1.model.count import parameters
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import Router

LONGEST, HOTTEST = 2048, 2.0  # new tokens; temperature
LINE_END = "\n"


@dataclass(frozen=True)
class Sampling:
    """How an answer is chosen.

    Args:
        temperature: 0 takes the best token every time.
        top_p: Sampling keeps the fewest tokens that together have this probability.
        max_new_tokens: Length of the answer at most.
        seed: Of what is drawn.
        line: Whether the answer ends with its line, which a model that was only pre-trained does not know to do.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    line: bool = False

    def check(self) -> None:
        """Refuse numbers that no model can be asked with.

        Raises:
            UserError: Which one.
        """
        at_least(0, {"temperature": self.temperature, "seed": self.seed})
        at_least(1, {"max new tokens": self.max_new_tokens})
        self.decoding().check()
        if not self.temperature <= HOTTEST:
            raise UserError(f"temperature is {self.temperature}; expected at most {HOTTEST}")
        if self.max_new_tokens > LONGEST:
            raise UserError(f"max new tokens is {self.max_new_tokens}; expected at most {LONGEST}")

    def decoding(self) -> Decoding:
        """The same as the engine is told it."""
        return Decoding(temperature=self.temperature, top_p=self.top_p, seed=self.seed)


class Speaker:
    """One model of the page.

    Args:
        assistant: The model.
        label: What the page calls it.
    """

    def __init__(self, assistant: Assistant, label: str) -> None:
        self.assistant, self.label = assistant, label
        self._turn = threading.Lock()
        model = assistant.model
        sparse = {at: layer.ffn for at, layer in enumerate(model.decoder.layers) if isinstance(layer.ffn, Mixture)}
        routers = {at: next((m for m in ffn.modules() if isinstance(m, Router)), None) for at, ffn in sparse.items()}
        self.experts = {at: router.experts for at, router in routers.items() if router is not None}
        counts = parameters(model)
        size = f"{_short(counts.total)} parameters"
        if counts.active != counts.total:
            size += f", {_short(counts.active)} active"
        self.facts = (
            size,
            *([_sparse(self.experts)] if self.experts else []),
            f"{assistant.engine.tokens_per_image * model.views.count} tokens a picture",
            f"context {assistant.engine.max_positions:,}",
        )

    def check(self, items: Items, sampling: Sampling) -> None:
        """Refuse a prompt that does not fit before anything is computed.

        Raises:
            UserError: With the arithmetic.
        """
        self.assistant.engine.check(items, sampling.max_new_tokens)

    def say(self, items: Items, sampling: Sampling, stop: threading.Event) -> Iterator[Reply]:
        """The answer as it grows; waits while the model answers somebody else.

        Args:
            items: The prompt.
            sampling: How to choose.
            stop: Once set, the answer ends with the token being made.
        """
        while not self._turn.acquire(timeout=0.2):
            if stop.is_set():
                yield Reply(done=True, note="stopped")
                return
        try:
            yield from self._say(items, sampling, stop)
        except UserError as error:
            yield Reply(done=True, error=str(error))
        finally:
            self._turn.release()

    def _say(self, items: Items, sampling: Sampling, stop: threading.Event) -> Iterator[Reply]:
        began_s = time.perf_counter()
        engine, decoding = self.assistant.engine, sampling.decoding()
        spelling = Spelling(self.assistant.tokenizer, (LINE_END,) if sampling.line else ())
        text, first_s, note = "", 0.0, ""
        tokens: list[Spoken] = []
        with weighed(self.assistant.model.decoder) as weights:
            for token, _ in engine.stream(items, sampling.max_new_tokens, decoding):
                spelling.add(token)
                spelling.spell()
                news, now_s = spelling.news(), time.perf_counter() - began_s
                text, first_s = text + news, first_s or now_s
                tokens.append(Spoken(news, dict(weights)))
                if stop.is_set():
                    note = "stopped"
                if note or spelling.ended:
                    break
                yield Reply(text, tuple(tokens), len(tokens), first_s, now_s)
        if not note and not spelling.ended and len(tokens) == sampling.max_new_tokens:
            note = f"cut off at {len(tokens)} tokens"
        spelling.ended = True  # so that what was held back is told
        if tokens and (rest := spelling.news()):
            text, tokens[-1] = text + rest, Spoken(tokens[-1].text + rest, tokens[-1].routes)
        yield Reply(text, tuple(tokens), len(tokens), first_s, time.perf_counter() - began_s, done=True, note=note)


def label_of(path: Path) -> str:
    """A name for a checkpoint that says which run it is of, and nothing else of where it lies."""
    path = path.absolute()
    if path.is_dir() or path.parent.name != "checkpoints":
        return path.stem if path.is_file() else path.name
    return path.parent.parent.name + ("" if path.stem == "last" else f" {path.stem}")


def _sparse(experts: dict[int, int]) -> str:
    where = f"layer {min(experts)}" if len(experts) == 1 else f"{len(experts)} layers"
    return f"{max(experts.values())} experts in {where}"


def _short(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
