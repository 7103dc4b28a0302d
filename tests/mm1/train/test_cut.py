"""Layers cut over ranks are those of one process: losses, gradients, norms and weights, alone and beside other axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mm1.batch import IMAGE, Batch, targets_of
from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.loss import cross_entropy_sum
from mm1.model.mm1 import MM1
from mm1.train.between import Group, cross_entropy_over
from mm1.train.parallel import TENSOR, Meshes, clip_gradients, meshes, shard, sum_gradients, whole
from tests.conftest import IMAGE_PX, IMAGE_TOKENS, VOCABULARY, tiny_model
from tests.mm1.train.test_parallel import gathered, on_ranks, part_of, summed

POSITIONS, ROWS = 12, 4

# What a decoder may have that has to be cut as well, or beside the cut.
PLAIN: dict[str, Any] = {}
ALL: dict[str, Any] = {"heads": 4, "kv_heads": 2, "tied": False, "attention_bias": "all", "qk_norm": "head"}
AFTER: dict[str, Any] = {"norm_place": "after", "checkpointing": True}
SELECTIVE: dict[str, Any] = {"checkpointing": "selective"}


def model_of(options: dict[str, Any], on: Meshes | None = None) -> MM1:
    options = {**options}
    tree = tiny_model(experts=options.pop("experts", 0))
    tree["init_args"]["decoder"]["init_args"] |= options
    model = build(tree)
    if on is not None:
        shard(model, on)
    model.to_empty(device="cpu")
    model.init_weights(0, whole)
    with torch.no_grad():  # biases and norms that begin as zeros and ones would hide a part in the wrong place
        for name, parameter in model.decoder.named_parameters():
            if parameter.ndim == 1:
                with whole(parameter) as filled:
                    filled.copy_(torch.linspace(0.5, 1.5, filled.numel()) + 0.01 * (len(name) % 7))
    return model


def rows(pictures: tuple[int, ...] = (1, 0, 1, 1)) -> Batch:
    """Rows of text, some with a picture at their head; three pictures among two ranks are two and one."""
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(4, VOCABULARY, (len(pictures), POSITIONS), generator=generator)
    for row, has in enumerate(pictures):
        tokens_BT[row, 1 : 1 + IMAGE_TOKENS * has] = IMAGE
    ones_BT = torch.ones_like(tokens_BT)
    images = torch.randint(0, 256, (sum(pictures), 3, IMAGE_PX, IMAGE_PX), generator=generator, dtype=torch.uint8)
    positions_BT = torch.arange(POSITIONS).expand_as(tokens_BT)
    targets_BT = targets_of(tokens_BT, ones_BT, ones_BT.bool())
    return Batch(tokens_BT, targets_BT, ones_BT, positions_BT, torch.zeros_like(tokens_BT), images)


def share_of(batch: Batch, reader: int, readers: int) -> Batch:
    """The rows of a rank, with their pictures."""
    counts = (batch.tokens_BT == IMAGE).sum(1) // IMAGE_TOKENS
    each = len(counts) // readers
    first, last = (int(counts[: each * r].sum()) for r in (reader, reader + 1))
    return replace(part_of(replace(batch, images_ICHW=batch.images_ICHW[:0]), reader, readers),
                   images_ICHW=batch.images_ICHW[first:last])  # fmt: skip


def trained(model: MM1, batch: Batch, reader: int = 0, readers: int = 1, micro_batches: int = 1) -> dict[str, Any]:
    """Three steps: losses, norms, gradients of the first, weights at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2)
    targets, tokens = batch.targets, batch.tokens
    found: dict[str, Any] = {"losses": [], "norms": []}
    mine = share_of(batch, reader, readers)
    for _ in range(3):
        optimizer.zero_grad()
        total = torch.zeros(())
        for index in range(micro_batches):
            sum_gradients(model, index == micro_batches - 1)
            sums = model.losses(share_of(mine, index, micro_batches))
            loss = sums.cross_entropy / targets + sums.router / tokens
            loss.backward()
            total += loss.detach()
        if readers > 1:
            total = summed(total) * readers / dist.get_world_size()
        found.setdefault("gradients", gathered({name: p.grad.clone() for name, p in model.named_parameters()}))
        found["norms"].append(float(clip_gradients(model.parameters(), 0.5)))
        found["losses"].append(float(total))
        optimizer.step()
    return found | {"weights": gathered({name: p.detach() for name, p in model.named_parameters()})}


CASES: list[tuple[dict[str, Any], dict[str, int], int]] = [
    (PLAIN, {"tensor": 2}, 2),
    (ALL | SELECTIVE, {"tensor": 2, "replicate": 2}, 1),
    (AFTER, {"tensor": 2}, 1),
    ({"experts": 4}, {"tensor": 2}, 1),
    ({"experts": 4} | SELECTIVE, {"tensor": 2, "experts": 2}, 2),
    ({"experts": 4, "heads": 4}, {"tensor": 4, "experts": 4}, 1),
]


def compare(rank: int, expected: list[dict[str, Any]]) -> None:
    for (options, sizes, micro_batches), wanted in zip(CASES, expected, strict=True):
        readers = 4 // sizes["tensor"]
        model = model_of(options, meshes("cpu", 4, **sizes))
        found = trained(model, rows(), rank // sizes["tensor"], readers, micro_batches)
        case = f"{options} {sizes}"
        assert found["losses"] == pytest.approx(wanted["losses"], abs=1e-5), case
        assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-5), case
        for kind in ("gradients", "weights"):
            assert found[kind].keys() == wanted[kind].keys()
            for name, tensor in wanted[kind].items():
                torch.testing.assert_close(found[kind][name], tensor, rtol=1e-4, atol=2e-6,
                                           msg=lambda m, n=name, k=kind, c=case: f"{c} {k} of {n} {m}")  # fmt: skip


def test_steps_are_those_of_one_process() -> None:
    """With pictures dealt out, uneven numbers of them, none on a reader; tied and not; recomputed; clipped; summed."""
    expected = [trained(model_of(options), rows()) for options, _, _ in CASES]
    on_ranks(4, compare, expected)


def over_vocabulary(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_MD, head_VD = (torch.randn(size, 8, generator=generator) for size in (1030, 20))
    targets_M = torch.randint(0, 20, (1030,), generator=generator)
    one, two = ([t.clone().requires_grad_() for t in (hidden_MD, head_VD)] for _ in range(2))
    expected, losses_M = cross_entropy_sum(*one, targets_M)
    part = two[1][rank * 10 : rank * 10 + 10]
    group = Group.of(meshes("cpu", 2, tensor=2).dense[TENSOR])
    found, ours_M = cross_entropy_over(two[0], part, targets_M, group)
    torch.testing.assert_close((found, ours_M), (expected, losses_M))
    (expected * 0.5).backward()
    (found * 0.5).backward()
    torch.testing.assert_close(two[0].grad, one[0].grad)
    assert one[1].grad is not None
    assert two[1].grad is not None
    torch.testing.assert_close(two[1].grad[rank * 10 : rank * 10 + 10], one[1].grad[rank * 10 : rank * 10 + 10])


def test_cross_entropy_over_a_shared_vocabulary() -> None:
    """More tokens than a chunk has."""
    on_ranks(2, over_vocabulary)


def drop(rank: int, expected: list[Tensor]) -> None:
    found = dropped(model_of({"dropout": 0.5}, meshes("cpu", 2, tensor=2)))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n} {m}")


def dropped(model: MM1) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model.losses(rows()).cross_entropy.backward()
    return gathered({name: p.grad for name, p in model.named_parameters()})


def test_ranks_drop_what_one_process_drops() -> None:
    """Each draws for the whole row, so that stretches differ and ranks that are alike stay so."""
    on_ranks(2, drop, dropped(model_of({"dropout": 0.5})))


def compiled(rank: int) -> None:
    found = []
    for backend, again in ((None, False), ("aot_eager", False), ("aot_eager", "selective")):
        torch._dynamo.reset()
        model = model_of({**ALL, "checkpointing": again}, meshes("cpu", 2, tensor=2))
        for layer in model.decoder.layers if backend else ():
            layer.compile(backend=backend)
        sums = model.losses(rows())
        sums.cross_entropy.backward()
        found.append((float(sums.cross_entropy.detach()), float(clip_gradients(model.parameters(), 1.0))))
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_layer_that_is_cut_compiles_whole() -> None:
    on_ranks(2, compiled)


def refused(rank: int) -> None:
    for options, says in (
        ({"heads": 1}, "heads is 1, to be cut by 2 ranks; expected a multiple"),
        ({"vocabulary": 341}, "vocabulary is 341"),
        ({"qk_norm": "full"}, "qk_norm full takes one norm over all heads"),
    ):
        with pytest.raises(UserError, match=says):
            model_of(options, meshes("cpu", 2, tensor=2))
    model = model_of(PLAIN, meshes("cpu", 2, tensor=2))
    odd = rows((0,))._map(lambda tensor: tensor[:, :11] if tensor.ndim == 2 else tensor)
    with pytest.raises(UserError, match=r"data\.row_tokens is 11, to be cut by 2 ranks"):
        model.losses(odd)


def test_what_cannot_be_cut_is_told(tmp_path: Path) -> None:
    on_ranks(2, refused)
    with pytest.raises(UserError, match="6 ranks are not replicate=1 times shard=2 times tensor=2"):
        meshes("cpu", 6, shard=2, tensor=2)
