"""The small real corpus, all of it: what may not be trained on is in no shard."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest

from data_pipelines.pipeline import Settings, build
from data_pipelines.sources import scored_pictures
from data_pipelines.train_tokenizer import train_tokenizer
from mm1.data.fingerprint import Known, fingerprint
from mm1.data.image import decode
from mm1.data.shards import ShardSet
from mm1.sample import Image

DATA = Path(os.environ.get("MM1_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason=f"the real corpus is not at {DATA}")]


def test_all_streams_are_built_and_nothing_scored_is_in_them(tmp_path: Path) -> None:
    train_tokenizer(DATA, tmp_path, 2048)
    manifest = build(DATA, tmp_path, Settings(), workers=2)
    streams = manifest["streams"]
    documents = {name: sum(streams[name][split]["documents"] for split in ("train", "val")) for name in streams}
    assert documents == {"captions": 1311 + 856, "interleaved": 254, "text": 304, "sft": 1587 - 60 - 36}
    assert streams["captions"]["dropped"]["file held out by its name"]["count"] == 263
    assert streams["sft"]["dropped"]["picture is scored"]["count"] == 60
    assert streams["interleaved"]["train"]["cuts"] > 1000
    assert manifest["scored"]["pictures"] == 543

    def small(data: bytes) -> PIL.Image.Image:  # as shards store it
        return decode(data).resize((64, 64), PIL.Image.Resampling.BICUBIC)

    scored = [path.read_bytes() for path in scored_pictures(DATA)]
    known = Known(fingerprint(data, small(data)) for data in scored)
    assert len(known) == 543
    for stream in ("captions", "sft", "interleaved"):
        for split in ("train", "val"):
            shards = ShardSet(tmp_path, stream, split)
            shards.verify()
            pictures = [item.data for n in range(len(shards)) for item in shards[n].items if isinstance(item, Image)]
            assert not any(fingerprint(data, decode(data)) in known for data in pictures)
