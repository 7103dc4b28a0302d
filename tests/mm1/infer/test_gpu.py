"""On a GPU: recorded steps say what launched ones say, in fp32 to the letter, for every kind of model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mm1.data.tokenizer import Tokenizer, train
from mm1.infer.assistant import cast
from mm1.infer.continuous import Answer
from mm1.infer.decoding import Decoding
from mm1.infer.engine import Engine
from mm1.infer.slots import Slots
from tests.mm1.infer.test_engine import LINES
from tests.mm1.infer.test_invariance import KINDS, PROMPTS, answered, loud, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train(LINES, 340))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the steps that were replayed."""
    rows: list[int] = []
    plain = Slots.step

    def step(self: Slots, count: int, columns: int) -> None:
        plain(self, count, columns)
        rows.extend([count] * self.graphs)

    monkeypatch.setattr(Slots, "step", step)
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_on_a_gpu_says_what_a_cpu_says_whatever_the_batch(
    kind: str, tokenizer: Tokenizer, recorded: list[int]
) -> None:
    model = loud(kind)
    expected = answered(Engine(model, tokenizer), PROMPTS)
    model.cuda()
    for rows in (1, 3, 8):
        for share in (True, False):
            same(expected, answered(Engine(model, tokenizer, batch_positions=rows * 128, share=share), PROMPTS))
    assert bool(recorded) == (kind != "moe"), "experts in fp32 are told by the host how many rows they get"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_steps_in_bfloat16_say_what_launched_ones_say(
    kind: str, compiled: bool, tokenizer: Tokenizer, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cast(loud(kind).cuda(), "bfloat16")
    engine = Engine(model, tokenizer, batch_positions=400, compiled=compiled)
    for given in ({}, {"temperature": 1.0, "top_p": 0.9}):
        recorded.clear()
        found = answered(engine, PROMPTS, **given)
        assert recorded, "no step was recorded"
        engine._kept = None
        with monkeypatch.context() as patch:
            patch.setattr("mm1.infer.slots.capturable", lambda model: False)
            launched = answered(engine, PROMPTS, **given)
        engine._kept = None
        clear = [replace(said, margin=1.0) for said in found if (said.margin or 1.0) > 0.1]
        assert len(clear) > len(PROMPTS) // 3
        by_index: dict[int, Answer] = {said.index: said for said in launched}
        same(clear, [replace(by_index[said.index], margin=1.0) for said in clear])


def test_slots_of_the_last_call_are_taken_again(tokenizer: Tokenizer, recorded: list[int]) -> None:
    engine = Engine(loud("dense").cuda(), tokenizer, batch_positions=400)
    first = answered(engine, PROMPTS)
    kept: Any = engine._kept
    same(first, answered(engine, PROMPTS))
    assert engine._kept is kept
    assert recorded
    drawn = answered(engine, PROMPTS, temperature=0.7, seed=1)
    assert engine._kept is not kept
    same(drawn, answered(Engine(engine.model, tokenizer), PROMPTS, temperature=0.7, seed=1))
    assert Decoding() != Decoding(seed=1)
