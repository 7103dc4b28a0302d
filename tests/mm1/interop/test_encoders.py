"""What ``mm1-convert encoder`` refuses, before it writes anything, and a tiny DINOv2 exported to ONNX."""

import importlib.util
import json

import pytest
import safetensors.torch
import torch
import transformers

from mm1.errors import UserError
from mm1.interop.encoders import encoder

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


@pytest.fixture
def folder(tmp_path):
    """A tiny DINOv2 of transformers."""
    transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE)).save_pretrained(tmp_path / "dinov2")
    return tmp_path / "dinov2"


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickle_weights(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


FAULTS = {
    "no config.json": (lambda f: (f / "config.json").unlink(), r"config\.json does not exist"),
    "another architecture": (
        lambda f: change_config(f, model_type="resnet"),
        "describes a resnet; expected one of clip",
    ),
    "another epsilon": (lambda f: change_config(f, layer_norm_eps=1e-3), "0.001 at layer_norm_eps; expected 1e-06"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights; expected model.safetensors"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"12345"), "not readable as safetensors"),
    "a pickle": (pickle_weights, "holds pickled weights alone"),
    "one too many": (
        lambda f: change_weights(f, lambda w: w.update(extra=torch.zeros(1))),
        "holds extra, whose place in an image tower is not known",
    ),
    "one too few": (
        lambda f: change_weights(f, lambda w: w.pop("layernorm.bias")),
        r"does not fit vit_small_patch14_dinov2: 1 tensors missing, the first: norm\.bias",
    ),
    "no keys": (
        lambda f: change_weights(f, lambda w: w.pop("encoder.layer.0.attention.attention.key.weight")),
        r"qkv\.weight is \(64, 32\) where the model has \(96, 32\)",
    ),
    "no positions": (
        lambda f: change_weights(f, lambda w: w.pop("embeddings.position_embeddings")),
        "lacks what timm calls pos_embed",
    ),
    "resized in no way we know": (
        lambda f: (f / "preprocessor_config.json").write_text('{"do_center_crop": false, "size": {"longest_edge": 9}}'),
        "expected a crop of the centre, or a square",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_one_sentence(folder, tmp_path, fault):
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        encoder(str(folder), tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


def test_a_pickle_is_read_where_it_is_allowed(folder, tmp_path):
    pickle_weights(folder)
    assert encoder(str(folder), tmp_path / "out.safetensors", allow_pickle=True).exists()


def test_names_that_cannot_be_written_are_refused_first(folder, tmp_path):
    with pytest.raises(UserError, match=r"does not end in \.safetensors"):
        encoder(str(folder), tmp_path / "out")
    (tmp_path / "out.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"out\.yaml exists already"):
        encoder(str(folder), tmp_path / "out.safetensors")


def test_the_other_half_of_a_clip_is_left():
    """A text tower, projections and the scale of the logits are left; they are named in one list."""
    from mm1.interop.towers.clip import DROPPED, NAMES
    from mm1.interop.towers.tower import translated

    dropped = [
        "text_model.final_layer_norm.bias",
        "visual_projection.weight",
        "logit_scale",
        "vision_model.x.position_ids",
    ]
    weights = dict.fromkeys([*dropped, "vision_model.pre_layrnorm.bias"], torch.zeros(1))
    assert list(translated(weights, NAMES, DROPPED, "it")) == ["visual.ln_pre.bias"]


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed (extra parts)")
def test_matrices_of_an_onnx_are_found_by_the_bias_that_is_added(folder, tmp_path):
    """Nameless, transposed and in an order that is not the layer's, as exporters write them."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = safetensors.torch.load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}
    del weights["embeddings.mask_token"]
    positions = weights.pop("embeddings.position_embeddings")
    tables = {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:]}
    stored = {f"backbone.{name}": tensor for name, tensor in weights.items()} | tables
    nodes = [helper.make_node("Concat", [*tables], ["table"], "/backbone/embeddings/Concat", axis=1)]
    linears = [name for name in weights if name.endswith(".weight") and weights[name].ndim == 2]
    for number, name in enumerate(sorted(linears, reverse=True)):
        matrix = f"onnx::MatMul_{number}"
        stored[matrix] = stored.pop(f"backbone.{name}").T
        bias, scope = f"backbone.{name[:-6]}bias", f"/backbone/{name}"
        nodes.append(helper.make_node("MatMul", ["x", matrix], [f"y{number}"], f"{scope}/MatMul"))
        added = [bias, f"y{number}"] if number % 2 else [f"y{number}", bias]
        nodes.append(helper.make_node("Add", added, [f"z{number}"], f"{scope}/Add"))
    initialisers = [numpy_helper.from_array(t.contiguous().numpy(), name) for name, t in stored.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    save(helper.make_model(helper.make_graph(nodes, "tiny", [x], [x], initialisers)), tmp_path / "tiny.onnx")

    safetensors.torch.save_file(
        weights | {"embeddings.position_embeddings": positions.contiguous()}, folder / "model.safetensors"
    )
    from_folder = safetensors.torch.load_file(encoder(str(folder), tmp_path / "folder.safetensors"))
    from mm1.interop.towers.dinov2 import DROPPED, NAMES
    from mm1.interop.towers.dinov2_onnx import read
    from mm1.interop.towers.tower import translated

    found = translated(read(tmp_path / "tiny.onnx"), NAMES, DROPPED, "tiny.onnx")
    assert found.keys() == from_folder.keys()
    assert all(torch.equal(found[name], from_folder[name]) for name in found)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed (extra parts)")
def test_what_is_no_onnx_or_no_dinov2_is_refused(tmp_path):
    from onnx import TensorProto, helper, save

    (tmp_path / "text.onnx").write_text("this is no graph")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    save(helper.make_model(helper.make_graph([], "empty", [x], [x], [])), tmp_path / "empty.onnx")
    for name, message in {
        "nowhere.onnx": "does not exist; expected an ONNX file",
        "text.onnx": "is no ONNX file",
        "empty.onnx": "holds no tensor named embeddings.cls_token",
    }.items():
        with pytest.raises(UserError, match=message):
            encoder(str(tmp_path / name), tmp_path / "out.safetensors")
