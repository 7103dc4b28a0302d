"""Trained parts become one model to start from: a published encoder, a published decoder, and a new connector between.

This is MM1's own way to begin (section 4.1: from a trained encoder and a trained language model). The folder that is
written is read by ``mm1-train fit --init_from FOLDER`` and :func:`mm1.load` like any model of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mm1.data.tokenizer import Tokenizer, from_hf, grow
from mm1.errors import UserError
from mm1.interop.decoder_in import CLASS, Published, open_decoder
from mm1.interop.gguf_file import Gguf
from mm1.interop.origin import DecoderOrigin, Origin, licence_of, name_of, small_files
from mm1.interop.write import new_folder, write_tensors
from mm1.model.build import build, read
from mm1.model.mm1 import MM1
from mm1.model.stored import CONFIG, FORMAT, ORIGIN

MULTIPLE = 64  # matrix products are fast at multiples of it
NOISE = 0.01  # of the embedding's own spread
ROWS = ("embedding.weight", "head.weight")
SOURCES = ("weights", "tag", "pretrained")  # settings of an encoder that name published weights
KEPT = ("dropout", "checkpointing")  # settings of the YAML's decoder that training alone sees


def join(
    model: Path,
    decoder: Path,
    out: Path,
    *,
    vision_weights: Path | None = None,
    vision_licence: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    allow_pickle: bool = False,
) -> Path:
    """Make a starting model of trained parts.

    Args:
        model: YAML of a model, as under configs/model: its encoder and connector are used, its decoder is replaced.
        decoder: Folder in Hugging Face layout (config.json, safetensors, tokenizer), or a .gguf file of a Llama.
        out: Folder to write; must not exist.
        vision_weights: The encoder's weights, in place of those that the YAML names.
        vision_licence: What their licence is, for model cards; else what a README.md beside them says.
        dtype: Type of the weights written. float32 holds all others to the last bit.
        seed: Decides the connector's first weights and the noise on new rows of the embedding.
        allow_pickle: Read pytorch_model.bin where the decoder has no safetensors; nothing in it is executed.

    Raises:
        UserError: A part cannot be read or is not supported, or the parts do not go together.
    """
    with new_folder(out) as folder:
        published = open_decoder(decoder, allow_pickle)
        config = _config(model, published.arguments, vision_weights)
        joined = build(config)
        own, files = _tokenizer(published)
        tokenizer = Tokenizer.from_bytes(grow(own.proto))
        vocabulary = _rounded(max(tokenizer.vocabulary, published.arguments["vocabulary"]))
        config["init_args"]["decoder"]["init_args"]["vocabulary"] = vocabulary
        _fill_encoder_and_connector(joined, seed)
        _settle(joined, _spread(published), seed)
        tensors = _tensors(joined, published, vocabulary, getattr(torch, dtype), seed)
        write_tensors(folder, tensors, {"format": str(FORMAT)}, total=len(joined.state_dict()))
        (folder / CONFIG).write_text(yaml.safe_dump(_without_weights(config), sort_keys=False))
        (folder / tokenizer.file_name).write_bytes(tokenizer.proto)
        vision = _named_weights(config["init_args"]["vision"])
        licence = vision_licence or (licence_of(vision_weights.parent) if vision_weights else None)
        origin = Origin(_origin(published, own, files), vision, licence)
        (folder / ORIGIN).write_text(origin.to_json(), encoding="utf-8")
    return out


def _tokenizer(published: Published) -> tuple[Tokenizer, dict[str, str]]:
    """The decoder's own, and the small files beside it."""
    path = published.path
    if isinstance(published.files, Gguf):
        proto, files = published.files.tokenizer()
    elif (path / "tokenizer.json").is_file() or not (path / "tokenizer.model").is_file():
        proto, files = from_hf(path), small_files(path)
    else:
        proto, files = (path / "tokenizer.model").read_bytes(), small_files(path)
    tokenizer, rows = Tokenizer.from_bytes(proto), published.arguments["vocabulary"]
    if tokenizer.vocabulary > rows:
        raise UserError(
            f"the tokenizer of {path} has {tokenizer.vocabulary} ids, its embedding {rows} rows (vocab_size); "
            f"expected at least as many rows, so that every id has one"
        )
    return tokenizer, files


def _config(model: Path, arguments: dict[str, Any], vision_weights: Path | None) -> dict[str, Any]:
    """The class-path tree of the joined model."""
    tree = read(model)
    parts = tree.get("init_args") if isinstance(tree, dict) else None
    if not isinstance(parts, dict) or not {"vision", "connector"} <= parts.keys():
        raise UserError(
            f"{model} names no vision and connector; expected the YAML of a model such as configs/model/tiny.yaml"
        )
    vision = parts["vision"]
    if not isinstance(vision, dict) or not isinstance(vision.get("init_args"), dict | None):
        raise UserError(f"{model} has a {type(vision).__name__} at vision; expected class_path and init_args")
    if vision_weights is not None:
        if not vision_weights.exists():
            raise UserError(f"{vision_weights} does not exist; expected the weights of the encoder (vision_weights)")
        vision = {**vision, "init_args": {**(vision.get("init_args") or {}), "weights": str(vision_weights)}}
    if not any((vision.get("init_args") or {}).get(key) for key in SOURCES):
        raise UserError(
            f"{model} names no weights for its encoder; expected --vision_weights FILE, or one of {', '.join(SOURCES)} "
            f"(vision.init_args)"
        )
    replaced = parts.get("decoder")
    settings = replaced.get("init_args") if isinstance(replaced, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    kept = {key: settings[key] for key in KEPT if key in settings}
    decoder = {"class_path": CLASS, "init_args": arguments | kept}
    return {**tree, "init_args": {**parts, "vision": vision, "decoder": decoder}}


def _named_weights(vision: dict[str, Any]) -> dict[str, Any]:
    """The encoder's tree with the file's name in place of its path, which is nobody else's."""
    settings = vision.get("init_args") or {}
    return {**vision, "init_args": settings | {k: Path(v).name for k, v in settings.items() if k == "weights" and v}}


def _without_weights(config: dict[str, Any]) -> dict[str, Any]:
    """The same tree, which no longer asks for published weights: the folder has them."""
    vision = config["init_args"]["vision"]
    settings = {
        key: value for key, value in (vision.get("init_args") or {}).items() if key not in ("weights", "pretrained")
    }
    return {**config, "init_args": {**config["init_args"], "vision": {**vision, "init_args": settings}}}


def _fill_encoder_and_connector(model: MM1, seed: int) -> None:
    """Everything but the decoder, which stays on the meta device."""
    model.vision.to_empty(device="cpu")
    model.connector.to_empty(device="cpu")
    model.to_empty(device="cpu", recurse=False)
    model.init_weights(seed)
    model.load_pretrained()


def _spread(published: Published) -> float:
    """Standard deviation of the decoder's embeddings."""
    embedding_VD = torch.empty(published.shapes["embedding.weight"])
    published.copy("embedding.weight", embedding_VD)
    return float(embedding_VD.std())


@torch.no_grad()
def _settle(model: MM1, spread: float, seed: int) -> None:
    """Let the new connector begin near to what it joins: silent residual branches, tokens as large as words.

    At random it scrambles what the encoder says, and speaks several times louder than any word of the decoder; both
    cost a small run much of its time (configs/ablations/README.md). Measured on two smooth random pictures.
    """
    model.connector.quiet()
    blobs_ICSS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    images_ICHW = interpolate(blobs_ICSS, size=model.vision.image_px, mode="bicubic")
    tokens_IND = model.connector(model.vision(images_ICHW))
    *_, readout = (layer for layer in model.connector.modules() if isinstance(layer, nn.Linear))
    readout.weight.mul_(spread / tokens_IND.std())


def _tensors(
    model: MM1, published: Published, vocabulary: int, dtype: torch.dtype, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the joined model, one at a time."""
    learned = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta:
            yield name, tensor.to(dtype) if name in learned else tensor  # what pictures are normalised by stays exact
            continue
        own = name.removeprefix("decoder.")
        rows = len(tensor)
        filled = torch.empty(vocabulary if own in ROWS else rows, *tensor.shape[1:], dtype=dtype)
        published.copy(own, filled[:rows])
        if own in ROWS:
            filled[rows:] = _new_rows(filled[:rows], vocabulary - rows, seed)
        yield name, filled


def _new_rows(old_VD: Tensor, count: int, seed: int) -> Tensor:
    """Rows of new tokens: the mean of the old ones, so that none is likely at once, and noise to tell them apart."""
    mean_D = old_VD.mean(0, dtype=torch.float32)
    spread = torch.stack([(part.float() - mean_D).square().mean() for part in old_VD.split(4096)]).mean().sqrt()
    noise = torch.randn(count, len(mean_D), generator=torch.Generator().manual_seed(seed))
    return (mean_D + NOISE * spread * noise).to(old_VD.dtype)


def _rounded(vocabulary: int) -> int:
    return -(-vocabulary // MULTIPLE) * MULTIPLE


def _origin(published: Published, tokenizer: Tokenizer, files: dict[str, str]) -> DecoderOrigin:
    types = published.files.types
    dtype = Counter(types.values()).most_common(1)[0][0]
    (head,) = published.family.whole["head.weight"]
    return DecoderOrigin(
        family=published.family_name,
        source=name_of(published.path),
        config=published.config,
        vocabulary=published.arguments["vocabulary"],
        tokens=tokenizer.vocabulary,
        layout=published.layout,
        dtype=dtype,
        dtypes={name: kind for name, kind in types.items() if kind != dtype},
        sentencepiece_bytes=len(tokenizer.proto) if tokenizer.file_name == "tokenizer.model" else None,
        stored_head=bool(published.arguments["tied"]) and head in published.files.shapes,
        files=files,
        licence=published.files.licence if isinstance(published.files, Gguf) else licence_of(published.path),
    )
