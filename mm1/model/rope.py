"""Rotary positions (Su et al. 2021): how far each pair of a head turns at each position, plain or stretched.

A model that was trained on short texts is stretched to longer ones by turning slower. Each class here is one way to do
so, with the numbers that transformers makes of the same ``rope_scaling``; the base is the decoder's ``rope_base`` in
all of them. Everything is fp32: at position 100,000 half precision no longer knows which way a pair points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mm1.errors import UserError, at_least

WHERE = "model.decoder.init_args.rope.init_args"


class Rope:
    """Plain rotary positions: pair k of a head of width K turns by ``base ** (-2k / K)`` at each step."""

    attention_factor = 1.0  # times queries and keys alike, so that it sharpens attention by its square

    def rotation(
        self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines fp32[B, 1, T, K / 2] of the turn at each position; once per batch for all layers.

        Args:
            positions_BT: int64[B, T], position within the document.
            segments_BT: int64[B, T]; a document's positions stand side by side.
            head_width: Head width K.
            base: Base of the angles.
        """
        angles = positions_BT[:, None, :, None].float() * self.turns(positions_BT, segments_BT, head_width, base)
        return angles.cos() * self.attention_factor, angles.sin() * self.attention_factor

    def check(self, head_width: int) -> None:
        """Refuse numbers that cannot be; a decoder asks when it takes the rope, for jsonargparse loses errors before.

        Raises:
            UserError: The first that is wrong.
        """

    def turns(self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float) -> Tensor:
        """Radians that each pair turns by at a step, fp32[K / 2], or fp32[B, 1, T, K / 2] if documents differ."""
        return 1.0 / powers(head_width, base, positions_BT.device)


class LinearRope(Rope):
    """All turns are slower by one factor (position interpolation, arXiv 2306.15595).

    Args:
        factor: How many times longer texts become.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def check(self, head_width: int) -> None:
        """As for :class:`Rope`."""
        _check(self.factor)

    def turns(self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float) -> Tensor:
        """As for :class:`Rope`."""
        return 1.0 / powers(head_width, base, positions_BT.device) / self.factor


class DynamicRope(Rope):
    """The base grows with the longest position of a document, once that is past the original length (dynamic NTK).

    A document is turned by its own length, whatever else is in the batch; transformers takes the longest of a batch.
    With a cache the length is that of the moment: keys stay as they were turned when they were new, in transformers as
    well, so that beyond the original length reading token by token is not quite reading at once.

    Args:
        factor: How many times longer texts become.
        original_positions: Length that the model was trained on (``max_position_embeddings``).
    """

    def __init__(self, factor: float, original_positions: int) -> None:
        self.factor, self.original_positions = factor, original_positions

    def check(self, head_width: int) -> None:
        """As for :class:`Rope`."""
        _check(self.factor, self.original_positions)
        if head_width < 4:
            raise UserError(f"DynamicRope cannot slow a head of width {head_width}, which is one pair; expected 4")

    def turns(self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float) -> Tensor:
        """As for :class:`Rope`."""
        length_BT = (longest(positions_BT, segments_BT) + 1).clamp(min=self.original_positions)
        growth_BT = self.factor * length_BT / self.original_positions - (self.factor - 1)
        base_B1T1 = base * growth_BT[:, None, :, None] ** (head_width / (head_width - 2))
        return 1.0 / powers(head_width, base_B1T1, positions_BT.device)


class YarnRope(Rope):
    """Fast pairs turn as before, slow ones slower by the factor, those between are blended (YaRN, arXiv 2309.00071).

    Args:
        factor: How many times longer texts become.
        original_positions: Length that the model was trained on.
        attention_factor: Times queries and keys; if not given, ``0.1 * log(factor) + 1``, or what ``mscale`` makes it.
        beta_fast: Pairs that turn round at least so often within the original length stay as they are.
        beta_slow: Pairs that turn round at most so often are slowed by the whole factor.
        mscale: With ``mscale_all_dim`` (both or none count): the attention factor is the quotient of what they make.
        mscale_all_dim: See ``mscale``.
        truncate: Whether the borders between the pairs are rounded outwards to whole ones.
    """

    def __init__(
        self,
        factor: float,
        original_positions: int,
        *,
        attention_factor: float | None = None,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        mscale: float | None = None,
        mscale_all_dim: float | None = None,
        truncate: bool = True,
    ) -> None:
        self.factor, self.original_positions, self.truncate = factor, original_positions, truncate
        self.beta_fast, self.beta_slow = beta_fast, beta_slow
        if attention_factor is not None:
            self.attention_factor = attention_factor
        elif mscale and mscale_all_dim:
            self.attention_factor = self._sharpened(mscale) / self._sharpened(mscale_all_dim)
        else:
            self.attention_factor = self._sharpened(1.0)

    def check(self, head_width: int) -> None:
        """As for :class:`Rope`."""
        _check(self.factor, self.original_positions)
        if not self.beta_fast >= self.beta_slow > 0:
            raise UserError(
                f"beta_fast is {self.beta_fast} and beta_slow {self.beta_slow}; expected the first to be at least the "
                f"second, and both above 0 ({WHERE})"
            )

    def turns(self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float) -> Tensor:
        """As for :class:`Rope`."""
        first, last = self._pair(self.beta_fast, head_width, base), self._pair(self.beta_slow, head_width, base)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_width - 1)
        last += 0.001 if first == last else 0
        pairs = torch.arange(head_width // 2, dtype=torch.float32, device=positions_BT.device)
        kept = 1 - ((pairs - first) / (last - first)).clamp(0, 1)
        radian = powers(head_width, base, positions_BT.device)
        return 1.0 / (self.factor * radian) * (1 - kept) + 1.0 / radian * kept

    def _pair(self, rounds: float, head_width: int, base: float) -> float:
        """Which pair turns round so often within the original length; not a whole number."""
        return head_width * math.log(self.original_positions / (rounds * 2 * math.pi)) / (2 * math.log(base))

    def _sharpened(self, scale: float) -> float:
        return 0.1 * scale * math.log(max(self.factor, 1.0)) + 1.0


class Llama3Rope(Rope):
    """Short waves stay, long ones are stretched by the factor, those between are blended (Llama 3.1, arXiv 2407.21783).

    Args:
        factor: How many times longer texts become.
        original_positions: Length that the model was trained on.
        low_freq_factor: Waves longer than the original length divided by this are stretched by the whole factor.
        high_freq_factor: Waves shorter than the original length divided by this stay as they are.
    """

    def __init__(
        self, factor: float, original_positions: int, *, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0
    ) -> None:
        self.factor, self.original_positions = factor, original_positions
        self.low_freq_factor, self.high_freq_factor = low_freq_factor, high_freq_factor

    def check(self, head_width: int) -> None:
        """As for :class:`Rope`."""
        _check(self.factor, self.original_positions)
        if not self.high_freq_factor > self.low_freq_factor > 0:
            raise UserError(
                f"high_freq_factor is {self.high_freq_factor} and low_freq_factor {self.low_freq_factor}; expected the "
                f"first to be above the second, and both above 0 ({WHERE})"
            )

    def turns(self, positions_BT: Tensor, segments_BT: Tensor, head_width: int, base: float) -> Tensor:
        """As for :class:`Rope`."""
        plain = 1.0 / powers(head_width, base, positions_BT.device)
        waves = self.original_positions / (2 * math.pi / plain)  # that fit into the original length
        kept = ((waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


def powers(head_width: int, base: float | Tensor, device: torch.device) -> Tensor:
    """``base ** (2k / K)`` of every pair k, fp32[..., K / 2]: positions until a pair has turned by one radian.

    The classes above divide by it as transformers does, operation by operation: a turn that is off by its last bit
    moves logits by 1e-4 within 500 positions.
    """
    return base ** (torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)


def longest(positions_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """The last position of the document that each position is of, int64[B, T]; nothing waits for the device."""
    tokens = segments_BT.shape[1]
    places_T = torch.arange(tokens, device=segments_BT.device)
    goes_on_BT = torch.zeros_like(segments_BT, dtype=torch.bool)
    goes_on_BT[:, :-1] = segments_BT[:, 1:] == segments_BT[:, :-1]
    last_BT = torch.where(goes_on_BT, tokens, places_T).flip(1).cummin(1).values.flip(1)
    return positions_BT.gather(1, last_BT)


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (k, k + K / 2) of every head by their angles, Llama's layout."""
    cos, sin = cos.to(x_BHTK.dtype), sin.to(x_BHTK.dtype)
    left, right = x_BHTK.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def _check(factor: float, original_positions: int = 1) -> None:
    at_least(1, {f"{WHERE}.factor": factor, f"{WHERE}.original_positions": original_positions})
