"""Retrieved demonstrations: the most similar by open_clip's own cosines, next to the question, nothing given away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import PIL.Image
import pytest
import torch

from eval.harness import run
from eval.pictures import content
from eval.prompts import Settings
from eval.similar import Retrieval, Similar
from eval.task import Query, Task, discover
from mm1.data.tokenizer import Tokenizer
from mm1.embed import Clip
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from tests.clips import NAME, tiny_clip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def retrieval(weights: Path, tmp_path: Path) -> Retrieval:
    return Retrieval(NAME, None, str(weights), cache=str(tmp_path / "kept"), batch=3)


def task_of(data: Path, name: str) -> Task:
    return next(task for task in discover(data) if task.name == name)


def test_the_nearest_by_cosine_stand_last(data: Path, retrieval: Retrieval, weights: Path) -> None:
    task = task_of(data, "captions/mini")  # of whose pool two pictures are scored
    model, prepare = open_clip.create_model_from_pretrained(NAME, pretrained=str(weights))

    def vector(query: Query) -> torch.Tensor:
        with torch.no_grad():
            return model.eval().encode_image(prepare(PIL.Image.open(query.picture).convert("RGB"))[None])[0]

    scored = {content(query.picture) for query in task.queries}
    pool = [query for query in task.train if content(query.picture) not in scored]
    similar = Similar(task, 0, retrieval=retrieval)
    orders = set()
    for query in task.queries:
        cosine = {s.id: float(torch.cosine_similarity(vector(query), vector(s), dim=0)) for s in pool}
        wanted = sorted(pool, key=lambda shot: cosine[shot.id])
        assert [shot.id for shot in similar.of(query, 8)] == [shot.id for shot in wanted]
        assert similar.of(query, 3) == wanted[-3:]
        orders.add(tuple(shot.id for shot in wanted))
    assert len(orders) > 1
    with pytest.raises(UserError, match=r"9 shots for question .* only 8 other pictures"):
        similar.of(task.queries[0], 9)


def test_without_a_train_part_no_question_about_the_same_picture_demonstrates(data: Path, retrieval: Retrieval) -> None:
    task = task_of(data, "vqa/mini")  # two questions a picture
    for query in task.queries:
        shown = Similar(task, 0, retrieval=retrieval).of(query, 3)
        pictures = [content(shot.picture) for shot in shown]
        assert len({*pictures, content(query.picture)}) == 4
        assert {shot.id for shot in shown} <= {q.id for q in task.queries[::2]}, "the first question of each picture"


def test_a_run_with_retrieved_demonstrations(
    model: MM1,
    tokenizer: Tokenizer,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    retrieval: Retrieval,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(
        shots=(0, 2),
        seeds=(5, 6),
        tasks=("captions/mini", "icl"),
        demonstrations="similar",
        text_only_demonstrations=1,
        retrieval=retrieval,
        arms=("sighted",),
    )
    scores = run(model, tokenizer, checkpoint, data, settings, tmp_path / "out")
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    similar = Similar(task_of(data, "captions/mini"), 0, retrieval=retrieval)
    for answer in answers:
        if answer["task"] == "captions/mini" and answer["shots"] == 2:
            query = next(q for q in similar.task.queries if q.id == answer["id"])
            assert answer["demonstrations"] == [shot.id for shot in similar.of(query, 2)]
    counts = {(a["shots"], a["seed"]) for a in answers if a["task"] == "captions/mini"}
    assert counts == {(0, 5), (0, 6), (2, 5)}, "retrieved ones are the same for all seeds, text-only ones are drawn"
    assert scores["settings"]["demonstrations"] == "similar"

    def never(*_: object) -> None:
        raise AssertionError("all vectors are kept")

    monkeypatch.setattr(Clip, "pictures", never)
    assert run(model, tokenizer, checkpoint, data, settings, tmp_path / "again")["tasks"] == scores["tasks"]


@pytest.mark.parametrize(
    ("retrieval", "message"),
    [
        (Retrieval("ViT-nonsense"), "open_clip has no model 'ViT-nonsense'"),
        (Retrieval("ViT-B-32", "x"), "open_clip has no weights 'x' of ViT-B-32; expected openai"),
        (Retrieval(weights="nowhere.pt"), "nowhere.pt does not exist; expected a file or folder at weights"),
        (Retrieval(batch=0), r"retrieval\.batch is 0; expected at least 1"),
    ],
)
def test_models_that_are_not_there_are_refused(retrieval: Retrieval, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Settings(), demonstrations="similar", retrieval=retrieval).check()
    replace(Settings(), retrieval=retrieval).check()  # nobody asks for it
