"""``mm1-train fit --config configs/train/tiny_pretrain.yaml --run runs/tiny``: one YAML, one run folder.

The same command again goes on where the run stopped, and says so when it is finished. ``--init_from CKPT`` takes over
weights only and starts a new schedule; ``--print_config`` prints everything that can be set.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any, Literal

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from mm1.data.streams import lost_worker
from mm1.errors import UserError, at_least, door, sentence, underscored
from mm1.model.stored import read
from mm1.runs import Run
from mm1.train.bad_steps import BadSteps, Policy
from mm1.train.callbacks import Progress, WatchSight
from mm1.train.chance import Chance
from mm1.train.checkpoints import Describe, Layout, SaveLast
from mm1.train.datamodule import MM1Data
from mm1.train.loggers import TensorBoard
from mm1.train.memory import out_of_memory
from mm1.train.metrics import Metrics, RunFolder
from mm1.train.module import Objective
from mm1.train.preemption import Preemption
from mm1.train.routing_watch import WatchRouting
from mm1.train.strategy import BothLayouts, Sharded
from mm1.train.supply import EndOfData, Quarantine, TellPacking
from mm1.train.watchdog import Watchdog

TRAINER = {
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
PRECISIONS = ("32-true", "bf16-mixed")


class Door(LightningCLI):
    """Lightning's command line with a run folder, ready-made callbacks, and the model built on the meta device.

    Args:
        arguments: The command line, ``sys.argv`` if not given.
    """

    def __init__(self, arguments: list[str] | None = None) -> None:
        _quiet()
        super().__init__(
            Objective,
            MM1Data,
            save_config_callback=None,
            trainer_defaults=TRAINER,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "mm1-train", "exit_on_error": False},
            args=underscored(sys.argv[1:] if arguments is None else arguments),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only what a run folder is for."""
        return {"fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is set beside model, data and trainer."""
        parser.add_argument("--run", type=str | None, default=None, help="Folder of the run.")
        parser.add_argument("--init_from", type=str | None, default=None, help="Checkpoint to take weights from.")
        parser.add_argument(
            "--resume", type=Literal["auto", "never"], default="auto", help="Go on with a run found in the folder?"
        )
        parser.add_argument("--validate_every_n_steps", type=int, default=100, help="Steps between validations.")
        parser.add_argument("--save_every_n_steps", type=int, default=100, help="Steps between checkpoints.")
        parser.add_argument(
            "--keep_last", type=int, default=1, help="Newest checkpoints to keep, last.ckpt among them."
        )
        parser.add_argument(
            "--keep_every_n_steps", type=int, default=0, help="Keep checkpoints of every so many steps for ever."
        )
        parser.add_argument(
            "--checkpoints", type=Layout, default="auto", help="One file, or a folder that ranks write meanwhile."
        )
        parser.add_argument("--bad_steps", type=Policy, default="stop", help="Losses that are no number.")
        parser.add_argument("--spike_nats", type=float | None, default=None, help="So far above usual is bad as well.")
        parser.add_argument("--most_bad_steps", type=int, default=10, help="After so many of them training stops.")
        parser.add_argument("--hang_timeout_s", type=float, default=1800, help="So long may nothing move; 0: for ever.")
        parser.add_argument("--threads", type=int | None, default=None, help="Threads of torch.")
        parser.link_arguments("init_from", "model.init_from")
        parser.link_arguments("model.model", "data.image_spec", compute_fn=_image_spec, apply_on="instantiate")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments(
            ("validate_every_n_steps", "trainer.accumulate_grad_batches"),
            "trainer.val_check_interval",
            compute_fn=lambda steps, micro_batches: steps * micro_batches,
        )

    def before_instantiate_classes(self) -> None:
        """Settle what becomes of a run that is already there, and set the process up."""
        config = self.config["fit"]
        if config.run is None:
            raise UserError("no run folder; expected --run FOLDER (or run: FOLDER in the YAML)")
        self.run_folder = Run(config.run)
        names = ["validate_every_n_steps", "save_every_n_steps", "trainer.log_every_n_steps"]
        names += ["trainer.accumulate_grad_batches"] + ["threads"] * (config.threads is not None)
        at_least(1, {name: config[name] for name in names})
        if config.trainer.gradient_clip_val is not None:
            at_least(0, {"trainer.gradient_clip_val": config.trainer.gradient_clip_val})
        self.anew = config.resume == "never"
        begun = not self.anew and (self.run_folder.folder / "run.json").exists()
        if begun and self.run_folder.about().get("finished"):
            how = f"--resume never starts it over, --init_from {self.run_folder.last} goes on in another folder"
            print(f"{self.run_folder.folder} is finished; nothing to do ({how})")
            raise SystemExit(0)
        torch.set_flush_denormal(True)
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    def instantiate_classes(self) -> None:
        """Build the model without memory; :meth:`Objective.configure_model` gives it some."""
        try:
            self.config_init = self.parser.instantiate(self.config, instantiators=[(_on_meta, nn.Module, True)])
        except ValueError as error:  # what a constructor refuses; inside a union jsonargparse wraps it in its own words
            raise _ours(error) or UserError(sentence(error)) from None
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """The YAML's callbacks stand between ours that measure and ours that save."""
        config = self.config["fit"]
        given: list[Callback] = self._get(self.config_init, "trainer").get("callbacks") or []
        resolved = self._parser("fit").dump(config, skip_unset=False)
        model = yaml.safe_dump(yaml.safe_load(resolved)["model"]["model"], sort_keys=False)
        metrics, save = Metrics(config.trainer.log_every_n_steps), _save_last(config)
        folder = RunFolder(resolved, self.anew)
        supply = [TellPacking(), Quarantine(), EndOfData()]
        watch = [BadSteps(config.bad_steps, config.spike_nats, config.most_bad_steps), WatchSight()]
        if not any(isinstance(callback, WatchRouting) for callback in given):  # the YAML's own has other limits
            watch.append(WatchRouting())
        watch.append(Watchdog(config.hang_timeout_s))
        end = [Describe(model), Chance(), save, Preemption(save)]
        callbacks = [folder, metrics, *supply, Progress(), *watch, *given, *end]
        if self._get(self.config_init, "trainer").get("logger") in (None, True):
            kwargs["logger"] = TensorBoard(self.run_folder.folder)
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise UserError(f"Lightning refuses the settings under trainer: {error}") from None
        _check_learns(trainer)
        if not isinstance(trainer.strategy, Sharded):  # which reads for itself
            trainer.strategy.checkpoint_io = BothLayouts()
        return trainer

    def fit(self, **arguments: Any) -> None:
        """Train, from the last checkpoint if there is one."""
        if os.path.lexists(self.run_folder.last) and not self.anew:
            read(self.run_folder.last)  # says in a sentence what Lightning would answer with a stack trace
            self.trainer.ckpt_path = self.run_folder.last
            print(f"going on with {self.run_folder.last}", file=sys.stderr)
        try:
            self.trainer.fit(**arguments, weights_only=True)
        except SystemExit as left:
            if left.code == 1:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        except MisconfigurationException as error:
            raise UserError(f"Lightning refuses the settings under trainer: {sentence(error)}") from None
        except MemoryError as error:
            raise out_of_memory(error, self.trainer) or error from None
        except RuntimeError as error:
            raise lost_worker(error) or out_of_memory(error, self.trainer) or error from None


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``mm1-train``."""
    door(lambda: Door(arguments))


def _save_last(config: Any) -> SaveLast:
    return SaveLast(config.save_every_n_steps, config.keep_last, config.keep_every_n_steps, config.checkpoints)


def _check_learns(trainer: lightning.Trainer) -> None:
    """Refuse ways of Lightning's that would run and learn something else than is said.

    Raises:
        UserError: A strategy that adds up gradients by its own rules or not at all; a precision in which tokens are
            counted in 8 bits, or gradients need a scale that whoever judges steps takes for a fault; or steps that
            would end before their last micro-batch.
    """
    name = type(trainer.strategy).__name__
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | Sharded):
        raise UserError(
            f"trainer.strategy is {name}; expected auto, ddp, or class_path: mm1.train.strategy.Sharded, by which "
            f"ranks share the model"
        )
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is {trainer.precision}; expected one of {', '.join(PRECISIONS)}, with model.weights: "
            f"bfloat16 beside 32-true for weights of that type: counts and routers stay in fp32 then"
        )
    limit, micro_batches = trainer.limit_train_batches, trainer.accumulate_grad_batches
    tried: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
    if isinstance(limit, int) and limit % micro_batches and not tried:
        raise UserError(
            f"trainer.limit_train_batches is {limit}; expected a multiple of trainer.accumulate_grad_batches, which is "
            f"{micro_batches}, for a step is that many"
        )


def _ours(error: BaseException | None) -> UserError | None:
    """What a constructor of ours said, without what jsonargparse says of other types that would have done."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _image_spec(model: Any) -> Any:
    return model.image_spec


def _on_meta(class_type: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return class_type(*args, **kwargs)


def _quiet() -> None:
    """Silence Lightning's tips; its warnings about our settings are answered in this file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings(
        "ignore", message=".*(worker process|args parameter is intended|returned a view tensor|Grad strides)"
    )


if __name__ == "__main__":
    main()
