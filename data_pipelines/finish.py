"""From a draft to what shards hold: pictures read, checked and brought to size, long documents cut, lengths counted."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image

from data_pipelines.cut import Limits, cut
from data_pipelines.settings import Settings
from data_pipelines.sources import Draft, Place, Rejection
from data_pipelines.steps import Pictures
from mm1.batch import ImageSpec
from mm1.data.encode import text_tokens
from mm1.data.fingerprint import Fingerprint, Known
from mm1.data.image import PictureError, field_of, lay_out, scale
from mm1.data.tokenizer import Tokenizer
from mm1.sample import Image, Sample, Text

JPEG_QUALITY = 92
READY = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")  # JPEG, PNG, WebP


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a draft.

    Args:
        group: The draft's group, which decides the split.
        pieces: The document, in several pieces if it is longer than a row, each with its text tokens.
        rejections: What was left out of it.
    """

    group: str
    pieces: list[tuple[Sample, int]]
    rejections: list[Rejection]


@dataclass(frozen=True)
class Finish:
    """A function from drafts to finished documents, to be copied into worker processes.

    Args:
        tokenizer: Counts positions.
        limits: What a row takes.
        spec: At which size pictures are stored, and in which views.
        scored: Pictures that may not be trained on.
        settings: What the shards hold.
    """

    tokenizer: Tokenizer
    limits: Limits
    spec: ImageSpec
    scored: Known
    settings: Settings

    def __call__(self, draft: Draft | Rejection, pictures: Pictures) -> Finished:
        if isinstance(draft, Rejection):
            return Finished("", [], [draft])
        items: list[Text | Image] = []
        shown: dict[int, tuple[Text | Image, ...]] = {}
        rejections = list(draft.lost)
        broken = False
        for item in draft.items:
            if isinstance(item, Text):
                items.append(item)
                continue
            try:
                views = self._views(item, pictures)
                items.append(image := Image(b""))  # which views take the place of once the document is cut
                shown[id(image)] = views
            except _Scored:
                return Finished(draft.group, [], [Rejection(draft.id, "picture is scored", fault=False)])
            except PictureError as error:
                rejections.append(Rejection(f"{draft.id} {item.name}", str(error)))
                broken = True
        if broken and not (draft.loose and any(isinstance(item, Text) for item in items)):
            return Finished(draft.group, [], rejections)
        if hint := self.settings.hints.get(draft.source):
            items = self.limits.template.hinted(items, hint)
        items = self.limits.template.completed(items)
        return self._cut(Sample(tuple(items), draft.source, draft.id), draft.group, rejections, shown)

    def _views(self, place: Place, pictures: Pictures) -> tuple[Text | Image, ...]:
        """What stands in a picture's place: it at its size, or its views with their separators."""
        data, picture = pictures.data(place), pictures.pixels(place)
        if len(self.scored) and pictures.fingerprint(place) in self.scored:
            raise _Scored
        if self.settings.keep_pictures:
            return (Image(data),)
        spec, whole, laid_out = self.spec, Image(data), None
        items: list[Text | Image] = []
        for item in spec.views.of(whole):
            if isinstance(item, Text):
                items.append(item)
            elif item.part is None:
                items.append(Image(self._whole(data, picture)))
            else:
                laid_out = laid_out or lay_out(picture, spec.views.rows, spec.views.columns, spec)
                items.append(Image(_jpeg(field_of(laid_out, item.part))))
        return tuple(items)

    def _whole(self, data: bytes, picture: PIL.Image.Image) -> bytes:
        scaled = scale(picture, self.spec.size_px, self.spec.resize, self.spec.interpolation)
        return data if scaled is picture and data.startswith(READY) else _jpeg(scaled)

    def _cut(
        self, sample: Sample, group: str, rejections: list[Rejection], shown: dict[int, tuple[Text | Image, ...]]
    ) -> Finished:
        pieces, lost = cut(sample.items, self.tokenizer, self.limits)
        rejections = rejections + [Rejection(sample.id, reason, fault=False) for reason in lost]
        names = [sample.id] if len(pieces) == 1 else [f"{sample.id}/{number}" for number in range(len(pieces))]
        said = [self.limits.template.spelled(piece) for piece in pieces]
        whole = [tuple(one for item in piece for one in shown.get(id(item), (item,))) for piece in said]
        samples = [replace(sample, items=items, id=name) for items, name in zip(whole, names, strict=True)]
        return Finished(group, [(piece, text_tokens(piece.items, self.tokenizer)) for piece in samples], rejections)


class _Scored(Exception):
    """The picture stands in a scored set."""


def scored_print(path: Path) -> Fingerprint | Rejection:
    """Fingerprint of a scored picture, or why there is none."""
    try:
        return Pictures().fingerprint(path)
    except PictureError as error:
        return Rejection(str(path), str(error))


def _jpeg(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # halved colour would blur drawings of this size
    return file.getvalue()
