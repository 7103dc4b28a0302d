"""Instruction tuning on pictures in several views, from drawn scenes to an answer, at the size of a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mm1
from data_pipelines.engines import Local
from data_pipelines.pipeline import Pipeline, Settings, build
from data_pipelines.preview import preview
from data_pipelines.scenes import write
from data_pipelines.sources import Conversations
from data_pipelines.train_tokenizer import train_tokenizer
from eval.contamination import overlap
from eval.task import discover
from mm1.batch import IMAGE, Batch, ImageSpec
from mm1.data.image import decode, prepare
from mm1.data.recipe import Recipe
from mm1.data.shards import ShardSet, read_manifest
from mm1.data.streams import Windows
from mm1.errors import UserError
from mm1.interop.export import export
from mm1.model.build import build as built
from mm1.model.positions import resample_positions
from mm1.model.stored import read
from mm1.sample import Image, Text, Views
from mm1.template import turn
from mm1.train.held_out import HeldOutLoss
from tests.conftest import IMAGE_PX, IMAGE_TOKENS, VOCABULARY, fit, run_config, tiny_model

LLAVA = Path(__file__).resolve().parents[2] / "configs" / "template" / "llava.yaml"
VIEWS = Views(rows=1, columns=2, overview="last", separator="{number}:")
SIZES: dict[str, Any] = {"row_tokens": 256, "tokens_per_image": IMAGE_TOKENS, "image_px": IMAGE_PX}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "raw"
    write(folder, worlds=40, test_worlds=6)
    return folder


@pytest.fixture(scope="module")
def corpora(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same documents with whole pictures and with pictures in three views, and one tokenizer."""
    whole, views = (tmp_path_factory.mktemp("corpora") / name for name in ("whole", "views"))
    made = train_tokenizer(scenes, whole, VOCABULARY)
    build(scenes, whole, Settings(**SIZES))
    views.mkdir()
    (views / made.file_name).write_bytes(made.proto)
    build(scenes, views, Settings(**SIZES, views=VIEWS))
    return whole, views


def config(corpus: Path, **trainer: Any) -> dict[str, Any]:
    settings = run_config(corpus, **{"max_steps": 20, "log_every_n_steps": 1, **trainer})
    settings["data"] |= {"row_tokens": 256, "images_per_row": 16, "rows_per_step": 4, "val_rows": 4}
    return settings | {"validate_every_n_steps": 20, "save_every_n_steps": 20}


def test_shards_hold_views_and_every_picture_costs_what_they_do(corpora: tuple[Path, Path]) -> None:
    whole, views = (ShardSet(corpus, "sft", "train") for corpus in corpora)
    assert read_manifest(corpora[1])["views"] == {"rows": 1, "columns": 2, "overview": "last", "separator": "{number}:"}
    assert "views" not in read_manifest(corpora[0])
    cut = {views[at].id: views[at] for at in range(len(views))}
    found = next(sample for sample in map(whole.__getitem__, range(len(whole))) if sample.images and sample.id in cut)
    items = cut[found.id].items
    at = next(n for n, item in enumerate(items) if isinstance(item, Image))
    words = [item.text for item in items[at - 1 : at + 5] if isinstance(item, Text)]
    assert words == ["1:", "2:", "0:"]
    pictures = [item.data for item in items if isinstance(item, Image)]
    assert len(pictures) == 3 * found.images
    assert {decode(data).size for data in pictures} == {(IMAGE_PX, IMAGE_PX)}
    assert pictures[2] == found.items[0].data  # the overview is the picture as it was  # type: ignore[union-attr]
    assert [item for item in items if not isinstance(item, Image) and item.text not in words] == [
        item for item in found.items if not isinstance(item, Image)
    ]


def test_a_row_keeps_its_limits_and_pictures_stand_in_the_order_of_their_places(corpora: tuple[Path, Path]) -> None:
    spec = ImageSpec(IMAGE_PX, IMAGE_TOKENS, views=VIEWS)
    recipe = Recipe(
        corpus=corpora[1], image_spec=spec, row_tokens=256, rows_per_step=4, weights={"sft": 1}, images_per_row=7
    )
    batch = next(iter(Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)))[0]
    assert int((batch.tokens_BT == IMAGE).sum()) == len(batch.images_ICHW) * IMAGE_TOKENS
    assert ((batch.tokens_BT == IMAGE).sum(1) <= 7 * IMAGE_TOKENS).all()
    shards = ShardSet(corpora[1], "sft", "train")
    stored = {f"sft/{sample.id}": sample for sample in map(shards.__getitem__, range(len(shards)))}
    files = [item.data for name in batch.documents for item in stored[name].items if isinstance(item, Image)]
    assert torch.equal(batch.images_ICHW, torch.stack([prepare(data, spec) for data in files]))


def test_from_a_pretrained_model_to_an_answer_about_a_larger_picture(
    corpora: tuple[Path, Path], scenes: Path, tmp_path: Path
) -> None:
    before = fit(tmp_path / "before", config(corpora[0], max_steps=2))
    tuning = config(corpora[1])
    tuning["data"]["weights"] = {"sft": 1}
    tuning["model"]["model"]["init_args"]["views"] = {
        "rows": 1, "columns": 2, "overview": "last", "separator": "{number}:"
    }  # fmt: skip
    tuning["init_from"] = str(before.last)
    run = fit(tmp_path / "run", tuning)
    losses = [line["loss"] for line in run.history("train")]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assistant = mm1.load(run.last)
    assert assistant.model.views == VIEWS
    picture = next((scenes / "captions").rglob("*.jpg"))
    assert isinstance(assistant.generate([picture], "What colour is it?", 4), str)
    encoded = assistant.engine._encode([Image(picture.read_bytes()), Text("a")], 4)
    assert int((encoded.tokens == IMAGE).sum()) == 3 * IMAGE_TOKENS
    with pytest.raises(
        UserError, match=r"shows a picture in 1 view, this run in 3 views \(1 x 2, the whole last, each"
    ):
        fit(tmp_path / "other", tuning, "--data.corpus", str(corpora[0]))
    with pytest.raises(UserError, match=r"data\.augment would vary each of a picture's 3 views"):
        fit(tmp_path / "other", tuning, "--data.augment", "{mirror: [sft]}")


def test_the_blind_arm_of_validation_swaps_pictures_with_all_their_views() -> None:
    """Rolled by one image, four views of five would still be of the right picture."""
    tree = tiny_model()
    tree["init_args"]["views"] = {"rows": 1, "columns": 2}
    model = built(tree, device="cpu")
    model.init_weights(0)
    shown: list[torch.Tensor] = []
    losses = model.losses
    model.losses = lambda batch: shown.append(batch.images_ICHW) or losses(batch)  # type: ignore[method-assign]
    tokens_BT = torch.tensor([[1, *[IMAGE] * (6 * IMAGE_TOKENS), 5, 6]])
    ones_BT = torch.ones_like(tokens_BT)
    images_ICHW = torch.randint(0, 255, (6, 3, IMAGE_PX, IMAGE_PX), dtype=torch.uint8)
    positions_BT = torch.arange(tokens_BT.shape[1])[None]
    batch = Batch(tokens_BT, tokens_BT.clamp(min=0), ones_BT, positions_BT, 0 * ones_BT, images_ICHW)
    HeldOutLoss().add(model.eval(), batch)
    sighted, blind = shown
    assert torch.equal(blind[:3], sighted[3:])
    assert torch.equal(blind[3:], sighted[:3])


def test_weights_of_a_smaller_picture_start_a_larger_one(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    """MM1's position-embedding interpolation: both tables, the encoder's and the connector's, follow the grid."""
    small = fit(tmp_path / "small", config(corpora[0], max_steps=2))
    larger = config(corpora[0], max_steps=1)
    larger["model"]["optimizer"] = {"lr": 0.0}
    larger["model"]["model"]["init_args"]["vision"]["init_args"]["image_px"] = 42
    larger["init_from"] = str(small.last)
    with pytest.raises(UserError, match=r"was written with image_px = 28, this run has 42"):
        fit(tmp_path / "large", larger)
    shards = read_manifest(corpora[0])
    assert shards["image_px"] == IMAGE_PX
    where = tmp_path / "corpus"
    where.mkdir()
    for path in corpora[0].iterdir():
        (where / path.name).symlink_to(path)
    (where / "manifest.json").unlink()
    (where / "manifest.json").write_text((corpora[0] / "manifest.json").read_text().replace('px": 28', 'px": 42'))
    run = fit(tmp_path / "large", larger, "--data.corpus", str(where), "--resume", "never")
    was, now = read(small.last).weights, read(run.last).weights
    for name, prefix_tokens in (("vision.visual.pos_embed", 1), ("connector.positions_1PV", 0)):
        assert now[name].shape[1] == 36 + prefix_tokens
        torch.testing.assert_close(now[name], resample_positions(was[name], 6, prefix_tokens))
    assert all(torch.equal(now[name], was[name]) for name in was if "pos" not in name)


def test_a_look_at_it_and_leaks_are_found_in_views(corpora: tuple[Path, Path], scenes: Path, tmp_path: Path) -> None:
    page = preview(corpora[1], tmp_path / "page.html", 8, rows=True, weights={"sft": 1}).read_text()
    assert "learned" in page
    assert overlap([corpora[1]], discover(scenes)).found == ()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"row_tokens": 14}, r"3 views .* x 4 = 12 tokens \(views, tokens_per_image\).* takes at least 15"),
        ({"images_per_row": 2}, r"images_per_row is 2; a picture is shown in 3 views .*rows of at least 3"),
        ({"keep_pictures": True}, r"keep_pictures stores files as they are, and views are cut"),
    ],
)
def test_rows_that_take_no_picture_in_all_its_views(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Settings(**{**SIZES, "views": VIEWS, **wrong})


def test_separators_count(corpora: tuple[Path, Path], scenes: Path, tmp_path: Path) -> None:
    tokenizer = next(corpora[0].glob("tokenizer.*"))
    (tmp_path / tokenizer.name).write_bytes(tokenizer.read_bytes())
    with pytest.raises(UserError, match=r"row_tokens is 15; a picture of 3 views .* and \d+ of separators"):
        build(scenes, tmp_path, Settings(**{**SIZES, "row_tokens": 15}, views=VIEWS))


def test_from_27_to_48_patches_a_side_a_ramp_stays_one() -> None:
    """378 to 672 px: what grows evenly along the grid grows evenly along the larger one, corners aside."""
    across = torch.arange(27.0).expand(27, 27)
    table = torch.stack((across, across.T), -1).reshape(1, 729, 2)
    found = resample_positions(table, 48).reshape(48, 48, 2)
    expected = (torch.arange(48.0) + 0.5) * 27 / 48 - 0.5
    inner = slice(4, 44)
    torch.testing.assert_close(found[inner, inner, 0], expected[None, inner].expand(40, 40), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[inner, inner, 1], expected[inner, None].expand(40, 40), atol=1e-3, rtol=0)


def test_a_template_goes_from_the_shards_through_training_to_whoever_asks(scenes: Path, tmp_path: Path) -> None:
    """Several sources with weights and hints of their own, in LLaVA's words; then other words are refused."""
    raw = tmp_path / "raw"
    raw.mkdir()
    turns = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": "red"}]
    pictures = sorted(map(str, (scenes / "captions").rglob("*.jpg")))
    for name, count in (("short", 30), ("chat", 20)):
        rows = [{"id": f"{name}{n}", "image": pictures[n], "conversations": turns} for n in range(count)]
        (raw / f"{name}.json").write_text(json.dumps(rows))
    inputs: dict[str, Any] = {name: [Conversations(raw / f"{name}.json", root=Path("/"))] for name in ("short", "chat")}
    corpus = tmp_path / "corpus"
    train_tokenizer(scenes, corpus, VOCABULARY)
    settings = Settings(**{**SIZES, "row_tokens": 400}, template=LLAVA, hints={"short": "short"})
    manifest = Pipeline(inputs, settings).run(corpus, Local(1))
    assert manifest["template"]["user"] == "USER: {text} ASSISTANT:"
    texts = {name: [i.text for i in ShardSet(corpus, name, "train")[0].items if isinstance(i, Text)] for name in inputs}
    hint = "\nAnswer the question using a single word or phrase."
    assert texts["short"][1:] == [f"USER: Which colour?{hint} ASSISTANT:", "red"]
    assert texts["chat"][1:] == ["USER: Which colour? ASSISTANT:", "red"]
    assert texts["chat"][0].startswith("A chat between a curious human")
    tuning = config(corpus, max_steps=6)
    tuning["data"] |= {"weights": {"short": 3, "chat": 1}, "row_tokens": 400, "unit": "documents"}
    run = fit(tmp_path / "run", tuning)
    assert {"loss/short", "loss/chat"} <= run.history("train")[-1].keys()
    asked = [Image(Path(pictures[0]).read_bytes()), *turn("Which colour?")]
    for at in (run.last, export(run.last, tmp_path / "folder")):
        assistant = mm1.load(at)
        ids = [token for token in assistant.engine._encode(asked, 4).tokens.tolist() if token != IMAGE]
        assert assistant.tokenizer.decode(ids).endswith("USER: Which colour? ASSISTANT:")
    other = tmp_path / "other"
    train_tokenizer(scenes, other, VOCABULARY)
    Pipeline(inputs, Settings(**{**SIZES, "row_tokens": 400})).run(other, Local(1))
    tuning["init_from"] = str(run.last)
    with pytest.raises(UserError, match=r"was tuned on conversations in the words 'USER: .*; write the shards"):
        fit(tmp_path / "again", tuning, "--data.corpus", str(other))
    with pytest.raises(UserError, match="no hint is called 'brief'"):
        Settings(hints={"short": "brief"})
