"""Several processes say what one says, and a fault of one is told in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

import mm1
from mm1.errors import UserError
from mm1.infer.decoding import Decoding
from mm1.infer.spread import Spread
from mm1.sample import Image, Text
from tests.mm1.infer.test_engine import picture

PROMPTS = [[Image(picture(at % 3)), Text(text)] for at, text in enumerate(["what?", "one", "a red", "is", "two three"])]


@pytest.mark.slow
def test_two_processes_say_what_one_says(tiny_checkpoint: Path) -> None:
    engine = mm1.load(tiny_checkpoint).engine
    drawn = Decoding(temperature=1.5, seed=2)
    with Spread(tiny_checkpoint, 2, device="cpu", max_positions=64) as two:
        assert two.tokenizer.proto == engine.tokenizer.proto
        assert two.tokens_per_image == engine.tokens_per_image
        for decoding in (Decoding(), drawn, Decoding(beams=2)):
            one = sorted(engine.answers(PROMPTS, 8, ("e",), decoding), key=lambda said: said.index)
            both = sorted(two.answers(PROMPTS, 8, ("e",), decoding), key=lambda said: said.index)
            assert [(said.index, said.text, said.tokens) for said in both] == [
                (said.index, said.text, said.tokens) for said in one
            ]
        assert two.score(PROMPTS, ["a"] * 5) == pytest.approx(engine.score(PROMPTS, ["a"] * 5), abs=1e-4)
        assert dict(two.generate(PROMPTS[:1], 8)) == dict(engine.generate(PROMPTS[:1], 8))
        with pytest.raises(UserError, match=r"make 101; expected at most 64"):
            list(two.answers(PROMPTS, 80))


@pytest.mark.slow
def test_a_process_that_ends_is_told(tiny_checkpoint: Path) -> None:
    with Spread(tiny_checkpoint, 2, device="cpu") as two:
        two._processes[1].kill()
        two._processes[1].join()
        with pytest.raises(UserError, match="process 1 of 2 that answer did not go on"):
            list(two.answers(PROMPTS, 4))
    with pytest.raises(UserError, match=r"nowhere\.ckpt"):
        Spread("nowhere.ckpt", 1, device="cpu")


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"processes is 99 and \d+ GPUs are here"):
        Spread("any.ckpt", 99)
