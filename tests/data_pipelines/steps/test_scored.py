"""The words of evaluations: what is sought in documents, and what is too common to be sought."""

import json
from pathlib import Path

import pytest

from data_pipelines.sources import sources
from data_pipelines.sources.base import Draft
from data_pipelines.steps import ScoredText
from data_pipelines.steps.duplicates import words_of
from data_pipelines.steps.scored import scored_files, scored_texts
from mm1.errors import UserError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
LONG = "A brown dog runs across the wide green field and catches the red ball again"  # 15 words
EIGHT = "Two men carry a piano up the stairs"
COUNT = "one two three four five six seven eight"
WUG = "the dax is red and sits below the blue wug"
TEMPLATE = "What are the objects on the table close to the wall?"


@pytest.fixture
def corpus(tmp_path):
    """A raw corpus folder with every kind of scored set, and parts to train on beside them."""
    sets = {
        "captions_eval/a.json": {"images": [{"path": "x.jpg"}], "annotations": [{"caption": LONG}, {"caption": EIGHT}]},
        "vqa/v2/questions.json": {"questions": [{"question": TEMPLATE, "image_id": 1}]},
        "vqa/v2/annotations.json": {"annotations": [{"answers": [{"answer": COUNT}]}]},
        "vqa/v2/train_questions.json": {"questions": [{"question": "a b c d e f g h i j k l m n"}]},
    }
    for name, value in sets.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "icl").mkdir()
    row = {"id": "a b c d e f g h i", "items": [{"text": WUG}], "answers": ["dax"]}
    (tmp_path / "icl/test.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"So it goes: {LONG.upper()}!", "text is scored"),
        (" ".join(LONG.split()[1:14]), "text is scored"),  # thirteen of its words
        (" ".join(LONG.split()[1:13]), ""),  # twelve
        (f"x {EIGHT}, y", "text is scored"),  # short, and all there
        (EIGHT[:-7], ""),
        (TEMPLATE, ""),
        (COUNT, "text is scored"),
        (WUG, "text is scored"),
        ("a b c d e f g h i j k l m n", ""),  # an id, and a part to train on
    ],
)
def test_what_is_sought(document, reason, corpus, text, said):
    assert reason(ScoredText([corpus]), document(text)) == said


def test_a_run_of_words_goes_on_over_items(document, reason, corpus):
    head, tail = " ".join(LONG.split()[:7]), " ".join(LONG.split()[7:])
    assert reason(ScoredText([corpus]), document("before", head, tail)) == "text is scored"


def test_how_short_is_a_setting(document, reason, corpus):
    assert reason(ScoredText([corpus], shortest=9), document(EIGHT)) == ""
    assert reason(ScoredText([corpus], ngram=5, shortest=5), document("the wide green field and")) == "text is scored"
    assert reason(ScoredText([corpus], ngram=10), document(TEMPLATE)) == "text is scored"


def test_files_may_be_named_one_by_one(document, reason, corpus):
    listed = corpus / "texts.txt"
    listed.write_text(f"{EIGHT}\n")
    step = ScoredText([listed, corpus / "vqa/v2/questions.json"])
    assert reason(step, document(EIGHT)) == "text is scored"
    assert reason(step, document(LONG)) == ""


def test_scored_sets_that_cannot_be_read_are_refused(document, reason, tmp_path):
    with pytest.raises(UserError, match="expected scored sets in there"):
        ScoredText([tmp_path])
    with pytest.raises(UserError, match="ngram is 5; expected the first to be the lower"):
        ScoredText([tmp_path], ngram=5)
    (tmp_path / "icl").mkdir()
    (tmp_path / "icl/test.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"test:1 is no JSON object; expected a line of a scored set"):
        reason(ScoredText([tmp_path]), document(LONG))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json"):
        reason(ScoredText([tmp_path / "a.json"]), document(LONG))


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data on this machine")
def test_of_real_data_scored_texts_are_found_and_training_texts_hardly_ever_refused(document, reason):
    step = ScoredText([SHARED])
    assert {"captions_eval", "daquar", "vqav2_mini"} == {path.parent.name for path in scored_files(SHARED)}
    prose = [
        text
        for path in scored_files(SHARED)
        for text in scored_texts(path)
        if len(words_of(text)) >= 8 and not text.rstrip().endswith("?")
    ]
    assert len(prose) > 50
    assert all(reason(step, document(f"before it {text} after it")) for text in prose[:200])
    [captions] = (read for stream, read in sources(SHARED).items() if stream == "captions")
    drafts = [draft for source in captions for draft in source.drafts() if isinstance(draft, Draft)]
    assert sum(bool(reason(step, draft)) for draft in drafts) <= 0.001 * len(drafts)
