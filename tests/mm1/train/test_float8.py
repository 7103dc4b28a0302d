"""Products in 8 bits: what multiplies so and what does not, that it learns the same, and that checkpoints know nothing.

Without a GPU torchao computes the same roundings by products in fp32; ``test_gpu_float8`` has the real ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

import mm1
from mm1.errors import UserError
from mm1.interop.export import export
from mm1.model.build import build
from mm1.model.count import flops
from mm1.model.mm1 import MM1
from mm1.model.stored import read
from mm1.runs import Run
from mm1.train import float8
from mm1.train.module import Objective
from mm1.train.parallel import meshes, shard, whole
from tests.conftest import fit, run_config, tiny_model
from tests.mm1.train.test_cut import rows, share_of
from tests.mm1.train.test_parallel import gathered, on_ranks

pytestmark = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: mm1[float8]")
CPU = torch.device("cpu")
OPEN_CLIP = {"name": "ViT-B-32", "image_px": 28, "patch_px": 7, "width": 32, "layers": 2, "heads": 2, "ffn_width": 48}
STEPS, TARGETS_ELSEWHERE = 40, 4096


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "EMULATE", True)


def made(device: str = "cpu", experts: int = 0, moe: dict[str, Any] | None = None, **decoder: Any) -> MM1:
    """A tiny model with open_clip's tower, as big pictures have it; its values are those of seed 0."""
    tree = tiny_model(experts)
    tree["init_args"]["vision"] = {"class_path": "mm1.model.vision.OpenClip", "init_args": OPEN_CLIP}
    tree["init_args"]["decoder"]["init_args"] |= decoder | ({} if moe is None else {"moe": moe})
    model = build(tree, device)
    if device == "cpu":
        model.init_weights(0)
    return model


def learnt(model: MM1) -> dict[str, Tensor]:
    """The loss and all gradients of one batch."""
    batch = rows()
    sums = model.losses(batch)
    (sums.cross_entropy / batch.targets + sums.router / batch.tokens).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": sums.cross_entropy.detach(), **found}


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """Through 8 bits and back with one scale, from the definition: the largest becomes the largest there is."""
    scale = torch.finfo(kind).max / x.abs().max()
    return (x * scale).to(kind).float() / scale


def in_eight_bits(model: MM1) -> set[str]:
    names = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    blocks = enumerate(model.vision.blocks)
    return names | {f"vision.visual.transformer.resblocks.{i}.attn" for i, b in blocks if "product" in vars(b)}


DECODER = [f"decoder.layers.{i}.attention.{part}" for i in (0, 1) for part in "qkvo"]
DENSE = [f"decoder.layers.{i}.ffn.{part}" for i in (0, 1) for part in ("gate_up", "down")]
TOWER = [
    f"vision.visual.transformer.resblocks.{i}.{part}"
    for i in (0, 1)
    for part in ("attn", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
]
SPARSE = {"class_path": "mm1.model.moe.layer.MoE", "init_args": {"experts": 4, "top_k": 2, "shared_width": 32}}
AROUND = {"class_path": "mm1.model.moe.around.Around", "init_args": {"moe": SPARSE}}
SOFT = {"class_path": "mm1.model.moe.soft.SoftMixture", "init_args": {"experts": 4}}


@pytest.mark.parametrize(
    ("moe", "expected"),
    [
        (None, DENSE),
        (SPARSE, [*DENSE[:2], "decoder.layers.1.ffn.shared.gate_up", "decoder.layers.1.ffn.shared.down"]),
        (AROUND, [*DENSE[:2], *(f"decoder.layers.1.ffn.{part}.{m}" for part in ("before", "sparse.shared")
                                for m in ("gate_up", "down"))]),
        (SOFT, DENSE[:2]),
    ],
    ids=["dense", "shared", "around", "soft"],
)  # fmt: skip
def test_what_multiplies_in_eight_bits(emulated, moe, expected):
    model = made(moe=moe)
    before, values = flops(model), {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    for _ in range(2):  # a second time changes nothing
        float8.convert(model, "tensorwise", CPU)
        assert in_eight_bits(model) == {*DECODER, *expected, *TOWER}
    assert flops(model) == before
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert [*model.state_dict()] == [*values]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())


def test_an_empty_model_is_filled_as_ever(emulated):
    plain, model = made(), made("meta")
    float8.convert(model, "rowwise", CPU)
    model.to_empty(device="cpu")
    model.init_weights(0)
    assert len(in_eight_bits(model)) == len({*DECODER, *DENSE, *TOWER})
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.state_dict().items())


def test_sizes_that_do_not_fit_stay_and_are_told_of(emulated, caplog):
    caplog.set_level("INFO", logger="mm1.train.float8")
    model = made(width=48, ffn_width=64, heads=2, kv_heads=1)  # keys are 24 wide
    float8.convert(model, "tensorwise", CPU)
    assert in_eight_bits(model) == {*DENSE, *TOWER, *(n for n in DECODER if n[-1] in "qo")}
    assert "16 matrices; 4 are not, such as decoder.layers.0.attention.k" in caplog.text


@pytest.mark.parametrize("place", ["the tower's projection", "a layer"])
def test_a_product_is_that_of_scaled_and_rounded_sides(emulated, place):
    """Forwards and for both gradients, worked out from the definition."""
    model = made()
    float8.convert(model, "tensorwise", CPU)
    block, g = model.vision.blocks[0], torch.Generator().manual_seed(3)
    x = (1e-3 * torch.randn(3, 17, 32, generator=g)).requires_grad_()
    y_grad = 1e-7 * torch.randn(3, 17, 96 if place != "a layer" else 48, generator=g)
    if place == "a layer":
        weight, bias, y = block.mlp.c_fc.weight, block.mlp.c_fc.bias, block.mlp.c_fc(x)
    else:
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        y = block.product(x, weight, bias)
    y.backward(y_grad)
    x_8, w_8 = (rounded(t.detach(), torch.float8_e4m3fn) for t in (x, weight))
    g_8 = rounded(y_grad, torch.float8_e5m2)
    torch.testing.assert_close(y, x_8 @ w_8.T + bias)
    torch.testing.assert_close(x.grad, g_8 @ w_8)
    torch.testing.assert_close(weight.grad, g_8.flatten(0, 1).T @ x_8.flatten(0, 1))
    exact = y_grad.flatten(0, 1).T @ x.detach().flatten(0, 1)
    assert 0.005 < float((weight.grad - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_where_nothing_is_learnt_products_are_in_full(emulated, recipe):
    """Lightning validates in inference mode, in which torchao's tensors lack an operator by rows."""
    plain, model, batch = made(), made(), rows()
    float8.convert(model, recipe, CPU)
    expected = plain.losses(batch).cross_entropy
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            assert torch.equal(model.losses(batch).cross_entropy, expected)
    assert not torch.equal(model.losses(batch).cross_entropy, expected)
    strange_BTD = torch.randn(32, 3, 16).permute(1, 2, 0)  # in memory another order
    assert model.decoder.layers[0].ffn(strange_BTD).isfinite().all()


def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.float8 import float8_scaling_utils

    scale = float8_scaling_utils.tensor_to_scale
    monkeypatch.setattr(float8_scaling_utils, "tensor_to_scale", lambda *a, **k: torch.ones_like(scale(*a, **k)))


@pytest.mark.parametrize(
    ("experts", "weights", "recipes"), [(0, "bfloat16", ("tensorwise",)), (4, "float32", ("tensorwise", "rowwise"))]
)
def test_it_learns_what_full_products_learn(make_corpus, tmp_path, monkeypatch, emulated, experts, weights, recipes):
    """Forty steps from 5.8 nats to 2.5, with gradients as small as those of a step of half a million targets.

    Measured with three seeds, dense and sparse, both types of weights, as nats from the curve of full products in the
    mean of the last ten steps: tensorwise at most 0.056, rowwise 0.028, the curve of another seed 0.13; without scales,
    where 8 bits hold no such gradients, at least 0.19.
    """
    corpus = make_corpus(captions=41, interleaved=30, text=17)
    monkeypatch.setattr(Objective, "over_hosts", lambda _, values: [TARGETS_ELSEWHERE * value for value in values])

    def curve(name: str, recipe: str) -> Tensor:
        trainer = {"max_steps": STEPS, "log_every_n_steps": 1, "limit_val_batches": 0}
        config = run_config(corpus, experts, **trainer) | {"save_every_n_steps": 1000, "validate_every_n_steps": 1000}
        config["model"] |= {"weights": weights, "float8": recipe}
        config["model"]["optimizer"]["lr"] = 5e-3
        return torch.tensor([line["loss"] for line in fit(tmp_path / name, config).history("train")])

    full = curve("full", "none")
    assert len(full) == STEPS
    assert full[0] > 5.5
    assert full[-1] < 3
    for recipe in recipes:
        off = (curve(recipe, recipe) - full).abs()
        assert 0 < off[-10:].mean() < 0.1
        assert off.max() < 0.12
    unscaled(monkeypatch)
    off = (curve("unscaled", "tensorwise") - full).abs()
    assert off[-10:].mean() > 0.15


def halted(folder: Path, corpus: Path, step: int, recipe: str, weights: str = "float32") -> Run:
    until = [{"class_path": "tests.mm1.train.test_masters.Until", "init_args": {"step": step}}]
    config = run_config(corpus, 0, max_steps=6, callbacks=until, log_every_n_steps=1, limit_val_batches=2)
    config["model"] |= {"weights": weights, "float8": recipe}
    return fit(folder, config)


@pytest.mark.parametrize("recipes", [("tensorwise", "none"), ("none", "rowwise")])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_a_run_goes_on_in_other_products(corpus, tmp_path, emulated, recipes, weights):
    run = halted(tmp_path / "run", corpus, 3, recipes[0], weights)
    saved = torch.load(run.last, weights_only=True)["state_dict"]
    assert saved.keys() == {f"model.{name}" for name in build(tiny_model()).state_dict()}
    assert {tensor.dtype for tensor in saved.values()} <= {torch.float32, torch.bfloat16}
    run = halted(tmp_path / "run", corpus, 6, recipes[1], weights)
    assert [line["step"] for line in run.history("train")] == [1, 2, 3, 4, 5, 6]
    assert run.history("val")


def test_its_checkpoints_are_everybodys(corpus, tmp_path, emulated, monkeypatch):
    run = halted(tmp_path / "run", corpus, 6, "tensorwise")
    weights = read(run.last).weights
    folder = export(run.last, tmp_path / "folder")
    started = run_config(corpus, 0, max_steps=1, limit_val_batches=0) | {"init_from": str(run.last)}
    assert fit(tmp_path / "tuned", started).history("train")
    monkeypatch.setattr(float8, "EMULATE", False)
    for path in (run.last, folder):
        model = mm1.load(path).model
        assert not in_eight_bits(model)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_the_gpus_products_get_sizes_that_they_take(recipe, monkeypatch):
    """Of any number of pictures and rows: cuBLAS wants multiples of 16 along what is summed and across its answer."""
    monkeypatch.setattr(float8, "_check", lambda *_: None)
    seen: list[tuple[int, ...]] = []

    def scaled_mm(
        a: Tensor, b: Tensor, *, scale_a: Tensor, scale_b: Tensor, out_dtype: torch.dtype, **_: Any
    ) -> Tensor:
        assert a.stride(1) == 1
        assert b.stride(0) == 1
        assert a.shape[1] % 16 == b.shape[0] % 16 == b.shape[1] % 16 == 0
        seen.append((*a.shape, b.shape[1]))
        return (a.float() * scale_a @ (b.float() * scale_b)).to(out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    model, plain = made().bfloat16(), made()
    float8.convert(model, recipe, CPU)
    found, exact = learnt(model), learnt(plain)  # 3 pictures of 17 patches, 4 rows of 24 positions
    assert len(seen) == (2 if recipe.endswith("hp") else 3) * len(in_eight_bits(model))
    off = sum(float((found[name].float() - exact[name]).square().sum()) for name in exact)
    assert (off / sum(float(g.square().sum()) for g in exact.values())) ** 0.5 < 0.1


@pytest.mark.parametrize("recipe", ["tensorwise", pytest.param("rowwise", marks=pytest.mark.slow)])
def test_compiled_layers_compute_the_same(emulated, recipe):
    """Without a break in the graph, and pictures in any number by the same code."""
    model = made()
    float8.convert(model, recipe, CPU)
    block, ffn = model.vision.blocks[0], model.decoder.layers[0].ffn
    graphs: list[int] = [0]

    def backend(graph: Any, inputs: Any) -> Any:
        graphs[-1] += 1
        return aot_eager(graph, inputs)

    def computed() -> list[Tensor]:
        found: list[Tensor] = []
        for pictures in (3, 5, 7):
            x_IPV = torch.linspace(-1, 1, pictures * 17 * 32).sin().view(pictures, 17, 32).requires_grad_()
            model.zero_grad()
            y = ffn(x_IPV[:, :16]) if pictures == 7 else sum(block(x_IPV, None))
            (y * 1e-5).square().mean().backward()
            weights = (*block.parameters(), *ffn.parameters())
            found += [y.detach(), x_IPV.grad, *(p.grad for p in weights if p.grad is not None)]
            graphs.append(0)
        return found

    plain = computed()
    assert not any(graphs)
    torch._dynamo.reset()
    block.compile(backend=backend, dynamic=True, fullgraph=True)
    ffn.compile(backend=backend, fullgraph=True)
    for found, expected in zip(computed(), plain, strict=True):
        torch.testing.assert_close(found, expected)
    assert [count > 0 for count in graphs[3:]] == [True, False, True, False]


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise_with_gw_hp"])
def test_recomputing_changes_nothing_and_repeats_no_product_where_it_selects(emulated, recipe):
    found, products = {}, {}
    for way in (False, "selective", True):
        model = made(checkpointing=way)
        model.vision.checkpointing = way
        float8.convert(model, recipe, CPU)
        with Products() as counted:
            found[way] = learnt(model)
        products[way] = counted.number
    for way in ("selective", True):
        assert all(torch.equal(found[way][name], value) for name, value in found[False].items())
    assert products["selective"] == products[False] < products[True]


class Products(TorchDispatchMode):
    """Counts them."""

    number = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += operator is torch.ops.aten.mm.default
        return operator(*args, **(kwargs or {}))


def shared(rank: int, exact: dict[str, Tensor]) -> None:
    float8.EMULATE = True
    model = made("meta")
    float8.convert(model, "rowwise_with_gw_hp", CPU)
    shard(model, meshes("cpu", 2))
    model.to_empty(device="cpu")
    model.init_weights(0, whole)
    batch = rows()
    sums = model.losses(share_of(batch, rank, 2))
    (sums.cross_entropy / batch.targets).backward()
    found = gathered({name: p.grad for name, p in model.named_parameters()})
    for name, value in exact.items():
        if name != "loss":
            torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2 * float(value.abs().max()))


def test_ranks_that_share_weights_learn_what_one_does(emulated):
    """By this recipe, whose scales are of a row or of the whole weight; others scale what a rank has of the rows."""
    model = made()
    float8.convert(model, "rowwise_with_gw_hp", CPU)
    on_ranks(2, shared, learnt(model))


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    return torch.device("cuda:0")


def test_gpus_that_are_too_old(old_gpu):
    with pytest.raises(
        UserError, match=r"tensorwise and this GPU \(NVIDIA A100, compute capability 8\.0\) has no such"
    ):
        float8.convert(made(), "tensorwise", old_gpu)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, r"model\.float8 is rowwise and the run computes on a cpu, .*; expected none, or a GPU \(trainer\.acc"),
        ({"lora": {"rank": 2}}, r"model\.float8 is rowwise and model\.lora trains adapters; expected float8: none"),
    ],
)
def test_runs_that_cannot_be(corpus: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    config = run_config(corpus, 0)
    config["model"] |= {"float8": "rowwise", **change}
    with pytest.raises(UserError, match=told):
        fit(tmp_path / "run", config)


def odd(model: MM1) -> None:
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.Linear):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Linear(module.in_features + 1, module.out_features))


@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (
            lambda m: float8.convert(m, "columnwise", CPU),
            r"model\.float8 is 'columnwise'; expected one of none, tensor",
        ),
        (lambda m: float8.convert(m, "rowwise", CPU, ranks_of_a_layer=2), r"2 ranks share each layer.*tensor 1"),
        (lambda m: (odd(m), float8.convert(m, "rowwise", CPU)), r"no linear layer of this model has both sizes a mult"),
    ],
)
def test_models_that_cannot_be(emulated, convert: Callable[[MM1], Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        convert(made())


def test_without_torchao_one_sentence(emulated, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    model = made()
    with pytest.raises(UserError, match=r"needs the package torchao, which is not there; pip install 'mm1\[float8\]'"):
        float8.convert(model, "tensorwise", CPU)
    assert not in_eight_bits(model)
