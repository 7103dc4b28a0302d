"""What a door makes of a fault: one line that says what was found, what was expected and where, and exit code 2."""

from __future__ import annotations

import io
import math
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jsonargparse
import pytest

from mm1.errors import UserError, at_least, door, sentence


class Wheel:
    def __init__(self, spokes: int = 3) -> None: ...


class Axle:
    def __init__(self, width: int, kind: Literal["live", "dead"] = "live") -> None: ...


class Cart:
    def __init__(
        self, wheels: dict[str, Wheel], speed: float | None = None, axle: Callable[[int], Axle] | None = None
    ) -> None: ...


def parsed(*words: str) -> object:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(Cart, "cart")
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--crat", "3"], "unrecognized arguments: --crat 3"),
        (["--cart=Cart", "--cart.wheels={}", "--cart.speed=fast"], "cart.speed: Expected a float; Given value: fast"),
        (
            ["--cart=Cart", "--cart.wheels={left: {class_path: Wheel, init_args: {spoks: 3}}}"],
            "cart.wheels: Option 'spoks' is not accepted",
        ),
        (
            ["--cart=Cart", "--cart.wheels={left: {class_path: Wheel, init_args: {spokes: many}}}"],
            "cart.wheels.spokes: Expected an int. Got value: many",
        ),
        (
            [
                "--cart=Cart",
                "--cart.wheels={}",
                f"--cart.axle={{class_path: {__name__}.Axle, init_args: {{kind: odd}}}}",
            ],
            "cart.axle.kind: Expected one of 'live', 'dead'. Got value: odd",
        ),
    ],
)
def test_a_parser_s_complaint_is_a_path_and_what_is_wrong_there(words: list[str], told: str) -> None:
    with pytest.raises(ArgumentError) as error:
        parsed(*words)
    assert sentence(error.value) == told


def test_a_typo_in_a_yaml_named_by_a_yaml_is_not_called_a_loop(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(f"class_path: {__name__}.Cart\ninit_args: {{sped: 3}}\n")
    (tmp_path / "run.yaml").write_text("cart: cart.yaml\n")
    with pytest.raises(ArgumentError) as error:
        parsed("--config", str(tmp_path / "run.yaml"))
    assert sentence(error.value).startswith("cart: Option 'sped' is not accepted")


def test_numbers_that_are_too_small_are_named() -> None:
    at_least(0, {"data.workers": 0, "data.seed": 4})
    with pytest.raises(UserError, match=r"^data\.seed is -1; expected at least 0$"):
        at_least(0, {"data.workers": 0, "data.seed": -1})
    with pytest.raises(UserError, match=r"^threads is None"):
        at_least(1, {"threads": None})
    with pytest.raises(UserError, match=r"^rate is nan"):
        at_least(0, {"rate": math.nan})


def told(main: Callable[[], object], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        door(main)
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.strip()


def test_what_the_system_refuses_is_said_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    message = told((tmp_path / "file" / "run").mkdir, 2, capsys)
    assert message.startswith(f"error: {tmp_path}/file/run cannot be used (Not a directory); expected a path")
    message = told(lambda: (tmp_path / "file").read_text()[:0] or Path("/dev/full").write_text("x"), 2, capsys)
    assert "(No space left on device)" in message
    message = told(lambda: (tmp_path / "file").replace(tmp_path / "no folder" / "file"), 2, capsys)
    assert message.startswith(f"error: {tmp_path}/no folder/file cannot be used (No such file or directory)")


def test_a_yaml_that_is_no_text_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x81")
    with pytest.raises(SystemExit, match="2"):
        door(lambda: parsed("--config", str(tmp_path / "c.yaml")))
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert "no text ('utf-8' codec can't decode byte 0xff in position 0" in told


def test_a_user_s_fault_and_ctrl_c_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def faulty() -> None:
        raise UserError("the YAML is wrong\n  in line 3")

    def stopped() -> None:
        os.kill(os.getpid(), 2)

    assert told(faulty, 2, capsys) == "error: the YAML is wrong; in line 3"
    assert told(stopped, 130, capsys).startswith("interrupted; what was finished is kept")


def test_a_fault_of_ours_keeps_its_stack_trace() -> None:
    with pytest.raises(ZeroDivisionError):
        door(lambda: 1 / 0)


def test_a_terminal_of_few_letters_is_told_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_shown, encoding="ascii"))
    door(lambda: print("8† shots", flush=True))
    assert bytes_shown.getvalue() == b"8? shots\n"
