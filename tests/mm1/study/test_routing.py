"""The page on routing says what the routers did, for every kind of sparse layer."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mm1
from mm1.batch import IGNORE, IMAGE, Batch
from mm1.errors import UserError
from mm1.model.build import build
from mm1.page import palette
from mm1.runs import Run
from mm1.study.__main__ import main
from mm1.study.routing import routing
from mm1.study.routing_found import apart, different, experts, findings, loads, pairs, saturation
from mm1.study.routing_plots import cells
from mm1.study.routing_record import Recorded, Recorder, held_out, routers_of
from tests.conftest import IMAGE_TOKENS, ROW_TOKENS, fit, run_config

DATA: dict[str, Any] = {"row_tokens": ROW_TOKENS, "images_per_row": 5, "weights": None}
ABLATIONS = Path(__file__).resolve().parents[3] / "configs" / "ablations"
PLAIN = "mm1.model.moe.layer.MoE"


def train(corpus: Path, folder: Path, moe: dict[str, Any] | None) -> Run:
    config = run_config(corpus, max_steps=4, log_every_n_steps=2)
    config["model"]["model"]["init_args"]["decoder"]["init_args"]["moe"] = moe
    return fit(folder, config)


@pytest.fixture(scope="module")
def plain(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(corpus, tmp_path_factory.mktemp("plain"), {"class_path": PLAIN, "init_args": {"experts": 4}})


@pytest.fixture(scope="module")
def heads(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    inner = {"class_path": PLAIN, "init_args": {"experts": 6, "top_k": 1}}
    moe = {"class_path": "mm1.model.moe.multi_head.MultiHeadMoE"}
    moe |= {"init_args": {"moe": inner, "heads": 4, "match": "none"}}
    return train(corpus, tmp_path_factory.mktemp("heads"), moe)


def record(run: Run, corpus: Path) -> Recorded:
    assistant = mm1.load(run.last)
    return Recorder(assistant.model)(held_out(DATA, assistant.model, assistant.tokenizer, corpus, rows=4))


@pytest.fixture(scope="module")
def recorded(plain: Run, corpus: Path) -> Recorded:
    return record(plain, corpus)


def test_what_is_recorded_is_what_the_model_counted(recorded: Recorded, plain: Run, corpus: Path) -> None:
    assistant = mm1.load(plain.last)
    batches = list(held_out(DATA, assistant.model, assistant.tokenizer, corpus, rows=4))
    with torch.inference_mode():
        sums = [assistant.model(batch).router for batch in batches]
    together = sum(stats.together_LEE for stats in sums)[0].numpy()
    by_group = sum(stats.load_LGE for stats in sums)[0].numpy()
    found = {load.name: load for load in loads(recorded)}
    assert {"all tokens", "text", "pictures", "source “text”", "source “captions”"} <= found.keys()
    for name, counts_E in [
        ("all tokens", by_group.sum(0)),
        ("text", by_group[0::2].sum(0)),
        ("pictures", by_group[1::2].sum(0)),
        *((f"source “{s}”", by_group[2 * at : 2 * at + 2].sum(0)) for at, s in enumerate(batches[0].sources)),
    ]:
        np.testing.assert_allclose(found[name].share_LE[0], counts_E / counts_E.sum(), rtol=1e-5)
    np.testing.assert_allclose(pairs(recorded)[0], together / np.diag(together)[:, None], rtol=1e-5)
    assert recorded.layers == [1]
    assert len(recorded.tokens_M) == sum(batch.tokens for batch in batches)
    assert recorded.image_M.sum() == IMAGE_TOKENS * sum(len(batch.images_ICHW) for batch in batches)


def test_words_are_counted_where_they_went(recorded: Recorded) -> None:
    found = experts(recorded, 0, str)
    taken = Counter[tuple[int, int]]()
    whole = Counter[int]()
    for token, hot_PE in zip(recorded.tokens_M.tolist(), recorded.hot_MPE[0], strict=True):
        whole[token] += 1
        taken.update((token, int(expert)) for expert in np.flatnonzero(hot_PE.any(0)))
    assert any(expert.words for expert in found)
    for expert in found:
        for word, mine, all_of_it in expert.words:
            assert (mine, all_of_it) == (taken[int(word), expert.number], whole[int(word)])
            assert int(word) != IMAGE
        visits = sum(count for (_, of), count in taken.items() if of == expert.number)
        assert expert.pictures == pytest.approx(taken[IMAGE, expert.number] / visits)


def test_saturation_is_whole_against_itself_and_less_against_another(recorded: Recorded, plain: Run, corpus) -> None:
    [itself] = saturation(recorded, recorded)
    assert (itself.same, itself.text, itself.pictures, itself.overlap) == (1, 1, 1, 1)
    turned = Recorded(**{**vars(recorded), "hot_MPE": [np.roll(recorded.hot_MPE[0], 1, axis=-1)]})
    [other] = saturation(recorded, turned)
    expected = [
        set(np.flatnonzero(row)) == {(e + 1) % 4 for e in np.flatnonzero(row)} for row in recorded.hot_MPE[0][:, 0]
    ]
    assert other.same == pytest.approx(np.mean(expected))
    assert 0 < other.chance < 1
    fewer = Recorded(**{**vars(recorded), "hot_MPE": [recorded.hot_MPE[0][..., :3]]})
    with pytest.raises(UserError, match="expected an earlier checkpoint of the same run"):
        saturation(recorded, fewer)


def test_a_token_of_many_heads_is_counted_in_its_parts(heads: Run, corpus: Path) -> None:
    recorded = record(heads, corpus)
    assert recorded.hot_MPE[0].shape == (len(recorded.tokens_M), 4, 6)
    assert (recorded.hot_MPE[0].sum(-1) == 1).all(), "each part visits one expert"
    count_M = different(recorded.hot_MPE[0])
    assert count_M.min() >= 1
    assert 1 < count_M.max() <= 4


def test_findings_name_the_dead_and_what_parts_modalities(recorded: Recorded) -> None:
    hot_MPE = np.zeros_like(recorded.hot_MPE[0])
    hot_MPE[recorded.image_M, :, 0] = hot_MPE[~recorded.image_M, :, 2] = True
    collapsed = Recorded(**{**vars(recorded), "hot_MPE": [hot_MPE]})
    health, parting = findings(collapsed, loads(collapsed), [])
    assert health.startswith("Dead experts: 2 of 4 in layer 1.")
    assert "100 % of the choices" in parting
    text, pictures = (load.share_LE for load in loads(collapsed)[1:3])
    assert apart(text, pictures).tolist() == [1.0]


def test_cells_are_pixels_in_the_colours_of_experts() -> None:
    colours = palette(4)
    uri = cells(np.array([0, 1, 2, 3]), colours)
    assert uri is not None
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (2, 2)
    assert ["#{:02x}{:02x}{:02x}".format(*image.getpixel((at % 2, at // 2))[:3]) for at in range(4)] == colours
    assert cells(np.zeros(6, int), colours) is None, "six tokens are no square"
    assert len(set(palette(128))) == 128


def page_of(run: Run, monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["mm1-study", "routing", str(run.folder), *map(str, words)])
    main()
    return (run.folder / "routing.html").read_text()


def test_the_page_holds_every_window(plain: Run, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(plain, monkeypatch, "--rows", 4, "--earlier", plain.last)
    assert re.findall(r'<section id="(\w+)"', page) == ["load", "pictures", "words", "pairs", "saturation", "training"]
    assert "Since the earlier checkpoint, 100 % (layer 1) of tokens kept all their experts." in page
    assert "source “interleaved”" in page
    assert page.count("data:image/jpeg") == 6
    assert page.count('alt="Picture') == 6
    assert "Load of 4 experts of layer 1 over training." in page
    assert "busiest expert: layer 1 ends at" in page
    assert not re.search(r'(src|href)="(?!#|data:)|url\((?!"data:|#)|@import', page), "one file that needs nothing else"


def test_sub_tokens_have_a_map_of_their_own(heads: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(heads, monkeypatch, "--rows", 4)
    assert re.findall(r'<section id="(\w+)"', page) == ["load", "pictures", "words", "subtokens", "training"]
    assert "Tokens are routed in 4 parts, each visiting 1 expert." in page
    assert "cells coloured by how many experts they visit" in page


def test_what_a_user_gets_wrong_is_one_sentence(
    corpus: Path, plain: Run, heads: Run, make_corpus, tmp_path: Path
) -> None:
    dense = train(corpus, tmp_path / "dense", None)
    other = make_corpus(captions=8)
    for run, given, told in [
        (dense.folder, {}, "this run's decoder is dense, nothing in it is routed; expected a run with"),
        (plain.folder, {"rows": 0}, "--rows is 0; expected at least 1"),
        (plain.folder, {"earlier": heads.last}, "expected an earlier checkpoint of the same run"),
        (plain.folder, {"earlier": tmp_path / "none.ckpt"}, "none.ckpt does not exist"),
        (plain.folder, {"corpus": tmp_path / "none"}, "none"),
        (tmp_path / "nowhere", {}, "expected a run folder written by mm1-train"),
    ]:
        with pytest.raises(UserError) as error:
            routing(run, **{"rows": 2, **given})
        assert told in str(error.value)
    routing(plain.folder, corpus=other, rows=2, out=tmp_path / "page.html")
    assert "source “" not in (tmp_path / "page.html").read_text(), "one source is not split"


@pytest.mark.parametrize("path", sorted(ABLATIONS.glob("router-*.yaml")), ids=lambda path: path.stem)
def test_every_router_can_be_looked_into(path: Path) -> None:
    model = build(path, device="cpu").eval()
    model.init_weights(seed=0)
    router = next(iter(routers_of(model).values()))
    sources = getattr(router, "tasks", ("captions", "text"))
    tokens_BT = torch.arange(64).view(2, 32) + 9
    tokens_BT[0, 3 : 3 + model.connector.tokens] = IMAGE
    segments_BT = torch.ones_like(tokens_BT)
    segments_BT[1, 20:] = 0
    sources_BT = torch.arange(2).unsqueeze(1).expand(2, 32).contiguous()
    side = model.vision.image_px
    images = torch.randint(0, 255, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rest = torch.arange(32).expand(2, 32), sources_BT, images, tuple(sources)
    batch = Batch(tokens_BT, torch.full_like(tokens_BT, IGNORE), segments_BT, *rest)
    recorded = Recorder(model)([batch])
    with torch.inference_mode():
        stats = model(batch).router
    counted = np.stack([hot_MPE.sum((0, 1)) for hot_MPE in recorded.hot_MPE])
    np.testing.assert_array_equal(counted, stats.load_LE.numpy())
    assert len(recorded.tokens_M) == 32 + 20
    assert len(recorded.pictures) == 1
    assert recorded.pictures[0].first == 3
