"""Spread over ranks, a model is the same model: outputs, gradients, steps and checkpoints of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes

from mm1.batch import Batch, targets_of
from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import MoE
from mm1.train.parallel import Meshes, Way, clip_gradients, meshes, shard, sum_gradients, whole
from mm1.train.shadow import Costs
from mm1.train.shadowed import Shadowed
from tests.conftest import IMAGE_PX, VOCABULARY, tiny_model

POSITIONS = 12


def on_ranks(ranks: int, work: Callable[..., None], *arguments: Any, joined: bool = True) -> None:
    """``work(rank, *arguments)`` in so many processes that can talk, or know how to if they are not ``joined``."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    start_processes(_rank, (ranks, port, joined, work, arguments), ranks, start_method="fork")


def _rank(
    rank: int, ranks: int, port: int, joined: bool, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    if joined:
        dist.init_process_group("gloo")
    try:
        work(rank, *arguments)
        if dist.is_initialized():
            dist.barrier()  # so that none goes while another still looks for it
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rows_of_text(rows: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(4, VOCABULARY, (rows, POSITIONS), generator=generator)
    ones_BT = torch.ones_like(tokens_BT)
    return Batch(
        tokens_BT,
        targets_of(tokens_BT, ones_BT, ones_BT.bool()),
        ones_BT,
        torch.arange(POSITIONS).expand_as(tokens_BT),
        torch.zeros_like(tokens_BT),
        torch.zeros(0, 3, IMAGE_PX, IMAGE_PX, dtype=torch.uint8),
    )


def part_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """The rows of a rank."""
    return batch._map(lambda tensor: tensor.chunk(ranks)[rank] if len(tensor) else tensor)


def model_of(on: Meshes | None = None, way: Way = "plain", **moe: Any) -> MM1:
    """A tiny model with the first values of seed 0, spread over ranks if they are given."""
    tree = tiny_model(experts=4)
    tree["init_args"]["decoder"]["init_args"]["moe"]["init_args"] |= moe
    model = build(tree)
    if on is not None:
        shard(model, on, way)
    model.to_empty(device="cpu")
    model.init_weights(0, whole)
    return model


def loss_of(model: MM1, batch: Batch, share: float) -> Tensor:
    """The share of the step's loss, per target of all ranks, with the targets of this rank's ``share`` of them."""
    sums = model.losses(batch)
    return (sums.cross_entropy / sums.targets + sums.router / sums.tokens) * share


def gathered(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """Whole tensors, on all ranks."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in tensors.items()
        if tensor is not None
    }


def trained(model: MM1, batch: Batch, share: float, micro_batches: int = 1, steps: int = 2) -> dict[str, Any]:
    """What some steps leave: gradients of the first, norms, losses, weights at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found: dict[str, Any] = {"norms": []}
    for _ in range(steps):
        optimizer.zero_grad()
        for index in range(micro_batches):
            sum_gradients(model, index == micro_batches - 1)
            loss_of(model, part_of(batch, index, micro_batches), share / micro_batches).backward()
        found.setdefault("gradients", gathered({name: p.grad.clone() for name, p in model.named_parameters()}))
        found["norms"].append(float(clip_gradients(model.parameters(), 0.5)))
        optimizer.step()
    return found | {"weights": gathered({name: p.detach() for name, p in model.named_parameters()})}


def compare(rank: int, ranks: int, sizes: dict[str, int], micro_batches: int, path: Path, way: Way) -> None:
    expected = torch.load(path)
    model = model_of(meshes("cpu", ranks, **sizes), way)
    shadowed = [part.dispatch for part in model.modules() if isinstance(part, MoE) and way == "shadowed"]
    for dispatch in shadowed:
        assert isinstance(dispatch, Shadowed)
        dispatch.costs = Costs(row_s=1.0, move_s=1.0, expert_s=0.0)  # in a model this small none would be worth it
    found = trained(model, part_of(rows_of_text(8), rank, ranks), 1 / ranks, micro_batches)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    assert all(dispatch.hot for dispatch in shadowed)
    for kind in ("gradients", "weights"):
        assert found[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            torch.testing.assert_close(
                found[kind][name], tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize(
    ("ranks", "sizes", "micro_batches"),
    [
        (2, {"experts": 2}, 1),
        pytest.param(2, {"experts": 1}, 2, marks=pytest.mark.slow),
        (4, {"experts": 2}, 2),
        pytest.param(4, {"experts": 4}, 1, marks=pytest.mark.slow),
        pytest.param(4, {"experts": 2, "replicate": 2}, 1, marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_one_process(tmp_path: Path, ranks: int, sizes: dict[str, int], micro_batches: int) -> None:
    torch.save(trained(model_of(), rows_of_text(8), 1.0), tmp_path / "one.pt")
    on_ranks(ranks, compare, ranks, sizes, micro_batches, tmp_path / "one.pt", "plain")


def global_balance(rank: int, path: Path) -> None:
    model = model_of(meshes("cpu", 2, experts=2), balance=balanced_over("global"))
    for layer in model.decoder.layers:
        if isinstance(layer.ffn, MoE):
            layer.ffn.balance.over_ranks = summed
    sums = model.losses(part_of(rows_of_text(8), rank, 2))
    torch.testing.assert_close(summed(sums.balance), torch.load(path), rtol=1e-5, atol=0)


def summed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def balanced_over(group: str) -> dict[str, Any]:
    return {"class_path": "mm1.model.moe.losses.LoadTimesShare", "init_args": {"group": group}}


def test_balance_over_all_ranks_is_that_of_one_batch(tmp_path: Path) -> None:
    whole_batch = model_of(balance=balanced_over("batch")).losses(rows_of_text(8)).balance
    torch.save(whole_batch, tmp_path / "one.pt")
    on_ranks(2, global_balance, tmp_path / "one.pt")


def sum_at_last(rank: int) -> None:
    model = model_of(meshes("cpu", 2))
    for last in (False, False, True):
        sum_gradients(model, last)
        loss_of(model, part_of(rows_of_text(8), rank, 2), 0.5).backward()
        assert all((p.grad is not None) == last for p in model.parameters())  # a shard's gradient is a sum over ranks


def test_only_the_last_micro_batch_adds_up_ranks() -> None:
    on_ranks(2, sum_at_last)


@pytest.mark.parametrize(
    ("ranks", "way"), [(2, "shadowed"), (4, "overlapped"), pytest.param(2, "overlapped", marks=pytest.mark.slow)]
)
def test_steps_are_the_same_however_rows_meet_their_experts(tmp_path: Path, ranks: int, way: Way) -> None:
    """On four ranks two hold slices of the same experts, which FSDP gathers for both parts."""
    torch.save(trained(model_of(), rows_of_text(8), 1.0), tmp_path / "one.pt")
    on_ranks(ranks, compare, ranks, {"experts": 2}, 2, tmp_path / "one.pt", way)


def test_shadows_of_experts_that_are_cut_are_told() -> None:
    on_ranks(4, refused_shadows)


def refused_shadows(rank: int) -> None:
    with pytest.raises(UserError, match="shadowed experts are cut by 2 ranks each"):
        shard(build(tiny_model(experts=4)), meshes("cpu", 4, experts=2), "shadowed")


def test_experts_that_ranks_do_not_divide_are_told() -> None:
    on_ranks(4, refused)


def refused(rank: int) -> None:
    tree = tiny_model(experts=6)
    with pytest.raises(UserError, match="6 experts on 4 ranks; expected a number of ranks that divides them"):
        shard(build(tree), meshes("cpu", 4, experts=4))


def test_sizes_that_do_not_divide_are_told() -> None:
    with pytest.raises(UserError, match="6 ranks are not replicate=4 times shard=1"):
        meshes("cpu", 6, replicate=4)
    with pytest.raises(UserError, match="experts=4 among 6 ranks that share a copy"):
        meshes("cpu", 6, experts=4)
