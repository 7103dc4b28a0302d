"""A raw corpus to shards: what is kept, what is counted, and that the same call again does nothing."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from data_pipelines.describe import describe
from data_pipelines.pipeline import Settings, build
from data_pipelines.train_tokenizer import train_tokenizer
from mm1.data.encode import encode
from mm1.data.shards import ShardSet, read_manifest
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.sample import Image, Sample, Text

Writers = dict[str, Callable[..., Any]]
SMALL = Settings(row_tokens=64, tokens_per_image=4, images_per_row=4, image_px=24, val_share=0.1)


def samples(out: Path, stream: str, split: str = "train") -> list[Sample]:
    shards = ShardSet(out, stream, split)
    return [shards[number] for number in range(len(shards))]


def pictures(found: list[Sample]) -> list[bytes]:
    return [item.data for sample in found for item in sample.items if isinstance(item, Image)]


def dropped(manifest: dict[str, Any], stream: str) -> dict[str, int]:
    return {reason: found["count"] for reason, found in manifest["streams"][stream]["dropped"].items()}


def test_every_document_is_in_one_split_and_counted(raw: Path, out: Path) -> None:
    manifest = build(raw, out, SMALL)
    assert manifest == read_manifest(out)
    expected = {"captions": 24, "interleaved": 24, "text": 25, "sft": 25}
    for stream, documents in expected.items():
        written = manifest["streams"][stream]
        assert written["train"]["documents"] + written["val"]["documents"] == documents
        assert written["val"]["documents"] >= 1
        for split in ("train", "val"):
            found, counts = samples(out, stream, split), written[split]
            assert len(found) == counts["pieces"] == counts["documents"] + counts["cuts"]
            assert len(pictures(found)) == counts["images"]
            assert {sample.source for sample in found} == {stream}
    assert dropped(manifest, "captions") == {"file held out by its name": 3}
    assert not (out / "unfinished.json").exists()


def test_recorded_lengths_are_those_of_the_encoding(raw: Path, out: Path) -> None:
    build(raw, out, SMALL)
    tokenizer = Tokenizer(out / "tokenizer.model")
    for stream in ("captions", "interleaved", "text", "sft"):
        shards = ShardSet(out, stream, "train")
        for number in range(len(shards)):
            text, images = shards.sizes(number)
            length = len(encode(shards[number], tokenizer, SMALL.tokens_per_image).tokens)
            assert text + images * SMALL.tokens_per_image == length <= SMALL.row_tokens


def test_pictures_are_stored_at_model_resolution(raw: Path, out: Path) -> None:
    build(raw, out, SMALL)
    stored = [PIL.Image.open(io.BytesIO(data)) for data in pictures(samples(out, "captions"))]
    assert {(picture.size, picture.format) for picture in stored} == {((24, 24), "JPEG")}
    originals = {path.read_bytes() for path in (raw / "captions/images").iterdir()}
    assert not originals & set(pictures(samples(out, "captions")))


def test_pictures_can_be_kept_as_they_are(raw: Path, out: Path) -> None:
    build(raw, out, Settings(keep_pictures=True))
    originals = {path.read_bytes() for path in (raw / "captions/images").iterdir()}
    assert originals >= set(pictures(samples(out, "captions")))


def test_a_picture_of_the_right_size_is_not_compressed_again(raw: Path, out: Path) -> None:
    PIL.Image.effect_noise((24, 24), 80).convert("RGB").save(raw / "captions/images/c0.jpg", "PNG")
    build(raw, out, SMALL)
    found = pictures(samples(out, "captions") + samples(out, "captions", "val"))
    assert (raw / "captions/images/c0.jpg").read_bytes() in found


def test_faults_are_counted_with_examples_and_the_rest_goes_on(raw: Path, out: Path) -> None:
    images = raw / "captions/images"
    (images / "c0.jpg").write_bytes(b"no picture")
    (images / "c1.jpg").write_bytes((images / "c1.jpg").read_bytes()[:300])
    (images / "c2.jpg").unlink()
    (raw / "interleaved/images/i3-0.jpg").unlink()
    manifest = build(raw, out, SMALL)
    faults = {"picture does not decode": 2, "picture file is missing": 1}
    assert dropped(manifest, "captions") == {"file held out by its name": 3, **faults}
    assert dropped(manifest, "sft") == faults
    assert dropped(manifest, "interleaved") == {"picture file is missing": 1}
    examples = manifest["streams"]["captions"]["dropped"]["picture does not decode"]["examples"]
    assert [example.split()[-1] for example in examples] == ["c0.jpg", "c1.jpg"]
    interleaved = manifest["streams"]["interleaved"]
    assert interleaved["train"]["documents"] + interleaved["val"]["documents"] == 24
    assert interleaved["train"]["images"] + interleaved["val"]["images"] == 47
    texts = [item.text for sample in samples(out, "interleaved") for item in sample.items if isinstance(item, Text)]
    assert "Figure of i3-0.jpg. More." in " ".join(texts)


def test_at_most_five_examples_are_kept(raw: Path, out: Path) -> None:
    for number in range(9):
        (raw / f"captions/images/c{number}.jpg").write_bytes(b"no picture")
    found = build(raw, out, SMALL)["streams"]["captions"]["dropped"]["picture does not decode"]
    assert (found["count"], len(found["examples"])) == (9, 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_stops_at_the_first_fault(raw: Path, out: Path, workers: int) -> None:
    build(raw, out, SMALL, strict=True, workers=workers)  # a sound corpus passes: held-out files are no fault
    (raw / "captions/images/c5.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train:6#\d c5.jpg: picture does not decode; mend it, or leave --strict out"):
        build(raw, out, SMALL, strict=True, workers=workers)
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        read_manifest(out)


def test_scored_pictures_are_left_out_however_they_are_stored(raw: Path, out: Path) -> None:
    shutil.copy(raw / "captions/images/c0.jpg", raw / "captions_eval/images/e0.jpg")
    again = PIL.Image.open(raw / "captions/images/c1.jpg").resize((224, 224))
    again.save(raw / "captions_eval/images/e1.jpg", quality=70)
    PIL.Image.open(raw / "interleaved/images/i4-1.jpg").save(raw / "captions_eval/images/e2.png")
    listed = [{"id": n, "path": f"images/{name}"} for n, name in enumerate(("e0.jpg", "e1.jpg", "e2.png"))]
    (raw / "captions_eval/photos.json").write_text(json.dumps({"images": listed}))
    manifest = build(raw, out, SMALL)
    assert manifest["scored"] == {"pictures": 3, "unreadable": {}}
    assert dropped(manifest, "captions")["picture is scored"] == 2
    assert dropped(manifest, "sft") == {"picture is scored": 2}
    assert dropped(manifest, "interleaved") == {"picture is scored": 1}
    kept = {item.text for s in samples(out, "captions") + samples(out, "captions", "val") for item in s.items[1:]}
    assert not kept & {"caption 0.", "again 0.", "caption 1.", "again 1."}
    assert len(kept) == 22


def test_an_unreadable_scored_picture_is_said(raw: Path, out: Path) -> None:
    (raw / "captions_eval/images/e0.jpg").unlink()
    unreadable = build(raw, out, SMALL)["scored"]["unreadable"]
    assert unreadable == {"picture file is missing": {"count": 1, "examples": ["captions_eval/images/e0.jpg"]}}


def test_long_documents_are_cut_and_the_cuts_counted(raw: Path, out: Path) -> None:
    manifest = build(raw, out, Settings(row_tokens=40, tokens_per_image=4, image_px=24))
    counts = manifest["streams"]["interleaved"]["train"]
    assert counts["cuts"] > 0
    ids = [sample.id for sample in samples(out, "interleaved")]
    assert len(set(ids)) == len(ids)
    assert {"docs:1/0", "docs:1/1"} <= set(ids) | {s.id for s in samples(out, "interleaved", "val")}


def test_captions_of_one_picture_stay_in_one_split(raw: Path, out: Path) -> None:
    build(raw, out, Settings(captions_per_image=2, image_px=24, val_share=0.3))
    train, val = (set(pictures(samples(out, "captions", split))) for split in ("train", "val"))
    assert len(train) + len(val) == 24
    assert not train & val


@pytest.mark.parametrize(("val_share", "documents", "expected"), [(1e-9, 24, 1), (1e-9, 10, 0), (0.0, 24, 0)])
def test_small_streams_have_one_validation_document(
    tmp_path: Path, val_share: float, documents: int, expected: int
) -> None:
    (tmp_path / "text").mkdir()
    lines = [json.dumps({"text": f"Line {n} of it."}) for n in range(documents)]
    (tmp_path / "text/lines.jsonl").write_text("\n".join(lines))
    train_tokenizer(tmp_path, tmp_path / "out", 280)
    manifest = build(tmp_path, tmp_path / "out", Settings(val_share=val_share))
    assert manifest["streams"]["text"]["val"]["documents"] == expected
    assert len(ShardSet(tmp_path / "out", "text", "val")) == expected


def files(out: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(out)): (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def test_workers_do_not_change_a_byte(raw: Path, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(out, other)
    build(raw, out, SMALL, workers=1)
    build(raw, other, SMALL, workers=3)
    assert {name: data for name, (data, _) in files(out).items()} == {n: data for n, (data, _) in files(other).items()}


def test_the_same_call_again_does_nothing_and_a_changed_one_all(raw: Path, out: Path) -> None:
    first = build(raw, out, SMALL)
    before = files(out)
    assert build(raw, out, SMALL) == first
    assert files(out) == before
    changed = build(raw, out, Settings(row_tokens=64, tokens_per_image=4, images_per_row=4, image_px=20))
    assert changed["image_px"] == 20
    assert {PIL.Image.open(io.BytesIO(data)).size for data in pictures(samples(out, "captions"))} == {(20, 20)}


def test_a_changed_input_rebuilds_its_stream_alone(raw: Path, out: Path, writers: Writers) -> None:
    build(raw, out, SMALL)
    before = files(out)
    writers["json_lines"](raw / "text/more.jsonl", [{"text": "One more."}])
    manifest = build(raw, out, SMALL)
    assert manifest["streams"]["text"]["train"]["documents"] + manifest["streams"]["text"]["val"]["documents"] == 26
    after = files(out)
    assert {name for name in before if before[name] != after.get(name)} <= {"manifest.json"} | {
        name for name in before if name.startswith("text/")
    }
    assert before["captions/train-000001.tar"] == after["captions/train-000001.tar"]


def test_a_build_that_was_stopped_goes_on_with_the_next_stream(raw: Path, out: Path) -> None:
    (raw / "sft/turns.json").rename(raw / "turns.json")
    (raw / "sft/turns.json").write_text("{")
    with pytest.raises(UserError, match="line is no JSON object"):
        build(raw, out, SMALL, strict=True)
    before = files(out)
    assert "unfinished.json" in before
    (raw / "turns.json").rename(raw / "sft/turns.json")
    manifest = build(raw, out, SMALL, strict=True)
    assert set(manifest["streams"]) == {"captions", "interleaved", "text", "sft"}
    assert files(out)["captions/train-000001.tar"] == before["captions/train-000001.tar"]


def test_streams_that_were_done_stay_done_when_a_later_build_is_stopped(raw: Path, out: Path) -> None:
    build(raw, out, SMALL, strict=True)
    before = files(out)
    (raw / "interleaved/docs.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match="line is no JSON object"):
        build(raw, out, SMALL, strict=True)
    assert not (out / "manifest.json").exists()
    (raw / "interleaved/docs.jsonl").unlink()
    build(raw, out, SMALL, strict=True)
    assert files(out)["captions/train-000001.tar"] == before["captions/train-000001.tar"]


@pytest.mark.parametrize("damage", ["train-000001.tar", "train-000001.index.npz", "val-000001.index.npz"])
def test_what_was_cut_short_is_written_again(raw: Path, out: Path, damage: str) -> None:
    build(raw, out, SMALL)
    before = files(out)
    for content in (b"", before[f"captions/{damage}"][0][:-9]):
        (out / "captions" / damage).write_bytes(content)
        build(raw, out, SMALL)
        assert {name: data for name, (data, _) in files(out).items()} == {n: data for n, (data, _) in before.items()}


def test_a_manifest_that_is_none_says_how_to_go_on(raw: Path, out: Path) -> None:
    for content in ("{", "[]"):
        (out / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json .* delete it, then write it again with mm1-data shards"):
            build(raw, out, SMALL)


def test_shards_of_a_larger_build_do_not_stay(raw: Path, out: Path) -> None:
    build(raw, out, Settings(image_px=24, shard_bytes=10_000))
    assert len(list((out / "captions").glob("train-*.tar"))) > 2
    build(raw, out, Settings(image_px=24))
    assert len(list((out / "captions").glob("train-*"))) == 2


def test_the_table_says_it_all(raw: Path, out: Path) -> None:
    (raw / "captions/images/c0.jpg").write_bytes(b"no picture")
    table = describe(build(raw, out, SMALL))
    for expected in ("captions     train", "rows of 64 positions", "stored at 24 px (squash)", "1 scored pictures"):
        assert expected in table
    assert "1  picture does not decode, such as train:1#" in table


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"row_tokens": 18}, r"row_tokens is 18; a picture of 16 tokens \(tokens_per_image\) .* at least 19"),
        ({"images_per_row": 0}, "images_per_row is 0; expected at least 1"),
        ({"tokens_per_image": 15}, "tokens_per_image is 15; expected a square"),
        ({"val_share": 0.7}, "val_share is 0.7; expected a share between 0 and 0.5"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**wrong)


def test_folders_that_are_not_there_are_named(raw: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds nothing to train on; expected captions/, interleaved/, text/ or sft/"):
        build(tmp_path / "nowhere", out, SMALL)
    with pytest.raises(UserError, match=r"holds no tokenizer\.model or tokenizer\.json; run mm1-data tokenizer"):
        build(raw, tmp_path / "empty", SMALL)
    with pytest.raises(UserError, match="is the raw corpus itself"):
        build(raw, raw, SMALL)
    with pytest.raises(UserError, match="workers is -1; expected at least 1"):
        build(raw, out, SMALL, workers=-1)


def test_a_corpus_that_leaves_nothing_says_where_the_reasons_stand(raw: Path, out: Path) -> None:
    for name in ("captions", "interleaved", "text"):  # the conversations lose their pictures
        shutil.rmtree(raw / name)
    (raw / "sft/turns.json").write_text((raw / "sft/turns.json").read_text().replace("Hello.", " "))
    with pytest.raises(UserError, match=r"leaves nothing to train on; .*unfinished\.json says why, by reason"):
        build(raw, out, SMALL)
    reasons = json.loads((out / "unfinished.json").read_text())["streams"]["sft"]["dropped"]
    assert {reason: found["count"] for reason, found in reasons.items()} == {
        "picture file is missing": 24,
        "empty turn": 1,
    }
