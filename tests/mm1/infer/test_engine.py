"""Decoding: the cache changes nothing, neither does company in the batch, and every picture is encoded once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mm1.data.encode import prompt
from mm1.data.tokenizer import Tokenizer, from_hf, train
from mm1.errors import UserError
from mm1.infer.engine import Engine
from mm1.infer.features import Asked
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from tests.mm1.data.hf_folders import write

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "model"
LINES = [
    "the red circle is left of a blue square",
    "Question: what is this? Short answer: a dako",
    "one two three",
] * 20


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", params=["sentencepiece", "byte level"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Ours, and a published kind whose tokens may end inside a character."""
    if request.param == "sentencepiece":
        return Tokenizer.from_bytes(train(LINES, 340))
    return Tokenizer.from_bytes(from_hf(write("gpt2", tmp_path_factory.mktemp("gpt2"))))


@pytest.fixture(scope="module", params=["tiny", "tiny_moe"])
def model(request: pytest.FixtureRequest) -> MM1:
    """Random, but loud: at the usual 0.02 every next token would be the same."""
    model = build(CONFIGS / f"{request.param}.yaml", device="cpu")
    model.init_weights(seed=0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval()


PROMPTS = [
    [Image(picture(0)), Text("what is this?")],
    [Text("one")],
    [Image(picture(1)), Text("a dako"), Image(picture(0)), Text("the red circle is left of")],
    [Image(picture(2))],
    [Text("Question: what is this? Short answer:")],
]


@torch.inference_mode()
def plainly(model: MM1, tokenizer: Tokenizer, items: list, new: int) -> str:
    """Greedy decoding by reading the whole row anew for every token."""
    engine = Engine(model, tokenizer)
    encoded = prompt(items, tokenizer, model.connector.tokens)
    ids: list[int] = []
    for _ in range(new):
        tokens_BT = torch.cat((encoded.tokens, torch.tensor(ids, dtype=torch.int64)))[None]
        positions_BT = torch.arange(tokens_BT.shape[1])[None]
        x_BTD = model.embed(tokens_BT, engine._features.of([Asked.of(encoded)]))
        hidden_BTD = model.decoder(x_BTD, torch.ones_like(tokens_BT), positions_BT).hidden_BTD
        token = int(model.decoder.logits(hidden_BTD[0, -1])[: tokenizer.vocabulary].argmax())
        if token == tokenizer.eos:
            break
        ids.append(token)
    return tokenizer.decode(ids).strip()


def answers(engine: Engine, prompts: list, new: int, stop: tuple[str, ...] = ()) -> list[str]:
    found = dict(engine.generate(prompts, new, stop))
    return [found[at] for at in range(len(prompts))]


def test_a_batch_with_cache_answers_what_rereading_answers(model: MM1, tokenizer: Tokenizer) -> None:
    expected = [plainly(model, tokenizer, items, 12) for items in PROMPTS]
    assert len(set(expected)) > 2, "the random model says the same to everything, so nothing was compared"
    assert answers(Engine(model, tokenizer), PROMPTS, 12) == expected


@pytest.mark.parametrize("batch_positions", [1, 100, 10_000])
def test_the_size_of_the_batch_changes_no_answer(model: MM1, tokenizer: Tokenizer, batch_positions: int) -> None:
    alone = [answers(Engine(model, tokenizer), [items], 12)[0] for items in PROMPTS]
    assert answers(Engine(model, tokenizer, batch_positions=batch_positions), PROMPTS, 12) == alone


def test_a_stop_string_ends_its_row_and_no_other(model: MM1, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer)
    free = answers(engine, PROMPTS, 12)
    mark = free[0][len(free[0]) // 2 :][:3]
    stopped = answers(engine, PROMPTS, 12, stop=(mark,))
    assert mark
    assert stopped == [text.split(mark)[0].strip() if mark in text else text for text in free]
    assert stopped[0] != free[0]


def test_a_stop_string_ends_a_row_wherever_its_last_token_falls(model: MM1, tokenizer: Tokenizer) -> None:
    """Text is looked at every few tokens only; what was said beyond the mark by then must not be seen."""
    engine = Engine(model, tokenizer)
    for at, whole in enumerate(answers(engine, PROMPTS, 12)):
        marks = {whole[start : start + 2] for start in range(0, len(whole), 3)}
        for mark in (mark for mark in marks if not mark[0].isspace()):  # an answer may begin with a space, cut from it
            stopped = answers(engine, PROMPTS[at : at + 1], 12, stop=("never said", mark))
            assert stopped == [whole[: whole.index(mark)].strip()]


def test_the_mark_that_is_complete_first_ends_an_answer(model: MM1, tokenizer: Tokenizer) -> None:
    """Of two overlapping marks the one that begins earlier may be complete later, by when the answer has ended."""
    engine = Engine(model, tokenizer)
    whole = answers(engine, PROMPTS[:1], 12)[0]
    assert answers(engine, PROMPTS[:1], 12, stop=(whole[3], whole[1:])) == [whole[: whole.index(whole[3])].strip()]


def test_every_distinct_picture_is_encoded_once(model: MM1, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, batch_positions=1)
    first = answers(engine, PROMPTS, 4)
    assert engine._features.encoded == 3
    assert answers(engine, PROMPTS, 4) == first
    assert engine._features.encoded == 3


def test_forgotten_pictures_are_encoded_again(model: MM1, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, features_mb=0)
    assert answers(engine, PROMPTS, 4) == answers(Engine(model, tokenizer), PROMPTS, 4)
    answers(engine, PROMPTS[:1], 4)
    assert engine._features.encoded == 4


def test_a_prompt_longer_than_the_context_is_refused_with_its_arithmetic(model: MM1, tokenizer: Tokenizer) -> None:
    engine = Engine(model, tokenizer, max_positions=40)
    with pytest.raises(UserError, match=r"2 pictures x 16 = 32, text \d+\) and 5 new tokens .* at most 40"):
        engine.generate(PROMPTS, 5)


def test_the_score_of_a_continuation_is_its_log_likelihood(model: MM1, tokenizer: Tokenizer) -> None:
    continuations = ["red circle", "blue", "a", "three", "a dako"]
    scores = Engine(model, tokenizer).score(PROMPTS, continuations)
    for items, text, score in zip(PROMPTS, continuations, scores, strict=True):
        encoded = prompt([*items, Text(text)], tokenizer, model.connector.tokens)
        with torch.inference_mode():
            x_BTD = model.embed(encoded.tokens[None], Engine(model, tokenizer)._features.of([Asked.of(encoded)]))
            positions_BT = torch.arange(x_BTD.shape[1])[None]
            hidden_BTD = model.decoder(x_BTD, torch.ones_like(positions_BT), positions_BT).hidden_BTD
            logs = model.decoder.logits(hidden_BTD[0]).log_softmax(-1)
        count = len(tokenizer.encode(text))
        places = range(len(encoded.tokens) - count, len(encoded.tokens))
        assert score == pytest.approx(sum(float(logs[at - 1, encoded.tokens[at]]) for at in places), abs=1e-4)
