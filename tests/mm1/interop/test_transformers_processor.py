"""What transformers feeds the model is what mm1 feeds it: pixel for pixel and id for id."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from data_pipelines.train_tokenizer import take_tokenizer
from mm1.batch import IMAGE, ImageSpec
from mm1.data.encode import prompt
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.interop.export import export
from mm1.interop.transformers_mm1 import MM1ImageProcessor, MM1Processor
from mm1.sample import Image, Text
from mm1.template import conversation, turn
from tests.mm1.data.hf_folders import KINDS
from tests.mm1.interop.exported import checkpoint, file_of, picture, tokenizer

EACH = 4  # tokens a picture
PARTS = [" ", "\n", "red", "rrr", "😀", "漢", "\x00", "▁", "<0x41>"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, MM1Processor]]:
    """Our tokenizer and transformers' processor of models with every kind of vocabulary."""
    made = {}
    for kind in ("sentencepiece", *KINDS):
        place = tmp_path_factory.mktemp(kind)
        ours = tokenizer(kind, place, grown=kind != "gpt2")
        folder = export(checkpoint(place / "a.ckpt", ours), place / "model", to="transformers")
        made[kind] = ours, AutoProcessor.from_pretrained(folder)
    return made


def same(ours: Tokenizer, processor: MM1Processor, items: Any, ids: list[int]) -> bool:
    tokens = prompt(items, ours, EACH).tokens
    return tokens.where(tokens != IMAGE, processor.image_token_id).tolist() == ids


@pytest.mark.parametrize("kind", ["sentencepiece", *KINDS])
@given(text=st.text() | st.lists(st.sampled_from(PARTS)).map("".join))
@example(text="<image>")
@example(text="a</s>")
def test_any_text_has_the_same_ids(opened: dict[str, tuple[Tokenizer, MM1Processor]], kind: str, text: str) -> None:
    ours, processor = opened[kind]
    added = processor.tokenizer.added_tokens_decoder.values()  # Hypothesis knows their names from our code
    assume(not any(token.special and token.content in text for token in added))
    assert same(ours, processor, [Text(text)], processor(text=text)["input_ids"][0])
    ids = processor(images=picture(0), text="<image>" + text)["input_ids"][0]
    assert same(ours, processor, [Image(b""), Text(text)], ids)


def test_names_of_control_tokens_are_the_tokens_in_transformers(
    opened: dict[str, tuple[Tokenizer, MM1Processor]],
) -> None:
    """The one difference: in mm1 no text becomes a control token."""
    ours, processor = opened["sentencepiece"]
    assert ours.eos in processor(text="a</s>")["input_ids"][0]
    assert ours.eos not in ours.encode("a</s>")


@pytest.mark.parametrize("kind", ["sentencepiece", *KINDS])
def test_a_conversation_is_written_as_training_wrote_it(
    opened: dict[str, tuple[Tokenizer, MM1Processor]], kind: str
) -> None:
    ours, processor = opened[kind]
    image = {"type": "image", "image": picture(0)}
    asked = {"role": "user", "content": [image, {"type": "text", "text": "  What is\n this? "}]}
    found = processor.apply_chat_template(
        [asked], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    items: list[Text | Image] = [Image(b""), *turn("What is\n this?")]
    assert same(ours, processor, items, found["input_ids"][0].tolist())
    assert found["pixel_values"].shape == (1, 1, 3, 28, 28)

    said = {"role": "assistant", "content": "red square"}
    again = {"role": "user", "content": "and left?"}
    ids = processor.apply_chat_template([asked, said, again, said], tokenize=True)[0]
    items = [*conversation([b""], [("What is\n this?", "red square"), ("and left?", "red square")])]
    if kind in ("llama3", "qwen"):  # a sign begins a word there: ":red" is one, where training read ":" and "red"
        assert ours.decode(ids) == ours.decode(prompt(items, ours, EACH).tokens[EACH + 1 :].tolist())
    else:
        assert same(ours, processor, items, ids)
    open_end = processor.apply_chat_template([asked])
    assert open_end.endswith("this?")
    with pytest.raises(Exception, match="the role system; expected user or assistant"):
        processor.apply_chat_template([{"role": "system", "content": "Be kind."}, asked])


def test_the_tokenizer_alone_begins_texts_too(tmp_path: Path) -> None:
    ours = tokenizer("sentencepiece", tmp_path)
    folder = export(checkpoint(tmp_path / "a.ckpt", ours), tmp_path / "model", to="transformers")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs("a red square").input_ids == [ours.bos, *ours.encode("a red square")]
    assert theirs.decode(ours.encode("a red  square\n")) == "a red  square\n"
    assert AutoImageProcessor.from_pretrained(folder).spec.size_px == 28
    assert take_tokenizer(folder, tmp_path / "corpus").proto == ours.proto


def test_rows_take_their_pictures_in_order(opened: dict[str, tuple[Tokenizer, MM1Processor]]) -> None:
    _, processor = opened["sentencepiece"]
    text = ["<image>one", "two", "<image><image>three"]
    pictures = [picture(seed) for seed in range(3)]
    flat = processor(images=pictures, text=text, return_tensors="pt")
    nested = processor(images=[pictures[:1], [], pictures[1:]], text=text, return_tensors="pt")
    assert flat["pixel_values"].shape == (3, 2, 3, 28, 28)
    assert not flat["pixel_values"][0, 1].any()
    assert not flat["pixel_values"][1].any()
    assert all(torch.equal(flat[name], nested[name]) for name in flat)
    assert "pixel_values" not in processor(text=text[1], return_tensors="pt")
    spec = processor.image_processor.spec
    expected = torch.stack([prepare(file_of(image), spec) for image in pictures[1:]])
    assert torch.equal(flat["pixel_values"][2], expected)
    assert torch.equal(processor(images=pictures[1])["pixel_values"][0, 0], expected[0])


def files() -> dict[str, bytes]:
    """Pictures that are easily prepared wrongly."""
    rng = numpy.random.default_rng(0)
    noise = picture(0, 50, 30)
    clear = noise.copy()
    clear.putalpha(PIL.Image.fromarray(rng.integers(0, 255, (30, 50), dtype=numpy.uint8)))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    deep = PIL.Image.fromarray(rng.integers(0, 65535, (30, 50), dtype=numpy.uint16))
    return {
        "plain": file_of(noise),
        "transparent": file_of(clear),
        "turned": file_of(noise, "JPEG", exif=turned),
        "deep": file_of(deep),
        "grey": file_of(noise.convert("L")),
        "palette": file_of(noise.convert("P")),
        "print": file_of(noise.convert("CMYK"), "JPEG"),
    }


@pytest.mark.parametrize("name", files())
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_pixels_are_those_of_training(name: str, resize: Any, tmp_path: Path) -> None:
    data, spec = files()[name], ImageSpec(24, 4, resize=resize, interpolation="bilinear")
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = prepare(data, spec)
    processor = MM1ImageProcessor.of(spec)
    coded = base64.b64encode(data).decode()
    forms = [data, path, str(path), f"file://{path}", coded, f"data:image/png;base64,{coded}"]
    for form in [*forms, PIL.Image.open(io.BytesIO(data))]:
        assert torch.equal(processor(form)["pixel_values"][0, 0], expected)


def test_arrays_and_tensors_are_pictures() -> None:
    spec, image = ImageSpec(24, 4), picture(0)
    array = numpy.asarray(image)
    for form in (array, torch.from_numpy(array.copy()), array.transpose(2, 0, 1)):
        found = MM1ImageProcessor.of(spec)([[form]])["pixel_values"][0, 0]
        assert torch.equal(found, prepare(file_of(image), spec))


@pytest.mark.parametrize(
    ("images", "text", "told"),
    [
        (["nowhere.jpg"], "<image>", r"the picture nowhere\.jpg is not readable \(no such file\)"),
        ([b"no picture"], "<image>", r"a picture \(bytes\) is not readable \(picture does not decode\)"),
        ([object()], "<image>", r"a picture \(object\) is not readable"),
        ([b"", b""], "<image>", r"\[1\] places \(<image>\) for \[2\] pictures"),
        (None, ["a", "<image>"], r"\[0, 1\] places \(<image>\) for \[0, 0\] pictures"),
        ([[b""], []], ["a", "<image>"], r"\[0, 1\] places \(<image>\) for \[1, 0\] pictures"),
    ],
)
def test_what_does_not_fit_is_told(
    opened: dict[str, tuple[Tokenizer, MM1Processor]], images: Any, text: Any, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        opened["sentencepiece"][1](images=images, text=text)
    with pytest.raises(UserError, match="videos or audio"):
        opened["sentencepiece"][1](text="a", videos=["film.mp4"])
