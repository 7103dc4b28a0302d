"""Pictures as the decoder reads them: prepared ahead by threads, encoded once in large batches, then remembered."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mm1.batch import IMAGE
from mm1.data.encode import Encoded
from mm1.data.image import prepare
from mm1.model.mm1 import MM1
from mm1.sample import Image

ENCODED_AT_ONCE = 64  # pictures; bounds the encoder's memory, not what is remembered
AHEAD = 1024  # pictures prepared before they are asked for, at most


@dataclass(frozen=True)
class Asked:
    """A prompt of T positions.

    Args:
        tokens_T: int64[T], IMAGE where a picture's token goes.
        pictures: They in the order of their places, each view one of them.
        names: What tells a picture's content from others', likewise.
    """

    tokens_T: Tensor
    pictures: list[Image]
    names: list[bytes]

    def __len__(self) -> int:
        return len(self.tokens_T)

    @staticmethod
    def of(encoded: Encoded) -> Asked:
        """The same with names of pictures."""
        return Asked(encoded.tokens, encoded.images, [image.key for image in encoded.images])

    def part(self, first: int, last: int, tokens_per_image: int) -> Asked:
        """Positions ``first`` to ``last``, which cut no picture in two."""
        before, within = (
            int((tokens == IMAGE).sum()) // tokens_per_image
            for tokens in (self.tokens_T[:first], self.tokens_T[first:last])
        )
        chosen = slice(before, before + within)
        return Asked(self.tokens_T[first:last], self.pictures[chosen], self.names[chosen])


class Features:
    """Tokens of pictures seen, by content, the least recently used forgotten first.

    Args:
        model: Whose encoder and connector.
        limit_mb: Memory in MB of 10^6 bytes; what is asked for at once is held in any case.
    """

    def __init__(self, model: MM1, limit_mb: int) -> None:
        self._model, self._limit_bytes = model, limit_mb * 10**6
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()
        self._prepared: dict[bytes, Future[Tensor]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._held: set[bytes] = set()
        self.encoded = 0  # pictures, for tests and for those who wonder about speed

    def expect(self, prompts: Iterable[Asked]) -> None:
        """Have the pictures of prompts prepared, of the first first, while something else is done."""
        for asked in prompts:
            for name, picture in zip(asked.names, asked.pictures, strict=True):
                if len(self._prepared) >= AHEAD:
                    return
                if name not in self._seen:
                    self._prepare(name, picture)

    def of(self, prompts: Sequence[Asked]) -> Tensor:
        """Features [I, N, D] of all pictures of prompts in the order of their places."""
        self._load(prompts)
        names = [name for asked in prompts for name in asked.names]
        empty = self._model.encode_images(torch.empty(0, 3, 1, 1, dtype=torch.uint8))
        features_IND = torch.stack([self._seen[name] for name in names]) if names else empty
        self.forget()
        return features_IND

    def load(self, prompts: Sequence[Asked]) -> None:
        """Encode what is new of the pictures of prompts, in as few batches as can be; held until :meth:`release`."""
        self._held = {name for asked in prompts for name in asked.names}
        self._load(prompts)

    def release(self) -> None:
        """Hold nothing any more, whatever was loaded."""
        self._held = set()
        self.forget()

    def _load(self, prompts: Sequence[Asked]) -> None:
        pairs = [pair for asked in prompts for pair in zip(asked.names, asked.pictures, strict=True)]
        new = {name: picture for name, picture in pairs if name not in self._seen}
        names = list(new)
        for name, picture in new.items():
            self._prepare(name, picture)
        for start in range(0, len(names), ENCODED_AT_ONCE):
            self._encode(names[start : start + ENCODED_AT_ONCE])
        for name, _ in pairs:
            self._seen.move_to_end(name)

    def forget(self) -> None:
        """Keep to the limit."""
        each = next((f.numel() * f.element_size() for f in self._seen.values()), 0)
        while len(self._seen) * each > self._limit_bytes and next(iter(self._seen)) not in self._held:
            self._seen.popitem(last=False)

    def _prepare(self, name: bytes, picture: Image) -> None:
        if name not in self._prepared:
            self._threads = self._threads or ThreadPoolExecutor(min(32, os.cpu_count() or 1), "pictures")
            self._prepared[name] = self._threads.submit(prepare, picture, self._model.image_spec)

    def _encode(self, names: list[bytes]) -> None:
        images_ICHW = torch.stack([self._prepared.pop(name).result() for name in names])
        features_IND = self._model.encode_images(to_device(images_ICHW, self._model.decoder.norm.weight.device))
        for name, feature_ND in zip(names, features_IND, strict=True):
            self._seen[name] = feature_ND.clone()  # a view would keep the whole chunk alive
        self.encoded += len(names)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that nobody waits for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
