"""The contract of image encoders, on tiny towers of both libraries, through their own loading code."""

import json

import open_clip
import pytest
import safetensors.torch
import torch

from mm1.errors import UserError
from mm1.model.plain_block import PatchConv
from mm1.model.vision import OpenClip, Timm

TINY = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
OBLONG = "tiny-oblong-for-tests"
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    """A tiny CLIP that open_clip knows by name."""
    path = tmp_path_factory.mktemp("clip") / "tiny-clip-for-tests.json"
    path.write_text(json.dumps({"embed_dim": 24, "quick_gelu": True, "vision_cfg": TINY, "text_cfg": TEXT}))
    open_clip.add_model_config(path)
    oblong = path.with_name(f"{OBLONG}.json")
    shape = TINY | {"image_size": [32, 64]}
    oblong.write_text(json.dumps({"embed_dim": 24, "vision_cfg": shape, "text_cfg": TEXT}))
    open_clip.add_model_config(oblong)
    return path.stem


@pytest.fixture(scope="module")
def weights(name, tmp_path_factory):
    """A file of weights as open_clip writes them: the whole CLIP, text encoder and all."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    safetensors.torch.save_file(open_clip.create_model(name).state_dict(), path)
    return str(path)


def tiny_timm(**settings):
    return Timm("vit_tiny_patch16_224", image_px=32, patch_px=8, width=32, layers=3, heads=2, **settings)


def images(px=32):
    return torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_no_parameter_is_without_a_gradient_whatever_layer_is_read(name, layer):
    for tower in (OpenClip(name, layer=layer), tiny_timm(layer=layer)):
        patches = tower(images())
        assert patches.shape == (2, tower.grid**2, tower.width) == (2, 16, 32)
        patches.sum().backward()
        assert all(parameter.grad is not None for parameter in tower.parameters())


def test_weights_come_from_a_local_file(name, weights):
    tower = OpenClip(name, weights=weights)
    before = tower(images())
    tower.load_pretrained()
    saved = safetensors.torch.load_file(weights)
    assert torch.equal(tower.visual.conv1.weight, saved["visual.conv1.weight"])
    assert not torch.allclose(tower(images()), before)


def test_layers_that_are_left_out_may_stand_in_the_file(name, weights):
    tower = OpenClip(name, weights=weights, layer=-2)
    tower.load_pretrained()
    assert len(tower.visual.transformer.resblocks) == 2


def test_the_position_table_of_a_file_follows_the_picture(name, weights):
    tower = OpenClip(name, weights=weights, image_px=64)
    tower.load_pretrained()
    assert tower(images(64)).shape == (2, 64, 32)
    saved = safetensors.torch.load_file(weights)
    model = open_clip.create_model(name, force_image_size=64)
    open_clip.model.resize_pos_embed(saved, model)
    assert torch.allclose(tower.visual.positional_embedding, saved["visual.positional_embedding"], atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda s: s.pop("visual.ln_post.bias"), "does not fit OpenClip: Missing.*visual.ln_post.bias"),
        (lambda s: s.update({"visual.extra": torch.zeros(1)}), "Unexpected.*visual.extra"),
        (lambda s: s.update({"visual.ln_post.bias": torch.zeros(5)}), "size mismatch for visual.ln_post.bias"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(name, weights, tmp_path, fault, message):
    state = safetensors.torch.load_file(weights)
    fault(state)
    safetensors.torch.save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=message):
        OpenClip(name, weights=str(tmp_path / "wrong.safetensors")).load_pretrained()


def test_timm_weights_come_from_a_local_file_and_follow_the_picture(tmp_path):
    published = tiny_timm()
    state = published.visual.state_dict() | {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    safetensors.torch.save_file(state, tmp_path / "timm.safetensors")
    tower = tiny_timm(weights=str(tmp_path / "timm.safetensors"))
    tower.load_pretrained()
    assert torch.equal(tower(images()), published(images()))
    larger = Timm(image_px=64, patch_px=8, width=32, layers=3, heads=2, weights=str(tmp_path / "timm.safetensors"))
    larger.load_pretrained()
    assert larger(images(64)).shape == (2, 64, 32)
    del state["norm.weight"]
    safetensors.torch.save_file(state, tmp_path / "timm.safetensors")
    with pytest.raises(UserError, match=r"does not fit Timm: Missing.*visual\.norm\.weight"):
        tower.load_pretrained()


def test_a_file_that_is_missing_or_no_weights_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt does not exist.*init_args\.weights"):
        OpenClip(name, weights="nowhere.pt").load_pretrained()
    for text in ("text.pt", "text.safetensors"):
        (tmp_path / text).write_text("these are no weights")
        wrong = {"weights": str(tmp_path / text), "allow_pickle": True}
        for tower in (OpenClip(name, **wrong), tiny_timm(**wrong)):
            with pytest.raises(UserError, match=r"could not be read as safetensors|not readable as pickled tensors"):
                tower.load_pretrained()


class Code:
    """What a pickle may hold instead of weights: something to call."""

    def __reduce__(self):
        return print, ("a pickle ran code",)


def test_a_pickle_is_read_where_it_is_allowed_and_runs_no_code(name, weights, tmp_path, capsys):
    state = {f"module.{key}": value for key, value in safetensors.torch.load_file(weights).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"clip\.pt is no \.safetensors but a pickle.*init_args\.allow_pickle"):
        OpenClip(name, weights=str(tmp_path / "clip.pt")).load_pretrained()
    pickled = OpenClip(name, weights=str(tmp_path / "clip.pt"), allow_pickle=True)
    pickled.load_pretrained()
    assert torch.equal(pickled.visual.conv1.weight, state["module.visual.conv1.weight"])
    torch.save({"state_dict": state, "code": Code()}, tmp_path / "code.pt")
    with pytest.raises(
        UserError, match=r"code\.pt is not readable as pickled tensors and nothing else \(it asks for .*print\)"
    ):
        OpenClip(name, weights=str(tmp_path / "code.pt"), allow_pickle=True).load_pretrained()
    assert "ran code" not in capsys.readouterr().out


def test_the_text_half_of_a_clip_is_left_and_anything_else_is_named(name, weights, tmp_path):
    state = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(state | {"audio.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(UserError, match=r"Unexpected.*audio\.weight"):
        OpenClip(name, weights=str(tmp_path / "more.safetensors")).load_pretrained()


def test_preprocessing_can_be_set_apart_from_the_name():
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "resize": "pad", "interpolation": "bilinear"}
    small = {"image_px": 32, "patch_px": 8, "width": 32, "layers": 1, "heads": 2}
    for tower in (OpenClip("ViT-B-32", **small, **own), Timm(**small, **own)):
        assert {key: getattr(tower, key) for key in own} == own
    plain = OpenClip("ViT-B-32", **small)
    assert (plain.resize, plain.interpolation, plain.mean) == ("crop", "bicubic", open_clip.OPENAI_DATASET_MEAN)


def test_nothing_asked_for_is_nothing_loaded(name):
    for tower in (OpenClip(name), tiny_timm()):
        before = tower(images())
        tower.load_pretrained()
        assert torch.equal(tower(images()), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenClip("ViT-nonsense"), "open_clip has no model 'ViT-nonsense'"),
        (lambda: OpenClip("ViT-B-32", tag="nonsense"), "ViT-B-32 has no weights 'nonsense'; expected one of: openai"),
        (lambda: OpenClip("RN50"), "open_clip's RN50 has no plain vision transformer"),
        (lambda: OpenClip("ViT-B-32", layer=-13), "layer=-13 of 12; expected -1 to -12"),
        (lambda: OpenClip("ViT-B-32", layer=0), "layer=0 of 12"),
        (lambda: OpenClip("ViT-B-32", width=96, heads=5), "5 heads over width 96; expected a divisor"),
        (lambda: OpenClip("ViT-B-32", width=32), "0 heads over width 32"),
        (lambda: OpenClip("ViT-B-32", patch_px=0), "open_clip cannot build ViT-B-32 with"),
        (lambda: OpenClip(OBLONG), "sees pictures of 32 x 64 px as 4 x 8 patches; expected a square of both"),
        (lambda: Timm("vit_nonsense"), "timm has no model 'vit_nonsense'"),
        (lambda: Timm("resnet18"), "resnet18.*expected a plain VisionTransformer"),
    ],
)
def test_towers_that_do_not_exist_are_refused(name, make, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        make()


def test_the_tower_of_the_published_model():
    """632,682,240 parameters with the projection into CLIP's space, which no connector reads and which is left out."""
    with torch.device("meta"):
        tower = OpenClip("ViT-H-14-378-quickgelu", tag="dfn5b")
    assert tower.left_out == {"proj"}
    assert sum(parameter.numel() for parameter in tower.parameters()) == 632_682_240 - 1280 * 1024
    assert (tower.width, tower.grid, tower.image_px, tower.resize) == (1280, 27, 378, "squash")
    assert tower.mean == (0.48145466, 0.4578275, 0.40821073)
    assert type(tower.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_dinov2_keeps_its_layer_scale(config):
    """A tower with layer scale and registers is plain too, and starts near the identity."""
    from mm1.model.build import build

    value = config()
    value["init_args"]["vision"]["init_args"] |= {"name": "vit_small_patch14_reg4_dinov2"}
    mm1 = build(value)
    mm1.to_empty(device="cpu")
    mm1.init_weights(0)
    assert (mm1.vision.visual.blocks[0].ls1.gamma == 1e-5).all()
    assert mm1.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 4, 32)


@pytest.mark.parametrize("side", [28, 33])
def test_the_first_layer_as_a_product_is_the_convolution(side: int) -> None:
    """Pictures need be no multiple of patches: open_clip takes 384 px in patches of 14 as 27 of them."""
    torch.manual_seed(0)
    layer = PatchConv(3, 8, 7, 7, bias=True)
    images_ICHW = torch.randn(2, 3, side, side)
    torch.testing.assert_close(layer.product(images_ICHW), layer(images_ICHW), rtol=1e-4, atol=1e-5)
