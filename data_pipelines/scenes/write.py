"""Scenes as a raw corpus folder (docs/data.md), which every door then reads like any other.

The folder appears at once, when it is whole: it is built beside its place and moved there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from data_pipelines.scenes.documents import Document, interleaved, lesson
from data_pipelines.scenes.draw import jpeg
from data_pipelines.scenes.language import caption, captions
from data_pipelines.scenes.questions import choose, ten_answers
from data_pipelines.scenes.texts import conversation, quiz, text
from data_pipelines.scenes.world import Scene, World, chance_of, sample
from mm1.errors import UserError
from mm1.runs import read_object

FORMAT = 1
SOURCE = "scenes (generated)"
LEAST_PX, LEAST_WORLDS = 32, 20


def write(
    folder: Path, *, worlds: int = 10_000, test_worlds: int = 160, image_px: int = 64, seed: int = 0
) -> dict[str, int]:
    """Write a generated corpus of scenes, or do nothing where the very same one stands already.

    Args:
        folder: Where the corpus goes; new, empty, or the same corpus written before.
        worlds: Captioned pictures to train on; documents, texts, conversations and questions grow with it.
        test_worlds: Pictures in each scored set, about 3.5 questions each; unseen in training whatever the seeds.
        image_px: Side of the square pictures.
        seed: The corpus is a function of it and of these numbers; one with more worlds begins with the smaller one.

    Returns:
        How many of what was written.

    Raises:
        UserError: A number too small, or a folder that holds something else.
    """
    for name, value, least in (
        ("worlds", worlds, LEAST_WORLDS),
        ("test_worlds", test_worlds, 1),
        ("image_px", image_px, LEAST_PX),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; scenes need at least {least}; raise {name}")
    about = {
        "format": FORMAT,
        "source": SOURCE,
        "worlds": worlds,
        "test_worlds": test_worlds,
        "image_px": image_px,
        "seed": seed,
    }
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _standing(folder, about)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    corpus = _Corpus(partial, image_px, seed)
    _write_streams(corpus, worlds)
    _write_scored(corpus, worlds, test_worlds)
    corpus.rows("pictures.jsonl", corpus.pictures)
    readme = files(__package__).joinpath("corpus.md").read_text().format(**about)
    (partial / "README.md").write_text(readme)
    corpus.json("scenes.json", {**about, "counts": dict(corpus.counts)})
    os.replace(partial, folder)
    return dict(corpus.counts)


def _standing(folder: Path, about: dict[str, Any]) -> dict[str, int]:
    """The counts of a corpus already there, if it is the one asked for."""
    if not (folder / "scenes.json").is_file():
        raise UserError(
            f"{folder} is not empty and holds no scenes; expected a new or empty folder; choose another folder"
        )
    found = read_object(folder / "scenes.json", "the settings of a corpus written by mm1-data scenes")
    for key, value in about.items():
        if found.get(key) != value:
            raise UserError(
                f"{folder} holds scenes with {key} {found.get(key)}; expected {value}; choose another folder or {key}"
            )
    return found["counts"]


class _Corpus:
    """The folder while it is written: puts pictures and rows, counts both, remembers what each picture shows."""

    def __init__(self, folder: Path, image_px: int, seed: int) -> None:
        self.folder, self.image_px, self.seed = folder, image_px, seed
        self.counts: Counter[str] = Counter()
        self.pictures: list[dict[str, Any]] = []

    def picture(self, part: str, name: str, scene: Scene) -> str:
        """Draw a scene into ``part``/images; returns the path relative to ``part``."""
        path = self.folder / part / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(scene, self.image_px))
        self.counts["pictures"] += 1
        self.pictures.append({"image": f"{part}/images/{name}", "world": scene.world, "scene": scene.as_dict()})
        return f"images/{name}"

    def rows(self, path: str, rows: Iterable[dict[str, Any]]) -> None:
        """Write JSON lines."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / path).open("w") as lines:
            for row in rows:
                lines.write(json.dumps(row) + "\n")
                self.counts[path] += 1

    def json(self, path: str, value: Any) -> None:
        """Write one JSON file."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(json.dumps(value, indent=1) + "\n")


def _write_streams(corpus: _Corpus, worlds: int) -> None:
    """What is trained on."""
    corpus.rows("captions/train.jsonl", _captions(corpus, worlds))
    corpus.rows("interleaved/docs.jsonl", _interleaved(corpus, worlds // 4))
    texts = ({"text": text(chance_of(corpus.seed, "text", i)), "source": SOURCE} for i in range(worlds // 5))
    corpus.rows("text/plain.jsonl", texts)
    conversations = list(_conversations(corpus, worlds * 3 // 10))
    corpus.json("sft/conversations.json", conversations)
    corpus.counts["sft/conversations.json"] = len(conversations)


def _write_scored(corpus: _Corpus, worlds: int, test_worlds: int) -> None:
    """What is scored, and the questions that demonstrations come from."""
    _write_caption_references(corpus, test_worlds)
    _write_vqa(corpus, "train", "train_", max(worlds * 6 // 100, 20))
    _write_vqa(corpus, "test", "test_", test_worlds)
    corpus.rows("icl/test.jsonl", _lessons(corpus, test_worlds))


def _captions(corpus: _Corpus, count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        chance = chance_of(corpus.seed, "captions", i)
        scene = sample(chance, "train")
        image = corpus.picture("captions", _numbered(i), scene)
        yield {"image": image, "captions": [caption(scene, chance)], "source": SOURCE}


def _interleaved(corpus: _Corpus, count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        document = interleaved(chance_of(corpus.seed, "interleaved", i), "train")
        yield {"id": f"scenes-{i:09d}", "items": _items(corpus, "interleaved", i, document), "source": SOURCE}


def _conversations(corpus: _Corpus, count: int) -> Iterator[dict[str, Any]]:
    """One conversation in eleven has no picture."""
    for i in range(count * 11 // 10):
        chance = chance_of(corpus.seed, "sft", i)
        row: dict[str, Any] = {"id": f"scenes-{i:09d}"}
        if i % 11 == 10:
            turns = quiz(chance)
        else:
            scene = sample(chance, "train")
            row["image"] = "sft/" + corpus.picture("sft", _numbered(i), scene)
            (question, answer), *later = conversation(scene, chance)
            turns = [(f"<image>\n{question}", answer), *later]
        said = [
            {"from": who, "value": value} for turn in turns for who, value in zip(("human", "gpt"), turn, strict=True)
        ]
        yield {**row, "conversations": said, "source": SOURCE}


def _write_caption_references(corpus: _Corpus, count: int) -> None:
    """Pictures of the test world with five captions each, in the format of COCO."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        scene = sample(chance_of(corpus.seed, "captions_eval", i), "test")
        path = corpus.picture("captions_eval", _numbered(i), scene)
        size = {"width": corpus.image_px, "height": corpus.image_px}
        images.append({"id": i + 1, "file_name": Path(path).name, "path": path, **size})
        for reference in captions(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "caption": reference})
    info = {"description": SOURCE}
    value = {"info": info, "licenses": [], "images": images, "annotations": annotations, "source": SOURCE}
    corpus.json("captions_eval/scenes.json", value)
    corpus.counts["captions_eval/scenes.json"] = count


def _write_vqa(corpus: _Corpus, world: World, prefix: str, count: int) -> None:
    """Questions with ten answers, in the two files of VQA v2."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        chance = chance_of(corpus.seed, f"vqa {world}", image_id)
        scene = sample(chance, world)
        corpus.picture("vqa/scenes", f"COCO_{world}_{image_id:012d}.jpg", scene)
        for i, question in enumerate(choose(scene, chance, most=4, either=int(chance.random() < 0.35))):
            key = {"image_id": image_id, "question_id": image_id * 1000 + i}
            answers = [
                {"answer": answer, "answer_confidence": "yes" if answer == question.answer else "maybe", "answer_id": n}
                for n, answer in enumerate(ten_answers(question.answer, chance), 1)
            ]
            questions.append({**key, "question": question.text})
            about = {"question_type": question.kind, "answer_type": question.answer_type}
            annotations.append({**key, **about, "multiple_choice_answer": question.answer, "answers": answers})
    head = {
        "info": {"description": SOURCE, "version": "2.0"},
        "data_type": "mscoco",
        "data_subtype": world,
        "source": SOURCE,
    }
    files = {"questions": questions, "annotations": annotations}
    for kind, rows in files.items():
        task = {"task_type": "Open-Ended"} if kind == "questions" else {}
        corpus.json(f"vqa/scenes/{prefix}{kind}.json", {**head, **task, kind: rows})
    corpus.counts[f"vqa/scenes/{prefix}questions.json"] = len(questions)


def _lessons(corpus: _Corpus, count: int) -> Iterator[dict[str, Any]]:
    """Made-up words defined by pictures, then one picture to name: learning in context, with the words as choices."""
    for i in range(count):
        chance = chance_of(corpus.seed, "icl", i)
        taught = lesson(chance, "test", asked=1)
        ((scene, word),) = taught.asked
        yield {
            "id": f"scenes-{i:09d}",
            "items": _items(corpus, "icl", i, [*taught.definitions(), scene]),
            "question": taught.question,
            "answers": [word] * 10,
            "choices": taught.words,
            "source": SOURCE,
        }


def _items(corpus: _Corpus, part: str, index: int, document: Document) -> list[dict[str, Any]]:
    """A document as items; its pictures are numbered within it."""
    items = []
    for position, item in enumerate(document):
        if isinstance(item, Scene):
            items.append({"type": "image", "image": corpus.picture(part, _numbered(index, f"-{position}"), item)})
        else:
            items.append({"type": "text", "text": item})
    return items


def _numbered(index: int, suffix: str = "") -> str:
    """A file name; no folder gets more than a thousand documents."""
    return f"{index // 1000:05d}/{index:09d}{suffix}.jpg"
