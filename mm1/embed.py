"""Vectors of pictures and texts by any CLIP of open_clip, for whatever asks what is alike: filters, demonstrations.

Vectors of pictures can be kept on disk by what their files hold, so that a pool of demonstrations goes through the
model once and not once for every checkpoint that is evaluated.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import torch
from torch import Tensor

from mm1.errors import UserError


class Clip:
    """A CLIP of open_clip, loaded when it is first needed, once in a process.

    Args:
        model: A name of open_clip, or ``hf-hub:...``.
        pretrained: The tag of its published weights, fetched when first used.
        weights: Instead, a local file of the whole CLIP: safetensors, or a pickle of tensors.
        device: Where it runs, in torch's words.

    Raises:
        UserError: No such model, weights or file.
    """

    def __init__(
        self, model: str, *, pretrained: str | None = None, weights: Path | None = None, device: str = "cpu"
    ) -> None:
        import open_clip

        known = model in open_clip.list_models()
        if not known and not model.startswith("hf-hub:"):
            raise UserError(f"open_clip has no model {model!r}; expected one of open_clip.list_models() at model")
        if weights is None and known and pretrained not in open_clip.list_pretrained_tags_by_model(model):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "a file at weights"
            raise UserError(f"open_clip has no weights {pretrained!r} of {model}; expected {tags} at pretrained")
        if weights is not None and not Path(weights).exists():
            raise UserError(f"{Path(weights).absolute()} does not exist; expected a file or folder at weights")
        self.model, self.device = model, device
        self.weights = Path(weights).absolute() if weights else pretrained if known else None

    def pictures(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """Vectors of length 1, float32[I, V], on the CPU.

        Raises:
            UserError: The weights do not fit, or could not be fetched.
        """
        clip, prepare, _ = _load(self.model, self.weights, self.device)
        with torch.inference_mode():
            images_ICHW = torch.stack([prepare(picture) for picture in pictures]).to(self.device)
            found: Tensor = clip.encode_image(images_ICHW, normalize=True).float().cpu()
        return found

    def texts(self, texts: Sequence[str], batch: int = 64) -> Tensor:
        """Vectors of length 1, float32[S, V], on the CPU, ``batch`` texts at a time.

        Raises:
            UserError: As :meth:`pictures`.
        """
        clip, _, tokenize = _load(self.model, self.weights, self.device)
        parts = [list(texts[at : at + batch]) for at in range(0, len(texts), batch)]
        with torch.inference_mode():
            found = [clip.encode_text(tokenize(part).to(self.device), normalize=True).float().cpu() for part in parts]
        return torch.cat(found)

    def fingerprint(self) -> str:
        """A name for the model and its weights: other weights, another name."""
        mark = hashlib.sha256(f"{self.model}/{self.weights if isinstance(self.weights, str) else ''}".encode())
        if isinstance(self.weights, Path) and self.weights.is_file():
            with self.weights.open("rb") as file:
                while block := file.read(1 << 22):
                    mark.update(block)
        return mark.hexdigest()[:16]


@functools.cache
def _load(model: str, weights: Path | str | None, device: str) -> tuple[Any, Any, Any]:
    """The CLIP, its preprocessing and its tokenizer."""
    import open_clip

    try:
        clip, prepare = open_clip.create_model_from_pretrained(
            model, pretrained=str(weights) if weights else None, device=device
        )
        return clip.eval(), prepare, open_clip.get_tokenizer(model)
    except Exception as error:  # open_clip and the hub's client raise a dozen unrelated classes
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(
            f"weights {weights} of {model} cannot be used on {device} ({told}); expected weights of that model at "
            "pretrained or weights, and a device that is there"
        ) from None


class Kept:
    """Vectors of pictures by the content of their files, one file a model; several processes may add to it.

    A record is the SHA-256 of a picture's file and its vector. One that a kill cut short is written over.

    Args:
        folder: Where files of vectors lie; made if need be.
        clip: Whose vectors.
    """

    def __init__(self, folder: Path, clip: Clip) -> None:
        self._path, self._clip = folder / f"{clip.fingerprint()}.vectors", clip
        self._found: dict[bytes, numpy.ndarray] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def of(
        self,
        names: Iterable[bytes],
        pixels: Callable[[bytes], PIL.Image.Image],
        batch: int = 32,
        done: Callable[[int], object] = lambda count: None,
    ) -> numpy.ndarray:
        """Vectors of pictures, float32[I, V].

        Args:
            names: SHA-256 of each picture's file.
            pixels: The picture of a name, asked only for what no earlier run has seen.
            batch: Pictures that go through the model together.
            done: Told how many more are there, as they are there.
        """
        names = list(names)
        self._read()
        new = [name for name in dict.fromkeys(names) if name not in self._found]
        done(len(set(names)) - len(new))
        for at in range(0, len(new), batch):
            part = new[at : at + batch]
            vectors_IV = self._clip.pictures([pixels(name) for name in part]).numpy()
            self._found |= dict(zip(part, vectors_IV, strict=True))
            self._add(part, vectors_IV)
            done(len(part))
        return numpy.stack([self._found[name] for name in names])

    def _read(self) -> None:
        """What is on disk by now; the width stands in front."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
        if len(content) < 4:
            return
        record = _record(int.from_bytes(content[:4], "little"))
        whole = (len(content) - 4) // record.itemsize
        records = numpy.frombuffer(content, record, count=whole, offset=4)
        self._found |= {bytes(name): vector for name, vector in zip(records["name"], records["vector"], strict=True)}

    def _add(self, names: list[bytes], vectors_IV: numpy.ndarray) -> None:
        width = vectors_IV.shape[1]
        records = numpy.empty(len(names), _record(width))
        records["name"] = numpy.frombuffer(b"".join(names), numpy.uint8).reshape(-1, 32)
        records["vector"] = vectors_IV
        with self._path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            torn = (size - 4) % records.itemsize if size >= 4 else size
            file.truncate(size - torn)
            file.write((width.to_bytes(4, "little") if size < 4 else b"") + records.tobytes())


def _record(width: int) -> numpy.dtype:
    return numpy.dtype([("name", numpy.uint8, 32), ("vector", "<f4", width)])
