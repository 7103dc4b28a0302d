"""Whether a picture and the text around it belong together, by a CLIP of open_clip (LAION-400M, arXiv 2111.02114)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from data_pipelines.sources.base import Draft, Place, Rejection
from data_pipelines.steps.base import Pictures, Step, sift
from mm1.embed import Clip
from mm1.errors import at_least
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
        at_least(1, {"batch": batch})
        self.clip = Clip(model, pretrained=pretrained, weights=weights, device=device)
        self.minimum, self.batch = minimum, batch

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        if not draft.pictures:
            return draft
        if not (texts := list(sentences(draft))):
            return Rejection(draft.id, "no text beside the picture", fault=False)
        text_SD = self.clip.texts(texts, self.batch)
        return sift(draft, lambda place: self._refuse(place, pictures, text_SD))

    def _refuse(self, place: Place, pictures: Pictures, text_SD: Tensor) -> str:
        similarity_S = text_SD @ self.clip.pictures([pictures.pixels(place)])[0]
        best = float(similarity_S.max())
        return "" if best >= self.minimum else f"image-text similarity under {self.minimum:g}"


def sentences(draft: Draft) -> Iterator[str]:
    """What pictures are held against: the one text of a document with one picture as it is, else every sentence."""
    texts = [item.text for item in draft.items if isinstance(item, Text) and item.text.strip()]
    if len(texts) == len(draft.pictures) == 1:
        yield texts[0]
    else:
        for text in texts:
            yield from SENTENCE.findall(text)
