"""Image encoders of open_clip and timm behind one contract: pictures in, a square grid of patch tokens out.

MM1's final encoder is a ViT-H/14 at 378 px trained by CLIP on DFN-5B (section 4); its open equal is open_clip's
``ViT-H-14-378-quickgelu``, tag ``dfn5b``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from open_clip.factory import load_state_dict as read_open_clip
from open_clip.model import _build_vision_tower  # the only way to a tower without building its text encoder too
from open_clip.transformer import VisionTransformer as OpenClipTransformer
from timm.models import load_state_dict as read_timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from mm1.errors import UserError
from mm1.model.positions import follow_grid

Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bicubic", "bilinear"]


class VisionEncoder(nn.Module):
    """Base of all encoders. ``visual`` is the library's own tower, so its files' names are ours.

    Attributes:
        width: Width V of a patch token.
        grid: Patches a side.
        image_px: Side of the square picture.
        mean, std: What pictures are normalised by.
        resize, interpolation: How pictures are brought to size, as :class:`mm1.batch.ImageSpec` says.
    """

    visual: Any
    width: int
    grid: int
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize
    interpolation: Interpolation

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Normalised float pictures [I, 3, S, S] -> patch tokens [I, P, V], no class token among them."""
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Replace random weights by published ones; nothing happens where none were asked for."""
        raise NotImplementedError

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
        layer: -1 reads the last layer after the final norm; -2, -3, ... read that block's raw output, and the blocks
            above it are left out.
        image_px: Side of the pictures if not the model's own; the position table follows.
        checkpointing: Recompute blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        name: str,
        *,
        tag: str | None = None,
        weights: str | None = None,
        layer: int = -1,
        image_px: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        config = open_clip.get_model_config(name)
        if config is None:
            raise UserError(
                f"open_clip has no model {name!r}; open_clip.list_models() lists them (model.vision.init_args.name)"
            )
        self.name, self.tag, self.weights, self.layer = name, tag, weights, layer
        shape = config["vision_cfg"] | ({} if image_px is None else {"image_size": image_px})
        self.visual = _build_vision_tower(config["embed_dim"], shape, config.get("quick_gelu", False))
        if not isinstance(self.visual, OpenClipTransformer) or self.visual.attn_pool is not None:
            raise UserError(
                f"open_clip's {name} has no plain vision transformer, whose patches form a grid; choose one that has "
                f"(model.vision.init_args.name)"
            )
        self.width, self.image_px = self.visual.class_embedding.shape[0], self.visual.image_size[0]
        self.grid = self.visual.grid_size[0]
        self._take_preprocessing(_open_clip_preprocessing(name, tag))
        self.left_out = _prune(self.visual, layer, len(self.visual.transformer.resblocks))
        self.visual.set_grad_checkpointing(checkpointing)
        follow_grid(self, "visual.positional_embedding", self.grid, prefix_tokens=1)

    def _take_preprocessing(self, published: dict[str, Any]) -> None:
        ways: dict[str, Resize] = {"squash": "squash", "shortest": "crop", "longest": "pad"}
        self.mean = published.get("mean", open_clip.OPENAI_DATASET_MEAN)
        self.std = published.get("std", open_clip.OPENAI_DATASET_STD)
        self.resize = ways[published.get("resize_mode", "shortest")]
        self.interpolation = published.get("interpolation", "bicubic")

    def forward(self, images_ICHW: Tensor) -> Tensor:
        """Normalised float pictures [I, 3, S, S] -> [I, P, V]."""
        found = self.visual.forward_intermediates(
            images_ICHW,
            indices=1,
            normalize_intermediates=self.layer == -1,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return found["image_intermediates"][0]

    def load_pretrained(self) -> None:
        """Load ``weights``, or download the tag's.

        Raises:
            UserError: The file does not exist or does not fit, or the download failed.
        """
        path = self.weights or (self.tag and self._download())
        if not path:
            return
        state = _read(read_open_clip, path)
        tower = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
        self._load(tower, self.left_out, path)

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
        layer: As for :class:`OpenClip`.
        image_px: Side of the pictures if not the model's own; the position table follows.
        patch_px: Side of a patch if not the model's own.
        width: Width V, likewise.
        layers: Blocks, likewise.
        heads: Attention heads, likewise.
        resize: How pictures are brought to size; timm's towers were trained on centre crops.
        checkpointing: Recompute blocks in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        name: str = "vit_tiny_patch16_224",
        *,
        pretrained: bool = False,
        weights: str | None = None,
        layer: int = -1,
        image_px: int | None = None,
        patch_px: int | None = None,
        width: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        resize: Resize = "crop",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"timm has no model {name!r}; timm.list_models() lists them (model.vision.init_args.name)")
        shape: dict[str, Any] = {
            "img_size": image_px,
            "patch_size": patch_px,
            "embed_dim": width,
            "depth": layers,
            "num_heads": heads,
        }
        self.name, self.pretrained, self.weights, self.layer = name, pretrained, weights, layer
        self.shape = {key: value for key, value in shape.items() if value is not None}
        self.visual = self._create(pretrained=False)
        self.width = self.visual.embed_dim
        self.image_px, self.grid = self.visual.patch_embed.img_size[0], self.visual.patch_embed.grid_size[0]
        published = self.visual.pretrained_cfg
        self.mean, self.std = published["mean"], published["std"]
        self.resize, self.interpolation = resize, published["interpolation"]
        self.left_out = _prune(self.visual, layer, len(self.visual.blocks))
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
            state = checkpoint_filter_fn(_read(read_timm, self.weights), self.visual)
            heads = {name for name in state if name.startswith(("head.", "fc_norm.", "attn_pool."))}
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


def _open_clip_preprocessing(name: str, tag: str | None) -> dict[str, Any]:
    """What the tag's weights were trained on, or open_clip's defaults without a tag."""
    if tag is None:
        return {}
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise UserError(f"{name} has no weights {tag!r}; expected one of: {tags} (model.vision.init_args.tag)")
    return published


def _prune(visual: Any, layer: int, layers: int) -> set[str]:
    """Leave out what the output never sees, so that no parameter is without a gradient; the names of what went."""
    if not -layers <= layer <= -1:
        raise UserError(f"layer={layer} of {layers}; expected -1 to {-layers} (model.vision.init_args.layer)")
    names = set(visual.state_dict())
    visual.prune_intermediate_layers([layers + layer], prune_norm=layer != -1, prune_head=True)
    return names - set(visual.state_dict())


def _read(reader: Any, path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; expected a file of weights (model.vision.init_args.weights)")
    try:
        return reader(path)
    except Exception as error:  # whatever an unpickler or a safetensors header can raise
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} could not be read as weights ({type(error).__name__}: {reason}) (model.vision.init_args.weights)"
        ) from None
