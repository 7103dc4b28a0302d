"""A picture in several views: which, in what order, of which pixels, and at what price; the same for every caller."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from mm1.batch import IMAGE, ImageSpec
from mm1.data.encode import encode, picture_positions, prompt, text_tokens
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer, train
from mm1.errors import UserError
from mm1.infer.engine import Engine
from mm1.model.build import build
from mm1.sample import Image, Part, Sample, Text, Views, expand

TINY = Path(__file__).resolve().parents[3] / "configs" / "model" / "tiny.yaml"
TOKENIZER = Tokenizer.from_bytes(train(["what is in field one, two, 0 1 2 3 4 of it: [1,2]", "a red circle"] * 20, 300))
MM1_VIEWS = Views(rows=2, columns=2)


def drawn(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack((across, down, np.zeros_like(across)), axis=-1).round().astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_one_of_1344_is_five_of_672_and_720_tokens() -> None:
    """The arithmetic of MM1, section 5."""
    items = [Image(drawn(8, 8)), Text("what is it")]
    shown = expand(items, MM1_VIEWS)
    assert [item.part for item in shown[:-1] if isinstance(item, Image)] == [
        None,
        *(Part(row, column, 2, 2) for row in (0, 1) for column in (0, 1)),
    ]
    assert int((prompt(shown, TOKENIZER, 144).tokens == IMAGE).sum()) == 720
    assert MM1_VIEWS.count == 5
    assert picture_positions(MM1_VIEWS, TOKENIZER, 144) == 720


def test_order_and_separators() -> None:
    picture = Image(b"p")
    last = Views(rows=1, columns=2, overview="last", separator="[{row},{column}]")
    words = [item.text if isinstance(item, Text) else item.part for item in last.of(picture)]
    assert words == ["[1,1]", Part(0, 0, 1, 2), "[1,2]", Part(0, 1, 1, 2), "[0,0]", None]
    assert not any(item.learn for item in last.of(picture) if isinstance(item, Text))
    assert [type(item) for item in Views(rows=3, columns=1, overview="none").of(picture)] == [Image] * 3
    numbered = Views(rows=1, columns=2, separator="{number}:").of(picture)
    assert [item.text for item in numbered if isinstance(item, Text)] == ["0:", "1:", "2:"]
    document = Sample(tuple(expand([picture, Text("a red circle")], last)), "sft", "0")
    text = text_tokens(document.items, TOKENIZER)
    assert len(encode(document, TOKENIZER, 7).tokens) == text + 3 * 7
    alone = Sample((Text("a red circle"),), "sft", "0")
    assert text - text_tokens(alone.items, TOKENIZER) == picture_positions(last, TOKENIZER, 7) - 3 * 7


def test_a_picture_that_is_to_cost_little_stays_whole_and_views_are_never_cut_again() -> None:
    items = [Image(b"early", views="whole"), Text("a"), Image(b"late")]
    shown = expand(items, MM1_VIEWS)
    assert sum(isinstance(item, Image) for item in shown) == 1 + 5
    assert expand(shown, MM1_VIEWS) == shown
    assert expand(items, Views()) == items
    assert Views(overview="none").of(items[0]) == (items[0],)


@pytest.mark.parametrize("size", [(128, 128), (500, 300), (9, 4)])  # larger and smaller than the grid
def test_fields_put_together_are_the_picture_at_the_size_of_the_grid(size: tuple[int, int]) -> None:
    spec, data = ImageSpec(size_px=32, tokens=16), drawn(*size)
    fields = [prepare(item, spec) for item in Views(rows=2, columns=3, overview="none").of(Image(data))]
    rows = [torch.cat(fields[start : start + 3], dim=2) for start in (0, 3)]
    expected = PIL.Image.open(io.BytesIO(data)).resize((96, 64), PIL.Image.Resampling.BICUBIC)
    assert torch.equal(torch.cat(rows, dim=1), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    whole = Views(rows=2, columns=3).of(Image(data))[0]
    assert isinstance(whole, Image)
    assert torch.equal(prepare(whole, spec), prepare(data, spec))


def test_fields_of_a_wide_picture_are_padded_or_cut_as_the_encoder_wants() -> None:
    data = drawn(400, 100)
    padded = ImageSpec(32, 16, mean=(0.5, 0.5, 0.5), resize="pad")
    above, _, below, _ = (prepare(item, padded) for item in Views(rows=2, columns=2, overview="none").of(Image(data)))
    assert (above[:, :24] == 128).all()  # 64 x 64 with the picture 16 high in its middle
    assert (below[:, 8:] == 128).all()
    assert not (above[0, 24:] == 128).all()
    cut = ImageSpec(32, 16, resize="crop")
    left, right, *_ = (prepare(item, cut) for item in Views(rows=2, columns=2, overview="none").of(Image(data)))
    assert left[0].min() > 90  # the middle quarter of its width
    assert right[0].max() < 165


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found = build(TINY, device="cpu")
    found.init_weights(seed=0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return found.eval()


def test_the_engine_shows_what_the_model_takes(model) -> None:
    """The same answer as for views given one by one, and other than for the whole picture."""
    items = [Image(drawn(300, 200)), Text("what is")]
    model.views = Views(rows=2, columns=1, separator="{number}:")
    engine = Engine(model, TOKENIZER)
    scores = engine.score([items, [Image(items[0].data, "whole"), items[1]]], [" in a red circle"] * 2)
    assert engine._features.encoded == 3  # the whole picture and its overview are one
    shown = expand(items, model.views)
    model.views = Views()
    plain = Engine(model, TOKENIZER)
    by_hand, whole = plain.score([shown, items], [" in a red circle"] * 2)
    assert scores == pytest.approx([by_hand, whole], abs=1e-4)
    assert by_hand != pytest.approx(whole, abs=1e-2)


def test_a_prompt_that_does_not_fit_is_refused_with_the_arithmetic(model) -> None:
    model.views = MM1_VIEWS
    try:
        with pytest.raises(UserError, match=r"2 pictures in 6 views x 16 = 96, text 1\) and 4 new tokens make 101"):
            Engine(model, TOKENIZER, max_positions=100).check([Image(b"", "whole"), Image(b"")], 4)
        Engine(model, TOKENIZER, max_positions=101).check([Image(b"", "whole"), Image(b"")], 4)
    finally:
        model.views = Views()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rows": 0}, r"views\.rows is 0; expected at least 1"),
        ({"overview": "middle"}, r"views\.overview is 'middle'; expected first, last or none"),
        ({"separator": "view {n}"}, r"views\.separator has \{n\}; expected text with"),
        ({"separator": "{"}, r"views\.separator has \{; expected"),
    ],
)
def test_views_that_cannot_be(wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Views(**wrong)
