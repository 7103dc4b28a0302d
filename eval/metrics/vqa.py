"""The official soft accuracy of VQA (Antol et al. 2015, arXiv 1505.00468, section 4), with the quirks of its evaluator.

An answer is right to the degree that people gave it: min(matches / 3, 1), meaned over the ten ways to leave one person
out. Kept so that numbers compare: the left-out answer is chosen by index, not by value; answers are normalised only
when people did not all say the same; at most 32 full stops go, since the evaluator hands ``re.UNICODE`` (32) to the
place of a count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from eval.metrics.metric import Metric

ARTICLES = frozenset(["a", "an", "the"])
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(value) for value, word in enumerate(NUMBER_WORDS.split())}
NUMBERS["none"] = "0"
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")  # meant as a look-behind; as it stands only the look-ahead acts
DIGIT_COMMA = re.compile(r"\d,\d")
FULL_STOPS_REMOVED = int(re.UNICODE)

# Spelled as they are mended to; found are the spellings that lack one apostrophe ("couldnt've", "couldn'tve").
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the one entry that goes the other way


class VqaAccuracy(Metric):
    """:func:`accuracy` of every answer; beside it that of evaluators which always normalise, where it is another.

    MMF's for TextVQA does, and so do forks of the official one: a "Yes" is then right where ten people said "yes".
    """

    name = "vqa_accuracy"
    title = "VQA accuracy, %"

    def score(self, id: str, answer: str) -> float:
        """Percent."""
        return accuracy(answer, self.golds[id].references)

    def also(self, answers: Mapping[str, str]) -> dict[str, float]:
        """The other evaluators' number."""
        usual = [accuracy(answer, self.golds[id].references) for id, answer in answers.items()]
        always = [accuracy(answer, self.golds[id].references, always=True) for id, answer in answers.items()]
        return {"always normalised": sum(always) / len(always)} if always != usual else {}

    def explain(self, id: str, answer: str) -> list[str]:
        """Each step of the official processing, and the ten ways to leave one person out."""
        return explained(answer, self.golds[id].references)


@lru_cache(maxsize=1 << 17)
def normalize(answer: str) -> str:
    """An answer as the evaluator compares it: no punctuation or articles, number words as digits, lower case.

    >>> normalize("The two dogs, dont run.")
    "2 dogs don't run"
    """
    return _words(_punctuation(_blanks(answer)))


def soft_accuracy(prediction: str, answers: Sequence[str], always: bool = False) -> float:
    """Percent, of one prediction against the answers of several people (ten in VQA).

    Args:
        prediction: The answer.
        answers: Those of people.
        always: Whether texts are normalised where people all said the same, too; the official evaluator does not.
    """
    given, predicted = [_blanks(answer) for answer in answers], _blanks(prediction)
    if always or len(set(given)) > 1:
        given, predicted = [normalize(answer) for answer in given], normalize(predicted)
    matches = sum(answer == predicted for answer in given)
    # Leaving out a matching answer leaves matches - 1, leaving out another leaves all of them.
    score = matches * min((matches - 1) / 3, 1) + (len(given) - matches) * min(matches / 3, 1)
    return 100 * score / len(given)


def accuracy(prediction: str, answers: Sequence[str], always: bool = False) -> float:
    """Percent: soft accuracy where several people answered, exact match of the normalised texts where one did."""
    if len(answers) > 1:
        return soft_accuracy(prediction, answers, always)
    return 100.0 * (normalize(prediction) == normalize(answers[0]))


def explained(prediction: str, answers: Sequence[str]) -> list[str]:
    """How :func:`accuracy` comes about, a step a line."""
    given, predicted = [_blanks(answer) for answer in answers], _blanks(prediction)
    lines = [f"answer                 {prediction!r}", f"line breaks, blanks    {predicted!r}"]
    if len(set(given)) > 1 or len(answers) == 1:
        lines += [
            f"punctuation            {_punctuation(predicted)!r}",
            f"numbers, articles      {normalize(predicted)!r}",
        ]
        given, predicted = [normalize(answer) for answer in given], normalize(predicted)
    else:
        lines.append("people all said the same: the evaluator compares the texts as they are")
    counted = ", ".join(f"{answer!r} x {count}" for answer, count in Counter(given).most_common())
    lines.append(f"people said            {counted}")
    if len(answers) == 1:
        return [*lines, f"exact match            {accuracy(prediction, answers):.0f}"]
    for at, left_out in enumerate(given):
        matches = sum(answer == predicted for answer in given) - (left_out == predicted)
        lines.append(f"without person {at + 1:2}: {matches} matches, min({matches}/3, 1) = {min(matches / 3, 1):.3f}")
    return [*lines, f"mean                   {soft_accuracy(prediction, answers):.1f}"]


def majority(answers: Sequence[str]) -> str:
    """The most common answer, the earliest of equals."""
    return Counter(answers).most_common(1)[0][0]


def _blanks(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str) -> str:
    digits = DIGIT_COMMA.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        apart = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if apart or digits else " ")
    return FULL_STOP.sub("", result, count=FULL_STOPS_REMOVED)


def _words(text: str) -> str:
    numbered = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)
