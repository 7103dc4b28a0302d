"""MMC4: a picture stands before its sentence, and pictures that are left over find sentences of their own again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.picture_store import HashedPictures
from data_pipelines.sources import MMC4
from mm1.errors import UserError
from tests.data_pipelines.web import jpeg, json_lines, mmc4_row, packed, put, read, spelled, stretched, tar, with_base64

IN_ORDER = ["<0-1.png>", "First of 0. Second.", "<0-0.png>", "Third.", "<0-2.png>", "Fourth."]


def shard(folder: Path, *rows: Any, name: str = "docs_shard_7_v2.jsonl", missing: tuple[str, ...] = ()) -> Path:
    for row in rows:
        for number, info in enumerate(row.get("image_info", [])):
            if info["image_name"] not in missing:
                put(folder / "7" / info["image_name"], jpeg(number))
    return put(folder / name, packed(name, json_lines(rows)))


@pytest.mark.parametrize("ending", ["", ".zip", ".gz", ".zst"])
def test_each_picture_stands_before_its_sentence(tmp_path: Path, ending: str) -> None:
    path = shard(tmp_path, mmc4_row(0), mmc4_row(1), name=f"docs_shard_7_v2.jsonl{ending}")
    drafts, lost = read(MMC4(path))
    assert [draft.id for draft in drafts] == ["docs_shard_7_v2:1", "docs_shard_7_v2:2"]
    assert spelled(drafts[0]) == IN_ORDER
    assert drafts[0].about["similarity"] == [0.31, 0.28, 0.2]
    assert drafts[0].about["url"] == "http://x/0"
    assert all(picture.read_bytes() for picture in drafts[0].pictures)
    assert lost == {}


def test_after_is_a_setting(tmp_path: Path) -> None:
    drafts, _ = read(MMC4(shard(tmp_path, mmc4_row(0)), side="after"))
    assert spelled(drafts[0]) == ["First of 0.", "<0-1.png>", "Second. Third.", "<0-0.png>", "Fourth.", "<0-2.png>"]


def test_where_a_picture_is_missing_the_others_find_their_best_sentences(tmp_path: Path) -> None:
    path = shard(tmp_path, mmc4_row(0), missing=("0-1.png",))
    drafts, lost = read(MMC4(path))
    assert spelled(drafts[0]) == ["<0-2.png>", "First of 0. Second.", "<0-0.png>", "Third. Fourth."]
    assert drafts[0].about["similarity"] == [0.31, 0.26]
    assert lost == {"picture is not in the store": ["docs_shard_7_v2:1 7/0-1.png"]}
    assert spelled(read(MMC4(path, assign="never"))[0][0])[-2:] == ["<0-2.png>", "Fourth."]


def test_pictures_that_claim_one_sentence_are_parted(tmp_path: Path) -> None:
    row = mmc4_row(0)
    for info in row["image_info"]:
        info["matched_text_index"] = 0
    path = shard(tmp_path, row)
    assert spelled(read(MMC4(path))[0][0]) == IN_ORDER
    together = ["<0-0.png>", "<0-1.png>", "<0-2.png>", "First of 0. Second. Third. Fourth."]
    assert spelled(read(MMC4(path, assign="never"))[0][0]) == together


def test_more_pictures_than_sentences_stay_where_they_fit_best(tmp_path: Path) -> None:
    row = mmc4_row(0, text_list=["Only."], similarity_matrix=[[0.1], [0.3], [0.2]])
    for info in row["image_info"]:
        info["matched_text_index"] = 0
    assert spelled(read(MMC4(shard(tmp_path, row)))[0][0]) == ["<0-0.png>", "<0-1.png>", "<0-2.png>", "Only."]


def test_pictures_unlike_their_sentence_are_left_out(tmp_path: Path) -> None:
    drafts, lost = read(MMC4(shard(tmp_path, mmc4_row(0)), similarity=0.25))
    assert spelled(drafts[0]) == ["<0-1.png>", "First of 0. Second.", "<0-0.png>", "Third. Fourth."]
    assert lost == {"picture unlike its sentence": ["docs_shard_7_v2:1 0-2.png"]}


def test_pictures_may_be_kept_by_their_address(tmp_path: Path) -> None:
    import hashlib

    path = shard(tmp_path, mmc4_row(0), missing=("0-0.png", "0-1.png", "0-2.png"))
    put(tmp_path / "store" / hashlib.sha256(b"http://x/0-0.png").hexdigest(), jpeg(0))
    drafts, lost = read(MMC4(path, pictures=HashedPictures(tmp_path / "store"), names="{raw_url}"))
    assert len(drafts[0].pictures) == 1
    assert len(lost["picture is not in the store"]) == 2
    with pytest.raises(UserError, match="names is"):
        MMC4(path, names="{sahrd}")


def test_the_tars_of_openflamingo_carry_their_pictures(tmp_path: Path) -> None:
    import json

    members = {f"{n}.json": json.dumps(with_base64(mmc4_row(n))).encode() for n in range(2)}
    drafts, lost = read(MMC4(put(tmp_path / "000.tar", tar(members))))
    assert len(drafts) == 2
    assert spelled(drafts[0]) == ["<0-1.png>", "First of 0. Second.", "<0-0.png>", "Third. Fourth."]
    assert drafts[0].pictures[1].read_bytes() == jpeg(0)
    assert lost == {"picture is not in the store": ["000:1 0-2.png", "000:2 1-2.png"]}


def test_pictures_that_chatgpt_has_placed(tmp_path: Path) -> None:
    import base64

    row = {
        "is_gpt": True,
        "example": "Look. _!_IMAGE0_!_ A bridge. _!_IMAGE1_!_",
        "image_map": {"_!_IMAGE0_!_": {"base64_image": base64.b64encode(jpeg(3)).decode()}},
    }
    drafts, lost = read(MMC4(put(tmp_path / "a.jsonl", json_lines([row]))))
    assert spelled(drafts[0]) == ["Look.", "<_!_IMAGE0_!_>", "A bridge."]
    assert drafts[0].pictures[0].read_bytes() == jpeg(3)
    assert lost == {"picture is not in the store": ["a:1 _!_IMAGE1_!_"]}


def test_rows_of_the_wrong_shape_are_counted(tmp_path: Path) -> None:
    infos = mmc4_row(0)["image_info"]
    wrong = [
        {"text_list": "one"},
        {"text_list": [1]},
        {"image_info": [3]},
        {"image_info": [{**infos[0], "image_name": 3}]},
        {"image_info": [{**infos[0], "image_name": "../../out.png"}]},
        {"image_info": [{**info, "matched_text_index": 4} for info in infos]},
        {"image_info": [{**info, "matched_text_index": True} for info in infos]},
        {"image_info": [{**info, "matched_sim": "high"} for info in infos]},
        {"similarity_matrix": [[0.1]]},
        {"similarity_matrix": [[float("nan")] * 4] * 3},
        {"similarity_matrix": [[10**400] * 4] * 3},
        {"similarity_matrix": "no"},
    ]
    rows = [mmc4_row(0), *(mmc4_row(0, **change) for change in wrong), mmc4_row(0, text_list=[" "] * 4)]
    shard(tmp_path, mmc4_row(0))
    drafts, lost = read(MMC4(put(tmp_path / "docs_shard_7_v2.jsonl", json_lines(rows))))
    assert len(drafts) == 1
    assert {reason: len(ids) for reason, ids in lost.items()} == {"wrong fields": len(wrong), "empty document": 1}


def test_stretches_together_are_the_file(tmp_path: Path) -> None:
    path = shard(tmp_path, *map(mmc4_row, range(5)))
    source = MMC4(path)
    assert stretched(source, path, 2) == list(source.drafts())
    assert len(source.spans(path, 2)) == 3
