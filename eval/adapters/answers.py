"""A checkpoint opened for a harness, and what it wants of an answer (``until``, ``max_gen_toks``, ..)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

import mm1
from mm1.errors import at_least
from mm1.infer.assistant import Assistant, Dtype
from mm1.infer.decoding import GREEDY, Decoding
from mm1.infer.engine import Engine, Prompt

LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens", "max_completion_tokens")
TOKENS = 256  # lm-eval's own default


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an answer is decoded.

    Args:
        tokens: Its length at most.
        stop: Strings before which it ends.
        decoding: Greedily, by beams, or drawn.
    """

    tokens: int
    stop: tuple[str, ...]
    decoding: Decoding = GREEDY

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wanted:
        """From a task's ``generation_kwargs``; drawn only where ``do_sample`` says so, as transformers does.

        Raises:
            UserError: Numbers that cannot be.
        """
        until = given.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        length = next((given[name] for name in LENGTHS if given.get(name)), TOKENS)
        temperature = given.get("temperature")
        decoding = Decoding(beams=int(given.get("num_beams") or 1))
        if given.get("do_sample") and temperature != 0:
            top_k, top_p = int(given.get("top_k") or 0), float(given.get("top_p") or 1.0)
            heat = 1.0 if temperature is None else float(temperature)
            decoding = replace(decoding, temperature=heat, top_k=top_k, top_p=top_p)
        decoding.check()
        return cls(int(length), tuple(mark for mark in stop if mark), decoding)


def opened(checkpoint: str, device: str, dtype: Dtype | None, max_positions: int, batch_positions: int) -> Assistant:
    """A checkpoint or exported folder with an engine of the sizes that a harness was told.

    Raises:
        UserError: The path is no checkpoint of ours, the device cannot be used, or a size is too small.
    """
    at_least(2, {"max_positions": max_positions})
    at_least(1, {"batch_positions": batch_positions})
    assistant = mm1.load(checkpoint, device=device, dtype=dtype)
    assistant.engine.max_positions = max_positions
    assistant.engine.batch_positions = batch_positions
    return assistant


def answers(engine: Engine, prompts: Sequence[Prompt], wanted: Sequence[Wanted], quiet: bool = False) -> list[str]:
    """One answer for each prompt, in their order; those decoded alike are decoded together.

    Args:
        engine: Who answers.
        prompts: What is asked.
        wanted: How each is answered.
        quiet: Whether to show no progress.

    Raises:
        UserError: A prompt and its answer do not fit the engine's context.
    """
    alike: dict[Wanted, list[int]] = defaultdict(list)
    for at, want in enumerate(wanted):
        alike[want].append(at)
    found = [""] * len(prompts)
    with tqdm(total=len(prompts), unit=" answers", disable=quiet) as bar:
        for want, places in alike.items():
            for at, answer in engine.generate(
                [prompts[place] for place in places], want.tokens, want.stop, want.decoding
            ):
                found[places[at]] = answer
                bar.update()
    return found
