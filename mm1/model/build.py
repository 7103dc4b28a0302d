"""From a YAML of class paths to a model, without Lightning: what :func:`mm1.load`, tests and tools build models by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mm1.errors import UserError, sentence
from mm1.model.mm1 import MM1


def build(config: dict[str, Any] | str | Path, device: str = "meta") -> MM1:
    """Build a model whose weights are not filled yet.

    Args:
        config: ``{"class_path": "mm1.model.mm1.MM1", "init_args": {..}}``, or a YAML file that holds it.
        device: Where the empty parameters go; ``meta`` costs no memory, and ``model.to_empty(device=...)`` follows.

    Raises:
        UserError: No such file, no YAML, or a class or key that the model does not know.
    """
    origin = "the model configuration" if isinstance(config, dict) else str(config)
    value = config if isinstance(config, dict) else _read(Path(config))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=MM1, required=True)
    try:
        with torch.device(device):
            return parser.instantiate(parser.parse_object({"model": value})).model
    except ArgumentError as error:
        raise UserError(f"{origin} does not describe a model: {sentence(error)}") from None


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; expected a model configuration such as configs/model/tiny.yaml"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())})") from None
