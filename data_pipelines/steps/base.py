"""The contract of a step: one document in, the same, another or a reason out. A new step is one class like these.

A step sees one document and nothing else, so that any number of processes or machines may share the work. Only
:class:`Alike` compares documents: it gives keys, and the engine brings documents with an equal key together.
"""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy
import PIL.ExifTags
import PIL.Image
import PIL.TiffImagePlugin

from data_pipelines.sources.base import Draft, Place, Rejection
from mm1.data.fingerprint import Fingerprint, fingerprint
from mm1.data.image import PictureError, decode

WIDTH, HEIGHT = 256, 257  # TIFF's tags
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF's orientations that trade width and height


class Pictures:
    """The pictures of one document, each read and decoded at most once, whatever steps look at it."""

    def __init__(self) -> None:
        self._data: dict[int, bytes] = {}
        self._pixels: dict[int, PIL.Image.Image] = {}

    def data(self, place: Place) -> bytes:
        """The bytes of its file.

        Raises:
            PictureError: It is missing or unreadable.
        """
        if id(place) not in self._data:
            try:
                self._data[id(place)] = place.read_bytes()
            except FileNotFoundError:
                raise PictureError("picture file is missing") from None
            except OSError:
                raise PictureError("picture file is not readable") from None
        return self._data[id(place)]

    def pixels(self, place: Place) -> PIL.Image.Image:
        """The picture, RGB and upright.

        Raises:
            PictureError: It is missing, or does not decode.
        """
        if id(place) not in self._pixels:
            self._pixels[id(place)] = decode(self.data(place))
        return self._pixels[id(place)]

    def size(self, place: Place) -> tuple[int, int]:
        """Width and height of the upright picture, from the head of its file: nothing is decoded for it.

        Raises:
            PictureError: It is missing, or its head is none of a picture.
        """
        if id(place) in self._pixels:
            return self._pixels[id(place)].size
        try:
            with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(self.data(place))) as picture:
                turned = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) in QUARTER_TURNS
                as_stored = picture.size
                if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile):  # which has turned its size already
                    as_stored = picture.tag_v2[WIDTH], picture.tag_v2[HEIGHT]
                return as_stored[::-1] if turned else as_stored
        except PictureError:
            raise
        except Exception:  # as in mm1.data.image.decode: PIL's plugins raise whatever a broken file makes them raise
            raise PictureError("picture does not decode") from None

    def fingerprint(self, place: Place) -> Fingerprint:
        """What the picture is told by, whatever its file is called."""
        return fingerprint(self.data(place), self.pixels(place))


class Step(ABC):
    """A function of one document. Constructor arguments are its settings; ``class_path`` in a pipeline names it.

    Instances are copied to worker processes; what is expensive to load is loaded there, at the first document.
    """

    @abstractmethod
    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        """The document as it goes on, or why it does not.

        Raises:
            PictureError: A picture that the step has to see cannot be read; the engine then treats it as
                :meth:`Draft.loose` says.
        """


class EachPicture(Step):
    """Looks at every picture by itself; :func:`without` says what becomes of the document when one is refused."""

    @abstractmethod
    def refuse(self, place: Place, pictures: Pictures) -> str:
        """The reason to leave this picture out, the same for all such pictures; empty to keep it.

        Raises:
            PictureError: It cannot be read, and is left out for that.
        """

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        return sift(draft, lambda place: self.refuse(place, pictures))


class Alike(Step):
    """Of documents that are alike the first stays. Documents are compared when they share a key.

    Attributes:
        keys_per_document: About how many keys a document gives.
    """

    keys_per_document: int = 1

    @abstractmethod
    def keys(self, draft: Draft, pictures: Pictures) -> numpy.ndarray:
        """uint64[K]; documents that are alike should share one of them, others rarely."""

    @abstractmethod
    def sketch(self, draft: Draft, pictures: Pictures) -> bytes:
        """What :meth:`alike` needs to know of a document, of the same length for all."""

    @abstractmethod
    def alike(self, first: bytes, others: list[bytes]) -> numpy.ndarray:
        """bool[N]: which of the others are like the first, all of which share a key with it."""

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        """Leaves the document alone: which of them are lost is known when all have been seen."""
        return draft


def told(value: Any) -> Any:
    """A step or another setting as plain values, the same in every run as long as it does the same.

    Of a step or another object what it is and what is public of it, of a function its name, of a file size and date.
    """
    match value:
        case None | str() | int() | float():
            return value
        case dict():
            return {str(name): told(one) for name, one in value.items()}
        case list() | tuple():
            return [told(one) for one in value]
        case set() | frozenset():
            return sorted(map(str, value))
        case Path():
            found = value.stat() if value.exists() else None
            return [str(value), found and found.st_size, found and found.st_mtime_ns]
        case FunctionType() | BuiltinFunctionType() | type():
            return f"{value.__module__}.{value.__qualname__}"
    public = {name: one for name, one in vars(value).items() if name[0] != "_"} if hasattr(value, "__dict__") else {}
    return [told(type(value)), told(public)]


def sift(draft: Draft, refuse: Callable[[Place], str]) -> Draft | Rejection:
    """The document without pictures that there is a reason against, and without those that cannot be read."""
    for place in draft.pictures:
        try:
            reason, fault = refuse(place), False
        except PictureError as error:
            reason, fault = str(error), True
        kept = without(draft, [place] if reason else [], reason, fault=fault)
        if isinstance(kept, Rejection):
            return kept
        draft = kept
    return draft


def without(draft: Draft, places: Collection[Place], reason: str, *, fault: bool = False) -> Draft | Rejection:
    """The document without some of its pictures, or a rejection if it makes no sense without them."""
    gone = {id(place) for place in places}
    items = tuple(item for item in draft.items if id(item) not in gone)
    if not gone:
        return draft
    if not draft.loose or not draft.text.strip():
        return Rejection(draft.id, reason, fault)
    lost = tuple(Rejection(f"{draft.id} {place.name}", reason, fault) for place in places)
    return replace(draft, items=items, lost=draft.lost + lost)
