"""Files from elsewhere, kept on this machine in a folder of bounded size that any number of processes share.

    files/<hash of the address>/<name>     a file that a source reads; ``address`` beside it says where it came from
    pictures/<2 hex>/<hash>                a single picture, or a stretch of a tar
    locks/<2 hex>                          held while a file is fetched, so that two processes do not fetch it twice

What is fetched appears whole or not at all. What was used least recently goes first, but never a file that a process
has among its last ``HELD``: their descriptors carry a shared lock, which the system takes back when the process dies.
What an address held when it was fetched is taken to be what it holds: empty the folder where that is not so.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from mm1.errors import UserError

T = TypeVar("T")

HELD = 4  # files of this process that no other removes
FULL = (errno.ENOSPC, errno.EDQUOT)  # this machine's fault, not the address's
WORTH_ANOTHER_TRY = (408, 425, 429)  # of the answers 400 to 499, which otherwise stay the same
UNFINISHED = ".part-"
UNFINISHED_S = 86_400  # an unfinished file this old has no owner any more


class Cache:
    """A bounded folder of fetched files.

    Args:
        folder: Where it is.
        most_bytes: About how large it may get; each process may pass it by a 32nd part before it looks.
        tries: How often an address is asked before it is given up.
        stall_s: How long an address may send nothing before it is asked again.
        wait_s: How long to wait before the second try; twice as long before each further one.
    """

    def __init__(self, folder: Path, most_bytes: int, tries: int = 5, stall_s: float = 60, wait_s: float = 1) -> None:
        self.folder, self.most_bytes = folder.absolute(), most_bytes
        self.tries, self.stall_s, self.wait_s = tries, stall_s, wait_s
        self._held: dict[Path, int] = {}
        self._unswept_bytes = most_bytes  # so that the first fetch looks how full the folder is

    def file(self, address: str) -> Path:
        """The file on this machine.

        Raises:
            UserError: It is not there, or the address stopped answering.
        """
        path = self.folder / "files" / _digest(address) / _name(address)
        while not self._hold(path):
            with self.lock(path.parent.name[:2]):
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    (path.parent / "address").write_text(address)
                    self._fetch(address, path, _download)
                    os.utime(path, (0, 0))  # fetched again it is the same file, and stamps of it stay
        os.utime(path.parent / "address")
        self._sweep_if_due()
        return path

    def read_bytes(self, address: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of a picture's file, or a stretch of a file.

        Raises:
            FileNotFoundError: It is not there.
            UserError: The address stopped answering.
        """
        digest = _digest(address if start is None else f"{address} {start} {stop}")
        path = self.folder / "pictures" / digest[:2] / digest
        while True:
            try:
                data = path.read_bytes()
                os.utime(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(address, path, _download if start is None else _stretch(start, stop or 0))
            else:
                self._sweep_if_due()
                return data

    def address_of(self, path: Path) -> str | None:
        """Where a file of this folder was fetched from."""
        if path.parent.parent != self.folder / "files":
            return None
        return (path.parent / "address").read_text()

    def ask(self, address: str, question: Callable[[Any, str], T], growing: Path | None = None) -> T:
        """``question(file system, path)``, asked again until there is an answer.

        Args:
            address: Whose file system and path.
            question: What to ask; it is left alone in its thread where it hangs.
            growing: A file that grows while the answer is coming; else the answer has to come within ``stall_s``.

        Raises:
            FileNotFoundError: The answer is that nothing is there.
            UserError: There was none.
        """
        system, path = file_system(address)
        for tried in range(1, self.tries + 1):
            try:
                return _watched(lambda: question(system, path), growing, self.stall_s)
            except FileNotFoundError:
                raise
            except Exception as error:  # every file system has its own; whatever it is, another try may help
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                answer = f"{type(error).__name__}: {error}".strip(": ")
                status = getattr(error, "status", 0)
                if tried == self.tries or (400 <= status < 500 and status not in WORTH_ANOTHER_TRY):
                    break
                time.sleep(self.wait_s * 2 ** (tried - 1))
        times = "once" if tried == 1 else f"{tried} times"
        raise UserError(f"{address} answered {answer!r} and was tried {times}; expected an address that can be read")

    def _fetch(self, address: str, path: Path, download: Callable[[Any, str, Path], None]) -> None:
        part = path.with_name(f"{UNFINISHED}{os.getpid()}-{threading.get_ident()}-{path.name[:40]}")
        try:
            self.ask(address, lambda system, name: download(system, name, part), part)
            self._unswept_bytes += part.stat().st_size
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _hold(self, path: Path) -> bool:
        """Keep a file from being removed, if it is there."""
        held = self._held.pop(path, None)
        if held is None:
            with suppress(FileNotFoundError):
                held = os.open(path, os.O_RDONLY)
                fcntl.flock(held, fcntl.LOCK_SH)
        if held is None:
            return False
        if not os.fstat(held).st_nlink:  # removed before it was locked
            os.close(held)
            return False
        self._held[path] = held
        if len(self._held) > HELD:
            os.close(self._held.pop(next(iter(self._held))))
        return True

    @contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Hold a lock of the folder.

        Raises:
            BlockingIOError: Another has it, and this one does not wait.
        """
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        with (self.folder / "locks" / name).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def _sweep_if_due(self) -> None:
        if self._unswept_bytes > self.most_bytes / 32:
            self._unswept_bytes = 0
            with suppress(BlockingIOError), self.lock("sweep", wait=False):
                self._sweep()

    def _sweep(self) -> None:
        """Remove what was used least recently until there is room again."""
        found = []
        for path in [*self.folder.glob("files/*/*"), *self.folder.glob("pictures/*/*")]:
            with suppress(FileNotFoundError):  # its owner was quicker
                size = path.stat().st_size
                in_files = path.parent.parent.name == "files"
                if path.name.startswith(UNFINISHED):
                    if time.time() - path.stat().st_mtime > UNFINISHED_S:
                        path.unlink()
                elif not in_files or path.name != "address":
                    used = path.with_name("address") if in_files else path
                    found.append((used.stat().st_mtime, path, size))
        total = sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if total <= self.most_bytes:
                return
            if self._remove(path):
                total -= size

    def _remove(self, path: Path) -> bool:
        """Remove a file that no process holds."""
        if path.parent.parent.name == "pictures":
            path.unlink(missing_ok=True)
            return True
        with suppress(OSError), self.lock(path.parent.name[:2], wait=False), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            path.with_name("address").unlink()
            path.parent.rmdir()
        return not path.exists()


def cache() -> Cache:
    """The cache that the environment names.

    That is ``MM1_CACHE`` (~/.cache/mm1), ``MM1_CACHE_GB`` (50), ``MM1_FETCH_TRIES`` (5), ``MM1_FETCH_STALL_S`` (60) and
    ``MM1_FETCH_WAIT_S`` (1).

    Raises:
        UserError: One of them is no number, or too small.
    """
    folder = os.environ.get("MM1_CACHE") or os.path.expanduser("~/.cache/mm1")
    numbers = {"MM1_CACHE_GB": 50.0, "MM1_FETCH_TRIES": 5.0, "MM1_FETCH_STALL_S": 60.0, "MM1_FETCH_WAIT_S": 1.0}
    return _cache(folder, *(_number(name, usual) for name, usual in numbers.items()))


@lru_cache
def _cache(folder: str, most_gb: float, tries: float, stall_s: float, wait_s: float) -> Cache:
    return Cache(Path(folder), int(most_gb * 1e9), max(int(tries), 1), stall_s, wait_s)


def _number(name: str, usual: float) -> float:
    try:
        if (value := float(os.environ.get(name) or usual)) > 0:
            return value
    except ValueError:
        pass
    raise UserError(f"{name} is {os.environ[name]!r}; expected a number above 0 in that environment variable")


def file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path there.

    Raises:
        UserError: No such protocol, or its package is not installed.
    """
    try:
        system, path = fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be reached ({error}); expected a protocol that fsspec knows") from None
    return system, path


def _watched(work: Callable[[], T], growing: Path | None, stall_s: float) -> T:
    """What ``work`` gives, done in a thread of its own so that one that hangs can be left behind.

    Raises:
        TimeoutError: Nothing came for ``stall_s``.
    """
    given: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            given.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    size, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(min(stall_s / 4, 1))
        now = growing.stat().st_size if growing and growing.exists() else -1
        if now != size:
            size, since = now, time.monotonic()
        elif thread.is_alive() and time.monotonic() - since > stall_s:
            raise TimeoutError(f"nothing for {stall_s:g} s")
    if raised:
        raise raised[0]
    return given[0]


def _download(system: Any, path: str, to: Path) -> None:
    system.get_file(path, str(to))


def _stretch(start: int, stop: int) -> Callable[[Any, str, Path], None]:
    def download(system: Any, path: str, to: Path) -> None:
        data = system.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:  # a server that knows no ranges sends everything
            raise OSError(f"{len(data)} bytes instead of the {stop - start} asked for")
        to.write_bytes(data)

    return download


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:40]


def _name(address: str) -> str:
    """A file name for an address that keeps its ending, by which readers know kinds."""
    name = address.partition("::")[0].rstrip("/").rpartition("/")[2].partition("?")[0]
    return name.encode(errors="replace")[-120:].decode(errors="replace").lstrip(".") or "file"
