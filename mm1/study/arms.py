"""Many small runs that differ in their sparse layer alone: the same steps, data and seeds, each a process of training.

An arm is a model YAML, or one with other arguments of its sparse layer; what is trained lies in ``OUT/configs``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mm1.errors import UserError, at_least
from mm1.runs import Run
from mm1.study.quickstart import CONFIGS, WORLDS, corpus_stages, door
from mm1.study.stages import Stage, Stages

ABLATIONS = CONFIGS / "ablations"
DENSE, SPARSE = (CONFIGS / "model" / f"{name}.yaml" for name in ("tiny", "tiny_moe"))
RECIPE = CONFIGS / "train" / "tiny_moe_pretrain.yaml"
LINES = 80  # of metrics in a run
TRAINERS: dict[str, dict[str, object]] = {
    "cpu": {"trainer.accelerator": "cpu", "trainer.devices": 1},
    "cuda": {"trainer.accelerator": "cuda", "trainer.devices": 1, "trainer.precision": "bf16-mixed"},
}


@dataclass(frozen=True)
class Arm:
    """One model that is trained.

    Args:
        name: Of its run and its row.
        model: Model YAML.
        moe: Arguments of its sparse layer that are others here.
    """

    name: str
    model: Path
    moe: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, out: Path) -> Path:
        """The YAML that trains it, written to ``out / "configs"``.

        Naming the model on the command line instead would merge it with the recipe's own, whose sparse layer has
        arguments that another router's YAML leaves alone.
        """
        model: Any = str(self.model.resolve())
        if self.moe:
            model = yaml.safe_load(self.model.read_text())
            model["init_args"]["decoder"]["init_args"]["moe"]["init_args"] |= self.moe
        recipe = yaml.safe_load(RECIPE.read_text())
        recipe["model"]["model"] = model
        path = out / "configs" / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path


@dataclass(frozen=True)
class Setting:
    """How all arms are trained.

    Args:
        out: Folder of corpus, runs, logs and results.
        corpus: Shards for the tiny models; made of scenes if not given.
        worlds: How many worlds scenes draws then.
        steps: Training steps of every run.
        seeds: Every arm is trained once with each; a seed decides weights, order of the data and the router's noise.
        jobs: Runs at a time, which share the machine.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: Numbers that are too small, a seed that stands twice, another device, or no corpus in the folder.
    """

    out: Path
    corpus: Path | None = None
    worlds: int = WORLDS
    steps: int = 400
    seeds: Sequence[int] = (0,)
    jobs: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        at_least(1, {"--steps": self.steps, "--jobs": self.jobs, "--worlds": self.worlds})
        at_least(0, {"--seeds": min(self.seeds)})
        if len({*self.seeds}) < len(self.seeds):
            raise UserError(f"--seeds is {' '.join(map(str, self.seeds))}; expected each seed once")
        if self.device not in TRAINERS:
            raise UserError(f"--device is {self.device}; expected {' or '.join(TRAINERS)}")
        if self.corpus is not None and not (self.corpus / "manifest.json").is_file():
            raise UserError(
                f"--corpus is {self.corpus}, which holds no manifest.json; expected mm1-data shards' output"
            )
        if not ABLATIONS.is_dir():
            raise UserError(f"{ABLATIONS} does not exist; its YAMLs are read from a checkout, install with --editable")

    def run(self, arm: Arm, seed: int) -> Run:
        """Where one run lies."""
        return Run(self.out / "runs" / f"{arm.name}-{seed}")

    def train(self, arms: Sequence[Arm]) -> list[str]:
        """Train what is not trained yet; the names of the stages that failed.

        Raises:
            UserError: The corpus could not be made.
        """
        made = [] if self.corpus else corpus_stages(None, self.out, self.worlds)
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        Stages(self.out, made, threads=threads).run()
        runs = [self._stage(arm, seed) for seed in self.seeds for arm in arms]  # of each arm one first
        return Stages(self.out, runs, slots=self.jobs, threads=threads, keep_going=True).run()

    def _stage(self, arm: Arm, seed: int) -> Stage:
        run = self.run(arm, seed)
        seeds = dict.fromkeys(("seed_everything", "model.seed", "data.seed"), seed)
        ends = {"trainer.max_steps": self.steps, "validate_every_n_steps": self.steps}
        lines = {"trainer.log_every_n_steps": max(1, self.steps // LINES)}
        what = {"run": run.folder, "data.corpus": self.corpus or self.out / "corpus"}
        options = {**what, **ends, **lines, **seeds, **TRAINERS[self.device]}
        command = door("mm1.train", "fit", config=arm.recipe(self.out), **options)
        return Stage(run.folder.name, command, (), f"seed {seed}", f"train {arm.name}", (run.folder,))


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Those of ``names`` that ``only`` names, or all where it names none.

    Raises:
        UserError: It names another.
    """
    if unknown := set(only) - set(names):
        raise UserError(f"--only names {min(unknown)!r}; expected some of {', '.join(names)}")
    return [name for name in names if not only or name in only]
