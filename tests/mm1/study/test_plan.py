"""A plan against arithmetic done here, against what autograd keeps of real models, and against runs on a GPU."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.count import parameters
from mm1.model.decoder import Decoder
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import MoE
from mm1.model.moe.routing import Places
from mm1.model.recompute import Checkpointing
from mm1.study.__main__ import parser
from mm1.study.plan import compare, make, plan
from mm1.study.plan_cards import CARDS, GIB, RATES, card
from mm1.study.plan_job import Job, job, layout
from mm1.study.plan_kept import kept_bytes, kept_on_gpu
from mm1.study.plan_memory import MARGIN, memory
from mm1.study.plan_time import time
from mm1.train import adamw8bit
from mm1.train.parallel import meshes, shard
from tests.conftest import tiny_model
from tests.mm1.train.test_parallel import on_ranks

WAYS: tuple[Checkpointing, ...] = (False, "selective", True)
ROOT = Path(__file__).resolve().parents[3]
DENSE, SPARSE = (ROOT / "configs" / "train" / f"tiny{kind}_pretrain.yaml" for kind in ("", "_moe"))
BENCHMARK = {"rows": 4, "tokens": 4096, "width": 2048, "layers": 24, "ffn": 5504, "vocabulary": 32064}


def call(decoder: Decoder, layer: nn.Module, x_BTD: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A layer of a decoder on packed rows."""
    ones_BT = torch.ones(x_BTD.shape[:2], dtype=torch.int64)
    rotation = decoder.rope.rotation(ones_BT, ones_BT, decoder.head_width, decoder.rope_base)
    mask = torch.ones(len(x_BTD), 1, 1, x_BTD.shape[1], dtype=torch.bool)
    answer, stats = layer(x_BTD, rotation, mask, Places.of_text(ones_BT > 0))
    return (answer,) if stats is None else (answer, stats.loss)


def decoder_of(width: int, heads: int, ffn: int, moe: object = None) -> Decoder:
    with torch.device("meta"):
        return Decoder(100, width=width, layers=2, heads=heads, ffn_width=ffn, moe=moe)  # type: ignore[arg-type]


def test_states_are_parameters_times_bytes() -> None:
    of = job(DENSE)
    total = sum(p.numel() for p in build(ROOT / "configs/model/tiny.yaml").parameters())
    held = memory(of, layout(1, 1, None, 1))
    assert total == parameters(of.model).total
    assert held.weights == held.gradients == 4 * total
    assert held.optimizer == 8 * total
    assert held.buffers == 0


def test_weights_in_bfloat16_have_masters(tmp_path: Path) -> None:
    config = yaml.safe_load(DENSE.read_text())
    config["model"]["model"] = str((ROOT / "configs/model/tiny.yaml").resolve())
    config["model"] |= {"weights": "bfloat16"}
    config["model"]["optimizer"] |= {"states": "bfloat16"}
    config["data"] = {"row_tokens": 128, "rows_per_step": 8, "images_per_row": 2}
    (tmp_path / "lowered.yaml").write_text(yaml.safe_dump(config))
    on = layout(1, 1, None, 1)
    for micro_batches, gradient in ((1, 2), (2, 4)):
        of = job(tmp_path / "lowered.yaml", micro_batches=micro_batches)
        total, held = parameters(of.model).total, memory(of, on)
        assert (held.weights, held.gradients, held.optimizer) == (2 * total, gradient * total, 8 * total)
        assert held.copies == 0
        card = CARDS["h100"]
        moved = total * (gradient + gradient + 2 * 8 + 2)  # norm; gradient, states both ways, weight
        spent = time(of, on, card, held).compute_s["optimizer"]
        assert spent == pytest.approx(moved / (0.8 * card.memory_gb_s * 1e9))


def tiny(folder: Path, optimizer: str) -> Path:
    """The dense configuration with the smallest model and another optimizer."""
    config = yaml.safe_load(DENSE.read_text())
    config["model"]["model"] = str((ROOT / "configs/model/tiny.yaml").resolve())
    config["model"]["optimizer"] = {"class_path": optimizer, "init_args": {"lr": 1e-4}}
    config["data"] = {"row_tokens": 128, "rows_per_step": 8, "images_per_row": 2}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


def test_adafactor_keeps_no_moments(tmp_path: Path) -> None:
    of, on, card = job(tiny(tmp_path, "mm1.train.adafactor.Adafactor")), layout(1, 1, None, 1), CARDS["h100"]
    total, held = parameters(of.model).total, memory(of, on)
    assert (held.weights, held.optimizer) == (4 * total, 0)
    assert held.peak(1) < memory(job(DENSE), on).peak(1) - 8 * total
    spent = time(of, on, card, held).compute_s["optimizer"]
    assert spent == pytest.approx(total * 4 * (1 + 21) / (0.8 * card.memory_gb_s * 1e9))


def test_moments_in_eight_bits_are_counted_as_training_keeps_them(tmp_path: Path) -> None:
    of, on, card = job(tiny(tmp_path, "mm1.train.adamw8bit.AdamW8bit")), layout(1, 1, None, 1), CARDS["h100"]
    total, held = parameters(of.model).total, memory(of, on)
    states = [adamw8bit._begun(parameter) for parameter in of.model.parameters()]
    assert held.optimizer == sum(t.nbytes for state in states for name, t in state.items() if name != "step")
    assert 2 * total < held.optimizer < 4 * total
    spent = time(of, on, card, held).compute_s["optimizer"]
    assert spent == pytest.approx((total * 16 + 2 * held.optimizer) / (0.8 * card.memory_gb_s * 1e9))
    wide = job(DENSE, rows=64)
    eight = replace(wide, eight_bit=True)
    whole, eighth = (memory(of, layout(8, 1, None, 1)).optimizer for of in (wide, eight))
    assert eighth < 0.4 * whole
    cut = memory(eight, layout(8, 1, None, 1, tensor=8)).optimizer  # by rows of which a rank has no whole block
    assert eighth < cut < whole


def test_ranks_share_weights_and_copies_do_not() -> None:
    of = job(DENSE, rows=8)
    one, four, copies = (memory(of, layout(*on, None, 1)) for on in ((1, 1), (4, 1), (4, 4)))
    padding = 4 * 4 * 3 * sum(p[0].numel() for p in of.model.parameters() if p.ndim)
    assert one.weights / 4 <= four.weights <= one.weights / 4 + padding
    assert copies.weights == one.weights
    assert copies.buffers == 0 < four.buffers


def test_experts_on_several_ranks() -> None:
    of = job(SPARSE, rows=8)
    stacks = 4 * sum(p.numel() for name, p in of.model.named_parameters() if ".experts." in name)
    apart, together = (memory(of, layout(2, 1, None, experts)) for experts in (2, 1))
    assert apart.weights == pytest.approx(together.weights, rel=0.01)
    assert apart.buffers < together.buffers  # nothing of them is gathered
    assert stacks / 2 < apart.weights < memory(of, layout(1, 1, None, 1)).weights - stacks / 2


def test_earlier_micro_batches_leave_whole_gradients() -> None:
    of = job(DENSE, rows=8, micro_batches=2)
    total = sum(p.numel() for p in of.model.parameters())
    assert memory(of, layout(4, 1, None, 1)).gradients == 4 * total


def test_frozen_parts_have_no_gradients(tmp_path: Path) -> None:
    config = yaml.safe_load(DENSE.read_text())
    config["model"]["optimizer"]["parts"] = {"vision": {"frozen": True}}
    config["model"]["model"] = yaml.safe_load((ROOT / "configs/model/tiny.yaml").read_text())
    config["data"] = {"row_tokens": 128, "rows_per_step": 8, "images_per_row": 2}
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(config))
    of = job(tmp_path / "frozen.yaml")
    held = memory(of, layout(1, 1, None, 1))
    vision = 4 * sum(p.numel() for p in of.model.vision.parameters())
    assert held.gradients == held.weights - vision


@pytest.mark.parametrize("checkpointing", [False, "selective", True])
def test_more_gpus_need_less_of_each(checkpointing: Checkpointing) -> None:
    of = job(SPARSE, rows=32)
    of.model.decoder.checkpointing = checkpointing
    plans = [make(of, layout(gpus, 1, None, 2), CARDS["h100"], 1e9) for gpus in (2, 4, 8, 16)]
    for fewer, more in pairwise(plans):
        assert more.memory.weights < fewer.memory.weights
        assert more.peak_gib < fewer.peak_gib
        assert sum(more.time.compute_s.values()) < sum(fewer.time.compute_s.values())
    rows = [plans[0].memory.peak(rows) for rows in (1, 2, 4)]
    assert rows == sorted(rows)


def test_checkpointing_keeps_less_and_computes_more() -> None:
    plans = []
    for again in WAYS:
        of = job(DENSE, rows=8)
        of.model.decoder.checkpointing = again
        plans.append(make(of, layout(1, 1, None, 1), CARDS["h100"], 1e9))
    for more, less in pairwise(plans):
        assert less.memory.row_parts["decoder"] < more.memory.row_parts["decoder"]
        assert less.time.flops == more.time.flops
    kept, selective, whole = plans
    assert min(selective.time.step_s, whole.time.step_s) > kept.time.step_s
    assert sum(selective.time.recomputed.values()) == 0 == whole.time.compute_s["recomputing"]
    assert sum(whole.time.recomputed.values()) > 0 < selective.time.compute_s["recomputing"]


def test_encoders_that_recompute_keep_less() -> None:
    """open_clip's, whose blocks of ours read two tensors, and timm's, which knows whole blocks alone."""
    tree = tiny_model()
    parts = tree["init_args"]
    sizes = {"image_px": 32, "patch_px": 16, "width": 64, "layers": 4, "heads": 2}
    kept = []
    for kind, name in (("OpenClip", "ViT-B-32"), ("Timm", "vit_tiny_patch16_224")):
        for again in WAYS if kind == "OpenClip" else (False, True):
            settings = {"name": name, **sizes, "checkpointing": again}
            parts["vision"] = {"class_path": f"mm1.model.vision.{kind}", "init_args": settings}
            of = Job("tiny", build(tree), "32-true", False, 96, 4, 8, 1, 1)
            on = layout(1, 1, None, 1)
            held = memory(of, on)
            kept.append(held.row_parts["pictures"])
            assert (time(of, on, CARDS["h100"], held).recomputed["encoder"] > 0) == (again is True)
    assert kept[2] < kept[1] < kept[0]
    assert kept[4] < kept[3]
    entry = 4 * of.images * 5 * 64
    assert kept[2] - kept[4] == sizes["layers"] * entry  # the same towers but for what blocks read


def test_kinds_add_up_and_the_largest_micro_batch_is_the_last_that_fits() -> None:
    of = make(job("30b" if Path("configs").exists() else ROOT / "configs/train/pretrain_30b.yaml"),
              layout(512, 1, None, 1), CARDS["h100"], 1e12)  # fmt: skip
    assert sum(of.memory.kinds(3).values()) == of.memory.peak(3)
    assert of.memory.peak(of.largest) <= 79.1 * GIB < of.memory.peak(of.largest + 1)
    assert of.memory.weights == pytest.approx(4 * 31.09e9 / 512, rel=0.03)  # first axes that 512 does not divide
    assert sum(of.time.flops.values()) == pytest.approx(6 * 30e9 * 4096, rel=0.15)


@pytest.mark.parametrize("part", ["feed-forward", "connector", "block"])
def test_kept_is_what_autograd_keeps_of_a_real_model(part: str) -> None:
    model = build(ROOT / "configs/model/tiny.yaml").to_empty(device="cpu")
    model.init_weights(0)
    vision, width = model.vision, model.decoder.width
    module, shape = {
        "feed-forward": (SwiGLU(width, 96), (2, 16, width)),
        "connector": (model.connector, (3, vision.grid**2, vision.width)),
        "block": (vision.blocks[0], (3, vision.grid**2 + 1, vision.width)),
    }[part]
    x = torch.randn(shape, requires_grad=True)
    real = kept_bytes(lambda: module(x), [*module.parameters(), *module.buffers()])
    apart = kept_bytes(lambda: module(x), [*module.parameters(), *module.buffers(), x]) + x.numel() * 4
    told = kept_on_gpu(module, lambda m, x: m(x), shape, dtype=torch.float32, autocast=False, compiled=False)
    assert told == apart
    assert real in (apart, apart - x.numel() * 4)  # the input counts once, kept by autograd or by the caller


def test_a_decoder_layer_keeps_what_counting_by_hand_gives() -> None:
    B, T, D, H, F = 2, 64, 48, 4, 80
    decoder = decoder_of(D, H, F)
    told = kept_on_gpu(
        decoder.layers[0], partial(call, decoder), (B, T, D), dtype=torch.bfloat16, autocast=False, compiled=False
    )
    positions = B * T
    wide = 8 * D  # input, normed, queries, keys, values, answer, sum, normed
    ffn = 2 * F + F + F  # both products, the silu of one, their product
    turns = 4 * (D // H // 2)  # cosines and sines, for queries and for keys
    numbers = H + 2  # fp32: a log-sum per head, a scale per norm
    assert told == positions * (2 * (wide + ffn + turns) + 4 * numbers)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_that_recomputes_keeps_what_counting_by_hand_gives(compiled: bool) -> None:
    B, T, D, H, F = 2, 64, 48, 4, 80
    decoder = decoder_of(D, H, F)
    layer = decoder.layers[0]
    keep = partial(kept_on_gpu, layer, partial(call, decoder), (B, T, D), dtype=torch.bfloat16, autocast=False)
    told = keep(compiled=compiled, selective=True, unread=layer.unread)
    wide = 6 * D  # input, queries, keys, values, answer, its projection; the last product's is for the next layer
    assert told == B * T * (2 * (wide + 2 * F) + 4 * H)  # a log-sum per head


def test_what_recomputing_keeps_is_what_a_real_layer_leaves_behind() -> None:
    """All that is alive after a forward pass, but for what the random state and the answer take."""
    torch.manual_seed(0)
    decoder = Decoder(100, width=48, layers=1, heads=4, ffn_width=80, checkpointing="selective")
    layer, x_BTD = decoder.layers[0], torch.randn(2, 64, 48)
    ones_BT = torch.ones(2, 64, dtype=torch.int64)
    rotation = decoder.rope.rotation(ones_BT, ones_BT, decoder.head_width, decoder.rope_base)
    mask, places = torch.ones(2, 1, 64, 64, dtype=torch.bool), Places.of_text(ones_BT > 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        answer, _ = layer(x_BTD, rotation, mask, places, None, 0, True)
    real = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    told = kept_on_gpu(
        layer,
        partial(call, decoder),
        (2, 64, 48),
        dtype=torch.float32,
        autocast=False,
        compiled=False,
        selective=True,
        unread=layer.unread,
    )
    assert real - answer.numel() * 4 - torch.get_rng_state().numel() == told - x_BTD.numel() * 4


def _benchmark(sparse: bool) -> tuple[float, float]:
    """GiB and milliseconds that a plan gives for docs/benchmarks/decoder.csv."""
    b, moe = BENCHMARK, partial(MoE, experts=8, top_k=2, expert_width=2752) if sparse else None
    decoder = decoder_of(b["width"], 16, b["ffn"], moe)
    keep = partial(kept_on_gpu, dtype=torch.bfloat16, autocast=False, compiled=True)
    shape = (b["rows"], b["tokens"], b["width"])
    activations = 12 * sum(keep(layer, partial(call, decoder), shape) for layer in decoder.layers)
    head = b["vocabulary"] * b["width"]
    total = 12 * sum(p.numel() for p in decoder.layers.parameters()) + 2 * head
    positions = b["rows"] * b["tokens"]
    loss = 6 * head + 6 * 1024 * b["vocabulary"] + 3 * 2 * positions * b["width"]
    peak = (1 + MARGIN) * (6 * total + activations + loss) / GIB
    expert = 12 * 3 * b["width"] * b["ffn"] if sparse else 0
    matrices = 24 * (4 * b["width"] ** 2 + 3 * b["width"] * b["ffn"]) + head - expert
    best = CARDS["h200"].tflops * 1e12
    seconds = 6 * positions * matrices / (RATES["decoder"].share * best)
    seconds += 6 * positions * expert / (RATES["experts"].share * best)
    seconds += 12 * 24 * b["width"] * positions * 256.5 / (RATES["attention"].share * best)  # documents of 512
    seconds += 14 * total / (RATES["optimizer"].share * CARDS["h200"].memory_gb_s * 1e9)
    return peak, 1e3 * seconds


def test_calibration_gives_the_runs_it_was_made_with() -> None:
    with (ROOT / "docs/benchmarks/decoder.csv").open(newline="") as lines:
        runs = list(csv.DictReader(lines))[:2]
    for run, sparse in zip(runs, (False, True), strict=True):
        peak_gib, ms = _benchmark(sparse)
        assert peak_gib == pytest.approx(float(run["peak_gib"]), rel=0.04)
        assert ms == pytest.approx(float(run["ms"]), rel=0.02)


@pytest.mark.parametrize(("gpus", "gib"), [(1, 27.86), (2, 15.23)])
def test_sparse_layers_against_a_run_whose_memory_fitted_no_constant(gpus: int, gib: float) -> None:
    """docs/benchmarks/experts.csv: two layers of 64 experts, no optimizer, at the end of the backward pass."""
    decoder = decoder_of(2560, 20, 6912, partial(MoE, experts=64, top_k=2))
    moe = decoder.layers[1].ffn
    places = Places.of_text(torch.ones(4, 4096, dtype=torch.bool))
    shape, kind = (4, 4096, 2560), torch.bfloat16

    def routed(part: nn.Module, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer, stats = part(x_BTD, places)
        return answer, stats.loss

    layer = kept_on_gpu(moe, routed, shape, dtype=kind, autocast=False, compiled=False)
    states = 2 * 2 * 2 * sum(p.numel() for p in moe.parameters()) / gpus
    assert (1 + MARGIN) * (states + layer) / GIB == pytest.approx(gib, rel=0.10)


def spread_as_planned(rank: int, tree: dict[str, Any], planned: list[tuple[dict[str, int], float]]) -> None:
    for sizes, numbers in planned:
        model = build(tree)
        shard(model, meshes("cpu", 4, **sizes))
        held = sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[attr-defined]
        assert rank or held == numbers, sizes


@pytest.mark.parametrize("experts", [0, 4])
def test_the_first_rank_has_what_training_gives_it(experts: int) -> None:
    tree = tiny_model(experts)
    of = Job("tiny", build(tree), "32-true", False, 96, 4, 8, 1, 1)
    axes = [{"tensor": 2}, {"tensor": 2, "replicate": 2}, {"replicate": 2}, {}]
    axes += [{"experts": 2}, {"tensor": 2, "experts": 4}] if experts else []
    planned = []
    for sizes in axes:
        on = layout(4, sizes.get("replicate", 1), None, sizes.get("experts", 1), sizes.get("tensor", 1))
        planned.append((sizes, memory(of, on).weights / 4))
    on_ranks(4, spread_as_planned, tree, planned)


def test_layers_that_ranks_share() -> None:
    """Half of a layer each, and what its ranks tell each other: rows in bf16, twice a layer, gathered and scattered."""
    of = Job("tiny", build(tiny_model()), "32-true", False, 96, 4, 8, 1, 1)
    whole, cut = layout(2, 1, None, 1), layout(4, 1, 2, 1, 2)
    alone, shared = memory(of, whole), memory(of, cut)
    assert shared.buffers < alone.buffers
    assert shared.row_parts["pictures"] == alone.row_parts["pictures"] / 2
    assert alone.row_parts["decoder"] / 2 < shared.row_parts["decoder"] < alone.row_parts["decoder"]
    told = time(of, cut, CARDS["h100"], shared)
    decoder = of.model.decoder
    assert told.bytes["tensor"] == (8 * len(decoder.layers) + 6) / 2 * (4 * of.row_tokens * decoder.width * 2)
    assert told.waiting_s >= told.link_s["tensor"] > 0
    assert sum(told.flops.values()) == pytest.approx(sum(time(of, whole, CARDS["h100"], alone).flops.values()) / 2)


def test_several_ranks_gather_in_bf16_under_mixed_precision() -> None:
    plain = job(DENSE, rows=8)
    mixed = replace(plain, precision="bf16-mixed")
    one, two = (layout(gpus, 1, None, 1) for gpus in (1, 2))
    assert memory(mixed, one).copies > 0 == memory(mixed, two).copies  # what is gathered is not cast again
    assert memory(mixed, two).weights == memory(plain, two).weights
    assert memory(mixed, two).row < memory(mixed, one).row
    apart = [time(of, two, CARDS["h100"], memory(of, two)).bytes for of in (plain, mixed)]
    assert apart[1]["all-gather"] == apart[0]["all-gather"] / 2
    assert apart[1]["reduce-scatter"] == apart[0]["reduce-scatter"]  # in fp32


def test_links_carry_what_is_not_here() -> None:
    of = job(SPARSE, rows=8)
    on = layout(4, 1, None, 2)
    held = memory(of, on)
    sent = time(of, on, CARDS["h100"], held).bytes
    stacks = sum(p.numel() for name, p in of.model.named_parameters() if ".experts." in name)
    others = parameters(of.model).total - stacks
    assert sent["all-gather"] == pytest.approx(2 * 4 * (others * 3 / 4 + stacks / 2 / 2))
    layers = sum(isinstance(layer.ffn, MoE) for layer in of.model.decoder.layers)
    rows = 2 * of.row_tokens * of.model.decoder.layers[1].ffn.router.top_k  # type: ignore[union-attr]
    assert sent["experts"] == 4 * layers * rows / 2 * of.model.decoder.width * 2
    assert sent["replicas"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpus": [7]}, "expected a multiple of 7"),
        ({"gpus": [0]}, "--gpus is 0; expected at least 1"),
        ({"gpus": [8], "replicate": 3}, "8 GPUs are not 3 copies"),
        ({"gpus": [8], "shard": 3}, "8 GPUs are not 1 copies x 3 ranks"),
        ({"gpus": [8], "experts": 3, "config": [SPARSE]}, "expected a divisor"),
        ({"gpus": [8], "tensor": 3}, "8 GPUs are not 1 copies x 2 ranks x 3 that share layers"),
        ({"gpus": [8], "tensor": 8}, "heads is [0-9]+, to be cut by 8 ranks"),
        ({"gpu": "v1"}, "there is no card 'v1'"),
        ({"config": ["nowhere.yaml"]}, "nowhere.yaml does not exist"),
        ({"config": [ROOT / "configs/model/tiny.yaml"]}, "has no model"),
        ({"tokens": 0}, "--tokens is 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(change: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        plan(**{"config": [DENSE], "gpus": [1], "out": tmp_path} | change)  # type: ignore[arg-type]


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("like: h100\nmemory_gib: 40\n")
    assert card(str(tmp_path / "mine.yaml")) == replace(CARDS["h100"], name="mine", memory_gib=40)
    for text, says in (("like: h100\nspeed: 1\n", "speed"), ("memory_gib: 3\n", "lacks"), ("[1]", "list"),
                       ("like: h100\ntflops: fast\n", "expected a number")):  # fmt: skip
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            card(str(tmp_path / "odd.yaml"))


def test_the_command_writes_a_plan_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = job(DENSE)
    expected = make(of, layout(1, 1, None, 1), CARDS["h200"], 1e9)
    ms, gib = 1e3 * expected.time.step_s, expected.peak_gib
    (tmp_path / "run.csv").write_text(f"ms,peak_gib\n1,1\n{ms * 1.1},{gib * 1.5}\n")
    words = ["plan", "--config", str(DENSE), "--gpus", "1", "--gpu", "h200", "--tokens", "1e9", "--out", str(tmp_path)]
    arguments = vars(parser().parse_args([*words, "--against", str(tmp_path / "run.csv")]))
    del arguments["command"]
    arguments.pop("study")(**arguments)
    said, record = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert sum(record["memory_gib"].values()) == pytest.approx(record["peak_gib"]) == pytest.approx(gib)
    assert record["days"] == pytest.approx(1e9 / (of.rows_per_step * of.row_tokens) * expected.time.step_s / 86400)
    assert record["against"]["step_s"]["within"]
    assert not record["against"]["peak_gib"]["within"]
    assert "BEYOND 10%" in said
    assert "it fits" in said
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_folder_is_compared(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 1}')
    lines = [{"split": "train", "step": step, "time_s": step * 0.5 + (step > 0) * 30} for step in (0, 10, 20, 30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    of: Job = job(DENSE)
    found = compare(make(of, layout(1, 1, None, 1), CARDS["h100"], 1e9), tmp_path)
    assert found["step_s"]["measured"] == 0.5
    assert "peak_gib" not in found
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="says neither"):
        compare(make(of, layout(1, 1, None, 1), CARDS["h100"], 1e9), tmp_path)


def test_several_make_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan([str(DENSE), str(SPARSE)], [1, 64], experts=1, out=tmp_path)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    assert len(json.loads((tmp_path / "plan.json").read_text())) == 4
