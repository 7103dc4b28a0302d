"""Tiny instruction-tuning benchmarks in the shape of their releases, written by code."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet

from tests.eval.conftest import picture, write_json, write_rows


def png(value: int) -> bytes:
    file = io.BytesIO()
    colour = (value * 20 % 256, value * 50 % 256, value * 90 % 256)
    PIL.Image.new("RGB", (12, 12), colour).save(file, "PNG")
    return file.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def science_qa(folder: Path) -> None:
    """Test: 1 and 3 with pictures, 2 without; train: 4."""
    about = {"subject": "natural science", "topic": "physics", "task": "closed choice", "lecture": "", "solution": ""}
    problems = {
        "1": {
            "question": "Which is red?",
            "choices": ["a dako", "a wupi"],
            "answer": 1,
            "hint": "Look at the colours.",
        },
        "2": {"question": "What is 1 + 1?", "choices": ["2", "3"], "answer": 0, "hint": ""},
        "3": {"question": "Which is green?", "choices": ["a", "b", "c"], "answer": 2, "hint": ""},
        "4": {"question": "Which is blue?", "choices": ["a", "b"], "answer": 0, "hint": ""},
    }
    for at, (id, row) in enumerate(problems.items()):
        split = "train" if id == "4" else "test"
        row |= {**about, "split": split, "grade": f"grade{at + 5}", "image": None if id == "2" else "image.png"}
        if row["image"]:
            picture(folder / f"scienceqa/images/{split}/{id}/image.png", at)
    write_json(folder / "scienceqa/problems.json", problems)
    write_json(folder / "scienceqa/pid_splits.json", {"train": ["4"], "val": [], "test": ["1", "2", "3"]})


def mmmu(folder: Path) -> None:
    """Art: a choice with a picture among its options, and one with two pictures; Math: an open question."""

    def row(id: str, question: str, options: str, answer: str, kind: str, *images: int) -> dict[str, Any]:
        cells = {f"image_{at}": None for at in range(1, 8)}
        cells |= {f"image_{at}": {"bytes": png(value), "path": f"{id}_{at}.png"} for at, value in enumerate(images, 1)}
        about = {"explanation": "", "img_type": "['Diagrams']", "topic_difficulty": "Easy", "subfield": "Any"}
        return {"id": id, "question": question, "options": options, "answer": answer, "question_type": kind} | {
            **about,
            **cells,
        }

    art = [
        row("validation_Art_1", "See <image 1>. Which?", "['<image 2>', 'red']", "B", "multiple-choice", 1, 2),
        row("validation_Art_2", "<image 1> and <image 2>: which?", "['a', 'b', 'c']", "A", "multiple-choice", 3, 4),
    ]
    maths = [row("validation_Math_1", "<image 1> How many?", "[]", "['3.5', 'three and a half']", "open", 5)]
    parquet(folder / "MMMU/Art/validation-00000-of-00001.parquet", art)
    parquet(folder / "MMMU/Math/validation-00000-of-00001.parquet", maths)


MATHVISTA = {
    "1": ("multi_choice", "text", ["3/11", "8/11"], "8/11", None, "Hint: .. letter ..\nQuestion: Blue?\nChoices:\n(A)"),
    "2": ("free_form", "integer", None, "14", None, "Hint: .. integer ..\nQuestion: Which number is missing?"),
    "3": ("free_form", "float", None, "1.45", 2.0, "Hint: .. two decimal places ..\nQuestion: How much?"),
    "4": ("free_form", "list", None, "[2007, 2008]", None, "Hint: .. Python list ..\nQuestion: Between which years?"),
}


def mathvista(folder: Path, form: str = "json") -> None:
    rows = {}
    for pid, (question_type, answer_type, choices, answer, precision, query) in MATHVISTA.items():
        metadata = {
            "split": "testmini",
            "task": "figure QA",
            "context": "bar chart",
            "skills": ["statistical reasoning"],
        }
        row = {"pid": pid, "question": query.split("Question: ")[1], "image": f"images/{pid}.jpg", "choices": choices}
        row |= {"unit": None, "precision": precision, "answer": answer, "question_type": question_type}
        rows[pid] = {**row, "answer_type": answer_type, "metadata": metadata, "query": query}
        if form == "json":
            picture(folder / f"MathVista/images/{pid}.jpg", int(pid))
    if form == "json":
        write_json(folder / "MathVista/testmini.json", rows)
        return
    shown = [{**row, "decoded_image": {"bytes": png(int(pid)), "path": None}} for pid, row in rows.items()]
    parquet(folder / "MathVista/data/testmini-00000-of-00001-725687bf7a18d64b.parquet", shown)


def mme(folder: Path) -> None:
    """Existence and landmark (with folders of its own) of perception, code_reasoning of cognition."""
    root = folder / "MME_Benchmark_release_version"
    for name, images, texts in (
        ("existence", "", ""),
        ("landmark", "images/", "questions_answers_YN/"),
        ("code_reasoning", "", ""),
    ):
        for at in range(2):
            picture(root / name / f"{images}{at}.jpg", at + len(name))
            lines = "Is it a dog? Please answer yes or no.\tYes\nIs it a cat? Please answer yes or no.\tNo\n"
            path = root / name / f"{texts}{at}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(lines)


def mmbench(folder: Path) -> None:
    """Three rows; the last has its picture in the row of the first, and two choices."""
    names = ["index", "question", "hint", *"ABCD", "answer", "category", "image"]
    names += ["source", "l2-category", "comment", "split"]
    rows = [
        [0, "Which?", "", "red", "green", "blue", "grey", "B", "color", base64.b64encode(png(1)).decode()],
        [1, "What is shown?", "A hint.", "dog", "cat", "cow", "pig", "A", "object", base64.b64encode(png(2)).decode()],
        [241, "Yes?", "nan", "yes", "no", "", "", "B", "color", "0"],
    ]
    path = folder / "mmbench/mmbench_dev_20230712.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(names)
        table.writerows([*row, "web", "coarse perception", "", "dev"] for row in rows)


def seed(folder: Path, frames: bool = False) -> None:
    """Two questions about pictures, one about a video."""
    questions = []
    for at, (kind, data_id) in enumerate((("image", "1_2"), ("image", "3_4"), ("video", "v.mp4"))):
        choices = {f"choice_{letter}": f"{letter} thing {at}" for letter in "abcd"}
        row = {
            "question_id": str(100 + at),
            "data_id": data_id,
            "data_type": kind,
            "question_type_id": 1 + 9 * (at > 1),
        }
        questions.append({**choices, **row, "answer": "ABCD"[at], "question": f"What is {at}?"})
        if kind == "image":
            picture(folder / f"seed/SEED-Bench-image/{data_id}", at)
    if frames:
        picture(folder / "seed/SEED-Bench-video-image/102.png", 9)
    write_json(folder / "seed/SEED-Bench.json", {"questions": questions, "question_type": {"Scene": 1}})


def pope(folder: Path) -> None:
    for way in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": at, "image": f"COCO_val2014_{at:012d}.jpg", "text": "Is there a dog?", "label": label}
            for at, label in enumerate(("yes", "no", "yes", "no"), start=1)
        ]
        write_rows(folder / f"pope/coco_pope_{way}.json", rows)
    for at in range(1, 5):
        picture(folder / f"pope/val2014/COCO_val2014_{at:012d}.jpg", at)


def ai2d(folder: Path) -> None:
    """Diagrams 0 and 2 (test) and 1 (train), two questions each."""
    for at in range(3):
        picture(folder / f"ai2d/images/{at}.png", at)
        questions = {
            f"What is {letter} of {at}?": {
                "abcLabel": letter == "B",
                "answerTexts": ["sun", "moon", "sea", "sky"] if letter == "A" else ["A", "B", "C", "D"],
                "correctAnswer": 2,
                "questionId": f"{at}.png-{place}",
            }
            for place, letter in enumerate("AB")
        }
        found = {"imageName": f"{at}.png", "questions": questions}
        write_json(folder / f"ai2d/questions/{at}.png.json", found)
    (folder / "ai2d/ai2d_test_ids.csv").write_text("0\n2\n")


def documents(folder: Path) -> None:
    for at in range(3):
        picture(folder / f"docvqa/documents/{at}.png", at)
        picture(folder / f"infovqa/infographicsvqa_images/{at}.jpeg", at + 3)
    data = [
        {"questionId": 10 + at, "question": f"What is {at}?", "image": f"documents/{at}.png", "docId": at}
        | {"answers": ["The Dako", "dako"], "data_split": "val", "question_types": ["form"]}
        for at in range(2)
    ]
    write_json(folder / "docvqa/val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": data})
    train = [{**data[0], "questionId": 1, "image": "documents/2.png", "data_split": "train"}]
    write_json(folder / "docvqa/train_v1.0_withQT.json", {"data": train})
    hidden = [
        {name: value for name, value in row.items() if name != "answers"} | {"data_split": "test"} for row in data
    ]
    write_json(folder / "docvqa/test_v1.0.json", {"data": hidden})
    info = [
        {"questionId": 20 + at, "question": f"How much is {at}?", "image_local_name": f"{at}.jpeg"}
        | {"answers": ["40%"], "data_split": "val", "answer_type": ["Image-Span"]}
        for at in range(3)
    ]
    write_json(folder / "infovqa/infographicsVQA_val_v1.0_withQT.json", {"data": info})


def chartqa(folder: Path) -> None:
    root = folder / "ChartQA Dataset/test"
    for at in range(3):
        picture(root / f"png/{at}.png", at)
    write_json(root / "test_human.json", [{"imgname": "0.png", "query": "How many?", "label": "14"}])
    made = [{"imgname": f"{at}.png", "query": "What share?", "label": "0.57"} for at in (1, 2)]
    write_json(root / "test_augmented.json", made)


def llava_bench(folder: Path) -> None:
    root = folder / "llava-bench-in-the-wild"
    rows, contexts, answers = [], [], []
    for at, kind in enumerate(("conv", "detail", "complex")):
        picture(root / f"images/{at:03d}.jpg", at)
        rows.append({"question_id": at, "image": f"{at:03d}.jpg", "text": f"Tell of {at}.", "category": kind})
        contexts.append({"id": f"{at:03d}", "image": f"{at:03d}.jpg", "caption": f"It is {at}."})
        answers.append({"question_id": at, "prompt": "", "text": f"This is {at}.", "answer_id": f"a{at}"})
    write_rows(root / "questions.jsonl", rows)
    write_rows(root / "context.jsonl", contexts)
    write_rows(root / "answers_gpt4.jsonl", answers)


def mm_vet(folder: Path) -> None:
    rows = {}
    for at, (answer, skills) in enumerate((("-1<AND>-5", ["ocr", "math"]), ("red<OR>scarlet", ["rec"]))):
        picture(folder / f"mm-vet/images/v1_{at}.png", at)
        row = {"imagename": f"v1_{at}.png", "question": f"What is {at}?", "answer": answer, "imagesource": "web"}
        rows[f"v1_{at}"] = {**row, "capability": skills}
    (folder / "mm-vet").mkdir(parents=True, exist_ok=True)
    (folder / "mm-vet/mm-vet.json").write_text(json.dumps(rows))


ALL = (science_qa, mmmu, mathvista, mme, mmbench, seed, pope, ai2d, documents, chartqa, llava_bench, mm_vet)


def everything(folder: Path) -> Path:
    """A folder with all of them, each below its own name."""
    for write in ALL:
        write(folder)
    return folder
