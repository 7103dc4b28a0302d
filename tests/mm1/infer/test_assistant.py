"""A stored model answers a person, and says in one sentence why it cannot."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml

import mm1
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.assistant import Assistant
from mm1.infer.talk import conversation
from mm1.model.build import build
from mm1.sample import Image, Text
from mm1.template import turn
from tests.mm1.conftest import TINY


@pytest.fixture
def assistant(tiny_checkpoint: Path) -> Assistant:
    return mm1.load(tiny_checkpoint)


def png(colour: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (10, 10), colour).save(file, "PNG")
    return file.getvalue()


def test_a_picture_may_be_a_path_bytes_or_an_image(assistant: Assistant, tmp_path: Path) -> None:
    data = png("red")
    path = tmp_path / "red.png"
    path.write_bytes(data)
    forms = [path, str(path), data, PIL.Image.open(path)]
    assert len({assistant.generate([form], "What is this?", max_new_tokens=6) for form in forms}) == 1
    assert len({assistant.generate(form, "What is this?", max_new_tokens=6) for form in forms}) == 1


def test_text_is_asked_through_the_chat_template(assistant: Assistant) -> None:
    prompt = [Image(png("red")), *turn("What is this?")]
    [(_, expected)] = assistant.engine.generate([prompt], 6)
    assert assistant.generate([png("red")], "What is this?", 6) == expected
    raw = assistant.generate([png("red")], "User: What is this?\nAssistant:", 6, template="none")
    assert raw == expected


def test_nothing_but_a_picture_is_a_prompt_for_a_caption(assistant: Assistant) -> None:
    [(_, expected)] = assistant.engine.generate([[Image(png("blue"))]], 6)
    assert assistant.generate([png("blue")], max_new_tokens=6, template="none") == expected


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", r"nowhere\.jpg is not readable \(No such file"),
        (b"no picture", r"picture is not readable \(picture does"),
    ],
)
def test_a_bad_picture_is_named(assistant: Assistant, picture: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assistant.generate([picture], "What?")


def test_a_template_that_is_not_there_is_told(assistant: Assistant) -> None:
    with pytest.raises(UserError, match="template is 'caht'; expected chat or none"):
        assistant.generate([], "What?", template="caht")


def test_a_device_that_is_not_there_is_told(tiny_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="device 'warp' cannot be used"):
        mm1.load(tiny_checkpoint, device="warp")


def test_a_model_runs_in_the_type_it_is_asked_to(tiny_checkpoint: Path, assistant: Assistant) -> None:
    half = mm1.load(tiny_checkpoint, dtype="bfloat16")
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}
    assert half.model.mean_C11.dtype == torch.float32, "a mean of 8 bits would shift every picture"
    assert isinstance(half.generate([png("red")], "What is this?", 6), str)
    prompts = [[Image(png("red")), *turn("What is this?")], [Image(png("blue"))]]
    exact = assistant.engine.score(prompts, ["red circle", "a dako"])
    assert half.engine.score(prompts, ["red circle", "a dako"]) == pytest.approx(exact, rel=0.02)
    assert {value.dtype for value in mm1.load(tiny_checkpoint, dtype="float32").model.parameters()} == {torch.float32}
    with pytest.raises(UserError, match="dtype is 'half'; expected bfloat16 or float32"):
        mm1.load(tiny_checkpoint, dtype="half")


def test_loading_imports_no_lightning(tiny_checkpoint: Path) -> None:
    check = f"import sys, mm1; mm1.load({str(tiny_checkpoint)!r}); sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(mm1.__file__).parents[1]).returncode == 0


def said(pieces: list) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_stream_says_what_generate_says(assistant: Assistant) -> None:
    for stop in ((), ("a", "so"), ("e",)):
        expected = assistant.generate([png("red")], "What is this?", 12, stop=stop)
        pieces = list(assistant.stream([png("red"), "What is this?"], max_new_tokens=12, stop=stop))
        assert said(pieces) == expected
        assert all(piece.experts == {} for piece in pieces)


def test_a_stream_leaves_the_caller_in_his_own_mode(assistant: Assistant) -> None:
    for _ in assistant.stream("What?", max_new_tokens=4):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_a_conversation_is_spelled_as_it_was_trained(tmp_path: Path) -> None:
    red, blue = png("red"), png("blue")
    (tmp_path / "red.png").write_bytes(red)
    once = [([tmp_path / "red.png", "What is this?"], "a square")]
    asked = ["Is", blue, "the same?"]
    assert conversation(asked, once, instructions="Be brief.") == [
        Text("System: Be brief.\n", learn=False),
        Image(red),
        *turn("What is this?", "a square"),
        Text("User: Is ", learn=False),
        Image(blue),
        Text(" the same?\nAssistant:", learn=False),
    ]
    assert conversation(["Describe:", red]) == [Image(red), *turn("Describe:")]
    shots = [([red], "a red square"), ([blue], "a blue square")]
    plain = [Image(red), Text("a red square"), Image(blue), Text("a blue square"), Image(red)]
    assert conversation([red], shots, template="none") == plain


def test_a_drawn_answer_belongs_to_its_seed(assistant: Assistant) -> None:
    def draw(seed: int, **given: float) -> str:
        return said(list(assistant.stream("What?", max_new_tokens=12, seed=seed, **given)))

    assert draw(3, temperature=1.5) == draw(3, temperature=1.5)
    assert len({draw(seed, temperature=1.5) for seed in range(5)}) > 1
    assert draw(3, temperature=1.5, top_p=1e-6) == draw(4) == draw(4, temperature=1.5, top_k=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "temperature is -1; expected"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0; expected more than 0"),
        ({"template": "caht"}, "template is 'caht'"),
        ({"max_new_tokens": 5000}, "expected at most 4096"),
    ],
)
def test_a_stream_refuses_before_its_first_piece(assistant: Assistant, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assistant.stream("What?", **given)


def test_a_stream_tells_the_experts_of_each_token(stored_tiny: dict) -> None:
    tree = yaml.safe_load((TINY.parent / "tiny_moe.yaml").read_text().replace("2048", "310"))
    model = build(tree, device="cpu")
    model.init_weights(seed=0)
    pieces = list(
        Assistant(model, Tokenizer.from_bytes(stored_tiny["mm1"]["tokenizer"])).stream("What?", max_new_tokens=5)
    )
    assert len(pieces) == 5
    assert {layer for piece in pieces for layer in piece.experts} == {1, 3}
    assert all(len({*experts}) == 2 for piece in pieces for experts in piece.experts.values())
    prompt = conversation("What?")
    ids = Assistant(model, Tokenizer.from_bytes(stored_tiny["mm1"]["tokenizer"])).engine._encode(prompt, 5).tokens
    tokens_BT = torch.cat((ids, torch.tensor([piece.token for piece in pieces])))[None]
    found: dict[int, torch.Tensor] = {}
    for index in (1, 3):
        router = model.decoder.layers[index].ffn.router
        router.register_forward_hook(
            lambda m, i, routing, index=index: found.update({index: routing.choice.experts_MK})
        )
    with torch.inference_mode():
        model.decoder(
            model.decoder.embedding(tokens_BT), torch.ones_like(tokens_BT), torch.arange(tokens_BT.shape[1])[None]
        )
    for place, piece in enumerate(pieces, start=len(ids)):
        assert piece.experts == {layer: tuple(experts[place].tolist()) for layer, experts in found.items()}
