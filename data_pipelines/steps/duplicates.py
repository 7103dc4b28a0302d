"""De-duplication: the same text or picture again, to the letter (:class:`Same`) or nearly (:class:`NearText`, \
:class:`NearPicture`).

Each gives keys, so that only documents with an equal key are ever compared (MinHash: Broder 1997, bands: Indyk and
Motwani 1998; as web corpora use them, Lee et al., arXiv 2107.06499).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from itertools import combinations, pairwise
from typing import Literal

import numpy

from data_pipelines.sources.base import Draft
from data_pipelines.steps.base import Alike, Pictures
from data_pipelines.steps.settings import installed, share
from mm1.data.fingerprint import NEAR_LEVELS
from mm1.errors import UserError, at_least

WORD = re.compile(r"\w+")
NONE = numpy.empty(0, dtype=numpy.uint64)
ODD = numpy.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def words_of(text: str) -> list[str]:
    """Words as comparisons see them: no capitals, no punctuation, one spelling of each character."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Same(Alike):
    """The same words, the same picture files, or both, in the same order.

    Args:
        by: ``text`` suits web pages; ``pictures`` and ``both`` suit captions, of which many say the same of different
            pictures. Documents without what is compared stay.
    """

    def __init__(self, by: Literal["text", "pictures", "both"] = "text") -> None:
        self.by = by

    def keys(self, draft: Draft, pictures: Pictures) -> numpy.ndarray:
        digest = self.sketch(draft, pictures)
        empty = digest == hashlib.sha256().digest()
        return NONE if empty else numpy.frombuffer(digest[:8], dtype="<u8").astype(numpy.uint64)

    def sketch(self, draft: Draft, pictures: Pictures) -> bytes:
        digest = hashlib.sha256()
        if self.by != "pictures":
            digest.update(" ".join(words_of(draft.text)).encode("utf-8", "surrogatepass"))
        if self.by != "text":
            for place in draft.pictures:
                digest.update(hashlib.sha256(pictures.data(place)).digest())
        return digest.digest()

    def alike(self, first: bytes, others: list[bytes]) -> numpy.ndarray:
        return numpy.array([other == first for other in others], dtype=bool)


class NearText(Alike):
    """Texts of which so large a share of n-grams is the same (Jaccard), as MinHash estimates it.

    A pair at the threshold shares a band with the probability ``recall`` at least. Of the bands that do so, those with
    the longest rows meet the fewest others by chance: 16 bands of 8 at the default, where a pair at 0.4 shares one with
    a probability of 0.01. The estimate is off by sqrt(t (1 - t) / hashes), 0.035 at the default. Five words and 0.8
    are Lee et al.'s. A text of 300 words takes 0.3 ms.

    Args:
        threshold: The least share of n-grams.
        unit: Whether n-grams are of words, or of characters where a language parts no words.
        n: How many.
        hashes: Numbers of a sketch, 4 bytes each.
        recall: The least probability that a pair at the threshold is compared.
        seed: Of the hashes.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        unit: Literal["words", "characters"] = "words",
        n: int = 5,
        hashes: int = 128,
        recall: float = 0.9,
        seed: int = 0,
    ) -> None:
        at_least(1, {"n": n, "hashes": hashes})
        share("threshold", threshold)
        share("recall", recall)
        installed("rensa")
        self.threshold, self.unit, self.n, self.hashes, self.seed = threshold, unit, n, hashes, seed
        self.bands, self.rows = bands(threshold, hashes, recall)
        self.keys_per_document = self.bands

    def keys(self, draft: Draft, pictures: Pictures) -> numpy.ndarray:
        if not words_of(draft.text):
            return NONE
        signature = numpy.frombuffer(self.sketch(draft, pictures), dtype="<u4")[: self.bands * self.rows]
        return mixed(signature.reshape(self.bands, self.rows))

    def sketch(self, draft: Draft, pictures: Pictures) -> bytes:
        import rensa

        minhash = rensa.RMinHash(num_perm=self.hashes, seed=self.seed)
        minhash.update(self.grams(draft.text))
        return numpy.array(minhash.digest(), dtype="<u4").tobytes()

    def alike(self, first: bytes, others: list[bytes]) -> numpy.ndarray:
        shared = numpy.frombuffer(b"".join(others), dtype="<u4").reshape(-1, self.hashes) == numpy.frombuffer(
            first, dtype="<u4"
        )
        return shared.mean(axis=1) >= self.threshold

    def grams(self, text: str) -> list[str]:
        """The n-grams; a text shorter than one is one."""
        words = words_of(text)
        if self.unit == "characters":
            line = " ".join(words)
            return [line[at : at + self.n] for at in range(max(1, len(line) - self.n + 1))]
        return [" ".join(words[at : at + self.n]) for at in range(max(1, len(words) - self.n + 1))]


class NearPicture(Alike):
    """Pictures that look the same: difference hashes some bits apart, thumbnails alike (:mod:`mm1.data.fingerprint`).

    The hash is cut into ``blocks`` pieces. Of two hashes at most ``bits`` apart, ``blocks - bits`` pieces are equal, so
    every choice of as many is a key, and no pair is missed::

        bits 2, blocks 4      0110 1001 1111 0000       pieces 1 and 2 are equal: the key of (1, 2) is shared
                              0110 1001 0111 0100       6 keys in all

    More blocks make more keys, each shared by chance with fewer: 21 of 18 bits at the default, enough for some 10^7
    pictures; take ``blocks=8`` (56 of 24 bits) for 10^9. Documents of one ``group``, such as several captions of one
    picture, are no duplicates of each other; with :class:`Same` by ``both`` those that were written twice are.

    Args:
        bits: The most bits of 64 that the hashes may differ by.
        levels: The most levels of 255 that thumbnails may differ by, at any place.
        blocks: Pieces of the hash.
        several: What is looked at in a document of several pictures: nothing, it stays (``leave``), for a logo that
            pages share does not make them alike; or its ``first``.
    """

    LOOK_BYTES = 16 * 18 * 3

    def __init__(
        self,
        *,
        bits: int = 5,
        levels: int = NEAR_LEVELS,
        blocks: int | None = None,
        several: Literal["leave", "first"] = "leave",
    ) -> None:
        at_least(0, {"bits": bits, "levels": levels})
        blocks = bits + 2 if blocks is None else blocks
        if not bits < blocks <= 16:
            raise UserError(f"blocks is {blocks} and bits {bits}; expected blocks above bits, and 16 at most")
        self.bits, self.levels, self.blocks, self.several = bits, levels, blocks, several
        edges = [round(at * 64 / blocks) for at in range(blocks + 1)]
        pieces = [((1 << high) - 1) ^ ((1 << low) - 1) for low, high in pairwise(edges)]
        chosen = list(combinations(pieces, blocks - bits))
        self._masks = numpy.array([sum(some) for some in chosen], dtype=numpy.uint64)
        self.keys_per_document = len(chosen)

    def keys(self, draft: Draft, pictures: Pictures) -> numpy.ndarray:
        if not draft.pictures or (self.several == "leave" and len(draft.pictures) > 1):
            return NONE
        bits = pictures.fingerprint(draft.pictures[0]).bits
        return mixed((self._masks & bits)[:, None])

    def sketch(self, draft: Draft, pictures: Pictures) -> bytes:
        one = pictures.fingerprint(draft.pictures[0])
        group = hashlib.sha256(draft.group.encode("utf-8", "surrogatepass")).digest()[:8]
        return one.bits.astype("<u8").tobytes() + group + one.look.astype(numpy.uint8).tobytes()

    def alike(self, first: bytes, others: list[bytes]) -> numpy.ndarray:
        kind = numpy.dtype([("bits", "<u8"), ("group", "<u8"), ("look", numpy.uint8, self.LOOK_BYTES)])
        one, many = numpy.frombuffer(first, dtype=kind)[0], numpy.frombuffer(b"".join(others), dtype=kind)
        near = (numpy.bitwise_count(many["bits"] ^ one["bits"]) <= self.bits) & (many["group"] != one["group"])
        looks = many["look"][near].astype(numpy.int16) - one["look"].astype(numpy.int16)
        near[near] = numpy.abs(looks).max(axis=1, initial=0) <= self.levels
        return near


def bands(threshold: float, hashes: int, recall: float) -> tuple[int, int]:
    """Bands and rows of each: the longest rows that find a pair at ``threshold`` with a probability of ``recall``."""
    for rows in range(hashes, 0, -1):
        if 1 - (1 - threshold**rows) ** (hashes // rows) >= recall:
            return hashes // rows, rows
    raise UserError(
        f"threshold {threshold} is found with a probability under {recall} by {hashes} hashes; expected more hashes, "
        "a higher threshold or a lower recall"
    )


def mixed(values_KR: numpy.ndarray) -> numpy.ndarray:
    """uint64[K]: one number for each row of values, and for its place, so that equal values elsewhere differ."""
    key_K = numpy.arange(1, len(values_KR) + 1, dtype=numpy.uint64) * ODD
    for column_K in values_KR.T.astype(numpy.uint64):
        key_K = (key_K ^ column_K) * ODD
        key_K ^= key_K >> numpy.uint64(29)
    return key_K
