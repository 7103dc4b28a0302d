"""MM1 as transformers wants it: a configuration and a model with ``generate``, around the one model of this package.

Nothing is computed here a second time: the decoder runs as it does everywhere and only its memory is transformers' own
(:class:`Memory`), so that beam search, sampling and whatever else transformers brings can reorder it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from mm1.batch import IGNORE, IMAGE
from mm1.errors import UserError
from mm1.interop.remote_code import Installed, auto_map, leave_code
from mm1.model import stored
from mm1.model.attention import causal_mask
from mm1.model.build import build
from mm1.model.decoder import Output
from mm1.model.mm1 import MM1


class MM1Config(Installed, PreTrainedConfig):
    """The content of ``config.json``.

    Args:
        mm1: What a checkpoint says of itself, without the weights: ``format``, ``model`` (the class-path tree that
            builds the model) and ``tokenizer`` (control ids). All below follows from it and is for tools to read.
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads: Of the decoder.
        image_token_index: The id that stands where a picture's token goes; it may lie beyond the vocabulary.
        tokens_per_image: Tokens per picture.
    """

    model_type = "mm1"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    mm1: dict[str, Any] | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    image_token_index: int = -1
    tokens_per_image: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    auto_map: dict[str, str] | None = None

    @classmethod
    def of(cls, model: MM1, tree: dict[str, Any], tokenizer: dict[str, Any], image_token_index: int) -> MM1Config:
        """The configuration of ``model``, which ``tree`` builds; ``tokenizer`` gives the ids of bos, eos and pad."""
        decoder = model.decoder
        return cls(
            mm1={"format": stored.FORMAT, "model": tree, "tokenizer": tokenizer},
            vocab_size=decoder.vocabulary,
            hidden_size=decoder.width,
            num_hidden_layers=len(decoder.layers),
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.kv_heads,
            image_token_index=image_token_index,
            tokens_per_image=model.connector.tokens,
            bos_token_id=tokenizer["bos"],
            eos_token_id=tokenizer["eos"],
            pad_token_id=tokenizer["pad"],
            tie_word_embeddings=decoder.head is None,
            architectures=["MM1ForConditionalGeneration"],
            dtype=decoder.norm.weight.dtype,
            auto_map=auto_map(AutoConfig="MM1Config", AutoModelForImageTextToText="MM1ForConditionalGeneration"),
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As transformers does it, with the code that finds this class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        leave_code(save_directory)


@dataclass
class MM1Output(ModelOutput):
    """What :class:`MM1ForConditionalGeneration` returns; transformers' names.

    Args:
        loss: Mean cross-entropy of the labels, and in training mode the routers' loss with it, as mm1-train adds it up.
        logits: fp32[B, T, vocabulary].
        past_key_values: The memory of positions read, if asked for.
        hidden_states: The last hidden states alone, if asked for.
        image_hidden_states: The pictures' tokens [I, N, D], if there were pictures.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


class Memory:
    """A cache of transformers behind the interface of :class:`mm1.model.attention.KVCache`.

    Args:
        cache: Where keys and values are; one that grows, as ``DynamicCache`` does.
        segments_BT: Segments of every position, those of the cache and the new ones: 1, or 0 for padding.
    """

    def __init__(self, cache: Cache, segments_BT: Tensor) -> None:
        self._cache, self._segments_BT = cache, segments_BT
        self.length: int = cache.get_seq_length()

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return all of them."""
        return self._cache.update(k_BGTK, v_BGTK, layer)

    def mask(self, segments_BT: Tensor, window: int | None = None) -> Tensor:
        """Who of the new positions may look at what is stored."""
        return causal_mask(segments_BT, self._segments_BT, self.length, window)


class MM1ForConditionalGeneration(Installed, PreTrainedModel, GenerationMixin):
    """MM1 for ``AutoModelForImageTextToText``; ``.model`` is the :class:`mm1.model.mm1.MM1` itself.

    Args:
        config: See :class:`MM1Config`.

    Raises:
        UserError: The configuration builds no model, or (in ``from_pretrained``) weights are missing.
    """

    config_class = MM1Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"mean_C11", "std_C11"}  # 8 bits of a mean would shift pictures

    def __init__(self, config: MM1Config) -> None:
        super().__init__(config)
        self.model: MM1 = build((config.mm1 or {}).get("model") or {}, device=str(torch.get_default_device()))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **loss_options: Any,
    ) -> MM1Output | tuple[Any, ...]:
        """Read B rows of T new positions.

        Args:
            input_ids: int64[B, T]; ``config.image_token_index`` where a picture's token goes.
            pixel_values: uint8[B, P, 3, S, S]; each row's pictures in order. A row takes as many as it has places for;
                what is left is padding, so that every input has B rows and can be repeated, split and chosen by them.
            attention_mask: int64[B, past + T]; 0 is padding, on either side.
            position_ids: int64[B, T]; counted from the first position that is no padding if not given.
            past_key_values: What was read before.
            inputs_embeds: [B, T, D] instead of ``input_ids``, with its pictures in place.
            labels: int64[B, T]; -100, padding and places of pictures are no targets.
            use_cache: Whether to remember; as said, else in evaluation mode.
            logits_to_keep: The last so many positions' logits, all of them for 0, or those at these places.
            output_hidden_states: Whether to return the last hidden states.
            return_dict: False for a tuple.
            loss_options: Of transformers' loss, such as ``num_items_in_batch``.

        Raises:
            UserError: Pictures and their places, or masks and positions do not match.
        """
        x_BTD, features_IND = self._embed(input_ids, inputs_embeds, pixel_values)
        if past_key_values is None and self._remembers(use_cache):
            past_key_values = DynamicCache()
        seen_BT, new = _segments(x_BTD, past_key_values, attention_mask), slice(-x_BTD.shape[1], None)
        if position_ids is None:
            position_ids = (seen_BT.cumsum(-1) - 1).clamp(min=0)[:, new]
        memory: Any = None if past_key_values is None else Memory(past_key_values, seen_BT)
        output = self.model.decoder(x_BTD, seen_BT[:, new], position_ids.expand(x_BTD.shape[:2]), memory)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.decoder.logits(output.hidden_BTD[:, kept])
        loss = None if labels is None else self._loss(output, logits, labels, seen_BT[:, new], loss_options)
        hidden = (output.hidden_BTD,) if output_hidden_states else None
        found = MM1Output(loss, logits, past_key_values, hidden, features_IND)
        return found if return_dict else found.to_tuple()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it.

        Raises:
            UserError: A router of the model looks beyond the tokens so far.
        """
        self.model.decoder.check_generates()
        mixin: Any = super()  # which asks for more of a model than its own type says
        return mixin.generate(*args, **kwargs)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """The tokens [I, N, D] of pictures uint8[I, 3, S, S]."""
        return self.model.encode_images(pixel_values)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:  # type: ignore[override]
        """Put another token embedding in place."""
        self.model.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, None where it is the token embedding itself."""
        return self.model.decoder.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Put another head in place."""
        self.model.decoder.head = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers does it; the model and its configuration know of the new size."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        tree = self.config.mm1["model"]["init_args"]["decoder"]["init_args"]
        tree["vocabulary"] = self.model.decoder.vocabulary = embedding.num_embeddings
        return embedding

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass; transformers' switches set it."""
        return bool(self.model.decoder.checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.model.decoder.checkpointing = value

    def _init_weights(self, module: nn.Module) -> None:
        """A new model is filled by mm1's own rule; one that was read must have been whole."""
        tensors = self.model.state_dict(keep_vars=True)
        missing = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if 0 < len(missing) < len(tensors) and any(module is part for part in self.modules()):
            raise UserError(
                f"{self.config.name_or_path} lacks {len(missing)} tensors of its model or has them in another shape, "
                f"the first: {missing[0]}; expected a folder that mm1-convert export --to transformers wrote"
            )
        if isinstance(module, MM1):
            module.init_weights(seed=0)

    def _remembers(self, use_cache: bool | None) -> bool:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return False  # the recomputation would remember twice
        return not self.training if use_cache is None else use_cache

    def _embed(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the decoder reads, [B, T, D], and the pictures' tokens in it."""
        if input_ids is not None and inputs_embeds is None:
            tokens_BT = input_ids.where(input_ids != self.config.image_token_index, IMAGE)
            features_IND = self.model.encode_images(self._pictures(tokens_BT, pixel_values))
            return self.model.embed(tokens_BT, features_IND), features_IND
        if inputs_embeds is None or input_ids is not None or pixel_values is not None:
            raise UserError(
                "the model got input_ids and inputs_embeds, or neither, or pixel_values with inputs_embeds; expected "
                "input_ids, or inputs_embeds with their pictures in place"
            )
        return inputs_embeds, None

    def _pictures(self, tokens_BT: Tensor, pixel_values: Tensor | None) -> Tensor:
        """The pictures uint8[I, 3, S, S] that have places, row by row."""
        each, side = self.model.connector.tokens, self.model.vision.image_px
        places_B = (tokens_BT == IMAGE).sum(1)
        if pixel_values is None:
            pixel_values = tokens_BT.new_zeros(len(tokens_BT), 0, 3, side, side, dtype=torch.uint8)
        rows, given = pixel_values.shape[:2]
        if tuple(pixel_values.shape[2:]) != (3, side, side) or rows != len(tokens_BT):
            raise UserError(
                f"pixel_values have shape {tuple(pixel_values.shape)} for {len(tokens_BT)} rows of text; expected "
                f"({len(tokens_BT)}, pictures a row, 3, {side}, {side}), as MM1Processor makes them"
            )
        wanted_B = places_B // each
        if bool(((places_B % each != 0) | (wanted_B > given)).any()):
            raise UserError(
                f"the rows of input_ids have {places_B.tolist()} places for tokens of pictures, {each} a picture, and "
                f"pixel_values hold up to {given} pictures a row; expected as many pictures as there are places for"
            )
        return pixel_values[torch.arange(given, device=wanted_B.device) < wanted_B[:, None]]

    def _loss(
        self, output: Output, logits: Tensor, labels: Tensor, segments_BT: Tensor, options: dict[str, Any]
    ) -> Tensor:
        labels = labels.masked_fill((segments_BT == 0) | (labels == self.config.image_token_index), IGNORE)
        loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        return loss + output.router.loss / (segments_BT > 0).sum() if self.training else loss


def _segments(x_BTD: Tensor, cache: Cache | None, attention_mask: Tensor | None) -> Tensor:
    """int64[B, past + T] of the positions that were read and the new ones: 1, or 0 for padding."""
    if getattr(cache, "is_compileable", False):
        raise UserError(f"the cache is a {type(cache).__name__}; expected one that grows (cache_implementation)")
    shape = (x_BTD.shape[0], x_BTD.shape[1] + (0 if cache is None else cache.get_seq_length()))
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.int64, device=x_BTD.device)
    if tuple(attention_mask.shape) != shape:
        raise UserError(
            f"attention_mask is {tuple(attention_mask.shape)}; expected {shape}, a number for every position, those in "
            f"the cache and the new ones"
        )
    return attention_mask.long()
