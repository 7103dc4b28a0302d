"""A model leaves as a folder that others read: mm1, transformers as well, or whoever reads its decoder's family."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml

from mm1.interop.card import write_card
from mm1.interop.decoder_out import export_decoder
from mm1.interop.whole import Whole, read_whole
from mm1.interop.write import new_folder, write_tensors
from mm1.model import stored


def export(checkpoint: str | Path, folder: str | Path, to: Literal["own", "transformers", "decoder"] = "own") -> Path:
    """Write a model's folder; it appears whole or not at all.

    Args:
        checkpoint: A ``*.ckpt`` of mm1-train, or a model folder.
        folder: Where to; must not exist.
        to: ``own``: weights, YAML and tokenizer, for mm1.load. ``transformers``: for both mm1.load and transformers'
            Auto classes. ``decoder``: the language model alone in the layout of its family.

    Raises:
        UserError: The checkpoint is none or does not fit its own configuration, or the folder exists.
    """
    if to == "decoder":
        return export_decoder(checkpoint, folder)
    with new_folder(folder) as temporary:
        whole = read_whole(checkpoint)
        found, model = whole.found, whole.empty
        if to == "transformers":
            model = found.model()
            from mm1.interop import transformers_mm1  # noqa: F401, says so where transformers is missing
            from mm1.interop.export_transformers import write_transformers

            write_transformers(found, model, temporary)
        else:
            _write_own(whole, temporary)
        if found.origin_json is not None:
            (temporary / stored.ORIGIN).write_text(found.origin_json, encoding="utf-8")
        if found.template is not None and to == "own":
            (temporary / stored.TEMPLATE).write_text(yaml.safe_dump(found.template.record(), sort_keys=False))
        write_card(found, model, temporary, to=to, name=Path(folder).name)
    return Path(folder)


def _write_own(whole: Whole, folder: Path) -> None:
    found = whole.found
    write_tensors(folder, found.weights.items(), {"format": str(stored.FORMAT)}, total=len(found.weights))
    (folder / stored.CONFIG).write_text(found.config)
    (folder / whole.tokenizer.file_name).write_bytes(found.tokenizer)
