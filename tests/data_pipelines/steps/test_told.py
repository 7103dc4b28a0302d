"""A step told as plain values: what stamps of finished work are made of, and how it travels to workers."""

import inspect
import json
import math
import pickle
from pathlib import Path

import pytest

import data_pipelines.steps
from data_pipelines.steps import (
    BadWords,
    Captioner,
    Judged,
    Language,
    Metadata,
    NearPicture,
    NearText,
    OptOut,
    PictureCount,
    PictureSize,
    Recaption,
    Repetition,
    Same,
    ScoredText,
    Similarity,
    Step,
    TextLength,
    Wording,
    told,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("word\n")
    return path


@pytest.fixture
def steps(listed):
    """One of each."""
    return [
        BadWords(listed),
        Judged(math.sqrt),
        Language(("en", "de", "fr", "nl")),
        Metadata("a", values=("x", "y", "z")),
        NearPicture(),
        NearText(),
        OptOut(urls=[listed]),
        PictureCount(),
        PictureSize(),
        Recaption(Captioner(listed)),
        Repetition(),
        Same(),
        ScoredText([listed]),
        Similarity(),
        TextLength(),
        Wording(),
    ]


def test_every_step_is_told_in_plain_values_and_travels(steps):
    missing = {
        name
        for name in data_pipelines.steps.__all__
        if inspect.isclass(found := getattr(data_pipelines.steps, name))
        and issubclass(found, Step)
        and not inspect.isabstract(found)
    } - {type(step).__name__ for step in steps}
    assert missing <= {"Subset"}
    for step in steps:
        value = json.loads(json.dumps(told(step)))
        assert value == told(pickle.loads(pickle.dumps(step)))
        assert value[0] == f"{type(step).__module__}.{type(step).__name__}"


def test_a_changed_file_changes_what_is_told(listed):
    before = told(BadWords(listed)), told(ScoredText([listed])), told(Recaption(Captioner(listed)))
    listed.write_text("other words\n")
    after = told(BadWords(listed)), told(ScoredText([listed])), told(Recaption(Captioner(listed)))
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_changed_setting_changes_what_is_told():
    assert told(NearText()) != told(NearText(seed=1))
    assert told(NearPicture(blocks=7)) != told(NearPicture(blocks=8))
    assert told(Judged(math.sqrt)) != told(Judged(math.floor))


def test_what_has_no_order_and_what_has_an_address_are_told_alike_every_time():
    assert told(frozenset("cab")) == ["a", "b", "c"]
    assert told([math.sqrt, json.dumps, Path]) == ["math.sqrt", "json.dumps", f"{Path.__module__}.Path"]
    assert "0x" not in json.dumps(told(Judged(json.dumps)))


def test_the_table_in_the_documents_has_every_step(steps):
    page = (ROOT / "docs" / "data.md").read_text()
    assert not [type(step).__name__ for step in steps if f"`{type(step).__name__}`" not in page]
