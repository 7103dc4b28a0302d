"""The order of an epoch, computed place by place: no list of all documents is ever made or kept.

A keyed permutation of ``0 .. n-1`` in constant memory and time, so that a run may go on at any place of a corpus of any
size at once. A place is written as a pair (a, b) on a grid of A x B >= n cells, A and B near the square root of n.
Every round turns one half by a keyed hash of the other (a Feistel network; Black and Rogaway, 2002, section 5), which
can always be undone, so no two places meet:

    n = 7, A = B = 3      place 5 = (1, 2)      a + h(b) mod 3,  then b + h(a) mod 3,  and so on, eight times

A cell past the end, of which there are fewer than A, is put through the rounds again until it falls inside.
"""

from __future__ import annotations

import hashlib
import math

ROUNDS = 8
_MASK = 2**64 - 1


class Order:
    """A permutation of ``0 .. n-1``, another one for every key.

    Args:
        n: How many there are.
        key: What decides the order, such as ``"seed/source/epoch"``.
    """

    def __init__(self, n: int, key: str) -> None:
        digest = hashlib.shake_128(key.encode()).digest(8 * ROUNDS)
        self.n, self.keys = n, [int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8)]
        self.columns = math.isqrt(max(0, n - 1)) + 1
        self.rows = -(-n // self.columns)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, place: int) -> int:
        """What stands at ``place``."""
        if not 0 <= place < self.n:
            raise IndexError(place)
        place = self._turned(place)
        while place >= self.n:
            place = self._turned(place)
        return place

    def _turned(self, place: int) -> int:
        columns, rows = self.columns, self.rows
        row, column = divmod(place, columns)
        keys = iter(self.keys)
        for key in keys:
            row = (row + _hash(column ^ key)) % rows
            column = (column + _hash(row ^ next(keys))) % columns
        return row * columns + column


def _hash(value: int) -> int:
    """64 well-mixed bits (the finisher of splitmix64; Steele, Lea and Flood, 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
