"""Pictures by size, shape, number and judgement."""

import io

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps import Judged, PictureCount, Pictures, PictureSize
from mm1.errors import UserError
from mm1.sample import Text


def plain(width, height):
    return PIL.Image.new("RGB", (width, height), (90, 120, 30))


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (150, 150, ""),
        (149, 300, "picture side under 150"),
        (450, 150, ""),
        (451, 150, "picture aspect over 3"),
        (150, 451, "picture aspect over 3"),
        (601, 601, "picture side over 600"),
        (600, 300, ""),
    ],
)
def test_sides_and_shape_have_bounds_that_belong_to_what_is_kept(document, reason, width, height, said):
    assert reason(PictureSize(max_side_px=600), document(plain(width, height), "text")) == said


def test_a_file_of_few_bytes_is_left_out_before_its_head_is_read(document, reason):
    draft = document(plain(200, 200), "text")
    size = len(draft.pictures[0].data)
    assert reason(PictureSize(min_bytes=size), draft) == ""
    assert reason(PictureSize(min_bytes=size + 1), document(b"\xff" * size, "text")) == (
        f"picture file under {size + 1} bytes"
    )


def test_size_is_that_of_the_upright_picture_and_decodes_nothing(document):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = io.BytesIO()
    PIL.Image.effect_noise((200, 100), 50).save(file, "JPEG", exif=exif)
    whole, head = file.getvalue(), file.getvalue()[:2000]
    for data in (whole, head):
        draft, pictures = document(data, "text"), Pictures()
        assert pictures.size(draft.pictures[0]) == (100, 200)
    assert pictures._pixels == {}
    pictures = Pictures()
    place = document(whole, "text").pictures[0]
    assert pictures.pixels(place).size == pictures.size(place) == (100, 200)


def test_a_document_that_makes_sense_without_it_loses_the_picture_alone(document):
    draft = document("before", plain(200, 200), "between", plain(20, 200), b"no picture", "after")
    kept = PictureSize()(draft, Pictures())
    assert isinstance(kept, Draft)
    assert [item.text if isinstance(item, Text) else item.name for item in kept.items] == [
        "before",
        "1.jpg",
        "between",
        "after",
    ]
    assert kept.lost == (
        Rejection("a:1 3.jpg", "picture side under 150", fault=False),
        Rejection("a:1 4.jpg", "picture does not decode", fault=True),
    )


def test_the_number_of_pictures_has_bounds(document, reason):
    step = PictureCount(least=1, most=2)
    one = plain(8, 8)
    assert [reason(step, document("text", *[one] * count, "more")) for count in range(4)] == [
        "fewer than 1 pictures",
        "",
        "",
        "more than 2 pictures",
    ]


def redness(picture: PIL.Image.Image) -> float:
    """A judge: the mean of the red channel, 0..1."""
    return sum(picture.resize((1, 1)).getpixel((0, 0))[:1]) / 255


def test_a_judge_of_the_users_decides(document, reason):
    red, green = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (8, 8), "green")
    step = Judged(redness, maximum=0.5, what="red")
    assert reason(step, document(red, "text")) == "picture is red"
    assert reason(step, document(green, "text")) == ""
    assert reason(Judged(lambda picture: float("nan")), document(green, "text")) == "picture is nsfw"


def test_bounds_that_nothing_passes_are_refused():
    with pytest.raises(UserError, match="min_side_px is 30 and max_side_px is 20; expected the first to be the lower"):
        PictureSize(min_side_px=30, max_side_px=20)
    with pytest.raises(UserError, match="least is 3 and most is 2"):
        PictureCount(least=3, most=2)
    with pytest.raises(UserError, match=r"max_aspect is 0.5; expected at least 1"):
        PictureSize(max_aspect=0.5)


sides = st.integers(1, 400)


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, low=sides, less=sides, aspect=st.floats(1, 8), more=st.floats(0, 8))
def test_a_wider_bound_keeps_all_that_a_narrow_one_does(document, reason, width, height, low, less, aspect, more):
    draft = document(plain(width, height), "text")
    narrow = PictureSize(min_side_px=low, max_aspect=aspect)
    wide = PictureSize(min_side_px=max(1, low - less), max_aspect=aspect + more)
    assert reason(narrow, draft) or not reason(wide, draft)
