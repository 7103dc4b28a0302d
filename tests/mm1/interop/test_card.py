"""The model card says what the run folder and origin.json say, and unknown where they say nothing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mm1.interop.export import export
from mm1.interop.origin import DecoderOrigin, Origin
from mm1.runs import Run, write_json

SCORES = {
    "captions/photos": {
        "metric": "cider",
        "n": 263,
        "warnings": [],
        "shots": {
            "0": {"sighted": 31.25, "interval": [28.0, 34.5], "blind": 8.04, "blind_interval": [7.0, 9.0]},
            "4": {"sighted": 33.1, "interval": [30.0, 36.0], "blind": None, "blind_interval": None},
        },
        "question_only": None,
        "constant": 14.4,
    },
    "vqa/rooms": {
        "metric": "vqa_accuracy",
        "n": 1077,
        "warnings": [],
        "shots": {"0": {"sighted": 21.5, "interval": [19.0, 24.0], "blind": 16.0, "blind_interval": [14.0, 18.0]}},
        "question_only": 17.5,
        "constant": 6.5,
    },
}


def front_matter(card: Path) -> dict[str, Any]:
    text = card.read_text()
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def rows(card: Path, title: str) -> list[list[str]]:
    """The cells of the table of a section, its heading left out."""
    section = card.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture
def checkpoint(stored_tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A tuned model that began from a pre-trained one, scored, its decoder published by others."""
    kept = {"config": {"_name_or_path": "people/small-llama"}, "licence": "apache-2.0"}
    decoder = DecoderOrigin("llama", "small-llama", kept["config"], 300, 300, 0, "float32", licence=kept["licence"])
    arguments = {"name": "vit_x", "weights": "/some/where/x.safetensors"}
    vision = {"class_path": "mm1.model.vision.Timm", "init_args": arguments}
    about = {**stored_tiny["mm1"], "origin": Origin(decoder, vision).to_json()}
    first = tmp_path / "before/checkpoints/last.ckpt"
    for name, kind, began in (("before", "pretrain", None), ("after", "sft", first)):
        run = Run(tmp_path / name)
        run.start(kind, steps=200, mix_target={"captions": 45, "text": 5}, mix_unit="positions", device="1 x CPU")
        data = {"row_tokens": 512, "rows_per_step": 8}
        run.config.write_text(yaml.safe_dump({"data": data, "init_from": str(began) if began else None}))
        run.log("train", 200, positions=819200, **{"mix/positions/captions": 0.875, "mix/positions/text": 0.125})
        run.log("val", 150, loss=2.34567)
        torch.save({**stored_tiny, "mm1": about}, run.last)
    write_json(run.folder / "eval/photos/scores.json", {"format": 2, "checkpoint": str(run.last), "tasks": SCORES})
    other = {"format": 2, "checkpoint": str(run.best), "tasks": {"vqa/else": SCORES["vqa/rooms"]}}
    write_json(run.folder / "eval/best/scores.json", other)
    return run.last


@pytest.mark.parametrize("to", ["own", "transformers"])
def test_numbers_are_those_of_the_scores(checkpoint: Path, tmp_path: Path, to: Any) -> None:
    card = export(checkpoint, tmp_path / "model", to) / "README.md"
    found = rows(card, "Scores")
    assert len(found) == 3
    for evaluation, task, metric, n, shots, sighted, blind, constant, question_only in found:
        said, at = SCORES[task], SCORES[task]["shots"][shots]
        assert (evaluation, n) == ("photos", str(said["n"]))
        assert metric == {"cider": "CIDEr", "vqa_accuracy": "accuracy"}[said["metric"]]
        low, high = at["interval"]
        assert sighted == f"{at['sighted']:.1f} ({low:.1f} to {high:.1f})"
        assert blind.split()[0] == ("-" if at["blind"] is None else f"{at['blind']:.1f}")
        assert [constant, question_only] == [
            "-" if said[name] is None else f"{said[name]:.1f}" for name in ("constant", "question_only")
        ]


def test_parts_and_training_are_those_of_the_run(checkpoint: Path, tmp_path: Path) -> None:
    card = export(checkpoint, tmp_path / "model", "transformers") / "README.md"
    assert front_matter(card) == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mm1", "multimodal"],
        "base_model": "people/small-llama",
        "decoder_license": "apache-2.0",
    }
    parts = {row[0]: row[3:] for row in rows(card, "Parts")}
    assert parts["language model"] == ["small-llama (family llama)", "apache-2.0"]
    assert parts["image encoder"] == ["vit_x, x.safetensors", "unknown"]
    assert rows(card, "Training")[0] == ["captions", "90.0 %", "87.5 %"]
    text = card.read_text()
    assert text.index("### Pre-training: before") < text.index("### Instruction tuning: after")
    assert "- positions: 819,200" in text
    assert "Held-out loss after step 150: 2.3457 nats" in text
    assert str(tmp_path) not in text
    assert "/some/where" not in text
    assert "never tuned" not in text


def test_a_model_without_a_run_says_that_nothing_is_known(tiny_checkpoint: Path, tmp_path: Path) -> None:
    card = export(tiny_checkpoint, tmp_path / "model") / "README.md"
    assert front_matter(card)["library_name"] == "mm1"
    assert [row[3] for row in rows(card, "Parts")] == ["unknown", "new with this model", "unknown"]
    assert card.read_text().count("Not recorded: unknown.") == 2
    parameters = [int(row[2].replace(",", "")) for row in rows(card, "Parts")]
    weights = torch.load(tiny_checkpoint)["state_dict"]
    assert sum(parameters) == sum(w.numel() for name, w in weights.items() if not name.endswith("_C11"))


def test_a_folder_exported_again_keeps_what_its_card_knew(checkpoint: Path, tmp_path: Path) -> None:
    first = export(checkpoint, tmp_path / "first")
    shutil.rmtree(tmp_path / "after")
    second = export(first, tmp_path / "second", "transformers")
    for title in ("Training", "Scores"):
        assert rows(second / "README.md", title) == rows(first / "README.md", title) != []


def test_the_loading_code_of_the_card_runs(checkpoint: Path, tmp_path: Path) -> None:
    from tests.mm1.interop.exported import picture

    folder = export(checkpoint, tmp_path / "model", "transformers")
    picture(0).save(tmp_path / "photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("FOLDER", str(folder)).replace("photo.jpg", str(tmp_path / "photo.jpg"))
        exec(compile(code, "card", "exec"), {})
