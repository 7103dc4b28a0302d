"""One document, the same for every corpus: text and pictures in reading order (MM1, section 3.3).

A caption pair is ``(Image, Text)``, a web page any mixture of the two, plain text one ``Text``, and a conversation
alternates text that is only read (``learn=False``) with answers that are learned and closed (``end=True``).
No torch and no PIL here: a picture stays the bytes of its file until it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

PICTURE = "<image>"  # a picture's place in other formats; a document of ours has an Image there, and no text makes one


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of text.

    Args:
        text: The text itself.
        learn: Whether its tokens are targets. False for a user's turn: read, never predicted.
        end: Whether an end-of-text token follows it (and is learned with it). A document ends with one anyway; set it
            where something ends inside, such as an answer in a conversation.
        after_space: Whether a space parts it from what stands before. A sentencepiece vocabulary writes that space into
            its first piece by itself, one of bytes does not; an answer wants it in both.
    """

    text: str
    learn: bool = True
    end: bool = False
    after_space: bool = False

    @property
    def spelled(self) -> str:
        """The text as people read it, with the space before it and ``</s>`` for its end."""
        return " " * self.after_space + self.text + "</s>" * self.end


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as the bytes of its file (JPEG, PNG, WebP)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """A document.

    Args:
        items: Text and pictures in reading order.
        source: The stream it belongs to: ``captions``, ``interleaved``, ``text`` or ``sft``.
        id: Unique within its source; the validation split is a function of it.
    """

    items: tuple[Text | Image, ...]
    source: str
    id: str

    @property
    def images(self) -> int:
        """Number of pictures."""
        return sum(isinstance(item, Image) for item in self.items)
