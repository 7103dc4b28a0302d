"""The same text whatever is in the batch, its size and order, shared beginnings or not; for every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from mm1.data.tokenizer import Tokenizer, train
from mm1.infer.continuous import Answer
from mm1.infer.decoding import Decoding
from mm1.infer.engine import Engine
from mm1.infer.features import Asked
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from tests.mm1.infer.test_engine import CONFIGS, LINES, picture

NEW = 10
NEAR = 1e-4  # two logits nearer than this may change places between two orders of adding up
ROPE = "mm1.model.rope."
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "moe": {"moe": {"class_path": "mm1.model.moe.layer.MoE", "init_args": {"experts": 4, "top_k": 2}}},
    "grouped": {"heads": 6, "kv_heads": 2, "qk_norm": "head"},
    "windows": {"window_tokens": 7, "windowed_layers": [0, 2]},
    "yarn": {"rope": {"class_path": ROPE + "YarnRope", "init_args": {"factor": 4, "original_positions": 32}}},
    "dynamic": {"rope": {"class_path": ROPE + "DynamicRope", "init_args": {"factor": 2, "original_positions": 40}}},
}
SHOTS = [Image(picture(7)), Text("a red circle. "), Image(picture(8)), Text("a blue square. ")]
PROMPTS = [
    [*SHOTS, Image(picture(0)), Text("what is this?")],
    [*SHOTS, Image(picture(1))],
    [Text("one")],
    [*SHOTS, Image(picture(2)), Text("a dako left of")],
    [Image(picture(8)), *SHOTS[1:], Image(picture(0)), Text("what?")],
    [Text("Question: what is this? Short answer:")],
    [*SHOTS, Text("the red circle is left of a blue")],
    [*SHOTS[:2], Image(picture(3))],
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train(LINES, 340))


def loud(kind: str) -> MM1:
    """A random model of a kind whose answers differ, and end at different places."""
    tree = yaml.safe_load((CONFIGS / "tiny.yaml").read_text())
    tree["init_args"]["decoder"]["init_args"] |= {"vocabulary": 340, "tied": False, "layers": 3} | KINDS[kind]
    model = build(tree, device="cpu")
    model.init_weights(seed=0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
        model.decoder.head_VD[2] *= 3 if kind == "grouped" else 2  # the end token's
    return model.eval()


def answered(engine: Engine, prompts: list, stop: tuple[str, ...] = (), **given: Any) -> list[Answer]:
    decoding = Decoding(**given)
    found = {said.index: said for said in engine.answers(prompts, NEW, stop, decoding)}
    return [found[at] for at in range(len(prompts))]


def same(one: list[Answer], other: list[Answer]) -> None:
    """Equal, but for those where it was a near thing; of these there may be few."""
    near = [said.index for said in one if said.margin is not None and said.margin < NEAR]
    assert len(near) <= 1, f"near ties, nothing to compare: {near}"
    for mine, theirs in zip(one, other, strict=True):
        if mine.index not in near:
            assert (mine.text, mine.tokens) == (theirs.text, theirs.tokens)
            if mine.margin is not None and theirs.margin is not None:
                assert mine.margin == pytest.approx(theirs.margin, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_company_changes_no_answer(kind: str, tokenizer: Tokenizer) -> None:
    model = loud(kind)
    alone = [answered(Engine(model, tokenizer), [items])[0] for items in PROMPTS]
    alone = [Answer(at, said.text, said.tokens, said.margin) for at, said in enumerate(alone)]
    assert len({said.tokens for said in alone}) >= len(PROMPTS) - 2
    assert len({len(said.tokens) for said in alone}) > 1, "all answers are of one length, so no row was taken again"
    longest = 100
    for rows in (1, 3, 8):
        for share in (True, False):
            same(alone, answered(Engine(model, tokenizer, batch_positions=rows * longest, share=share), PROMPTS))
    turned = answered(Engine(model, tokenizer, batch_positions=3 * longest), PROMPTS[::-1])
    same(alone, [Answer(at, said.text, said.tokens, said.margin) for at, said in enumerate(turned[::-1])])


@pytest.mark.parametrize("given", [{"temperature": 1.2, "top_p": 0.9, "seed": 4}, {"beams": 3}])
def test_company_changes_nothing_drawn_or_searched(given: dict, tokenizer: Tokenizer) -> None:
    model = loud("moe")
    whole = answered(Engine(model, tokenizer), PROMPTS, ("a",), **given)
    assert all(said.margin is None for said in whole)
    for rows in (1, 3):
        for share in (True, False):
            engine = Engine(model, tokenizer, batch_positions=rows * 100, share=share)
            same(whole, answered(engine, PROMPTS, ("a",), **given))


def test_what_is_drawn_belongs_to_the_name(tokenizer: Tokenizer) -> None:
    engine = Engine(loud("dense"), tokenizer)
    drawn = Decoding(temperature=1.5)
    first = {said.index: said.text for said in engine.answers([PROMPTS[0]] * 3, NEW, (), drawn, ["a", "b", "a"])}
    assert first[0] == first[2] != first[1]


def test_a_shared_beginning_is_read_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loud("dense")
    read: list[int] = []
    plain = type(model.decoder).forward

    def counting(self: Any, x_BTD: torch.Tensor, *more: Any) -> Any:
        read.append(x_BTD.shape[0] * x_BTD.shape[1] * (x_BTD.shape[1] > 1))
        return plain(self, x_BTD, *more)

    monkeypatch.setattr(type(model.decoder), "forward", counting)
    prompts = [[*SHOTS, Image(picture(at))] for at in range(6)]
    shared = answered(Engine(model, tokenizer), prompts)
    with_sharing = sum(read)
    read.clear()
    same(shared, answered(Engine(model, tokenizer, share=False), prompts))
    beginning = len(Engine(model, tokenizer)._encode(SHOTS, 0).tokens)
    assert sum(read) - with_sharing == 5 * beginning


def test_the_margin_is_the_smallest_lead_of_the_best_logit(tokenizer: Tokenizer) -> None:
    model = loud("dense")
    engine = Engine(model, tokenizer)
    [said] = answered(engine, PROMPTS[:1])
    asked = engine._encode(PROMPTS[0], NEW)
    ended = [tokenizer.eos] * (len(said.tokens) < NEW)
    tokens_BT = torch.cat((asked.tokens, torch.tensor([*said.tokens, *ended])))[None]

    with torch.inference_mode():
        x_BTD = model.embed(tokens_BT, engine._features.of([Asked.of(asked)]))
        ones = torch.ones_like(tokens_BT)
        logits_TV = model.decoder.logits(model.decoder(x_BTD, ones, ones.cumsum(1) - 1).hidden_BTD[0])
    best = logits_TV[len(asked.tokens) - 1 : -1].topk(2).values
    assert said.margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-4)


def test_a_model_that_is_in_two_minds_says_so(tokenizer: Tokenizer) -> None:
    model = loud("dense")
    with torch.no_grad():
        model.decoder.head_VD[20:40] = model.decoder.head_VD[20]  # twenty tokens that are always as good as each other
        model.decoder.head_VD[20:40] *= 5
    assert min(said.margin or 0.0 for said in answered(Engine(model, tokenizer), PROMPTS)) < NEAR
