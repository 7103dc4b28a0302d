"""Our scorers beside lmms-eval's copies of the benchmarks' own scripts, on answers made up at random (extra lmms)."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (extra lmms, about a hundred packages)")

from eval.metrics import judged, mmmu
from eval.metrics.benchmarks import MMBench
from eval.metrics.metric import Gold
from eval.metrics.text import relaxed

WORDS = ["A", "B", "C", "(A)", "(B).", "C.", "red", "green", "blue", "the", "answer", "is", "so", "=", "3.5", "1,000"]
WORDS += [
    "therefore",
    "could",
    "be",
    "4",
    "-2",
    "1e-3",
    "\n",
    ".",
    "a",
    "x",
    "result",
    "final",
    ":",
    "Red.",
    "A,",
    ":B",
]
CHOICES = ("red", "green", "a blue x")


def said(chance: random.Random) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(chance.randrange(0, 12)))


@pytest.mark.slow  # the harness imports for half a minute
def test_mmmu() -> None:
    from lmms_eval.tasks._task_utils.mmmu_mcq_utils import parse_mmmu_multi_choice_response
    from lmms_eval.tasks.mmmu.utils import eval_open, parse_open_response

    chance = random.Random(0)
    names = dict(zip("ABC", CHOICES, strict=True))
    for _ in range(3000):
        answer = said(chance)
        ours = mmmu.letter_of(answer, CHOICES)
        drawn = {parse_mmmu_multi_choice_response(answer, list("ABC"), names) for _ in range(12)}
        assert drawn == {ours} if ours else len(drawn) > 1, answer
        assert mmmu.readings(answer) == set(parse_open_response(answer)), answer
        for references in (["3.5"], ["red", "1000"], ["a"]):
            right = eval_open(references if len(references) > 1 else references[0], parse_open_response(answer))
            assert mmmu.is_right(answer, tuple(references)) == right, answer


@pytest.mark.slow
def test_mmbench() -> None:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    theirs, chance = MMBench_Evaluator(), random.Random(1)
    metric = MMBench([Gold("1", ("red",), choices=CHOICES, about={"letter": "A"})])
    for _ in range(3000):
        answer = said(chance)
        assert (metric.read("1", answer) or False) == theirs.can_infer(
            answer, dict(zip("ABC", CHOICES, strict=True))
        ), answer


@pytest.mark.slow
def test_mathvista_and_chartqa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    pytest.importorskip("Levenshtein", reason="lmms-eval's MathVista wants it and does not bring it")
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness
    from lmms_eval.tasks.mathvista.mathvista_evals import MathVistaEvaluator

    chance = random.Random(2)
    normalize = MathVistaEvaluator.__new__(MathVistaEvaluator).normalize_extracted_answer
    for _ in range(2000):
        kind = chance.choice(["multi_choice", "free_form"])
        about = {"question_type": kind, "answer_type": chance.choice(["integer", "float", "list"]), "precision": 1}
        about["choices"] = list(CHOICES) if kind == "multi_choice" else []
        found = chance.choice([said(chance), "3.46", "12", "(B)", "C", "[1, 2]"]).strip()
        theirs = normalize(found, about["choices"], kind, about["answer_type"], 1)
        assert judged.typed(found, about) == theirs, (found, about)
        first, second = (chance.choice(["3.5", "3.6", "35%", "0.35", "red", "Red", "0", "0.0", "12"]) for _ in "ab")
        assert relaxed(first, second) == relaxed_correctness(first, second), (first, second)
