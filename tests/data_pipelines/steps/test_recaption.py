"""Synthetic captions for a share of the documents, by a function and by one of our own models."""

from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import mm1
from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps import Captioner, Pictures, Recaption
from mm1.data.tokenizer import train
from mm1.errors import UserError
from mm1.model.build import build

ROOT = Path(__file__).resolve().parents[3]

RED = PIL.Image.new("RGB", (12, 10), "red")


def describe(picture, caption):
    """A captioner that says what it was given."""
    return f" {picture.size[0]} wide, was: {caption} "


def test_the_new_caption_replaces_the_original_or_stands_beside_it(document):
    draft = document(RED, "A wall.", url="x")
    new = Recaption(describe, share=1)(draft, Pictures())
    assert (new.items[0], new.text) == (draft.items[0], "12 wide, was: A wall.")
    assert new.about == {"url": "x", "caption": "A wall."}
    beside = Recaption(describe, share=1, mode="beside")(draft, Pictures())
    assert beside.text == "A wall.\n12 wide, was: A wall."
    assert (new.id, new.group, new.lost) == (draft.id, draft.group, ())


def test_documents_that_are_no_caption_stay(document, reason):
    step = Recaption(describe, share=1)
    for draft in (document("text"), document(RED), document("a", RED, "b"), document(RED, RED)):
        assert reason(step, draft) == ""


@given(share=st.floats(0, 1), more=st.floats(0, 1), id=st.text(), seed=st.integers(0, 9))
def test_a_larger_share_has_all_documents_of_a_smaller_one(document, share, more, id, seed):
    draft = document("x", id=id)
    small, large = (Recaption(describe, share=part, seed=seed) for part in (share, min(1, share + more)))
    assert small.takes(draft) <= large.takes(draft)
    assert not Recaption(describe, share=0).takes(draft)
    assert Recaption(describe, share=1).takes(draft)


def test_the_share_is_that_of_the_documents_and_the_seed_changes_which(document):
    drafts = [document("x", id=f"a:{number}") for number in range(2000)]
    one, other = ([Recaption(describe, share=0.3, seed=seed).takes(draft) for draft in drafts] for seed in (0, 1))
    assert abs(sum(one) / 2000 - 0.3) < 0.04
    assert sum(a != b for a, b in zip(one, other, strict=True)) > 300


def test_a_model_that_says_nothing_leaves_the_original_and_is_counted(document):
    kept = Recaption(lambda picture, caption: "\n", share=1)(document(RED, "A wall."), Pictures())
    assert isinstance(kept, Draft)
    assert kept.text == "A wall."
    assert kept.lost == (Rejection("a:1", "synthetic caption is empty", fault=False),)


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny random model as training stores it."""
    tokenizer = train(["User: what is this?", "Assistant: a red square on the left", "one two three"] * 20, 310)
    config = (ROOT / "configs/model/tiny.yaml").read_text().replace("2048", "310")
    model = build(yaml.safe_load(config), device="cpu")
    model.init_weights(seed=0)
    stored = {"mm1": {"format": 1, "model": config, "tokenizer": tokenizer}}
    stored["state_dict"] = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save(stored, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_one_of_our_models_is_a_captioner(document, checkpoint):
    captioner = Captioner(checkpoint, prompt="Better than {caption}?", max_new_tokens=6)
    said = captioner(RED, "a wall")
    assert said == mm1.load(checkpoint).generate(RED, "Better than a wall?", 6)
    kept = Recaption(captioner, share=1)(document(RED, "a wall"), Pictures())
    assert kept.text == (said.strip() or "a wall")


def test_settings_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(UserError, match="share is 30; expected a share between 0 and 1"):
        Recaption(describe, share=30)
    with pytest.raises(UserError, match="expected a file or folder at checkpoint"):
        Captioner(tmp_path / "none.ckpt")
