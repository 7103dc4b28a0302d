"""Several GPUs answer: a process on each with a model of its own, prompts dealt out by index, answers as they come."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import multiprocessing

from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError, at_least
from mm1.infer.assistant import Dtype, load_assistant
from mm1.infer.continuous import Answer
from mm1.infer.decoding import GREEDY, Decoding
from mm1.infer.engine import Engine, Prompt
from mm1.sample import Image, Text, expand

DONE, TOLD, REFUSED, BROKEN = range(4)


class Spread:
    """What an :class:`mm1.infer.engine.Engine` does, done by several processes; a context manager.

    What is said does not depend on their number: a process answers prompts 0, n, 2n, ... of a call as it would answer
    all of them, and what is drawn belongs to the name of a prompt.

    Args:
        checkpoint: A training checkpoint or an exported folder, which every process opens.
        processes: How many.
        device: ``cuda`` is the first, second, .. GPU for the first, second, .. process; any other is the same for all.
        dtype: Type of the weights; None keeps that of the file.
        max_positions: As for the engine.
        batch_positions: As for the engine, for each process.
        features_mb: Likewise.
        compiled: Likewise.

    Raises:
        UserError: More processes than GPUs, or a checkpoint that cannot be opened.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        processes: int,
        *,
        device: str = "cuda",
        dtype: Dtype | None = None,
        max_positions: int = 4096,
        batch_positions: int = 16384,
        features_mb: int = 1024,
        compiled: bool = False,
    ) -> None:
        at_least(1, {"processes": processes})
        if device == "cuda" and processes > torch.cuda.device_count():
            raise UserError(
                f"processes is {processes} and {torch.cuda.device_count()} GPUs are here; expected at most as many"
            )
        sizes = {"max_positions": max_positions, "batch_positions": batch_positions, "features_mb": features_mb}
        given = {**sizes, "compiled": compiled}
        context = multiprocessing.get_context("spawn")
        threads = max(1, torch.get_num_threads() // processes)
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(processes):
            here, there = context.Pipe()
            place = f"cuda:{rank}" if device == "cuda" else device
            process = context.Process(
                target=_serve, args=(there, str(checkpoint), place, dtype, threads, given), daemon=True
            )
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)
        about = [told for _, told in self._collect(dict(enumerate(self._ends)))]
        self.tokenizer = Tokenizer.from_bytes(about[0][0])
        self.tokens_per_image, self.template, self.views = about[0][1:]

    def answers(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        decoding: Decoding = GREEDY,
        names: Sequence[str] | None = None,
    ) -> Iterator[Answer]:
        """As the engine's.

        Raises:
            UserError: As there, or a process ended.
        """
        names = [str(at) for at in range(len(prompts))] if names is None else names
        count = len(self._ends)
        for rank in range(count):
            mine = slice(rank, None, count)
            given = list(prompts[mine]), max_new_tokens, tuple(stop), decoding, list(names[mine])
            self._ask(rank, "answers", given)
        for rank, (at, text, tokens, margin) in self._collect(dict(enumerate(self._ends))):
            yield Answer(at * count + rank, text, tokens, margin)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = (), decoding: Decoding = GREEDY
    ) -> Iterator[tuple[int, str]]:
        """As the engine's."""
        return ((said.index, said.text) for said in self.answers(prompts, max_new_tokens, stop, decoding))

    def shown(self, items: Prompt) -> list[Text | Image]:
        """As the engine's."""
        return expand(self.template.applied(items), self.views)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[float]:
        """As the engine's."""
        count, scores = len(self._ends), [0.0] * len(prompts)
        for rank in range(count):
            mine = slice(rank, None, count)
            self._ask(rank, "score", (list(prompts[mine]), list(continuations[mine])))
        for rank, found in self._collect(dict(enumerate(self._ends))):
            scores[rank::count] = found
        return scores

    def _collect(self, waiting: dict[int, Connection]) -> Iterator[tuple[int, Any]]:
        """What processes tell until all are done, each with the process's number."""
        try:
            while waiting:
                for end in wait(list(waiting.values())):
                    rank = self._ends.index(end)  # type: ignore[arg-type]
                    try:
                        kind, value = self._ends[rank].recv()
                    except (EOFError, OSError):
                        kind, value = BROKEN, "it ended"
                    if kind == DONE:
                        del waiting[rank]
                    elif kind == TOLD:
                        yield rank, value
                    else:
                        raise UserError(value) if kind == REFUSED else self._broken(rank, value)
        finally:
            if waiting:  # nobody wants the rest, which would be taken for what is told next
                self.close()

    def _ask(self, rank: int, what: str, given: tuple[Any, ...]) -> None:
        try:
            self._ends[rank].send((what, given))
        except OSError:
            self.close()
            raise self._broken(rank, "it ended") from None

    def _broken(self, rank: int, why: str) -> UserError:
        return UserError(
            f"process {rank} of {len(self._ends)} that answer did not go on ({why}); finished answers are kept: run it "
            f"again, with fewer batch_positions if memory ran out"
        )

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def __enter__(self) -> Spread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(end: Connection, checkpoint: str, device: str, dtype: Dtype | None, threads: int, given: Any) -> None:
    """A process: open the model, then do what is asked until nobody asks."""
    torch.set_num_threads(threads)
    engine: Engine | None = None

    def opened() -> Iterator[Any]:
        nonlocal engine
        assistant = load_assistant(checkpoint, device=device, dtype=dtype)
        engine = Engine(assistant.model, assistant.tokenizer, **given)
        yield assistant.tokenizer.proto, engine.tokens_per_image, engine.template, engine.views

    def answers(*asked: Any) -> Iterator[Any]:
        assert engine is not None
        for said in engine.answers(*asked):
            yield said.index, said.text, said.tokens, said.margin

    def score(*asked: Any) -> Iterator[Any]:
        assert engine is not None
        yield engine.score(*asked)

    does: dict[str, Callable[..., Iterator[Any]]] = {"answers": answers, "score": score}
    _tell(end, opened)
    while True:
        try:
            name, asked = end.recv()
        except (EOFError, KeyboardInterrupt):
            return
        _tell(end, partial(does[name], *asked))


def _tell(end: Connection, does: Callable[[], Iterator[Any]]) -> None:
    try:
        for value in does():
            end.send((TOLD, value))
        end.send((DONE, None))
    except UserError as error:
        end.send((REFUSED, str(error)))
    except Exception as error:
        traceback.print_exc()
        end.send((BROKEN, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
