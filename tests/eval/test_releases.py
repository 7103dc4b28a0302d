"""Every few-shot benchmark runs from tiny files of its original format, and each fault of a file is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.files import Data
from eval.harness import run
from eval.prompts import Prompt, Settings
from eval.task import Task, discover, offers
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from tests.eval import releases

NAMES = [
    "coco/karpathy-test",
    "coco/karpathy-val",
    "coco/val2014",
    "daquar/37-test",
    "flickr30k/test",
    "flickr30k/val",
    "gqa/testdev",
    "nocaps/val",
    "okvqa/val",
    "textcaps/val",
    "textvqa/test",
    "textvqa/test-ocr",
    "textvqa/val",
    "textvqa/val-ocr",
    "vizwiz/test",
    "vizwiz/val",
    "vqav2/test",
    "vqav2/test-dev",
    "vqav2/val",
]
FEWSHOT = (
    "coco/karpathy-test",
    "nocaps/val",
    "textcaps/val",
    "flickr30k/test",
    "vqav2/val",
    "okvqa/val",
    "textvqa/val",
)
FEWSHOT += ("vizwiz/val", "gqa/testdev", "daquar/37-test", "vqav2/test-dev")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return releases.everything(tmp_path / "data")


def task(data: Path, name: str) -> Task:
    [found] = discover(data, [name])
    return found


def test_all_are_offered_by_name_and_read_when_asked(release: Path) -> None:
    assert [offer.name for offer in offers(Data(release))] == NAMES
    (release / "gqa/questions/testdev_balanced_questions.json").write_text("damaged")
    assert task(release, "vqav2/val").name == "vqav2/val"
    with pytest.raises(UserError, match=r"testdev_balanced_questions\.json is not readable as JSON"):
        discover(release, ["gqa/testdev"])


def test_all_few_shot_benchmarks_are_asked_and_scored(
    release: Path, model: MM1, tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path
) -> None:
    short = {"captions": Prompt("{image}{answer}", max_new_tokens=2), "vqa": Prompt(max_new_tokens=2)}
    settings = Settings(shots=(2,), arms=("sighted",), tasks=FEWSHOT, limit=3, **short)
    scores = run(model, tokenizer, checkpoint, release, settings, tmp_path / "out")["tasks"]
    assert set(scores) == set(FEWSHOT)
    metrics = {name: scores[name]["metric"] for name in FEWSHOT}
    assert [metrics[name] for name in FEWSHOT[:4]] == ["cider"] * 4
    assert [metrics[name] for name in FEWSHOT[4:9]] == [
        "vqa_accuracy",
        "okvqa",
        "vqa_accuracy",
        "vqa_accuracy",
        "exact_match",
    ]
    assert metrics["vqav2/test-dev"] == "none"
    for name, found in scores.items():
        at = found["shots"]["2"]
        assert (at["sighted"] is None) == (found["metric"] == "none")
        assert found["sources"][0]["sha256"]
        assert found["n"] == (2 if name == "vqav2/test-dev" else 3)
    assert scores["okvqa/val"]["sources"][0]["version"] == "1.1"
    assert set(scores["nocaps/val"]["shots"]["2"]["groups"]) <= {"in-domain", "near-domain", "out-domain"}
    assert {"BLEU-4", "ROUGE-L"} <= scores["coco/karpathy-test"]["shots"]["2"]["also"]["sighted"].keys()
    assert {"raw_answer"} <= scores["okvqa/val"]["shots"]["2"]["also"]["sighted"].keys()


def test_karpathys_restval_is_trained_on(release: Path) -> None:
    found = task(release, "coco/karpathy-test")
    assert {query.picture.name for query in found.train} == {
        f"COCO_{part}_{at:012d}.jpg"
        for part, first in (("train2014", 800), ("val2014", 810))
        for at in range(first, first + 6)
    }
    assert [query.id for query in found.queries] == [str(at) for at in range(830, 836)]
    assert found.queries[0].references == tuple(releases.captions_of(830))


def test_rows_of_textcaps_are_grouped_by_picture(release: Path) -> None:
    found = task(release, "textcaps/val")
    assert [len(query.references) for query in found.queries] == [5] * 6
    assert len(found.train) == 6


def test_vizwiz_has_no_ids_but_its_pictures(release: Path) -> None:
    query = task(release, "vizwiz/val").queries[0]
    assert query.id == "VizWiz_val_00000610.jpg"
    assert query.about == {"result": {"image": "VizWiz_val_00000610.jpg"}}
    assert len(query.references) == 10


def test_okvqa_keeps_both_fields(release: Path) -> None:
    found = task(release, "okvqa/val")
    query = found.queries[0]
    assert (query.references[0], query.versions["raw_answer"][0]) == ("red", "reds") or query.references[0] + "s" == (
        query.versions["raw_answer"][0]
    )
    assert query.groups == ("Vehicles",)
    assert found.scorer().score(query.id, query.references[0] + "s") == 100, "stemmed as its own pairs are"
    assert found.scorer().also({query.id: query.references[0] + "s"}) == {
        "answer, prediction as it is": 0,
        "raw_answer": 100,
    }


def test_ocr_tokens_make_another_benchmark(release: Path) -> None:
    plain, hinted = task(release, "textvqa/val"), task(release, "textvqa/val-ocr")
    assert hinted.queries[0].question == plain.queries[0].question + "\nReference OCR token: STOP, 510"
    assert hinted.train[0].question.endswith("Reference OCR token: STOP, 500")
    assert "prompts hold Rosetta's OCR tokens (v0.2)" in hinted.warnings
    assert "prompts hold no OCR tokens" in plain.warnings


def test_gqa_is_read_one_question_at_a_time_and_split_as_its_table(release: Path) -> None:
    found = task(release, "gqa/testdev")
    assert [query.groups for query in found.queries[:2]] == [("open", "query"), ("binary", "verify")]
    assert found.scorer().score(found.queries[1].id, " YES.") == 100 * (found.queries[1].answer == "yes")


def test_daquar_names_its_picture_in_the_question(release: Path) -> None:
    query = task(release, "daquar/37-test").queries[1]
    assert (query.question, query.answer) == ("what is behind the table ?", "garbage bin")
    assert query.picture == release / "daquar/nyu_depth_images/image981.png"


def test_pictures_may_lie_elsewhere(release: Path, tmp_path: Path) -> None:
    (release / "vqav2/val2014").rename(tmp_path / "photos")
    with pytest.raises(UserError, match=r"vqav2/val: 6 of 6 questions are about pictures that do not exist"):
        task(release, "vqav2/val")
    images = {"coco": str(tmp_path / "photos")}
    [found] = discover(Data(release, images), ["vqav2/val"])
    assert found.queries[0].picture.parent == tmp_path / "photos"
    assert any("no picture of the train part" in told for told in found.warnings)
    with pytest.raises(UserError, match="images sets vqav2 to nowhere, which is no folder"):
        discover(Data(release, {"vqav2": "nowhere"}), ["vqav2/val"])


def test_missing_pictures_are_counted_up_to_a_share(release: Path) -> None:
    (release / "vqav2/val2014/COCO_val2014_000000000202.jpg").unlink()
    (release / "vqav2/train2014/COCO_train2014_000000000102.jpg").unlink()
    told = r"vqav2/val: 1 of 6 questions .* first is .*000000000202\.jpg; .* max_missing_share = 0.1"
    with pytest.raises(UserError, match=told):
        discover(Data(release, max_missing_share=0.1), ["vqav2/val"])
    [found] = discover(Data(release, max_missing_share=0.2), ["vqav2/val"])
    assert len(found.queries) == len(found.train) == 5
    assert found.warnings == (
        "1 of 6 questions left out, their pictures are missing",
        "1 of 6 demonstrations left out, their pictures are missing",
    )


def change(path: Path, how: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


V2 = "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
V2A = "vqav2/v2_mscoco_val2014_annotations.json"
OKA = "okvqa/mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("name", "file", "how", "told"),
    [
        (
            "vqav2/val",
            V2,
            lambda v: v.update(data_subtype="train2014"),
            "has data_subtype 'train2014'; expected 'val2014'",
        ),
        ("vqav2/val", V2A, lambda v: v["info"].update(version="1.9"), "is version 1.9 of VQA; expected 2.0"),
        ("vqav2/val", V2, lambda v: v["questions"].append(v["questions"][0]), "has id 200000 on 2 questions"),
        ("vqav2/val", V2, lambda v: v["questions"].pop(), "answers question 205000 and 0 others that .* does not ask"),
        ("vqav2/val", V2A, lambda v: v["annotations"].pop(), "has no answers to question 205000"),
        ("vqav2/val", V2A, lambda v: v["annotations"].append(v["annotations"][0]), "annotates question 200000 twice"),
        (
            "vqav2/val",
            V2A,
            lambda v: v["annotations"][0].update(answers=[]),
            "no answers to question 200000; expected ten",
        ),
        ("okvqa/val", OKA, lambda v: [a.pop("raw_answer") for a in v["annotations"][0]["answers"]], "it is VQA v1.0"),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v.update(dataset_name="stvqa"),
            "dataset_name 'stvqa'",
        ),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v.update(dataset_type="train"),
            "has dataset_type 'train'; expected 'val', as its name says",
        ),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v.update(dataset_version="0.4"),
            r"dataset_version '0\.4'; expected '0\.5'",
        ),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v["data"][2].update(set_name="train"),
            "question 512 has set_name 'train'; expected 'val'",
        ),
        (
            "textcaps/val",
            "textcaps/TextCaps_0.1_val.json",
            lambda v: v["data"][9].update(set_name="train"),
            "picture 21d has set_name 'train'; expected 'val'",
        ),
        (
            "coco/val2014",
            "coco/annotations/captions_val2014.json",
            lambda v: v["images"][1].update(file_name="COCO_train2014_000000000801.jpg"),
            "has picture COCO_train2014_000000000801.jpg; expected those of val2014",
        ),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v["data"][1].update(question_id="\ud83d"),
            "expected Unicode text",
        ),
        (
            "textvqa/val",
            "textvqa/TextVQA_0.5.1_val.json",
            lambda v: v["data"][1].pop("answers"),
            "question 511: answers",
        ),
        ("textcaps/val", "textcaps/TextCaps_0.1_val.json", lambda v: v.update(dataset_name="textvqa"), "dataset_name"),
        ("vizwiz/val", "vizwiz/Annotations/val.json", lambda v: v.append(v[0]), r"id VizWiz_val_00000610\.jpg on 2"),
        ("vizwiz/val", "vizwiz/Annotations/val.json", lambda v: v[2].update(image="VizWiz_train_1.jpg"), "val part"),
        ("vizwiz/val", "vizwiz/Annotations/val.json", lambda v: v[2].update(answers=[]), "no answers about VizWiz_val"),
        (
            "gqa/testdev",
            "gqa/questions/testdev_balanced_questions.json",
            lambda v: v["20000711"].pop("answer"),
            "answer",
        ),
        (
            "coco/karpathy-test",
            "coco/dataset_coco.json",
            lambda v: v.update(dataset="flickr30k"),
            "dataset 'flickr30k'",
        ),
        (
            "coco/karpathy-test",
            "coco/dataset_coco.json",
            lambda v: [row.update(split="train") for row in v["images"] if row["split"] == "restval"],
            "no picture of split restval",
        ),
        (
            "nocaps/val",
            "nocaps/nocaps_val_4500_captions.json",
            lambda v: [row.pop("domain") for row in v["images"]],
            "picture 0 has no domain; expected NoCaps",
        ),
    ],
)
def test_a_file_of_another_dataset_version_or_shape_is_told(
    release: Path, name: str, file: str, how: Callable[[Any], object], told: str
) -> None:
    change(release / file, how)
    with pytest.raises(UserError, match=told):
        task(release, name)


def test_two_files_of_one_name_are_told(release: Path) -> None:
    copy = release / "copy/TextVQA_0.5.1_val.json"
    releases.write(copy, (release / "textvqa/TextVQA_0.5.1_val.json").read_text())
    with pytest.raises(UserError, match=r"copy/TextVQA_0\.5\.1_val\.json and .* have one name"):
        discover(release, ["textvqa/val"])


def test_questions_without_annotations_are_told(release: Path) -> None:
    (release / V2A).unlink()
    with pytest.raises(
        UserError, match=r"stands without its annotations; expected a file named like v2_mscoco_val2014"
    ):
        task(release, "vqav2/val")
