"""The command ``mm1-eval serve``: its options, and what they start."""

from __future__ import annotations

import argparse
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from eval.serve.server import serve
from mm1.infer.assistant import Dtype


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    serving = ArgumentParser(description="A page to talk to a checkpoint, or to two side by side.")
    serving.add_argument("checkpoints", type=str, nargs=argparse.ONE_OR_MORE, help="one, or two: *.ckpt or folders")
    serving.add_argument("--device", type=str, default="cpu")
    serving.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the file's")
    serving.add_argument("--max_positions", type=int, default=4096, help="the context, prompt and answer together")
    serving.add_argument("--host", type=str, default="127.0.0.1", help="another one lets others in")
    serving.add_argument("--port", type=int, default=7860, help="0: any that is free")
    commands.add_subcommand("serve", serving, help="a page to talk to a model")


def run(arguments: Namespace) -> None:
    """Serve the page."""
    serve(
        arguments.checkpoints,
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        dtype=arguments.dtype,
        max_positions=arguments.max_positions,
    )
