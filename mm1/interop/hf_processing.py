"""What stands before MM1 in transformers: pictures become the same pixels and text the same ids as elsewhere here.

``<image>`` in a text stands for a picture and becomes as many places as a picture has tokens. A text begins with the
begin token, and shorter rows are padded on the left, so that ``generate`` can go on from all of them at once.
"""

from __future__ import annotations

import base64
import binascii
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image

from mm1.batch import ImageSpec
from mm1.data.image import decode, square, upright
from mm1.data.tokenizer import PICTURE
from mm1.errors import UserError
from mm1.interop.remote_code import Installed, auto_map, leave_code
from mm1.template import USER

_BEFORE, _AFTER = USER.split("{text}")

# Pictures of a turn stand before its question, as in mm1.template.conversation; $answer is what leads to an answer.
_CHAT = Template("""\
{{- bos_token }}
{%- for message in messages %}
{%- set said = namespace(text='') %}
{%- if message.content is string %}
{%- set said.text = message.content %}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ $picture }}{% elif part.type == 'text' %}{% set said.text = said.text + part.text %}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- if message.role == 'user' %}
{{- $before + said.text | trim }}
{%- if add_generation_prompt or not loop.last %}{{ $after }}{% endif %}
{%- elif message.role == 'assistant' %}
{{- $answer + said.text | trim + eos_token }}
{%- else %}
{{- raise_exception('a message has the role ' + message.role + '; expected user or assistant') }}
{%- endif %}
{%- endfor %}""")


def chat_template() -> str:
    """The conversation of :mod:`mm1.template` as Jinja."""
    words = {"picture": PICTURE, "before": _BEFORE, "after": _AFTER, "answer": " "}
    return _CHAT.substitute({name: repr(word) for name, word in words.items()})


class MM1ImageProcessor(Installed, BaseImageProcessor):
    """Prepares pictures by :func:`mm1.data.image.prepare`; they stay uint8, the model makes floats of them.

    Args:
        size_px, tokens, mean, std, resize, interpolation: See :class:`mm1.batch.ImageSpec`.
        kwargs: What transformers keeps in the file with them.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size_px: int = 378,
        tokens: int = 144,
        mean: Sequence[float] = ImageSpec.mean,
        std: Sequence[float] = ImageSpec.std,
        resize: str = "squash",
        interpolation: str = "bicubic",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size_px, self.tokens, self.mean, self.std = size_px, tokens, list(mean), list(std)
        self.resize, self.interpolation = resize, interpolation

    @classmethod
    def of(cls, spec: ImageSpec) -> MM1ImageProcessor:
        """The image processor of a model."""
        return cls(**asdict(spec))

    @property
    def spec(self) -> ImageSpec:
        """The same numbers as the rest of the project knows them."""
        mean, std = (tuple(numbers) for numbers in (self.mean, self.std))
        return ImageSpec(self.size_px, self.tokens, mean, std, self.resize, self.interpolation)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """What is written down."""
        return super().to_dict() | {"auto_map": auto_map(AutoImageProcessor="MM1ImageProcessor")}

    def fetch_images(self, images: Any) -> Any:
        """Nothing is opened before :meth:`preprocess`: by transformers, a picture would lose its transparency."""
        return images

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """Pictures as uint8[B, P, 3, S, S], rows with fewer than P pictures filled up with black ones.

        Args:
            images: A picture (path, address, bytes, PIL, array or tensor), a list of them for one a row, or a list of
                lists.
            return_tensors: For what asks for it; pixels are a torch tensor in any case.

        Raises:
            UserError: A picture cannot be read.
        """
        flat = images if isinstance(images, list | tuple) else [images]
        rows = [[prepared(p, self.spec) for p in (row if isinstance(row, list | tuple) else [row])] for row in flat]
        most, side = max(map(len, rows), default=0), self.size_px
        filled = torch.zeros(len(rows), most, 3, side, side, dtype=torch.uint8)
        for at, row in enumerate(rows):
            for place, picture in enumerate(row):
                filled[at, place] = picture
        return BatchFeature({"pixel_values": filled})


class MM1Processor(Installed, ProcessorMixin):
    """Image processor and tokenizer together, for ``AutoProcessor``.

    Args:
        image_processor: A :class:`MM1ImageProcessor`.
        tokenizer: Has the token ``<image>``.
        chat_template: Jinja, see :func:`chat_template`.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = PICTURE
        self.image_token_id = tokenizer.convert_tokens_to_ids(PICTURE)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        *,
        videos: None = None,
        audio: None = None,
        add_special_tokens: bool = True,
        padding: bool | str = True,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Rows of ``input_ids``, ``attention_mask`` and, if there are pictures, ``pixel_values`` [B, P, 3, S, S].

        Args:
            images: Pictures in the order of their ``<image>``: one, a list, or a list for each row.
            text: One row or several.
            videos, audio: MM1 has none.
            add_special_tokens: Whether a text that does not begin with the begin token gets one.
            padding: As of tokenizers.
            return_tensors: ``pt`` for tensors.
            options: Of the tokenizer, such as ``max_length``.

        Raises:
            UserError: Pictures and their places in the text do not match, or a picture cannot be read.
        """
        if videos is not None or audio is not None:
            raise UserError("the processor got videos or audio; expected images and text, all that MM1 knows")
        if text is None:
            return self.image_processor.preprocess(images)
        rows = [text] if isinstance(text, str) else list(text)
        pictures = _by_row(images, [row.count(PICTURE) for row in rows])
        begin = self.tokenizer.bos_token
        rows = [begin + row if add_special_tokens and not row.startswith(begin) else row for row in rows]
        rows = [row.replace(PICTURE, PICTURE * self.image_processor.tokens) for row in rows]
        data = dict(
            self.tokenizer(rows, add_special_tokens=False, padding=padding, return_tensors=return_tensors, **options)
        )
        if any(pictures):
            data |= self.image_processor.preprocess(pictures)
        return BatchFeature(data)

    def to_dict(self) -> dict[str, Any]:
        """What is written down."""
        return super().to_dict() | {"auto_map": auto_map(AutoProcessor="MM1Processor")}

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it, with the code that finds this class."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        leave_code(save_directory)
        return saved

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes."""
        return ["input_ids", "attention_mask", "pixel_values"]


def prepared(picture: Any, spec: ImageSpec) -> Tensor:
    """A picture of any kind as uint8[3, S, S].

    Raises:
        UserError: It cannot be had or read.
    """
    name = f"the picture {picture:.200}" if isinstance(picture, str) else f"a picture ({type(picture).__name__})"
    try:
        if isinstance(picture, str | Path):
            picture = _file(str(picture))
        if isinstance(picture, bytes):
            return square(decode(picture), spec)
        return square(upright(picture if isinstance(picture, PIL.Image.Image) else to_pil_image(picture)), spec)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name} is not readable ({error}); expected a picture, its file or its address") from None


def _file(place: str) -> bytes:
    """The bytes of a path, an address (data: too), or base64."""
    if place.startswith(("http://", "https://", "data:", "file:")):
        with urllib.request.urlopen(place, timeout=30) as answer:
            return answer.read()
    try:
        return Path(place).read_bytes()
    except OSError:
        try:
            return base64.b64decode(place, validate=True)
        except binascii.Error:
            raise FileNotFoundError("no such file") from None


def _by_row(images: Any, places: list[int]) -> list[list[Any]]:
    """The pictures of each row of text.

    Raises:
        UserError: They are not as many as there are places.
    """
    if images is None:
        images = []
    flat = list(images) if isinstance(images, list | tuple) else [images]
    nested = all(isinstance(row, list | tuple) for row in flat) and len(flat) == len(places)
    left = iter(flat)
    rows = [list(row) for row in flat] if nested else [list(islice(left, count)) for count in places]
    rows[-1] += left if not nested else ()
    if (found := [len(row) for row in rows]) != places:
        raise UserError(f"the rows of text have {places} places ({PICTURE}) for {found} pictures; expected one each")
    return rows
