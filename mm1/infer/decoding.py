"""How the next token is chosen: the most likely one, or one drawn from the likely ones (nucleus: Holtzman et al. 2020).

What is drawn depends on the seed, the prompt's name and the place in the answer alone, so that company in a batch, its
size and the number of processes change no answer. Temperature, top-k and top-p are applied in the order of
transformers, beams are scored as it scores them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from mm1.errors import UserError, at_least


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded; greedily if nothing is set.

    Args:
        beams: Beams of beam search; 1 searches none.
        length_penalty: Beams are compared by log-likelihood divided by their length to this power; above 0 favours long
            answers.
        temperature: Logits are divided by it before a token is drawn; at 0 the most likely one is taken.
        top_k: Only the k most likely tokens are drawn; all at 0.
        top_p: Only the most likely tokens that together have this probability are drawn.
        seed: Owner of what is drawn, with the name of each prompt.
    """

    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self, where: str = "") -> None:
        """Refuse what cannot be decoded with.

        Args:
            where: What stands before a setting's name.

        Raises:
            UserError: Which setting, and what was expected.
        """
        at_least(1, {f"{where}beams": self.beams})
        at_least(0, {f"{where}temperature": self.temperature, f"{where}top_k": self.top_k})
        if not 0 < self.top_p <= 1:
            raise UserError(f"{where}top_p is {self.top_p}; expected more than 0 and at most 1")
        if self.beams > 1 and self.sampled:
            raise UserError(
                f"{where}beams is {self.beams} and {where}temperature {self.temperature}; expected one of them: beams "
                f"are not drawn (temperature 0)"
            )

    @property
    def sampled(self) -> bool:
        """Whether anything is left to chance."""
        return self.temperature > 0

    def chances(self, name: str, tokens: int) -> Tensor:
        """fp32[tokens] in [0, 1): what decides each token of the answer to the prompt of this name."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16], "little")
        drawn = numpy.random.Generator(numpy.random.Philox(key=key)).random(tokens, dtype=numpy.float32)
        return torch.from_numpy(drawn)

    def choose(self, scores_BV: Tensor, chance_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The next token int64[B], and how far the best score is above the second, fp32[B].

        Nothing here waits for the device.

        Args:
            scores_BV: Logits.
            chance_B: Numbers of :meth:`chances`, needed where anything is drawn.
        """
        best_B2 = scores_BV.topk(min(2, scores_BV.shape[-1]), dim=-1).values
        margin_B = best_B2[:, 0] - best_B2[:, -1]
        if not self.sampled:
            return scores_BV.argmax(dim=-1), margin_B
        assert chance_B is not None
        shares_BV, order_BV = self.shares(scores_BV)
        total_BV = shares_BV.cumsum(-1)
        beyond_B1 = chance_B[:, None] * total_BV[:, -1:]
        place_B1 = (total_BV <= beyond_B1).sum(-1, keepdim=True)
        last_B1 = (shares_BV > 0).sum(-1, keepdim=True) - 1
        return order_BV.gather(-1, torch.minimum(place_B1, last_B1))[:, 0], margin_B

    def shares(self, scores_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each token that may be drawn, falling, fp32[B, V], 0 for all others; and whose it is."""
        sorted_BV, order_BV = (scores_BV / self.temperature).sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            sorted_BV[:, self.top_k :] = -torch.inf
        shares_BV = sorted_BV.softmax(dim=-1)
        before_BV = shares_BV.cumsum(-1) - shares_BV
        return shares_BV * ((before_BV < self.top_p) | (before_BV == 0)), order_BV


GREEDY = Decoding()
