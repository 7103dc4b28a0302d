"""A model as a folder that transformers opens (through :mod:`mm1.interop.transformers_mm1`), and :func:`mm1.load` too.

config.json              the class-path tree that builds the model, control ids, sizes for tools
model.safetensors        every tensor by its name here, after ``model.``; shards with an index if it is big
tokenizer.json           the vocabulary;  tokenizer.model beside it where it came from sentencepiece
tokenizer_config.json, processor_config.json, chat_template.jinja, generation_config.json
modeling_mm1.py          three lines for ``trust_remote_code``, which import the installed package
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transformers import GenerationConfig, PreTrainedTokenizerFast

from mm1.data.tokenizer import PICTURE, Tokenizer
from mm1.errors import UserError
from mm1.interop.fast_tokenizer import added_token, tokenizer_json
from mm1.interop.hf_processing import chat_template
from mm1.interop.transformers_mm1 import MM1Config, MM1ImageProcessor, MM1Processor
from mm1.interop.write import write_tensors
from mm1.model.mm1 import MM1
from mm1.model.stored import PREFIX, PREPEND, Stored, metaspaces

FIRST = "first"  # of a text a space is put before; in transformers a text may follow a picture
NEW_TOKENS = 64  # of an answer, as Assistant.generate


def write_transformers(found: Stored, model: MM1, folder: Path) -> None:
    """Write the files of a stored model, ``model`` when it is built, into an existing folder.

    Raises:
        UserError: Its vocabulary has no place in ``tokenizer.json``, or it takes pictures in several views.
    """
    if model.views.count > 1:
        raise UserError(
            f"{found.origin} takes a picture in {model.views}, which the processor for transformers does not know; "
            f"expected one view: export without --to transformers, and open the folder with mm1.load"
        )
    if not model.template.plain:
        raise UserError(
            f"{found.origin} was tuned in the words of another template ({model.template.user!r}), which the processor "
            f"for transformers does not know; expected ours: export without --to transformers"
        )
    tokenizer = Tokenizer.from_bytes(found.tokenizer)
    image = tokenizer.vocabulary if tokenizer.image is None else tokenizer.image
    _write_processor(folder, model, tokenizer, image)
    _config(model, yaml.safe_load(found.config), tokenizer, image).save_pretrained(folder)
    _generation(model, tokenizer, image).save_pretrained(folder)
    state = model.state_dict()
    tensors = ((PREFIX + name, tensor) for name, tensor in state.items())
    write_tensors(folder, tensors, {"format": "pt"}, total=len(state))


def _write_processor(folder: Path, model: MM1, tokenizer: Tokenizer, image: int) -> None:
    """Everything that stands before the model."""
    data = _vocabulary(tokenizer, image)
    names = {at: name for name, at in data["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in data["added_tokens"]}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=names[tokenizer.bos],
        eos_token=names[tokenizer.eos],
        pad_token=names[tokenizer.pad],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    processor = MM1Processor(MM1ImageProcessor.of(model.image_spec), fast, chat_template())
    processor.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")  # as it was: mm1 makes the same bytes of it again
    if tokenizer.file_name != "tokenizer.json":
        (folder / tokenizer.file_name).write_bytes(tokenizer.proto)


def _vocabulary(tokenizer: Tokenizer, image: int) -> dict[str, Any]:
    """The content of ``tokenizer.json``, with a token for pictures."""
    if tokenizer.file_name != "tokenizer.json":
        data = tokenizer_json(tokenizer)
    else:
        data = json.loads(tokenizer.proto)
        del data["mm1"]
        for part in metaspaces(data):
            if part[PREPEND] == FIRST:
                part[PREPEND] = "always"
    if image not in {token["id"] for token in data["added_tokens"]}:
        data["added_tokens"].append(added_token(image, PICTURE))
    return data


def _config(model: MM1, tree: dict[str, Any], tokenizer: Tokenizer, image: int) -> MM1Config:
    about: dict[str, Any] = {role: getattr(tokenizer, role) for role in ("bos", "eos", "pad", "image")}
    if tokenizer.file_name == "tokenizer.json" and any(
        part[PREPEND] == FIRST for part in metaspaces(json.loads(tokenizer.proto))
    ):
        about[PREPEND] = FIRST  # so that mm1 reads the tokenizer that it wrote
    return MM1Config.of(model, tree, about, image)


def _generation(model: MM1, tokenizer: Tokenizer, image: int) -> GenerationConfig:
    """Greedy, as everywhere here; rows of the embedding that are no token, and the picture's, are never said."""
    rows = model.decoder.vocabulary
    never = {*range(tokenizer.vocabulary, rows), *([image] if image < rows else ())}
    return GenerationConfig(
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=sorted(never) or None,
    )
