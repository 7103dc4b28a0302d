"""Text by length, language, bad words and wording; values worked by hand."""

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.steps import BadWords, Language, TextLength, Wording
from mm1.errors import UserError

PROSE = "The cat sat on the mat and looked out of the window, for it had rained that day. " * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a dog", ""),
        ("dog", "text under 2 words"),
        ("a do", "text under 5 characters"),
        ("one two three four", "text over 3 words"),
        ("extraordinarily long", "text over 18 characters"),
        ("  a dog  ", ""),
    ],
)
def test_length_is_counted_in_words_and_characters(document, reason, text, said):
    assert reason(TextLength(max_words=3, max_characters=18), document(text)) == said


def test_all_items_count_towards_the_length_of_a_document(document, reason):
    assert reason(TextLength(min_words=4), document("one two", "three four")) == ""


def test_languages_are_told(document, reason):
    english, german = "A dog runs across the field.", "Ein Hund rennt über das Feld."
    assert reason(Language(), document(english)) == ""
    assert reason(Language(), document(german)) == "other language"
    assert reason(Language(("de", "fr")), document(german)) == ""
    assert reason(Language(("de", "fr")), document(english)) == "other language"
    assert reason(Language(), document("12")) == "other language"
    assert reason(Language(minimum=0.0), document("12")) == ""


def test_a_language_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match=r"languages has english; expected ISO 639 codes"):
        Language(("english", "de"))
    with pytest.raises(UserError, match="languages has nothing"):
        Language(())


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "py3langid" else find(name))
    with pytest.raises(UserError, match=r"py3langid is not installed; .* pip install 'mm1\[steps\]'"):
        Language()


def test_bad_words_are_whole_words_in_any_case(document, reason, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_text("# a list\nass\nbad thing\n\n")
    step = BadWords(path)
    assert reason(step, document("a glass of brass")) == ""
    assert reason(step, document("What an ASS!")) == "bad words"
    assert reason(step, document("the Bad Thing, again")) == "bad words"
    assert reason(BadWords(path, whole_words=False), document("a glass")) == "bad words"
    assert reason(BadWords(path, most=1), document("an ass")) == ""
    assert reason(BadWords(path, most=1), document("an ass, a bad thing")) == "bad words"


def test_a_list_of_bad_words_has_to_be_there(tmp_path):
    with pytest.raises(UserError, match=r"none.txt does not exist; expected a file or folder at file"):
        BadWords(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match="has no words"):
        BadWords(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    with pytest.raises(UserError, match="is no UTF-8 text"):
        BadWords(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PROSE, ""),
        ("The cat and the dog.", "text not of 50 to 100000 words"),
        ("to be of " * 20, "words too short or too long"),
        (PROSE + " ####### " * 5, "too many symbols"),
        ("\n".join(f"- {PROSE}" for _ in range(10)), "too many bullets"),
        (f"{PROSE}...\n{PROSE}…\n{PROSE}", "too many lines that break off"),
        (PROSE + " 123 456 78" * 10, "too few words with letters"),
        ("Katzen sitzen vor Fenstern " * 20, "no stop words"),
    ],
)
def test_each_rule_of_wording(document, reason, text, said):
    assert reason(Wording(), document(text)) == said


def test_nine_bullets_of_ten_lines_pass_and_stop_words_can_be_left_out(document, reason):
    assert reason(Wording(), document("\n".join([*(f"- {PROSE}" for _ in range(9)), PROSE]))) == ""
    assert reason(Wording(stop_words=()), document("Katzen sitzen vor Fenstern " * 20)) == ""


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab #.…\n-1", max_size=80), low=st.integers(0, 20), less=st.integers(0, 20), share=st.floats(0, 1))
def test_a_wider_bound_keeps_all_that_a_narrow_one_does(document, reason, text, low, less, share):
    draft = document(text)
    pairs = [
        (TextLength(min_words=low, min_characters=low), TextLength(min_words=low - less, min_characters=low - less)),
        (
            Wording(min_words=low, min_word_length=1 + share, max_symbols=share, min_alphabetic=share, stop_words=()),
            Wording(min_words=low - less, min_word_length=1, max_symbols=1, min_alphabetic=share / 2, stop_words=()),
        ),
    ]
    for narrow, wide in pairs:
        assert reason(narrow, draft) or not reason(wide, draft)
