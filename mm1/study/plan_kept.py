"""Bytes that a backward pass needs, measured on shapes alone: what autograd saves, without a GPU, memory or weights.

A part of the model runs forward on fake tensors; hooks see every tensor that autograd keeps, and each storage counts
once, weights and what the caller keeps anyway not at all. Where layers are compiled, the compiler's own rule (min-cut
rematerialisation, as AOTAutograd applies it) says what stays, and nothing is compiled.

Fake tensors are a CPU's, since a build of torch without CUDA has no others, so what a GPU does otherwise is put in its
place: attention keeps queries, keys, values, the answer and a number per head and position, as flex_attention and flash
kernels do; RMSNorm keeps its input and a number per position; experts take the operators of
:mod:`mm1.model.moe.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from mm1.model.moe import kernels
from mm1.model.moe.experts import Experts
from mm1.model.moe.layer import MoE
from mm1.model.moe.routing import Rows
from mm1.model.recompute import PRODUCTS, policy

KEPT = PRODUCTS | {"mm1_plan::attention"}


def kept_bytes(run: Callable[[], Any], given: Iterable[Any]) -> int:
    """Bytes of the distinct storages that autograd saves while ``run`` runs, beyond those of ``given`` tensors."""
    apart = {_storage(tensor) for tensor in given if isinstance(tensor, Tensor)}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in apart:
            found[_storage(tensor)] = tensor  # held, so that no address comes twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        answer = run()
    del answer
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def kept_on_gpu(
    part: nn.Module,
    call: Callable[[nn.Module, Tensor], Any],
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype,
    autocast: bool,
    compiled: bool,
    selective: bool = False,
    unread: tuple[int, int] | None = None,
) -> int:
    """The same for a part of a model as a GPU would run it, its input included.

    Args:
        part: On any device, ``meta`` too; it is not changed.
        call: Runs it on one input; called under fake tensors.
        shape: Of the input.
        dtype: Of weights and input; routers stay in fp32.
        autocast: Whether matrix products run in bf16 whatever the weights are.
        compiled: Whether the part is compiled as one.
        selective: Whether all but products is recomputed (:mod:`mm1.model.recompute`).
        unread: As recomputing is told.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _dispatched(part):
        weights = {name: _like(name, value, dtype) for name, value in part.state_dict(keep_vars=True).items()}
        x = torch.empty(shape, dtype=dtype, requires_grad=True)
        moved = _Called(part, call)

        def forward(weights: dict[str, Tensor], x: Tensor) -> Any:
            return torch.func.functional_call(moved, {f"part.{name}": value for name, value in weights.items()}, (x,))

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False), _AsOnGpu(compiled):
            entry = x.numel() * x.element_size()
            if selective and not compiled:
                with _Products(unread) as products:
                    forward(weights, x)
                return entry + sum(tensor.untyped_storage().nbytes() for tensor in products.found.values())
            run = _partitioned(forward, selective) if compiled else forward
            return entry + kept_bytes(lambda: run(weights, x), [*weights.values(), x])


class _Called(nn.Module):
    """A part and the way to call it, so that weights can be put in by name."""

    def __init__(self, part: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.part, self.call = part, call

    def forward(self, x: Tensor) -> Any:
        """What the call answers."""
        return self.call(self.part, x)


class _Products(TorchDispatchMode):
    """Notes what recomputing would keep."""

    def __init__(self, unread: tuple[int, int] | None) -> None:
        super().__init__()
        self.unread = unread
        self.found: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it and see."""
        answer = func(*args, **kwargs or {})
        if policy(KEPT, self.unread, None, func, *args) is CheckpointPolicy.MUST_SAVE:
            tensors = answer if isinstance(answer, tuple) else (answer,)
            self.found |= {_storage(tensor): tensor for tensor in tensors}
        return answer


def _partitioned(forward: Callable[..., Any], selective: bool) -> Callable[..., Any]:
    from functorch.compile import aot_function, min_cut_rematerialization_partition, nop
    from torch._inductor.decomposition import select_decomp_table  # takes seconds, and only compiled plans need it

    def rule(joint: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        if selective:
            _mark(joint.graph)
        return min_cut_rematerialization_partition(joint, inputs, **options)

    return aot_function(forward, nop, nop, partition_fn=rule, decompositions=select_decomp_table())


def _mark(joint: torch.fx.Graph) -> None:
    """Say of the forward pass what is kept, as torch does where a compiled layer recomputes."""
    backward: set[torch.fx.Node] = set()
    for node in joint.nodes:
        if (node.op == "placeholder" and node.name.startswith("tangents")) or backward & {*node.all_input_nodes}:
            backward.add(node)
        elif node.op == "call_function":
            if isinstance(node.target, torch._ops.OperatorBase):
                kept = policy(KEPT, None, None, node.target)
            else:  # one of several answers of an operator
                kept = node.all_input_nodes[0].meta.get("recompute", CheckpointPolicy.PREFER_RECOMPUTE)
            node.meta |= {"recompute": kept, "ac_graph_id": 0}


def _like(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    kind = dtype if value.is_floating_point() and ".router." not in f".{name}" else value.dtype
    made = torch.empty(value.shape, dtype=kind, device="cpu")
    return made.requires_grad_() if value.requires_grad else made


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _dispatched(part: nn.Module) -> Iterator[None]:
    """Give sparse layers the GPU's way to their experts."""
    layers = [module for module in part.modules() if isinstance(module, MoE)]
    before = [layer.dispatch for layer in layers]
    for layer in layers:
        layer.dispatch = _by_kernels
    try:
        yield
    finally:
        for layer, dispatch in zip(layers, before, strict=True):
            layer.dispatch = dispatch


def _by_kernels(x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
    """:class:`mm1.model.moe.dispatch.LocalDispatch` where all take the fast path."""
    x_MD = x_MD.bfloat16()
    copied = rows.rows_MK is not None
    x_RD = kernels._take(x_MD, rows.tokens_R, rows.rows_MK) if copied else x_MD.index_select(0, rows.tokens_R)
    gate_up, down = experts.gate_up.bfloat16(), experts.down.bfloat16()
    y_RD = kernels.expert_rows(x_RD, rows.weights_R, rows.counts_E, gate_up, down)
    if rows.rows_MK is not None:
        return kernels._add(y_RD, rows.tokens_R, rows.rows_MK)
    return y_RD.new_zeros(len(x_MD), y_RD.shape[1]).index_add(0, rows.tokens_R, y_RD)


@torch.library.custom_op("mm1_plan::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("stands for shapes alone")


@torch.library.custom_op("mm1_plan::attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, answer: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    raise NotImplementedError("stands for shapes alone")


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # laid out with heads side by side, as these kernels do, so that putting them together is no copy
    answer = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    return answer, q.new_empty(q.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, answer: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep_all(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_back, setup_context=_keep_all)


class _Norm(torch.autograd.Function):
    """RMSNorm as one operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _AsOnGpu(TorchFunctionMode):
    """Puts a GPU's operators in the place of a CPU's."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.compiled = compiled

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Attention and, where it is not taken apart by a compiler, RMSNorm."""
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            return _attention(*args[:3])[0]
        if function is functional.rms_norm and not self.compiled:
            return _Norm.apply(args[0], args[2] if len(args) > 2 else kwargs["weight"])
        return function(*args, **kwargs)
