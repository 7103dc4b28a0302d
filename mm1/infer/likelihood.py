"""Log-likelihoods of given tokens: what text benchmarks and perplexity are made of (the method of MM1's TextCore).

    read     <s>  The  sky  is  blue        scored = 1: what "blue" gets after the rest

Documents of like length are read together, padded on the right; only scored positions meet the head, so that a whole
document can be scored without a row of logits for every position of a batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mm1.data.encode import Encoded
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.engine import exact
from mm1.infer.features import Asked, Features
from mm1.model.mm1 import MM1
from mm1.sample import Image

LOGITS_AT_ONCE = 2048  # rows of the vocabulary's width


@dataclass(frozen=True, slots=True)
class Reading:
    """A document, of which the last tokens are scored.

    Args:
        tokens: Ids from the begin token on, ``IMAGE`` where a picture's token goes.
        scored: How many of the last tokens count; at most all but the first.
        images: The pictures in the order of their places, each view one of them.
    """

    tokens: Sequence[int]
    scored: int
    images: Sequence[Image] = ()


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What a model says of the scored tokens.

    Args:
        nats: Their log-probability, summed, to base e.
        greedy: Whether each of them was the likeliest that may be said.
    """

    nats: float
    greedy: bool


def likelihoods(
    model: MM1,
    tokenizer: Tokenizer,
    readings: Sequence[Reading],
    *,
    batch_positions: int = 16384,
    features_mb: int = 1024,
    done: Callable[[int], object] = lambda count: None,
) -> list[Likelihood]:
    """One :class:`Likelihood` for each reading, in their order.

    Args:
        model: The model, on its device, in evaluation mode.
        tokenizer: The one it was trained with.
        readings: What is scored.
        batch_positions: Positions read at once, padding counted; changes speed and memory.
        features_mb: Memory for pictures already encoded, in MB of 10^6 bytes.
        done: Told how many readings were finished, after each batch.

    Raises:
        UserError: The model's routers see later tokens, so that no token's likelihood is its own.
    """
    model.decoder.check_generates()
    features, found = Features(model, features_mb), [Likelihood(0.0, True)] * len(readings)
    for chosen in _batches(readings, batch_positions):
        with exact(model):
            likely = _read(model, tokenizer, features, [readings[at] for at in chosen])
        for at, likelihood in zip(chosen, likely, strict=True):
            found[at] = likelihood
        done(len(chosen))
    return found


def windows(tokens: Sequence[int], begin: int, max_positions: int, overlap: int) -> Iterator[Reading]:
    """A text of any length as readings that score each of its tokens once.

    begin = B, 4 positions, overlap 1:      B a b c   c d e f  ...      scored: a b c | d e f

    Args:
        tokens: Ids of the text, without begin token.
        begin: The begin token; only the first window has it.
        max_positions: Length of a window.
        overlap: Tokens of the window before that are read again, as context.

    Raises:
        UserError: Windows would not go forward.
    """
    if not 1 <= overlap < max_positions:
        raise UserError(f"overlap is {overlap}; expected at least 1 and less than max_positions, {max_positions}")
    whole, end = [begin, *tokens], min(max_positions, len(tokens) + 1)
    scored = end - 1
    while scored > 0:
        yield Reading(whole[max(0, end - max_positions) : end], scored)
        scored = min(len(whole) - end, max_positions - overlap)
        end += scored


def _batches(readings: Sequence[Reading], batch_positions: int) -> Iterator[list[int]]:
    """Indices of readings of like length, the longest first."""
    batch: list[int] = []
    for at in sorted(range(len(readings)), key=lambda at: -len(readings[at].tokens)):
        longest = len(readings[batch[0] if batch else at].tokens)
        if batch and (len(batch) + 1) * longest > batch_positions:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


@torch.inference_mode()
def _read(model: MM1, tokenizer: Tokenizer, features: Features, readings: list[Reading]) -> list[Likelihood]:
    device, longest = model.decoder.norm.weight.device, max(len(reading.tokens) for reading in readings)
    tokens_BT = torch.full((len(readings), longest), tokenizer.pad, dtype=torch.int64)
    segments_BT, scored_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT, dtype=torch.bool)
    for row, reading in enumerate(readings):
        length = len(reading.tokens)
        tokens_BT[row, :length] = torch.tensor(reading.tokens, dtype=torch.int64)
        segments_BT[row, :length] = 1
        scored_BT[row, length - reading.scored : length] = True
    positions_BT = (torch.arange(longest) * segments_BT).to(device)
    pictures = [Asked.of(Encoded(tokens_BT[0], scored_BT[0], list(reading.images))) for reading in readings]
    x_BTD = model.embed(tokens_BT.to(device), features.of(pictures))
    hidden_BTD = model.decoder(x_BTD, segments_BT.to(device), positions_BT).hidden_BTD
    hidden_ND = hidden_BTD[:, :-1][scored_BT[:, 1:].to(device)]  # each position says the token after it
    nats_N, greedy_N = _score(model, tokenizer, hidden_ND, tokens_BT[scored_BT].to(device))
    counts = [reading.scored for reading in readings]
    parts = zip(nats_N.split(counts), greedy_N.split(counts), strict=True)
    return [Likelihood(float(nats.sum()), bool(greedy.all())) for nats, greedy in parts]


def _score(model: MM1, tokenizer: Tokenizer, hidden_ND: Tensor, said_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability float64[N] of each token said, and whether decoding would have said it, on the CPU."""
    nats, greedy = [], []
    for hidden, said in zip(hidden_ND.split(LOGITS_AT_ONCE), said_N.split(LOGITS_AT_ONCE), strict=True):
        logits_NV = model.decoder.logits(hidden)
        nats.append(logits_NV.log_softmax(dim=-1).gather(-1, said[:, None])[:, 0].double().cpu())
        sayable_NV = logits_NV[:, : tokenizer.vocabulary]
        if tokenizer.image is not None:
            sayable_NV[:, tokenizer.image] = -torch.inf
        greedy.append((sayable_NV.argmax(dim=-1) == said).cpu())
    return torch.cat(nats), torch.cat(greedy)
