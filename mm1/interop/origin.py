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
from mm1.interop.family import families
from mm1.interop.tensor_files import TYPES

FORMAT = 1
FILE = r"\w[\w.-]*"  # nothing that leads out of a folder: the origin may be anybody's
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

    def check(self) -> None:
        """What is stored may come from anybody, and files are written by it.

        Raises:
            UserError: A family that is not known here, a type or layout that it cannot have, a file outside the folder.
        """
        known = families().get(self.family)
        faults = {
            "family": known is None,
            "layout": known is not None and self.layout not in range(len(known.layouts)),
            "config": not isinstance(self.config, dict),
            "dtype": not {self.dtype, *self.dtypes.values()} <= {*TYPES.values()},
            "files": not all(re.fullmatch(FILE, name) and isinstance(self.files[name], str) for name in self.files),
        }
        if odd := next((key for key, wrong in faults.items() if wrong), None):
            raise UserError(
                f"the origin of this model (origin.json) has decoder.{odd} = {getattr(self, odd)!r:.80}, which mm1 "
                f"never writes; expected the file as mm1-convert join wrote it"
            )


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
            if decoder is not None:
                decoder.check()
            vision = found["vision"]
            if not isinstance(vision, dict | None) or not isinstance((vision or {}).get("init_args"), dict | None):
                raise TypeError(f"vision is {vision!r:.60}")
            return cls(decoder, vision, found.get("vision_licence"))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"the origin of this model (origin.json) is broken ({error!r:.100})") from None


def small_files(folder: Path) -> dict[str, str]:
    """Texts that belong to a published decoder beside its weights and vocabulary.

    Raises:
        UserError: One of them is no text.
    """
    texts = {}
    for path in (folder / name for name in KEPT if (folder / name).is_file()):
        try:
            texts[path.name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path} is no UTF-8 text; expected the file as it was published") from None
    return texts


def name_of(path: Path) -> str:
    """What a published folder or file is called: in the hub's cache as on the hub, not by its revision."""
    whole = path.resolve()
    cached = re.fullmatch(r"models--(.+)", whole.parent.parent.name) if whole.parent.name == "snapshots" else None
    return cached[1].replace("--", "/") if cached else whole.name


def licence_of(folder: Path) -> str | None:
    """What the head of the model card in a folder says."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", text)
    return found[1] if found else None
