"""Likelihoods equal what the model's own forward pass says, one document at a time and without any of our batching."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mm1.batch import IMAGE
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer, train
from mm1.errors import UserError
from mm1.infer.engine import Engine
from mm1.infer.likelihood import Reading, likelihoods, windows
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from tests.mm1.infer.test_engine import LINES, model  # noqa: F401  (tiny, dense and with experts)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train(LINES, 340))


def png(value: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (9, 9), (value, 255 - value, 90)).save(file, "PNG")
    return file.getvalue()


@torch.inference_mode()
def directly(of: MM1, reading: Reading) -> tuple[float, list[int]]:
    """Sum of log-probabilities of the last tokens, and what greedy decoding would have said in their places."""
    tokens_1T = torch.tensor([list(reading.tokens)])
    pictures = [prepare(data, of.image_spec) for data in reading.images]
    images_ICHW = torch.stack(pictures) if pictures else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    x_1TD = of.embed(tokens_1T, of.encode_images(images_ICHW))
    positions_1T = torch.arange(tokens_1T.shape[1])[None]
    logs_TV = of.decoder.logits(of.decoder(x_1TD, torch.ones_like(tokens_1T), positions_1T).hidden_BTD)[0]
    places = range(len(reading.tokens) - reading.scored - 1, len(reading.tokens) - 1)
    nats = sum(float(logs_TV[at].log_softmax(-1)[reading.tokens[at + 1]]) for at in places)
    return nats, [int(logs_TV[at, :340].argmax()) for at in places]


def test_each_reading_gets_what_the_model_says_of_it_alone(model: MM1, tokenizer: Tokenizer) -> None:  # noqa: F811
    places = [IMAGE] * model.connector.tokens
    readings = [
        Reading([1, 17, 60, 21, 33], 2),
        Reading([1, 5], 1),
        Reading([1, *places, 40, 41, *places, 9, 8, 7], 3, [Image(png(10)), Image(png(200))]),
        Reading([1, 9, 9, 9, 9, 9, 9, 9, 9], 8),
        Reading([1, 12, 13], 0),
    ]
    for batch_positions in (1, 40, 10_000):
        found = likelihoods(model, tokenizer, readings, batch_positions=batch_positions)
        for reading, likelihood in zip(readings, found, strict=True):
            nats, greedy = directly(model, reading)
            assert likelihood.nats == pytest.approx(nats, abs=2e-4)
            assert likelihood.greedy == (greedy == list(reading.tokens[len(reading.tokens) - reading.scored :]))


def test_what_greedy_decoding_says_is_greedy(model: MM1, tokenizer: Tokenizer) -> None:  # noqa: F811
    tokens = [1, 30, 31]
    for _ in range(4):
        tokens += directly(model, Reading([*tokens, 3], 1))[1]
    whole, other = Reading(tokens, 4), Reading([*tokens[:-1], (tokens[-1] + 1) % 340], 4)
    assert [found.greedy for found in likelihoods(model, tokenizer, [whole, other])] == [True, False]


def test_a_choice_scores_as_the_engine_scores_it(model: MM1, tokenizer: Tokenizer) -> None:  # noqa: F811
    prompt, said = [Image(png(3)), Text("what colour?")], "red square"
    ids = tokenizer.encode(said)
    tokens = [tokenizer.bos, *[IMAGE] * model.connector.tokens, *tokenizer.encode("what colour?"), *ids]
    [found] = likelihoods(model, tokenizer, [Reading(tokens, len(ids), [Image(png(3))])])
    assert found.nats == pytest.approx(Engine(model, tokenizer).score([prompt], [said])[0], abs=2e-4)


@given(st.integers(0, 40), st.integers(2, 12), st.integers(1, 11))
def test_windows_score_each_token_once_with_the_context_before_it(
    length: int, max_positions: int, overlap: int
) -> None:
    tokens = list(range(100, 100 + length))
    if overlap >= max_positions:
        with pytest.raises(UserError, match="overlap is"):
            list(windows(tokens, 1, max_positions, overlap))
        return
    cut = list(windows(tokens, 1, max_positions, overlap))
    scored = [list(reading.tokens)[len(reading.tokens) - reading.scored :] for reading in cut]
    assert list(itertools.chain.from_iterable(scored)) == tokens
    for number, reading in enumerate(cut):
        assert len(reading.tokens) <= max_positions
        assert len(reading.tokens) - reading.scored >= (overlap if number else 1)
        at = [1, *tokens].index(reading.tokens[0])
        assert list(reading.tokens) == [1, *tokens][at : at + len(reading.tokens)]


def test_windows_are_those_of_lm_eval() -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed (extra lm)")
    for length, max_positions in itertools.product((1, 3, 4, 5, 9, 23), (2, 4, 5, 24)):
        tokens: Sequence[int] = list(range(50, 50 + length))
        theirs = utils.get_rolling_token_windows(tokens, 1, max_seq_len=max_positions - 1, context_len=1)
        cut = [Reading([*context, *said], len(said)) for context, said in map(utils.make_disjoint_window, theirs)]
        assert list(windows(tokens, 1, max_positions, overlap=1)) == cut
