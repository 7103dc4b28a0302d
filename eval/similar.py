"""Demonstrations that look like the picture asked about: retrieval of examples by the similarity of CLIP's vectors.

RICES of Flamingo (Alayrac et al. 2022, appendix A.2, after Yang et al. 2021), with any model of open_clip as in
OpenFlamingo: the pictures nearest by cosine, the most similar one last, next to the question.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import PIL.Image
from tqdm import tqdm

from eval.fewshot import Demonstrations
from eval.pictures import content, read
from eval.task import Query
from mm1.data.image import decode
from mm1.embed import Clip, Kept
from mm1.errors import at_least


@dataclass(frozen=True)
class Retrieval:
    """By which model pictures are alike.

    Args:
        model: A name of open_clip, or ``hf-hub:...``.
        pretrained: The tag of its published weights, fetched when first used.
        weights: Instead, a local file of the whole CLIP.
        device: Where it runs, in torch's words; changes speed alone.
        batch: Pictures that go through it together, likewise.
        cache: Where vectors of pictures are kept, by content; default: ``embeddings`` in ``MM1_CACHE`` (~/.cache/mm1).
    """

    model: str = "ViT-L-14"
    pretrained: str | None = "openai"
    weights: str | None = None
    device: str = "cpu"
    batch: int = 32
    cache: str | None = None

    def check(self) -> None:
        """Refuse what cannot be loaded.

        Raises:
            UserError: No such model or file, or no pictures at once.
        """
        at_least(1, {"retrieval.batch": self.batch})
        self.clip()

    def clip(self) -> Clip:
        """The model."""
        pretrained = None if self.weights else self.pretrained
        weights = Path(self.weights) if self.weights else None
        return Clip(self.model, pretrained=pretrained, weights=weights, device=self.device)

    def named(self) -> str:
        """What decides its vectors."""
        return self.clip().fingerprint()

    def folder(self) -> Path:
        """Where its vectors lie."""
        usual = Path(os.environ.get("MM1_CACHE") or Path("~/.cache/mm1").expanduser()) / "embeddings"
        return Path(self.cache) if self.cache else usual


@dataclass
class Similar(Demonstrations):
    """The demonstrations whose pictures are most like the one asked about, the most similar last.

    The rules of :class:`Demonstrations` hold: never a scored picture, never the query's own, none twice; where several
    questions are about one picture, the first in its file demonstrates. Vectors are of pictures alone, questions are
    not compared; the seed decides nothing.

    Args:
        retrieval: By which model.
        progress: Whether to show that of vectors in the making.
    """

    retrieval: Retrieval = field(default_factory=Retrieval)
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first: dict[str, int] = {}
        paths: dict[str, Path] = {}
        for at, query in enumerate(self.pool):
            if (names := self._shown(query)) and self._scored.isdisjoint(names):
                name = content(query.picture)
                self._first.setdefault(name, at)
                paths.setdefault(name, query.picture)
        asked = {content(query.picture): query.picture for query in self.task.queries}
        vectors_IV = self._embed(paths | asked)
        self._pool_IV, self._places = vectors_IV[: len(paths)], list(self._first.values())
        self._asked_V = dict(zip(paths | asked, vectors_IV, strict=True))

    def of(self, query: Query, shots: int) -> list[Query]:
        """``shots`` demonstrations for ``query``, the most similar last.

        Raises:
            UserError: The pool holds fewer pictures that may be shown.
        """
        return super().of(query, shots)[::-1]

    def _order(self, query: Query) -> Iterator[int]:
        similar_I = self._pool_IV @ self._asked_V[content(query.picture)]
        return (self._places[at] for at in numpy.argsort(-similar_I, kind="stable"))

    def _embed(self, paths: dict[str, Path]) -> numpy.ndarray:
        kept = Kept(self.retrieval.folder(), self.retrieval.clip())
        by_digest = {bytes.fromhex(name): path for name, path in paths.items()}

        def pixels(digest: bytes) -> PIL.Image.Image:
            return decode(read(by_digest[digest]))

        about = f"pictures of {self.task.name} through {self.retrieval.model}"
        with tqdm(total=len(paths), desc=about, unit=" pictures", disable=not self.progress) as bar:
            return kept.of(by_digest, pixels, self.retrieval.batch, bar.update)
