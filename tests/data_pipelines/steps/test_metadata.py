"""What a document's file says of it, in each way that published metadata spells it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.steps import Metadata, Pictures
from mm1.errors import UserError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.28, ""),
        (0.5, ""),
        ("0.3", ""),
        (0.27, "similarity under 0.28"),
        (0.51, "similarity over 0.5"),
        (None, "similarity is missing"),
        (math.nan, "similarity is missing"),
        ("high", "similarity is no number"),
        ([0.3], "similarity is no number"),
    ],
)
def test_a_number_lies_in_a_range(document, reason, value, said):
    assert reason(Metadata("similarity", minimum=0.28, maximum=0.5), document("text", similarity=value)) == said


def test_documents_without_the_field_are_dropped_or_kept_as_asked(document, reason):
    draft = document("text", url="x")
    assert reason(Metadata("punsafe", maximum=0.5), draft) == "punsafe is missing"
    assert reason(Metadata("punsafe", maximum=0.5, missing="keep"), draft) == ""


def test_of_what_is_no_number_some_values_are_kept(document, reason):
    step = Metadata("NSFW", values=("UNLIKELY", "UNSURE"))
    assert reason(step, document("text", NSFW="UNSURE")) == ""
    assert reason(step, document("text", NSFW="NSFW")) == "NSFW not kept"
    assert reason(Metadata("status", values=("1",)), document("text", status=1)) == ""


def test_a_field_of_the_wrong_kind_is_a_fault_and_a_bound_is_none(document):
    step = Metadata("similarity", minimum=0.3)
    assert step(document("text", similarity="high"), Pictures()).fault
    assert not step(document("text", similarity=0.1), Pictures()).fault


def test_one_of_range_and_values_has_to_be_given():
    with pytest.raises(UserError, match="Metadata of x has neither; expected a range or values"):
        Metadata("x")
    with pytest.raises(UserError, match="Metadata of x has both"):
        Metadata("x", minimum=0, values=("a",))
    with pytest.raises(UserError, match="minimum is 2 and maximum is 1"):
        Metadata("x", minimum=2, maximum=1)


@settings(max_examples=100, deadline=None)
@given(value=st.floats(), low=st.floats(-9, 9), high=st.floats(-9, 9), more=st.floats(0, 9))
def test_a_wider_range_keeps_all_that_a_narrow_one_does(document, reason, value, low, high, more):
    low, high = sorted((low, high))
    narrow, wide = Metadata("x", minimum=low, maximum=high), Metadata("x", minimum=low - more, maximum=high + more)
    draft = document("text", x=value)
    assert (
        reason(narrow, draft) == "x is missing"
        if math.isnan(value)
        else reason(narrow, draft) or not reason(wide, draft)
    )
