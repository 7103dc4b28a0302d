"""From a YAML of class paths to a model, without Lightning: what :func:`mm1.load`, tests and tools build models by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mm1.errors import UserError, sentence
from mm1.model.mm1 import MM1

Part = TypeVar("Part")
MOVED = "renormalise"


def build(config: dict[str, Any] | str | Path, device: str = "meta") -> MM1:
    """Build a model whose weights are not filled yet.

    Args:
        config: ``{"class_path": "mm1.model.mm1.MM1", "init_args": {..}}``, or a YAML file that holds it.
        device: Where the empty parameters go; ``meta`` costs no memory, and ``model.to_empty(device=...)`` follows.

    Raises:
        UserError: No such file, no YAML, or a class or key that the model does not know.
    """
    origin = "the model configuration" if isinstance(config, dict) else str(config)
    return build_part(config if isinstance(config, dict) else read(config), MM1, device, origin)


def build_part(value: Any, kind: type[Part], device: str = "meta", origin: str = "the model configuration") -> Part:
    """Build one part of a model, such as its decoder, from its class-path tree; else like :func:`build`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=kind, required=True)
    try:
        with torch.device(device):
            return parser.instantiate(parser.parse_object({"model": modern(value)})).model
    except ArgumentError as error:
        raise UserError(f"{origin} does not describe a model: {sentence(error)}") from None


def resolve(value: Any, kind: type, origin: str = "the model configuration") -> dict[str, Any]:
    """The same class-path tree with every argument in it that a class has, defaults included.

    Raises:
        UserError: A class or key that is not known.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=kind, required=True)
    try:
        return parser.parse_object({"model": modern(value)}).as_dict()["model"]
    except ArgumentError as error:
        raise UserError(f"{origin} does not describe a model: {sentence(error)}") from None


def modern(tree: Any) -> Any:
    """A class-path tree as this version has it: checkpoints keep every argument, also where it has moved since.

    ``renormalise`` was the sparse layer's own before there were routers; now it is its router's.
    """
    if isinstance(tree, list):
        return [modern(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: modern(value) for key, value in tree.items()}
    arguments = tree.get("init_args")
    if tree.get("class_path") == "mm1.model.moe.layer.MoE" and isinstance(arguments, dict) and MOVED in arguments:
        rest = {key: value for key, value in arguments.items() if key != MOVED}
        router = {"class_path": "mm1.model.moe.routers.TopK", "init_args": {MOVED: arguments[MOVED]}}
        tree["init_args"] = {"router": router, **rest}
    return tree


def read(path: str | Path) -> Any:
    """What a YAML file holds.

    Raises:
        UserError: It is not there or no YAML.
    """
    path = Path(path)
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; expected a model configuration such as configs/model/tiny.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())})") from None
