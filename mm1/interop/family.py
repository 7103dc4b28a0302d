"""What a family of open decoders is: its settings and the places of its tensors, told once and read both ways.

A family is a class in its own file under :mod:`mm1.interop.families`; nothing else is edited to add one. The base holds
what all of them share with Llama, and a family says where it differs.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from mm1.errors import UserError
from mm1.interop.rope_settings import rope_arguments, rope_settings
from mm1.interop.settings import Settings

Pieces: TypeAlias = tuple[str, ...]  # their tensors, one below the other in one of ours


@dataclass(frozen=True)
class Place:
    """Where one tensor of ours lies in a family's files.

    Args:
        pieces_E: Names of their tensors, which lie below one another in ours; one tuple for each expert.
        stacked: Whether ours has the experts as its first axis; else there is one tuple.
    """

    pieces_E: tuple[Pieces, ...]
    stacked: bool

    def blocks(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Their names and the parts of our ``tensor`` that they are, as views: to be filled, or to be written."""
        for pieces, part in zip(self.pieces_E, tensor.unbind() if self.stacked else [tensor], strict=True):
            yield from zip(pieces, part.chunk(len(pieces)), strict=True)


def _attention() -> dict[str, Pieces]:
    named = ((part, kind) for part in "qkvo" for kind in ("weight", "bias"))
    return {f"attention.{part}.{kind}": (f"self_attn.{part}_proj.{kind}",) for part, kind in named}


def experts(block: str, gate: str, up: str, down: str) -> dict[str, Pieces]:
    """Places of a sparse layer whose experts are stored one by one, under ``block``."""
    expert = f"{block}.experts.{{expert}}"
    return {
        "ffn.router.weight": (f"{block}.gate.weight",),
        "ffn.experts.gate_up": (f"{expert}.{gate}.weight", f"{expert}.{up}.weight"),
        "ffn.experts.down": (f"{expert}.{down}.weight",),
    }


STACKED = {  # transformers 5 keeps the experts of a layer as ours are
    "ffn.router.weight": ("mlp.gate.weight",),
    "ffn.experts.gate_up": ("mlp.experts.gate_up_proj",),
    "ffn.experts.down": ("mlp.experts.down_proj",),
}

MANY = 4096  # layers, or experts of one: no model has more, and each is a module

QK_NORM = {f"attention.{part}_norm.weight": (f"self_attn.{part}_norm.weight",) for part in "qk"}


def sparse(settings: Settings, count: str, renormalise: bool = True, **more: Any) -> dict[str, Any]:
    """The Decoder's ``moe`` with as many experts as the key ``count`` says and other arguments of the MoE."""
    experts, top_k = settings.whole(count, most=MANY), settings.whole("num_experts_per_tok")
    arguments = {"experts": experts, "top_k": top_k, **more}
    if not renormalise:
        arguments["router"] = {"class_path": "mm1.model.moe.routers.TopK", "init_args": {"renormalise": False}}
    return {"moe": {"class_path": "mm1.model.moe.layer.MoE", "init_args": arguments}}


def renormalised(moe: Mapping[str, Any]) -> bool | None:
    """Whether the shares of an MoE's arguments are brought to one, None where its router knows nothing of it."""
    return ((moe.get("router") or {}).get("init_args") or {}).get("renormalise")


class Family:
    """A decoder family, with Llama's settings and places where a subclass says nothing else.

    Attributes:
        architectures: What ``config.json`` calls it.
        defaults: Settings that ``config.json`` may leave out, where transformers has another default than null.
        fixed: What is always so in the family, by argument of :class:`mm1.model.decoder.Decoder`.
        whole: Places of the tensors outside the layers.
        layouts: Places of a layer's tensors, relative to the layer, in each of the ways they are found on disk.
        ignored: Their tensors that hold nothing learned: tables that old files keep.
    """

    architectures: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {"rms_norm_eps": 1e-6}
    fixed: ClassVar[Mapping[str, Any]] = {}
    whole: ClassVar[Mapping[str, Pieces]] = {
        "embedding.weight": ("model.embed_tokens.weight",),
        "norm.weight": ("model.norm.weight",),
        "head.weight": ("lm_head.weight",),
    }
    layer: ClassVar[Mapping[str, Pieces]] = {
        **_attention(),
        "attention_norm.weight": ("input_layernorm.weight",),
        "ffn_norm.weight": ("post_attention_layernorm.weight",),
        "ffn.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "ffn.down.weight": ("mlp.down_proj.weight",),
    }
    layouts: ClassVar[tuple[Mapping[str, Pieces], ...]] = ({},)
    ignored: ClassVar[re.Pattern[str]] = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """``init_args`` of the Decoder that computes the same.

        Raises:
            UserError: A setting is missing, misshaped, or asks for something that is not computed here.
        """
        settings.only("hidden_act", "silu", "swish")
        settings.only("mlp_bias", False)
        settings.only("quantization_config")
        heads, width = settings.whole("num_attention_heads"), settings.whole("hidden_size")
        head_width = settings.whole_or_none("head_dim")
        common = {
            "vocabulary": settings.whole("vocab_size"),
            "width": width,
            "layers": settings.whole("num_hidden_layers", most=MANY),
            "heads": heads,
            "kv_heads": settings.whole_or_none("num_key_value_heads") or heads,
            "ffn_width": settings.whole("intermediate_size"),
            "tied": settings.flag("tie_word_embeddings"),
            "norm_eps": settings.real("rms_norm_eps"),
        }
        odd_heads = {} if head_width is None or head_width * heads == width else {"head_width": head_width}
        return common | odd_heads | rope_arguments(settings) | dict(self.fixed) | self.own_arguments(settings)

    def own_arguments(self, settings: Settings) -> dict[str, Any]:
        """What only this family has; subclasses override."""
        return {}

    def settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """``config.json`` of a decoder built from ``arguments`` (every one of them there), as far as the family goes.

        Whether it goes far enough is seen by reading it back: :meth:`arguments` must give the same.
        """
        names = {
            "vocab_size": "vocabulary",
            "hidden_size": "width",
            "num_hidden_layers": "layers",
            "num_attention_heads": "heads",
            "num_key_value_heads": "kv_heads",
            "intermediate_size": "ffn_width",
            "tie_word_embeddings": "tied",
            "rms_norm_eps": "norm_eps",
        }
        head_width = arguments["head_width"] or arguments["width"] // arguments["heads"]
        common = {key: arguments[name] for key, name in names.items()}
        about = {"architectures": list(self.architectures[:1]), "model_type": type(self).__module__.rpartition(".")[2]}
        return {**about, **common, "head_dim": head_width, "hidden_act": "silu"} | (
            rope_settings(arguments) | self.own_settings(arguments)
        )

    def own_settings(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The way back from :meth:`own_arguments`; subclasses override."""
        return {}

    def places(self, tensors: Mapping[str, Tensor], layout: int) -> dict[str, Place]:
        """Where each of our ``tensors`` (a decoder's ``state_dict``, on any device) lies in files of a ``layout``.

        Raises:
            UserError: The family has no place for one of them.
        """
        layer = {**self.layer, **self.layouts[layout]}
        return {name: self._place(name, tensor, layer) for name, tensor in tensors.items()}

    def _place(self, name: str, tensor: Tensor, layer: Mapping[str, Pieces]) -> Place:
        found = re.fullmatch(r"(layers\.\d+\.)(.+)", name)
        prefix, pieces = ("model." + found[1], layer.get(found[2])) if found else ("", self.whole.get(name))
        if pieces is None:
            raise UserError(f"{type(self).__name__} has no place for {name}; expected a decoder with its parts alone")
        if "{expert}" not in pieces[0]:
            return Place((tuple(prefix + piece for piece in pieces),), stacked=False)
        each = (tuple(prefix + piece.format(expert=expert) for piece in pieces) for expert in range(len(tensor)))
        return Place(tuple(each), stacked=True)


@cache
def families() -> dict[str, Family]:
    """Every family of :mod:`mm1.interop.families` by the name of its file."""
    package = importlib.import_module("mm1.interop.families")
    found = {}
    for name in (module.name for module in pkgutil.iter_modules(package.__path__)):
        contents = vars(importlib.import_module(f"{package.__name__}.{name}")).values()
        kinds = [kind for kind in contents if isinstance(kind, type) and issubclass(kind, Family)]
        (found[name],) = (kind() for kind in kinds if kind.__module__.endswith(f".{name}"))
    return found


def family_of(settings: Settings) -> tuple[str, Family]:
    """The family that a ``config.json`` names, and its name.

    Raises:
        UserError: None of ours; those that are ours are listed.
    """
    names = settings.get("architectures")
    if not isinstance(names, list) or not names:
        raise settings.fault("architectures", f"a list with one of {_known()}")
    for name, family in families().items():
        if names[0] in family.architectures:
            return name, family
    raise settings.fault("architectures", f"one of {_known()}")


def _known() -> str:
    return ", ".join(architecture for family in families().values() for architecture in family.architectures)
