"""Tiny tokenizers in the layouts of published models, each in a folder as its model has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LINES = [
    "The red circle stands left of the two green squares. The circles don't move!",
    "  It's the 3rd of 2024 squares;\tnaïve café: 漢字 😀\n\nThere, the red one.",
] * 8


def gpt2() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level, one token for everything (also OLMo, SmolLM), and one of two spaces that is no special one."""
    made = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    made.add_tokens([AddedToken("   ", normalized=False)])
    return made, {"tokenizer_config.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}}


def llama3() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level behind a regular expression; special tokens behind the vocabulary, one of them put before any text."""
    made = _byte_level(_split(digits=3), [])
    made.add_special_tokens(["<|begin|>", "<|end|>"])
    made.model.ignore_merges = True
    first = made.token_to_id("<|begin|>")
    made.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", first)])
    made.enable_truncation(4)
    made.enable_padding(length=12, pad_token="<|end|>")
    return made, {
        "tokenizer_config.json": {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>", "__type": "AddedToken"}}
    }


def qwen() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level over composed characters; no begin token, and one only ``config.json`` knows the id of."""
    made = _byte_level(_split(digits=1), [])
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return made, {
        "tokenizer_config.json": names,
        "config.json": {"bos_token_id": made.token_to_id("<|endoftext|>"), "eos_token_id": 1},
    }


def llama2() -> tuple[Tokenizer, dict[str, Any]]:
    """A sentencepiece model that was converted: the space is U+2581, and what has no token falls back to bytes."""
    made = _byte_fallback()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made, {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}}


def mistral() -> tuple[Tokenizer, dict[str, Any]]:
    """The same, converted the newer way; its ids stand in ``generation_config.json`` alone."""
    made = _byte_fallback()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return made, {"generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 1]}}


KINDS = {kind.__name__: kind for kind in (gpt2, llama3, qwen, llama2, mistral)}


def write(kind: str, folder: Path) -> Path:
    """Write the folder of one of ``KINDS``; returns it."""
    made, files = KINDS[kind]()
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _split(digits: int) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(f"{CONTRACTIONS}|{WORDS % digits}"), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level(words: pre_tokenizers.PreTokenizer, special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = words, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def _byte_fallback() -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trained.train_from_iterator(LINES[:1], trainers.BpeTrainer(vocab_size=60, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {name: at for at, name in enumerate(names)}
    merges = [(left, right) for left, right in model["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(name, normalized=False) for name in names[:3]])
    return made
