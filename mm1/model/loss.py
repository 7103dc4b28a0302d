"""The objective as sums, so that the mean is over the targets of a whole step, however it is spread.

A step is several rows, micro-batches and ranks. The mean of their means would weigh a target by the company it keeps;
sums can be added and divided once by the global number of targets (:class:`mm1.batch.Batch`, ``window_targets``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from mm1.batch import IGNORE, Batch, learned_places
from mm1.model.decoder import Output

Score = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
CHUNK_TOKENS = 1024  # logits held at once: at 32000 entries 131 MB in fp32
CHUNK_TOKENS_GPU = 4096  # there they turn into their gradients where they stand: 262 MB in bf16


@dataclass
class LossSums:
    """The step's loss is ``cross_entropy / window_targets + router / window_tokens``, windows summed over ranks.

    Args:
        cross_entropy: Summed over targets, in nats; differentiable.
        router: Weighted balance and z-loss summed over tokens, mean over MoE layers; differentiable.
        balance: Balance loss summed over tokens, unweighted; divided by ``tokens`` it is one at perfect balance.
        z: Router z-loss likewise.
        targets: Learned positions.
        tokens: Positions that are not padding.
        cross_entropy_S: ``cross_entropy`` by source.
        targets_S: ``targets`` by source.
        load_LGE: Choices of each group that each expert of each sparse layer got (:mod:`mm1.model.moe.stats`).
        gauges_LGN: Other sums over the tokens of each group.
        together_LEE: Tokens that visited both of two experts.
    """

    cross_entropy: Tensor
    router: Tensor
    balance: Tensor
    z: Tensor
    targets: Tensor
    tokens: Tensor
    cross_entropy_S: Tensor
    targets_S: Tensor
    load_LGE: Tensor
    gauges_LGN: Tensor
    together_LEE: Tensor


def loss_sums(output: Output, batch: Batch, head_VD: Tensor, score: Score | None = None) -> LossSums:
    """Score what the decoder put out against the targets of the batch, by :func:`cross_entropy_sum` if not given."""
    places_M = learned_places(batch.targets_BT) if batch.learned_M is None else batch.learned_M
    hidden_MD, targets_M, sources_M = (
        x.flatten(0, 1).index_select(0, places_M) for x in (output.hidden_BTD, batch.targets_BT, batch.sources_BT)
    )
    total, losses_M = (score or cross_entropy_sum)(hidden_MD, head_VD, targets_M)
    zeros_S = torch.zeros(len(batch.sources), device=losses_M.device)
    return LossSums(
        cross_entropy=total,
        router=output.router.loss,
        balance=output.router.balance,
        z=output.router.z,
        targets=(batch.targets_BT != IGNORE).sum(),
        tokens=(batch.segments_BT > 0).sum(),
        cross_entropy_S=zeros_S.index_add(0, sources_M, losses_M),
        targets_S=zeros_S.index_add(0, sources_M, torch.ones_like(losses_M)),
        load_LGE=output.router.load_LGE,
        gauges_LGN=output.router.gauges_LGN,
        together_LEE=output.router.together_LEE,
    )


def cross_entropy_sum(hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of ``hidden @ head.T``: its differentiable sum, and the value of each target."""
    return _LinearCrossEntropy.apply(hidden_MD, head_VD, targets_M, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy in one, a chunk of tokens at a time, so that a long row's logits never stand together.

    The gradient of a sum is known as soon as the logits are, so it is computed with them and nothing is recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, head_VD: Tensor, targets_M: Tensor, learning: bool
    ) -> tuple[Tensor, Tensor]:
        losses_M = torch.zeros(len(targets_M), device=hidden_MD.device)
        hidden_learns, head_learns = (learning and needed for needed in ctx.needs_input_grad[:2])
        hidden_grad = torch.empty_like(hidden_MD) if hidden_learns else None
        chunk = CHUNK_TOKENS_GPU if hidden_MD.is_cuda else CHUNK_TOKENS
        summed = torch.float32 if len(targets_M) > chunk else head_VD.dtype
        head_grad = torch.zeros_like(head_VD, dtype=summed) if head_learns else None
        for start in range(0, len(targets_M), chunk):
            part = slice(start, start + chunk)
            logits_MV = linear(hidden_MD[part], head_VD)
            score = _scored_on_gpu if logits_MV.is_cuda else _scored
            losses_M[part], error_MV = score(logits_MV, targets_M[part], hidden_learns or head_learns)
            kind = error_MV.dtype
            if hidden_grad is not None:
                hidden_grad[part] = error_MV @ head_VD.to(kind)
            if head_grad is not None:
                head_grad += error_MV.T @ hidden_MD[part].to(kind)
            del logits_MV, error_MV  # before the next ones
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head_VD.dtype))
        ctx.mark_non_differentiable(losses_M)
        return losses_M.sum(), losses_M

    @staticmethod
    def backward(ctx: Any, total_grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, head_grad = (None if grad is None else grad * total_grad for grad in ctx.saved_tensors)
        return hidden_grad, head_grad, None, None


def _scored(logits_MV: Tensor, targets_M: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the gradient of its logits, in their type, if somebody is ``learning``."""
    kind, logits_MV, targets_M1 = logits_MV.dtype, logits_MV.float(), targets_M.unsqueeze(1)
    lse_M1 = logits_MV.logsumexp(1, keepdim=True)
    losses_M = (lse_M1 - logits_MV.gather(1, targets_M1)).squeeze(1)
    if learning:
        logits_MV.sub_(lse_M1).exp_()  # the softmax; less one at the target it is the gradient
        logits_MV = logits_MV.scatter_add_(1, targets_M1, torch.full_like(lse_M1, -1.0)).to(kind)
    return losses_M, logits_MV


def _scored_on_gpu(logits_MV: Tensor, targets_M: Tensor, learning: bool) -> tuple[Tensor, Tensor]:
    """The same in two passes over memory, the gradient in place of the logits."""
    from mm1.model import dense_triton  # a GPU's torch brings Triton along, a CPU's does not

    return dense_triton.cross_entropy_(logits_MV, targets_M, learning), logits_MV
