"""MM1: an image encoder, a connector and a decoder, trained together on text targets (MM1, section 3.2, figure 3).

pictures --encode--> patches --connect--> tokens --splice into the row--> decode --> next text token
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mm1.batch import IMAGE, Batch, ImageSpec
from mm1.model.connector import Connector
from mm1.model.decoder import Decoder, Output
from mm1.model.init import Whole, init_parameters
from mm1.model.loss import LossSums, Score, cross_entropy_sum, loss_sums
from mm1.model.moe.routing import Places
from mm1.model.splice import check, splice
from mm1.model.vision import VisionEncoder
from mm1.sample import WHOLE, Views
from mm1.template import OURS, Template


class MM1(nn.Module):
    """The whole model. Built empty, under ``torch.device("meta")`` if it is big, then filled by :meth:`init_weights`.

    Args:
        vision: Image encoder.
        connector: Makes the connector of (encoder width, decoder width, patches a side).
        decoder: Language model.
        views: In which views a picture is shown (MM1, section 5); whole, if not given. No weight depends on it.
    """

    mean_C11: Tensor
    std_C11: Tensor
    template: Template = OURS  # in whose words conversations are put to it; kept in checkpoints, beside the tokenizer

    def __init__(
        self,
        vision: VisionEncoder,
        connector: Callable[[int, int, int], Connector],
        decoder: Decoder,
        *,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.views = views or WHOLE
        self.vision = vision
        self.connector = connector(vision.width, decoder.width, vision.grid)
        self.decoder = decoder
        self.score: Score = cross_entropy_sum  # of hidden states, head and targets; where ranks share the head, another
        self.in_step = False  # whether every batch has to pass every part, as where ranks share the weights
        self.register_buffer("mean_C11", torch.empty(3, 1, 1))
        self.register_buffer("std_C11", torch.empty(3, 1, 1))

    def forward(self, batch: Batch) -> Output:
        """Read packed rows; the hidden state at each position is what predicts the next token.

        Raises:
            UserError: The batch does not fit the model (on an accelerator a device assertion).
        """
        check(batch, self.connector.tokens, self.vision.image_px, self.decoder.vocabulary)
        x_BTD = self.embed(batch.tokens_BT, self.encode_images(batch.images_ICHW))
        places = Places(batch.segments_BT > 0, batch.tokens_BT == IMAGE, batch.sources_BT, len(batch.sources))
        return self.decoder(x_BTD, batch.segments_BT, batch.positions_BT, places=places)

    def losses(self, batch: Batch) -> LossSums:
        """Everything a step adds up: cross-entropy on the targets and what the routers did."""
        return loss_sums(self(batch), batch, self.decoder.head_VD, self.score)

    def encode_images(self, images_ICHW: Tensor) -> Tensor:
        """uint8 pictures [I, 3, S, S] -> their tokens [I, N, D]; I may be 0.

        In training no picture still means one: a blank one is encoded and none of its tokens is kept. Every parameter
        then has a (zero) gradient in every step, on which gradient reduction across ranks relies: a rank whose rows
        are all text would otherwise leave the others waiting.
        """
        images = len(images_ICHW)
        if images == 0:
            if not (self.in_step or (self.training and torch.is_grad_enabled())):
                return self.decoder.embedding.weight.new_empty(0, self.connector.tokens, self.decoder.width)
            side = self.vision.image_px
            images_ICHW = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=images_ICHW.device)
        # Pictures come in the order that decoders write, channels last; here that order costs nothing to change.
        x_ICHW = images_ICHW.to(torch.float32, memory_format=torch.contiguous_format)
        x_ICHW = (x_ICHW / 255 - self.mean_C11.float()) / self.std_C11.float()
        patches_IPV = self.vision(x_ICHW.to(self.image_dtype))
        return self.connector(patches_IPV)[:images]

    def embed(self, tokens_BT: Tensor, features_IND: Tensor) -> Tensor:
        """Token embeddings with the pictures' tokens in their places, [B, T, D]."""
        x_BTD = self.decoder.embedding(tokens_BT.where(tokens_BT != IMAGE, 0))
        return splice(x_BTD, tokens_BT, features_IND)

    def parts(self) -> dict[str, nn.Module]:
        """What can be frozen or given its own learning rate, by name."""
        return {"vision": self.vision, "connector": self.connector, "decoder": self.decoder}

    def compile_parts(self) -> None:
        """Compile what repeats, in place: the decoder's layers, the encoder's blocks, the connector.

        The first step of each kind of batch then takes half a minute. Layers are compiled one by one, since they are
        alike and the second is free; pictures of a batch vary in number, so what sees them is compiled for any number.
        """
        for layer in self.decoder.layers:
            layer.compile()
        for block in self.vision.blocks:
            block.compile(dynamic=True)
        self.connector.compile(dynamic=True)

    @property
    def image_spec(self) -> ImageSpec:
        """How pictures are prepared for this model."""
        vision, tokens = self.vision, self.connector.tokens
        looks = vision.mean, vision.std, vision.resize, vision.interpolation
        return ImageSpec(vision.image_px, tokens, *looks, views=self.views)

    @property
    def image_dtype(self) -> torch.dtype:
        """The type pictures are fed in: that of the weights they meet first."""
        return next(self.vision.parameters()).dtype

    def init_weights(self, seed: int, whole: Whole = nullcontext) -> None:
        """Fill every parameter and buffer in place (see :mod:`mm1.model.init`); the same seed, the same model."""
        init_parameters(self, seed, len(self.decoder.layers), whole)
        self.mean_C11.copy_(torch.tensor(self.vision.mean).view(3, 1, 1))
        self.std_C11.copy_(torch.tensor(self.vision.std).view(3, 1, 1))

    def load_pretrained(self) -> None:
        """Load the published weights that the configuration names; call it after :meth:`init_weights`.

        Raises:
            UserError: They cannot be had or do not fit.
        """
        self.vision.load_pretrained()
