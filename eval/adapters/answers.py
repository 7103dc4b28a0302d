"""What harnesses want of an answer (``until``, ``max_gen_toks``, ..) told to our engine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from mm1.errors import UserError
from mm1.infer.engine import Engine, Prompt

LENGTHS = ("max_new_tokens", "max_gen_toks", "max_tokens", "max_completion_tokens")
TOKENS = 256  # lm-eval's own default


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an answer is decoded.

    Args:
        tokens: Its length at most.
        stop: Strings before which it ends.
    """

    tokens: int
    stop: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wanted:
        """From a task's ``generation_kwargs``.

        Raises:
            UserError: It wants sampled answers or beams.
        """
        if given.get("do_sample") and (given.get("temperature", 1.0) or 0) > 0:
            raise UserError(
                f"the task wants sampled answers (do_sample with temperature {given.get('temperature', 1.0)}); "
                f"expected greedy ones: set do_sample to false in its generation_kwargs (--gen_kwargs do_sample=False)"
            )
        if (given.get("num_beams") or 1) > 1:
            raise UserError(f"the task wants {given['num_beams']} beams; expected 1 (--gen_kwargs num_beams=1)")
        until = given.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        length = next((given[name] for name in LENGTHS if given.get(name)), TOKENS)
        return cls(int(length), tuple(mark for mark in stop if mark))


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
            for at, answer in engine.generate([prompts[place] for place in places], want.tokens, want.stop):
                found[places[at]] = answer
                bar.update()
    return found
