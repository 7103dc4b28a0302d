"""What a backward pass computes again instead of keeping it: nothing, whole layers, or what is cheap of them.

Whole layers: Chen et al. 2016; a part of each: Korthikanti et al. 2022, section 5. Which part is said operator by
operator: what products and attention put out is kept, and norms, activations, rotary turns and sums of the residual are
computed again from it. So the activation's answer is never kept: it comes from that of the product before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mm1.errors import UserError

# "selective", as Megatron and torchtitan call it: whoever comes from there looks for that word.
Checkpointing: TypeAlias = bool | Literal["selective"]

NOTHING: frozenset[str] = frozenset()
CHOICE = frozenset({"aten::topk"})  # of experts: a near-tie must not send a token elsewhere in the backward pass
PRODUCTS = CHOICE | {
    *(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "_scaled_mm", "_grouped_mm")),
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math_for_mps",
    "flex_attention",
    "mm1::experts",
    "_c10d_functional::reduce_scatter_tensor",  # the sum over ranks that a product of theirs ends with
}


def checked(value: Checkpointing, setting: str) -> Checkpointing:
    """The value of a setting, if it is one.

    Raises:
        UserError: It is none.
    """
    if not isinstance(value, bool) and value != "selective":
        raise UserError(f"{setting} is {value!r}; expected false, true or selective")
    return value


def recomputed(
    function: Callable[..., Any], kept: frozenset[str], unread: tuple[int, int] | None = None
) -> Callable[..., Any]:
    """``function``, of which the backward pass keeps arguments and what operators named in ``kept`` put out.

    A compiler that is to see what is kept has to compile the whole of it, this call included.

    Args:
        function: Of tensors, among others.
        kept: Names of operators.
        unread: Size of the matrix of a product whose answer no gradient reads and nothing is recomputed from. It is
            not kept, and not computed again either, since recomputing ends at the last tensor that is asked for.
    """
    again = partial(checkpoint, function, use_reentrant=False)
    if not kept:
        return again
    return partial(again, context_fn=partial(create_selective_checkpoint_contexts, partial(policy, kept, unread)))


def keeps(operator: Any, kept: frozenset[str]) -> bool:
    """Whether ``kept`` names it."""
    return operator.name().partition(".")[0] in kept


def policy(
    kept: frozenset[str], unread: tuple[int, int] | None, _: Any, operator: Any, *args: Any, **__: Any
) -> CheckpointPolicy:
    """What becomes of an operator's answer, as torch asks it; arguments as for :func:`recomputed`."""
    named = keeps(operator, kept)
    if named and unread and isinstance(args[-1], torch.Tensor) and args[-1].shape == unread:
        named = False
    return CheckpointPolicy.MUST_SAVE if named else CheckpointPolicy.PREFER_RECOMPUTE
