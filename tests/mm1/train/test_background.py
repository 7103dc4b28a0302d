"""Sharded checkpoints: what is copied, who writes what, what lies on disk, and every layout going on from any other."""

from __future__ import annotations

import json
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

import mm1
from mm1.errors import UserError
from mm1.interop.export import export
from mm1.interop.write import write_tensors
from mm1.model.pieces import AtRest, Pieces, fill, put, take_apart
from mm1.runs import Run
from mm1.train import stage
from mm1.train.background import Background, owned
from mm1.train.shard_writer import ShardWriter
from mm1.train.stage import Stage, chunk_sizes
from tests.conftest import fit, run_config
from tests.mm1.train.test_parallel import on_ranks
from tests.mm1.train.test_strategy import assert_alike, fit_on, one, sharded, weights_of

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 3000), max_size=30))
def test_memory_holds_every_tensor_in_one_piece(sizes: list[int]) -> None:
    """Also where one is larger than what is asked for at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "CHUNK_BYTES", 1024)
        tensors = {str(number): torch.randint(0, 256, (size,), dtype=torch.uint8) for number, size in enumerate(sizes)}
        held = Stage(CPU)
        held.prepare(tensors)
        held.copy(tensors)
        assert all(bytes(held.bytes_of(name)) == bytes(tensor.numpy()) for name, tensor in tensors.items())
        assert sum(chunk_sizes(sizes)) == sum(-(-size // 64) * 64 for size in sizes)
        assert max(held.sizes, default=0) <= max(1024, -(-max(sizes, default=0) // 64) * 64)
        before = held.chunks
        held.copy(tensors)
        assert held.chunks is before, "memory is used again"


def test_a_copy_is_as_the_tensor_was() -> None:
    """Of every type, strided or not, scalars among them."""
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
    tensors = {str(kind): torch.arange(12).reshape(3, 4).t().to(kind) for kind in kinds} | {"step": torch.tensor(3.0)}
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    held = Stage(CPU)
    held.copy(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    for name, tensor in expected.items():
        found = torch.frombuffer(bytearray(held.bytes_of(name)), dtype=tensor.dtype).reshape(tensor.shape)
        assert torch.equal(found, tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_copies_beside_its_work_and_changes_nothing_before() -> None:
    """The call returns while the GPU is still busy; what was asked for after it waits, and finds its memory copied."""
    device = torch.device("cuda:0")
    busy = torch.randn(4096, 4096, device=device)
    tensors = {str(number): torch.randn(2**24 + number, device=device) for number in range(16)}
    tensors |= {"buffer": torch.ones(1000, device=device), "step": torch.tensor(7.0), "on device": busy.new_tensor(8.0)}
    expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
    held = Stage(device)
    held.prepare(tensors)
    for _ in range(3):
        for _ in range(50):
            busy = (busy @ busy).clamp(-1, 1)
        done = torch.cuda.Event()
        done.record()
        held.copy(tensors, ["buffer"])
        assert not done.query(), "the copy waited for the step before"
        tensors["buffer"].zero_()  # as a forward pass may
        held.release()
        for name, tensor in tensors.items():
            tensor.fill_(-1) if name != "buffer" else tensor.fill_(1)
        held.wait()
        for name, tensor in expected.items():
            found = torch.frombuffer(bytearray(held.bytes_of(name)), dtype=tensor.dtype).reshape(tensor.shape)
            assert torch.equal(found, tensor), name
            tensors[name].copy_(tensor)
    held.close()


def test_taken_apart_and_put_together() -> None:
    step, moment, rate = torch.tensor(1.0), torch.ones(2), torch.tensor(0.1)
    groups = [{"params": [0], "lr": rate}]
    tree = {
        "state_dict": {"model.a": moment},
        "optimizer_states": [{"state": {0: {"step": step, "exp_avg": moment}, 1: {}}, "param_groups": groups}],
        "mm1": {"chance": [{"torch": step}]},
    }
    state, tensors = take_apart(tree)
    assert tensors.keys() == {
        "state_dict.model.a",
        "optimizer_states.0.state.0.step",
        "optimizer_states.0.state.0.exp_avg",
    }
    assert state["optimizer_states"][0]["param_groups"] == groups
    assert state["mm1"] == tree["mm1"]
    for name, place in state.pop("tensors").items():
        put(state, place, tensors[name])
    assert state == tree


def _owned(rank: int, out: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    tensors = {f"plain {n}": torch.ones(n + 1) for n in range(9)}
    for number in range(6):
        tensors[f"copied {number}"] = distribute_tensor(torch.ones(4), mesh, [Replicate(), Shard(0)])
        tensors[f"cut {number}"] = distribute_tensor(torch.ones(4), mesh["shard"], [Shard(0)])
    (out / f"{rank}.json").write_text(json.dumps(owned(tensors, rank, 4)))


def test_every_copy_has_one_who_writes_it(tmp_path: Path) -> None:
    on_ranks(4, _owned, tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    for number in range(9):
        assert sum(f"plain {number}" in names for names in found) == 1
    for number in range(6):
        writers = [rank for rank, names in enumerate(found) if f"copied {number}" in names]
        assert writers in ([0, 1], [2, 3]), "both halves, of one copy"
        assert [f"cut {number}" in names for names in found] == [True] * 4
    plain = [sum(int(name.split()[1]) + 1 for name in names if "plain" in name) for names in found]
    assert max(plain) - min(plain) <= 9


@pytest.fixture(scope="module")
def two(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two ranks that share the model and its experts."""
    folder = tmp_path_factory.mktemp("two")
    fit_on(2, folder, sharded(corpus, 4, experts=2))
    return Run(folder)


def test_a_folder_is_read_without_pickled_code_and_by_others(two: Run, tmp_path: Path) -> None:
    """The shards are safetensors files, and torch's own reader of them finds the same whole tensors."""
    folder = two.last.resolve()
    assert two.last.is_symlink()
    assert folder.name == "step-00000004.ckpt"
    shards = [f"shard-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sorted(path.name for path in folder.iterdir()) == [*shards, "state.pt", "tensors.json"]
    sizes = [(folder / name).stat().st_size for name in shards]
    assert max(sizes) < 1.2 * min(sizes)
    at_rest = Pieces(folder).at_rest
    held = [safetensors.torch.load_file(folder / name) for name in shards]
    assert sum(len(part) for part in held) == sum(len(tensor.pieces) for tensor in at_rest.values())
    experts = at_rest["state_dict.model.decoder.layers.1.ffn.experts.down"]
    assert [piece.offsets[0] for piece in experts.pieces] == [0, 2]
    theirs = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in at_rest.items() if tensor.shape}
    dcp.load(theirs, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert all(torch.equal(at_rest[name].read(), tensor) for name, tensor in theirs.items())
    mine = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in at_rest.items()}
    fill([(at_rest[name], tensor) for name, tensor in mine.items()])
    assert all(torch.equal(at_rest[name].read(), tensor) for name, tensor in mine.items())


def test_a_folder_is_exported_a_file_at_a_time(two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, limit = weights_of(two.last), 100_000
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def read(tensor: AtRest) -> torch.Tensor:
        nonlocal most
        found = whole(tensor).clone()
        alive.append(weakref.ref(found))
        most = max(most, sum(t.nbytes for each in alive if (t := each()) is not None))
        return found

    whole = AtRest.read
    monkeypatch.setattr(AtRest, "read", read)
    monkeypatch.setattr("mm1.interop.export.write_tensors", partial(write_tensors, shard_bytes=limit))
    folder = export(two.last, tmp_path / "out")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert most < limit + 2 * max(tensor.nbytes for tensor in expected.values())
    monkeypatch.undo()
    assert "- steps: 4 of 4" in (folder / "README.md").read_text(), "its run is found through the link"
    found = mm1.load(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_weights_of_a_folder_are_taken_over_by_other_ranks(two: Run, corpus: Path, tmp_path: Path) -> None:
    """At a rate of zero they stay what they are: whole on one rank, and cut in another way on two."""
    config = one(corpus, 1)
    config["model"]["optimizer"] = {"lr": 0.0}
    expected = weights_of(two.last)
    assert_alike(fit_on(1, tmp_path / "one", config, "--init_from", str(two.last)), expected)
    config = sharded(corpus, 1) | {"model": config["model"], "checkpoints": "whole"}
    assert_alike(fit_on(2, tmp_path / "two", config, "--init_from", str(two.last)), expected)
    assert Run(tmp_path / "two").last.is_file()


def test_damage_is_one_sentence(two: Run, tmp_path: Path) -> None:
    folder = two.last.resolve()
    shard = "shard-00002-of-00002.safetensors"
    for number, (name, change, told) in enumerate(
        [
            (shard, None, "shard-00002-of-00002.safetensors is not there; expected a whole checkpoint of mm1-train"),
            (shard, b"cut", r"shard-00002-of-00002.safetensors has 3 bytes of \d+; expected a whole"),
            ("tensors.json", None, "tensors.json is broken"),
            ("tensors.json", b"{}", "tensors.json is broken"),
            ("state.pt", None, "state.pt is not readable"),
            ("state.pt", b"no", "state.pt is not readable"),
        ]
    ):
        copy = tmp_path / f"{number}.ckpt"
        copy.mkdir()
        for path in folder.iterdir():
            if path.name != name:
                (copy / path.name).hardlink_to(path)
            elif change is not None:
                (copy / name).write_bytes(change)
        with pytest.raises(UserError, match=told):
            mm1.load(copy)


def test_a_link_that_leads_nowhere_does_not_start_anew(corpus: Path, tmp_path: Path) -> None:
    run = fit(tmp_path, run_config(corpus, max_steps=3) | {"checkpoints": "sharded"})
    run.update(finished=False)
    run.last.resolve().rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"last\.ckpt does not exist; expected a training checkpoint"):
        fit(tmp_path, run_config(corpus, max_steps=6) | {"checkpoints": "sharded"})


def test_the_best_is_kept_and_a_step_is_written_once(corpus: Path, tmp_path: Path) -> None:
    keep = {"class_path": "mm1.train.checkpoints.KeepBest", "init_args": {"monitor": "val/loss", "mode": "max"}}
    config = run_config(corpus, max_steps=8, callbacks=[keep]) | {"checkpoints": "sharded", "save_every_n_steps": 4}
    run = fit(tmp_path, config)
    assert run.best.resolve().name == "step-00000004.ckpt"
    assert run.last.resolve().name == "step-00000008.ckpt"
    assert sorted(path.name for path in run.last.parent.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step-00000004.ckpt",
        "step-00000008.ckpt",
    ]
    assert mm1.load(run.best).model.decoder.width == 32


def test_what_a_kill_left_is_taken_away(corpus: Path, tmp_path: Path) -> None:
    config = run_config(corpus, max_steps=6) | {"checkpoints": "sharded"}
    config["trainer"]["callbacks"] = [{"class_path": "tests.mm1.train.test_strategy.StopAfterThree"}]
    run = fit(tmp_path, config)
    torn = run.last.with_name("step-00000006.ckpt.tmp")
    torn.mkdir()
    (torn / "shard-00001-of-00001.safetensors").write_bytes(b"torn")
    run.last.with_name("last.ckpt.tmp").symlink_to(torn.name)
    del config["trainer"]["callbacks"]
    fit(tmp_path, config)
    assert sorted(path.name for path in run.last.parent.iterdir()) == ["last.ckpt", "step-00000006.ckpt"]


def _resharded(rank: int, folder: Path) -> None:
    """Of two axes into one, into the other, and along the other dimension."""
    whole = Pieces(folder).at_rest["state_dict.model.decoder.layers.1.ffn.experts.down"]
    expected = whole.read()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    ways: list[tuple[Any, list[Any]]] = [
        (mesh, [Shard(0), Shard(1)]),
        (mesh, [Shard(1), Replicate()]),
        (mesh["b"], [Shard(2)]),
        (mesh, [Replicate(), Replicate()]),
    ]
    for on, placements in ways:
        target = distribute_tensor(torch.zeros(whole.shape), on, placements)
        fill([(whole, target)])
        assert torch.equal(target.full_tensor(), expected), placements
    assert dist.get_world_size() == 4


def test_any_mesh_reads_its_part(two: Run) -> None:
    on_ranks(4, _resharded, two.last.resolve())


def test_what_is_cut_in_halves_comes_together(corpus: Path, tmp_path: Path) -> None:
    """Ranks that share layers have matching rows of gate and up: two boxes of one tensor in a file."""
    fit_on(2, tmp_path / "two", sharded(corpus, 3, tensor=2))
    last = Run(tmp_path / "two").last
    name = "state_dict.model.decoder.layers.0.ffn.gate_up.weight"
    at_rest = Pieces(last).at_rest
    assert [(piece.key, piece.offsets[0]) for piece in at_rest[name].pieces] == [
        (name, 0),
        (f"{name}#1", 64),
        (name, 32),
        (f"{name}#1", 96),
    ]
    config = one(corpus, 1)
    config["model"]["optimizer"] = {"lr": 0.0}
    assert_alike(fit_on(1, tmp_path / "one", config, "--init_from", str(last)), weights_of(last))
    assert_alike(fit_on(1, tmp_path / "other", one(corpus, 3)), weights_of(last))


EVENTS: list[str] = []


class NoteBackward(Callback):
    """Say when gradients are there and when the optimizer has used them."""

    def on_after_backward(self, *_: Any) -> None:
        EVENTS.append("gradients")

    def on_train_batch_end(self, *_: Any) -> None:
        EVENTS.append("stepped")


def test_forward_and_backward_pass_do_not_wait_for_a_copy(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning runs both within the optimizer's step; only what that changes has to wait."""
    EVENTS.clear()
    copy = Stage.copy
    monkeypatch.setattr(Stage, "copy", lambda *given: (EVENTS.append("copy"), copy(*given)))
    monkeypatch.setattr(Stage, "release", lambda stage: EVENTS.append("release"))
    callbacks = [{"class_path": f"{__name__}.NoteBackward"}]
    config = run_config(corpus, max_steps=6, callbacks=callbacks) | {"checkpoints": "sharded", "save_every_n_steps": 3}
    fit(tmp_path, config)
    at = EVENTS.index("copy")
    assert EVENTS[at + 1] == "gradients"
    assert "release" in EVENTS[at + 2 : EVENTS.index("stepped", at)]


def test_machines_that_share_no_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that the first rank does not see is as good as none: nothing gets a checkpoint's name."""
    run = Run(tmp_path)
    run.last.parent.mkdir()
    written = ShardWriter.write_data

    def elsewhere(writer: ShardWriter, *arguments: Any) -> Any:
        found = written(writer, *arguments)
        next(writer.temporary.iterdir()).rename(tmp_path / "elsewhere")
        return found

    monkeypatch.setattr(ShardWriter, "write_data", elsewhere)
    background = Background(run, CPU, lambda step: None)
    background.save(1, run.last, lambda: {"state_dict": {"a": torch.ones(3)}, "optimizer_states": []})
    with pytest.raises(UserError, match="of another rank is not there; do all machines share it"):
        background.wait()
    background.close()
    assert not [*run.last.parent.iterdir()]


def test_a_second_checkpoint_waits_for_the_first(tmp_path: Path) -> None:
    """Its memory is the same; and each is what its tensors were when it was asked for, of which there may be others."""
    run, tensor = Run(tmp_path), torch.zeros(1000)
    run.last.parent.mkdir()
    background = Background(run, CPU, lambda step: None)
    for step in range(1, 6):
        tensor.fill_(step)
        others = {f"b{number}": torch.full((step,), float(number)) for number in range(step % 3)}
        background.save(step, run.last, lambda o=others: {"state_dict": {"a": tensor, **o}, "optimizer_states": []})
        tensor.fill_(-1)
    background.wait()
    background.close()
    for step, path in run.all_kept().items():
        found = Pieces(path).checkpoint(read=True)["state_dict"]
        assert torch.equal(found["a"], torch.full((1000,), float(step)))
        assert {name: tensor.tolist() for name, tensor in found.items() if name != "a"} == {
            f"b{number}": [float(number)] * step for number in range(step % 3)
        }
    assert list(run.all_kept()) == [1, 2, 3, 4, 5]
    assert run.last.resolve() == run.kept(5)
