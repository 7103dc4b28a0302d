"""The objective, the same for pre-training and instruction tuning: what the targets say is what is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mm1.batch import Batch
from mm1.errors import UserError, at_least
from mm1.model.adapters import fingerprint
from mm1.model.loss import LossSums
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import Mixture
from mm1.model.moe.losses import Balance
from mm1.model.moe.routers import ByTask
from mm1.model.positions import resampled
from mm1.model.stored import check_fits, read, upgrade
from mm1.template import OURS, Template
from mm1.train.adafactor import Adafactor
from mm1.train.adamw8bit import AdamW8bit
from mm1.train.float8 import Recipe, convert
from mm1.train.held_out import HeldOutLoss
from mm1.train.lora import LoRA
from mm1.train.masters import MasterAdamW, lower
from mm1.train.optim import AdamW, check_resumes
from mm1.train.parallel import clip_gradients, gradient_norm, whole
from mm1.train.strategy import Sharded, average, reader, take_over


class Objective(lightning.LightningModule):
    """Next-token cross-entropy on learned text plus the routers' losses, per target of the *global* batch.

    Args:
        model: The model, built empty (on the meta device) or filled.
        optimizer: Optimizer and schedule, rates by part.
        seed: Decides the initial weights.
        init_from: Checkpoint whose weights are taken over, with a new optimizer and schedule.
        lora: Adapters to train in place of the weights of ``init_from``; everything is trained if not given.
        compiled: Compile layers with torch.compile; about 1.6 times as fast on a GPU after half a minute of compiling.
        weights: ``bfloat16`` computes with weights of that type, of which the optimizer keeps fp32 masters; routers
            stay in fp32. For ``trainer.precision: 32-true``, since nothing is left to lower.
        float8: Multiply in 8 bits, by the recipe of torchao that is named, on GPUs that can (:mod:`mm1.train.float8`).
    """

    def __init__(
        self,
        model: MM1,
        optimizer: AdamW | Adafactor | AdamW8bit | None = None,
        *,
        seed: int = 0,
        init_from: Path | None = None,
        lora: LoRA | None = None,
        compiled: bool = False,
        weights: Literal["float32", "bfloat16"] = "float32",
        float8: Recipe = "none",
    ) -> None:
        super().__init__()
        at_least(0, {"model.seed": seed})
        self.model = model
        self.optimizer = optimizer or AdamW()
        self.lora = lora
        self.adapted: dict[str, Any] = {}  # what checkpoints say of their adapters
        self.seed, self.init_from, self.compiled, self.weights = seed, init_from, compiled, weights
        self.float8: Recipe = float8
        self.template: Template | None = None  # of the conversations trained on, now or before
        self.origin_json: str | None = None  # of the parts that init_from was joined of
        self.window = [1.0, 1.0]
        self.norm: Tensor | None = None  # of this step's gradients, once somebody asked
        self.bad: Tensor | None = None  # whether this step must change nothing, bool[], once somebody judged it
        self.averages = False  # whether gradients of several micro-batches are averaged over ranks here
        self.hosts: Any = None  # all ranks, as their hosts talk to each other
        self.copies: torch.cuda.Stream | None = None
        self.step_sums: LossSums | None = None
        self.resumed_groups: list[dict[str, Any]] | None = None

    def configure_model(self) -> None:
        """Give an empty model its weights: random, then published ones, then ``init_from``'s. May run twice.

        Raises:
            UserError: They cannot be had or do not fit, or the corpus has more ids than the decoder.
        """
        self._check_vocabulary()
        self._check_tasks()
        self.speak(None, "")
        strategy = self.trainer.strategy
        if self.float8 != "none" and self.lora is not None:
            raise UserError(f"model.float8 is {self.float8} and model.lora trains adapters; expected float8: none")
        shared = strategy.sizes["tensor"] if isinstance(strategy, Sharded) else 1
        convert(self.model, self.float8, strategy.root_device, ranks_of_a_layer=shared)
        if isinstance(strategy, Sharded):
            strategy.spread(self.model)
        for layer in self.model.modules():
            if isinstance(balance := getattr(layer, "balance", None), Balance):
                balance.over_ranks = self.over_ranks
        if self._empty:
            self.model.to_empty(device=strategy.root_device)
            self.model.init_weights(self.seed, whole)
            if self.trainer.ckpt_path is None and self.init_from is None:
                self.model.load_pretrained()
        if self.init_from is not None and (self.trainer.ckpt_path is None or self.lora) and not self.adapted:
            self._take_over(self.init_from)
        if self.lora is not None and not self.adapted:
            self._adapt(self.lora)
        if self.weights == "bfloat16":
            self._check_precision()
            lower(self.model)
        self.optimizer.freeze(self.model)
        if self.compiled:
            self.model.compile_parts()

    def _check_precision(self) -> None:
        precision = self.trainer.precision
        if isinstance(self.trainer.strategy, Sharded):
            raise UserError(
                "model.weights is bfloat16 and trainer.strategy shares the model among ranks; expected float32 and "
                "trainer.precision: bf16-mixed, under which ranks gather and compute in bfloat16 with masters at rest"
            )
        if precision != "32-true":
            raise UserError(
                f"model.weights is bfloat16 and trainer.precision {precision}; expected 32-true beside it: weights are "
                f"lowered already"
            )

    def _check_vocabulary(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        ids, entries = data.tokenizer.vocabulary, self.model.decoder.vocabulary
        if ids > entries:
            raise UserError(
                f"the tokenizer of {data.recipe.corpus} has {ids} ids, the decoder's vocabulary {entries} entries; "
                f"expected at least as many (model.model.decoder.init_args.vocabulary)"
            )

    def _check_tasks(self) -> None:
        names = tuple(self.trainer.datamodule.recipe.names)  # type: ignore[attr-defined]
        for router in self.model.modules():
            if isinstance(router, ByTask) and router.tasks != names:
                raise UserError(
                    f"the tasks are {', '.join(router.tasks)}, the sources of the data {', '.join(names)}; expected "
                    f"the same names in the same order (model.model.decoder.init_args.moe.init_args.router.tasks)"
                )

    def _take_over(self, path: Path) -> None:
        found = read(path)
        weights = resampled(found.weights, self.model)
        check_fits(weights, self.model.state_dict(), f"{path} does not fit model.model of this run")
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        if tokenizer.proto != found.tokenizer:
            raise UserError(
                f"{path} was trained with another tokenizer than {self.trainer.datamodule.recipe.corpus} was written "  # type: ignore[attr-defined]
                f"with, its ids would mean other words; write the shards of data.corpus with the checkpoint's tokenizer"
            )
        take_over(self.model, weights)
        self.origin_json = found.origin_json
        self.speak(found.template, path)

    def _adapt(self, lora: LoRA) -> None:
        if self.init_from is None:
            raise UserError("model.lora adapts a trained model; expected --init_from CKPT, also when a run goes on")
        if isinstance(self.trainer.strategy, Sharded):
            raise UserError("model.lora is not made for sharded weights; expected trainer.strategy auto or ddp")
        if self.weights == "bfloat16":
            raise UserError("model.lora is not made for model.weights bfloat16; expected float32 (trainer.precision)")
        marks = fingerprint(read(self.init_from).weights)  # as they lie there, whatever this run's picture size is
        base = {"base": str(Path(self.init_from).resolve()), "fingerprint": marks}
        lora.adapt(self.model, self.seed)
        self.adapted = {**lora.record(), **base}

    def _kept(self) -> dict[str, Tensor]:
        """What checkpoints hold: all, or what is trained beside a base, and buffers, which may change as well."""
        state = self.state_dict()
        still = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return {name: tensor for name, tensor in state.items() if name not in still} if self.adapted else state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a model with adapters only what is trained, and whose they are."""
        if self.adapted:
            kept = self._kept().keys()
            checkpoint["state_dict"] = {n: tensor for n, tensor in checkpoint["state_dict"].items() if n in kept}
            checkpoint["mm1"]["lora"] = self.adapted

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Of a model with adapters the base is there already."""
        return super().load_state_dict(state_dict, strict and not self.adapted, assign)

    def speak(self, before: Template | None, origin: object) -> None:
        """Settle in whose words the model is asked: those of the corpus, or else those it was tuned in ``before``.

        Raises:
            UserError: Both are known and differ.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if before is not None and data.template is not None and not before.says(data.template):
            raise UserError(
                f"{origin} was tuned on conversations in the words {before.user!r}, {data.recipe.corpus} has "
                f"{data.template.user!r} or other instructions; write the shards of data.corpus with the checkpoint's "
                f"template (--template)"
            )
        self.template = data.template or before
        self.model.template = self.template or OURS

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy on a stream of its own, while the device still computes the step before; the loader's memory is pinned.

        Lightning itself copies what is no plain tensor only after everything queued before, and waits for it.
        """
        if device.type != "cuda":
            return batch.to(device)
        self.copies = self.copies or torch.cuda.Stream(device)
        with torch.cuda.stream(self.copies):
            batch = batch.to(device, non_blocking=True)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self.copies)
        for tensor in (value for value in vars(batch).values() if isinstance(value, Tensor)):
            tensor.record_stream(computing)  # so that its memory is not given away before it was computed with
        return batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The micro-batch's share of the step's loss.

        Ranks average gradients (unless they are sharded, which sums) and Lightning divides by the micro-batches, so
        both are multiplied back: any split of a global batch has the same gradient.
        """
        micro_batches = self.trainer.accumulate_grad_batches
        averaged = 1 if isinstance(self.trainer.strategy, Sharded) else self.trainer.world_size
        if batch_idx % micro_batches == 0:
            self.window = self.over_hosts([batch.window_targets, batch.window_tokens])
            self.step_sums, self.norm, self.bad = None, None, None
        self.last_of_step = (batch_idx + 1) % micro_batches == 0
        sums = self.model.losses(batch)
        self.step_sums = _added(self.step_sums, sums)
        targets, tokens = (max(1.0, counted) for counted in self.window)
        return (sums.cross_entropy / targets + sums.router / tokens) * (averaged * micro_batches)

    def on_train_start(self) -> None:
        """Average gradients here where DDP cannot: they are added up in fp32, and it takes them in their weights' type.

        Nothing hides it then, but it is done once a step.
        """
        low = any(p.requires_grad and p.dtype != torch.float32 for p in self.parameters())
        wrapped = self.trainer.strategy.model
        if low and self.trainer.accumulate_grad_batches > 1 and isinstance(wrapped, DistributedDataParallel):
            self.averages, wrapped.require_backward_grad_sync = True, False

    def on_after_backward(self) -> None:
        """With the step's last micro-batch."""
        if self.averages and self.last_of_step:
            average([parameter for parameter in self.parameters() if parameter.requires_grad])

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then tell routers that adapt by themselves what the whole step gave their experts, unless it is bad."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        mixtures = [layer.ffn for layer in self.model.decoder.layers if isinstance(layer.ffn, Mixture)]
        if self.step_sums is None or not any(mixture.adapts for mixture in mixtures):
            return
        load_LE = self.over_ranks(self.step_sums.load_LGE.sum(1))
        adapting = [buffer for mixture in mixtures for buffer in mixture.buffers()]
        before = [buffer.clone() for buffer in adapting]
        for mixture, load_E in zip(mixtures, load_LE, strict=True):
            mixture.after_step(load_E, self.over_ranks)
        if self.bad is not None:
            for buffer, was in zip(adapting, before, strict=True):
                buffer.copy_(was.where(self.bad, buffer))  # whose device alone knows of it as yet

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of all gradients, however they are spread; no host waits for it.

        Lightning's own way cannot take the norm of gradients that are on several meshes.
        """
        if not gradient_clip_val or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif isinstance(optimizer, MasterAdamW):
            optimizer.scale = (gradient_clip_val / (self.gradient_norm(optimizer) + 1e-6)).clamp(max=1)
        else:
            clip_gradients(_parameters(optimizer), gradient_clip_val, self.gradient_norm(optimizer))

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The norm of this step's gradients before they are clipped, fp32[], over all ranks where they share them."""
        if self.norm is None:
            self.norm = gradient_norm(_parameters(optimizer))
        return self.norm

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Tell the data what has been trained on."""
        self.trainer.datamodule.trained(batch)  # type: ignore[attr-defined]

    def on_validation_epoch_start(self) -> None:
        """Start a new sum of held-out losses."""
        self.held_out = HeldOutLoss()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Held-out loss with the right pictures and with wrong ones."""
        self.held_out.add(self.model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/loss``, ``val/loss/<source>``, ``val/sight_gap`` and ``val/sight_gap/<source>``."""
        values = self.held_out.summary(self.over_ranks, self.device)
        named = {f"val/{name}": value for name, value in values.items()}
        self.log_dict(named, logger=False)  # for callbacks; loggers get the line that is written

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule over the steps of this run.

        Raises:
            UserError: The run has no end, so there is no cosine to it.
        """
        if self.trainer.max_steps <= 0:
            raise UserError(f"trainer.max_steps is {self.trainer.max_steps}; expected the number of steps to train")
        optimizer, schedule = self.optimizer(self.model, self.trainer.max_steps)
        if self.trainer.accumulate_grad_batches > 1:
            for parameter in _parameters(optimizer):
                parameter.grad_dtype = torch.float32  # sums over micro-batches need more than 8 bits
        if self.resumed_groups is not None:
            check_resumes(self.resumed_groups, optimizer, self.trainer.ckpt_path)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit, before anything is overwritten; the door has looked at its format.

        Raises:
            UserError: No state of the training, or tensors that are missing, left over or misshaped.
        """
        path = self.trainer.ckpt_path
        if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
            raise UserError(
                f"{path} holds weights alone, so there is nothing to go on with; expected --init_from {path}"
            )
        upgrade(checkpoint)  # the first hook that sees it
        self.resumed_groups = checkpoint["optimizer_states"][0]["param_groups"]
        check_fits(checkpoint["state_dict"], self._kept(), f"{path} does not fit model.model of this run")
        was, now = (_kind(state) for state in (checkpoint["state_dict"], self._kept()))
        if was != now:
            raise UserError(
                f"{path} has weights in {was}, this run in {now}; a resumed run keeps their type: restore "
                f"model.weights and trainer.precision, or start anew with --init_from {path}"
            )
        if self.adapted != (about := checkpoint["mm1"].get("lora", {})):
            raise UserError(
                f"{path} has adapters {about or 'none'}, this run {self.adapted or 'none'}; a resumed run keeps them: "
                f"restore model.lora and --init_from"
            )

    def cpu(self) -> Objective:
        """Lightning's tidying up, after errors too; an empty model has nothing to bring back."""
        return self if self._empty else super().cpu()

    @property
    def _empty(self) -> bool:
        return any(parameter.is_meta for parameter in self.model.parameters())

    def over_hosts(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks of what their hosts know, without a word to any device.

        Ranks that read the same rows count as one, so that a word of one of them is a share of one.
        """
        if self.trainer.world_size == 1:
            return list(values)
        self.hosts = self.hosts or torch.distributed.new_group(backend="gloo")
        summed = torch.tensor(values, dtype=torch.float64, device="cpu")
        torch.distributed.all_reduce(summed, group=self.hosts)
        return (summed * reader(self.trainer.strategy)[1] / self.trainer.world_size).tolist()

    def over_ranks(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self.trainer.strategy.reduce(tensor.clone(), reduce_op="sum")  # which sums in place


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _kind(state: Mapping[str, Any]) -> str:
    """The type of a model's weights, but for what is always fp32."""
    return "bfloat16" if any(tensor.dtype == torch.bfloat16 for tensor in state.values()) else "float32"


def _added(total: LossSums | None, sums: LossSums) -> LossSums:
    """Sums over micro-batches, cut from the graph."""
    parts = {f.name: getattr(sums, f.name).detach() for f in fields(LossSums)}
    if total is not None:
        parts = {name: getattr(total, name) + part for name, part in parts.items()}
    return LossSums(**parts)
