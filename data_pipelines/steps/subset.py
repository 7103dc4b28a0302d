"""Subsets of DataComp and CommonPool: which documents a published list of uids keeps.

A subset file is a sorted npy of ``u8,u8``: the two halves of each uid's 32 hexadecimal digits
(https://github.com/mlfoundations/datacomp).
"""

from __future__ import annotations

from pathlib import Path

import numpy

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps.base import Pictures, Step
from mm1.errors import UserError


class Subset(Step):
    """Keeps documents whose ``uid`` is in a file of uids, which is looked up on disk and never read whole.

    Args:
        file: The npy file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._uids: numpy.ndarray | None = None
        self._open()

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        uid = str(draft.about.get("uid"))
        try:
            halves = int(uid[:16], 16), int(uid[16:], 16)
        except ValueError:
            return Rejection(draft.id, "uid is missing")
        uids = self._open()
        key = numpy.array(halves, dtype=uids.dtype) if max(halves) < 2**64 and min(halves) >= 0 else None
        if key is not None and (at := int(numpy.searchsorted(uids, key))) < len(uids) and uids[at] == key:
            return draft
        return Rejection(draft.id, "not in the subset", fault=False)

    def __getstate__(self) -> dict[str, object]:
        """Without the open file: another process opens its own."""
        return {**self.__dict__, "_uids": None}

    def _open(self) -> numpy.ndarray:
        if self._uids is None:
            try:
                uids = numpy.load(self.file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"file is {self.file}, which cannot be read ({error}); expected an npy of uids"
                ) from None
            if uids.ndim != 1 or [uids.dtype[n].str[1:] for n in range(len(uids.dtype))] != ["u8", "u8"]:
                raise UserError(
                    f"file is {self.file} of type {uids.dtype}; expected a list of u8,u8 as DataComp has them"
                )
            self._uids = uids
        return self._uids
