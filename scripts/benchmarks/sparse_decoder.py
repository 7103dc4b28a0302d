"""A training step of a 1.2B-class decoder with experts in every second layer, beside its dense twin."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, append, where
from benchmarks.moe import Step, measured
from mm1.errors import UserError
from mm1.model.decoder import Decoder
from mm1.model.init import init_parameters
from mm1.model.loss import cross_entropy_sum
from mm1.model.moe.layer import Mixture, MoE

BAR = 1.30


def decoder(
    *,
    repeats: int = 10,
    rows: int = 4,
    row_tokens: int = 4096,
    compiled: bool = True,
    small: bool = False,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time a step (forward, loss, backward, AdamW) of both; weights and states in bf16, documents of 512 tokens.

    Args:
        repeats: Timed steps of each; the median counts.
        rows: Rows of a step.
        row_tokens: Positions of a row.
        compiled: Compile layer by layer, as training does.
        small: A tiny decoder, on a CPU too, to see that everything runs.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", "triton", small=small, flag="--small true")
    lines, dense = [], 0.0
    for name, sparse in (("dense", False), ("E8 k2 in every second layer", True)):
        began = time.monotonic()
        found = measured(partial(_step, sparse, device, rows, row_tokens, compiled, small), device, repeats)
        if isinstance(found, str):
            raise UserError(f"{name} {found}")
        ms, peak = found
        dense = dense or ms
        print(
            f"{name:30} {ms:8.1f} ms a step {rows * row_tokens / ms * 1e3:9.0f} tokens/s {ms / dense:5.2f} x dense "
            f"(bar {BAR}) {peak / 2**30:6.1f} GiB, {time.monotonic() - began:.0f} s in all",
            flush=True,
        )
        line = {"decoder": name, "rows": rows, "row_tokens": row_tokens, "compiled": compiled, "ms": round(ms, 2)}
        line |= {"of_dense": round(ms / dense, 3), "peak_gib": round(peak / 2**30, 2), "note": note}
        lines.append({**about, **line})
    print(append(results / "decoder.csv", lines))


def _step(sparse: bool, device: torch.device, rows: int, row_tokens: int, compiled: bool, small: bool) -> Step:
    width, layers, heads, ffn_width = (64, 2, 2, 128) if small else (2048, 24, 16, 5504)
    moe = partial(MoE, experts=8, top_k=2, expert_width=ffn_width // 2) if sparse else None
    with torch.device("meta"):
        model = Decoder(32064, width=width, layers=layers, heads=heads, ffn_width=ffn_width, moe=moe, moe_every=2)
    model = model.to_empty(device=device)
    init_parameters(model, 0, layers)
    model = model.bfloat16()
    for layer in model.layers:
        if isinstance(layer.ffn, Mixture):
            layer.ffn.router.float()
        if compiled:
            layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens_BT = torch.randint(0, 32000, (rows, row_tokens), device=device)
    at_T = torch.arange(row_tokens, device=device)
    segments_BT, positions_BT = (t.expand(rows, -1).contiguous() for t in (at_T // 512 + 1, at_T % 512))
    targets_M = tokens_BT.roll(-1, 1).flatten()

    def step() -> None:
        output = model(model.embedding(tokens_BT), segments_BT, positions_BT)
        loss, _ = cross_entropy_sum(output.hidden_BTD.flatten(0, 1), model.head_VD, targets_M)
        ((loss + output.router.loss) / len(targets_M)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
