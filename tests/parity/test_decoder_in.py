"""Published decoders of every family, read from their folders, against transformers reading the same folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from mm1.interop.decoder_in import load_decoder
from mm1.interop.family import families
from mm1.interop.settings import Settings
from mm1.model.attention import KVCache
from mm1.model.decoder import Decoder
from tests.mm1.interop.published import MODELS, SPARSE, VOCABULARY, change, older, write

TOKENS = 60  # of a document; stretched models were trained on 16


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Two documents."""
    return torch.randint(0, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(0))


def read(decoder: Decoder, tokens: Tensor, first: int = 0, cache: KVCache | None = None) -> Tensor:
    positions = torch.arange(first, first + tokens.shape[1]).expand_as(tokens)
    x = decoder.embedding(tokens)
    return decoder.logits(decoder(x, torch.ones_like(tokens), positions, cache).hidden_BTD)


def expected(folder: Path, tokens: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    logits = model.eval()(tokens).logits
    assert logits.abs().max() > 1
    return logits


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_transformers_at_once_and_with_a_cache(name: str, tokens: Tensor, tmp_path: Path) -> None:
    folder = write(name, tmp_path)
    decoder, logits = load_decoder(folder), expected(folder, tokens)
    assert torch.allclose(read(decoder, tokens), logits, atol=1e-4, rtol=0)
    if name == "llama_dynamic":  # a cache keeps keys as they were turned when they were new
        return
    cache = decoder.new_cache(2, TOKENS)
    steps = [(0, 9), *((at, at + 1) for at in range(9, TOKENS))]
    found = torch.cat([read(decoder, tokens[:, first:end], first, cache) for first, end in steps], 1)
    assert torch.allclose(found, logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("llama")])
@torch.no_grad()
def test_rotary_settings_of_transformers_4_mean_the_same(name: str, tokens: Tensor, tmp_path: Path) -> None:
    folder = write(name, tmp_path)
    now = read(load_decoder(folder), tokens)
    assert torch.equal(read(load_decoder(older(folder)), tokens), now)
    assert torch.allclose(expected(folder, tokens), now, atol=1e-4, rtol=0)


@torch.no_grad()
def test_of_both_rotary_settings_the_older_counts_as_in_transformers(tokens: Tensor, tmp_path: Path) -> None:
    folder = write("llama_linear", tmp_path)
    one = read(load_decoder(folder), tokens)
    change(folder, rope_theta=9000.0, rope_scaling={"type": "linear", "factor": 2.0})
    two = read(load_decoder(folder), tokens)
    assert not torch.allclose(one, two, atol=1e-2)
    assert torch.allclose(expected(folder, tokens), two, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", families())
def test_what_a_config_does_not_say_is_what_transformers_assumes(name: str) -> None:
    """Of sizes alone, and of those with everything that transformers makes of them, the same decoder."""
    family = families()[name]
    config = getattr(transformers, family.architectures[0].replace("ForCausalLM", "Config"))
    sizes = {"vocab_size": 9, "hidden_size": 4096, "intermediate_size": 8, "num_hidden_layers": 30}
    experts = {"num_experts": 8} if name == "qwen3_moe" else {}  # has two names, so that none is assumed
    bare = {**sizes, **experts, "num_attention_heads": 32}
    told = config(**bare).to_dict()
    asked, full = (family.arguments(Settings(s, "config.json", family.defaults)) for s in (bare, told))
    assert asked == full


@pytest.mark.parametrize("name", SPARSE)
@torch.no_grad()
def test_experts_are_read_one_by_one_or_stacked(name: str, tmp_path: Path) -> None:
    one_by_one, stacked = (
        load_decoder(write(name, tmp_path / str(way), stacked=way)).state_dict() for way in (False, True)
    )
    assert all(torch.equal(tensor, stacked[key]) for key, tensor in one_by_one.items())


@pytest.mark.parametrize("name", ["smollm", "qwen3_moe"])
@torch.no_grad()
def test_weights_are_cast_on_the_way_and_shards_are_one_model(name: str, tmp_path: Path) -> None:
    whole = load_decoder(write(name, tmp_path / "whole", torch.bfloat16), torch.float32)
    parts = load_decoder(write(name, tmp_path / "parts", torch.bfloat16, shard="60kB"), torch.bfloat16)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert {tensor.dtype for tensor in whole.state_dict().values()} == {torch.float32}
    assert all(torch.equal(t.to(torch.bfloat16), parts.state_dict()[key]) for key, t in whole.state_dict().items())
