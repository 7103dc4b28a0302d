"""Our image encoders against the libraries' own output."""

import json

import open_clip
import pytest
import safetensors.torch
import timm
import torch

from mm1.model.init import init_parameters
from mm1.model.vision import OpenClip, Timm

TINY = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 40}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
IMAGES = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[True, False], ids=["quickgelu", "gelu"])
def clip(request, tmp_path_factory):
    """A tiny random CLIP of open_clip's, and our encoder with its tower's weights read from a file."""
    name = f"tiny-clip-for-parity-{request.param}"
    path = tmp_path_factory.mktemp("clip") / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": 24, "quick_gelu": request.param, "vision_cfg": TINY, "text_cfg": TEXT}))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    reference = open_clip.create_model(name, output_dict=True).eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # nothing at its neutral value: a skipped norm must show
            parameter.add_(torch.randn_like(parameter) * 0.1)
    weights = path.with_suffix(".safetensors")
    safetensors.torch.save_file(reference.state_dict(), weights)
    return name, reference.visual, str(weights)


def ours(name, weights, layer):
    tower = OpenClip(name, weights=weights, layer=layer).eval()
    init_parameters(tower, 0, 1)
    tower.load_pretrained()
    return tower(IMAGES)


@torch.no_grad()
def test_tokens_after_the_last_norm_equal_open_clips(clip):
    name, reference, weights = clip
    reference.output_tokens = True
    _, expected = reference(IMAGES)
    assert torch.allclose(ours(name, weights, -1), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, -3])
def test_raw_layers_equal_what_open_clips_blocks_put_out(clip, layer):
    name, reference, weights = clip
    found = []
    block = reference.transformer.resblocks[layer]
    handle = block.register_forward_hook(lambda module, inputs, output: found.append(output))
    reference(IMAGES)
    handle.remove()
    assert torch.allclose(ours(name, weights, layer), found[0][:, 1:], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"]
)
def test_tokens_equal_timms(name):
    """With a class token, with registers and layer scale, and without either."""
    tower = Timm(name, image_px=40, patch_px=8, width=32, layers=2, heads=2).eval()
    init_parameters(tower, 0, 1)
    with torch.no_grad():
        for index, parameter in enumerate(tower.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(noise * 0.1)
    shape = {"img_size": 40, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    reference = timm.create_model(name, num_classes=0, global_pool="", **shape).eval()
    reference.load_state_dict(tower.visual.state_dict())
    expected = reference.forward_features(IMAGES)[:, reference.num_prefix_tokens :]
    assert torch.allclose(tower(IMAGES), expected, atol=1e-5)
