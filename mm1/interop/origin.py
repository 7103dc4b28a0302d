"""Where a model's parts came from, remembered through training so that they can be given back as they came.

A JSON string: ``origin.json`` in a model folder, ``checkpoint["mm1"]["origin"]`` in a checkpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mm1.errors import UserError

FORMAT = 1
KEPT = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class DecoderOrigin:
    """A decoder that was published by others.

    Args:
        family: Name of its family's file under :mod:`mm1.interop.families`.
        source: Name of the folder or file it was read from.
        config: Its ``config.json``, verbatim.
        vocabulary: Rows that its embedding had.
        tokens: Ids that its tokenizer had.
        layout: Which of the family's layouts its tensors had.
        dtype: Type of most of its tensors.
        dtypes: Type of each of the others, by their name.
        sentencepiece_bytes: Length of its ``tokenizer.model``, which ours continues; None for the other kind.
        stored_head: Whether it kept a head although that is the embedding.
        files: Small text files of its folder that go with it, by name.
        licence: What it says of its licence, if anything.
    """

    family: str
    source: str
    config: dict[str, Any]
    vocabulary: int
    tokens: int
    layout: int
    dtype: str
    dtypes: dict[str, str] = field(default_factory=dict)
    sentencepiece_bytes: int | None = None
    stored_head: bool = False
    files: dict[str, str] = field(default_factory=dict)
    licence: str | None = None


@dataclass(frozen=True)
class Origin:
    """What is known of the parts.

    Args:
        decoder: None where the decoder is our own.
        vision: The encoder's class-path tree with the name of the weights that it began with.
        vision_licence: What is known of their licence.
    """

    decoder: DecoderOrigin | None = None
    vision: dict[str, Any] | None = None
    vision_licence: str | None = None

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None) -> Origin:
        """The way back; an empty origin where there is none.

        Raises:
            UserError: It is broken, or a newer version wrote it.
        """
        if text is None:
            return cls()
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise UserError(f"the origin of this model has format {found['format']}; this version reads {FORMAT}")
            decoder = found["decoder"]
            decoder = None if decoder is None else DecoderOrigin(**decoder)
            return cls(decoder, found["vision"], found.get("vision_licence"))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the origin of this model (origin.json) is broken ({error!r:.100})") from None


def small_files(folder: Path) -> dict[str, str]:
    """Texts that belong to a published decoder beside its weights and vocabulary."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in KEPT if (folder / name).is_file()}


def licence_of(folder: Path) -> str | None:
    """What the head of the model card in a folder says."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", text)
    return found[1] if found else None
