"""Published towers, tiny and random, in every layout that comes in: our tokens against the libraries' own.

What a folder holds goes the whole way: ``mm1-convert encoder``, its YAML, the encoder that the YAML builds.
"""

import json

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import transformers
import yaml
from open_clip.push_to_hf_hub import save_config_for_hf
from timm.models import save_for_hf as save_timm

from mm1.errors import UserError
from mm1.interop.encoders import encoder
from mm1.model.build import build_part
from mm1.model.positions import resample_positions
from mm1.model.vision import VisionEncoder

PX = 40
IMAGES = torch.randn(2, 3, PX, PX, generator=torch.Generator().manual_seed(0))
SQUASH = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
HF_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": PX,
    "patch_size": 8,
}


def shaken(model):
    """Nothing at its neutral value, so that a skipped norm, bias or scale shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def converted(folder, tmp_path, **settings):
    """The encoder that the YAML beside the converted weights builds, with them."""
    out = encoder(str(folder), tmp_path / "out" / "tower.safetensors", **settings)
    tree = yaml.safe_load(out.with_suffix(".yaml").read_text())
    assert tree["init_args"]["weights"] == str(out)
    tower = build_part(tree, VisionEncoder, device="cpu").eval()
    for parameter in tower.parameters():
        torch.nn.init.constant_(parameter, 9.0)
    tower.load_pretrained()
    return tower


def preprocessing(tower):
    return list(tower.mean), list(tower.std), tower.interpolation, tower.resize


@pytest.fixture
def open_clip_folder(tmp_path, request):
    """A folder as open_clip pushes it to a hub: the whole CLIP, and both configurations in one file."""
    quick_gelu, kind = request.param
    config = {
        "embed_dim": 24,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "image_size": PX,
            "mlp_ratio": 2.25,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
    }
    model = shaken(open_clip.CLIP(**config, output_dict=True))
    open_clip.model.set_model_preprocess_cfg(model, SQUASH)
    folder = tmp_path / "published"
    folder.mkdir()
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    if kind == "safetensors":
        safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, model.visual, kind == "pickle"


@torch.no_grad()
@pytest.mark.parametrize("open_clip_folder", [(True, "safetensors"), (False, "pickle")], indirect=True, ids=str)
def test_open_clips_layout(open_clip_folder, tmp_path):
    folder, reference, allow_pickle = open_clip_folder
    tower = converted(folder, tmp_path, allow_pickle=allow_pickle)
    reference.output_tokens = True
    assert torch.allclose(tower(IMAGES), reference(IMAGES)[1], atol=1e-5)
    assert preprocessing(tower) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "bilinear", "squash")


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False], ids=["CLIPModel", "CLIPVisionModel"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_transformers_clip(tmp_path, whole, activation):
    """transformers norms the pooled token alone; ours are all patches after that norm, as open_clip's."""
    shape = HF_SHAPE | {"hidden_act": activation}
    text = HF_SHAPE | {"vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1}
    if whole:
        config = transformers.CLIPConfig(vision_config=shape, text_config=text, projection_dim=24)
        model = shaken(transformers.CLIPModel(config))
    else:
        model = shaken(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape)))
    folder = tmp_path / "published"
    model.save_pretrained(folder)
    size = {"height": PX, "width": PX}
    transformers.CLIPImageProcessor(size=size, do_center_crop=False, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    prefix = "vision_model." if whole else ""
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(26)[None]  # as older versions kept it
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tower = converted(folder, tmp_path)
    vision = model.vision_model if whole else model
    found = vision(IMAGES, output_hidden_states=True)
    assert torch.allclose(tower(IMAGES), vision.post_layernorm(found.last_hidden_state)[:, 1:], atol=1e-5)
    assert (tower.resize, tower.interpolation, tower.mean[0]) == ("squash", "bicubic", 0.1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("Dinov2Model", {}),
        ("Dinov2WithRegistersModel", {}),
        ("Dinov2ForImageClassification", {}),
        ("Dinov2Model", {"use_swiglu_ffn": True, "hidden_size": 96}),  # as in the giant
    ],
)
def test_transformers_dinov2(tmp_path, kind, own):
    model_class = getattr(transformers, kind)
    shape = {key: value for key, value in HF_SHAPE.items() if key != "intermediate_size"} | own
    model = shaken(model_class(model_class.config_class(**shape)))
    model.save_pretrained(tmp_path / "published")
    tower = converted(tmp_path / "published", tmp_path)
    backbone = getattr(model, "dinov2", model)
    prefix = 1 + (4 if "Registers" in kind else 0)
    assert torch.allclose(tower(IMAGES), backbone(IMAGES).last_hidden_state[:, prefix:], atol=1e-5)
    assert (tower.grid, tower.image_px, tower.resize) == (5, PX, "crop")


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"]
)
def test_timms_layout(tmp_path, name):
    """With a class token, with registers, and without either but with a pooling head."""
    sizes = {"img_size": PX, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = shaken(timm.create_model(name, **sizes))
    model.pretrained_cfg = model.pretrained_cfg | {"mean": (0.1, 0.2, 0.3), "crop_mode": "squash"}
    save_timm(model, tmp_path / "published", safe_serialization=True, model_args=sizes)
    tower = converted(tmp_path / "published", tmp_path)
    expected = model.forward_features(IMAGES)[:, model.num_prefix_tokens :]
    assert torch.allclose(tower(IMAGES), expected, atol=1e-5)
    assert (tower.mean, tower.resize, tower.name.partition(".")[0]) == ((0.1, 0.2, 0.3), "squash", name)


@torch.no_grad()
@pytest.mark.parametrize("open_clip_folder", [(True, "safetensors")], indirect=True, ids=str)
@pytest.mark.parametrize("px", [24, 64])
def test_a_position_table_is_resampled_as_open_clip_does_it(open_clip_folder, tmp_path, px):
    folder, reference, _ = open_clip_folder
    tower = converted(folder, tmp_path, image_px=px)
    state = {f"visual.{name}": tensor for name, tensor in reference.state_dict().items()}
    holder = torch.nn.Module()
    holder.visual = torch.nn.Module()
    holder.visual.grid_size = (px // 8, px // 8)
    open_clip.model.resize_pos_embed(state, holder)
    assert torch.allclose(tower.visual.positional_embedding, state["visual.positional_embedding"], atol=1e-6)
    assert tower.grid == px // 8


@torch.no_grad()
@pytest.mark.parametrize(("prefix", "px"), [(0, 24), (1, 64), (1, 40)])
def test_a_position_table_is_resampled_as_timm_does_it(prefix, px):
    """What a checkpoint at another size goes through; a published file goes through timm's own code."""
    table = torch.randn(1, prefix + 25, 32, generator=torch.Generator().manual_seed(0))
    expected = timm.layers.resample_abs_pos_embed(table, [px // 8, px // 8], [5, 5], num_prefix_tokens=prefix)
    assert torch.allclose(resample_positions(table, px // 8, prefix), expected, atol=1e-6)


DFN5B = {
    "open_clip_config.json": {
        "model_cfg": {
            "embed_dim": 1024,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        },
        "preprocess_cfg": SQUASH,
    },
    "config.json": {
        "model_type": "clip",
        "vision_config": {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "image_size": 378,
            "patch_size": 14,
            "hidden_act": "quick_gelu",
        },
    },
}


@pytest.mark.parametrize("layout", DFN5B)
def test_mm1s_tower_is_known_by_its_name(tmp_path, layout):
    """``apple/DFN5B-CLIP-ViT-H-14-378`` as both libraries describe it, with no weights: on meta it costs nothing."""
    (tmp_path / layout).write_text(json.dumps(DFN5B[layout]))
    for name in ("open_clip_model.safetensors", "model.safetensors"):
        safetensors.torch.save_file({}, tmp_path / name)
    with pytest.raises(UserError, match=r"does not fit ViT-H-14-378-quickgelu: 391 tensors missing"):
        encoder(str(tmp_path), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
