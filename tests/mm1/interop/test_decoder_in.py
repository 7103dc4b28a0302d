"""What is wrong with a published decoder is one sentence, before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mm1.errors import UserError
from mm1.interop.decoder_in import load_decoder, open_decoder
from mm1.interop.family import families
from tests.mm1.interop.published import change, write

INDEX = "model.safetensors.index.json"


def rewrite(folder: Path, alter: Callable[[dict[str, Any]], Any]) -> Path:
    """The folder with other tensors."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    alter(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def pickled(folder: Path) -> Path:
    """The folder with ``pytorch_model.bin`` in place of safetensors."""
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as found:
        open_decoder(folder, **options)
    assert "\n" not in str(found.value)


NORM, UP, EXPERT = (
    "model.norm.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.2.mlp.experts.4.down_proj.weight",
)
TENSORS = [
    ("llama", lambda t: t.pop(NORM), f"1 tensors missing, the first: {NORM}"),
    ("llama", lambda t: [t.pop(UP), t.pop(NORM)], f"2 tensors missing, the first: {UP}"),
    ("llama", lambda t: t.pop("lm_head.weight"), "1 tensors missing, the first: lm_head.weight"),
    ("llama", lambda t: t.update(odd=t[NORM].clone()), "1 tensors that nothing reads, the first: odd"),
    ("llama", lambda t: t.update({NORM: t[NORM][:7].clone()}), rf"{NORM} is \(7,\) where the settings make it \(48,\)"),
    ("llama", lambda t: t.update({NORM: t[NORM].long()}), f"holds {NORM} as I64; expected floating-point"),
    ("olmoe", lambda t: t.pop(EXPERT), f"1 tensors missing, the first: {EXPERT}"),
    ("smollm", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "tie_word_embeddings"),
]


@pytest.mark.parametrize(("name", "alter", "message"), TENSORS, ids=[message[:40] for *_, message in TENSORS])
def test_every_tensor_is_accounted_for(name: str, alter: Callable[..., Any], message: str, tmp_path: Path) -> None:
    refused(rewrite(write(name, tmp_path), alter), message)


def test_old_tables_and_a_head_that_is_the_embedding_are_no_fault(tmp_path: Path) -> None:
    folder = write("smollm", tmp_path)
    expected = load_decoder(folder).state_dict()

    def alter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    found = load_decoder(rewrite(folder, alter)).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


SETTINGS = [
    ("llama", {"hidden_act": "gelu"}, 'has "gelu" at hidden_act; expected "silu"'),
    ("llama", {"mlp_bias": True}, "has true at mlp_bias"),
    ("llama", {"hidden_size": "wide"}, 'has "wide" at hidden_size; expected a whole number'),
    ("llama", {"num_hidden_layers": None}, "has nothing at num_hidden_layers"),
    ("llama", {"rms_norm_eps": float("inf")}, "has Infinity at rms_norm_eps; expected a number above 0"),
    ("llama", {"vocab_size": 10**30}, "0 at vocab_size; expected a whole number"),
    ("llama", {"num_hidden_layers": 10**9}, "at num_hidden_layers; expected a whole number, at least 1 and at most"),
    ("olmoe", {"num_experts": 10**9}, "at num_experts; expected a whole number, at least 1 and at most"),
    ("llama", {"rope_parameters": None, "rope_theta": 0}, "has 0 at rope_theta; expected a number above 0"),
    ("llama", {"rope_parameters": {"rope_type": ["linear"]}}, r'has \["linear"\] at rope_type; expected one'),
    ("qwen2", {"layer_types": [["full_attention"]] * 3}, "layer_types; expected 3 times"),
    ("qwen2", {"layer_types": None, "max_window_layers": "all"}, "at max_window_layers; expected a whole number"),
    ("llama", {"rms_norm_eps": -1}, "has -1 at rms_norm_eps; expected a number above 0"),
    ("llama", {"tie_word_embeddings": "no"}, 'has "no" at tie_word_embeddings; expected true or false'),
    (
        "llama",
        {"architectures": ["GPT2LMHeadModel"]},
        r"GPT2LMHeadModel.* expected one of LlamaForCausalLM, .*Qwen3Moe",
    ),
    ("llama", {"architectures": []}, "at architectures; expected a list with one of LlamaForCausalLM"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, 'rope_parameters, has "longrope" at rope_type; expected'),
    (
        "llama",
        {"rope_parameters": None, "rope_scaling": {"type": "su"}},
        'rope_scaling, has "su" at type; expected one',
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "has nothing at factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2, "finetuned": 1}}, "has 1 at finetuned"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "the same for all layers"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        "0.5 at partial_rotary_fact",
    ),
    ("llama", {"partial_rotary_factor": 0.25}, "has 0.25 at partial_rotary_factor; expected 1.0"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, 'gptq"} at quantization_config; expected null'),
    ("llama", {"num_attention_heads": 7}, r"config\.json describes no decoder: 2 key-value heads for 7 heads"),
    (
        "qwen2",
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        "layer_types; expected 3 times",
    ),
    ("mistral", {"sliding_window": "wide"}, "at sliding_window; expected a whole number"),
    ("qwen3_moe", {"mlp_only_layers": "none"}, "at mlp_only_layers; expected a list of layers"),
    ("qwen3_moe", {"num_local_experts": None}, "has nothing at num_experts"),
    ("olmoe", {"num_experts_per_tok": 60}, "top_k=60 of 6 experts"),
]


@pytest.mark.parametrize(("name", "settings", "message"), SETTINGS, ids=[message[:40] for *_, message in SETTINGS])
def test_settings_that_are_not_computed_here_are_named(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused(change(write(name, tmp_path), **settings), message)


def test_files_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere does not exist; expected a folder in Hugging Face layout")
    refused(tmp_path, r"config\.json does not exist")
    folder = write("llama", tmp_path / "llama")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-500])
    refused(folder, r"model\.safetensors is not readable as safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, "holds no weights; expected model.safetensors or model.safetensors.index.json")
    (folder / "config.json").write_text("{")
    refused(folder, "not readable as JSON")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "not readable as JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "holds a list; expected a JSON object")


def test_an_index_must_be_whole(tmp_path: Path) -> None:
    folder = write("llama", tmp_path, shard="60kB")
    index = json.loads((folder / INDEX).read_text())
    first, *_, last = sorted({*index["weight_map"].values()})

    def point(name: str, file: str) -> None:
        places = index["weight_map"] | {name: file}
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))

    point("odd", first)
    refused(folder, f"{INDEX} lists 1 tensors that its files do not hold, the first: odd")
    point(NORM, "../elsewhere.safetensors")
    refused(folder, r'names "\.\./elsewhere\.safetensors"; expected the name of a file beside it')
    (folder / INDEX).write_text("{}")
    refused(folder, "has no weight_map")
    (folder / INDEX).write_text(json.dumps(index))
    two = safetensors.torch.load_file(folder / last)
    again = next(iter(safetensors.torch.load_file(folder / first).items()))
    safetensors.torch.save_file({**two, again[0]: again[1] + 1}, folder / last)
    refused(folder, rf"holds {re.escape(again[0])}, which another file of .* has as well")
    (folder / last).unlink()
    count = len({*index["weight_map"].values()})
    refused(folder, rf"names {count} files, of which 1 are missing, the first: {re.escape(last)}")


def test_pickles_are_read_where_that_is_allowed(tmp_path: Path) -> None:
    folder = write("qwen2", tmp_path)
    expected = load_decoder(folder).state_dict()
    pickled(folder)
    refused(folder, r"pickled weights alone \(pytorch_model\.bin\), which can carry code; .* --allow-pickle")
    for as_zip in (True, False):  # the latter is how torch wrote before 1.6
        content = torch.load(folder / "pytorch_model.bin")
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=as_zip)
        found = load_decoder(folder, allow_pickle=True).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


class Foreign:
    """Code of somebody else."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"odd": Foreign()}, r"not readable as pickled tensors and nothing else \(it asks for .*Foreign\)"),
        ({"odd": 3}, "more than tensors"),
        ({3: torch.zeros(1)}, "more than tensors by name"),
        ({"odd": torch.ones(1).to_sparse()}, "more than tensors"),
        ({"odd": torch.ones(1, device="meta")}, "more than tensors"),
        ({"odd": torch.ones(1, dtype=torch.int8)}, "holds odd as int8; expected floating-point weights"),
    ],
)
def test_a_pickle_with_code_in_it_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    folder = pickled(write("llama", tmp_path))
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, message, allow_pickle=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04]q\x00."], ids=["empty", "text", "list"])
def test_what_is_no_pickle_is_told(content: bytes, tmp_path: Path) -> None:
    folder = pickled(write("llama", tmp_path))
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, "pytorch_model.bin (is not readable as pickled tensors|holds more than)", allow_pickle=True)


def test_a_family_is_a_file() -> None:
    assert {"llama", "mistral", "mixtral", "olmo2", "olmoe", "qwen2", "qwen3", "qwen3_moe"} <= families().keys()
    names = [architecture for family in families().values() for architecture in family.architectures]
    assert len(names) == len({*names})
