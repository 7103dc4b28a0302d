"""Starts the page: loopback unless told otherwise, uploads in a folder that goes with the process, no calls out."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import mm1
from eval.serve.speaker import Speaker, label_of
from eval.serve.uploads import PICTURE_MB, sweep
from mm1.errors import UserError
from mm1.infer.assistant import Dtype

UPLOADS = "uploads"
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # relative to the working folder, so that no path of this machine stands in any address of the page
    "GRADIO_TEMP_DIR": UPLOADS,
    "GRADIO_EXAMPLES_CACHE": UPLOADS,
}


def serve(
    checkpoints: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "cpu",
    dtype: Dtype | None = None,
    max_positions: int = 4096,
) -> None:
    """Serve the page until interrupted.

    Args:
        checkpoints: One, or two that answer side by side.
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        device: Where the models run.
        dtype: Type of their weights; None keeps that of the files.
        max_positions: The context, positions a prompt and its answer may take together.

    Raises:
        UserError: Gradio is not installed, a checkpoint cannot be opened, the address is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("mm1-eval serve needs gradio, which is not installed; expected pip install 'mm1[serve]'")
    if not 1 <= len(checkpoints) <= 2:
        raise UserError(f"{len(checkpoints)} checkpoints; expected one, or two to compare")
    listening = _listen(host, port)
    speakers = [_speaker(path, device, dtype, max_positions) for path in checkpoints]
    local = host in ("127.0.0.1", "localhost", "::1")
    if not local:
        print(f"warning: {host} lets others in, and nobody is asked for a password", file=sys.stderr)
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="mm1-serve-") as folder:
        os.chdir(folder)
        try:
            _run(_labelled(speakers), Path(folder), listening, local)
        finally:
            os.chdir(here)


def _speaker(path: str, device: str, dtype: Dtype | None, max_positions: int) -> Speaker:
    print(f"loading {path}", file=sys.stderr)
    assistant = mm1.load(path, device=device, dtype=dtype)
    assistant.engine.max_positions = max_positions
    return Speaker(assistant, label_of(Path(path)))


def _labelled(speakers: list[Speaker]) -> list[Speaker]:
    if len({speaker.label for speaker in speakers}) < len(speakers):
        for number, speaker in enumerate(speakers, start=1):
            speaker.label = f"{speaker.label} ({number})"
    return speakers


def _listen(host: str, port: int) -> socket.socket:
    """Taken before anything is loaded: a port that is in use is said at once."""
    if not 0 <= port <= 65535:  # the system would take what is left of a larger one
        raise UserError(f"port is {port}; expected 0 to 65535 (--port)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port} cannot be listened at ({why}); expected a free port (--port, --host)") from None
    return listening


def _run(speakers: list[Speaker], folder: Path, listening: socket.socket, local: bool) -> None:
    os.environ.update(QUIET)
    (folder / UPLOADS).mkdir()
    import fastapi  # these read the environment when they are imported, and take seconds
    import gradio
    import uvicorn

    from eval.serve.gate import KEPT_S, Gate
    from eval.serve.page import Page, styled

    @contextlib.asynccontextmanager
    async def sweeping(_: fastapi.FastAPI) -> AsyncIterator[None]:
        async def forever() -> None:
            while True:
                await asyncio.sleep(60)
                sweep(folder / UPLOADS, KEPT_S)

        task = asyncio.create_task(forever())
        yield
        task.cancel()

    blocks = Page(speakers, folder / UPLOADS).blocks()
    blocks.state_session_capacity = 32  # visitors whose conversations are kept
    outer = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=sweeping)
    app = gradio.mount_gradio_app(
        outer,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=False,
        allowed_paths=[],
        max_file_size=PICTURE_MB * 10**6,
        **styled(blocks),
    )
    blocks.has_launched = True  # Gradio checks the paths of files only then, and mounting does not say so
    gate = Gate(app, folder / UPLOADS, local)
    address, port = listening.getsockname()[:2]
    print(f"http://{f'[{address}]' if ':' in address else address}:{port}", flush=True)
    config = uvicorn.Config(
        gate,
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
        proxy_headers=False,
        limit_concurrency=256,
    )
    uvicorn.Server(config).run(sockets=[listening])
