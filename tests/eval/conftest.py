"""A tiny data folder with every kind of benchmark, and a tiny random model that can be asked about it."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
import torch

from mm1.data.tokenizer import Tokenizer, train
from mm1.model.build import build
from mm1.model.mm1 import MM1

ROOT = Path(__file__).resolve().parents[2]
LINES = ["Question: what colour is this? Short answer: red", "a green picture", "User: what is this?", "dako wupi"] * 20


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (12, 12), (value * 20 % 256, value * 50 % 256, value * 90 % 256)).save(path, "PNG")


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six captioned pictures with a pool of ten, VQA v2 without train part, DAQUAR with one, made-up words."""
    data = tmp_path / "data"
    images, annotations = [], []
    for at in range(6):
        picture(data / f"captions_eval/images/{at}.png", at)
        images.append({"id": at, "path": f"images/{at}.png"})
        annotations += [{"image_id": at, "caption": f"a {word} picture number {at}"} for word in ("green", "red")]
    write_json(data / "captions_eval/mini.json", {"images": images, "annotations": annotations})
    for name, first in (("pool_train", 4), ("pool_dev", 50)):  # 4 and 5 of the pool are scored pictures
        for at in range(first, first + 10):
            picture(data / f"captions/images/{at}.png", at)
        rows = [{"image": f"images/{at}.png", "captions": [f"pool {at}"]} for at in range(first, first + 10)]
        write_rows(data / f"captions/{name}.jsonl", rows)
    questions, answers = [], []
    for at in range(8):
        picture(data / f"vqa/mini/images/COCO_val2014_{at // 2:012d}.jpg", at // 2)
        key = {"question_id": 100 + at, "image_id": at // 2}
        questions.append({**key, "question": f"what colour is thing {at}?"})
        answers.append({**key, "answers": [{"answer": "red" if n < 6 else "green"} for n in range(10)]})
    write_json(data / "vqa/mini/questions.json", {"data_subtype": "val2014", "questions": questions})
    write_json(data / "vqa/mini/annotations.json", {"annotations": answers})
    for part, first in (("test", 0), ("train", 20)):
        for at in range(first, first + 5):
            picture(data / f"vqa/daquar/images/{at}.png", at)
        rows = [
            {
                "question_id": at,
                "question": f"what is thing {at} ?",
                "answer": "wall_clock",
                "image": f"images/{at}.png",
            }
            for at in range(first, first + 5)
        ]
        write_rows(data / f"vqa/daquar/{part}.jsonl", rows)
    write_rows(data / "icl/test.jsonl", [lesson(data, at) for at in range(3)])
    return data


def lesson(data: Path, at: int) -> dict:
    items: list[dict] = []
    for n, word in enumerate(("dako", "wupi")):
        picture(data / f"icl/images/{at}-{n}.png", 3 * at + n)
        items += [{"type": "image", "image": f"images/{at}-{n}.png"}, {"type": "text", "text": f"This is a {word}."}]
    picture(data / f"icl/images/{at}-2.png", 3 * at + 2)
    items.append({"type": "image", "image": f"images/{at}-2.png"})
    return {"id": f"l{at}", "items": items, "question": "What?", "answers": ["dako"] * 10, "choices": ["dako", "wupi"]}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(train(LINES, 310))


@pytest.fixture(scope="session")
def config() -> str:
    return (ROOT / "configs/model/tiny.yaml").read_text().replace("2048", "310")


@pytest.fixture(scope="session")
def model(config: str, tmp_path_factory: pytest.TempPathFactory) -> MM1:
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    path.write_text(config)
    model = build(path, device="cpu")
    model.init_weights(seed=0)
    return model.eval()


@pytest.fixture
def checkpoint(model: MM1, tokenizer: Tokenizer, config: str, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"mm1": {"format": 1, "model": config, "tokenizer": tokenizer.proto}, "state_dict": weights}, path)
    return path
