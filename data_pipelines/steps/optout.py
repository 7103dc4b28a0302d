"""Leaving out what its owners asked to leave out: lists of addresses, of sites and of picture files."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy

from data_pipelines.places import Remote
from data_pipelines.sources.base import Draft, Place, Rejection
from data_pipelines.steps.base import EachPicture, Pictures
from data_pipelines.steps.settings import lines, there
from mm1.errors import UserError

DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}  # by the letters of their hexadecimal spelling


class OptOut(EachPicture):
    """Refuses documents from listed addresses and sites, and leaves listed pictures out.

    A page goes with its own address. A picture's address is known where ``about`` or its place has it; pictures that
    were downloaded under another name are found by ``hashes``.

    A list is read once in each process and takes 8 bytes an entry there. Robots files and ``noai`` marks are not known
    here any more: whoever downloads has to heed them.

    Args:
        urls: Files with an address a line; a ``*.json`` file is an answer of Spawning's API, of which those with
            ``optOut`` count. http and https are the same, and so are capitals in a site's name.
        domains: Files with a site a line; sites below it are meant as well.
        hashes: Files with a picture file's MD5, SHA-1 or SHA-256 a line.
        fields: Where documents have their addresses, each one or a list: names in ``Draft.about``.
    """

    def __init__(
        self,
        *,
        urls: Sequence[Path] = (),
        domains: Sequence[Path] = (),
        hashes: Sequence[Path] = (),
        fields: tuple[str, ...] = ("url",),
    ) -> None:
        self.urls, self.domains = there("urls", urls), there("domains", domains)
        self.hashes, self.fields = there("hashes", hashes), fields
        if not (urls or domains or hashes):
            raise UserError("OptOut has no list; expected files at urls, domains or hashes")

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        for field in self.fields:
            given = draft.about.get(field)
            for url in given if isinstance(given, list | tuple) else [given]:
                if isinstance(url, str) and (reason := self._listed(url)):
                    return Rejection(draft.id, reason, fault=False)
        return super().__call__(draft, pictures)

    def refuse(self, place: Place, pictures: Pictures) -> str:
        if isinstance(place, Remote) and (reason := self._listed(place.address)):
            return reason
        if not self.hashes:
            return ""
        known, kinds = _digests(self.hashes)
        names = [hashlib.new(kind, pictures.data(place)).hexdigest() for kind in kinds]
        return "picture opted out" if any(_number(name) in known for name in names) else ""

    def _listed(self, url: str) -> str:
        if self.urls and _number(_spelled(url)) in _urls(self.urls):
            return "address opted out"
        if self.domains:
            known, site = _domains(self.domains), _site(url)
            while site:
                if _number(site) in known:
                    return "site opted out"
                site = site.partition(".")[2]
        return ""


class _Numbers:
    """A set of numbers in one sorted array; by chance 10^8 of them hold one in 2 * 10^11 others."""

    def __init__(self, values: Iterable[int]) -> None:
        self.sorted = numpy.unique(numpy.fromiter(values, dtype=numpy.uint64))

    def __contains__(self, value: int) -> bool:
        at = numpy.searchsorted(self.sorted, numpy.uint64(value))
        return bool(at < len(self.sorted) and self.sorted[at] == value)


def _number(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@functools.cache
def _urls(files: tuple[Path, ...]) -> _Numbers:
    return _Numbers(_number(_spelled(url)) for path in files for url in _addresses(path))


@functools.cache
def _domains(files: tuple[Path, ...]) -> _Numbers:
    return _Numbers(_number(_site(entry)) for path in files for entry in lines(path))


@functools.cache
def _digests(files: tuple[Path, ...]) -> tuple[_Numbers, list[str]]:
    """The digests, and which kinds are among them."""
    names = [name.lower() for path in files for name in lines(path)]
    if odd := next((name for name in names if len(name) not in DIGESTS), None):
        raise UserError(f"hashes holds {odd!r}; expected an MD5, SHA-1 or SHA-256 in hexadecimal digits a line")
    return _Numbers(map(_number, names)), sorted({DIGESTS[len(name)] for name in names})


def _addresses(path: Path) -> list[str]:
    if path.suffix != ".json":
        return lines(path)
    try:
        return [row["url"] for row in _answer(path)["urls"] if row["optOut"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f'{path} is no list of opt-outs; expected {{"urls": [{{"url", "optOut"}}]}} at urls') from None


def _answer(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _spelled(url: str) -> str:
    """An address as lists and documents agree on it: without scheme and fragment, the site in small letters."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return url.strip()
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    return f"{parts.netloc.lower()}{rest}" if parts.netloc else rest


def _site(url: str) -> str:
    """The site's name; a list may give it bare or as an address."""
    try:
        return (urlsplit(url if "//" in url else f"//{url}").hostname or "").strip(".")
    except ValueError:
        return ""
