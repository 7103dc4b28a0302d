"""Tiny files in the original formats of the few-shot benchmarks, written where their releases put them."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image

WORDS = ("red", "green", "blue", "black", "white", "grey")
COUNT = 6  # pictures of each part


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (value * 37 % 256, value * 71 % 256, value * 113 % 256)
    PIL.Image.new("RGB", (12, 12), colour).save(path, "PNG" if path.suffix == ".png" else "JPEG")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def captions_of(at: int) -> list[str]:
    return [f"A {WORDS[at % 6]} square, number {n}." for n in range(5)]


def answers_of(at: int) -> list[str]:
    return [WORDS[at % 6]] * 6 + ["dark"] * 4


def vqa(folder: Path, prefix: str, raw: bool, shift: int) -> None:
    """Questions and annotations of VQA v2 or OK-VQA, and its test parts."""
    for part, first in (("train2014", 100 + shift), ("val2014", 200 + shift)):
        questions, annotations = [], []
        for at in range(first, first + COUNT):
            picture(folder / f"{part}/COCO_{part}_{at:012d}.jpg", at)
            key = {"question_id": 1000 * at, "image_id": at}
            questions.append({**key, "question": f"What colour is thing {at}?"})
            answers = [
                {"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers_of(at), 1)
            ]
            if raw:
                answers = [{**answer, "raw_answer": answer["answer"] + "s"} for answer in answers]
            about = {"question_type": "one" if raw else "what color", "answer_type": "other"}
            annotations.append({**key, **about, "multiple_choice_answer": "red", "answers": answers})
        info = {"version": "1.1" if raw else "2.0", "description": ""}
        head = {"info": info, "data_type": "mscoco", "data_subtype": part, "license": {}}
        asked = {**head, "task_type": "Open-Ended", "questions": questions}
        write(folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json", asked)
        types = {"question_types": {"one": "Vehicles"}} if raw else {}
        write(folder / f"{prefix}mscoco_{part}_annotations.json", {**head, **types, "annotations": annotations})


def vqav2(data: Path) -> None:
    vqa(data / "vqav2", "v2_", False, 0)
    for part, count in (("test2015", 4), ("test-dev2015", 2)):
        questions = []
        for at in range(300, 300 + count):
            picture(data / f"vqav2/test2015/COCO_test2015_{at:012d}.jpg", at)
            questions.append({"question_id": 1000 * at, "image_id": at, "question": f"What is thing {at}?"})
        head = {"info": {"version": "2.0"}, "data_subtype": part, "questions": questions}
        write(data / f"vqav2/v2_OpenEnded_mscoco_{part}_questions.json", head)


def okvqa(data: Path) -> None:
    vqa(data / "okvqa", "", True, 400)


def textvqa(data: Path) -> None:
    for split, first in (("train", 500), ("val", 510), ("test", 520)):
        rows, tokens = [], []
        for at in range(first, first + COUNT):
            folder = "test_images" if split == "test" else "train_images"
            picture(data / f"textvqa/{folder}/{at:x}.jpg", at)
            row = {"question_id": at, "question": f"what does sign {at} say?", "image_id": f"{at:x}", "set_name": split}
            rows.append(row if split == "test" else {**row, "answers": answers_of(at)})
            tokens.append({"image_id": f"{at:x}", "ocr_tokens": ["STOP", f"{at}"], "ocr_info": []})
        head = {"dataset_type": split, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        write(data / f"textvqa/TextVQA_0.5.1_{split}.json", {**head, "data": rows})
        write(data / f"textvqa/TextVQA_Rosetta_OCR_v0.2_{split}.json", {"data": tokens})


def textcaps(data: Path) -> None:
    for split, first in (("train", 530), ("val", 540)):
        rows = []
        for at in range(first, first + COUNT):
            picture(data / f"textcaps/train_images/{at:x}.jpg", at)
            row = {"image_id": f"{at:x}", "set_name": split, "image_name": f"{at:x}"}
            captions = captions_of(at)
            for n, caption in enumerate(captions):
                rows.append({**row, "caption_id": 5 * at + n, "caption_str": caption, "reference_strs": captions})
        write(data / f"textcaps/TextCaps_0.1_{split}.json", {"dataset_name": "textcaps", "data": rows})


def vizwiz(data: Path) -> None:
    for split, first in (("train", 600), ("val", 610), ("test", 620)):
        rows = []
        for at in range(first, first + COUNT):
            name = f"VizWiz_{split}_{at:08d}.jpg"
            picture(data / f"vizwiz/{split}/{name}", at)
            answers = [{"answer": answer, "answer_confidence": "yes"} for answer in answers_of(at)]
            row = {"image": name, "question": "What colour is this?"}
            rows.append(
                row if split == "test" else {**row, "answers": answers, "answer_type": "other", "answerable": 1}
            )
        write(data / f"vizwiz/Annotations/{split}.json", rows)


def gqa(data: Path) -> None:
    for split, first in (("train", 700), ("testdev", 710)):
        questions = {}
        for at in range(first, first + COUNT):
            picture(data / f"gqa/images/n{at}.jpg", at)
            structure = "verify" if at % 2 else "query"
            answer = ("yes", "no")[at % 4 // 2] if at % 2 else WORDS[at % 6]
            questions[f"2{at:07d}"] = {
                "question": f"Is thing {at} red?",
                "imageId": f"n{at}",
                "answer": answer,
                "fullAnswer": f"It is {answer}.",
                "isBalanced": True,
                "types": {"structural": structure, "semantic": "attr", "detailed": "x"},
            }
        write(data / f"gqa/questions/{split}_balanced_questions.json", questions)


def karpathy(data: Path, name: str, first: int) -> None:
    images = []
    for place, split in enumerate(("train", "restval", "val", "test")):
        for at in range(first + 10 * place, first + 10 * place + COUNT):
            part = "train2014" if split == "train" else "val2014"
            row = {"imgid": at, "split": split, "sentids": [], "filename": f"{at}.jpg"}
            if name == "coco":
                row |= {"cocoid": at, "filepath": part, "filename": f"COCO_{part}_{at:012d}.jpg"}
                picture(data / f"coco/{part}/{row['filename']}", at)
            else:
                picture(data / f"flickr30k/flickr30k-images/{at}.jpg", at)
            row["sentences"] = [{"raw": raw, "tokens": [], "imgid": at, "sentid": 0} for raw in captions_of(at)]
            images.append(row)
    if name != "coco":
        images = [row for row in images if row["split"] != "restval"]
    write(data / f"{name}/dataset_{name}.json", {"images": images, "dataset": name})


def coco(data: Path) -> None:
    karpathy(data, "coco", 800)
    for part, first in (("train2014", 800), ("val2014", 810)):
        images = [{"id": at, "file_name": f"COCO_{part}_{at:012d}.jpg"} for at in range(first, first + COUNT)]
        annotations = [
            {"id": 10 * row["id"] + n, "image_id": row["id"], "caption": caption}
            for row in images
            for n, caption in enumerate(captions_of(row["id"]))
        ]
        written = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        write(data / f"coco/annotations/captions_{part}.json", written)


def flickr30k(data: Path) -> None:
    karpathy(data, "flickr30k", 900)


def nocaps(data: Path) -> None:
    images, annotations = [], []
    for at in range(COUNT):
        picture(data / f"nocaps/images/{at:016x}.jpg", 950 + at)
        domain = ("in-domain", "near-domain", "out-domain")[at % 3]
        row = {"id": at, "file_name": f"{at:016x}.jpg", "open_images_id": f"{at:016x}", "domain": domain}
        images.append({**row, "coco_url": "", "date_captured": "", "width": 12, "height": 12})
        annotations += [{"id": 10 * at + n, "image_id": at, "caption": text} for n, text in enumerate(captions_of(at))]
    write(data / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def daquar(data: Path) -> None:
    for part, first in (("train", 970), ("test", 980)):
        lines = []
        for at in range(first, first + COUNT):
            picture(data / f"daquar/nyu_depth_images/image{at}.png", at)
            lines += [f"what is behind the table in the image{at} ?", "garbage_bin" if at % 2 else "window"]
        write(data / f"daquar/qa.37.raw.{part}.txt", "\n".join(lines) + "\n")


ALL = (coco, nocaps, textcaps, flickr30k, vqav2, okvqa, textvqa, vizwiz, gqa, daquar)


def everything(data: Path) -> Path:
    for of in ALL:
        of(data)
    return data
