"""Pictures that stand apart from the rows that name them: from a name or a URL to where the picture is, or None.

Corpora such as OBELICS, LAION or MMC4 publish addresses and no pictures; whoever downloads them keeps them in a way of
their own, and each way is one class here (``img2dataset``'s is :mod:`data_pipelines.picture_index`).
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from data_pipelines.places import Remote, inside, located
from mm1.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.sources.base import Place

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp", ".gif")
MISSING = "picture is not in the store"
"""Why a row is left out whose picture :meth:`PictureStore.find` does not find; nothing is broken then."""


class PictureStore(ABC):
    """Where pictures are. Instances are copied to workers; a new way of keeping them is one class like this."""

    @abstractmethod
    def find(self, name_or_url: str) -> Place | None:
        """Where the picture of this name or URL is; None where the store does not have it.

        Of a store at an address that does not answer the picture is taken to be there, and counted as unreadable when
        it is read.
        """


class NamedPictures(PictureStore):
    """Pictures whose files are called as rows call them.

        NamedPictures("images")                                    a/b.jpg           ->  images/a/b.jpg
        NamedPictures("s3://bucket/cc", template="{stem}.webp")    http://x/y/1.jpg  ->  s3://bucket/cc/1.webp

    Args:
        folder: A folder, or an fsspec address of one.
        template: Path in it. ``{name}`` is the whole name (of a URL the path), ``{base}`` its last part, ``{stem}``
            that without its ending, ``{ending}`` the ending with its dot.
    """

    def __init__(self, folder: str | Path, *, template: str = "{name}") -> None:
        self.folder, self.template = located(folder), template
        try:
            template.format(**_parts("a.jpg"))
        except (LookupError, ValueError, AttributeError):
            raise UserError(
                f"template is {template!r}; expected {{name}}, {{base}}, {{stem}} and {{ending}} in it"
            ) from None

    def find(self, name_or_url: str) -> Place | None:
        return _first(self.folder, [self.template.format(**_parts(name_or_url))])


class HashedPictures(PictureStore):
    """Pictures whose files are called by a hash of their URL, as OmniCorpus and most downloads of OBELICS do.

        HashedPictures("images", folders=2)     http://x/y.jpg  ->  images/3a/7c/3a7c...e1, or ...e1.jpg and so on

    Args:
        folder: A folder, or an fsspec address of one; there each ending costs a question.
        algorithm: The hash; of the URL in UTF-8, in hexadecimal digits.
        endings: What file names may have behind the hash, in the order in which they are tried.
        folders: Levels of folders named by two digits each.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        algorithm: Literal["sha256", "sha1", "md5"] = "sha256",
        endings: Sequence[str] = ENDINGS,
        folders: int = 0,
    ) -> None:
        self.folder, self.algorithm, self.endings, self.folders = located(folder), algorithm, tuple(endings), folders
        if not self.endings or not 0 <= folders <= 8:
            raise UserError(
                f"endings are {list(endings)} and folders is {folders}; expected one ending and 0 to 8 folders"
            )

    def find(self, name_or_url: str) -> Place | None:
        digits = hashlib.new(self.algorithm, name_or_url.encode(errors="surrogatepass")).hexdigest()
        levels = "".join(f"{digits[2 * level : 2 * level + 2]}/" for level in range(self.folders))
        return _first(self.folder, [f"{levels}{digits}{ending}" for ending in self.endings])


def _parts(name: str) -> dict[str, str]:
    path = PurePosixPath(unquote(_url_path(name)).lstrip("/") if "://" in name else name)
    return {"name": str(path), "base": path.name, "stem": path.stem, "ending": path.suffix}


def _url_path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # brackets that hold no address
        return url.partition("://")[2]


def _first(folder: Path | Remote, names: Sequence[str]) -> Place | None:
    """The first of these files that is there and inside of the folder."""
    for name in names:
        try:
            path = inside(name)
        except ValueError:
            continue
        if isinstance(folder, Path):
            if os.path.isfile(folder / path):  # False, too, for what no file system takes for a name
                return folder / path
        elif _is_there(remote := Remote(f"{folder.address}/{path}")):
            return remote
    return None


def _is_there(remote: Remote) -> bool:
    try:
        return remote.exists()
    except UserError:
        return True
