"""Web pages of Multimodal C4 (Zhu et al. 2023, arXiv 2304.06939): sentences, pictures, and which belongs to which.

text_list  ["It rained.", "A bridge.", "We went home."]      image_info  [{"image_name": "a.png",
becomes    "It rained."  <a.png>  "A bridge. We went home."                "matched_text_index": 1, ...}]
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
from scipy.optimize import linear_sum_assignment

from data_pipelines.picture_store import PictureStore
from data_pipelines.sources.base import WHOLE, Draft, Place, Rejection, Rows, Span, WrongFields
from data_pipelines.sources.lines import LINE_BYTES, Damage, stem
from data_pipelines.sources.pictured import NO_BASE64, Pictured, embedded, missing, scalars
from data_pipelines.sources.rows import TOO_LONG, json_row
from data_pipelines.sources.tars import CUT, is_tar, split, tar_members
from mm1.errors import UserError
from mm1.sample import Text

Items = tuple[Text | Place, ...]

GPT_MARKER = re.compile(r"(_!_IMAGE\d+_!_)")


class MMC4(Pictured, Rows):
    """JSON lines as released, plain, zip or gzip; OpenFlamingo's tars of the same documents with pictures in base64.

    A picture stands before its sentence, as MM1 and OpenFlamingo read them. The file has given each picture a sentence
    of its own; where some pictures cannot be had any more, or several claim one sentence, those that are left are
    given sentences anew by linear assignment on ``similarity_matrix``, as the corpus was made. Pictures beyond the
    number of sentences go to the sentence most like them.

    Args:
        files: ``docs_shard_*_v2.jsonl.zip``, and so on.
        root: As for every source.
        stream: As for every source.
        pictures: Where pictures are; by default ``root``, or else the file's folder.
        names: What a picture is called there, of ``{shard}``, ``{image_name}`` and ``{raw_url}``.
        assign: ``missing`` as told above, ``always`` anew, ``never``.
        side: Where a picture stands of its sentence.
        similarity: The least that a picture has to be like its sentence; others are left out.
    """

    stream = "interleaved"

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        root: Path | None = None,
        stream: str | None = None,
        pictures: PictureStore | None = None,
        names: str = "{shard}/{image_name}",
        assign: Literal["missing", "always", "never"] = "missing",
        side: Literal["before", "after"] = "before",
        similarity: float = -1.0,
    ) -> None:
        super().__init__(files, root=root, stream=stream, pictures=pictures)
        self.names, self.assign, self.side, self.similarity = names, assign, side, similarity
        try:
            names.format(shard="0", image_name="a.png", raw_url="http://a/a.png")
        except (LookupError, ValueError, AttributeError):
            raise UserError(f"names is {names!r}; expected {{shard}}, {{image_name}} and {{raw_url}} in it") from None

    def spans(self, path: Path, rows: int) -> list[Span]:
        return [WHOLE] if is_tar(path) else super().spans(path, rows)

    def rows(self, path: Path, span: Span) -> Iterator[tuple[str, dict[str, Any] | Damage]]:
        if not is_tar(path):
            yield from super().rows(path, span)
            return
        members, whole = tar_members(path)
        for number, member in enumerate((member for member in members if split(member.name)[1] == "json"), start=1):
            yield f"{stem(path)}:{number}", json_row(member.read_bytes()) if member.size <= LINE_BYTES else TOO_LONG
        if not whole:
            yield path.name, Damage(CUT)

    def documents(self, path: Path, place: str, row: dict[str, Any]) -> Iterator[Draft | Rejection]:
        about = scalars(row)
        if row.get("is_gpt"):
            items, lost = self._marked(place, row)
        else:
            items, lost, about["similarity"] = self._matched(path, place, row)
        if any(isinstance(item, Text) for item in items):
            group = str(row.get("url", place))
            yield Draft(place, self.stream, items, group, loose=True, about=about, lost=tuple(lost))
        else:
            yield Rejection(place, "empty document")

    def _matched(self, path: Path, place: str, row: dict[str, Any]) -> tuple[Items, list[Rejection], list[float]]:
        """The document, what was left out of it, and how much each picture is like its sentence."""
        sentences, infos = _list(row, "text_list", str), _list(row, "image_info", dict)
        places = [self._place(path, place, info) for info in infos]
        lost = [found for found in places if isinstance(found, Rejection)]
        have = [number for number, found in enumerate(places) if not isinstance(found, Rejection)]
        before: dict[int, list[Place]] = {}
        similarities: list[float] = []
        for number, (sentence, similarity) in zip(have, self._sentences(row, have), strict=True):
            if similarity < self.similarity:
                lost.append(Rejection(f"{place} {places[number].name}", "picture unlike its sentence", fault=False))  # type: ignore[union-attr]
            else:
                before.setdefault(sentence, []).append(places[number])  # type: ignore[arg-type]
                similarities.append(similarity)
        return self._items(sentences, before), lost, similarities

    def _sentences(self, row: dict[str, Any], have: list[int]) -> list[tuple[int, float]]:
        """The sentence of each picture that can be had, and how much it is like it."""
        infos, matrix = row["image_info"], _matrix(row)
        given = [infos[number].get("matched_text_index") for number in have]
        if not all(type(index) is int and 0 <= index < len(row["text_list"]) for index in given):
            raise WrongFields
        crowded = len(have) < len(infos) or len(set(given)) < len(given)
        if matrix is not None and have and (self.assign == "always" or (self.assign == "missing" and crowded)):
            given = [int(index) for index in matrix[have].argmax(axis=1)]
            for number, index in zip(*linear_sum_assignment(matrix[have], maximize=True), strict=True):
                given[number] = int(index)
            return [(index, float(matrix[number, index])) for number, index in zip(have, given, strict=True)]
        like = [infos[number].get("matched_sim") for number in have]
        if not all(isinstance(value, int | float) for value in like):
            raise WrongFields
        return list(zip(given, like, strict=True))

    def _items(self, sentences: list[str], pictures: dict[int, list[Place]]) -> Items:
        items: list[Text | Place] = []
        said: list[str] = []
        for number, sentence in enumerate([*sentences, ""]):
            here = pictures.get(number - (self.side == "after"), [])
            if (here or number == len(sentences)) and said:
                items.append(Text(" ".join(said)))
                said = []
            items += here
            said += [sentence.strip()] if sentence.strip() else []
        return tuple(items)

    def _place(self, path: Path, place: str, info: dict[str, Any]) -> Place | Rejection:
        name = info.get("image_name")
        if not isinstance(name, str) or not name:
            raise WrongFields
        if "image_base64" in info:
            return _decoded(place, name, info["image_base64"])
        shard = re.search(r"shard_(\d+)", path.name)
        known = {"shard": shard[1] if shard else stem(path), "image_name": name, "raw_url": info.get("raw_url", "")}
        called = self.names.format(**known)
        found = self.find(path, called)
        there = os.path.isfile(found) if isinstance(found, Path) else found is not None
        return found if found and there else missing(place, called)

    def _marked(self, place: str, row: dict[str, Any]) -> tuple[Items, list[Rejection]]:
        """The variant in which ChatGPT has placed the pictures: ``_!_IMAGE3_!_`` in a text."""
        text, pictures = row.get("example"), row.get("image_map")
        if not isinstance(text, str) or not isinstance(pictures, dict):
            raise WrongFields
        items: list[Text | Place] = []
        lost: list[Rejection] = []
        for part in GPT_MARKER.split(text):
            if not GPT_MARKER.fullmatch(part):
                items += [Text(part.strip())] if part.strip() else []
            elif isinstance(picture := pictures.get(part), dict):
                found = _decoded(place, part, picture.get("base64_image"))
                (lost if isinstance(found, Rejection) else items).append(found)  # type: ignore[arg-type]
            else:
                lost.append(missing(place, part))
        return tuple(items), lost


def _decoded(place: str, name: str, value: Any) -> Place | Rejection:
    if value is None:  # the download had failed
        return missing(place, name)
    try:
        return embedded(base64.b64decode(value, validate=True), name)
    except (binascii.Error, ValueError, TypeError):
        return Rejection(f"{place} {name}", NO_BASE64)


def _matrix(row: dict[str, Any]) -> numpy.ndarray | None:
    """float64[pictures, sentences], if the row has it."""
    if (rows := row.get("similarity_matrix")) is None or not row["image_info"]:
        return None
    try:
        matrix = numpy.asarray(rows, dtype=numpy.float64)
    except (ValueError, TypeError, OverflowError):
        raise WrongFields from None
    if matrix.shape != (len(row["image_info"]), len(row["text_list"])) or not numpy.isfinite(matrix).all():
        raise WrongFields
    return matrix


def _list(row: dict[str, Any], name: str, kind: type) -> list[Any]:
    values = row.get(name)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise WrongFields
    return values
