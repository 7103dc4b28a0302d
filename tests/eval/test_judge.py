"""Judges: a command, and a server of OpenAI's protocol on this machine; answers wait where there is none."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main, parser
from eval.harness import run
from eval.judge import Command, Server, Wording
from eval.prompts import Prompt, Settings
from eval.store import LEAKS
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.mm1 import MM1
from tests.eval import sft_releases as releases

SETTINGS = Settings(
    style="chat",
    shots=(0,),
    arms=("sighted",),
    tasks=("llava-bench/wild", "mm-vet"),
    captions=Prompt("{image}"),
    vqa=Prompt("{image}{question}"),
    choices=Prompt("{image}{question}"),
    open=Prompt("{image}{question}", stop=("User:",), max_new_tokens=3),
    icl=Prompt("{image}{question}"),
)


class Loopback:
    """A server on this machine that answers by what the prompt wants, after as many faults as it is told."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[int] = []
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                loopback.asked.append({"path": self.path, **body})
                loopback.keys.append(self.headers.get("Authorization"))
                if loopback.faults:
                    self.send_error(loopback.faults.pop())
                    return
                prompt = body["messages"][0]["content"]
                text = "8 6\nBecause." if "Assistant 1" in prompt else "0.5" if "Prediction" in prompt else "no idea"
                reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Loopback]:
    server = Loopback()
    yield server
    server.close()


@pytest.fixture
def answered(model: MM1, tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path) -> Path:
    """A run of both benchmarks, not judged."""
    releases.llava_bench(tmp_path / "data")
    releases.mm_vet(tmp_path / "data")
    scores = run(model, tokenizer, checkpoint, tmp_path / "data", SETTINGS, tmp_path / "out")
    assert [task["shots"]["0"]["sighted"] for task in scores["tasks"].values()] == [None, None]
    return tmp_path / "out"


def door(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words)])
    main()


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scores.json").read_text())


def test_a_server_judges_a_run(
    answered: Path, server: Loopback, model: MM1, tokenizer: Tokenizer, checkpoint: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("JUDGES_KEY", "secret")
    words = ["judge", answered, "--url", server.url, "--model", "umpire", "--key-variable", "JUDGES_KEY"]
    first = next(row["id"] for row in map(json.loads, (answered / "answers.jsonl").open()) if row["task"] == "mm-vet")
    (answered / LEAKS).write_text(json.dumps({"mm-vet": {"pictures": [first], "questions": []}}))
    door(monkeypatch, *words)
    assert "llava-bench/wild" in capsys.readouterr().out
    found = scores(answered)
    assert found["tasks"]["llava-bench/wild"]["shots"]["0"]["sighted"] == pytest.approx(75), "6 of 8"
    assert found["tasks"]["mm-vet"]["shots"]["0"]["sighted"] == pytest.approx(50)
    assert found["tasks"]["mm-vet"]["shots"]["0"]["clean_n"] == 1, "what was trained on is left out here, too"
    groups = found["tasks"]["llava-bench/wild"]["shots"]["0"]["groups"]
    assert {name: group["sighted"] for name, group in groups.items()} == {
        "conversation": pytest.approx(75),
        "detail": pytest.approx(75),
        "complex": pytest.approx(75),
    }
    assert found["judge"]["name"] == f"umpire at {server.url}"
    assert "{reference}" in found["judge"]["wording"]["llava_bench"]
    assert len(server.asked) == 5
    assert {(one["path"], one["model"], one["temperature"]) for one in server.asked} == {
        ("/v1/chat/completions", "umpire", 0)
    }
    assert set(server.keys) == {"Bearer secret"}
    door(monkeypatch, *words)
    assert len(server.asked) == 5, "opinions are kept and not asked for again"
    door(monkeypatch, "score", answered / "answers.jsonl")
    assert scores(answered)["tasks"] == found["tasks"], "scoring anew needs no judge"
    again = run(model, tokenizer, checkpoint, answered.parent / "data", SETTINGS, answered)
    assert again["tasks"]["llava-bench/wild"]["shots"] == found["tasks"]["llava-bench/wild"]["shots"], "nor a rerun"


def test_the_shipped_words_are_those_that_are_asked_without_a_file() -> None:
    shipped = Path(__file__).resolve().parents[2] / "configs" / "eval" / "judge" / "own.yaml"
    asked, plain = (
        parser().parse_args(["judge", "OUT", *config]).judge.as_dict() for config in (["--config", str(shipped)], [])
    )
    assert asked | {"config": None} == plain | {"config": None}


def test_a_command_judges_a_run_in_the_words_it_is_given(answered: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "words.yaml").write_text('mm_vet: "Is {answer} {reference}?"\n')
    program = tmp_path / "judge.py"
    program.write_text(
        "import sys\nprompt = sys.stdin.read()\nopen(sys.argv[1], 'a').write(prompt + chr(10))\n"
        "print('9 9' if 'Assistant' in prompt else 'perhaps')\n"
    )
    command = f"{sys.executable} {program} {tmp_path / 'heard'}"
    door(monkeypatch, "judge", answered, "--command", command, "--config", tmp_path / "words.yaml", "--at-once", 1)
    heard = (tmp_path / "heard").read_text()
    assert "-1 <AND> -5?" in heard
    assert "It is 0." in heard
    found = scores(answered)
    assert found["tasks"]["llava-bench/wild"]["shots"]["0"]["sighted"] == pytest.approx(100)
    assert found["tasks"]["mm-vet"]["shots"]["0"]["sighted"] is None, "an opinion that is no number is none"
    assert found["judge"]["unread"] == 2


def test_opinions_of_two_judges_never_make_one_score(answered: Path, monkeypatch) -> None:
    door(monkeypatch, "judge", answered, "--command", "echo 6 8")
    assert scores(answered)["tasks"]["llava-bench/wild"]["shots"]["0"]["sighted"] == pytest.approx(100 * 8 / 6)
    door(monkeypatch, "judge", answered, "--command", "echo no idea")
    found = scores(answered)
    assert found["judge"]["name"] == "echo no idea"
    assert found["tasks"]["llava-bench/wild"]["shots"]["0"]["sighted"] is None


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(server: Loopback, monkeypatch) -> None:
    patient = Server(server.url, "umpire", pause_s=0.01)
    server.faults = [503, 429]
    assert patient("Prediction?") == "0.5"
    assert len(server.asked) == 3
    server.faults = [401]
    with pytest.raises(UserError, match=r"gave no opinion \(401 Unauthorized\); see --url, --model and OPENAI_API_KEY"):
        patient("Prediction?")
    assert len(server.asked) == 4, "not again"
    server.faults = [500] * 9
    with pytest.raises(UserError, match="500"):
        Server(server.url, "umpire", tries=2, pause_s=0.01)("Prediction?")


def test_opinions_so_far_are_kept_when_the_judge_gives_up(
    answered: Path, server: Loopback, monkeypatch, capsys
) -> None:
    words = ["judge", answered, "--url", server.url, "--model", "umpire", "--at_once", 1]
    server.faults = [403]
    with pytest.raises(SystemExit):
        door(monkeypatch, *words)
    assert "gave no opinion (403 Forbidden)" in capsys.readouterr().err
    door(monkeypatch, *words)
    assert scores(answered)["tasks"]["mm-vet"]["shots"]["0"]["sighted"] == pytest.approx(50)
    assert len((answered / "judgements.jsonl").read_text().splitlines()) == 5


def test_braces_in_an_answer_stay_what_they_are() -> None:
    from eval.judge import _filled

    told = {"question": "a {b}?", "reference": "{}", "answer": "{answer} {0}", "context": ""}
    assert _filled("{question}|{reference}|{answer}|{{}}", told) == "a {b}?|{}|{answer} {0}|{}"
    with pytest.raises(UserError, match=r"mm_vet has \{truth\}; expected answer, context, question, reference"):
        Wording(mm_vet="{truth}").check()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "neither of command and url are given"),
        (["--command", "x", "--url", "http://localhost"], "both of command and url"),
        (["--url", "http://localhost:1/v1"], "model is not given"),
        (["--url", "localhost", "--model", "x"], "url is 'localhost'; expected http://"),
        (["--command", "no-such-program"], "the judge 'no-such-program' failed"),
        (["--command", "false"], "the judge 'false' failed"),
        (["--command", "x", "--at_once", "0"], "at_once is 0"),
        (["--command", ""], "command is empty; expected a program"),
        (["--command", 'say "8 9'], "(No closing quotation); expected a program"),
        (["--command", "x", "--mm_vet", "{"], "mm_vet cannot be filled in (Single '{' encountered"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    answer = {"task": "mm-vet", "shots": 0, "arm": "sighted", "id": "1", "image": "a", "answer": "red", "score": None}
    answer |= {"references": ["red"], "question": "What?", "metric": "mm_vet"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(answer) + "\n")
    with pytest.raises(SystemExit):
        door(monkeypatch, "judge", tmp_path, *words)
    assert told in capsys.readouterr().err


def test_a_run_without_long_answers_has_nothing_to_judge(tmp_path: Path, monkeypatch, capsys) -> None:
    answer = {"task": "vqa/x", "shots": 0, "arm": "sighted", "id": "1", "image": "a", "answer": "red", "score": 1.0}
    (tmp_path / "answers.jsonl").write_text(json.dumps({**answer, "references": ["red"], "question": "What?"}) + "\n")
    with pytest.raises(SystemExit):
        door(monkeypatch, "judge", tmp_path, "--command", "cat")
    assert "holds no answer that a judge reads" in capsys.readouterr().err


def test_a_command_that_takes_too_long_is_told() -> None:
    with pytest.raises(UserError, match="timed out"):
        Command("sleep 5", timeout_s=0.2)("x")
