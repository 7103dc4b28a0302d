"""Text-only skills: numbers by hand, files as people have them, two checkpoints side by side."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mm1
from eval.__main__ import main
from eval.text_skills import Asked, Measured, measure, read_documents, read_questions, record, run, told
from mm1.data.tokenizer import Tokenizer, train
from mm1.infer.assistant import Assistant
from tests.eval.conftest import LINES, ROOT, write_rows

TEXT = "Question: what colour is this?\n\nShort answer: red\n\na green picture\n"


@pytest.fixture
def assistant(checkpoint: Path) -> Assistant:
    return mm1.load(checkpoint)


@torch.inference_mode()
def nats(assistant: Assistant, before: str, said: str) -> float:
    tokenizer, decoder = assistant.tokenizer, assistant.model.decoder
    whole, start = tokenizer.encode(before + said), len(tokenizer.encode(before))
    tokens_1T = torch.tensor([[tokenizer.bos, *whole]])
    hidden_1TD = decoder(decoder.embedding(tokens_1T), torch.ones_like(tokens_1T), torch.arange(len(whole) + 1)[None])
    logs_TV = decoder.logits(hidden_1TD.hidden_BTD)[0].log_softmax(-1)
    return sum(float(logs_TV[at, whole[at]]) for at in range(start, len(whole)))


def test_numbers_are_those_of_the_model(assistant: Assistant, tmp_path: Path) -> None:
    rows = [
        {"context": "what colour is this?", "choices": ["red", "a green picture"], "answer": 1},
        {"context": "a green", "choices": ["picture", "dako"], "answer": "picture", "id": "named"},
        {"context": "User: what is", "target": "this?"},
    ]
    write_rows(tmp_path / "q.jsonl", rows)
    questions = read_questions(tmp_path / "q.jsonl")
    found = measure(assistant, [("a", "a green picture"), ("b", "dako wupi")], questions, Asked())
    expected = [nats(assistant, "", text) for text in ("a green picture", "dako wupi")]
    assert [document[1] for document in found.documents] == pytest.approx(expected, abs=1e-4)
    octets = len("a green picture") + len("dako wupi")
    [numbers] = record(["ckpt"], [found], Asked())["models"]
    assert numbers["bits_per_byte"][0] == pytest.approx(-sum(expected) / math.log(2) / octets)
    tokens = sum(len(assistant.tokenizer.encode(text)) for text in ("a green picture", "dako wupi"))
    assert numbers["perplexity"][0] == pytest.approx(math.exp(-sum(expected) / tokens))
    first = [nats(assistant, rows[0]["context"], f" {choice}") for choice in rows[0]["choices"]]
    assert found.questions[0][1] == 100.0 * (first[1] > first[0])
    assert found.questions[0][2] == 100.0 * (first[1] / 15 > first[0] / 3)
    assert found.questions[1][0] == "named"


def test_windows_change_what_is_seen_and_not_what_is_scored(assistant: Assistant) -> None:
    documents = [("a", "what colour is this? a green picture " * 6)]
    whole, cut = (measure(assistant, documents, [], Asked(max_positions=length)) for length in (4096, 12))
    assert whole.documents[0][2:] == cut.documents[0][2:]
    assert whole.documents[0][1] != pytest.approx(cut.documents[0][1])


def test_a_chat_asks_as_instruction_tuning_did(assistant: Assistant, tmp_path: Path) -> None:
    write_rows(tmp_path / "q.jsonl", [{"context": "what is this?", "choices": ["dako", "red"], "answer": 0}])
    questions = read_questions(tmp_path / "q.jsonl")
    found = measure(assistant, [], questions, Asked(template="chat"))
    from mm1.template import turn

    likely = assistant.engine.score([turn("what is this?")] * 2, ["dako", "red"])
    assert found.questions[0][1] == 100.0 * (likely[0] > likely[1])


def test_change_is_paired_and_hand_counted() -> None:
    """Two documents of 10 tokens and 40 bytes; two questions, of which tuning loses one."""
    before = Measured([("a", -10.0, 10, 40), ("b", -30.0, 10, 40)], [("0", 100.0, 100.0), ("1", 100.0, 0.0)])
    after = Measured([("a", -10.0, 10, 40), ("b", -50.0, 10, 40)], [("0", 0.0, 100.0), ("1", 100.0, 0.0)])
    found = record(["base.ckpt", "chat.ckpt"], [before, after], Asked())
    assert found["models"][0]["perplexity"][0] == pytest.approx(math.e**2)
    assert found["models"][1]["bits_per_byte"][0] == pytest.approx(60 / math.log(2) / 80)
    assert found["change"]["perplexity"][0] == pytest.approx(math.e**3 - math.e**2)
    assert found["change"]["accuracy"] == [-50.0, -100.0, 0.0]
    assert found["change"]["accuracy_by_byte"] == [0.0, 0.0, 0.0]
    low, high = found["change"]["bits_per_byte"][1:]
    assert (low, high) == pytest.approx((0.0, 20 / math.log(2) / 40)), "drawn twice is a alone, or b alone"
    lines = told(found).splitlines()
    assert lines[0].split() == ["base.ckpt", "chat.ckpt", "change"]
    assert lines[3].startswith("bits a byte")
    assert json.dumps(found)
    alone = record(["base.ckpt"], [before], Asked())
    assert alone["change"] is None
    assert "change" not in told(alone)


def test_the_questions_that_come_along_are_whole() -> None:
    questions = read_questions(ROOT / "configs/eval/text_questions.jsonl")
    assert len(questions) == 48
    assert {len(set(question.choices)) for question in questions} == {4}
    assert len({question.right for question in questions}) == 4


def test_documents_as_people_have_them(tmp_path: Path, make_corpus: Callable[..., Path]) -> None:
    plain = tmp_path / "held.txt"
    plain.write_text("one\n\n\n\ntwo\r\n\r\n" + "x" * 9000 + "\n\nlast")
    assert [text for _, text in read_documents(plain)] == ["one\n\ntwo", "x" * 9000, "last"]
    write_rows(tmp_path / "held.jsonl", [{"text": "one"}, {"text": "  "}, {"text": "two"}])
    assert read_documents(tmp_path / "held.jsonl") == [("0", "one"), ("2", "two")]
    corpus = read_documents(make_corpus(text=17))
    assert len(corpus) == 4
    assert all("square is near." in text for _, text in corpus)
    assert len({name for name, _ in corpus}) == 4


def test_the_door_measures_two_checkpoints_on_the_same(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "held.txt").write_text(TEXT)
    write_rows(tmp_path / "q.jsonl", [{"context": "what is", "choices": ["red", "this?"], "answer": 1}])
    words = ["text", checkpoint, checkpoint, "--documents", tmp_path / "held.txt", "--questions", tmp_path / "q.jsonl"]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
    main()
    out = checkpoint.parent.parent / "eval" / "text" / "text.json"
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith(str(out))
    found = json.loads(out.read_text())
    assert found["models"][0] == found["models"][1]
    assert np.allclose(found["change"]["perplexity"], 0)


def test_perplexities_of_other_tokens_are_not_subtracted(checkpoint: Path, tmp_path: Path) -> None:
    """Half as many tokens for the same text are not twice as hard to say."""
    kept = torch.load(checkpoint, weights_only=True)
    other = tmp_path / "other.ckpt"
    tokenizer = Tokenizer.from_bytes(train(["green dako"] * 40 + LINES, 310)).proto
    torch.save({**kept, "mm1": {**kept["mm1"], "tokenizer": tokenizer}}, other)
    (tmp_path / "held.txt").write_text("a green picture")
    both = [str(checkpoint), str(other)]
    found = run(both, tmp_path / "held.txt", None, Asked())
    assert set(found["change"]) == {"bits_per_byte"}
    assert told(found).splitlines()[-1] == "the tokenizers differ: perplexities a token do not compare, bits a byte do"
    assert "perplexity" in run([both[0], both[0]], tmp_path / "held.txt", None, Asked())["change"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "neither documents nor questions are given"),
        (["--documents", "TMP/nowhere.txt"], "nowhere.txt is not readable as text"),
        (["--documents", "TMP/empty.txt"], "holds no text"),
        (["--documents", "TMP"], "manifest.json"),
        (["--questions", "TMP/wrong.jsonl"], "line 1 has choices ['a'] and answer 3"),
        (["--questions", "TMP/twice.jsonl"], "names 1 questions like another"),
        (["--documents", "TMP/empty.txt", "--overlap", "9", "--max_positions", "9"], "overlap is 9; expected less"),
        (["--questions", "TMP/good.jsonl", "--max_positions", "4"], "takes 12 positions; expected at most"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    words: list[str], message: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    write_rows(tmp_path / "wrong.jsonl", [{"context": "a", "choices": ["a"], "answer": 3}])
    write_rows(tmp_path / "good.jsonl", [{"context": "what colour is", "choices": ["this?", "red"], "answer": 0}])
    write_rows(tmp_path / "twice.jsonl", [{"id": 1, "context": "a", "target": "b"}] * 2)
    words = [word.replace("TMP", str(tmp_path)) for word in words]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", "text", str(checkpoint), *words])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
