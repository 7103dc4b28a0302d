"""Pictures that lie inside annotation files (parquet, base64 in a table), unpacked once so that each is a file.

They go into a folder beside the annotation file, ``<file>.pictures``, named by content; where that cannot be written,
below ``MM1_CACHE`` (~/.cache/mm1). What is there already is not written again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from mm1.errors import UserError


class Unpacked:
    """The unpacked pictures of one annotation file.

    Args:
        file: The annotation file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._folder: Path | None = None

    def path(self, data: bytes) -> Path:
        """Where a picture lies, written there if need be."""
        name = hashlib.sha256(data).hexdigest()[:32]
        path = self.folder / name
        if not path.exists():
            temporary = path.with_name(f"{name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
        return path

    def base64(self, text: str, where: str) -> Path:
        """The same of a picture written as base64.

        Raises:
            UserError: It is no base64; ``where`` says which one.
        """
        try:
            return self.path(base64.b64decode(text, validate=True))
        except binascii.Error:
            raise UserError(f"{self.file}: {where} has an image {text[:20]!r}..; expected base64") from None

    @property
    def folder(self) -> Path:
        """Where they lie; made when first asked for."""
        if self._folder is None:
            self._folder = self._made(self.file.with_name(f"{self.file.name}.pictures"))
        return self._folder

    def _made(self, beside: Path) -> Path:
        try:
            beside.mkdir(exist_ok=True)
            if os.access(beside, os.W_OK):
                return beside
        except OSError:
            pass
        mark = hashlib.sha256(str(self.file.resolve()).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("MM1_CACHE") or Path("~/.cache/mm1").expanduser())
        elsewhere = cache / "pictures" / mark
        elsewhere.mkdir(parents=True, exist_ok=True)
        return elsewhere
