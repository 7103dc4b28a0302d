"""CIDEr and its tokeniser beside pycocoevalcap: numbers to 1e-6, and tokens that Stanford's tokeniser wrote."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from eval.metrics.cider import Cider, CiderScore
from eval.metrics.java import java_score
from eval.metrics.metric import Gold
from eval.metrics.overlap import caption_scores
from eval.metrics.tokenize import tokenize
from mm1.errors import UserError

GOLDEN = Path(__file__).with_name("ptb_tokens.tsv")
WORDS = ("a", "the", "man", "dog", "red", "ball", "runs", "on", "grass", "with", "two", "big", "cat", "sits")


def captions(seed: int, pictures: int) -> tuple[list[list[str]], list[str]]:
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 14)))

    return [[caption() for _ in range(rng.randint(1, 5))] for _ in range(pictures)], [
        caption() for _ in range(pictures)
    ]


@pytest.mark.parametrize(("seed", "pictures"), [(0, 2), (1, 7), (2, 40), (3, 1)])
def test_cider_equals_the_official_scorer(seed: int, pictures: int) -> None:
    official = pytest.importorskip("pycocoevalcap.cider.cider")
    references, candidates = captions(seed, pictures)
    candidates[0] = references[0][0]
    expected, each = official.Cider().compute_score(
        dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)}
    )
    cider = Cider(references, tokenized=True)
    ours = [cider.score(at, candidate) for at, candidate in enumerate(candidates)]
    assert ours == pytest.approx([100 * score for score in each], abs=1e-6)
    assert sum(ours) / len(ours) == pytest.approx(100 * expected, abs=1e-6)


@pytest.mark.parametrize("line", GOLDEN.read_text().splitlines())
def test_tokens_are_those_of_the_official_tokenizer(line: str) -> None:
    caption, tokens = line.split("\t")
    assert tokenize(caption) == tokens


@pytest.mark.skipif(shutil.which("java") is None, reason="the official tokenizer needs Java")
def test_the_golden_tokens_are_still_what_the_official_tokenizer_writes() -> None:
    official = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    lines = [line.split("\t") for line in GOLDEN.read_text().splitlines()]
    written = official.PTBTokenizer().tokenize({at: [{"caption": caption}] for at, (caption, _) in enumerate(lines)})
    assert [written[at][0] for at in range(len(lines))] == [tokens for _, tokens in lines]


@pytest.mark.parametrize(("seed", "pictures"), [(4, 1), (5, 30)])
def test_bleu_and_rouge_equal_the_official_scorers(seed: int, pictures: int) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    references, candidates = captions(seed, pictures)
    candidates[0] = "dog"
    given = dict(enumerate(references)), {at: [caption] for at, caption in enumerate(candidates)}
    expected = {f"BLEU-{n}": 100 * value for n, value in enumerate(bleu.Bleu(4).compute_score(*given, verbose=0)[0], 1)}
    expected["ROUGE-L"] = 100 * rouge.Rouge().compute_score(*given)[0]
    ours = caption_scores({str(at): c for at, c in enumerate(candidates)}, {str(at): r for at, r in given[0].items()})
    assert ours == pytest.approx(expected, abs=1e-6)


def test_what_ngrams_add_is_the_score() -> None:
    references, candidates = captions(6, 12)
    cider = Cider(references, tokenized=True)
    for at, candidate in enumerate([references[0][0], *candidates[1:]]):
        assert sum(cider.shares(at, candidate).values()) == pytest.approx(cider.score(at, candidate))


def test_cider_of_plain_text_equals_the_official_result_on_the_official_tokens() -> None:
    """The whole route to 1e-3: text to tokens to score, against pycocoevalcap on what Stanford's tokeniser wrote."""
    official = pytest.importorskip("pycocoevalcap.cider.cider")
    texts, tokens = zip(*(line.split("\t") for line in GOLDEN.read_text().splitlines()), strict=True)
    places = [(at, (at + 1) % len(texts), (at + 2) % len(texts)) for at in range(len(texts))]
    references = {at: [tokens[place] for place in of] for at, of in enumerate(places)}
    candidates = {at: [tokens[at - at % 3]] for at in range(len(texts))}
    expected, _ = official.Cider().compute_score(references, candidates)
    metric = CiderScore([Gold(str(at), tuple(texts[place] for place in of)) for at, of in enumerate(places)])
    said = {str(at): texts[at - at % 3] for at in range(len(texts))}
    found = [metric.score(id, answer) for id, answer in said.items()]
    assert sum(found) / len(found) == pytest.approx(100 * expected, abs=1e-3)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_is_pycocoevalcaps() -> None:
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    same = {"1": ["A dog runs on the grass."]}
    assert java_score("meteor", {"1": "a dog runs on the grass"}, same) == pytest.approx(100)
    assert 0 < java_score("meteor", {"1": "a cat sleeps on grass"}, same) < 60


def test_scores_in_java_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="spice needs Java, and there is no java on PATH"):
        java_score("spice", {"1": "a"}, {"1": ["a"]})
