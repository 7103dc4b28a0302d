"""Run folders with made-up numbers, so that studies can be tested without training: nothing here was measured."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from mm1.runs import Run, write_json

SOURCES = {"pretrain": ("captions", "interleaved", "text"), "sft": ("sft",)}
EXPERTS, LAYERS = 8, (1, 3)


def config(seed: int = 0, **decoder: Any) -> dict[str, Any]:
    data = {
        "corpus": "corpus",
        "seed": seed,
        "rows_per_step": 8,
        "weights": {"captions": 45, "interleaved": 45, "text": 10},
    }
    return {
        "seed_everything": 0,
        "model": {"model": {"decoder": {"layers": 4, **decoder}}},
        "data": {**data, "workers": 0},
    }


def make_run(folder: Path, *, moe: bool, kind: str = "pretrain", steps: int = 400, seed: int = 0) -> Run:
    """A run with smooth made-up curves; the MoE is a little better by positions and a little slower."""
    draw = random.Random(f"{folder.name}{kind}")
    run = Run(folder)
    parameters = {
        "total": 9.4e6 if moe else 3.1e6,
        "active": 3.9e6 if moe else 3.1e6,
        "non_embedding": 8.1e6 if moe else 1.8e6,
    }
    run.start(
        kind,
        parameters={**parameters, "dense_twin": 1.8e6},
        flops_parts={"vision": 0.31, "connector": 0.11, "decoder": 0.58},
        mix_target={source: 45 if source in ("captions", "interleaved") else 10 for source in SOURCES[kind]},
        mix_unit="positions",
    )
    run.update(finished=True, machine="an imagined machine", started="2001-01-01 00:00:00")
    run.config.write_text(yaml.safe_dump(config(seed, moe={"experts": EXPERTS} if moe else None)))
    for step in range(0, steps + 1, 10):
        at = {
            "time_s": step * (0.55 if moe else 0.42),
            "positions": step * 4096,
            "flops": step * (9.1e10 if moe else 7.7e10),
        }
        base = 2.0 + 5 * math.exp(-step / 60) - (0.12 if moe else 0) * (1 - math.exp(-step / 100))
        shift = {"captions": -0.5, "interleaved": 0.1, "text": 0.6, "sft": -0.9}
        by_source = {f"loss/{source}": base + shift[source] for source in SOURCES[kind]}
        mix = {
            f"mix/{unit}/{source}": 1 / len(SOURCES[kind])
            for unit in ("documents", "text", "image", "positions")
            for source in SOURCES[kind]
        }
        noisy = {key: value + draw.gauss(0, 0.06) for key, value in {"loss": base, **by_source}.items()}
        run.log(
            "train",
            step,
            **at,
            **noisy,
            **mix,
            positions_per_s=(7400 if moe else 9700) + draw.gauss(0, 150),
            padding=0.031,
        )
        if step % 50 == 0:
            gap = {"sight_gap": 0.9 * step / (step + 150)} | {
                f"sight_gap/{source}": step / (step + 250) for source in SOURCES[kind]
            }
            run.log("val", step, **at, loss=base, **by_source, **gap)
            if moe:
                load = [
                    [max(0.0, draw.gauss(1, 0.6 * math.exp(-step / 150))) + 0.02 for _ in range(EXPERTS)]
                    for _ in LAYERS
                ]
                run.log("experts", step, **at, load=load, layers=list(LAYERS))
    return run


def make_scores(run: Run, name: str, pictures: Path, *, shots: tuple[int, ...], better: float) -> None:
    """Made-up scores of a VQA and a caption task, and answers to match."""
    pictures.mkdir(parents=True, exist_ok=True)

    def at(value: float, blind: float) -> dict[str, Any]:
        return {
            "sighted": value,
            "interval": [value - 4, value + 4],
            "blind": blind,
            "blind_interval": [blind - 3, blind + 3],
        }

    tasks = {
        "scenes_vqa": {"metric": "vqa_accuracy", "n": 500, "warnings": [], "question_only": 36.5, "constant": 21.0,
                       "shots": {str(k): at(58 + better + 2 * k, 37.0) for k in shots}},
        "scenes_captions": {"metric": "cider", "n": 100, "question_only": None, "constant": 12.0,
                            "warnings": ["document frequencies come from the 100 pictures scored"],
                            "shots": {str(k): at(61 + better + k, 22.0) for k in shots}},
    }  # fmt: skip
    write_json(
        run.folder / "eval" / name / "scores.json",
        {"format": 1, "checkpoint": "last.ckpt", "settings": {}, "tasks": tasks},
    )
    with (run.folder / "eval" / name / "answers.jsonl").open("w") as lines:
        for task, i, k, arm in (
            (t, i, k, arm) for t in tasks for i in range(9) for k in shots for arm in ("sighted", "blind")
        ):
            picture = pictures / f"{i}.png"
            _draw(picture, i)
            said = {
                "question": "what colour is the circle?" if task == "scenes_vqa" else "",
                "answer": "red" if i % 3 else "blue",
            }
            asked = {"prompt": "<image> User: what colour is the circle?\nAssistant:", "image": str(picture)}
            people = {"references": ["red"] * 7 + ["orange"] * 3, "score": 100.0 if said["answer"] == "red" else 0.0}
            line = {
                "task": task,
                "shots": k,
                "arm": arm,
                "id": str(i),
                "shown": str(picture),
                **said,
                **asked,
                **people,
            }
            lines.write(json.dumps(line) + "\n")


def _draw(path: Path, i: int) -> None:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8 + i, 8, 40 + i, 40), fill=("red", "orange", "blue")[i % 3])
    image.save(path)
