"""A dense model becomes an MoE that says the same: feed-forward layers are copied into experts (Komatsuzaki 2022).

Shares of the chosen experts sum to one, so that equal experts answer as the one layer did, whatever the router thinks.
They part ways in training, each on the tokens it is sent; noise lets them begin apart.

Experts may be pieces of a layer: its matrices cut into m stretches of the inner width, whose answers add up to the
layer's. All m pieces of a copy begin with the same row of the router, so they are chosen together, k copies in all,
each piece with 1 / m of its copy's share; m times the down matrix makes up for it, so that nothing changes at first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import yaml
from torch import Tensor

from mm1.errors import UserError, at_least
from mm1.interop.whole import read_whole, write_anew
from mm1.model import stored
from mm1.model.build import build
from mm1.model.init import init_parameters
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import MoE

EXPERTS = re.compile(r"(decoder\.layers\.\d+\.ffn)\.experts\.(gate_up|down)")


def upcycle(
    model: Path,
    out: Path,
    *,
    experts: int = 8,
    every: int = 2,
    top_k: int = 2,
    pieces: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> Path:
    """Make an MoE of a dense model; with no noise its output is the dense one's.

    Args:
        model: A dense model: a folder that mm1-convert wrote, or a ``*.ckpt`` of mm1-train.
        out: Folder to write; must not exist.
        experts: Copies of each feed-forward layer that becomes sparse.
        every: Every n-th layer becomes sparse: layers n - 1, 2n - 1, ... counted from 0.
        top_k: Copies that a token visits.
        pieces: Experts that each copy is cut into, all of which a token visits at first (fine-grained experts).
        noise: Spread of normal noise on each copy, as a share of the layer's own.
        seed: Decides routers and noise.

    Raises:
        UserError: The model cannot be read or is an MoE already, or the numbers do not go together.
    """
    at_least(2, {"experts": experts})
    at_least(1, {"every": every, "top_k": top_k, "pieces": pieces})
    at_least(0, {"noise": noise})
    whole = read_whole(model)
    found = whole.found
    ffn_width = whole.empty.decoder.ffn_width
    if ffn_width % pieces:
        raise UserError(f"{pieces} pieces of an inner width of {ffn_width}; expected a divisor (pieces)")
    moe = {"experts": experts * pieces, "top_k": top_k * pieces}
    moe |= {"expert_width": ffn_width // pieces} if pieces > 1 else {}
    config = _sparse_config(found, moe, every)
    sparse = build(config)
    _fill_routers(sparse, pieces, seed)
    tensors = _tensors(sparse, found.weights, pieces, noise, seed)
    return write_anew(whole, out, yaml.safe_dump(config, sort_keys=False), tensors, len(sparse.state_dict()))


def _sparse_config(found: stored.Stored, moe: dict[str, Any], every: int) -> dict[str, Any]:
    config = yaml.safe_load(found.config)
    decoder = config["init_args"]["decoder"]["init_args"]
    if decoder.get("moe") is not None:
        raise UserError(f"{found.origin} is an MoE already; expected a dense model (model)")
    decoder |= {"moe": {"class_path": "mm1.model.moe.layer.MoE", "init_args": moe}, "moe_every": every}
    return config


@torch.no_grad()
def _fill_routers(sparse: MM1, pieces: int, seed: int) -> None:
    """Routers begin as those of any new MoE; everything else stays without values, which is to say without memory."""
    for layer in sparse.decoder.layers:
        if isinstance(layer.ffn, MoE):
            layer.ffn.router.to_empty(device="cpu")
    init_parameters(sparse, seed, len(sparse.decoder.layers))
    for name, weight in sparse.named_parameters():
        if name.endswith(".ffn.router.weight"):
            weight.copy_(weight[::pieces].repeat_interleave(pieces, dim=0))


def _tensors(
    sparse: MM1, dense: Mapping[str, Tensor], pieces: int, noise: float, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the sparse model, one at a time, in the type of the dense model's decoder."""
    dtype = dense["decoder.norm.weight"].dtype
    for name, tensor in sparse.state_dict().items():
        if match := EXPERTS.fullmatch(name):
            weight, own_seed = dense[f"{match[1]}.{match[2]}.weight"], crc32(f"{seed} {name}".encode())
            cut = _cut_gate_up if match[2] == "gate_up" else _cut_down
            yield name, cut(_copies(weight, len(tensor) // pieces, noise, own_seed), pieces)
        else:
            yield name, dense[name] if tensor.is_meta else tensor.detach().to(dtype)


def _copies(weight: Tensor, experts: int, noise: float, seed: int) -> Tensor:
    copies = weight.expand(experts, *weight.shape).contiguous()
    if noise > 0:
        generator, spread = torch.Generator().manual_seed(seed), noise * float(weight.float().std())
        for expert in copies:
            expert += (spread * torch.randn(weight.shape, generator=generator)).to(expert.dtype)
    return copies


def _cut_gate_up(copies_EFD: Tensor, pieces: int) -> Tensor:
    """[E, 2 F, D] -> [E * m, 2 F / m, D], gate above up in each piece."""
    halves = copies_EFD.unflatten(1, (2, pieces, -1))
    return halves.transpose(1, 2).flatten(2, 3).flatten(0, 1).contiguous()


def _cut_down(copies_EDF: Tensor, pieces: int) -> Tensor:
    """[E, D, F] -> [E * m, D, F / m], times m."""
    return (copies_EDF.unflatten(2, (pieces, -1)).transpose(1, 2).flatten(0, 1) * pieces).contiguous()
