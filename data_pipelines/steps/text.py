"""Filters that look at a document's text as a whole: length, language, bad words, wording.

Words are what blanks part, as in the rules' papers; of languages that write none, bound the characters.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps.base import Pictures, Step
from data_pipelines.steps.settings import in_order, installed, lines, share, there
from mm1.errors import UserError, at_least

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
LINE_END = re.compile(r"\n+")


class TextLength(Step):
    """Keeps documents of so much text. The least is that of a caption in DataComp's basic filter (arXiv 2304.14108).

    Args:
        min_words: The fewest words.
        max_words: The most words.
        min_characters: The fewest characters.
        max_characters: The most characters.
    """

    def __init__(
        self,
        *,
        min_words: int = 2,
        max_words: int | None = None,
        min_characters: int = 5,
        max_characters: int | None = None,
    ) -> None:
        in_order("min_words", min_words, "max_words", max_words)
        in_order("min_characters", min_characters, "max_characters", max_characters)
        self.words, self.characters = (min_words, max_words), (min_characters, max_characters)

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        text = draft.text.strip()
        for what, (least, most), count in (
            ("words", self.words, len(text.split())),
            ("characters", self.characters, len(text)),
        ):
            if count < least:
                return Rejection(draft.id, f"text under {least} {what}", fault=False)
            if most is not None and count > most:
                return Rejection(draft.id, f"text over {most} {what}", fault=False)
        return draft


class Language(Step):
    """Keeps documents in some languages, as py3langid tells them (Lui and Baldwin 2012; 0.14 ms for 1,500 characters).

    Of two or three words no model is sure: "red car" is English with a probability of 0.17. Lower the minimum for short
    captions, rather than lose them.

    Args:
        languages: ISO 639 codes.
        minimum: The least probability that it is one of them.
    """

    def __init__(self, languages: tuple[str, ...] = ("en",), *, minimum: float = 0.5) -> None:
        share("minimum", minimum)
        installed("py3langid")
        if not languages or (unknown := set(languages) - set(_identifier().labels)):
            raise UserError(
                f"languages has {', '.join(sorted(unknown)) if languages else 'nothing'}; expected ISO 639 codes that "
                "py3langid knows, such as en, de, zh"
            )
        self.languages, self.minimum = frozenset(languages), minimum

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        sure = sum(chance for language, chance in _identifier().rank(draft.text) if language in self.languages)
        return draft if sure >= self.minimum else Rejection(draft.id, "other language", fault=False)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class BadWords(Step):
    """Refuses documents with words of a list, as C4 and MMC4 do (arXiv 1910.10683, section 2.2).

    Args:
        file: One word or phrase a line; capitals do not matter.
        whole_words: Whether only whole words count; set it to false for languages that part none.
        most: How many of them a document may have.
    """

    def __init__(self, file: Path, *, whole_words: bool = True, most: int = 0) -> None:
        at_least(0, {"most": most})
        [path] = there("file", [file])
        words = "|".join(re.escape(word.casefold()) for word in sorted(lines(path), key=len, reverse=True))
        if not words:
            raise UserError(f"{file} has no words; expected a list at file, one word or phrase a line")
        self.file, self.whole_words, self.most = path, whole_words, most
        self._pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)" if whole_words else words)

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        found = sum(1 for _ in self._pattern.finditer(draft.text.casefold()))
        return draft if found <= self.most else Rejection(draft.id, "bad words", fault=False)


class Wording(Step):
    """Refuses text that does not read like prose: the quality rules of MassiveText (arXiv 2112.11446, A.1.1).

    Not for captions: the rules want 50 words and more.

    Args:
        min_words: The fewest words.
        max_words: The most words.
        min_word_length: The least mean length of a word.
        max_word_length: The largest.
        max_symbols: The most hash signs and ellipses for each word.
        max_bullets: The largest share of lines that begin with a bullet.
        max_ellipses: The largest share of lines that end with an ellipsis.
        min_alphabetic: The least share of words with a letter.
        stop_words: Two of these have to be there; empty for languages other than English.
    """

    def __init__(
        self,
        *,
        min_words: int = 50,
        max_words: int = 100_000,
        min_word_length: float = 3.0,
        max_word_length: float = 10.0,
        max_symbols: float = 0.1,
        max_bullets: float = 0.9,
        max_ellipses: float = 0.3,
        min_alphabetic: float = 0.8,
        stop_words: tuple[str, ...] = STOP_WORDS,
    ) -> None:
        in_order("min_words", min_words, "max_words", max_words)
        in_order("min_word_length", min_word_length, "max_word_length", max_word_length)
        self.min_words, self.max_words = min_words, max_words
        self.min_word_length, self.max_word_length = min_word_length, max_word_length
        self.max_symbols, self.max_bullets, self.max_ellipses = max_symbols, max_bullets, max_ellipses
        self.min_alphabetic, self.stop_words = min_alphabetic, frozenset(stop_words)

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        reason = next(self.faults(draft.text), None)
        return draft if reason is None else Rejection(draft.id, reason, fault=False)

    def faults(self, text: str) -> Iterator[str]:
        """The rules that a text breaks."""
        words = text.split()
        if not self.min_words <= len(words) <= self.max_words:
            yield f"text not of {self.min_words} to {self.max_words} words"
        many = max(1, len(words))
        length = sum(map(len, words)) / many
        if not self.min_word_length <= length <= self.max_word_length:
            yield "words too short or too long"
        ellipses = text.count("...") + text.count("…")
        if max(text.count("#"), ellipses) > self.max_symbols * many:
            yield "too many symbols"
        parts = [line.strip() for line in LINE_END.split(text) if line.strip()]
        if sum(line.startswith(("•", "-", "*")) for line in parts) > self.max_bullets * len(parts):
            yield "too many bullets"
        if sum(line.endswith(("...", "…")) for line in parts) > self.max_ellipses * len(parts):
            yield "too many lines that break off"
        if sum(any(map(str.isalpha, word)) for word in words) < self.min_alphabetic * len(words):
            yield "too few words with letters"
        if self.stop_words and sum(word.lower() in self.stop_words for word in words) < 2:
            yield "no stop words"
