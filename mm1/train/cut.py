"""Layers of the decoder cut over ranks: heads, feed-forward and vocabulary; the model is not told (Megatron-LM).

Ranks of the axis ``tensor`` read the same rows. Between layers each has a stretch of every row (Korthikanti 2022)::

    row cut -> norm -> gather -> heads of this rank  -> output, a sum -> scatter -> + -> norm -> gather -> ffn ..
                                 or columns of gate and up, matching

Pictures are dealt out among these ranks, so encoder and connector are whole and learn as if each rank had rows of its
own. A mixture of experts stays whole as well: all ranks route the whole row alike, and each brings its stretch of
tokens to the experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.nn.functional import dropout, embedding, linear, rms_norm

from mm1.errors import UserError
from mm1.model.attention import Attention
from mm1.model.decoder import Decoder, Layer
from mm1.model.ffn import SwiGLU
from mm1.model.moe.dispatch import Dispatch
from mm1.model.moe.experts import Experts
from mm1.model.moe.layer import Mixture, MoE
from mm1.model.moe.routers import Topology
from mm1.model.moe.routing import Rows
from mm1.train.between import Group, copied, cross_entropy_over, gathered, scattered, summed
from mm1.train.exchange import experts_of
from mm1.train.placing import HALVES, part

SETTING = "trainer.strategy.init_args.tensor"


def check(decoder: Decoder, ranks: int) -> None:
    """Refuse what so many ranks cannot cut evenly.

    Raises:
        UserError: The first number that they do not divide, or a layer that has to see all heads at once.
    """
    numbers = {"heads": decoder.heads, "kv_heads": decoder.kv_heads, "vocabulary": decoder.vocabulary}
    numbers["ffn_width"] = decoder.ffn_width
    for name, number in numbers.items():
        if number % ranks:
            raise UserError(
                f"model.decoder.init_args.{name} is {number}, to be cut by {ranks} ranks; expected a multiple "
                f"({SETTING})"
            )
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        norm = layer.attention.q_norm
        if norm is not None and norm.weight.numel() != decoder.head_width:
            raise UserError(
                f"qk_norm full takes one norm over all heads, which {ranks} ranks would share; expected head, or "
                f"tensor: 1 ({SETTING})"
            )
        if any(isinstance(module, Topology) for module in layer.modules()):
            raise UserError(
                f"the router Topology prefers a rank's own experts; expected another, or tensor: 1 ({SETTING})"
            )


def cut(decoder: Decoder, mesh: DeviceMesh) -> None:
    """Cut every layer in place over a mesh of one axis; parameters become parts of what they were.

    Raises:
        UserError: It cannot be cut evenly.
    """
    check(decoder, mesh.size())
    group = Group.of(mesh)
    for layer in decoder.layers:
        assert isinstance(layer, Layer)
        _cut_layer(layer, mesh, group)
    decoder.embedding = _Embedding(decoder.embedding, mesh, group)
    if decoder.head is not None:
        _keep(decoder.head, "weight", mesh, Shard(0))
    decoder.norm = _Norm(decoder.norm, mesh)
    decoder.norm.register_forward_hook(lambda _, __, y_BTD: gathered(y_BTD, 1, group, terms=False))
    decoder.register_forward_pre_hook(_enter(group))


def _enter(group: Group) -> Callable[..., Any]:
    def enter(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BTD, *rest = given
        if x_BTD.shape[1] % group.ranks:
            raise UserError(
                f"data.row_tokens is {x_BTD.shape[1]}, to be cut by {group.ranks} ranks; expected a multiple "
                f"({SETTING})"
            )
        return scattered(x_BTD, 1, group, terms=False), *rest

    return enter


def score(group: Group) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What takes the place of :func:`mm1.model.loss.cross_entropy_sum` for a head that is cut."""

    def over_ranks(hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy_over(hidden_MD, _here(head_VD), targets_M, group)

    return over_ranks


def deal_pictures(vision: nn.Module, connector: nn.Module, group: Group) -> None:
    """Let each rank see its share of the pictures, blank ones added until shares are equal, and gather their tokens."""

    def deal(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images_ICHW, *rest = given
        each = -(-len(images_ICHW) // group.ranks)
        missing = images_ICHW.new_zeros(each * group.ranks - len(images_ICHW), *images_ICHW.shape[1:])
        return torch.cat([images_ICHW, missing])[group.rank * each :][:each], *rest

    vision.register_forward_pre_hook(deal)
    connector.register_forward_hook(lambda _, __, tokens_IND: gathered(tokens_IND, 0, group, terms=False))


def _cut_layer(layer: Layer, mesh: DeviceMesh, group: Group) -> None:
    attention: Attention = layer.attention
    for name in ("q", "k", "v"):
        setattr(attention, name, _Columns(getattr(attention, name), mesh, Shard(0)))
    attention.o = _Rows(attention.o, mesh, group)
    if attention.q_norm is not None and attention.k_norm is not None:
        attention.q_norm, attention.k_norm = _Norm(attention.q_norm, mesh), _Norm(attention.k_norm, mesh)
    layer.attention_norm, layer.ffn_norm = _Norm(layer.attention_norm, mesh), _Norm(layer.ffn_norm, mesh)
    attention.register_forward_pre_hook(_whole_rows(group, terms=True))
    dense = isinstance(layer.ffn, SwiGLU)
    if isinstance(layer.ffn, SwiGLU):
        layer.ffn.gate_up = _Columns(layer.ffn.gate_up, mesh, HALVES)
        layer.ffn.down = _Rows(layer.ffn.down, mesh, group)
    else:
        layer.ffn.register_forward_hook(lambda _, __, out: (scattered(out[0], 1, group, terms=False), out[1]))
        for module in layer.ffn.modules():
            if isinstance(module, MoE):
                module.dispatch = Stretch(module.dispatch, group)
    layer.ffn.register_forward_pre_hook(_whole_rows(group, terms=dense))
    if layer.dropout.p:
        layer.dropout = _Dropout(layer.dropout.p, group)


def _whole_rows(group: Group, *, terms: bool) -> Callable[..., Any]:
    def gather(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BTD, *rest = given
        return gathered(x_BTD, 1, group, terms=terms), *rest

    return gather


def _keep(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    """Put this rank's part in the place of a parameter."""
    whole = getattr(module, name)
    if whole is not None:
        kept = part(whole.detach(), mesh, (placement,))
        setattr(module, name, nn.Parameter(kept, requires_grad=whole.requires_grad))


def _here(parameter: Tensor | None, *, terms: bool = False) -> Any:
    """What this rank multiplies by; ``terms`` says that its gradient is a sum over ranks of the axis."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.to_local(grad_placements=[Partial()] if terms else None)


def _take(cut: nn.Linear, of: nn.Linear) -> None:
    """Begin as ``of``, with its very parameters."""
    nn.Module.__init__(cut)
    cut.in_features, cut.out_features, cut.weight, cut.bias = of.in_features, of.out_features, of.weight, of.bias


class _Columns(nn.Linear):
    """A projection of whole inputs to outputs of which this rank has some."""

    def __init__(self, of: nn.Linear, mesh: DeviceMesh, placement: Placement) -> None:
        _take(self, of)
        _keep(self, "weight", mesh, placement)
        _keep(self, "bias", mesh, placement)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, part of the outputs]."""
        return linear(x_BTD, _here(self.weight), _here(self.bias))


class _Rows(nn.Linear):
    """A projection of inputs of which this rank has some, to its stretch of the outputs' rows."""

    def __init__(self, of: nn.Linear, mesh: DeviceMesh, group: Group) -> None:
        _take(self, of)
        self.group = group
        _keep(self, "weight", mesh, Shard(1))
        _keep(self, "bias", mesh, Replicate())

    def forward(self, x_BTX: Tensor) -> Tensor:
        """[B, T, part of the inputs] -> [B, part of T, D]."""
        y_BTD = scattered(linear(x_BTX, _here(self.weight)), 1, self.group, terms=True)
        return y_BTD if self.bias is None else y_BTD + _here(self.bias, terms=True).to(y_BTD.dtype)


class _Norm(nn.RMSNorm):
    """A norm of what this rank has: a stretch of the row, or some of the heads."""

    def __init__(self, of: nn.RMSNorm, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)
        self.normalized_shape, self.eps, self.elementwise_affine = of.normalized_shape, of.eps, of.elementwise_affine
        self.weight = of.weight
        _keep(self, "weight", mesh, Replicate())

    def forward(self, x: Tensor) -> Tensor:
        """Each position for itself."""
        return rms_norm(x, self.normalized_shape, _here(self.weight, terms=True), self.eps)


class _Embedding(nn.Embedding):
    """Ids of which this rank has some; what the others know is added."""

    def __init__(self, of: nn.Embedding, mesh: DeviceMesh, group: Group) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = of.num_embeddings, of.embedding_dim, None
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self.group, self.weight = group, of.weight
        _keep(self, "weight", mesh, Shard(0))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] -> [B, T, D], whole on every rank."""
        weight_XD = _here(self.weight)
        at_BT = tokens_BT - self.group.rank * len(weight_XD)
        here_BT = (at_BT >= 0) & (at_BT < len(weight_XD))
        x_BTD = embedding(at_BT.where(here_BT, 0), weight_XD) * here_BT.unsqueeze(-1)
        return summed(x_BTD, self.group)


class _Dropout(nn.Dropout):
    """This rank's stretch of what is drawn for the whole row, alike on all ranks."""

    def __init__(self, p: float, group: Group) -> None:
        super().__init__(p)
        self.group = group

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, part of T, D]."""
        if not self.training:
            return x_BTD
        rows, positions, width = x_BTD.shape
        drawn = dropout(x_BTD.new_ones(rows, positions * self.group.ranks, width), self.p)
        return x_BTD * drawn.chunk(self.group.ranks, 1)[self.group.rank]


class Stretch:
    """A dispatch of this rank's stretch of tokens by another, the answers put together; put into ``MoE.dispatch``.

    Args:
        within: The dispatch of the stretch.
        group: The ranks that have routed the same tokens.
    """

    def __init__(self, within: Dispatch, group: Group) -> None:
        self.within, self.group = within, group

    @torch.compiler.disable  # how many rows a stretch has is another number every time
    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
        """[M, D] -> [M, D], whole on every rank."""
        ours_R = rows.tokens_R * self.group.ranks // max(len(x_MD), 1) == self.group.rank
        at_S = ours_R.nonzero().squeeze(1)
        counts_E = torch.zeros_like(rows.counts_E).scatter_add_(0, experts_of(rows), ours_R.to(rows.counts_E.dtype))
        rows_MK = rows.rows_MK
        if rows_MK is not None:
            place_R = torch.full_like(rows.tokens_R, -1).scatter_(0, at_S, torch.arange(len(at_S), device=at_S.device))
            rows_MK = place_R[rows_MK.clamp(min=0)].where(rows_MK >= 0, -1)
        weights_R = copied(rows.weights_R, self.group)
        ours = Rows(rows.tokens_R[at_S], weights_R[at_S], counts_E, rows_MK)
        return summed(self.within(copied(x_MD, self.group), ours, experts), self.group)


def whole_mixtures(decoder: Decoder) -> list[Mixture]:
    """Feed-forward layers that are not cut."""
    return [layer.ffn for layer in decoder.layers if isinstance(layer.ffn, Mixture)]
