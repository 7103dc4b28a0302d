"""Text of an answer in the making: where a stop string ends it, and what of it can be shown already."""

from __future__ import annotations

from collections.abc import Sequence

from mm1.data.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # what a tokenizer of bytes says of ids that end inside a character


class Spelling:
    """One answer: its ids, how many of them are spelled, as what, and whether it has ended.

    Args:
        tokenizer: Who spells.
        stop: Strings before which the answer ends: the first that a token completes.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.tokens: list[int] = []
        self.ended = False
        self._spelled, self._text, self._shown = 0, "", ""

    def add(self, token: int) -> None:
        """Note a token, unless the answer has ended; the end token ends it."""
        if not self.ended and token == self.tokenizer.eos:
            self.ended = True
        elif not self.ended:
            self.tokens.append(token)

    def spell(self) -> str:
        """The answer up to its last token, without white space at its ends; it may end here at a stop string."""
        if self._spelled < len(self.tokens):
            self._spell()
        return self._text.strip()

    def news(self) -> str:
        """What can be shown since the last time: no half character, no blank or stop string that may be beginning.

        All that was shown, put together, is :meth:`spell` once the answer has ended.
        """
        text = self.spell()
        if not self.ended:
            text = text.rstrip(UNFINISHED)
            begun = [size for mark in self.stop for size in range(1, len(mark)) if text.endswith(mark[:size])]
            text = text[: len(text) - max(begun, default=0)].rstrip()
        new = text[len(self._shown) :]
        self._shown += new
        return new

    def _spell(self) -> None:
        first, self._spelled = self._spelled + 1, len(self.tokens)
        self._text = self.tokenizer.decode(self.tokens)
        if not any(mark in self._text for mark in self.stop):
            return
        for count in range(first, len(self.tokens) + 1):
            text = self.tokenizer.decode(self.tokens[:count])
            if cuts := [at for at in (text.find(mark) for mark in self.stop) if at >= 0]:
                self._text, self.ended, self.tokens = text[: min(cuts)], True, self.tokens[:count]
                self._spelled = count
                return
