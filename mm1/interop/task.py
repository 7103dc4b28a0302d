"""One task's part of a model that routes by task, as a plain dense model that says the same (Kudugunta et al. 2021).

A task visits the same k experts with every token, so they are one SwiGLU of k times their inner width: gate, up and
down matrices side by side, the shares folded into the latter. A decoder's layers have one inner width, so narrower ones
are filled up with zeros, which answer nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn.functional import pad

from mm1.errors import UserError
from mm1.interop.whole import Whole, read_whole, write_anew
from mm1.model.ffn import SwiGLU
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import MoE
from mm1.model.moe.routers import ByTask
from mm1.model.moe.routing import Places

Matrices = tuple[Tensor, Tensor, Tensor]  # gate [F, D], up [F, D], down [D, F]


def cut_task(model: Path, *, task: str, out: Path) -> Path:
    """Cut one task's sub-network out of a model whose mixtures route by task, as a dense model.

    Args:
        model: A folder that mm1-convert wrote, or a ``*.ckpt`` of mm1-train.
        task: Name of the task, as the router's ``tasks`` have it.
        out: Folder to write; must not exist.

    Raises:
        UserError: The model cannot be read, routes otherwise, knows no such task, or has mixtures that no dense layer
            equals.
    """
    whole = read_whole(model)
    filled = whole.found.model()
    if all(isinstance(layer.ffn, SwiGLU) for layer in filled.decoder.layers):
        raise UserError(f"{model} is dense already; expected mixtures with the router ByTask (model)")
    layers = [_matrices(layer.ffn, task, str(model)) for layer in filled.decoder.layers]
    width = max(gate.shape[0] for gate, _, _ in layers)
    tensors = _tensors(filled, [_widened(matrices, width) for matrices in layers])
    return write_anew(whole, out, _dense_config(whole, width), tensors)


def _dense_config(whole: Whole, ffn_width: int) -> str:
    config = yaml.safe_load(whole.found.config)
    decoder = config["init_args"]["decoder"]["init_args"]
    for name in ("moe", "moe_every", "dense_layers"):
        decoder.pop(name, None)
    decoder["ffn_width"] = ffn_width
    return yaml.safe_dump(config, sort_keys=False)


def _tensors(model: MM1, layers: list[Matrices]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.state_dict().items():
        if ".ffn." not in name:
            yield name, tensor
    for index, (gate, up, down) in enumerate(layers):
        yield f"decoder.layers.{index}.ffn.gate_up.weight", torch.cat([gate, up])
        yield f"decoder.layers.{index}.ffn.down.weight", down.contiguous()


@torch.no_grad()
def _matrices(ffn: SwiGLU | object, task: str, origin: str) -> Matrices:
    if isinstance(ffn, SwiGLU):
        gate, up = ffn.gate_up.weight.chunk(2)
        return gate, up, ffn.down.weight
    if not isinstance(ffn, MoE) or not isinstance(ffn.router, ByTask):
        raise UserError(f"{origin} does not route by task; expected mixtures with the router ByTask (model)")
    if task not in ffn.router.tasks:
        raise UserError(f"{origin} knows no task {task}; expected one of {', '.join(ffn.router.tasks)} (task)")
    if ffn.shared_gate is not None or (ffn.capacity is not None and ffn.capacity.evaluate is not None):
        raise UserError(
            f"{origin} has mixtures with a shared_gate or a capacity in evaluation, which no dense layer equals; "
            f"expected neither (model.decoder.moe)"
        )
    parts = [_matrices(ffn.shared, task, origin)] if ffn.shared is not None else []
    for expert, share in _visited(ffn.router, task):
        gate, up = ffn.experts.gate_up[expert].chunk(2)
        parts.append((gate, up, (ffn.experts.down[expert].float() * share).to(gate.dtype)))
    gates, ups, downs = zip(*parts, strict=True)
    return torch.cat(gates), torch.cat(ups), torch.cat(downs, dim=1)


def _visited(router: ByTask, task: str) -> list[tuple[int, float]]:
    """The experts of a task and their shares, by the router's own word."""
    yes = torch.ones(1, 1, dtype=torch.bool)
    places = Places(yes, ~yes, torch.full((1, 1), router.tasks.index(task)), len(router.tasks))
    choice = router(torch.zeros(1, 1, router.width), places).choice
    return list(zip(choice.experts_MK[0].tolist(), choice.weights_MK[0].tolist(), strict=True))


def _widened(matrices: Matrices, width: int) -> Matrices:
    gate, up, down = matrices
    more = width - gate.shape[0]
    return pad(gate, (0, 0, 0, more)), pad(up, (0, 0, 0, more)), pad(down, (0, more))
