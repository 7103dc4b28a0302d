"""What a model reads of a conversation, and where an answer ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from eval.serve.conversation import Conversation, Example, Reply, Turn, prompt
from eval.serve.speaker import Sampling, Speaker, label_of
from eval.serve.together import together
from eval.serve.uploads import Picture, picture_of
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.assistant import Assistant
from mm1.infer.talk import conversation
from mm1.infer.visits import watched, weighed
from mm1.model.build import build
from mm1.model.moe.layer import MoE
from mm1.sample import Image, Text
from tests.conftest import picture, tiny_model

EXAMPLE_PICTURE, FIRST, SECOND = (picture(colour, 3) for colour in ("green", "red", "blue"))


def shown(data: bytes) -> Picture:
    return picture_of(data, "a.png")


def talk(*turns: tuple[bytes | None, str, tuple[str, ...]]) -> Conversation:
    made = []
    for data, text, said in turns:
        made.append(Turn((shown(data),) if data else (), text, tuple(Reply(answer, done=True) for answer in said)))
    return Conversation(tuple(made))


def test_a_chat_is_written_as_the_library_writes_it() -> None:
    talked = talk((FIRST, "what?", ("red", "rot")), (SECOND, "and this?", ()))
    for model, said in enumerate(("red", "rot")):  # each model reads its own answers
        items = prompt([Example((shown(EXAMPLE_PICTURE),), "which?", "green")], talked, model, "chat")
        before = [([EXAMPLE_PICTURE, "which?"], "green"), ([FIRST, "what?"], said)]
        assert items == conversation([SECOND, "and this?"], before)


def test_plain_text_goes_on_from_what_stands_there() -> None:
    example = Example((shown(EXAMPLE_PICTURE),), "Question: which? Short answer: ", " green ")
    items = prompt([example], talk((FIRST, "Question: what? Short answer: ", ())), 0, "plain")
    expected = [
        Image(EXAMPLE_PICTURE),
        Text("Question: which? Short answer:"),
        Text("green\n", after_space=True),
        Image(FIRST),
        Text("Question: what? Short answer:"),
    ]
    assert items == expected


def test_a_caption_needs_no_text() -> None:
    items = prompt([Example((shown(EXAMPLE_PICTURE),), "", "a square")], talk((FIRST, "", ())), 0, "plain")
    assert items == [Image(EXAMPLE_PICTURE), Text("a square\n"), Image(FIRST)]


def test_a_turn_without_an_answer_is_left_out() -> None:
    talked = talk((FIRST, "what?", ("",)), (None, "hello", ()))
    assert prompt([], talked, 0, "chat") == conversation("hello")


@pytest.fixture(scope="module")
def speaker(tokenizer: Tokenizer) -> Speaker:
    return Speaker(random(tokenizer), "moe")


def random(tokenizer: Tokenizer) -> Assistant:
    model = build(tiny_model(experts=4), device="cpu")
    model.init_weights(seed=0)
    return Assistant(model, tokenizer, max_positions=256)


PROMPT = [Image(FIRST), Text("hello")]


def test_an_answer_grows_to_what_the_engine_says(speaker: Speaker) -> None:
    replies = list(speaker.say(PROMPT, Sampling(max_new_tokens=12), threading.Event()))
    [(_, text)] = speaker.assistant.engine.generate([PROMPT], 12)
    last = replies[-1]
    assert last.text == text
    assert "".join(token.text for token in last.tokens) == text
    assert last.count == 12
    assert last.note == "cut off at 12 tokens"
    assert [reply.count for reply in replies[:-1]] == list(range(1, 13))
    assert all(last.text.startswith(reply.text) for reply in replies)
    assert all(set(token.routes) == {1} and len(token.routes[1]) == 2 for token in last.tokens)
    weights = [weight for token in last.tokens for _, weight in token.routes[1]]
    assert sum(weights) == pytest.approx(12, rel=1e-5)  # top-2 shares are scaled to one


def test_one_seed_draws_one_answer(speaker: Speaker) -> None:
    def drawn(seed: int) -> str:
        sampling = Sampling(temperature=1.5, max_new_tokens=12, seed=seed)
        return list(speaker.say(PROMPT, sampling, threading.Event()))[-1].text

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_stop_ends_with_the_token_being_made(speaker: Speaker) -> None:
    stop = threading.Event()
    answer = speaker.say(PROMPT, Sampling(max_new_tokens=100), stop)
    next(answer)
    stop.set()
    last = list(answer)[-1]
    assert (last.done, last.count, last.note) == (True, 2, "stopped")


def test_a_model_answers_one_question_at_a_time_and_a_closed_one_frees_it(speaker: Speaker) -> None:
    answer = speaker.say(PROMPT, Sampling(max_new_tokens=100), threading.Event())
    next(answer)
    stop = threading.Event()
    stop.set()
    assert list(speaker.say(PROMPT, Sampling(), stop)) == [Reply(done=True, note="stopped")]  # it waited in vain
    answer.close()
    assert list(speaker.say(PROMPT, Sampling(max_new_tokens=2), threading.Event()))[-1].count == 2


def test_two_models_answer_together_and_one_that_fails_says_so(
    speaker: Speaker, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Speaker(random(tokenizer), "broken")
    sampling = Sampling(max_new_tokens=3)
    last = list(together([speaker, other], [PROMPT, PROMPT], sampling, threading.Event()))[-1]
    assert last[0].text == last[1].text
    monkeypatch.setattr(other.assistant.engine, "stream", lambda *_: 1 / 0)
    last = list(together([speaker, other], [PROMPT, PROMPT], sampling, threading.Event()))[-1]
    assert last[0].count == 3
    assert "log" in last[1].error
    assert "ZeroDivision" not in last[1].error


def test_whoever_leaves_frees_the_models(speaker: Speaker) -> None:
    stop = threading.Event()
    answers = together([speaker], [PROMPT], Sampling(max_new_tokens=200), stop)
    next(answers)
    answers.close()
    assert stop.is_set()
    assert speaker._turn.acquire(blocking=False)
    speaker._turn.release()


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(temperature=-1), "temperature is -1"),
        (Sampling(temperature=99), "temperature is 99"),
        (Sampling(temperature=float("nan")), "temperature is nan"),
        (Sampling(top_p=0), "top_p is 0"),
        (Sampling(max_new_tokens=0), "max new tokens is 0"),
        (Sampling(max_new_tokens=10**6), "max new tokens is 1000000"),
        (Sampling(max_new_tokens=None), "max new tokens is None"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_refused(sampling: Sampling, told: str) -> None:
    with pytest.raises(UserError, match=told):
        sampling.check()


def test_weights_are_those_that_experts_are_multiplied_by(speaker: Speaker) -> None:
    decoder = speaker.assistant.model.decoder
    moe = decoder.layers[1].ffn
    assert isinstance(moe, MoE)
    x_BTD = torch.randn(1, 1, decoder.width, generator=torch.Generator().manual_seed(1))
    ones_BT = torch.ones(1, 1, dtype=torch.int64)
    given: list[torch.Tensor] = []
    hook = moe.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.inference_mode(), weighed(decoder) as weights, watched(decoder) as visits:
        decoder(x_BTD, ones_BT, ones_BT)
        hook.remove()
        expected_E = (given[0][0, 0] @ moe.router.weight.T).softmax(-1)
    best = expected_E.topk(2)
    assert [expert for expert, _ in weights[1]] == best.indices.tolist()
    assert [weight for _, weight in weights[1]] == pytest.approx((best.values / best.values.sum()).tolist(), rel=1e-4)
    assert visits[1] == tuple(expert for expert, _ in weights[1])


def test_a_label_says_the_run_and_no_path(tmp_path: Path) -> None:
    (tmp_path / "dense" / "checkpoints").mkdir(parents=True)
    assert label_of(tmp_path / "dense" / "checkpoints" / "last.ckpt") == "dense"
    assert label_of(tmp_path / "dense" / "checkpoints" / "step=9.ckpt") == "dense step=9"
    assert label_of(tmp_path / "dense") == "dense"
