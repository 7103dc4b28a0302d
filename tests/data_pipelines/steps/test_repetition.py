"""The rules of MassiveText for repetition, on texts of which the shares can be counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.steps import Repetition
from data_pipelines.steps.repetition import repeated_ngrams, repeated_parts

FRESH = " ".join(f"word{number}" for number in range(100, 160))  # 60 words of 7 letters, all different


def test_lines_that_stood_there_before():
    assert repeated_parts(["aa", "b", "aa", "aa"]) == pytest.approx((2 / 4, 4 / 7))
    assert repeated_parts([]) == (0, 0)


def test_ngrams_that_stand_more_than_once():
    found = repeated_ngrams(["a", "b", "a", "b", "ccc"], 5)
    assert found[2] == pytest.approx((4 / 7, 4 / 7))  # "a b" twice covers 4 letters of 7; "b a" and "b ccc" stand once
    assert found[3] == (0, 0)
    assert list(found) == [2, 3, 4, 5]
    assert repeated_ngrams(["a", "a", "a"], 3)[2] == (1, 1)  # both occurrences overlap: 3 letters, not 4
    assert repeated_ngrams(["a"], 3) == {}


def by_counting(words, n):
    """The definition, word by word."""
    grams = [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]
    many = {at for at, gram in enumerate(grams) if grams.count(gram) > 1}
    covered = {at + k for at in many for k in range(n)}
    return sum(len(words[at]) for at in covered) / sum(map(len, words))


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=2, max_size=30))
def test_what_repeated_ngrams_cover_is_what_the_definition_counts(words):
    for n, (top, repeated) in repeated_ngrams(words, 6).items():
        assert repeated == pytest.approx(by_counting(words, n))
        assert top <= repeated


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FRESH, ""),
        ("\n".join([FRESH, *["same"] * 3]), "repeated lines"),  # 2 of 4 lines
        ("\n".join([FRESH, "x", "y", FRESH[:170], FRESH[:170]]), "repeated lines"),  # 1 of 5, 170 letters of 821
        ("\n\n".join([FRESH.replace(" ", "\n"), "one\ntwo", "one\ntwo", "one\ntwo"]), "repeated paragraphs"),
        (" ".join(f"{FRESH[at : at + 31]} very much" for at in range(0, 480, 32)), "repeated 2-grams"),  # 120 of 540
        (" ".join([FRESH, FRESH[:39], "a", FRESH[80:119], "b"]), "repeated 5-grams"),  # 140 of 492; a 4-gram at most 56
        ("same words " * 20, ""),  # 40 words: too short to be judged
    ],
)
def test_each_rule(document, reason, text, said):
    assert reason(Repetition(), document(text)) == said


def test_the_items_of_a_document_are_its_paragraphs(document, reason):
    text = " ".join(FRESH.split()[:20])
    assert reason(Repetition(), document(FRESH, text, text, text)) == "repeated lines"


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(["a", "bb", "c\n", "dd\n\n", "e"]), max_size=60),
    bound=st.floats(0, 1),
    more=st.floats(0, 1),
)
def test_a_wider_bound_keeps_all_that_a_narrow_one_does(document, reason, words, bound, more):
    def step(bound):
        return Repetition(
            min_words=0,
            lines=bound,
            line_characters=bound,
            paragraphs=bound,
            paragraph_characters=bound,
            top=(bound,) * 3,
            repeated=(bound,) * 6,
        )

    draft = document(" ".join(words))
    assert reason(step(bound), draft) or not reason(step(min(1, bound + more)), draft)
