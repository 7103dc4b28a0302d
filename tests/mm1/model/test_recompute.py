"""Recomputing changes no number, runs no product twice where it is selective, and keeps less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from mm1.errors import UserError
from mm1.model import ffn
from mm1.model.attention import same_document
from mm1.model.decoder import Decoder
from mm1.model.ffn import gated
from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import add_rows, take_rows
from mm1.model.moe.layer import MoE
from mm1.model.moe.routing import Places, Rows
from mm1.model.plain_block import PlainBlock, run_blocks
from mm1.model.products import _Linear
from mm1.model.recompute import PRODUCTS, Checkpointing, keeps
from mm1.model.vision import OpenClip, Timm
from mm1.train.exchange import experts_of

WAYS: tuple[Checkpointing, ...] = (False, True, "selective")
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sparse": {"moe": lambda width, ffn_width: MoE(width, ffn_width, experts=4), "qk_norm": "head"},
    "norms after": {"norm_place": "after", "attention_bias": "all"},
    "dropout": {"dropout": 0.3},
    "vision": {},
}
# The last products of layers, whose answers nothing waits for; in a sparse one its statistics' too.
UNREAD = {"dense": 2, "sparse": 4, "norms after": 0, "dropout": 0, "vision": 2}
Run = Callable[[], Tensor]


class Counting(TorchDispatchMode):
    """How often operators ran that are worth keeping."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if keeps(func, PRODUCTS):
            self.seen[func.name()] += 1
        return func(*args, **kwargs or {})


def blocks(kind: type[ResidualAttentionBlock]) -> nn.ModuleList:
    made = nn.ModuleList(ResidualAttentionBlock(32, 2) for _ in range(2))
    for block in made:
        block.__class__ = kind
    return made


def part(kind: str, checkpointing: Checkpointing) -> tuple[nn.Module, Run]:
    """A decoder or a tower's blocks, and how to get a loss of it."""
    torch.manual_seed(0)
    if kind == "vision":
        tower, x_IPV = blocks(PlainBlock), torch.randn(16, 17, 32)

        def see() -> Tensor:
            return run_blocks(tower, x_IPV, checkpointing).square().sum()

        return tower, see
    sizes: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48}
    decoder = Decoder(64, **sizes, **KINDS[kind], checkpointing=checkpointing)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    x_BTD, segments_BT = torch.randn(2, 120, 32), torch.tensor([[1] * 70 + [2] * 50, [1] * 90 + [0] * 30])
    positions_BT = torch.arange(120).expand(2, -1)

    def loss() -> Tensor:
        torch.manual_seed(1)
        out = decoder(x_BTD, segments_BT, positions_BT)
        return out.hidden_BTD.square().sum() + out.router.loss

    return decoder, loss


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_and_only_whole_layers_run_products_twice(kind: str) -> None:
    ran, grads, losses = [], [], []
    for way in WAYS:
        module, loss = part(kind, way)
        with Counting() as counting:
            losses.append(loss())
            forward = counting.seen.copy()
            grads.append(gradients(module, losses[-1]))
        ran.append((forward, counting.seen))
    assert len(grads[0]) > 10
    for other in (1, 2):
        assert torch.equal(losses[other], losses[0])
        same(grads[other], grads[0])
        assert ran[other][0] == ran[0][0]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in ran[0][0]
    assert ran[2][1] == ran[0][1]
    choices, twice = ran[0][0]["aten::topk"], ran[1][1].total() - ran[0][1].total()
    assert twice == ran[0][0].total() - choices - UNREAD[kind]


def bytes_kept(kind: str, way: Checkpointing) -> int:
    """Bytes that a forward pass leaves behind, as the allocator sees it."""
    _, loss = part(kind, way)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        value = loss()
    assert value.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_keeps_less(kind: str) -> None:
    everything, inputs, products = (bytes_kept(kind, way) for way in WAYS)
    assert inputs < products < 0.8 * everything


def test_blocks_that_stay_open_clips_are_recomputed_too() -> None:
    grads = []
    for way in WAYS:
        torch.manual_seed(0)
        tower, x_IPV = blocks(ResidualAttentionBlock), torch.randn(4, 5, 32)
        grads.append(gradients(tower, run_blocks(tower, x_IPV, way).square().sum()))
    same(grads[1], grads[0])
    same(grads[2], grads[0])


def counted() -> tuple[Any, list[Counter[str]]]:
    """A compiler that compiles nothing but says what operators stand in each graph, forward and backward."""
    graphs: list[Counter[str]] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        names = (call.name() for call in calls if isinstance(call, torch._ops.OperatorBase) and keeps(call, PRODUCTS))
        graphs.append(Counter(names))
        return make_boxed_func(graph.forward)

    rule: Any = min_cut_rematerialization_partition
    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=rule), graphs


def all_at_once(x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
    """Experts as a GPU's operators go through them, whole for a compiler: each row is given matrices of its own."""
    expert_R = experts_of(rows)
    x_RD = take_rows(x_MD, rows).unsqueeze(1)
    hidden_RF = gated(torch.bmm(x_RD, experts.gate_up[expert_R].mT)) * rows.weights_R[:, None, None]
    return add_rows(torch.bmm(hidden_RF, experts.down[expert_R].mT).squeeze(1), rows, len(x_MD))


@pytest.mark.parametrize("kind", ["dense", "sparse", "vision"])
def test_compiled_layers_run_no_product_twice(kind: str) -> None:
    grads, ran = [], []
    for way in (False, "selective"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        module, loss = part(kind, way)
        for layer in module.modules():
            if isinstance(layer, MoE):
                layer.dispatch = all_at_once
        backend, graphs = counted()
        for layer in module.layers if isinstance(module, Decoder) else module.children():
            layer.compile(backend=backend, dynamic=kind == "vision" or None)  # as MM1.compile_parts does
        value = loss()
        grads.append(gradients(module, value))
        ran.append(sum(graphs, Counter()))
        assert not torch._dynamo.utils.counters["graph_break"]
    same(grads[1], grads[0])
    assert ran[1] == ran[0]


def test_a_gpus_own_gradients_keep_no_more_and_run_no_product_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gate's gradient is a kernel and those of weights are products of their own, in a compiled layer."""
    pytest.importorskip("triton", reason="Triton is not installed: its interpreter runs the kernel")
    monkeypatch.setattr(ffn, "gated", ffn._Gated.apply)
    monkeypatch.setattr(ffn, "in_whole_waves", lambda layer, x: _Linear.apply(x, layer.weight, layer.bias))
    grads, ran = [], []
    for way in WAYS:
        torch._dynamo.reset()
        module, loss = part("dense", way)
        backend, graphs = counted()
        for layer in module.layers:  # type: ignore[union-attr]
            layer.compile(backend=backend)
        grads.append(gradients(module, loss()))
        ran.append(sum(graphs, Counter()))
    same(grads[1], grads[0])
    same(grads[2], grads[0])
    assert ran[2] == ran[0]


def test_compiled_layers_run_flex_attention_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's attention; a CPU refuses gradients of it, for want of kernels that nothing here asks for."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    import lightning  # whose wrapper of torch.compile the compiler does not see through

    assert hasattr(torch.compile, "__wrapped__"), lightning.__version__
    x_BTD, ones_BT = torch.randn(2, 128, 32), torch.ones(2, 128, dtype=torch.int64)
    mask = flex_attention.create_block_mask(same_document(ones_BT, None), 2, None, 128, 128, device="cpu")
    grads, ran = [], []
    for selective in (False, True):
        torch._dynamo.reset()
        decoder, _ = part("dense", False)
        assert isinstance(decoder, Decoder)
        backend, graphs = counted()
        layer = decoder.layers[0]
        layer.compile(backend=backend)
        rotation = decoder.rope.rotation(ones_BT, ones_BT, decoder.head_width, decoder.rope_base)
        answer, _ = layer(x_BTD, rotation, mask, Places.of_text(ones_BT > 0), None, 0, selective)
        grads.append(gradients(layer, answer.square().sum()))
        ran.append(sum(graphs, Counter()))
    same(grads[1], grads[0])
    assert ran[1] == ran[0]
    assert ran[1]["flex_attention"] == 1


@pytest.mark.parametrize("value", ["products", 1, None])
def test_a_wrong_value_is_told_with_the_choices(value: Any) -> None:
    sizes: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "ffn_width": 48}
    told = "init_args.checkpointing is .*; expected false, true or selective"
    with pytest.raises(UserError, match=f"model.decoder.{told}"):
        Decoder(64, **sizes, checkpointing=value)
    with pytest.raises(UserError, match=f"model.vision.{told}"):
        OpenClip("ViT-B-32", layers=1, checkpointing=value)


def test_timm_recomputes_whole_blocks_alone() -> None:
    tower = Timm("vit_tiny_patch16_224", layers=1, checkpointing=True)
    assert tower.visual.grad_checkpointing
    with pytest.raises(UserError, match=r"checkpointing is 'selective'; expected false or true: timm"):
        Timm("vit_tiny_patch16_224", layers=1, checkpointing="selective")  # type: ignore[arg-type]
