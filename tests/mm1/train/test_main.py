"""The door: every recipe builds, everything can be printed, and what is wrong is answered with a sentence."""

from __future__ import annotations

import math
import shutil
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mm1
from mm1.data.shards import read_manifest
from mm1.errors import UserError, sentence
from mm1.train.__main__ import Door, main
from tests.conftest import fit, run_config, tiny_model

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "configs" / "train").glob("*.yaml"))


class Built(Door):
    """The door without what is behind it."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_without_memory(recipe: Path, tmp_path: Path) -> None:
    built = Built(["fit", "--config", str(recipe), "--run", str(tmp_path), "--trainer.accelerator", "cpu"])
    assert all(parameter.is_meta for parameter in built.model.parameters())
    assert built.datamodule.recipe.image_spec == built.model.model.image_spec
    assert built.trainer.max_steps > 0
    lines = recipe.read_text().splitlines()
    assert f"mm1-train fit --config configs/train/{recipe.name}" in lines[1], "the second line is the command"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model.model.init_args.decoder.init_args.dpeth", "3"], "dpeth"),
        (["--data.row_tokns", "3"], "row_tokns"),
        (["--model.optimizer.lr", "fast"], "Expected a float; Expected one of 'law'; Given value: fast"),
        (["--model.optimizer.parts", "{vision: {freeze: true}}"], "freeze"),
    ],
)
def test_a_wrong_key_is_named(corpus: Path, tmp_path: Path, flags: list[str], told: str) -> None:
    with pytest.raises(ArgumentError) as error:
        fit(tmp_path / "run", run_config(corpus), *flags)
    assert sentence(error.value).count(told) == 1
    assert not (tmp_path / "run" / "run.json").exists()


def evaluator(model: object, tokenizer: object) -> dict[str, float]:
    return {}


EVALUATE = [
    {
        "class_path": "mm1.train.callbacks.Evaluate",
        "init_args": {"evaluator": f"{__name__}.evaluator", "every_n_steps": 0},
    }
]


OTHER_STRATEGY = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}


def change(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split("/")
    node = tree
    for key in parents:
        node = node[key]
    node[last] = value
    return tree


def test_a_step_is_never_cut_short(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, accumulate_grad_batches=2, limit_train_batches=3)
    with pytest.raises(UserError, match=r"limit_train_batches is 3; expected a multiple of .* which is 2"):
        fit(tmp_path / "run", config)


def test_a_run_for_trying_out_does_not_count(corpus: Path, tmp_path: Path) -> None:
    assert not fit(tmp_path / "run", run_config(corpus, fast_dev_run=True)).about()["finished"]
    assert fit(tmp_path / "run", run_config(corpus, max_steps=3)).about()["finished"]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("model/model/init_args/connector/init_args/tokens", 9, r"tokens_per_image = 4, this run has 9: change model"),
        ("model/model/init_args/vision/init_args/image_px", 56, r"image_px = 28, this run has 56"),
        ("model/model/init_args/vision/init_args/resize", "crop", r"resize = squash, this run has crop"),
        ("data/weights", {"captions": 1, "video": 1}, r"no stream 'video', only captions, .*data\.weights"),
        ("data/row_tokens", 20, r"rows have data\.row_tokens = 20"),
        ("data/corpus", "/nowhere", r"/nowhere/manifest\.json does not exist"),
        ("trainer/accumulate_grad_batches", 3, r"data\.rows_per_step is 4; expected a multiple of 1 ranks x 3"),
        ("trainer/max_steps", -1, r"trainer\.max_steps is -1"),
        ("model/optimizer/parts", {"conector": {"frozen": True}}, r"parts\.conector matches no parameter"),
        ("model/optimizer/lr", -1.0, r"model\.optimizer\.lr is -1\.0; expected at least 0"),
        (
            "model/optimizer/betas",
            [0.9, 1.5],
            r"model\.optimizer\.betas is \[0\.9, 1\.5\]; expected two numbers from 0",
        ),
        (
            "model/model/init_args/decoder/init_args/vocabulary",
            300,
            r"has 340 ids, the decoder's vocabulary 300 entries",
        ),
        ("model/model/init_args/decoder/init_args/layers", 0, r"decoder\.init_args\.layers is 0; expected at least 1"),
        ("model/model/init_args/vision/init_args/heads", 5, r"timm cannot build vit_tiny_patch16_224 with .*heads"),
        (
            "model/optimizer/parts",
            {"vision": {"lr": -1.0}},
            r"model\.optimizer\.parts\.vision\.lr is -1\.0; expected at",
        ),
        (
            "model/optimizer/parts",
            {"vision": {"lr_scale": -1.0}},
            r"parts\.vision\.lr_scale is -1\.0; expected at least 0",
        ),
        ("model/optimizer/final_share", -0.1, r"model\.optimizer\.final_share is -0\.1; expected at least 0"),
        ("trainer/gradient_clip_val", -1.0, r"trainer\.gradient_clip_val is -1\.0; expected at least 0"),
        ("trainer/strategy", OTHER_STRATEGY, r"trainer\.strategy is ModelParallelStrategy; expected auto, ddp, or"),
        ("trainer/precision", "bf16-true", r"trainer\.precision is bf16-true; expected one of 32-true, bf16-mixed"),
        (
            "trainer/limit_val_batches",
            0.5,
            r"Lightning refuses the settings under trainer: .* `Trainer\(limit_val_batches\)`",
        ),
        ("model/seed", -1, r"model\.seed is -1; expected at least 0"),
        ("data/rows_per_step", 0, r"data\.rows_per_step is 0; expected at least 1"),
        ("data/look_ahead", 0, r"data\.look_ahead is 0; expected at least 1"),
        ("data/workers", -1, r"data\.workers is -1; expected at least 0"),
        ("data/weights", {"captions": math.inf}, r"data\.weights\.captions is inf; expected a number of at least 0"),
        ("trainer/accelerator", "warp", r"Lightning refuses the settings under trainer: .*accelerator='warp'"),
        ("trainer/log_every_n_steps", 0, r"trainer\.log_every_n_steps is 0; expected at least 1"),
        ("save_every_n_steps", 0, r"save_every_n_steps is 0; expected at least 1"),
        ("threads", 0, r"threads is 0; expected at least 1"),
        ("trainer/devices", "many", r"Lightning refuses the settings under trainer: .*devices"),
        (
            "trainer/callbacks",
            EVALUATE,
            r"^every_n_steps is 0; expected at least 1$",
        ),
        ("init_from", "/nowhere.ckpt", r"/nowhere\.ckpt does not exist"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(corpus: Path, tmp_path: Path, path, value, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        fit(tmp_path / "run", change(run_config(corpus), path, value))
    assert "\n" not in str(error.value)


def test_a_validation_document_longer_than_a_row_is_refused(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    manifest = read_manifest(tmp_path / "corpus")
    index = tmp_path / "corpus" / "text" / Path(manifest["streams"]["text"]["val"]["shards"][0]["file"]).stem
    with np.load(index.with_suffix(".index.npz")) as arrays:
        listed = dict(arrays)
    listed["text_tokens"][0] = 500
    np.savez(index.with_suffix(".index.npz"), **listed)
    with pytest.raises(UserError, match=r"'text' has a document of 500 positions, rows have data\.row_tokens = 96"):
        fit(tmp_path / "run", run_config(tmp_path / "corpus"))


def test_the_door_answers_with_one_line_and_no_stack_trace(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(ROOT / "configs/train/pretrain_3b.yaml"), "--resume", "auto", "--run", "null"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no run folder; expected --run FOLDER (or run: FOLDER in the YAML)\n"


def test_init_from_takes_weights_and_starts_a_new_schedule(corpus: Path, make_corpus, tmp_path: Path) -> None:
    first = fit(tmp_path / "first", run_config(corpus, max_steps=6))
    config = change(run_config(corpus, max_steps=1), "data/weights", {"sft": 100})
    config["model"]["optimizer"] = {"lr": 1e-12}
    tuned = fit(tmp_path / "tuned", config, "--init-from", str(first.last))  # hyphens do as well
    before, after = (torch.load(run.last, weights_only=True) for run in (first, tuned))
    for name, tensor in before["state_dict"].items():
        torch.testing.assert_close(after["state_dict"][name], tensor)
    assert after["global_step"] == 1
    assert tuned.about()["kind"] == "sft"
    assert [line["mix/documents/sft"] for line in tuned.history("train")] == [1.0]

    smaller = change(run_config(corpus), "model/model/init_args/decoder/init_args/layers", 1)
    with pytest.raises(UserError, match=r"does not fit model\.model of this run: .* left over"):
        fit(tmp_path / "smaller", smaller, "--init_from", str(first.last))
    wider = change(run_config(corpus), "model/model", tiny_model(width=48))
    with pytest.raises(UserError, match="misshaped"):
        fit(tmp_path / "wider", wider, "--init_from", str(first.last))
    before["mm1"]["format"] = 0
    torch.save(before, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match="checkpoint format 0; this version reads format 1"):
        fit(tmp_path / "old", run_config(corpus), "--init_from", str(tmp_path / "old.ckpt"))


def test_a_checkpoint_is_read_without_lightning(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", run_config(corpus, experts=4, max_steps=2))
    answer = mm1.load(run.last).generate([], "which colour is it?", max_new_tokens=4)
    assert isinstance(answer, str)
    checkpoint = torch.load(run.last, weights_only=True)
    assert checkpoint["mm1"]["format"] == 3
    assert yaml.safe_load(checkpoint["mm1"]["model"])["class_path"] == "mm1.model.mm1.MM1"
    assert checkpoint["mm1"]["tokenizer"] == (corpus / "tokenizer.model").read_bytes()
