"""Masks, rotary positions, and decoding with a cache."""

import pytest
import torch

from mm1.batch import IMAGE
from mm1.errors import UserError
from mm1.model.attention import document_mask
from mm1.model.decoder import Decoder
from mm1.model.rope import Rope, rotate


def test_the_mask_is_the_drawing():
    drawing = """
        x.....
        xx....
        xxx...
        xxxx..
        ....x.
        .....x"""
    expected = torch.tensor([[mark == "x" for mark in line] for line in drawing.split()])
    assert torch.equal(document_mask(torch.tensor([[1, 1, 1, 1, 2, 0]]))[0, 0], expected)


def turned(x, position):
    place = torch.tensor([[position]])
    return rotate(x, *Rope().rotation(place, torch.ones_like(place), 8, 100.0))


def test_rotation_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(i, j):
        return (turned(q, i) * turned(k, j)).sum()

    assert torch.allclose(score(7, 3), score(24, 20), atol=1e-5)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-3)
    assert torch.allclose(turned(q, 50).norm(), q.norm())


@pytest.mark.parametrize("experts", [0, 4])
def test_cached_decoding_equals_reading_all_at_once(model, experts):
    """Prompts of 5 and 9 positions, padded on the left, one with a picture; then 4 tokens, one by one."""
    mm1 = model(experts=experts).eval()
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 64, (2, 13), generator=g)
    tokens[1, 1:5] = IMAGE
    segments = torch.ones(2, 13, dtype=torch.int64)
    segments[0, :4] = 0
    positions = (segments.cumsum(1) - 1).clamp(min=0)
    pictures = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=g)
    with torch.no_grad():
        x = mm1.embed(tokens, mm1.encode_images(pictures))
        expected = mm1.decoder(x, segments, positions).hidden_BTD
        cache = mm1.decoder.new_cache(rows=2, tokens=20)
        found = [mm1.decoder(x[:, :9], segments[:, :9], positions[:, :9], cache).hidden_BTD]
        for step in range(9, 13):
            part = slice(step, step + 1)
            found.append(mm1.decoder(x[:, part], segments[:, part], positions[:, part], cache).hidden_BTD)
    valid = segments > 0
    assert cache.length == 13
    assert torch.allclose(torch.cat(found, dim=1)[valid], expected[valid], atol=1e-5)
    short = mm1.decoder(x[:1, 4:], segments[:1, 4:], positions[:1, 4:]).hidden_BTD
    assert torch.allclose(short[0], expected[0, 4:], atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "message"),
    [(5, 5, "32 over 5 heads.*init_args.heads"), (32, 32, "even head width"), (4, 3, "3 key-value heads for 4 heads")],
)
def test_impossible_heads_are_refused(heads, kv_heads, message):
    with pytest.raises(UserError, match=message):
        Decoder(8, width=32, layers=1, heads=heads, kv_heads=kv_heads, ffn_width=8)
