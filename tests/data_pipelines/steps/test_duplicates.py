"""Keys, sketches and verdicts of de-duplication, against what the theory promises."""

import random
import subprocess
import sys
from math import comb

import numpy
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.steps import NearPicture, NearText, Pictures, Same
from data_pipelines.steps.duplicates import bands, mixed
from mm1.data.fingerprint import Fingerprint
from mm1.errors import UserError


def photo(seed, width=60, height=40):
    coarse = numpy.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=numpy.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def compared(step, one, other):
    """Whether two documents share a key, and whether they are then found alike."""
    keys = [set(step.keys(draft, Pictures()).tolist()) for draft in (one, other)]
    first, second = (step.sketch(draft, Pictures()) for draft in (one, other))
    assert len(first) == len(second)
    return bool(keys[0] & keys[1]), bool(step.alike(first, [second])[0])


def test_the_same_words_are_the_same_text(document):
    one = document("The cat,  sat.", "On ﬁre!")
    assert compared(Same(), one, document("the CAT sat on fire")) == (True, True)
    assert compared(Same(), one, document("the cat sat on fires")) == (False, False)
    assert len(Same().keys(document("?!"), Pictures())) == 0


def test_captions_are_told_by_picture_or_by_both(document):
    one, other = photo(1), photo(2)
    assert compared(Same("pictures"), document(one, "a"), document(one, "b")) == (True, True)
    assert compared(Same("pictures"), document(one, "a"), document(other, "a")) == (False, False)
    assert compared(Same("both"), document(one, "a"), document(one, "b")) == (False, False)
    assert compared(Same("both"), document(one, "a"), document(one, "A.")) == (True, True)
    assert len(Same("pictures").keys(document("text"), Pictures())) == 0


@pytest.mark.parametrize(
    ("threshold", "hashes", "recall", "expected"),
    [(0.8, 128, 0.9, (16, 8)), (0.8, 128, 0.95, (18, 7)), (0.5, 100, 0.0, (1, 100)), (1.0, 128, 0.99, (1, 128))],
)
def test_bands_are_those_of_the_longest_rows_that_find_enough(threshold, hashes, recall, expected):
    assert bands(threshold, hashes, recall) == expected


def test_too_few_hashes_are_refused():
    with pytest.raises(UserError, match=r"threshold 0.1 is found .* by 4 hashes; expected more hashes"):
        NearText(threshold=0.1, hashes=4)


def test_ngrams_of_words_and_of_characters():
    assert NearText(n=2).grams("A b, c.") == ["a b", "b c"]
    assert NearText(n=5).grams("a b") == ["a b"]
    assert NearText(n=3, unit="characters").grams("Ab cd") == ["ab ", "b c", " cd"]


def pair(shared, own, seed):
    """Two texts of 1-grams of which ``shared / (shared + 2 own)`` are the same."""
    words = [f"w{seed}x{number}" for number in range(shared + 2 * own)]
    texts = [words[:shared] + words[shared : shared + own], words[:shared] + words[shared + own :]]
    for number, text in enumerate(texts):
        random.Random(seed + number).shuffle(text)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize(("shared", "own"), [(20, 10), (30, 6), (40, 5), (45, 3)])  # Jaccard 0.5, 0.71, 0.8, 0.88
def test_pairs_share_a_band_as_often_as_the_s_curve_says(document, shared, own):
    step, pairs = NearText(n=1, threshold=0.7), 250
    jaccard = shared / (shared + 2 * own)
    expected = 1 - (1 - jaccard**step.rows) ** step.bands
    found = [compared(step, *map(document, pair(shared, own, seed))) for seed in range(pairs)]
    noise = (
        4 * (expected * (1 - expected) / pairs) ** 0.5 + 0.02
    )  # four standard errors; numbers of a sketch are not quite independent
    assert abs(sum(meets for meets, _ in found) / pairs - expected) < noise
    alike = sum(alike for _, alike in found) / pairs
    assert alike < 0.02 if jaccard == 0.5 else alike > 0.99 if jaccard > 0.85 else True


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=30), n=st.integers(1, 6))
def test_an_exact_copy_shares_every_band(document, words, n):
    step, draft = NearText(n=n, hashes=32, threshold=0.9), document(" ".join(words))
    copy = document(" ".join(words).upper().lower())
    assert (step.keys(draft, Pictures()) == step.keys(draft, Pictures())).all()
    if len(step.keys(draft, Pictures())) and draft.text == copy.text:
        assert compared(step, draft, copy) == (True, True)


def test_every_process_makes_the_same_sketch(document):
    code = "import rensa; m = rensa.RMinHash(128, 0); m.update(['one two', 'two three']); print(m.digest())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = numpy.frombuffer(NearText(n=2).sketch(document("one two three"), Pictures()), dtype=numpy.uint32)
    assert str(here.tolist()) == there.strip()


def test_another_seed_makes_other_keys(document):
    draft = document("one two three four five six")
    assert not set(NearText().keys(draft, Pictures())) & set(NearText(seed=1).keys(draft, Pictures()))


def test_the_same_value_in_another_band_is_another_key():
    keys = mixed(numpy.zeros((40, 3), dtype=numpy.uint32))
    assert len(set(keys.tolist())) == 40
    many = mixed(numpy.random.default_rng(0).integers(0, 3, (20_000, 16)))
    assert len(set(many.tolist())) == 20_000


class Printed(Pictures):
    """A document's pictures with a difference hash of the test's choice."""

    def __init__(self, bits):
        super().__init__()
        self.bits = numpy.uint64(bits)

    def fingerprint(self, place):
        return Fingerprint("", self.bits, numpy.zeros((16, 18, 3), dtype=numpy.int16))


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(0, 2**64 - 1),
    flips=st.sets(st.integers(0, 63), max_size=8),
    shape=st.tuples(st.integers(0, 6), st.integers(1, 3)),
)
def test_hashes_within_the_bits_always_share_a_key(document, bits, flips, shape):
    near, more = shape
    step, draft = NearPicture(bits=near, blocks=near + more), document(b"", "text")
    assert step.keys_per_document == comb(near + more, more) == len(step.keys(draft, Printed(bits)))
    other = bits ^ sum(1 << flip for flip in flips)
    sketches = [step.sketch(document(b"", "text", group=str(one)), Printed(one)) for one in (bits, other)]
    if 0 < len(flips) <= near:
        assert set(step.keys(draft, Printed(bits))) & set(step.keys(draft, Printed(other)))
    if flips:
        assert step.alike(sketches[0], [sketches[1]])[0] == (len(flips) <= near)


def test_hashes_far_apart_share_a_key_rarely(document):
    numbers = numpy.random.default_rng(0).integers(0, 2**63, (300, 2))
    step, draft = NearPicture(), document(b"", "text")
    pairs = [[set(step.keys(draft, Printed(int(one))).tolist()) for one in both] for both in numbers]
    assert sum(bool(one & other) for one, other in pairs) <= 1  # 21 keys of 18 bits


def test_a_recompressed_and_resized_picture_is_alike_and_a_drawing_that_differs_in_a_detail_is_not(document):
    step = NearPicture()
    for seed in range(20):
        whole = photo(seed, 320, 240)
        one, small = document(whole, "a", group="1"), document(whole.resize((224, 224)), "b", group="2")
        assert compared(step, one, small) == (True, True)
    drawing = PIL.Image.new("RGB", (60, 40), "white")
    detail = drawing.copy()
    PIL.ImageDraw.Draw(detail).rectangle((20, 10, 30, 20), fill="black")
    assert compared(step, document(drawing, "a", group="1"), document(detail, "a", group="2"))[1] is False


def test_captions_of_one_picture_on_purpose_are_no_duplicates(document):
    assert compared(NearPicture(), document(photo(1), "a"), document(photo(1), "b")) == (True, False)


def test_documents_of_several_pictures_stay_unless_their_first_is_asked(document):
    pages = document("x", photo(1), photo(2), group="1"), document("y", photo(1), photo(3), group="2")
    assert len(NearPicture().keys(pages[0], Pictures())) == len(NearPicture().keys(document("x"), Pictures())) == 0
    assert compared(NearPicture(several="first"), *pages) == (True, True)


def test_blocks_have_to_be_more_than_bits():
    with pytest.raises(UserError, match="blocks is 5 and bits 5; expected blocks above bits"):
        NearPicture(bits=5, blocks=5)
