"""Every way to stretch rotary positions against transformers' own, far beyond the original length.

Bit for bit, but for the dynamic one: its base is a power of its own for every document, and differs in its last bit.
"""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mm1.errors import UserError
from mm1.model.decoder import Decoder
from mm1.model.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope

LENGTH = 64  # that the model is said to have been trained on
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": LENGTH}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": LENGTH,
}
ROPES = {
    "plain": ({"rope_type": "default"}, Rope()),
    "linear": ({"rope_type": "linear", "factor": 4.0}, LinearRope(4.0)),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, DynamicRope(4.0, LENGTH)),
    "yarn": (YARN, YarnRope(8.0, LENGTH)),
    "yarn by hand": (YARN | {"attention_factor": 0.7}, YarnRope(8.0, LENGTH, attention_factor=0.7)),
    "yarn not rounded": (YARN | {"truncate": False}, YarnRope(8.0, LENGTH, truncate=False)),
    "yarn of other borders": (
        YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
        YarnRope(8.0, LENGTH, beta_fast=8.0, beta_slow=2.0),
    ),
    "yarn of DeepSeek": (
        YARN | {"mscale": 1.2, "mscale_all_dim": 0.6},
        YarnRope(8.0, LENGTH, mscale=1.2, mscale_all_dim=0.6),
    ),
    "yarn of half of DeepSeek": (YARN | {"mscale": 1.2}, YarnRope(8.0, LENGTH, mscale=1.2)),
    "yarn of factor 1": (YARN | {"factor": 1.0}, YarnRope(1.0, LENGTH)),
    "llama3": (LLAMA3, Llama3Rope(8.0, LENGTH)),
    "llama3 of other borders": (
        LLAMA3 | {"low_freq_factor": 2.0, "high_freq_factor": 3.0},
        Llama3Rope(8.0, LENGTH, low_freq_factor=2.0, high_freq_factor=3.0),
    ),
}


@pytest.mark.parametrize("head_width", [12, 64])
@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("name", ROPES)
def test_rotations_are_transformers(name, base, head_width):
    settings, rope = ROPES[name]
    config = LlamaConfig(
        head_dim=head_width, max_position_embeddings=LENGTH, rope_parameters=settings | {"rope_theta": base}
    )
    theirs = LlamaRotaryEmbedding(config)
    for length in (3, LENGTH, LENGTH + 1, 131072):
        positions = torch.arange(length)[None, :: max(1, length // 500)]
        expected = theirs(torch.zeros(1), positions)
        found = rope.rotation(positions, torch.ones_like(positions), head_width, base)
        last_bits = 1e-6 * length if name == "dynamic" else 0
        for ours, hers in zip(found, expected, strict=True):
            assert (ours[:, 0] - hers[..., : head_width // 2]).abs().max() <= last_bits


def test_dynamic_turns_grow_with_the_document_and_with_nothing_else():
    """Three documents and padding in one row: each is turned as if it were alone."""
    rope = DynamicRope(4.0, 8)
    lengths = (6, 20, 11)
    segments = torch.tensor([[0] * 3 + [1] * 6 + [2] * 20 + [3] * 11 + [0] * 4])
    positions = torch.tensor([[0] * 3 + [i for length in lengths for i in range(length)] + [0] * 4])
    cos, sin = rope.rotation(positions, segments, 12, 1e4)
    at = 3
    for length in lengths:
        alone = torch.arange(length)[None]
        expected = rope.rotation(alone, torch.ones_like(alone), 12, 1e4)
        for found, wanted in zip((cos, sin), expected, strict=True):
            assert torch.allclose(found[:, :, at : at + length], wanted, atol=1e-6)
        at += length
    plain = Rope().rotation(positions, segments, 12, 1e4)[0]
    assert torch.allclose(cos[:, :, 3:9], plain[:, :, 3:9], atol=1e-6)
    assert not torch.allclose(cos[:, :, 9:29], plain[:, :, 9:29], atol=1e-2)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        (LinearRope(0.5), "factor is 0.5; expected at least 1"),
        (DynamicRope(2.0, 0), "original_positions is 0; expected at least 1"),
        (DynamicRope(2.0, 8), "DynamicRope cannot slow a head of width 2, which is one pair; expected 4"),
        (YarnRope(0.0, 8), "factor is 0.0; expected at least 1"),
        (YarnRope(2.0, 8, beta_fast=1.0, beta_slow=2.0), "beta_fast is 1.0 and beta_slow 2.0; expected"),
        (Llama3Rope(2.0, 8, low_freq_factor=4.0), "high_freq_factor is 4.0 and low_freq_factor 4.0; expected"),
    ],
)
def test_impossible_ropes_are_refused(rope, message):
    with pytest.raises(UserError, match=message):
        Decoder(8, width=8, layers=1, heads=4, ffn_width=8, rope=rope)
