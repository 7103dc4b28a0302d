"""A sharded checkpoint as it lies on disk: every rank's tensors in a safetensors file, and an index that says of what
tensor each is a piece.

    step-00001000.ckpt/
      tensors.json                        type and shape of every tensor, where its pieces begin and in which file
      state.pt                            all that is no tensor of the model or its optimizer, and their places in it
      shard-00001-of-00002.safetensors    pieces of one rank

Shards are files of torch.distributed.checkpoint's storage for safetensors, which reads them; so its resharding takes
any layout to any other. No pickled code: the index is JSON, and the state loads with ``weights_only``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from mm1.errors import UserError

INDEX, STATE = "tensors.json", "state.pt"
TENSORS = "tensors"  # in the state: the place of each tensor, by the name that the index has for it
WEIGHTS, MOMENTS = "state_dict", "optimizer_states"  # the parts of a training checkpoint whose tensors are in shards

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, the file that holds it, and the name that it has there: mostly the tensor's."""

    file: str
    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Files:
    """Safetensors files of a folder, each opened once, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: dict[str, Any] = {}

    def read(self, piece: Piece, box: tuple[slice, ...] = ()) -> Tensor:
        """A piece as a view of its mapped file, or a box of it as a copy.

        Raises:
            UserError: The file is damaged, or gone.
        """
        try:
            if piece.file not in self.opened:
                self.opened[piece.file] = safetensors.safe_open(self.folder / piece.file, framework="pt")
            file = self.opened[piece.file]
            return file.get_slice(piece.key)[box] if box else file.get_tensor(piece.key)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(
                f"{self.folder / piece.file} is not readable ({error}); expected a whole checkpoint"
            ) from None


@dataclass(frozen=True)
class AtRest:
    """A tensor that is read when it is needed; enough of a tensor to be compared with one.

    Args:
        name: In the index.
        dtype: Its type.
        shape: Its shape when put together.
        pieces: What it is put together from.
        files: The files that hold them.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    pieces: tuple[Piece, ...]
    files: Files

    def is_floating_point(self) -> bool:
        """As of a tensor."""
        return self.dtype.is_floating_point

    def read(self) -> Tensor:
        """The whole tensor, on the CPU: a view of the mapped file if it is in one piece, else put together."""
        pieces = [piece for piece in self.pieces if 0 not in piece.sizes]
        if len(pieces) == 1 and pieces[0].sizes == tuple(self.shape):
            return self.files.read(pieces[0])
        whole = torch.empty(self.shape, dtype=self.dtype)
        for piece in pieces:
            box = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.sizes, strict=True))
            whole[box].copy_(self.files.read(piece))
        return whole


class InPieces(Mapping[str, Tensor]):
    """Tensors by name, each put together when it is asked for; :attr:`at_rest` has shapes and types without reading."""

    def __init__(self, at_rest: Mapping[str, AtRest]) -> None:
        self.at_rest = at_rest

    def __getitem__(self, name: str) -> Tensor:
        return self.at_rest[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.at_rest)

    def __len__(self) -> int:
        return len(self.at_rest)


class Pieces:
    """The tensors of a sharded checkpoint.

    Args:
        folder: The checkpoint.

    Raises:
        UserError: It is damaged: no index, or a shard that is missing or cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()  # a link may lead elsewhere before all is read
        told = "expected a whole checkpoint of mm1-train"
        try:
            index = json.loads((self.folder / INDEX).read_text())
            sizes: dict[str, int] = index["files"]
            files, opened = list(sizes), Files(self.folder)
            self.at_rest = {
                name: AtRest(
                    name,
                    getattr(torch, kind),
                    torch.Size(shape),
                    tuple(Piece(files[file], key or name, tuple(at), tuple(by)) for file, key, at, by in pieces),
                    opened,
                )
                for name, (kind, shape, pieces) in index["tensors"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{self.folder / INDEX} is broken ({error!r:.100}); {told}") from None
        for name, size in sizes.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                fault = "is not there" if found is None else f"has {found} bytes of {size}"
                raise UserError(f"{path} {fault}; {told}")

    def checkpoint(self, read: bool) -> dict[str, Any]:
        """The training checkpoint, tensors ``read`` or :class:`AtRest`.

        Raises:
            UserError: The state is damaged.
        """
        try:
            found = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
            places: dict[str, Place] = found.pop(TENSORS)
            for name, place in places.items():
                at_rest = self.at_rest[name]
                put(found, place, at_rest.read().clone() if read else at_rest)  # not a view: training writes to it
        except UserError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.folder / STATE} is not readable ({reason:.120}); expected a checkpoint of mm1-train"
            ) from None
        return found


def fill(pairs: Sequence[tuple[AtRest, Tensor]]) -> None:
    """Read tensors of one checkpoint into others of their shapes, of which a rank reads what its part of them needs.

    Args:
        pairs: What is read, and what it goes into: tensors on any device, sharded ones (DTensor) on any mesh.
    """
    if not pairs:
        return
    found: dict[str, Any] = {}
    places: dict[MetadataIndex, Any] = {}
    for tensor, _ in pairs:  # as torch.distributed.checkpoint describes them
        chunks = [ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes)) for p in tensor.pieces]
        found[tensor.name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
        for piece in tensor.pieces:
            places[MetadataIndex(tensor.name, piece.offsets)] = piece
    reader = _Reader(pairs[0][0].files, Metadata(found, storage_data=places, storage_meta=StorageMeta()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({tensor.name: into for tensor, into in pairs}, storage_reader=reader, no_dist=True)


class _Reader(StorageReader):
    """Told by the index what is where."""

    def __init__(self, files: Files, metadata: Metadata) -> None:
        self.files, self.metadata = files, metadata

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for wanted in plan.items:
            box = tuple(slice(a, a + n) for a, n in zip(wanted.storage_offsets, wanted.lengths, strict=True))
            target = planner.resolve_tensor(wanted).detach()
            target.copy_(self.files.read(self.metadata.storage_data[wanted.storage_index], box))
            planner.commit_tensor(wanted, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def is_sharded(path: Path) -> bool:
    """Whether a path is a sharded checkpoint, whole or damaged."""
    return (path / INDEX).is_file() or (path / STATE).is_file()


def take_apart(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training checkpoint as its state without the tensors of model and optimizer, and these by name.

    The state says where each belongs (``tensors``), so that :meth:`Pieces.checkpoint` puts them back.
    """
    tensors: dict[str, Any] = {}
    places: dict[str, Place] = {}

    def without(value: Any, place: Place) -> Any:
        if isinstance(value, dict):
            parts = {key: without(part, (*place, key)) for key, part in value.items()}
            return {key: part for key, part in parts.items() if part is not tensors}
        if isinstance(value, list):
            return [without(part, (*place, number)) for number, part in enumerate(value)]  # of a mark: to be put back
        if isinstance(value, Tensor) and (place[0] == WEIGHTS or place[2:3] == ("state",)):
            name = ".".join(map(str, place))
            tensors[name], places[name] = value, place
            return tensors  # a mark: to be left out
        return value

    state = {key: without(value, (key,)) if key in (WEIGHTS, MOMENTS) else value for key, value in checkpoint.items()}
    return {**state, TENSORS: places}, tensors


def put(tree: Any, place: Place, value: Any) -> None:
    """Put a value into nested dictionaries and lists."""
    *way, last = place
    for key in way:
        tree = tree.setdefault(key, {}) if isinstance(tree, dict) else tree[key]
    tree[last] = value
