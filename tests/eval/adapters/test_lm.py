"""lm-eval runs a checkpoint of ours, offline, on a task file and data of its own format."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra lm)")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from eval.__main__ import main
from eval.adapters.lm import MM1Texts
from mm1.errors import UserError
from tests.eval.conftest import write_rows

QUESTIONS = [
    {"question": "what colour is this?", "choices": ["red", "green", "a dako"], "gold": 0},
    {"question": "a picture of", "choices": ["green wupi", "red"], "gold": 1},
    {"question": "User: what", "choices": ["is this?", "dako", "green"], "gold": 0},
]
CHOICE = """
task: mini_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
ROLLING = """
task: mini_perplexity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
UNTIL = """
task: mini_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 5, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(offline: Path) -> Path:
    """A folder with three task files over one file of questions."""
    folder = offline / "tasks"
    write_rows(folder / "questions.jsonl", QUESTIONS)
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("until", UNTIL)):
        (folder / f"{name}.yaml").write_text(text.format(file=folder / "questions.jsonl"))
    return folder


@pytest.fixture
def lm(checkpoint: Path) -> MM1Texts:
    return MM1Texts(str(checkpoint))


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, at) for at, given in enumerate(arguments)]


@torch.inference_mode()
def directly(lm: MM1Texts, context: str, continuation: str) -> tuple[float, bool]:
    """The log-likelihood by one forward pass of the model over the ids of the whole, and nothing else of ours."""
    whole, before = lm.codec.encode(context + continuation), lm.codec.encode(context)
    tokens_1T = torch.tensor([[lm.codec.bos, *whole]])
    x_1TD = lm.mm1.decoder.embedding(tokens_1T)
    positions_1T = torch.arange(tokens_1T.shape[1])[None]
    hidden_1TD = lm.mm1.decoder(x_1TD, torch.ones_like(tokens_1T), positions_1T).hidden_BTD
    logs_TV = lm.mm1.decoder.logits(hidden_1TD)[0].log_softmax(-1)
    places = range(len(before), len(whole))
    return sum(float(logs_TV[at, whole[at]]) for at in places), all(logs_TV[at].argmax() == whole[at] for at in places)


def test_loglikelihood_is_what_the_model_says(lm: MM1Texts) -> None:
    pairs = [("what colour is this?", " red"), ("", "a green picture"), ("Question: what", " colour is this? Short")]
    found = lm.loglikelihood(instances("loglikelihood", *pairs))
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        assert (nats, greedy) == (pytest.approx(directly(lm, context, continuation)[0], abs=1e-4), greedy)
        assert greedy == directly(lm, context, continuation)[1]
    space = lm.loglikelihood(instances("loglikelihood", ("what colour is this? ", "red")))
    assert space[0][0] == pytest.approx(found[0][0], abs=1e-4), "a blank at the end of a context belongs to the answer"


def test_rolling_sums_every_token_once_in_windows(checkpoint: Path) -> None:
    text = "Question: what colour is this? Short answer: red a green picture " * 2
    whole = MM1Texts(str(checkpoint))
    [nats] = whole.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    assert nats == pytest.approx(directly(whole, "", text)[0], abs=1e-3)
    short = MM1Texts(str(checkpoint), max_positions=16)
    [cut] = short.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    assert cut != pytest.approx(nats, abs=1e-3)
    assert short.loglikelihood_rolling(instances("loglikelihood_rolling", ("",))) == [0.0]


def test_a_context_too_long_loses_its_beginning(checkpoint: Path) -> None:
    lm = MM1Texts(str(checkpoint), max_positions=20)
    text = "what colour is this? a green picture " * 5
    ids = lm.codec.encode(text + "red")
    said = ids[len(lm.codec.encode(text.rstrip())) :]
    kept = lm._reading(ids[: len(ids) - len(said)], said)
    assert list(kept.tokens) == [lm.codec.bos, *ids[-19:]]
    [cut] = lm._fitting(text, 6)
    assert text.endswith(cut.text)
    assert 0 < len(lm.codec.encode(cut.text)) <= 20 - 1 - 6
    assert lm.generate_until(instances("generate_until", (text, {"until": [], "max_gen_toks": 6}))) == [
        answer for _, answer in lm.engine.generate([[cut]], 6, [])
    ]
    with pytest.raises(UserError, match="an answer of 20 tokens does not fit max_positions, 20"):
        lm.generate_until(instances("generate_until", (text, {"max_gen_toks": 20})))
    with pytest.raises(UserError, match=r"a continuation of \d+ tokens does not fit max_positions, 20"):
        lm.loglikelihood(instances("loglikelihood", ("a", text)))


def test_answers_are_those_of_the_engine_whatever_they_are_asked_with(lm: MM1Texts) -> None:
    from mm1.sample import Text

    asked = [
        ("what colour is this?", {"until": ["\n"], "max_gen_toks": 5}),
        ("a green", {"until": "re", "max_new_tokens": 3, "do_sample": False, "temperature": 0.0}),
        ("dako", {"until": ["\n"], "max_gen_toks": 5}),
    ]
    found = lm.generate_until(instances("generate_until", *asked))
    for (context, kwargs), answer in zip(asked, found, strict=True):
        stop = [kwargs["until"]] if isinstance(kwargs["until"], str) else kwargs["until"]
        [(_, alone)] = lm.engine.generate([[Text(context)]], kwargs.get("max_gen_toks", 3), stop)
        assert answer == alone
    with pytest.raises(UserError, match="beams is 4 and temperature"):
        lm.generate_until(instances("generate_until", ("a", {"num_beams": 4, "do_sample": True})))


def test_the_harness_runs_it_by_name(checkpoint: Path, tasks: Path) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model="mm1",
        model_args={"pretrained": str(checkpoint)},
        tasks=["mini_choice", "mini_perplexity", "mini_until"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert found is not None
    lm = MM1Texts(str(checkpoint))
    right = 0
    for row in QUESTIONS:
        likely = [directly(lm, f"Question: {row['question']}\nAnswer:", f" {choice}")[0] for choice in row["choices"]]
        right += likely.index(max(likely)) == row["gold"]
    assert found["results"]["mini_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    nats = sum(directly(lm, "", row["question"])[0] for row in QUESTIONS)
    octets = sum(len(row["question"].encode()) for row in QUESTIONS)
    bits = -nats / octets / 0.6931471805599453
    assert found["results"]["mini_perplexity"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert found["results"]["mini_until"]["exact_match,none"] in (0, 1 / 3, 2 / 3, 1)


@pytest.mark.slow  # the harness looks through all its task files
def test_the_door_hands_over_to_the_harness(
    checkpoint: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    words = ["lm", checkpoint, "--tasks", "mini_choice", "--include-path", tasks, "--output_path", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["mm1-eval", *map(str, words), "--limit", "2", "--log_samples"])
    main()
    assert "mini_choice" in capsys.readouterr().out
    [results] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["n-samples"]["mini_choice"]["effective"] == 2


def test_a_chat_is_spelled_as_instruction_tuning_spelled_it(checkpoint: Path, tasks: Path, lm: MM1Texts) -> None:
    """Few-shot as turns: the string that the harness builds gives the ids of the training document."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model=lm, tasks=["mini_choice"], task_manager=manager, bootstrap_iters=0, apply_chat_template=True
    )
    assert found is not None
    [context, choice] = found["samples"]["mini_choice"][0]["arguments"][0]
    from mm1.data.encode import encode
    from mm1.sample import Sample
    from mm1.template import turn

    question = "Question: what colour is this?\nAnswer:"
    trained = encode(Sample(turn(question, "red"), "sft", "0"), lm.codec, 1).tokens.tolist()
    assert [lm.codec.bos, *lm.tok_encode(context + choice), lm.codec.eos] == trained
    assert lm._encode_pair(context, choice)[1] == lm.codec.encode("red")
