"""A sharded model that is gathered in bf16: what is lowered and what is not, how often, and how far off it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor

from mm1.model.mm1 import MM1
from mm1.model.moe.experts import Experts
from mm1.model.moe.routers import Router
from mm1.train.parallel import meshes, shard, sum_gradients, whole
from mm1.train.placing import boxed
from tests.mm1.train.test_cut import ALL, model_of, rows, share_of
from tests.mm1.train.test_parallel import gathered, on_ranks


def low_model(options: dict[str, Any], **sizes: int) -> MM1:
    from mm1.model.build import build
    from tests.conftest import tiny_model

    options = {**options}
    tree = tiny_model(experts=options.pop("experts", 0))
    tree["init_args"]["decoder"]["init_args"] |= options
    model = build(tree)
    shard(model, meshes("cpu", 2, **sizes), low=torch.bfloat16)
    model.to_empty(device="cpu")
    model.init_weights(0, whole)
    return model


def gradients(model: MM1, reader: int, readers: int, micro_batches: int = 1) -> dict[str, Tensor]:
    batch = rows()
    for index in range(micro_batches):
        sum_gradients(model, index == micro_batches - 1)
        part = share_of(share_of(batch, reader, readers), index, micro_batches)
        with torch.autocast("cpu", torch.bfloat16):
            sums = model.losses(part)
        (sums.cross_entropy / batch.targets + sums.router / batch.tokens).backward()
    return gathered({name: p.grad for name, p in model.named_parameters()})


def kinds(model: MM1) -> dict[str, set[torch.dtype]]:
    """Types of what modules compute with, noted as they run."""
    found: dict[str, set[torch.dtype]] = {}

    def note(module: nn.Module, given: Any) -> None:
        kind = "router" if isinstance(module, Router) else "others"
        for parameter in module.parameters(recurse=False):
            found.setdefault(kind, set()).add(parameter.dtype)

    for module in model.modules():
        module.register_forward_pre_hook(note)
    return found


def lowered(
    rank: int, options: dict[str, Any], sizes: dict[str, int], exact: dict[str, Tensor], allowed: float
) -> None:
    model = low_model(options, **sizes)
    found = kinds(model)
    shared = sizes.get("tensor", 1)
    ours = gradients(model, rank // shared, 2 // shared, micro_batches=2)
    assert found["others"] == {torch.bfloat16}
    assert found.get("router", {torch.float32}) == {torch.float32}
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert {parameter.dtype, parameter.grad.dtype} == {torch.float32}
    assert apart(ours, exact) < allowed


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    off, size = (sum(float(t.square().sum()) for t in part) for part in
                 ([found[name] - exact[name] for name in exact], exact.values()))  # fmt: skip
    return (off / size) ** 0.5


@pytest.mark.parametrize(
    ("options", "sizes"), [({"experts": 4}, {"experts": 2}), (ALL, {"tensor": 2})], ids=["experts", "tensor"]
)
def test_weights_are_bf16_and_routers_and_sums_are_not(options: dict[str, Any], sizes: dict[str, int]) -> None:
    """Gradients of two micro-batches are about as far from those of fp32 as one process is under autocast."""
    found = []
    for low in (False, True):
        model = model_of(options)
        model.init_weights(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            sums = model.losses(rows())
        (sums.cross_entropy / sums.targets + sums.router / sums.tokens).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    exact, usual = found
    assert 0.001 < apart(usual, exact) < 0.2  # with experts: a near-tie may fall the other way
    on_ranks(2, lowered, options, sizes, exact, 1.5 * apart(usual, exact))


def cast(rank: int) -> None:
    count: Counter[bool] = Counter()
    before = FSDPParamGroup._to_unsharded

    def counted(group: FSDPParamGroup) -> None:
        count[isinstance(group.modules[0], Experts)] += 1
        before(group)

    FSDPParamGroup._to_unsharded = counted  # type: ignore[method-assign]
    model = low_model({"experts": 4}, experts=2)
    gradients(model, rank, 2, micro_batches=2)
    assert count[True] == sum(isinstance(module, Experts) for module in model.modules())
    assert count[False] > 2 * count[True]  # others are gathered forward and backward, in each micro-batch
    gradients(model, rank, 2, micro_batches=2)
    assert count[True] == 2  # of new weights anew


def test_experts_are_cast_once_a_step() -> None:
    """Not in every micro-batch, where a rank has experts to itself."""
    on_ranks(2, cast)


def ahead(rank: int) -> None:
    """When a layer's exchange waits for the sizes, the next layer is on its way."""
    model = low_model({"experts": 4, "layers": 3, "moe_every": 1}, experts=2)
    events: list[str] = []
    names = {id(layer): f"layer {index}" for index, layer in enumerate(model.decoder.layers)}
    before = FSDPParamGroup.unshard

    def noted(group: FSDPParamGroup, async_op: bool = False) -> None:
        if not group.is_unsharded and group._all_gather_result is None and id(group.modules[0]) in names:
            events.append("gather " + names[id(group.modules[0])])
        before(group, async_op)

    FSDPParamGroup.unshard = noted  # type: ignore[method-assign]
    for index, layer in enumerate(model.decoder.layers):
        layer.ffn.register_forward_pre_hook(lambda *_, i=index: events.append(f"exchange {i}"))
        layer.ffn.register_full_backward_pre_hook(lambda *_, i=index: events.append(f"back {i}"))
    gradients(model, rank, 2)
    at = {event: len(events) - 1 - events[::-1].index(event) for event in events}
    first = {event: events.index(event) for event in events}
    assert first["gather layer 1"] < first["exchange 0"]
    assert first["gather layer 2"] < first["exchange 1"]
    assert at["gather layer 1"] < first["back 2"]
    assert at["gather layer 0"] < first["back 1"]


def test_the_next_layer_is_gathered_before_an_exchange_waits() -> None:
    on_ranks(2, ahead)


def save_and_load(rank: int, folder: Path) -> None:
    one = model_of(ALL, meshes("cpu", 4, tensor=2))
    dcp.save({name: boxed(tensor) for name, tensor in one.state_dict().items()}, checkpoint_id=folder)
    for sizes in ({"tensor": 1}, {"tensor": 2, "replicate": 2}):
        other = model_of(ALL, meshes("cpu", 4, **sizes))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        dcp.load({name: boxed(tensor) for name, tensor in other.state_dict().items()}, checkpoint_id=folder)
        wanted = model_of(ALL).state_dict()
        for name, tensor in gathered(other.state_dict()).items():
            torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n} {m}")


def test_sharded_checkpoints_of_a_cut_model_load_in_any_layout(tmp_path: Path) -> None:
    """The halves of a feed-forward layer's matrix are two boxes, and everything is a DTensor of a named mesh."""
    on_ranks(4, save_and_load, tmp_path)


def all_named(rank: int) -> None:
    for sizes in ({"tensor": 2}, {"experts": 2}):
        for name, parameter in model_of({"experts": 4}, meshes("cpu", 2, **sizes)).named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.device_mesh.mesh_dim_names, name


def test_every_parameter_is_on_a_named_mesh() -> None:
    on_ranks(2, all_named)
