"""``mm1-eval lm`` and ``mm1-eval lmms``: a checkpoint of ours handed to a harness with all its own options."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from mm1.errors import UserError

# The text-only skills that MM1 calls TextCore, by lm-eval's names. The paper names ARC, PIQA and LAMBADA "and others";
# the rest are those of OpenELM's and MM1's family of reports.
TEXTCORE = (
    "arc_easy",
    "arc_challenge",
    "piqa",
    "lambada_openai",
    "winogrande",
    "hellaswag",
    "sciq",
    "triviaqa",
    "webqs",
)
PACKAGES = {"lm": "lm_eval", "lmms": "lmms_eval"}
ABOUT = {
    "lm": "Run lm-evaluation-harness on a checkpoint. --tasks textcore stands for the tasks of MM1's TextCore.",
    "lmms": "Run lmms-eval on a checkpoint.",
}


def run(harness: str, words: Sequence[str]) -> None:
    """Hand ``CHECKPOINT [our options] [the harness's options]`` to a harness, in this process.

    Args:
        harness: ``lm`` or ``lmms``.
        words: The command line behind ``mm1-eval lm`` or ``mm1-eval lmms``.

    Raises:
        UserError: The harness is not installed, there is no such checkpoint, or its path cannot be passed on.
    """
    ours, theirs = _parser(harness).parse_known_args(list(words))
    if importlib.util.find_spec(PACKAGES[harness]) is None:
        raise UserError(
            f"{PACKAGES[harness]} is not installed; mm1-eval {harness} expects it: pip install 'mm1[{harness}]'"
        )
    if not Path(ours.checkpoint).exists():
        raise UserError(f"{ours.checkpoint} does not exist; expected a checkpoint of mm1-train, or an exported folder")
    if "," in ours.checkpoint or "=" in ours.checkpoint:
        raise UserError(f"{ours.checkpoint} has a comma or an equals sign, which the harness splits at; rename it")
    given = {"pretrained": ours.checkpoint, "dtype": ours.dtype, "max_positions": ours.max_positions}
    if harness == "lmms":
        given |= {"template": ours.template}
    told = ",".join(f"{name}={value}" for name, value in given.items() if value is not None)
    _hand_over(harness, ["--model", "mm1", "--model_args", told, "--device", ours.device, *_tasks(ours.tasks), *theirs])


def _parser(harness: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"mm1-eval {harness}",
        description=f"{ABOUT[harness]} All other options are the harness's own, such as --num_fewshot, --limit, "
        f"--include_path and --output_path.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a *.ckpt of mm1-train, or an exported folder")
    parser.add_argument("--tasks", required=True, help="names of the harness's tasks, with commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, choices=("bfloat16", "float32"), help="default: the file's")
    parser.add_argument("--max_positions", type=int, default=4096, help="the context")
    if harness == "lmms":
        parser.add_argument("--template", default="chat", choices=("chat", "none"), help="none: text as it is")
    return parser


def _tasks(given: str) -> list[str]:
    names = [name for task in given.split(",") for name in (TEXTCORE if task == "textcore" else (task,))]
    return ["--tasks", ",".join(names)]


def _hand_over(harness: str, words: list[str]) -> None:
    """Register our class by the harness's own registry, then be its command line."""
    before, sys.argv = sys.argv, ["lm-eval", "run", *words] if harness == "lm" else ["lmms-eval", *words]
    try:
        if harness == "lm":
            importlib.import_module("eval.adapters.lm")
            importlib.import_module("lm_eval.__main__").cli_evaluate()
        else:
            adapter = importlib.import_module("eval.adapters.lmms")
            models = importlib.import_module("lmms_eval.models")
            models.MODEL_REGISTRY_V2.register_manifest(adapter.manifest(), overwrite=True)
            importlib.import_module("lmms_eval.__main__").cli_evaluate()
    finally:
        sys.argv = before
