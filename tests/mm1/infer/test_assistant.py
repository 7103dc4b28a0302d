"""A stored model answers a person, and says in one sentence why it cannot."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch

import mm1
from mm1.errors import UserError
from mm1.infer.assistant import Assistant
from mm1.sample import Image
from mm1.template import turn


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
