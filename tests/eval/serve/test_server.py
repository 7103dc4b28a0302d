"""What starts the page refuses before anything is loaded."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from eval.serve.server import serve
from mm1.errors import UserError


def test_gradio_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gradio, which is not installed; expected pip install 'mm1\[serve\]'"):
        serve(["no.ckpt"])


def test_what_cannot_be_served_is_said_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="3 checkpoints; expected one, or two"):
        serve(["a.ckpt", "b.ckpt", "c.ckpt"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened at"):
            serve(["no.ckpt"], port=port)
    with pytest.raises(UserError, match="port is 99999; expected 0 to 65535"):
        serve(["no.ckpt"], port=99999)
