"""Image encoders of open_clip and timm behind one contract: pictures in, a square grid of patch tokens out.

MM1's final encoder is a ViT-H/14 at 378 px trained by CLIP on DFN-5B (section 4); its open equal is open_clip's
``ViT-H-14-378-quickgelu``, tag ``dfn5b``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.factory import load_state_dict as read_published
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from mm1.errors import UserError
from mm1.model.open_clip_tower import preprocessing, tower
from mm1.model.plain_block import plain, run_blocks
from mm1.model.positions import follow_grid
from mm1.model.recompute import Checkpointing, checked
from mm1.model.weight_file import read_weights

Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bicubic", "bilinear"]
Rgb = tuple[float, float, float]

# What a published CLIP holds beside its image tower: the other tower, and what both are compared by.
TEXT_HALF = re.compile(
    r"positional_embedding|text_projection|logit_scale|logit_bias|attn_mask|"
    r"(token_embedding|transformer|ln_final|text|text_decoder)\..+"
)
# What a published timm tower holds after its last block and norm: a classifier and what pools for it.
POOLING_HALF = ("head.", "fc_norm.", "attn_pool.")


class VisionEncoder(nn.Module):
    """Base of all encoders. ``visual`` is the library's own tower, so its files' names are ours.

    Attributes:
        name: What the library calls the tower.
        width: Width V of a patch token.
        grid: Patches a side.
        image_px: Side of the square picture.
        mean, std: What pictures are normalised by.
        resize, interpolation: How pictures are brought to size, as :class:`mm1.batch.ImageSpec` says.
        checkpointing: What of its blocks the backward pass recomputes.
    """

    name: str
    visual: Any
    width: int
    grid: int
    image_px: int
    mean: Rgb
    std: Rgb
    resize: Resize
    interpolation: Interpolation
    checkpointing: Checkpointing = False

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Normalised float pictures [I, 3, S, S] -> patch tokens [I, P, V], no class token among them."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, first to last."""
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Replace random weights by published ones; nothing happens where none were asked for."""
        raise NotImplementedError

    def _set_preprocessing(
        self,
        published: Mapping[str, Any],
        mean: Rgb | None,
        std: Rgb | None,
        resize: Resize,
        interpolation: Interpolation | None,
    ) -> None:
        self.mean, self.std = mean or tuple(published["mean"]), std or tuple(published["std"])
        self.resize, self.interpolation = resize, interpolation or published["interpolation"]
        if not all(value > 0 for value in self.std):
            raise UserError(f"std is {self.std}; expected three numbers above 0 (model.vision.init_args.std)")

    def _set_grid(self, image_px: tuple[int, int], grid: tuple[int, int]) -> None:
        if image_px[0] != image_px[1] or grid[0] != grid[1] or grid[0] < 1:
            raise UserError(
                f"{self.name} sees pictures of {image_px[0]} x {image_px[1]} px as {grid[0]} x {grid[1]} patches; "
                f"expected a square of both, of one patch at least (model.vision.init_args.image_px)"
            )
        self.image_px, self.grid = image_px[0], grid[0]

    def _load(self, state: dict[str, Tensor], unused: set[str], origin: str) -> None:
        """Load the tower's weights; every tensor must find its place.

        Args:
            state: Names within ``visual`` and their tensors.
            unused: Names the published tower has and ours left out (class head, layers above the chosen one).
            origin: Where they come from, for the error.

        Raises:
            UserError: Tensors are missing, left over or misshaped.
        """
        state = {name: tensor for name, tensor in state.items() if name not in unused}
        try:
            self.load_state_dict({f"visual.{name}": tensor for name, tensor in state.items()})
        except RuntimeError as error:
            faults = "; ".join(line.strip() for line in str(error).splitlines()[1:])
            raise UserError(
                f"{origin} does not fit {type(self).__name__}: {faults[:600]} (model.vision.init_args.weights)"
            ) from None


class OpenClip(VisionEncoder):
    """An open_clip image tower.

    Args:
        name: Model name, as ``open_clip.list_models()`` gives them.
        tag: Published weights that :meth:`load_pretrained` fetches, and whose preprocessing is taken.
        weights: A local file read in place of the tag's download.
        allow_pickle: Whether ``weights`` may be a pickle, of which tensors are read and nothing else.
        layer: -1 reads the last layer after the final norm; -2, -3, ... read that block's raw output, and the blocks
            above it are left out.
        image_px: Side of the pictures if not the model's own; the position table follows.
        patch_px: Side of a patch if not the model's own.
        width: Width V, likewise.
        layers: Blocks, likewise.
        heads: Attention heads, likewise.
        ffn_width: Inner width of a block's feed-forward layer, likewise.
        mean: What pictures are normalised by, in 0..1, if not what the tag says (without a tag, open_clip's default).
        std: Likewise.
        resize: How pictures are brought to size, likewise.
        interpolation: By which filter, likewise.
        checkpointing: As for the decoder: false, true (whole blocks), or selective (what is cheap in them).
    """

    def __init__(
        self,
        name: str,
        *,
        tag: str | None = None,
        weights: str | None = None,
        allow_pickle: bool = False,
        layer: int = -1,
        image_px: int | None = None,
        patch_px: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        ffn_width: int | None = None,
        mean: Rgb | None = None,
        std: Rgb | None = None,
        resize: Resize | None = None,
        interpolation: Interpolation | None = None,
        checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        self.name, self.tag, self.weights, self.allow_pickle, self.layer = name, tag, weights, allow_pickle, layer
        sizes = {"image_size": image_px, "patch_size": patch_px, "width": width, "layers": layers}
        self.visual = tower(name, sizes, heads, ffn_width)
        self.width = self.visual.class_embedding.shape[0]
        self._set_grid(self.visual.image_size, self.visual.grid_size)
        published = preprocessing(name, tag)
        ways: dict[str, Resize] = {"squash": "squash", "shortest": "crop", "longest": "pad"}
        self._set_preprocessing(published, mean, std, resize or ways[published["resize_mode"]], interpolation)
        self.left_out = _prune(self.visual, layer, len(self.visual.transformer.resblocks))
        plain(self.visual)
        self.checkpointing = checked(checkpointing, "model.vision.init_args.checkpointing")
        follow_grid(self, "visual.positional_embedding", self.grid, prefix_tokens=1)

    @property
    def blocks(self) -> nn.ModuleList:
        """The tower's residual blocks."""
        return self.visual.transformer.resblocks

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Normalised float pictures [I, 3, S, S] -> [I, P, V]."""
        x_IPV = run_blocks(self.blocks, self.visual._embeds(images_ICHW), self.checkpointing)
        return (self.visual.ln_post(x_IPV) if self.layer == -1 else x_IPV)[:, 1:]

    def load_pretrained(self) -> None:
        """Load ``weights``, or download the tag's.

        Raises:
            UserError: The file does not exist or does not fit, or the download failed.
        """
        if self.weights:
            origin, state = self.weights, read_weights(self.weights, self.allow_pickle)
        elif self.tag:
            origin = self._download()
            state = read_published(origin)
        else:
            return
        tower = {n.removeprefix("visual."): value for n, value in state.items() if not TEXT_HALF.fullmatch(n)}
        self._load(tower, self.left_out, origin)

    def _download(self) -> str:
        try:
            return open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.name, self.tag))
        except Exception as error:  # the hub's client raises a dozen unrelated classes
            raise UserError(
                f"the weights {self.tag!r} of {self.name} could not be fetched ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}); name a local file instead (model.vision.init_args.weights)"
            ) from None


class Timm(VisionEncoder):
    """A plain vision transformer of timm, of any size.

    Args:
        name: Model name, as ``timm.list_models()`` gives them; a tag follows a dot.
        pretrained: Whether :meth:`load_pretrained` fetches the published weights.
        weights: A local file read in place of the download.
        allow_pickle: Whether ``weights`` may be a pickle, of which tensors are read and nothing else.
        layer: As for :class:`OpenClip`.
        image_px: Side of the pictures if not the model's own; the position table follows.
        patch_px: Side of a patch if not the model's own.
        width: Width V, likewise.
        layers: Blocks, likewise.
        heads: Attention heads, likewise.
        mean: What pictures are normalised by, in 0..1, if not what timm says of the name.
        std: Likewise.
        resize: How pictures are brought to size; timm's towers were trained on centre crops.
        interpolation: By which filter, if not what timm says.
        checkpointing: Recompute blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        *,
        pretrained: bool = False,
        weights: str | None = None,
        allow_pickle: bool = False,
        layer: int = -1,
        image_px: int | None = None,
        patch_px: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        mean: Rgb | None = None,
        std: Rgb | None = None,
        resize: Resize = "crop",
        interpolation: Interpolation | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"timm has no model {name!r}; timm.list_models() lists them (model.vision.init_args.name)")
        if not isinstance(checkpointing, bool):
            raise UserError(
                f"model.vision.init_args.checkpointing is {checkpointing!r}; expected false or true: timm recomputes "
                f"whole blocks of its towers, or OpenClip instead of Timm"
            )
        shape: dict[str, Any] = {
            "img_size": image_px,
            "patch_size": patch_px,
            "embed_dim": width,
            "depth": layers,
            "num_heads": heads,
        }
        self.name, self.pretrained, self.layer = name, pretrained, layer
        self.weights, self.allow_pickle = weights, allow_pickle
        self.shape = {key: value for key, value in shape.items() if value is not None}
        self.visual = self._create(pretrained=False)
        self.width = self.visual.embed_dim
        self._set_grid(self.visual.patch_embed.img_size, self.visual.patch_embed.grid_size)
        self._set_preprocessing(self.visual.pretrained_cfg, mean, std, resize, interpolation)
        self.left_out = _prune(self.visual, layer, len(self.visual.blocks))
        self.checkpointing = checkpointing
        self.visual.set_grad_checkpointing(checkpointing)
        prefix_tokens = 0 if self.visual.no_embed_class else self.visual.num_prefix_tokens
        follow_grid(self, "visual.pos_embed", self.grid, prefix_tokens)

    def _create(self, pretrained: bool) -> VisionTransformer:
        try:
            visual = timm.create_model(self.name, pretrained=pretrained, num_classes=0, global_pool="", **self.shape)
        except (AssertionError, TypeError, ValueError, ZeroDivisionError) as error:  # timm's ways to refuse a shape
            raise UserError(
                f"timm cannot build {self.name} with {self.shape}: {error} (model.vision.init_args)"
            ) from None
        if not isinstance(visual, VisionTransformer):
            raise UserError(
                f"timm's {self.name} is a {type(visual).__name__}; expected a plain VisionTransformer, whose patches "
                f"form a grid (model.vision.init_args.name)"
            )
        return visual

    @property
    def blocks(self) -> nn.ModuleList:
        """The tower's blocks."""
        return self.visual.blocks

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Normalised float pictures [I, 3, S, S] -> [I, P, V]."""
        return self.visual.forward_intermediates(
            images_ICHW, indices=1, norm=self.layer == -1, intermediates_only=True, output_fmt="NLC"
        )[0]

    def load_pretrained(self) -> None:
        """Load ``weights``, or download the published ones if ``pretrained``.

        Raises:
            UserError: The file does not exist or does not fit, or the download failed.
        """
        if self.weights:
            state = checkpoint_filter_fn(read_weights(self.weights, self.allow_pickle), self.visual)
            heads = {name for name in state if name.startswith(POOLING_HALF)}
            self._load(state, self.left_out | heads, self.weights)
        elif self.pretrained:
            try:
                with torch.device("cpu"):
                    state = self._create(pretrained=True).state_dict()
            except RuntimeError as error:
                raise UserError(
                    f"the weights of {self.name} could not be fetched ({str(error).splitlines()[0]}); name a local "
                    f"file instead (model.vision.init_args.weights)"
                ) from None
            self._load(state, self.left_out, self.name)


def _prune(visual: Any, layer: int, layers: int) -> set[str]:
    """Leave out what the output never sees, so that no parameter is without a gradient; the names of what went."""
    if not -layers <= layer <= -1:
        raise UserError(f"layer={layer} of {layers}; expected -1 to {-layers} (model.vision.init_args.layer)")
    names = set(visual.state_dict())
    visual.prune_intermediate_layers([layers + layer], prune_norm=layer != -1, prune_head=True)
    return names - set(visual.state_dict())
