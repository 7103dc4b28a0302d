"""Writes a rank's part of a sharded checkpoint as safetensors, and the index of all parts (:mod:`mm1.model.pieces`).

torch's own writer of this format first makes one string of bytes of a whole shard; this one writes each tensor from
where it waits, through to the disk, and what is read back needs no pickled code.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from mm1.model.pieces import INDEX, STATE
from mm1.train.stage import Stage

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
WRITE_BYTES = 2**26  # at once; Python's lock is free meanwhile


class ShardWriter(StorageWriter):
    """One checkpoint.

    Args:
        folder: Its name when it is whole; written as ``<folder>.tmp``.
        rank: This rank, which names its file.
        ranks: All of them.
        stage: Holds the rank's tensors by name.
        state: What goes into ``state.pt``, of the first rank.
        whole: Called on the first rank when the folder has its name.
    """

    def __init__(
        self, folder: Path, rank: int, ranks: int, stage: Stage, state: bytes, whole: Callable[[], None]
    ) -> None:
        self.folder, self.temporary = folder, folder.with_name(folder.name + ".tmp")
        self.rank, self.ranks, self.held, self.state, self.whole = rank, ranks, stage, state, whole

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything is known already."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Make the folder."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Every rank writes what it has."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file through to the disk."""
        name = f"shard-{self.rank + 1:05d}-of-{self.ranks:05d}.safetensors"
        self.held.wait()
        items = keyed(plan.items)
        with (self.temporary / name).open("wb", buffering=0) as file:
            _write(file.fileno(), memoryview(header(items)))
            for tensor in dict.fromkeys(item.index.fqn for item in items.values()):  # boxes of one lie side by side
                _write(file.fileno(), self.held.bytes_of(tensor))
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, _size(item), (name, size, key)) for key, item in items.items()])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write what describes the parts, and give the folder its name."""
        written = [result for part in results for result in part]
        files = dict(sorted({result.storage_data[:2] for result in written}))
        numbers = {name: number for number, name in enumerate(files)}
        for name, size in files.items():
            if not (path := self.temporary / name).is_file() or path.stat().st_size != size:
                raise FileNotFoundError(errno.ENOENT, f"{name} of another rank is not there; do all machines share it?")
        where = {}
        for result in written:
            fqn, (file, _, key) = result.index.fqn, result.storage_data
            where[fqn, tuple(result.index.offset or ())] = (numbers[file], "" if key == fqn else key)
        tensors = {}
        for name, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            pieces = [(*where[name, tuple(c.offsets)], list(c.offsets), list(c.sizes)) for c in about.chunks]
            tensors[name] = (str(about.properties.dtype).removeprefix("torch."), list(about.size), pieces)
        index = json.dumps({"files": files, "tensors": tensors}, separators=(",", ":")).encode()
        for name, data in ((STATE, self.state), (INDEX, index)):
            with (self.temporary / name).open("wb", buffering=0) as file:
                _write(file.fileno(), memoryview(data))
                os.fsync(file.fileno())
        sync(self.temporary)
        take_away(self.folder)  # of an earlier life of this run, which went further than its last checkpoint
        os.rename(self.temporary, self.folder)
        sync(self.folder.parent)
        self.whole()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders."""
        return True


def keyed(items: Iterable[WriteItem]) -> dict[str, WriteItem]:
    """Items by the names that they get in a file, where a name stands once; in the order in which they are written."""
    found: dict[str, WriteItem] = {}
    boxes: Counter[str] = Counter()
    order = sorted(items, key=lambda item: (-_data(item).properties.dtype.itemsize, item.index.fqn, item.index.offset))
    for item in order:  # by the size of a number, so that all are aligned
        name = item.index.fqn
        found[f"{name}#{boxes[name]}" if boxes[name] else name] = item
        boxes[name] += 1
    return found


def header(items: Mapping[str, WriteItem]) -> bytes:
    """The header of a safetensors file of these tensors, with what torch.distributed.checkpoint's reader asks for."""
    told: dict[str, Any] = {}
    at = 0
    for key, item in items.items():
        about = {"dtype": TYPES[_data(item).properties.dtype], "shape": list(_data(item).chunk.sizes)}
        told[key] = {**about, "data_offsets": [at, at + _size(item)]}
        at += _size(item)
    offsets = {key: {"saved_offsets": list(_data(item).chunk.offsets)} for key, item in items.items()}
    told["__metadata__"] = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None
    return item.tensor_data


def _size(item: WriteItem) -> int:
    return math.prod(_data(item).chunk.sizes) * _data(item).properties.dtype.itemsize


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data[:WRITE_BYTES]) :]


def sync(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def link(name: Path, folder: Path) -> None:
    """Let a name beside a folder lead to it, from one moment to the next."""
    temporary = name.with_name(name.name + ".tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(folder.name, temporary)
    if name.is_dir() and not name.is_symlink():  # a copy that followed the link
        take_away(name)
    os.replace(temporary, name)
    sync(name.parent)


def take_away(path: Path) -> None:
    """Delete a checkpoint; what is left of a folder by a kill meanwhile does not look like one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        gone = path.with_name(path.name + ".gone.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)  # a network's file system keeps what others read; see tidy


def tidy(folder: Path) -> None:
    """Take away what a kill left of folders and links."""
    for path in folder.glob("*.tmp"):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir() and path.name.startswith("step-"):
            shutil.rmtree(path, ignore_errors=True)
