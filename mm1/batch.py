"""Where data and model meet: packed rows of tokens and pictures, and the numbers a picture is prepared by.

The model never sees a tokenizer and the data never sees a module; both know this file. A row of T = 6 positions that
holds two documents, ``[picture of 2 tokens] a b`` and ``c``, and one position of padding::

    tokens      I   I   a   b   c   0        I = IMAGE, the place of a picture's token
    segments    1   1   1   1   2   0        0 is padding; attention never leaves a segment
    positions   0   1   2   3   0   0        restart in every document
    targets     .   a   b   .   .   .        . = IGNORE

The last image position predicts the first text token; a picture, padding, or the first token of another document is
never a target. That only text is learned and that attention stays inside a document is the common reading of MM1; it
could not be checked against the paper's text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mm1.errors import UserError
from mm1.sample import WHOLE, Views

IMAGE = -1  # not a vocabulary id, so no text can ever spell a picture
IGNORE = -100  # the value torch's cross-entropy skips


@dataclass(frozen=True)
class ImageSpec:
    """How pictures are prepared for one encoder, and how many tokens each becomes. Travels with the weights.

    Args:
        size_px: Side of the square that the encoder sees.
        mean: Per-channel mean of the encoder's training data, in 0..1.
        std: Per-channel standard deviation, in 0..1.
        resize: ``squash`` ignores the aspect (DFN-5B's way), ``crop`` scales the short side and cuts the centre
            (timm's way), ``pad`` scales the long side and fills with the mean.
        interpolation: ``bicubic`` or ``bilinear``.
        tokens: Tokens per picture after the connector; where a picture is shown in several views, of each of them.
        views: In which views a picture is shown.
    """

    size_px: int
    tokens: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resize: Literal["squash", "crop", "pad"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    views: Views = WHOLE


@dataclass
class Batch:
    """Rows of packed documents. B rows, T positions a row, I pictures in the whole batch.

    Args:
        tokens_BT: int64[B, T]; vocabulary ids, ``IMAGE`` where a picture's token goes.
        targets_BT: int64[B, T]; what each position predicts, ``IGNORE`` where nothing is learned.
        segments_BT: int64[B, T]; 1, 2, ... for the documents of a row, 0 for padding.
        positions_BT: int64[B, T]; position within the document, for rotary embedding.
        sources_BT: int64[B, T]; index into ``sources``, for losses and shares per stream.
        images_ICHW: uint8[I, 3, S, S]; the pictures in the order of their places, row by row, each view of a picture
            one of them. I may be 0.
        sources: Names of the streams.
        documents: Document ids, for exactly-once accounting.
        damaged: Documents that could not be read and are padding now: source, where each is, and why.
        window_targets: Targets in all micro-batches of this optimizer step on this rank, the denominator of the loss.
        window_tokens: Positions that are not padding, likewise, the denominator of router statistics.
        state: What the loader needs to go on after this batch, a small plain value.
        learned_M: int64; where targets stand in the flattened batch, counted before the batch leaves the host, since
            counting on a GPU means waiting for it. None on a CPU, and where nobody counted.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    segments_BT: Tensor
    positions_BT: Tensor
    sources_BT: Tensor
    images_ICHW: Tensor
    sources: tuple[str, ...] = ("documents",)
    documents: tuple[str, ...] = ()
    damaged: tuple[tuple[str, str, str], ...] = ()
    window_targets: int = 0
    window_tokens: int = 0
    state: dict[str, Any] | None = field(default=None, repr=False)
    learned_M: Tensor | None = field(default=None, repr=False)

    def _map(self, move: Any) -> Batch:
        tensors = {f.name: move(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        counted = self if torch.device(device).type == "cpu" else self.counted()
        return counted._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for overlapped copies."""
        return self.counted()._map(lambda tensor: tensor.pin_memory())

    def counted(self) -> Batch:
        """The same batch with ``learned_M``."""
        return self if self.learned_M is not None else replace(self, learned_M=learned_places(self.targets_BT))

    def with_images(self, images_ICHW: Tensor) -> Batch:
        """The same rows with other pictures, as the blind arm needs."""
        return replace(self, images_ICHW=images_ICHW)

    @property
    def targets(self) -> int:
        """Number of learned positions."""
        return int((self.targets_BT != IGNORE).sum())

    @property
    def tokens(self) -> int:
        """Number of positions that are not padding."""
        return int((self.segments_BT > 0).sum())


def learned_places(targets_BT: Tensor) -> Tensor:
    """int64[M], where something is learned in the flattened batch."""
    return (targets_BT != IGNORE).flatten().nonzero().squeeze(1)


def targets_of(tokens_T: Tensor, segments_T: Tensor, learn_T: Tensor) -> Tensor:
    """What each position predicts: the next token where that is learned text of the same document, else ``IGNORE``.

    Works on int64[..., T] of any leading shape; ``learn_T`` is bool, true where the token itself may be a target.
    The drawing at the top of this module is its test.
    """
    targets_T = torch.full_like(tokens_T, IGNORE)
    following = tokens_T[..., 1:]
    wanted = (following != IMAGE) & (segments_T[..., 1:] == segments_T[..., :-1]) & (segments_T[..., 1:] > 0)
    targets_T[..., :-1] = torch.where(wanted & learn_T[..., 1:], following, IGNORE)
    return targets_T


def check_placeholders(batch: Batch, tokens_per_image: int) -> None:
    """Refuse a batch whose places for pictures and pictures do not match; splicing anyway would corrupt rows silently.

    Raises:
        UserError: Both counts, and the setting to look at.
    """
    places, images = int((batch.tokens_BT == IMAGE).sum()), batch.images_ICHW.shape[0]
    if places != images * tokens_per_image:
        raise UserError(
            f"the batch holds {places} image positions for {images} pictures; the connector makes {tokens_per_image} "
            f"tokens per picture, so {images * tokens_per_image} were expected; check that the shards were written "
            f"for this connector (model.connector.init_args.tokens)"
        )
