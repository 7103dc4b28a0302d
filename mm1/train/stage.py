"""Where a checkpoint waits to be written: host memory, used again and again, that the device copies to by itself.

Page-locked memory is what lets a copy run beside the computing, and asking for it takes longer than the copy: so it is
asked for ahead and kept (CheckFreq, Mohan et al. 2021, splits a checkpoint in the same way, section 4.1).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**30
ALIGNED_BYTES = 64


class Stage:
    """A copy of this rank's tensors, made while training goes on.

    Args:
        device: Where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sizes: list[int] = []
        self.chunks: list[Tensor] = []
        self.held: dict[str, Tensor] = {}
        self.kept: list[Tensor] = []
        self.copied: torch.cuda.Event | None = None
        self.ahead: threading.Thread | None = None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Ask for the memory that these tensors need, in a thread, so that :meth:`copy` finds it there."""
        sizes = chunk_sizes([tensor.nbytes for tensor in tensors.values()])
        self.ahead = threading.Thread(target=self._ahead, args=(sizes,), name="checkpoint memory", daemon=True)
        self.ahead.start()

    def _ahead(self, sizes: list[int]) -> None:
        with suppress(RuntimeError, MemoryError):  # no memory: found again, and told, where it is needed
            self._allocate(sizes)

    def _allocate(self, sizes: list[int]) -> None:
        if sizes == self.sizes:
            return
        for chunk in self.chunks:
            self._pin(chunk, False)
        self.chunks, self.sizes = [], []
        for size in sizes:
            chunk = torch.empty(size, dtype=torch.uint8)
            if self.stream is not None:
                chunk.zero_()  # pages that are there are locked faster
                self._pin(chunk, True)
            self.chunks.append(chunk)
        self.sizes = sizes

    def _pin(self, chunk: Tensor, locked: bool) -> None:
        if self.stream is None:
            return
        with torch.cuda.device(self.device):
            runtime = torch.cuda.cudart()
            if locked:
                fault = int(runtime.cudaHostRegister(chunk.data_ptr(), chunk.nbytes, 0))
            else:
                fault = int(runtime.cudaHostUnregister(chunk.data_ptr()))
        if fault and locked:
            log.warning(
                "memory for checkpoints cannot be locked (CUDA error %d): training stops longer for them", fault
            )

    def copy(self, tensors: Mapping[str, Tensor], changing: Collection[str] = ()) -> None:
        """Begin to copy; until :meth:`release` tensors may be read, not changed.

        Args:
            tensors: Plain tensors of this rank by name.
            changing: Names of those that may be changed before, such as buffers: small ones, which are copied twice.
        """
        if self.ahead is not None:
            self.ahead.join()
            self.ahead = None
        self._allocate(chunk_sizes([tensor.nbytes for tensor in tensors.values()]))
        self.kept = [tensors[name].clone() for name in changing if name in tensors]
        tensors = {**tensors, **dict(zip((name for name in changing if name in tensors), self.kept, strict=True))}
        self.held, chunk, at = {}, 0, 0
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.no_grad(), torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            for name, tensor in tensors.items():
                size = _aligned(tensor.nbytes)
                if size and at + size > self.sizes[chunk]:
                    chunk, at = chunk + 1, 0
                room = self.chunks[chunk][at : at + tensor.nbytes] if size else torch.empty(0, dtype=torch.uint8)
                room.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=self.stream is not None)
                self.held[name], at = room, at + size
        if self.stream is not None:
            self.copied = torch.cuda.Event()
            self.copied.record(self.stream)

    def release(self) -> None:
        """Let the device change the tensors, but after the copy; this thread does not wait."""
        if self.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(self.copied)

    def wait(self) -> None:
        """Wait until all is copied."""
        if self.copied is not None:
            self.copied.synchronize()

    def bytes_of(self, name: str) -> memoryview:
        """A tensor as it was."""
        array: Any = self.held[name].numpy()
        return memoryview(array)

    def close(self) -> None:
        """Give the memory back."""
        if self.ahead is not None:
            self.ahead.join()
        self.wait()
        for chunk in self.chunks:
            self._pin(chunk, False)
        self.chunks, self.sizes, self.held, self.kept = [], [], {}, []


def chunk_sizes(sizes: Sequence[int]) -> list[int]:
    """How much to ask for at once, so that tensors of these sizes fit one after another and none is cut."""
    chunks, left = [0], sum(map(_aligned, sizes))
    room = 0
    for size in map(_aligned, sizes):
        if size > room:
            chunks[-1] -= room  # of no use to what comes
            room = max(size, min(CHUNK_BYTES, left))
            chunks.append(room)
        room, left = room - size, left - size
    chunks[-1] -= room
    return chunks[1:]


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES
