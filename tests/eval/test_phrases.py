"""Questions are found in texts as a person would say they are the same, and only then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.phrases import GRAM_WORDS, Phrases, words

LONG = "in the picture above which of the three small dogs is standing nearest to the old red barn door"
SHORT = "What colour is the dog's collar?"


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words("What's the DOG—doing_here?") == ("what", "s", "the", "dog", "doing", "here")
    assert words("  ?! ") == ()


@pytest.mark.parametrize(
    "text",
    [
        SHORT,
        "User: what colour is the dog's collar\nAssistant:",
        "Question: What colour is the dog's collar? Short answer: red\n",
        "A page. What colour is the DOG'S collar?! Nobody knows.",
        "question: what colour is the dog's collar short answer: red",
        "What colour is the dog's collar?\nAnswer the question using a single word or phrase.",
    ],
)
def test_a_short_question_is_found_whole(text: str) -> None:
    assert Phrases([SHORT]).within(text) == {words(SHORT)}


@pytest.mark.parametrize(
    "text",
    ["I wonder what colour is the dog's collar.", "What colour is the dog's collar made of?", "What colour?", ""],
)
def test_a_part_of_a_longer_sentence_is_another_question(text: str) -> None:
    assert Phrases([SHORT]).within(text) == set()


def test_a_short_question_of_two_sentences() -> None:
    assert Phrases(["Look! Who is it?"]).within("Before. Look. Who is it? After.") == {("look", "who", "is", "it")}


def test_thirteen_words_in_a_row_are_a_long_question() -> None:
    phrases, said = Phrases([LONG, SHORT]), words(LONG)
    assert phrases.count == 2
    for at in range(len(said) - GRAM_WORDS + 1):
        piece = " ".join(said[at : at + GRAM_WORDS])
        assert phrases.within(f"Some text, {piece.upper()}; and more") == {said}
        assert phrases.within(" ".join(said[at : at + GRAM_WORDS - 1])) == set()


@given(st.lists(st.text(alphabet="ab ?.", max_size=12), max_size=6), st.text(alphabet="ab ?.\n", max_size=60))
def test_a_text_holds_its_own_sentences(questions: list[str], before: str) -> None:
    phrases = Phrases(questions)
    assert phrases.within(before) <= {words(question) for question in questions}
    for question in questions:
        if said := words(question):
            assert said in phrases.within(f"{before}\nUser: {' '.join(said)}\nAssistant: x")
