"""Putting a picture's tokens into their places in a packed row.

tokens   I  I  a  b        embedded   .  .  a  b        features of one picture   p  q
                           spliced    p  q  a  b
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm1.batch import IMAGE, Batch, check_placeholders
from mm1.errors import UserError


def splice(x_BTD: Tensor, tokens_BT: Tensor, features_IND: Tensor) -> Tensor:
    """``x_BTD`` with the pictures' features, in order, at the places of ``IMAGE``, of which there are as many."""
    if not x_BTD.is_cuda:
        return x_BTD.masked_scatter((tokens_BT == IMAGE).unsqueeze(-1), features_IND.to(x_BTD.dtype))
    features_MD = features_IND.flatten(0, 1).to(x_BTD.dtype)
    return x_BTD.flatten(0, 1).index_copy(0, places(tokens_BT, len(features_MD)), features_MD).view_as(x_BTD)


def places(tokens_BT: Tensor, count: int) -> Tensor:
    """int64[count], where ``IMAGE`` stands in the flattened rows: found without waiting for a GPU to count them."""
    return torch.argsort((tokens_BT != IMAGE).flatten().to(torch.uint8), stable=True)[:count]


def check(batch: Batch, tokens_per_image: int, image_px: int, vocabulary: int) -> None:
    """Refuse a batch that does not fit the model.

    On a CPU by an error that says what to mend; on an accelerator, where reading a count would stall every step, by
    a device-side assertion on the number of places, the one fault that would otherwise go unnoticed.

    Raises:
        UserError: Places and pictures do not match, pictures of another size, or token ids beyond the vocabulary.
    """
    images = batch.images_ICHW
    if images.shape[0] and tuple(images.shape[1:]) != (3, image_px, image_px):
        raise UserError(
            f"the batch holds pictures of shape {tuple(images.shape[1:])}; the encoder takes (3, {image_px}, "
            f"{image_px}); check that the shards were written for this encoder (model.vision)"
        )
    if batch.tokens_BT.is_cuda:
        fits = (batch.tokens_BT == IMAGE).sum() == images.shape[0] * tokens_per_image
        torch._assert_async(fits, "the batch's image positions do not match its pictures")
        return
    check_placeholders(batch, tokens_per_image)
    largest = int(batch.tokens_BT.max())
    if largest >= vocabulary:
        raise UserError(
            f"the batch holds token id {largest}; the decoder's vocabulary has {vocabulary} entries; check that the "
            f"shards' tokenizer is the model's (model.decoder.init_args.vocabulary)"
        )
