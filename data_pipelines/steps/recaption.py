"""Captions that a model writes, for a share of the pictures (VeCap, arXiv 2310.07699; MM1 has 7 % of VeCap's)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import PIL.Image

from data_pipelines.sources.base import Draft, Place, Rejection
from data_pipelines.steps.base import Pictures, Step
from data_pipelines.steps.settings import share as check_share
from data_pipelines.steps.settings import there
from mm1.sample import Text


class Recaption(Step):
    """Gives a share of the caption documents a synthetic caption; the original stays in ``about["caption"]``.

    A caption document is one picture and one text; others are left alone. Which documents are chosen follows from
    their ids, and those of a smaller share are among those of a larger one. Where the model says nothing, the original
    stays and that is counted.

    Args:
        captioner: From a PIL image, RGB and upright, and the original caption to another: the import path of a
            function, or ``class_path`` and ``init_args`` of a class with ``__call__``, such as :class:`Captioner`.
        share: Share of the documents.
        mode: ``replace`` the original, or put the new one ``beside`` it, on the next line.
        seed: Another seed, other documents.
    """

    def __init__(
        self,
        captioner: Callable[[PIL.Image.Image, str], str],
        *,
        share: float = 0.5,
        mode: Literal["replace", "beside"] = "replace",
        seed: int = 0,
    ) -> None:
        check_share("share", share)
        self.captioner, self.share, self.mode, self.seed = captioner, share, mode, seed

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        match draft.items:
            case (Text() as text, place) | (place, Text() as text) if not isinstance(place, Text) and self.takes(draft):
                return self._captioned(draft, text, self.captioner(pictures.pixels(place), text.text))
        return draft

    def takes(self, draft: Draft) -> bool:
        """Whether a document is of the share."""
        digest = hashlib.sha256(f"{self.seed} {draft.source} {draft.id}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2**64

    def _captioned(self, draft: Draft, text: Text, written: str) -> Draft:
        if not written.strip():
            return replace(draft, lost=(*draft.lost, Rejection(draft.id, "synthetic caption is empty", fault=False)))
        caption = written.strip() if self.mode == "replace" else f"{text.text}\n{written.strip()}"
        items: tuple[Text | Place, ...] = tuple(
            replace(item, text=caption) if isinstance(item, Text) else item for item in draft.items
        )
        return replace(draft, items=items, about={**draft.about, "caption": text.text})


class Captioner:
    """A captioner made of one of our own models; loaded once in each process, at the first picture.

    Args:
        checkpoint: A training checkpoint or an exported folder, as ``mm1.load`` reads them.
        prompt: What to ask; ``{caption}`` stands for the original, for a model that is to make use of it.
        template: ``chat`` for a model tuned to instructions, ``none`` for one that was only pre-trained.
        max_new_tokens: Length of a caption at most.
        device: Where the model runs, in torch's words.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        prompt: str = "Describe the picture in one sentence.",
        template: Literal["chat", "none"] = "chat",
        max_new_tokens: int = 64,
        device: str = "cpu",
    ) -> None:
        [self.checkpoint] = there("checkpoint", [checkpoint])
        self.prompt, self.template, self.max_new_tokens, self.device = prompt, template, max_new_tokens, device

    def __call__(self, picture: PIL.Image.Image, caption: str) -> str:
        model, asked = _load(self.checkpoint, self.device), self.prompt.replace("{caption}", caption)
        return model.generate(picture, asked, self.max_new_tokens, template=self.template)


@functools.cache
def _load(checkpoint: Path, device: str) -> Any:
    import mm1

    return mm1.load(checkpoint, device)
