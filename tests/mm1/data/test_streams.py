"""The sequence of global batches depends on nothing but configuration and seed, and is resumed exactly."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mm1.batch import IMAGE, Batch, ImageSpec, check_placeholders
from mm1.data.augment import Augment
from mm1.data.encode import text_tokens
from mm1.data.pack import Piece
from mm1.data.plan import Plan, merged
from mm1.data.reader import Reader
from mm1.data.recipe import Recipe, open_shards
from mm1.data.shards import ShardSet, ShardWriter, read_manifest
from mm1.data.streams import HeldOut, Loader, Windows, lost_worker
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.runs import write_json
from mm1.sample import Image, Sample, Text
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
    return [[batch for it in iterators for batch in itertools.islice(it, micro_batches)] for _ in range(count)]


def state_of(batches: list[Batch]) -> dict:
    """What a checkpoint after these micro-batches of all ranks holds, by way of a file."""
    return json.loads(json.dumps(merged([batch.state for batch in batches if batch.state is not None])))


def rows_of(batches: list[Batch]) -> tuple:
    return (
        torch.cat([batch.tokens_BT for batch in batches]).tolist(),
        torch.cat([batch.targets_BT for batch in batches]).tolist(),
        torch.cat([batch.images_ICHW for batch in batches]).sum().item(),
        [name for batch in batches for name in batch.documents],
    )


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize(
    ("ranks", "micro_batches", "workers"), [(1, 4, 0), (2, 2, 0), (4, 1, 0), (8, 1, 0), (1, 1, 1), (2, 2, 2)]
)
def test_any_split_gives_the_same_rows(recipe, streams: int, ranks: int, micro_batches: int, workers: int) -> None:
    recipe = replace(recipe, streams=streams)
    whole = steps(recipe, 5)
    split = steps(recipe, 5, ranks=ranks, micro_batches=micro_batches, workers=workers)
    assert [rows_of(batches) for batches in split] == [rows_of(batches) for batches in whole]
    assert state_of(split[-1]) == state_of(whole[-1])


def test_a_rank_plans_its_own_streams_alone(recipe: Recipe) -> None:
    recipe = replace(recipe, streams=4)
    for ranks, expected in (
        (1, [[0, 1, 2, 3]]),
        (2, [[0, 1], [2, 3]]),
        (4, [[0], [1], [2], [3]]),
        (8, [[0], [0], [1]]),
    ):
        for rank, streams in enumerate(expected):
            windows = Windows(recipe, rank=rank, ranks=ranks, micro_batches=1, state=None, threads=1)
            assert windows.streams == streams
            [batch] = next(iter(windows))
            assert [plan["stream"] for plan in batch.state["plans"]] == streams


def test_windows_count_the_micro_batches_of_a_rank(recipe: Recipe) -> None:
    for batches in steps(recipe, 3, micro_batches=4):
        assert {batch.window_targets for batch in batches} == {sum(batch.targets for batch in batches)}
        assert {batch.window_tokens for batch in batches} == {sum(batch.tokens for batch in batches)}
        assert [batch.state is None for batch in batches] == [True, True, True, False]


@pytest.mark.parametrize("streams", [1, 4])
def test_resumed_on_other_numbers_of_ranks_and_workers_the_batches_are_the_same(recipe: Recipe, streams: int) -> None:
    """1 -> 2 -> 4 ranks and 0 -> 3 workers, and back; every token and every pixel of every global batch."""
    recipe = replace(recipe, streams=streams)
    whole, parts, state = steps(recipe, 18), [], None
    for ranks, micro_batches, workers in ((1, 1, 0), (2, 2, 0), (4, 1, 0), (1, 4, 3), (2, 1, 1), (8, 1, 0)):
        split = {"ranks": ranks, "micro_batches": micro_batches, "workers": workers}
        parts += steps(recipe, 3, **split, state=state)
        state = state_of(parts[-1])
    for whole_step, step in zip(whole, parts, strict=True):
        assert rows_of(step) == rows_of(whole_step)
        assert torch.equal(*(torch.cat([batch.images_ICHW for batch in batches]) for batches in (whole_step, step)))
    assert state == state_of(whole[-1])


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
    def refused(told: str, ranks: int = 1, **changed) -> None:
        with pytest.raises(UserError, match=told):
            Windows(replace(recipe, **changed), rank=0, ranks=ranks, micro_batches=1, state=None, threads=1)

    refused(r"data\.rows_per_step is 8; expected a multiple of 3 ranks", ranks=3)
    refused(r"data\.rows_per_step is 8; expected a multiple of data\.streams = 3", streams=3)
    refused(r"data\.streams is 0", streams=0)
    refused(r"data\.row_tokens = 10", row_tokens=10)
    refused(r"data\.images_per_row = 1", images_per_row=1)
    refused("'text' has none", unit="images")
    refused("data.max_epochs names 'sft'; expected .* which are captions, interleaved, text", max_epochs={"sft": 2})
    refused(r"data\.max_epochs\.text is 0", max_epochs={"text": 0})
    refused("no training documents in 'text'", corpus=make_corpus(captions=8, interleaved=8, text=0))
    state = steps(recipe, 1)[0][0].state
    changes = {"seed": 3, "unit": "documents", "streams": 2, "weights": {"captions": 1, "text": 1}}
    for name, value in changes.items():
        changed = replace(recipe, **{name: value})
        with pytest.raises(UserError, match=f"restore data.{name}, or start anew"):
            Plan(changed, open_shards(changed, "train"), state=state)


def broken(recipe: Recipe, tmp_path: Path, damage: Callable[[Path], None]) -> Recipe:
    """The same recipe on a copy of the corpus that something happened to."""
    shutil.copytree(recipe.corpus, tmp_path / "corpus")
    damage(tmp_path / "corpus")
    return replace(recipe, corpus=tmp_path / "corpus")


def break_captions(corpus: Path) -> None:
    """Every third document of captions is damaged."""
    for split in ("train", "val"):
        shards = ShardSet(corpus, "captions", split)
        data = bytearray(shards.paths[0].read_bytes())
        for index in range(0, len(shards), 3):
            data[data.index(shards[index].items[0].data) + 60] ^= 255
        shards.paths[0].write_bytes(data)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_document_becomes_padding_and_is_told(recipe: Recipe, tmp_path: Path, workers: int) -> None:
    damaged = broken(recipe, tmp_path, break_captions)
    lost = 0
    for [whole], [batch] in zip(steps(recipe, 6), steps(damaged, 6, workers=workers), strict=True):
        kept_BT = batch.segments_BT > 0
        for name in ("tokens_BT", "targets_BT", "segments_BT", "positions_BT", "sources_BT"):
            assert torch.equal(getattr(batch, name)[kept_BT], getattr(whole, name)[kept_BT])
        assert len(whole.documents) == len(batch.documents) + len(batch.damaged)
        assert len(whole.images_ICHW) == len(batch.images_ICHW) + len(batch.damaged)
        check_placeholders(batch, IMAGE_TOKENS)
        lost += len(batch.damaged)
        for source, where, reason in batch.damaged:
            assert (source, reason) == ("captions", "checksum differs")
            found = re.search(r"corpus/captions/train-000000\.tar, sample (\d+) of the stream$", where)
            assert found is not None
            assert int(found[1]) % 3 == 0
    assert lost > 10
    held = list(Loader(HeldOut(damaged, rows=9, batch_rows=2, rank=0, ranks=1, threads=1), workers))
    assert sum(len(batch.damaged) for batch in held) == 4  # of 10


def test_every_way_of_damage_has_its_reason(recipe: Recipe, tmp_path: Path, make_corpus) -> None:
    def reasons(name: str, damage: Callable[[Path], None], late: bool = False) -> set[str]:
        damaged = broken(recipe, tmp_path / name, damage if not late else lambda corpus: None)
        windows = Windows(damaged, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
        if late:
            damage(damaged.corpus)
        [batch] = next(iter(windows))
        return {reason for _, _, reason in batch.damaged}

    def cut(corpus: Path) -> None:
        os.truncate(corpus / "text/train-000000.tar", 3000)

    def take_away(corpus: Path) -> None:
        (corpus / "text/train-000000.tar").unlink()

    def lengthen(corpus: Path) -> None:
        index = corpus / "text/train-000000.index.npz"
        with np.load(index) as arrays:
            np.savez(index, **{**arrays, "text_tokens": arrays["text_tokens"] + 1})

    def other_picture(corpus: Path) -> None:
        """No picture at all, and nobody noticed when it was written."""
        sample = Sample((Image(b"\xff\xd8\xff no picture"), Text("a dog")), "captions", "1")
        tokenizer = Tokenizer(corpus / "tokenizer.model")
        with ShardWriter(corpus / "captions", "train") as writer:
            writer.write(sample, text_tokens(sample.items, tokenizer))
        manifest = read_manifest(corpus)
        manifest["streams"]["captions"]["train"]["shards"] = writer.shards
        write_json(corpus / "manifest.json", manifest)

    assert reasons("cut", cut, late=True) == {"shard is cut short"}
    assert reasons("gone", take_away, late=True) == {"shard cannot be read (No such file or directory)"}
    assert reasons("long", lengthen) == {"not as long as its index says; the tokenizer or the shards were changed"}
    assert reasons("other", other_picture) == {"picture does not decode"}


def test_a_workers_refusal_is_still_one_sentence(recipe: Recipe, tmp_path: Path) -> None:
    damaged = broken(recipe, tmp_path, lambda corpus: None)
    windows = Windows(damaged, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    (damaged.corpus / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="tokenizer") as error:
        next(iter(Loader(windows, 1)))
    assert "\n" not in str(error.value)


def test_a_process_ends_though_its_interruption_holds_the_loader(recipe: Recipe) -> None:
    """Its stack trace keeps torch from ending the workers, which do not listen to what Python sends at the end."""
    held = []
    loader = Loader(Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1), 1)

    def interrupted() -> None:
        batches = iter(loader)
        next(batches)

        def stop(fetching: object) -> None:
            raise KeyboardInterrupt

        loader._timed = stop  # type: ignore[assignment]
        try:
            list(batches)
        except KeyboardInterrupt as error:
            held.append(error)

    process = multiprocessing.get_context("fork").Process(target=interrupted)
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


def hurt(recipe: Recipe, by: signal.Signals, timeout_s: float) -> tuple[multiprocessing.process.BaseProcess, UserError]:
    """What a loader says after its worker was sent a signal."""
    before = set(multiprocessing.active_children())
    windows = Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    loader = iter(Loader(windows, 1, timeout_s))
    next(loader)
    [worker] = set(multiprocessing.active_children()) - before
    time.sleep(0.5)  # until it has fetched ahead, so that it does not stop in the middle of a message
    os.kill(worker.pid, by)
    try:
        for _ in loader:
            time.sleep(0.01)
    except UserError as error:
        return worker, error
    except RuntimeError as error:  # torch raises it wherever this process is when it hears of it
        return worker, lost_worker(error) or UserError(f"not known: {error}")
    raise AssertionError("the loader is endless")


def test_a_worker_that_dies_is_named(recipe: Recipe) -> None:
    worker, error = hurt(recipe, signal.SIGKILL, timeout_s=30)
    told = rf"the data worker with process id {worker.pid} died \((killed by signal: Killed|exited unexpectedly)\); "
    assert re.match(told, str(error))


def test_a_worker_that_hangs_is_named_and_ended(recipe: Recipe) -> None:
    worker, error = hurt(recipe, signal.SIGSTOP, timeout_s=1)
    told = rf"data worker 0 \(process id {worker.pid}\) gave nothing for 1 seconds; expected .* data\.timeout_s"
    assert re.match(told, str(error))
    worker.join(5)
    assert not worker.is_alive()


def test_other_errors_are_not_taken_for_lost_workers() -> None:
    assert lost_worker(RuntimeError("CUDA out of memory")) is None


def test_training_pictures_vary_by_epoch_and_held_out_ones_never(recipe: Recipe) -> None:
    varied = replace(recipe, augment=Augment(area=0.5))
    plain, other = steps(recipe, 3), steps(varied, 3)
    assert [batch.documents for [batch] in plain] == [batch.documents for [batch] in other]
    assert any((a.images_ICHW != b.images_ICHW).any() for [a], [b] in zip(plain, other, strict=True))
    split = steps(varied, 3, ranks=2, workers=1)
    assert [rows_of(batches) for batches in split] == [rows_of(batches) for batches in other]
    reader = Reader(varied, open_shards(varied, "train"), 1, vary=True)
    positions = sum(reader.shards[0].sizes(0)) + IMAGE_TOKENS - 1
    rows = [[Piece(0, 41 * epoch, epoch, 0, positions, 1)] for epoch in range(8)]
    assert len({image.numpy().tobytes() for image in reader.batch(rows).images_ICHW}) > 4
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
