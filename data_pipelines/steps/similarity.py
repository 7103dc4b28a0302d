"""Whether a picture and the text around it belong together, by a CLIP of open_clip (LAION-400M, arXiv 2111.02114)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.sources.base import Draft, Place, Rejection
from data_pipelines.steps.base import Pictures, Step, sift
from data_pipelines.steps.settings import there
from mm1.errors import UserError, at_least
from mm1.sample import Text

SENTENCE = re.compile(r"[^\s].*?(?:[.!?…]+(?=\s|$)|[。！？]|$)", re.MULTILINE)


class Similarity(Step):
    """Leaves out pictures less like the text than a bound: the cosine of CLIP's two vectors.

    In a caption document that is the caption; elsewhere each picture is held against the sentence most like it, as
    MMC4 does (arXiv 2304.06939). LAION's bounds are 0.28 to 0.30 for captions with ViT-B/32, MMC4's 0.15 with ViT-L/14.

    One document at a time is what a step sees, so pictures go through the model by ones and sentences by dozens: 0.13
    and 0.08 s each with ViT-B/32 on a busy processor core. Where a corpus came with its similarities, :class:`Metadata`
    costs nothing. The model is loaded once in each process; processes that share a GPU share its memory.

    Args:
        model: A name of open_clip, or ``hf-hub:...``.
        pretrained: The tag of its published weights, fetched when first used.
        weights: Instead, a local file of the whole CLIP: safetensors, or a pickle of tensors.
        minimum: The least similarity that is kept.
        device: Where it runs, in torch's words.
        batch: Sentences that go through the model together.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        *,
        pretrained: str | None = "laion2b_s34b_b79k",
        weights: Path | None = None,
        minimum: float = 0.28,
        device: str = "cpu",
        batch: int = 64,
    ) -> None:
        import open_clip

        at_least(1, {"batch": batch})
        known = model in open_clip.list_models()
        if not known and not model.startswith("hf-hub:"):
            raise UserError(f"open_clip has no model {model!r}; expected one of open_clip.list_models() at model")
        if weights is None and known and pretrained not in open_clip.list_pretrained_tags_by_model(model):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "a file at weights"
            raise UserError(f"open_clip has no weights {pretrained!r} of {model}; expected {tags} at pretrained")
        self.model, self.minimum, self.device, self.batch = model, minimum, device, batch
        self.weights = there("weights", [weights])[0] if weights else pretrained if known else None

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        if not draft.pictures:
            return draft
        if not (texts := list(sentences(draft))):
            return Rejection(draft.id, "no text beside the picture", fault=False)
        text_SD = self._texts(texts)
        return sift(draft, lambda place: self._refuse(place, pictures, text_SD))

    def _refuse(self, place: Place, pictures: Pictures, text_SD: Tensor) -> str:
        clip, prepare, _ = _load(self.model, self.weights, self.device)
        with torch.inference_mode():
            image_ICHW = prepare(pictures.pixels(place))[None].to(self.device)
            similarity_S = text_SD @ clip.encode_image(image_ICHW, normalize=True)[0]
        best = float(similarity_S.max())
        return "" if best >= self.minimum else f"image-text similarity under {self.minimum:g}"

    def _texts(self, texts: list[str]) -> Tensor:
        clip, _, tokenize = _load(self.model, self.weights, self.device)
        with torch.inference_mode():
            parts = [texts[at : at + self.batch] for at in range(0, len(texts), self.batch)]
            found = [clip.encode_text(tokenize(part).to(self.device), normalize=True) for part in parts]
        return torch.cat(found)


def sentences(draft: Draft) -> Iterator[str]:
    """What pictures are held against: the one text of a document with one picture as it is, else every sentence."""
    texts = [item.text for item in draft.items if isinstance(item, Text) and item.text.strip()]
    if len(texts) == len(draft.pictures) == 1:
        yield texts[0]
    else:
        for text in texts:
            yield from SENTENCE.findall(text)


@functools.cache
def _load(model: str, weights: Path | str | None, device: str) -> tuple[Any, Any, Any]:
    """The CLIP, its preprocessing and its tokenizer.

    Raises:
        UserError: The weights do not fit, or could not be fetched.
    """
    import open_clip

    try:
        clip, prepare = open_clip.create_model_from_pretrained(
            model, pretrained=str(weights) if weights else None, device=device
        )
        return clip.eval(), prepare, open_clip.get_tokenizer(model)
    except Exception as error:  # open_clip and the hub's client raise a dozen unrelated classes
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(
            f"weights {weights} of {model} cannot be used on {device} ({told}); expected weights of that model at "
            "pretrained or weights, and a device that is there"
        ) from None
