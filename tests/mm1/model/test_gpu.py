"""What a GPU does by other kernels must equal what a CPU does; run by hand with ``pytest -m gpu``."""

import subprocess
import sys
import time

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import linear

from mm1.batch import Batch, targets_of
from mm1.model.attention import attend, document_mask
from mm1.model.ffn import gated
from mm1.model.moe.layer import MoE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact():
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("tokens", [256, 300])
@pytest.mark.parametrize("window", [None, 40])
def test_flex_attention_equals_the_masked_one(kv_heads, tokens, window):
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, tokens, 64, generator=g)
    k, v = torch.randn(2, 2, kv_heads, tokens, 64, generator=g)
    segments = torch.randint(1, 4, (2, tokens), generator=g).sort(1).values
    segments[:, -20:] = 0
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.detach().to(device).requires_grad_() for x in (q, k, v)]
        output = attend(*inputs, document_mask(segments.to(device), window))
        output.square().sum().backward()
        results.append([output.detach().cpu()] + [x.grad.cpu() for x in inputs])
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-3)


OPTIONS = [
    {},
    {"experts": 4},
    {"window_tokens": 5, "windowed_layers": [1], "attention_bias": "qkv"},
    {"qk_norm": "full", "norm_place": "after", "head_width": 32},
    {"qk_norm": "head", "clip_qkv": 0.5, "experts": 4},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_losses_and_gradients_equal_those_of_a_cpu(model, batch, options):
    """Head width 16, the least that flex_attention takes."""
    results = []
    for device in ("cpu", "cuda"):
        mm1 = model(width=64, **options).to(device)
        step = batch().to(device)
        sums = mm1.losses(step)
        (sums.cross_entropy / sums.targets + sums.router / sums.tokens).backward()
        grads = {name: parameter.grad.cpu() for name, parameter in mm1.named_parameters()}
        results.append((sums.cross_entropy.cpu(), sums.router.cpu(), grads))
    (entropy, router, expected), (entropy_gpu, router_gpu, found) = results
    assert torch.allclose(entropy, entropy_gpu, rtol=1e-4)
    assert torch.allclose(router, router_gpu, rtol=1e-4, atol=1e-6)
    for name in expected:
        scale = expected[name].abs().max() + 1e-3
        assert (found[name] - expected[name]).abs().max() < 2e-3 * scale, name


def test_grouped_products_equal_the_loop_and_survive_an_idle_expert():
    layer = MoE(64, 128, experts=8).cuda()
    for index, parameter in enumerate(layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator("cuda").manual_seed(index))
    x = torch.randn(2, 50, 64, device="cuda").bfloat16()
    counts = torch.tensor([20, 0, 30, 10, 0, 25, 10, 5], device="cuda")
    rows, weights = x.flatten(0, 1), torch.rand(100, device="cuda")
    experts = layer.experts.bfloat16()
    results = []
    for run in (experts._grouped, experts._loop):
        experts.zero_grad()
        output = run(rows, weights, counts)
        output.float().square().sum().backward()
        results.append((output.float(), experts.gate_up.grad.float(), experts.down.grad.float()))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert results[0][1][1].abs().max() == 0
    reference = linear(
        gated(linear(rows[:20], experts.gate_up[0])) * weights[:20, None].bfloat16(), experts.down[0]
    ).float()
    assert (results[0][0][:20] - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("experts", [0, 4])
def test_cached_decoding_on_a_gpu(model, experts):
    mm1 = model(experts=experts, width=64).cuda().eval()
    tokens = torch.randint(3, 64, (2, 12), device="cuda")
    segments, positions = torch.ones_like(tokens), torch.arange(12, device="cuda").expand(2, 12)
    with torch.no_grad():
        x = mm1.decoder.embedding(tokens)
        expected = mm1.decoder(x, segments, positions).hidden_BTD
        cache = mm1.decoder.new_cache(2, 16)
        parts = [slice(0, 8), *(slice(i, i + 1) for i in range(8, 12))]
        found = [mm1.decoder(x[:, p], segments[:, p], positions[:, p], cache).hidden_BTD for p in parts]
    assert torch.allclose(torch.cat(found, 1), expected, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"experts": 8}, {"window_tokens": 256, "windowed_layers": [1, 3], "qk_norm": "head"}]
)
def test_mixed_precision_training_learns_and_compiles_once(model, options):
    """bf16 under autocast, 4 rows of 2048 whose documents end elsewhere in every step."""
    config = {"width": 512, "heads": 8, "kv_heads": 4, "layers": 4, "ffn_width": 1024, "vocabulary": 2048}
    mm1 = model(**config, **options).cuda()
    optimizer = torch.optim.AdamW(mm1.parameters(), 1e-3, fused=True)
    tokens = torch.randint(3, 2048, (4, 2048), generator=torch.Generator().manual_seed(0))
    losses = []
    for index in range(12):
        step = packed_text(tokens, document_tokens=300 + 20 * index).to("cuda")
        if index == 4:
            torch.cuda.synchronize()
            started, graphs = time.perf_counter(), counters["stats"]["unique_graphs"]
        with torch.autocast("cuda", dtype=torch.bfloat16):
            sums = mm1.losses(step)
            loss = sums.cross_entropy / sums.targets + sums.router / sums.tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    torch.cuda.synchronize()
    print(f"\n{options}: {8 * 8192 / (time.perf_counter() - started):,.0f} positions/s")
    assert losses[-1] < losses[0]
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("experts", [0, 8])
def test_recomputing_changes_no_gradient_and_keeps_less(model, experts, compiled):
    """bf16 under autocast, document masks; ``selective`` between nothing and whole layers."""
    config = {"width": 512, "heads": 8, "kv_heads": 4, "layers": 4, "ffn_width": 1024, "vocabulary": 2048}
    step = packed_text(torch.randint(3, 2048, (4, 2048), generator=torch.Generator().manual_seed(0)), 300).to("cuda")
    kept, grads = [], []
    for again in (False, "selective", True):
        torch._dynamo.reset()
        mm1 = model(**config, experts=experts, checkpointing=again).cuda()
        for layer in mm1.decoder.layers if compiled else ():
            layer.compile()
        for _ in range(2):  # the first one compiles
            mm1.zero_grad(set_to_none=True)
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                sums = mm1.losses(step)
                loss = sums.cross_entropy / sums.targets + sums.router / sums.tokens
            kept.append(torch.cuda.memory_allocated() - before)
            loss.backward()
        grads.append({name: p.grad for name, p in mm1.decoder.named_parameters()})
    print(f"\n{experts} experts, compiled {compiled}: {[f'{size / 2**20:.0f} MiB' for size in kept[1::2]]} kept")
    assert kept[5] < kept[3] < kept[1]
    for other in grads[1:]:
        for name, grad in other.items():
            assert (grad - grads[0][name]).norm() <= 0.02 * grads[0][name].norm(), name


def packed_text(tokens, document_tokens):
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    segments, positions = places // document_tokens + 1, places % document_tokens
    targets = targets_of(tokens, segments, torch.ones_like(tokens, dtype=torch.bool))
    no_pictures = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    return Batch(tokens, targets, segments, positions, torch.zeros_like(tokens), no_pictures)


def test_a_wrong_number_of_places_is_caught_without_a_wait():
    """In a process of its own: a device assertion leaves the device unusable."""
    script = (
        "import torch\nfrom mm1.model.splice import check\nfrom mm1.batch import IMAGE, Batch\n"
        "t = torch.full((1, 8), IMAGE, device='cuda')\n"
        "check(Batch(t, t, t, t, t, torch.zeros(1, 3, 4, 4, device='cuda')), 4, 4, 9)\ntorch.cuda.synchronize()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode != 0
    assert "assert" in run.stderr.lower()
