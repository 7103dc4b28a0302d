"""What a browser may send: everything else gets one sentence, without a path of the server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from eval.serve import gate as gates
from eval.serve import uploads
from eval.serve.gate import Gate
from eval.serve.uploads import PICTURES_IN_ALL, picture_of, sweep, take, text_of
from mm1.errors import UserError
from tests.conftest import picture

SHA = "ab" * 32


def bomb() -> bytes:
    """A PNG of some 100 bytes that claims a picture of 10 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def postscript() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(file, "EPS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "x.png is empty"),
        (b"not a picture", "x.png is no picture that can be read"),
        (picture("red", 1)[:60], "x.png (is no picture that can be read|cannot be read)"),
        (bomb(), "x.png claims more than 64 megapixels"),
        (postscript(), "x.png is no picture that can be read"),  # PIL would start Ghostscript
    ],
)
def test_what_is_no_picture_is_named(data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        picture_of(data, "x.png")


def test_a_picture_keeps_its_bytes_and_gets_a_thumbnail() -> None:
    made = picture_of(picture("red", 1), "x.png")
    assert made.data == picture("red", 1)
    assert made.thumbnail.startswith("data:image/jpeg;base64,")


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / SHA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_only_uploads_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    inside, outside = put(folder, "a.png", picture("red", 1)), tmp_path / "secret.png"
    outside.write_bytes(picture("red", 1))
    (folder / SHA / "link.png").symlink_to(outside)
    assert take([inside], folder)[0].name == "a.png"
    for path in (outside, folder / SHA / "link.png", folder / SHA / ".." / ".." / "secret.png"):
        with pytest.raises(UserError, match="not uploaded here") as refused:
            take([path], folder)
        assert str(tmp_path) not in str(refused.value)


def test_uploads_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "a.png", picture("red", 1))
    [shown] = take([path], tmp_path)
    with pytest.raises(UserError, match="17 pictures at once; expected at most 16"):
        take([path] * 17, tmp_path)
    with pytest.raises(UserError, match=f"expected at most {PICTURES_IN_ALL}"):
        take([path], tmp_path, held=[shown] * PICTURES_IN_ALL)
    with pytest.raises(UserError, match="pictures of 120 MB with those of the conversation"):
        take([path], tmp_path, held=[replace(shown, data=bytes(40 * 10**6))] * 3)
    monkeypatch.setattr(uploads, "PICTURE_MB", 1e-5)
    with pytest.raises(UserError, match=r"a.png has 0.0 MB; expected at most"):
        take([path], tmp_path)
    with pytest.raises(UserError, match="a text of 20,001 characters"):
        text_of("x" * 20_001)


def test_old_uploads_go(tmp_path: Path) -> None:
    old, new = put(tmp_path, "old.png", b"12"), put(tmp_path, "new.png", b"345")
    os.utime(old, (time.time() - 100,) * 2)
    assert sweep(tmp_path, older_s=50) == 3
    assert new.exists()
    assert not old.exists()
    with pytest.raises(UserError, match=r"old\.png is no longer there"):
        take([old], tmp_path)


def send(gate: Gate, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request, answered by the gate or by what stands behind it (200, the body it read)."""
    given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def out(message: dict[str, Any]) -> None:
        sent.append(message)

    fields = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": fields}
    asyncio.run(gate(scope, receive, out))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


async def behind(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"server", b"x")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(behind, tmp_path, local=True)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/assets/index-a_b.js",
        "/theme.css",
        "/gradio_api/queue/data",
        f"/gradio_api/file=uploads/{SHA}/a b.png",
    ],
)
def test_what_the_page_needs_is_let_through(gate: Gate, path: str) -> None:
    status, headers, _ = send(gate, "GET", path)
    assert status == 200
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=uploads/../../etc/passwd",
        f"/gradio_api/file=uploads/{SHA}/..",
        f"/gradio_api/file=uploads/{SHA}/../../x",
        "/gradio_api/file=http://example.com/a.png",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/custom_component/1/server/x/y.py",
        "/gradio_api/vibe-code/",
        "/monitoring",
        "/docs",
        "/assets/../x",
    ],
)
def test_nothing_else_is_here(gate: Gate, path: str) -> None:
    status, _, body = send(gate, "GET", path)
    assert (status, json.loads(body)) == (404, {"detail": "nothing is here"})
    assert send(gate, "POST", path)[0] == 404


def test_another_host_or_page_is_refused(gate: Gate, tmp_path: Path) -> None:
    assert send(gate, "GET", "/", host="evil.example:7860")[0] == 403
    assert send(gate, "GET", "/", host="localhost:7860")[0] == 200
    assert send(Gate(behind, tmp_path, local=False), "GET", "/", host="box.example:7860")[0] == 200
    assert send(gate, "POST", "/gradio_api/queue/join", b"{}", origin="http://evil.example")[0] == 403
    assert send(gate, "POST", "/gradio_api/queue/join", b"{}", origin="http://127.0.0.1:7860")[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"uploads/{SHA}/a.png", 200),
        ("/etc/passwd", 400),
        (f"uploads/{SHA}/../../../etc/passwd", 400),
        ("https://example.com/a.png", 400),
        (None, 400),
        (["uploads"], 400),
    ],
)
def test_a_question_names_uploads_alone(gate: Gate, path: object, status: int) -> None:
    body = json.dumps(
        {"data": [{"text": "", "files": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}]}
    ).encode()
    found, _, echoed = send(gate, "POST", "/gradio_api/queue/join", body)
    assert found == status
    assert status != 200 or echoed == body


def test_bodies_are_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    large = json.dumps("x" * gates.JSON_BYTES).encode()
    assert send(gate, "POST", "/gradio_api/queue/join", large)[0] == 413
    assert send(gate, "POST", "/gradio_api/queue/join", b"{}", content_length="999999999")[0] == 413
    assert send(gate, "POST", "/gradio_api/queue/join", b"no json")[0] == 400
    assert send(gate, "POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400
    assert send(gate, "POST", "/gradio_api/upload", content_length=str(gates.UPLOAD_BYTES + 1))[0] == 413
    monkeypatch.setattr(gates, "UPLOAD_BYTES", 3)
    assert send(gate, "POST", "/gradio_api/upload", b"1234")[0] == 413  # whatever it claimed to be
    monkeypatch.setattr(gates, "KEPT_BYTES", 1)
    put(gate.folder, "a.png", b"12")
    assert send(gate, "POST", "/gradio_api/upload", b"1")[0] == 413
    monkeypatch.undo()
    gate.uploading = gates.UPLOADS_AT_ONCE
    assert send(gate, "POST", "/gradio_api/upload", b"1")[0] == 413
    assert gate.uploading == gates.UPLOADS_AT_ONCE  # counted down again
