"""What a run writes down: its folder, and one line of metrics every so many steps (:mod:`mm1.runs` lists the names).

Lines are written by callbacks of ours and not by Lightning's logger, because a line must be on disk before the
checkpoint of its step is; loggers named in the YAML get the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mm1 import __version__
from mm1.batch import IMAGE, Batch
from mm1.model.count import Flops, flops, parameters
from mm1.model.moe.layer import Mixture
from mm1.peak import peak_tflops
from mm1.runs import Run
from mm1.train.clock import Clock
from mm1.train.datamodule import MM1Data
from mm1.train.module import Objective
from mm1.train.routing_watch import RoutingWindow, WatchRouting

COUNTS = ("documents", "rows", "text", "image", "positions")
PARTS = ("vision", "connector", "decoder")


class RunFolder(Callback):
    """Keep ``run.json`` and ``config.yaml``, and take back metrics of steps that a resumed run trains again.

    Args:
        config: The resolved configuration as YAML.
        anew: Forget an earlier run in the folder, now that everything has been found to fit.
    """

    def __init__(self, config: str, anew: bool = False) -> None:
        self.config, self.anew = config, anew

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say what runs here."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Objective)
        data: MM1Data = trainer.datamodule  # type: ignore[attr-defined]
        run, recipe = Run(trainer.default_root_dir), data.recipe
        if self.anew:
            run.forget()
        run.start("sft" if set(recipe.names) == {"sft"} else "pretrain")
        run.update(
            steps=trainer.max_steps,
            ranks=trainer.world_size,
            micro_batches=trainer.accumulate_grad_batches,
            device=_device(trainer.strategy.root_device),
            versions={"mm1": __version__, "torch": torch.__version__, "lightning": lightning.__version__},
            parameters=asdict(parameters(pl_module.model)),
            mix_target=recipe.mean_shares(trainer.max_steps),
            mix_unit=recipe.unit,
        )
        run.config.write_text(self.config)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Forget metrics after the step that training goes on from."""
        if trainer.is_global_zero:
            Run(trainer.default_root_dir).truncate(trainer.global_step if trainer.global_step else -1)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that all steps are done; the last checkpoint is on disk by now."""
        tried: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps and not tried:
            Run(trainer.default_root_dir).update(finished=True)


class Metrics(Callback):
    """Losses, rates, throughput, realised mix and load of the experts, every so many steps and at the last one.

    Losses and padding are those of the step itself, what routers did is of all steps since the line before; shares,
    positions, FLOPs and seconds count from the start.

    Args:
        every_n_steps: How often.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self.time_s = 0.0
        self.totals: list[float] | None = None  # FLOPs by part, then the counts of every source

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Count what a forward pass costs, while the model is still in one piece."""
        assert isinstance(pl_module, Objective)
        self.flops: Flops = flops(pl_module.model)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Prepare sums on the device."""
        assert isinstance(pl_module, Objective)
        self.sources = trainer.datamodule.recipe.names  # type: ignore[attr-defined]
        empty = [0.0] * (len(PARTS) + len(self.sources) * len(COUNTS))
        self.sums = torch.tensor(self.totals or empty, dtype=torch.float64, device=pl_module.device)
        self.step = torch.zeros_like(self.sums)
        self.shape = [0, 0, 0]  # rows, positions, pictures; on the host, since bringing numbers to a GPU waits for it
        self.logged = (self.time_s, self._positions(), self._spent())
        layers = enumerate(pl_module.model.decoder.layers)
        self.clock, self.waited_s = Clock(pl_module.model, pl_module.device), 0.0
        self.routing = RoutingWindow([i for i, layer in layers if isinstance(layer.ffn, Mixture)], self.sources)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it was not spent on training."""
        self.mark_s = time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Time the step of a line from its first micro-batch."""
        if batch_idx % trainer.accumulate_grad_batches == 0 and self._is_due(trainer, trainer.global_step + 1):
            self.clock.start()

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """The loss is there."""
        self.clock.mark("loss")

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The encoder's gradients come last."""
        self.clock.mark("encoder")

    def _is_due(self, trainer: lightning.Trainer, step: int) -> bool:
        return step % self.every_n_steps == 0 or step == trainer.max_steps

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the line of a validation."""
        if trainer.sanity_checking:
            return  # before training, which counts nothing yet
        values = {k.removeprefix("val/"): float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        self._write(trainer, "val", values)
        self.restart_clock()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take note of the rates of this step; by its end they are the next one's."""
        groups = sorted(optimizer.param_groups, key=lambda group: group["lr"])
        self.rates = {f"lr/{group['part']}": float(group["lr"]) for group in groups}  # the highest of a part stays

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count the micro-batch; at the end of a step, add up ranks, and write when it is time."""
        assert isinstance(pl_module, Objective)
        self.clock.mark("optimizer")
        self.step += torch.cat([self._flops_of(batch), _counts(batch).flatten()])
        rows, images = batch.tokens_BT.shape[0], batch.images_ICHW.shape[0]
        self.shape = [
            so_far + more for so_far, more in zip(self.shape, (rows, batch.tokens_BT.numel(), images), strict=True)
        ]
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.epochs = batch.state["epochs"] if batch.state else {}
        step = pl_module.over_ranks(self.step)
        self.sums += step
        assert pl_module.step_sums is not None
        self.routing.add(pl_module.step_sums)
        if self._is_due(trainer, trainer.global_step):
            self._log(trainer, pl_module, step)
        now_s = time.monotonic()
        self.time_s, self.mark_s = self.time_s + now_s - self.mark_s, now_s
        self.step.zero_()
        self.shape = [0, 0, 0]

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:
        """A step that is broken off is timed no further."""
        if (clock := getattr(self, "clock", None)) is not None:
            clock.forget()

    def _log(self, trainer: lightning.Trainer, module: Objective, step: Tensor) -> None:
        losses = _losses(module, self.sources)
        rows, places, images = module.over_hosts(self.shape)
        counted = step[len(PARTS) :].view(-1, len(COUNTS))[:, -1].sum().item()
        time_s = self.time_s + time.monotonic() - self.mark_s
        now = (time_s, self._positions(), self._spent())
        seconds, positions, spent = (after - before for after, before in zip(now, self.logged, strict=True))
        self.logged = now
        waited_s = trainer.datamodule.loader.waited_s  # type: ignore[attr-defined]
        values = {
            **losses,
            **self.rates,
            "positions_per_s": positions / max(1e-9, seconds),
            **_speed(spent / max(1e-9, seconds) / trainer.world_size / 1e12, module.device),
            **_memory(module.device),
            **{f"seconds/{part}": value for part, value in self.clock.stop().items()},
            "data_wait": (waited_s - self.waited_s) / max(1e-9, seconds),
            "padding": 1 - counted / places,
            "images_per_row": images / rows,
            **self._mix(),
            **{f"epochs/{source}": value for source, value in self.epochs.items()},
        }
        self.waited_s = waited_s
        self._write(trainer, "train", values, time_s)
        if routing := self.routing.read(module.over_ranks):
            self._write(trainer, "experts", routing, time_s)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WatchRouting) and trainer.is_global_zero:
                    callback.look(trainer.global_step, routing, module.model.decoder)

    def _positions(self) -> float:
        return float(self._by_source()[:, -1].sum())

    def _spent(self) -> float:
        return float(self.sums[: len(PARTS)].sum())

    def _by_source(self) -> Tensor:
        return self.sums[len(PARTS) :].view(-1, len(COUNTS)).cpu()

    def _mix(self) -> dict[str, float]:
        counts = self._by_source()
        shares = counts / counts.sum(0).clamp(min=1)
        return {
            f"mix/{name}/{source}": float(shares[i, j])
            for j, name in enumerate(COUNTS)
            for i, source in enumerate(self.sources)
        }

    def _flops_of(self, batch: Batch) -> Tensor:
        whole, without = self.flops.training(batch), self.flops.training(batch, encoder=False)
        # filled on the device: a number that is copied there would be waited for
        connector = whole.new_full((), 3 * len(batch.images_ICHW) * self.flops.connector)
        return torch.stack([whole - without, connector, without - connector])

    def _write(
        self, trainer: lightning.Trainer, split: str, values: Mapping[str, Any], time_s: float | None = None
    ) -> None:
        if not trainer.is_global_zero:
            return
        spent = self.sums[: len(PARTS)].tolist()
        cumulative = {"positions": int(self._positions()), "flops": sum(spent)}
        run = Run(trainer.default_root_dir)
        run.log(split, trainer.global_step, time_s=self.time_s if time_s is None else time_s, **cumulative, **values)
        whole = sum(spent) or 1.0  # nothing yet, where all that was read so far is damaged
        run.update(flops_parts={part: value / whole for part, value in zip(PARTS, spent, strict=True)})
        plain = {f"{split}/{name}": value for name, value in values.items() if isinstance(value, float)}
        for logger in trainer.loggers:
            logger.log_metrics(plain, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What counts from the start."""
        return {"time_s": self.time_s, "totals": self.sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.time_s, self.totals = state_dict["time_s"], state_dict["totals"]


def _losses(module: Objective, sources: tuple[str, ...]) -> dict[str, float]:
    sums = module.step_sums
    assert sums is not None
    scalars = torch.stack([sums.cross_entropy, sums.targets, sums.balance, sums.z, sums.tokens]).double()
    by_source = torch.stack([sums.cross_entropy_S, sums.targets_S]).double()
    cross_entropy, targets, balance, z, tokens = module.over_ranks(scalars).tolist()
    values = {"loss": cross_entropy / max(1, targets)}
    for source, loss, count in zip(sources, *module.over_ranks(by_source).tolist(), strict=True):
        if count:
            values[f"loss/{source}"] = loss / count
    if sums.load_LGE.numel():
        values |= {"balance": balance / max(1, tokens), "z": z / max(1, tokens)}
    return values


def _counts(batch: Batch) -> Tensor:
    """Documents, rows, text tokens, image tokens and positions of each source, float64[S, 5].

    A row that holds several sources counts for each of them in part.
    """
    valid_BT, image_BT = batch.segments_BT > 0, batch.tokens_BT == IMAGE
    counts = torch.zeros(len(batch.sources), len(COUNTS), dtype=torch.float64, device=valid_BT.device)
    first_BT = valid_BT & (batch.positions_BT == 0)
    part_BT = valid_BT / valid_BT.sum(1, keepdim=True).clamp(min=1)
    columns = torch.stack([first_BT, part_BT, valid_BT & ~image_BT, image_BT, valid_BT], dim=-1).double()
    return counts.index_add(0, batch.sources_BT.flatten(), columns.flatten(0, 1))


def _speed(tflops: float, device: torch.device) -> dict[str, float]:
    """FLOPs that the model needs, a second, and what share of the device's best they are, where that is known."""
    peak = peak_tflops(_device(device))
    return {"tflops": tflops} | ({} if peak is None else {"mfu": tflops / peak})


def _memory(device: torch.device) -> dict[str, float]:
    """The most that a GPU has held so far, of which the host keeps account, so that nothing is waited for."""
    return {"peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
