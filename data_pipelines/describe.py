"""A manifest as a small table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("documents", "pieces", "cuts", "text_tokens", "images")


def describe(manifest: dict[str, Any]) -> str:
    """Counts by stream and split, what each step let through, then what was left out, by reason with examples."""
    lines = [f"{'stream':<12} {'split':<6}" + "".join(f"{name.replace('_', ' '):>12}" for name in COLUMNS)]
    left_out: list[str] = []
    steps: list[str] = []
    for stream, written in manifest["streams"].items():
        for split in ("train", "val"):
            lines.append(f"{stream:<12} {split:<6}" + "".join(f"{written[split][name]:>12,}" for name in COLUMNS))
        left_out += _left_out(stream, written["dropped"])
        steps += _steps(stream, written.get("steps", ()))
    scored = manifest["scored"]
    left_out += _left_out("scored", scored["unreadable"])
    lines.append(
        f"rows of {manifest['row_tokens']} positions and at most {manifest['images_per_row']} pictures; a picture is "
        f"{manifest['tokens_per_image']} positions and {_stored(manifest)}; {scored['pictures']} scored pictures"
    )
    lines += ["steps, documents in and out:", *steps] if steps else []
    return "\n".join([*lines, *(["left out:", *left_out] if left_out else ["nothing was left out"])])


def _steps(where: str, steps: Sequence[dict[str, Any]]) -> list[str]:
    return [f"  {where:<12} {step['in']:>12,} {step['out']:>12,}  {step['step']}" for step in steps]


def _left_out(where: str, dropped: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"  {where:<12} {found['count']:>8,}  {reason}, such as {', '.join(found['examples'][:2])}"
        for reason, found in sorted(dropped.items(), key=lambda entry: -entry[1]["count"])
    ]


def _stored(manifest: dict[str, Any]) -> str:
    if manifest["keep_pictures"]:
        return "stored as it came"
    return f"stored at {manifest['image_px']} px ({manifest['resize']})"
