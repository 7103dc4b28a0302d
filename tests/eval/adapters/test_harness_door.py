"""What people get wrong before a harness is even started, and what is handed to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.adapters import door


@pytest.mark.parametrize(
    ("words", "lacking", "told"),
    [
        (["lm", "nowhere.ckpt", "--tasks", "piqa"], [], "nowhere.ckpt does not exist"),
        (["lmms", "CKPT", "--tasks", "mme"], ["lmms_eval"], "mm1-eval lmms expects it: pip install 'mm1[lmms]'"),
        (["lm", "CKPT", "--tasks", "piqa"], ["lm_eval"], "mm1-eval lm expects it: pip install 'mm1[lm]'"),
        (["lm", "COMMA", "--tasks", "piqa"], [], "has a comma or an equals sign"),
    ],
)
def test_a_fault_is_one_sentence(
    words: list[str], lacking: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    names = {"CKPT": tmp_path / "last.ckpt", "COMMA": tmp_path / "a,b.ckpt"}
    for path in names.values():
        path.write_bytes(b"")
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None if name in lacking else True)
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *(str(names.get(word, word)) for word in words)])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    assert told in capsys.readouterr().err


def test_our_options_become_the_models_and_theirs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, list[str]] = {}
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(door, "_hand_over", lambda harness, words: handed.update({harness: words}))
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"")
    door.run("lm", [str(path), "--tasks", "textcore,mine", "--dtype", "bfloat16", "--limit", "9", "--device", "cuda"])
    given = f"pretrained={path},dtype=bfloat16,max_positions=4096"
    tasks = ",".join((*door.TEXTCORE, "mine"))
    first = ["--model", "mm1", "--model_args", given, "--device", "cuda", "--tasks", tasks]
    assert handed["lm"] == [*first, "--limit", "9"]
    door.run("lmms", [str(path), "--tasks", "mme", "--template", "none"])
    assert f"pretrained={path},max_positions=4096,template=none" in handed["lmms"]


@pytest.mark.slow  # the harness looks through all its task files
def test_textcore_names_tasks_that_there_are() -> None:
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed (extra lm)")
    assert set(door.TEXTCORE) <= set(tasks.TaskManager().all_tasks)
