"""Files from anywhere: patterns, and a server that fails, hangs, lies and goes away."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_pipelines.cache import Cache, cache
from data_pipelines.places import Remote, Stretch, address_of, expand, local
from mm1.errors import UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; the first answers to a path may be faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.asked: Counter[str] = Counter()

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, int):
            return self.send_error(fault)
        data = self.server.files.get(self.path)
        if data is None:
            return self.send_error(404)
        start, stop = 0, len(data)
        if "Range" in self.headers and fault != "no ranges":
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, stop = int(first), int(last) + 1
        if fault == "hang":
            time.sleep(3)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(data[start : start + 5] if fault == "cut" else data[start:stop])

    def log_message(self, *args: object) -> None:
        """Nothing to tell."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture(autouse=True)
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MM1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MM1_FETCH_WAIT_S", "0.01")
    monkeypatch.setenv("MM1_FETCH_STALL_S", "0.5")
    monkeypatch.setenv("MM1_FETCH_TRIES", "3")
    return tmp_path / "cache"


def test_patterns_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ["b/00001.tar", "b/00000.tar", "a/00002.tar", "a/[x]{1}*.tar", "a/deep/er/00003.tar"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    names = {
        "b/*.tar": ["b/00000.tar", "b/00001.tar"],
        "{b,a}/0000*.tar": ["b/00000.tar", "b/00001.tar", "a/00002.tar"],
        "b/{00000..00001}.tar": ["b/00000.tar", "b/00001.tar"],
        "a/**/*3.tar": ["a/deep/er/00003.tar"],
        "a/[x]{1}*.tar": ["a/[x]{1}*.tar"],
        f"file://{tmp_path}/b/00000.tar": [f"{tmp_path}/b/00000.tar"],
    }
    for pattern, found in names.items():
        assert [str(path) for path in expand([pattern])] == found
    assert expand(["b/*.tar", Path("b/00000.tar")]) == [Path("b/00000.tar"), Path("b/00001.tar")]
    for wrong in ["c/*.tar", "b/{00000..00002}.tar", "b/00002.tar", "b/{00000..1"]:
        with pytest.raises(UserError, match=r"files has .*expected"):
            expand([wrong])


def test_patterns_of_addresses() -> None:
    store = fsspec.filesystem("memory")
    for name in ["1/b.tar", "1/a.tar", "2/a.tar", "2/deep/c.tar"]:
        store.pipe(f"/patterns/{name}", b"")
    addresses = [f"memory:///patterns/{name}" for name in ["1/a.tar", "1/b.tar"]]
    assert [file.address for file in expand(["memory://patterns/1/*.tar"]) if isinstance(file, Remote)] == addresses
    assert len(expand(["memory://patterns/**"])) == 4
    assert expand(["memory://patterns/{1,2}/a.tar"]) == [Remote(f"memory://patterns/{n}/a.tar") for n in (1, 2)]
    with pytest.raises(UserError, match="matches no file"):
        expand(["memory://patterns/3/*"])
    with pytest.raises(UserError, match="protocol"):
        expand(["nonsense://patterns/3/*"])


def test_a_file_is_fetched_once_and_knows_where_from(server: Server) -> None:
    server.files["/a/rows.jsonl?key=1"] = b"rows"
    remote = Remote(server.address("/a/rows.jsonl?key=1"))
    path = local(remote)
    assert (path.name, path.read_bytes(), local(remote)) == ("rows.jsonl", b"rows", path)
    assert address_of(path) == remote
    assert address_of(Path("rows.jsonl")) is None
    assert server.asked == {"/a/rows.jsonl?key=1": 1}
    assert remote.beside("b/../c.jpg").address == server.address("/a/c.jpg")
    for outside in ["../c.jpg", "/c.jpg", "b/../../c.jpg"]:
        with pytest.raises(ValueError, match="outside"):
            remote.beside(outside)


@pytest.mark.parametrize("fault", [503, 429, "cut", "hang"])
def test_a_server_that_answers_in_the_end(server: Server, fault: int | str) -> None:
    server.files["/a.tar"] = b"0123456789"
    server.faults["/a.tar"] = [fault, fault]
    assert local(Remote(server.address("/a.tar"))).read_bytes() == b"0123456789"
    assert server.asked["/a.tar"] == 3


def test_a_server_that_does_not(server: Server, small_cache: Path) -> None:
    server.faults = {"/503": [503] * 9, "/403": [403] * 9, "/cut": ["cut"] * 9}
    server.files["/cut"] = b"0123456789"
    for path, tried in {"/503": "3 times", "/403": "once", "/cut": "3 times"}.items():
        with pytest.raises(UserError, match=rf"{path} answered .* was tried {tried}; expected"):
            local(Remote(server.address(path)))
        with pytest.raises(OSError, match=tried):
            Remote(server.address(path)).read_bytes()
    with pytest.raises(UserError, match="which is not there"):
        local(Remote(server.address("/404")))
    with pytest.raises(FileNotFoundError):
        Remote(server.address("/404")).read_bytes()
    assert server.asked["/404"] == 2
    assert not [path for path in small_cache.rglob("*") if path.name.startswith(".part")]


def test_pictures_and_stretches(server: Server) -> None:
    server.files["/p"] = b"0123456789"
    whole, part = Remote(server.address("/p")), Stretch(Remote(server.address("/p")), "p", 3, 4)
    assert (whole.exists(), Remote(server.address("/q")).exists()) == (True, False)
    before = server.asked["/p"]
    server.faults["/p"] = ["no ranges"]
    for _ in range(2):
        assert part.read_bytes() == b"3456"
        assert whole.read_bytes() == b"0123456789"
    assert server.asked["/p"] - before == 3


def test_the_folder_is_bounded_and_what_is_held_stays(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for n in range(20):
        store.pipe(f"/bounded/{n}", bytes([n]) * 1000)
    small = Cache(tmp_path / "small", 6000)
    first = small.file("memory://bounded/0")
    for n in range(1, 20):
        small.file("memory://bounded/0")
        path = small.file(f"memory://bounded/{n}")
        assert path.read_bytes() == bytes([n]) * 1000
        for picture in (n, n - 1):
            assert small.read_bytes(f"memory://bounded/{picture}") == bytes([picture]) * 1000
        kept = [path for path in small.folder.rglob("[0-9]*") if path.is_file() and path.stat().st_size == 1000]
        kept += list(small.folder.glob("pictures/*/*"))
        assert len(set(kept)) <= 7
        assert first.exists()
        time.sleep(0.002)  # a clock tick between uses


def fetch_many(folder: Path, address: str, results: multiprocessing.Queue[tuple[int, int]]) -> None:
    """Fetch and read files through a cache that has room for three of them."""
    one, wrong = Cache(folder, 300_000, wait_s=0.01), 0
    for n in range(30):
        path = one.file(f"{address}/{n % 7}")
        wrong += path.read_bytes() != bytes([n % 7]) * 100_000
    results.put((os.getpid(), wrong))


def test_processes_share_it(server: Server, tmp_path: Path) -> None:
    server.files = {f"/{n}": bytes([n]) * 100_000 for n in range(7)}
    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, int]] = spawn.Queue()
    work = [spawn.Process(target=fetch_many, args=(tmp_path / "shared", server.address(""), results)) for _ in range(2)]
    for process in work:
        process.start()
    assert [results.get(timeout=60)[1] for _ in work] == [0, 0]
    for process in work:
        process.join()
        assert process.exitcode == 0


def test_settings_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("MM1_CACHE_GB", wrong)
        with pytest.raises(UserError, match=f"MM1_CACHE_GB is '{wrong}'"):
            cache()
