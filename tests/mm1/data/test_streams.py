"""The sequence of global batches depends on nothing but configuration and seed, and is resumed exactly."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mm1.batch import IMAGE, Batch, ImageSpec, check_placeholders
from mm1.data.augment import Augment
from mm1.data.pack import Piece
from mm1.data.streams import HeldOut, Loader, Plan, Reader, Recipe, Windows
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from tests.conftest import IMAGE_PX, IMAGE_TOKENS, ROW_TOKENS

ROWS = 8


@pytest.fixture
def recipe(corpus: Path) -> Recipe:
    spec = ImageSpec(size_px=IMAGE_PX, tokens=IMAGE_TOKENS)
    return Recipe(corpus=corpus, image_spec=spec, row_tokens=ROW_TOKENS, rows_per_step=ROWS, images_per_row=5)


def steps(
    recipe: Recipe, count: int, *, ranks: int = 1, micro_batches: int = 1, workers: int = 0, state: dict | None = None
) -> list[list[Batch]]:
    """For each of ``count`` steps its micro-batches over all ranks, in the order of the row slots."""
    iterators = []
    for rank in range(ranks):
        windows = Windows(recipe, rank=rank, ranks=ranks, micro_batches=micro_batches, state=state, threads=2)
        iterators.append(iter(Loader(windows, workers)))
    taken = []
    for _ in range(count):
        by_rank = [list(itertools.islice(iterator, micro_batches)) for iterator in iterators]
        taken.append([by_rank[rank][a] for a in range(micro_batches) for rank in range(ranks)])
    return taken


def rows_of(batches: list[Batch]) -> tuple:
    return (
        torch.cat([batch.tokens_BT for batch in batches]).tolist(),
        torch.cat([batch.targets_BT for batch in batches]).tolist(),
        torch.cat([batch.images_ICHW for batch in batches]).sum().item(),
        [name for batch in batches for name in batch.documents],
    )


@pytest.mark.parametrize(
    ("ranks", "micro_batches", "workers"), [(1, 4, 0), (2, 2, 0), (4, 1, 0), (8, 1, 0), (1, 1, 1), (2, 2, 2)]
)
def test_any_split_gives_the_same_rows(recipe: Recipe, ranks: int, micro_batches: int, workers: int) -> None:
    whole = steps(recipe, 5)
    split = steps(recipe, 5, ranks=ranks, micro_batches=micro_batches, workers=workers)
    assert [rows_of(batches) for batches in split] == [rows_of(batches) for batches in whole]
    assert split[-1][-1].state == whole[-1][-1].state


def test_windows_count_the_micro_batches_of_a_rank(recipe: Recipe) -> None:
    for batches in steps(recipe, 3, micro_batches=4):
        assert {batch.window_targets for batch in batches} == {sum(batch.targets for batch in batches)}
        assert {batch.window_tokens for batch in batches} == {sum(batch.tokens for batch in batches)}
        assert [batch.state is None for batch in batches] == [True, True, True, False]


@pytest.mark.parametrize(("ranks", "micro_batches", "workers"), [(1, 1, 0), (2, 2, 0), (1, 2, 2)])
def test_stop_at_seven_go_on_and_see_the_same_thirteen(recipe, ranks, micro_batches, workers) -> None:
    whole = steps(recipe, 13)
    state = json.loads(json.dumps(whole[6][-1].state))
    rest = steps(recipe, 6, ranks=ranks, micro_batches=micro_batches, workers=workers, state=state)
    assert [rows_of(batches) for batches in rest] == [rows_of(batches) for batches in whole[7:]]
    assert rest[-1][-1].state == whole[-1][-1].state


@pytest.mark.parametrize("rows_per_step", [1, 4, 64])
def test_every_document_exactly_once_an_epoch(recipe: Recipe, rows_per_step: int) -> None:
    plan = Plan(replace(recipe, rows_per_step=rows_per_step))
    seen: Counter[tuple[int, int, int]] = Counter()
    for _ in range(1 + 700 // rows_per_step):
        seen.update((piece.source, piece.epoch, piece.index) for row in plan.next_step() for piece in row)
    seen.update((piece.source, piece.epoch, piece.index) for piece in plan.buffer)
    assert set(seen.values()) == {1}
    for source, taken in zip(plan.sources, plan.taken, strict=True):
        whole_epochs = taken // len(source.shards)
        assert whole_epochs >= 2
        for epoch in range(whole_epochs):
            indices = {index for number, at, index in seen if (number, at) == (source.number, epoch)}
            assert indices == set(range(len(source.shards)))


def test_another_seed_or_epoch_is_another_order(recipe: Recipe) -> None:
    source, other = Plan(recipe).sources[0], Plan(replace(recipe, seed=1)).sources[0]
    documents = len(source.shards)
    first, second = ([source.at(epoch * documents + i).index for i in range(documents)] for epoch in (0, 1))
    assert first != second
    assert first != [other.at(i).index for i in range(documents)]


@pytest.mark.parametrize("unit", ["positions", "text_tokens", "documents"])
@pytest.mark.parametrize("rows_per_step", [1, 8, 250])
def test_a_thousand_rows_realise_the_shares_to_half_a_point(recipe: Recipe, unit, rows_per_step: int) -> None:
    weights = {"captions": 45.0, "interleaved": 45.0, "text": 10.0}
    plan = Plan(replace(recipe, unit=unit, rows_per_step=rows_per_step, weights=weights))
    counted: Counter[int] = Counter()
    for _ in range(1000 // rows_per_step):
        for piece in (piece for row in plan.next_step() for piece in row):
            text = piece.positions - piece.images * IMAGE_TOKENS
            counted[piece.source] += {"positions": piece.positions, "text_tokens": text, "documents": 1}[unit]
    for number, weight in enumerate(weights.values()):
        assert 100 * counted[number] / counted.total() == pytest.approx(weight, abs=0.5)


def test_the_number_of_rows_a_batch_may_change_and_no_document_is_lost(recipe: Recipe) -> None:
    plan, other = Plan(recipe), Plan(replace(recipe, rows_per_step=4))
    for _ in range(3):
        plan.next_step()
    other.load(json.loads(json.dumps(plan.state())))
    assert [row for _ in range(2) for row in other.next_step()] == plan.next_step()


def test_pictures_stand_in_the_order_of_their_places(recipe: Recipe) -> None:
    for batches in steps(recipe, 3, micro_batches=2):
        for batch in batches:
            check_placeholders(batch, IMAGE_TOKENS)
    captions = steps(replace(recipe, weights={"captions": 1.0}), 1)[0][0]
    colours = {
        "red": (255, 0, 0),
        "green": (0, 128, 0),
        "blue": (0, 0, 255),
        "black": (0, 0, 0),
        "yellow": (255, 255, 0),
    }
    tokenizer, number = Tokenizer(recipe.corpus / "tokenizer.model"), 0
    for row, segments in zip(captions.tokens_BT, captions.segments_BT, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            text = tokenizer.decode([token for token in row[segments == segment].tolist() if token != IMAGE])
            colour = torch.tensor(colours[text.split()[1]], dtype=torch.uint8)
            painted = (captions.images_ICHW[number] == colour[:, None, None]).all(0).sum()
            assert painted > 100, f"picture {number} shows no {text}"
            number += 1
    assert number == len(captions.images_ICHW)


def test_held_out_rows_have_one_source_each_and_come_once(recipe: Recipe) -> None:
    batches = list(Loader(HeldOut(recipe, rows=100, batch_rows=2, rank=0, ranks=1, threads=1), workers=0))
    for batch in batches:
        assert len(batch.sources_BT[batch.segments_BT > 0].unique()) == 1
    names = [name for batch in batches for name in batch.documents]
    assert len(set(names)) == len(names) == sum({"captions": 10, "interleaved": 7, "text": 4}.values())
    shared = [list(HeldOut(recipe, rows=100, batch_rows=2, rank=rank, ranks=2, threads=1)) for rank in range(2)]
    assert sorted(name for part in shared for batch in part for name in batch.documents) == sorted(names)
    capped = list(HeldOut(recipe, rows=1, batch_rows=2, rank=0, ranks=1, threads=1))
    assert [len(batch.tokens_BT) for batch in capped] == [1, 1, 1]


def test_what_cannot_be_packed_or_resumed_is_refused_in_a_sentence(recipe: Recipe, make_corpus) -> None:
    with pytest.raises(UserError, match=r"data\.rows_per_step is 8; expected a multiple of 3 ranks"):
        Windows(recipe, rank=0, ranks=3, micro_batches=1, state=None, threads=1)
    with pytest.raises(UserError, match=r"data\.row_tokens = 10"):
        Plan(replace(recipe, row_tokens=10))
    with pytest.raises(UserError, match=r"data\.images_per_row = 1"):
        Plan(replace(recipe, images_per_row=1))
    with pytest.raises(UserError, match="'text' has none"):
        Plan(replace(recipe, unit="images"))
    with pytest.raises(UserError, match="no training documents in 'text'"):
        Plan(replace(recipe, corpus=make_corpus(captions=8, interleaved=8, text=0)))
    state = Plan(recipe).state()
    for changed, setting in [({"seed": 3}, "data.seed"), ({"unit": "documents"}, "data.unit")]:
        with pytest.raises(UserError, match=setting):
            Plan(replace(recipe, **changed)).load(state)


def test_a_workers_error_is_still_one_sentence(recipe: Recipe, make_corpus, tmp_path: Path) -> None:
    broken = tmp_path / "corpus"
    shutil.copytree(recipe.corpus, broken)
    shutil.copy(make_corpus(captions=3, text=90) / "tokenizer.model", broken)
    index = broken / "text" / "train-000000.index.npz"
    with np.load(index) as arrays:
        np.savez(index, **{**arrays, "text_tokens": arrays["text_tokens"] + 100})
    with pytest.raises(UserError, match=r"^document \S+ has \d+ positions") as error:
        steps(replace(recipe, corpus=broken, row_tokens=400), 1, workers=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_in_training_and_validation(recipe: Recipe, tmp_path: Path, workers: int) -> None:
    broken = replace(recipe, corpus=tmp_path / "corpus")
    shutil.copytree(recipe.corpus, broken.corpus)
    for path in broken.corpus.glob("captions/*.tar"):
        path.write_bytes(path.read_bytes().replace(b"IHDR", b"IHDX"))
    told = r"^sample \d+ of .*corpus/captions/{}-000000\.tar is damaged \(checksum differs\): delete it"
    with pytest.raises(UserError, match=told.format("train")):
        steps(broken, 1, workers=workers)
    with pytest.raises(UserError, match=told.format("val")):
        list(Loader(HeldOut(broken, rows=9, batch_rows=2, rank=0, ranks=1, threads=1), workers))


def test_training_pictures_vary_by_epoch_and_held_out_ones_never(recipe: Recipe) -> None:
    varied = replace(recipe, augment=Augment(area=0.5))
    plain, other = steps(recipe, 3), steps(varied, 3)
    assert [batch.documents for [batch] in plain] == [batch.documents for [batch] in other]
    assert any((a.images_ICHW != b.images_ICHW).any() for [a], [b] in zip(plain, other, strict=True))
    split = steps(varied, 3, ranks=2, workers=1)
    assert [rows_of(batches) for batches in split] == [rows_of(batches) for batches in other]
    reader, pieces = Reader(varied, "train", 1), [Piece(0, epoch, 0, 0, 0) for epoch in range(8)]
    data = reader.shards[0][0].items[0].data
    assert len({reader._picture(data, piece, 0).numpy().tobytes() for piece in pieces}) > 4
    held = [
        [batch.images_ICHW for batch in HeldOut(r, rows=4, batch_rows=2, rank=0, ranks=1, threads=1)]
        for r in (recipe, varied)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*held, strict=True))


def test_blank_pictures_are_all_the_same_grey(recipe: Recipe) -> None:
    [[batch]] = steps(replace(recipe, blank=True), 1)
    [[sighted]] = steps(recipe, 1)
    assert len(batch.images_ICHW)
    assert batch.images_ICHW.unique().tolist() == [127]
    assert batch.tokens_BT.equal(sighted.tokens_BT)
