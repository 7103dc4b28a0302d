"""A trained model to talk to: ``mm1.load("last.ckpt").generate(["dog.jpg"], "What is this?")``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError, at_least
from mm1.infer.decoding import Decoding
from mm1.infer.engine import Engine
from mm1.infer.spelling import Spelling
from mm1.infer.talk import Asked, Picture, Template, check_template, conversation, picture_bytes
from mm1.model import stored
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from mm1.template import turn

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer.

    Args:
        text: Text to show behind what was shown; empty while a character, a blank or a stop string may be beginning.
        token: The id.
        experts: Experts that the token visits when it is read, by decoder layer counted from 0, the highest share
            first; empty for a dense model.
    """

    text: str
    token: int
    experts: dict[int, tuple[int, ...]]


class Assistant:
    """Model and tokenizer together.

    Args:
        model: The model, on its device.
        tokenizer: The one it was trained with.
        max_positions: The context, positions a prompt and its answer may take together. MM1's rows by default; a model
            that was trained on shorter ones has not seen positions beyond them.
    """

    def __init__(self, model: MM1, tokenizer: Tokenizer, max_positions: int = 4096) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.engine = Engine(model, tokenizer, max_positions=max_positions)

    def generate(
        self,
        images: Picture | Sequence[Picture] = (),
        text: str = "",
        max_new_tokens: int = 64,
        *,
        template: Template = "chat",
        stop: Sequence[str] = (),
    ) -> str:
        """The model's answer, decoded greedily.

        Args:
            images: Pictures, which stand before the text: paths, the bytes of files, or PIL images; one, or several.
            text: What to ask.
            max_new_tokens: Length of the answer at most.
            template: ``chat`` asks as instruction tuning did; ``none`` lets the model go on from the text as it is,
                which is how a model that was only pre-trained is asked.
            stop: Strings before which the answer ends.

        Raises:
            UserError: A picture that is missing or does not decode, a prompt longer than the context, no such template.
        """
        at_least(1, {"max_new_tokens": max_new_tokens})
        check_template(template)
        images = [images] if isinstance(images, Picture) else images
        asked = turn(text) if template == "chat" else (Text(text),) if text else ()
        prompt: list[Text | Image] = [*(Image(picture_bytes(image)) for image in images), *asked]
        [(_, answer)] = self.engine.generate([prompt], max_new_tokens, stop)
        return answer

    def stream(
        self,
        asked: Asked,
        *,
        before: Sequence[tuple[Asked, str]] = (),
        instructions: str = "",
        template: Template = "chat",
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Piece]:
        """The answer as it comes, token by token.

        Args:
            asked: Text, or text and pictures in reading order. A ``str`` is text: a picture's path is a ``Path``.
            before: What was asked before and what was answered; demonstrations are given in the same way.
            instructions: The system turn; none if empty.
            template: As for :meth:`generate`; ``none`` puts everything one behind the other as it is.
            max_new_tokens: Length of the answer at most.
            stop: Strings before which the answer ends.
            temperature: The most likely token at 0, else one is drawn (:class:`mm1.infer.decoding.Decoding`).
            top_k: See there.
            top_p: See there.
            seed: Same seed, same question, same answer.

        Raises:
            UserError: As for :meth:`generate`, or numbers that cannot be; before the first piece.
        """
        at_least(1, {"max_new_tokens": max_new_tokens})
        decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        decoding.check()
        prompt = conversation(asked, before, instructions=instructions, template=template)
        self.engine.check(prompt, max_new_tokens)
        return self._pieces(prompt, max_new_tokens, stop, decoding)

    def _pieces(
        self, prompt: Sequence[Text | Image], new: int, stop: Sequence[str], decoding: Decoding
    ) -> Iterator[Piece]:
        spelling = Spelling(self.tokenizer, stop)
        waiting: tuple[int, dict[int, tuple[int, ...]]] | None = None
        for token, experts in self.engine.stream(prompt, new, decoding):
            if waiting is not None:
                yield Piece(spelling.news(), *waiting)
            spelling.add(token)
            spelling.spell()
            waiting = token, experts
            if spelling.ended:
                break
        spelling.ended = True
        if waiting is not None:
            yield Piece(spelling.news(), *waiting)


def load_assistant(path: str | Path, device: str = "cpu", dtype: Dtype | None = None) -> Assistant:
    """Open a training checkpoint or an exported folder.

    Args:
        path: The checkpoint or folder.
        device: Where the model runs.
        dtype: Type of its weights (:func:`cast`); None keeps that of the file.

    Raises:
        UserError: The path is no checkpoint of ours, does not fit its own config, or the device does not exist.
    """
    if dtype is not None:
        check_dtype(dtype)
    found = stored.read(path)
    try:
        target = torch.device(device)
        if target.type == "meta":
            raise RuntimeError("it holds shapes and no numbers")
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used ({str(error).splitlines()[0]:.100}); try cpu") from None
    tokenizer = Tokenizer.from_bytes(found.tokenizer)
    model = found.model().to(target)
    if dtype is not None:
        cast(model, dtype)
    stored.check_vocabulary(tokenizer.vocabulary, model.decoder.vocabulary, str(path))
    return Assistant(model, tokenizer)


def cast(model: MM1, dtype: Dtype) -> MM1:
    """Bring a model to another type, in place.

    In bfloat16 activations and the cache are bfloat16 too, the residual stream among them, which training under
    autocast keeps in float32; norms, softmax and routers reckon in float32 inside, as they do there, and logits are
    compared in it. The mean of pictures stays as it is: with 8 bits it would shift every one of them.
    """
    mean_C11, std_C11 = model.mean_C11, model.std_C11
    model.to(getattr(torch, dtype))
    model.mean_C11, model.std_C11 = mean_C11, std_C11
    return model


def check_dtype(dtype: str) -> None:
    """Refuse a type that models do not run in.

    Raises:
        UserError: It, and those they do.
    """
    if dtype not in get_args(Dtype):
        raise UserError(f"dtype is {dtype!r}; expected {' or '.join(get_args(Dtype))}")
