"""Matrix products in 8-bit floats as an option (Micikevicius et al. 2022, arXiv 2209.05433), by the library torchao.

A product's two sides are scaled to the range of their 8-bit type and rounded, forwards and for both gradients; weights,
what is between products, gradients and the optimizer stay as they are, and so do names and checkpoints. Where nothing
is learnt products are in full, as whoever loads a checkpoint has them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mm1.errors import UserError
from mm1.model.attention import Attention
from mm1.model.ffn import SwiGLU
from mm1.model.mm1 import MM1
from mm1.model.plain_block import PlainBlock

log = logging.getLogger(__name__)

Recipe = Literal["none", "tensorwise", "rowwise", "rowwise_with_gw_hp"]
EMULATE = False  # the same roundings by fp32 products, many times as slow as none: tests set it where no GPU is
MULTIPLE = 16  # of both sides of a weight, which cuBLAS asks for
CAPABILITY = (8, 9)  # the first with such products: Ada; Hopper is 9.0


def convert(model: MM1, recipe: Recipe, device: torch.device, *, ranks_of_a_layer: int = 1) -> None:
    """Let linear layers of decoder and encoder multiply in 8 bits, in place; parameters are the same ones.

    Before layers are compiled or shared by ranks, empty or filled. What stays as it is, and why: routers, whose small
    differences decide; embedding and head, whose rounding every token would feel; the connector and norms, which cost
    next to nothing; experts, which are grouped products and no linear layers.

    Args:
        model: The model.
        recipe: By one scale a tensor, by one a row, or by rows with the weight's gradient left in full.
        device: Where it will compute.
        ranks_of_a_layer: How many ranks share each layer (``trainer.strategy``, ``tensor``).

    Raises:
        UserError: A recipe that is not known, torchao is missing, the device has no such products, ranks share layers,
            or no layer's sizes fit.
    """
    if recipe == "none" or any(_is_float8(module) for module in model.modules()):
        return  # nothing to do, or done
    _check(recipe, device, ranks_of_a_layer)
    layers = dict(_layers(model))
    chosen = {layer for layer in layers.values() if _fits(layer.weight)}
    fused = [block for block in _projections(model) if _fits(block.attn.in_proj_weight)]
    if not chosen:
        raise UserError(
            f"model.float8 is {recipe}, and no linear layer of this model has both sizes a multiple of {MULTIPLE}; "
            f"expected none, or other widths (model.model.decoder)"
        )
    to_float8, config = _torchao(recipe)
    to_float8(model, module_filter_fn=lambda layer, _: layer in chosen, config=config)
    learning = _while_learning(type(to_float8(nn.Linear(MULTIPLE, MULTIPLE, device="meta"), config=config)))
    for layer in filter(_is_float8, model.modules()):
        layer.__class__ = learning
    for block in fused:
        out, width = block.attn.in_proj_weight.shape
        block.product = partial(_product, to_float8(nn.Linear(width, out, device="meta"), config=config))
    apart = [name for name, layer in layers.items() if layer not in chosen]
    rest = f"; {len(apart)} are not, such as {apart[0]}, for their sizes" if apart else ""
    log.info("float8 (%s): products of %d matrices%s", recipe, len(chosen) + len(fused), rest)


def _check(recipe: str, device: torch.device, ranks_of_a_layer: int) -> None:
    if recipe not in get_args(Recipe):
        raise UserError(f"model.float8 is {recipe!r}; expected one of {', '.join(get_args(Recipe))}")
    if ranks_of_a_layer > 1:
        raise UserError(
            f"model.float8 is {recipe} and {ranks_of_a_layer} ranks share each layer, whose products then are not "
            f"linear layers; expected none, or trainer.strategy.init_args.tensor 1"
        )
    if EMULATE:
        return
    if device.type != "cuda":
        raise UserError(
            f"model.float8 is {recipe} and the run computes on a {device.type}, which has no such products; expected "
            f"none, or a GPU (trainer.accelerator)"
        )
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise UserError(
            f"model.float8 is {recipe} and this GPU ({torch.cuda.get_device_name(device)}, compute capability "
            f"{found[0]}.{found[1]}) has no such products; expected none, or {CAPABILITY[0]}.{CAPABILITY[1]} and above "
            f"(Ada, Hopper)"
        )


def _layers(model: MM1) -> Iterator[tuple[str, nn.Linear]]:
    """What multiplies most, and is a linear layer that is called as one."""
    for name, part in model.decoder.layers.named_modules(prefix="decoder.layers"):
        if isinstance(part, Attention | SwiGLU) and "experts" not in name.split("."):
            yield from _linear(part, name)
    for index, block in enumerate(model.vision.blocks):
        apart = [m for m in block.modules() if isinstance(m, nn.MultiheadAttention)]
        called = isinstance(block, PlainBlock)  # elsewhere torch's own attention reads its matrices
        unread = {inner for attention in apart for inner in attention.modules()} if not called else set[nn.Module]()
        yield from ((n, layer) for n, layer in _linear(block, f"vision.blocks.{index}") if layer not in unread)


def _linear(part: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Linear]]:
    plain = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)  # and not what somebody has changed
    yield from ((name, m) for name, m in part.named_modules(prefix=prefix) if type(m) in plain)


def _projections(model: MM1) -> list[PlainBlock]:
    """Blocks whose queries, keys and values come from one matrix that is no layer's."""
    return [block for block in model.vision.blocks if isinstance(block, PlainBlock)]


def _fits(weight: Tensor) -> bool:
    return all(size % MULTIPLE == 0 for size in weight.shape)


def _is_float8(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("torchao.") for kind in type(module).__mro__)


def _while_learning(kind: type[nn.Module]) -> type[nn.Module]:
    """torchao's layer, but where nothing is learnt the plain one: so a model is judged as whoever loads it has it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return kind.forward(self, x.contiguous())  # scales of rows go with no other order

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": __name__})


def _product(layer: nn.Module, x: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
    """As ``layer`` would, by a weight and a bias that are another's, wherever training has put them by now."""
    if not torch.is_grad_enabled():
        return linear(x, weight_OK, bias_O)
    given = {"weight": weight_OK} | ({} if bias_O is None else {"bias": bias_O})
    return torch.func.functional_call(layer, given, (x.contiguous(),))


def _torchao(recipe: str) -> tuple[Any, Any]:
    """What converts, and how.

    Rows are padded to a multiple of 16, along which the gradient of a weight is summed: pictures have any number of
    patches. Where they are one, a compiler leaves it out.
    """
    with importing("model.float8"):
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    config = Float8LinearConfig.from_recipe_name(recipe)
    return convert_to_float8_training, replace(config, emulate=EMULATE, pad_inner_dim=True)


@contextmanager
def importing(setting: str) -> Iterator[None]:
    """Where torchao is imported: without its warnings of parts for other GPUs, which training does not use.

    Raises:
        UserError: It is missing, and which setting wants it.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except ImportError:
        raise UserError(f"{setting} needs the package torchao, which is not there; pip install 'mm1[float8]'") from None
    finally:
        logging.disable(before)
