"""Damaged shards: a sentence or a quarantined document, never a crash and never a picture with another's text.

Tars, indexes and the manifest are damaged, before they are opened and while they are read. All of it is
``pytest -m slow tests/fuzz`` with ``MM1_FUZZ`` damaged corpora.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from data_pipelines.pipeline import Settings, build
from mm1.batch import Batch, ImageSpec
from mm1.data.image import decode
from mm1.data.index import index_path
from mm1.data.recipe import Recipe
from mm1.data.shards import Damaged, ShardSet
from mm1.data.streams import HeldOut, Loader, Windows
from mm1.data.tokenizer import Tokenizer, find, put, train
from mm1.errors import UserError
from mm1.sample import Image, Sample, Text
from tests.data_pipelines.web import json_lines
from tests.fuzz.damage import BYTES, FULL, NUMBERS, SIDE_PX, TAR, name, number_shown, picture, word, wrong_pairs

SAMPLE = 120
STREAMS = ("captions", "interleaved")
SETTINGS = Settings(row_tokens=128, tokens_per_image=4, images_per_row=8, image_px=SIDE_PX, val_share=0.3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a picture with a text each, and of two pictures with a text each."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("corpus")
    for stream in STREAMS:
        (raw / stream).mkdir()
        for number in NUMBERS:
            (raw / stream / name(number)).write_bytes(picture(number))
    items = [[{"type": "image", "image": name(n)}, {"type": "text", "text": word(n)}] * 2 for n in NUMBERS]
    (raw / "captions/a.jsonl").write_bytes(json_lines({"image": name(n), "captions": [word(n)]} for n in NUMBERS))
    (raw / "interleaved/a.jsonl").write_bytes(json_lines({"id": word(n), "items": items[n]} for n in NUMBERS))
    put(out, train([" ".join(map(word, NUMBERS))] * 3, 310))
    build(raw, out, SETTINGS)
    return out


def json_damaged(data: bytes, chance: random.Random) -> bytes:
    """A value of a JSON file becomes another one, or is missing."""
    root = json.loads(data)
    at: Any = root
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = chance.choice(keys)
        if not (isinstance(at[key], dict | list) and at[key] and chance.random() < 0.85):
            break
        at = at[key]
    if chance.random() < 0.4:
        del at[key]
    else:
        at[key] = chance.choice((None, -1, 0, 2**70, 0.5, True, "x", "../../x", [], {}, [[]], {"x": 1}))
    return json.dumps(root).encode()


def files_of(corpus: Path) -> dict[Path, tuple[Callable[[bytes, random.Random], bytes], ...]]:
    """What may be damaged, and how."""
    tars = sorted(corpus.glob("*/*.tar"))
    indexes = [index_path(tar) for tar in tars]
    return {
        **dict.fromkeys(tars, (*TAR, same_size)),
        **dict.fromkeys(indexes, BYTES),
        corpus / "manifest.json": (*BYTES, *[json_damaged] * 6),
    }


def same_size(data: bytes, chance: random.Random) -> bytes:
    """Two stretches of blocks trade places: what a size and a tar reader cannot tell."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    one, other = chance.randrange(len(blocks)), chance.randrange(len(blocks))
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks)


def samples(opened: ShardSet) -> tuple[int, int]:
    """How many samples came whole and right, and how many were told to be damaged."""
    right = damaged = 0
    for number in range(len(opened)):
        try:
            sample = opened[number]
        except Damaged:
            damaged += 1
            continue
        check(sample)
        right += 1
    return right, damaged


def check(sample: Sample) -> None:
    text = " ".join(item.text for item in sample.items if isinstance(item, Text))
    pixels = [numpy.asarray(decode(item.data)) for item in sample.items if isinstance(item, Image)]
    assert pixels
    assert all(number_shown(one) is not None for one in pixels), "a picture that nobody wrote"
    assert word(number_shown(pixels[0]) or 0) in text
    assert not wrong_pairs(text, pixels)


def documents(batch: Batch, tokenizer: Tokenizer) -> int:
    """Check every document of a batch; how many there were."""
    pictures = iter(batch.images_ICHW.permute(0, 2, 3, 1).numpy())
    count = 0
    for tokens, segments in zip(batch.tokens_BT.tolist(), batch.segments_BT.tolist(), strict=True):
        for segment in sorted(set(segments) - {0}):
            ids = [token for token, of in zip(tokens, segments, strict=True) if of == segment]
            shown = [next(pictures) for _ in range(ids.count(-1) // SETTINGS.tokens_per_image)]
            text = tokenizer.decode([token for token in ids if token >= 0])
            assert shown
            assert all(number_shown(one) is not None for one in shown)
            assert word(number_shown(shown[0]) or 0) in text
            assert not wrong_pairs(text, shown)
            count += 1
    assert next(pictures, None) is None
    return count


def recipe(corpus: Path) -> Recipe:
    return Recipe(
        corpus=corpus,
        image_spec=ImageSpec(SIDE_PX, SETTINGS.tokens_per_image),
        row_tokens=SETTINGS.row_tokens,
        images_per_row=SETTINGS.images_per_row,
        rows_per_step=4,
        weights=dict.fromkeys(STREAMS, 1.0),
        look_ahead=4,
    )


def train_on(corpus: Path, tokenizer: Tokenizer) -> tuple[int, int]:
    """Documents of some steps and of validation, and those among them that were told to be damaged."""
    right = damaged = 0
    windows = Windows(recipe(corpus), rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    held_out = HeldOut(recipe(corpus), rows=8, batch_rows=4, rank=0, ranks=1, threads=1)
    for source, steps in ((windows, 6), (held_out, 99)):
        for batch, _ in zip(Loader(source, workers=0), range(steps), strict=False):
            found = documents(batch, tokenizer)
            assert found == len(batch.documents)
            right, damaged = right + found, damaged + len(batch.damaged)
    return right, damaged


def throw(corpus: Path, folder: Path, times: int) -> dict[str, int]:
    """Damage a copy of the corpus in one place, read all of it, mend it; what came of it by kind."""
    made = Path(shutil.copytree(corpus, folder / "copy"))
    files, tokenizer = files_of(made), Tokenizer(find(made))
    whole = {path: path.read_bytes() for path in files}
    total = sum(len(ShardSet(made, stream, split)) for stream in STREAMS for split in ("train", "val"))
    asked = train_on(made, tokenizer)
    assert asked[1] == 0
    came = {"refused": 0, "quarantined": 0, "harmless": 0}
    for seed in range(times):
        chance = random.Random(f"shards {seed}")
        path = chance.choice(list(files))
        damage = chance.choice(files[path])
        late = chance.random() < 0.3 and path.name != "manifest.json"
        try:
            opened = [ShardSet(made, stream, split) for stream in STREAMS for split in ("train", "val")] if late else []
            path.write_bytes(damage(whole[path], chance))
            opened = opened or [ShardSet(made, stream, split) for stream in STREAMS for split in ("train", "val")]
            right, damaged = map(sum, zip(*map(samples, opened), strict=True))
            in_manifest = path.name == "manifest.json"  # which may say that there are fewer
            assert right + damaged == total or in_manifest, f"{seed}: {path.name}, {damage.__name__}"
            trained, lost = train_on(made, tokenizer)
            assert trained + lost == sum(asked) or in_manifest
            assert not lost or damaged or late
            came["quarantined" if damaged else "harmless"] += 1
        except UserError as error:
            sentences = str(error)
            assert "\n" not in sentences
            came["refused"] += 1
        finally:
            path.write_bytes(whole[path])
    assert train_on(made, tokenizer) == asked, "mended"
    return came


def test_damaged_shards(corpus: Path, tmp_path: Path) -> None:
    came = throw(corpus, tmp_path, SAMPLE)
    assert min(came.values()) > 0, came


@pytest.mark.slow
def test_many_damaged_shards(corpus: Path, tmp_path: Path) -> None:
    came = throw(corpus, tmp_path, FULL)
    print(came)
    assert min(came.values()) > FULL / 100, came
