"""A document as token ids, the one encoding of training, evaluation and people's questions (MM1, section 3.3).

Image, Text("a b"), Text("c", end=True)        2 tokens a picture

tokens   <s>  I  I  a  b  c  </s>              I = IMAGE
learn     .   .  .  x  x  x   x                x = may be a target
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from mm1.batch import IMAGE
from mm1.data.tokenizer import Tokenizer
from mm1.sample import Image, Sample, Text, Views


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document of T positions.

    Args:
        tokens: int64[T]; ids, ``IMAGE`` where a picture's token goes.
        learn: bool[T]; whether the token itself may be a target.
        images: The pictures in the order of their places; views of one count as several (:func:`mm1.sample.expand`).
    """

    tokens: Tensor
    learn: Tensor
    images: list[Image]


def encode(sample: Sample, tokenizer: Tokenizer, tokens_per_image: int) -> Encoded:
    """Begin token, items, end token; the last is left out where the last item closes itself (``Text.end``)."""
    return _encode(sample.items, tokenizer, tokens_per_image, close=not _closed(sample.items))


def prompt(items: Sequence[Text | Image], tokenizer: Tokenizer, tokens_per_image: int) -> Encoded:
    """The same without the final end token, for a model to go on from."""
    return _encode(items, tokenizer, tokens_per_image, close=False)


def text_tokens(items: Sequence[Text | Image], tokenizer: Tokenizer) -> int:
    """Positions of a document's encoding that are no picture's, begin and end tokens among them."""
    return prompt_text_tokens(items, tokenizer) + (not _closed(items))


def prompt_text_tokens(items: Sequence[Text | Image], tokenizer: Tokenizer) -> int:
    """The same of a prompt."""
    return 1 + sum(_spoken(item, tokenizer) for item in items if isinstance(item, Text))


def picture_positions(views: Views, tokenizer: Tokenizer, tokens_per_image: int) -> int:
    """Positions of one picture in all its views, their separators among them."""
    shown = views.of(Image(b""))
    return views.count * tokens_per_image + sum(_spoken(item, tokenizer) for item in shown if isinstance(item, Text))


def _spoken(item: Text, tokenizer: Tokenizer) -> int:
    return tokenizer.count(tokenizer.spelling(item)) + item.end


def _closed(items: Sequence[Text | Image]) -> bool:
    last = items[-1] if items else None
    return isinstance(last, Text) and last.end


def _encode(items: Sequence[Text | Image], tokenizer: Tokenizer, tokens_per_image: int, close: bool) -> Encoded:
    tokens, learn = [tokenizer.bos], bytearray([False])
    for item in items:
        if isinstance(item, Image):
            ids, learned = [IMAGE] * tokens_per_image, False
        else:
            ids, learned = tokenizer.encode(tokenizer.spelling(item)) + [tokenizer.eos] * item.end, item.learn
        tokens += ids
        learn += bytes([learned]) * len(ids)
    if close:
        last = items[-1] if items else None
        tokens.append(tokenizer.eos)
        learn.append(last.learn if isinstance(last, Text) else True)  # no end is learned after what is only read
    images = [item for item in items if isinstance(item, Image)]
    # numpy takes a list in a third of the time that torch does
    ids_T, learn_T = numpy.array(tokens, numpy.int64), numpy.frombuffer(learn, numpy.bool_)
    return Encoded(torch.from_numpy(ids_T), torch.from_numpy(learn_T), images)
