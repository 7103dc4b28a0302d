"""Whether a prompt fits the context, in numbers: refused, or its earliest demonstrations dropped and that recorded.

How many pictures a row of training holds is no limit here: 16 demonstrations and the picture asked about are 17 x 144 =
2448 of MM1's 4096 positions. 33 x 144 = 4752 are not; 33 x 64 = 2112, of a connector with 64 tokens, are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.encode import prompt_text_tokens
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.sample import WHOLE, Image, Text, Views, expand


@dataclass(frozen=True)
class Length:
    """Positions that a prompt and its answer take.

    Args:
        pictures: Number of pictures.
        tokens_per_image: Positions of each.
        text: Positions of its text, the begin token among them.
        new: Tokens of its answer at most.
        views: Views of its pictures, each of which takes these positions; as many as pictures if not given.
    """

    pictures: int
    tokens_per_image: int
    text: int
    new: int
    views: int | None = None

    @property
    def encoded(self) -> int:
        """What is encoded: views of pictures."""
        return self.pictures if self.views is None else self.views

    @property
    def total(self) -> int:
        """All of them."""
        return self.encoded * self.tokens_per_image + self.text + self.new

    def __str__(self) -> str:
        in_pictures = self.encoded * self.tokens_per_image
        what = f"{self.pictures} pictures" + f" in {self.encoded} views" * (self.encoded != self.pictures)
        return (
            f"a prompt of {in_pictures + self.text} positions ({what} x {self.tokens_per_image} = "
            f"{in_pictures}, text {self.text}) and {self.new} new tokens make {self.total}"
        )


def measure(
    items: Sequence[Text | Image], new: int, tokenizer: Tokenizer, tokens_per_image: int, views: Views = WHOLE
) -> Length:
    """The length of a prompt for a model that shows pictures in ``views``, by counting: no picture is read."""
    shown = expand(items, views)
    pictures, encoded = (sum(isinstance(item, Image) for item in some) for some in (items, shown))
    return Length(pictures, tokens_per_image, prompt_text_tokens(shown, tokenizer), new, encoded)


def excess(lengths: Sequence[Length], most: int) -> int | None:
    """How many of the earliest demonstrations must go; None where the question alone does not fit.

    Args:
        lengths: Of the prompt as it is, without its first demonstration, without the first two, .., without any.
        most: Positions there are.
    """
    return next((dropped for dropped, length in enumerate(lengths) if length.total <= most), None)


def refuse(where: str, lengths: Sequence[Length], most: int) -> UserError:
    """The sentence for a prompt that is too long: what it takes, and what would fit."""
    asked, shots = lengths[0], len(lengths) - 1
    told = f"{where}: {asked}; expected at most {most} (max_positions)"
    dropped = excess(lengths, most)
    if not shots:
        return UserError(told)
    if dropped is None:
        return UserError(f"{told}, and the question alone takes {lengths[-1].total}")
    room = (most - asked.text - asked.new) // asked.encoded if asked.encoded else 0
    smaller = f", or all with a connector of at most {room} tokens" if 0 < room < asked.tokens_per_image else ""
    return UserError(f"{told}: {shots - dropped} of {shots} demonstrations fit (when_too_long: drop){smaller}")
