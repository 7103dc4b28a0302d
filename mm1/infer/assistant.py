"""A trained model to talk to: ``mm1.load("last.ckpt").generate(["dog.jpg"], "What is this?")``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import PIL.Image
import torch

from mm1.data.image import PictureError, decode
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError, at_least
from mm1.infer.engine import Engine
from mm1.model import stored
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from mm1.template import turn

Picture = str | Path | bytes | PIL.Image.Image
Dtype = Literal["bfloat16", "float32"]


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
        template: Literal["chat", "none"] = "chat",
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
        if template not in ("chat", "none"):
            raise UserError(f"template is {template!r}; expected chat or none")
        images = [images] if isinstance(images, Picture) else images
        asked = turn(text) if template == "chat" else (Text(text),) if text else ()
        prompt: list[Text | Image] = [*(Image(_bytes(image)) for image in images), *asked]
        [(_, answer)] = self.engine.generate([prompt], max_new_tokens, stop)
        return answer


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


def _bytes(picture: Picture) -> bytes:
    """The bytes of a picture's file, checked to decode, so that an error can name the picture."""
    if isinstance(picture, PIL.Image.Image):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        decode(data)
    except OSError as error:
        raise UserError(f"{name} is not readable ({error.strerror}); expected the file of a picture") from None
    except PictureError as error:
        raise UserError(f"{name} is not readable ({error}); expected the file of a picture") from None
    return data
