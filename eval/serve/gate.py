"""What reaches Gradio at all: the few addresses this page needs, bodies of bounded size, from the page itself.

Gradio has some sixty addresses, among them ones that fetch what a stranger names or copy files by their path. A list of
what is let through ages better than one of what is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from eval.serve.uploads import PICTURE_MB, PICTURES_AT_ONCE, sweep

API = "/gradio_api"
GETS = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/[\w./-]+"
    rf"|{API}/(heartbeat/\w+|queue/data|upload_progress|startup-events|app_id/?)"
)
POSTS = re.compile(rf"{API}/(queue/join/?|upload|cancel|reset/?)")
FILE = re.compile(rf"{API}/file=(uploads/[0-9a-f]{{64}}/[^/\\]+)")
UPLOADED = re.compile(r"uploads/[0-9a-f]{64}/[^/\\]+")
JSON_BYTES = 500_000  # text, settings and names of pictures
UPLOAD_BYTES = PICTURE_MB * PICTURES_AT_ONCE * 10**6
KEPT_BYTES = 10 * UPLOAD_BYTES  # of all visitors together
KEPT_S = 1800.0
UPLOADS_AT_ONCE = 8
LOCAL = ("localhost", "127.0.0.1", "[::1]")
# Gradio's own page is made with 'unsafe-eval' and 'unsafe-inline'; connect-src is what keeps it from calling out.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that is not let through, with its status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gate:
    """ASGI middleware before Gradio.

    Args:
        app: Gradio.
        folder: Where uploads lie.
        local: Whether the page is only for this machine: then it answers to local names alone, so that no foreign
            page reaches it by a name of its own that leads here (DNS rebinding).
    """

    def __init__(self, app: Any, folder: Path, local: bool) -> None:
        self.app, self.folder, self.local = app, folder, local
        self.uploading = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it with one sentence."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # a websocket: this page has none
        begun = False

        async def out(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [
                    *((name, value) for name, value in message["headers"] if name.lower() != b"server"),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        upload = scope["method"] == "POST" and scope["path"].startswith(f"{API}/upload")
        self.uploading += upload
        try:
            await self.app(scope, await self._checked(scope, receive), out)
        except Refused as refused:
            if begun:
                raise
            await _answer(out, refused.status, str(refused))
        finally:
            self.uploading -= upload

    async def _checked(self, scope: Any, receive: Any) -> Any:
        """How to receive a request's body.

        Raises:
            Refused: It is not let through.
        """
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        host = headers.get("host", "")
        if self.local and re.sub(r":\d+$", "", host) not in LOCAL:
            raise Refused(403, "this page is for its own machine; start it with --host to let others in")
        origin = headers.get("origin")
        if origin is not None and origin.split("//")[-1] != host:
            raise Refused(403, "another page asks; expected this one")
        if method in ("GET", "HEAD"):
            if ".." not in path and (GETS.fullmatch(path) or FILE.fullmatch(path)):
                return receive
            raise Refused(404, "nothing is here")
        if method != "POST" or not POSTS.fullmatch(path):
            raise Refused(404, "nothing is here")
        if path.startswith(f"{API}/upload"):
            if self.uploading > UPLOADS_AT_ONCE or sweep(self.folder, KEPT_S) > KEPT_BYTES:
                raise Refused(413, "the server is sent many pictures already; try again in some minutes")
            return _bounded(receive, headers, UPLOAD_BYTES)
        body = await _whole(_bounded(receive, headers, JSON_BYTES))
        _check_files(body)
        return _replay(body, receive)


def _bounded(receive: Any, headers: dict[str, str], most_bytes: int) -> Any:
    sentence = f"more than {most_bytes / 10**6:g} MB at once; expected less"
    claimed = headers.get("content-length", "0")
    if not claimed.isdecimal() or int(claimed) > most_bytes:
        raise Refused(413, sentence)
    read_bytes = 0

    async def bounded() -> Any:
        nonlocal read_bytes
        message = await receive()
        read_bytes += len(message.get("body", b""))
        if read_bytes > most_bytes:
            raise Refused(413, sentence)
        return message

    return bounded


async def _whole(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request broke off")
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Any) -> Any:
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _check_files(body: bytes) -> None:
    """Refuse whatever names a file that was not uploaded: Gradio would copy it, or fetch it from another server."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "no JSON; expected what this page sends") from None
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if "path" in value and not (isinstance(path, str) and UPLOADED.fullmatch(path) and ".." not in path):
                raise Refused(400, "a file is named that was not uploaded here; expected one chosen on this page")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


async def _answer(send: Any, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json")]
    body = json.dumps({"detail": sentence}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
