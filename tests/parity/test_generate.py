"""Greedy, searched and drawn answers of a tiny random Llama, beside transformers' ``generate``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from mm1.data.tokenizer import Tokenizer, train
from mm1.infer.decoding import Decoding
from mm1.infer.engine import Engine
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.sample import Text
from tests.parity.test_decoder import from_llama

TINY = Path(__file__).resolve().parents[2] / "configs" / "model" / "tiny.yaml"
NEW = 14
PROMPTS = [
    "one two",
    "the red circle is left of a blue square",
    "Question: what is this? Short answer:",
    "three",
    "a",
    "of",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(
        train(["the red circle is left of a blue square", "Question: what? one three"] * 20, 320)
    )


@pytest.fixture(scope="module")
def llama(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Loud, so that answers differ, and with an end that some answers find before their last token."""
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
    settings = LlamaConfig(
        vocab_size=tokenizer.vocabulary,
        **shape,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    llama = LlamaForCausalLM(settings).eval()
    with torch.no_grad():
        llama.lm_head.weight[tokenizer.eos] *= 2
    return llama


@pytest.fixture(scope="module")
def model(llama: LlamaForCausalLM) -> MM1:
    tree = yaml.safe_load(TINY.read_text())
    sizes = {"vocabulary": len(llama.lm_head.weight), "width": 48, "layers": 3, "heads": 6, "kv_heads": 2}
    tree["init_args"]["decoder"]["init_args"] |= {**sizes, "ffn_width": 80, "tied": False}
    model = build(tree, device="cpu")
    model.init_weights(0)
    model.decoder.load_state_dict(from_llama(llama.state_dict(), 3))
    return model.eval()


@torch.no_grad()
def theirs(llama: LlamaForCausalLM, tokenizer: Tokenizer, text: str, **given: object) -> list[int]:
    ids = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
    found = llama.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **given)[
        0, ids.shape[1] :
    ]
    said = found.tolist()
    return said[: said.index(tokenizer.eos)] if tokenizer.eos in said else said


@pytest.mark.parametrize(
    ("decoding", "given"),
    [
        (Decoding(), {}),
        (Decoding(beams=3), {"num_beams": 3}),
        (Decoding(beams=3, length_penalty=0.2), {"num_beams": 3, "length_penalty": 0.2}),
        (Decoding(beams=2, length_penalty=-1.0), {"num_beams": 2, "length_penalty": -1.0}),
        (Decoding(beams=4, length_penalty=2.0), {"num_beams": 4, "length_penalty": 2.0}),
    ],
)
@pytest.mark.parametrize("batch_positions", [1, 150, 10_000])
def test_tokens_are_transformers(
    llama: LlamaForCausalLM,
    model: MM1,
    tokenizer: Tokenizer,
    decoding: Decoding,
    given: dict[str, object],
    batch_positions: int,
) -> None:
    expected = [theirs(llama, tokenizer, text, **given) for text in PROMPTS]
    assert len({tuple(ids) for ids in expected}) >= len(PROMPTS) - 1
    assert len({*map(len, expected)}) > 1, "all are as long as can be, so no end was compared"
    engine = Engine(model, tokenizer, batch_positions=batch_positions)
    found = {said.index: said for said in engine.answers([[Text(text)] for text in PROMPTS], NEW, decoding=decoding)}
    assert [list(found[at].tokens) for at in range(len(PROMPTS))] == expected
