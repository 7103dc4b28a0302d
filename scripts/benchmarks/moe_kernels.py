"""The pieces of a sparse layer one by one: our Triton kernels beside the torch operators they took the place of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from benchmarks.machine import RESULTS, append, machine, versions
from benchmarks.moe import SHAPES, Shape
from mm1.errors import UserError
from mm1.model.moe.routing import TokenChoice

Pair = tuple[str, Callable[[], Any], Callable[[], Any]]


def moe_kernels(*, shapes: tuple[int, ...] | None = None, results: Path = RESULTS, note: str = "") -> None:
    """Time each kernel of the fast path and the torch operators that do the same, on rows of a random routing.

    Args:
        shapes: Which shapes of ``moe``, counted from 0; all of them if not given.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    if not torch.cuda.is_available():
        raise UserError("no CUDA device; expected a GPU")
    import triton

    about = {**machine(), "card": torch.cuda.get_device_name(), **versions("torch", "triton")}
    lines = []
    for shape in [SHAPES[index] for index in (range(len(SHAPES)) if shapes is None else shapes)]:
        print(f"\n{shape}")
        for name, by_torch, by_triton in _pairs(shape):
            times = [
                triton.testing.do_bench(run, warmup=15, rep=60, return_mode="median") for run in (by_torch, by_triton)
            ]
            print(
                f"  {name:34} torch {times[0]:7.3f} ms   ours {times[1]:7.3f} ms   {times[0] / times[1]:5.2f} x",
                flush=True,
            )
            line = {"shape": str(shape), "kernel": name, "torch_ms": round(times[0], 4), "ours_ms": round(times[1], 4)}
            lines.append({**about, **line, "note": note})
        torch.cuda.empty_cache()
    print(append(results / "moe_kernels.csv", lines))


def _pairs(shape: Shape) -> Iterator[Pair]:
    """Name, torch's way, ours."""
    from mm1.model import dense_triton
    from mm1.model.moe import triton_kernels as ours

    torch.manual_seed(0)
    device = torch.device("cuda")
    best = torch.rand(shape.tokens, shape.experts, device=device).topk(shape.top_k)
    rows = TokenChoice(best.indices, best.values).rows(shape.experts)
    ends_E, places_MK = rows.counts_E.cumsum(0, dtype=torch.int32), rows.rows_MK
    assert places_MK is not None

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=device, dtype=torch.bfloat16)

    x_MD, x_RD, pre_R2F = (
        random(shape.tokens, shape.width),
        random(shape.rows, shape.width),
        random(shape.rows, 2 * shape.ffn_width),
    )
    hidden_RF = random(shape.rows, shape.ffn_width)
    yield (
        "copy tokens into rows",
        lambda: x_MD.index_select(0, rows.tokens_R),
        lambda: ours.take_rows(x_MD, rows.tokens_R),
    )
    yield (
        "add rows up",
        lambda: x_RD.index_select(0, places_MK.flatten()).unflatten(0, places_MK.shape).sum(1),
        lambda: ours.add_rows(x_RD, places_MK),
    )
    yield (
        "SwiGLU and weight",
        lambda: _by_torch(pre_R2F, rows.weights_R),
        lambda: ours.swiglu(pre_R2F, rows.weights_R),
    )
    yield (
        "their gradients",
        _gradients(pre_R2F, rows.weights_R, hidden_RF),
        lambda: dense_triton.weighed_backward(hidden_RF, pre_R2F, rows.weights_R),
    )
    gate_up, down = (
        random(shape.experts, 2 * shape.ffn_width, shape.width),
        random(shape.experts, shape.width, shape.ffn_width),
    )
    for name, a, b, turned in (
        ("product with gate and up", x_RD, gate_up, True),
        ("product with down", hidden_RF, down, True),
        ("gradient through down", x_RD, down, False),
        ("gradient through gate and up", pre_R2F, gate_up, False),
    ):
        yield (
            name,
            lambda a=a, b=b, turned=turned: grouped_mm(a, b.transpose(-2, -1) if turned else b, offs=ends_E),
            lambda a=a, b=b, turned=turned: ours.grouped_mm(a, b, ends_E, turned),
        )


def _by_torch(pre_R2F: Tensor, weights_R: Tensor) -> Tensor:
    gate_RF, up_RF = pre_R2F.chunk(2, dim=-1)
    return silu(gate_RF) * up_RF * weights_R.bfloat16().unsqueeze(-1)


def _gradients(pre_R2F: Tensor, weights_R: Tensor, grad_RF: Tensor) -> Callable[[], Any]:
    """Autograd's backward pass of SwiGLU and weight, its forward pass done."""
    inputs = [pre_R2F.clone().requires_grad_(), weights_R.clone().requires_grad_()]
    output = _by_torch(*inputs)
    return lambda: torch.autograd.grad(output, inputs, grad_RF, retain_graph=True)
