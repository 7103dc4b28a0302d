"""The door ``mm1-eval``: run benchmarks, ask a model yourself, score answers again, compare them, look for leaks."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser, Namespace

import mm1
from eval import judging, text_skills
from eval.adapters import door as harnesses
from eval.again import beside, by_task, once, read_leaks, refer, rescore, score_anew
from eval.compare import compare, told
from eval.contamination import check_tokenizer, overlap
from eval.failing import masks_of
from eval.files import Data
from eval.harness import engine_sizes, run
from eval.metrics.java import Java
from eval.prompts import Arm, Settings
from eval.scores import table
from eval.serve import command as serving
from eval.store import answers_file, check_metrics, companion, read_answers, unfinished, write_answers
from eval.stored import DOES, add, in_java
from eval.task import Kind, discover, offers
from eval.text_skills import Asked
from mm1.errors import UserError, door, underscored
from mm1.infer.assistant import Dtype
from mm1.infer.spread import Spread
from mm1.runs import write_json


def main() -> None:
    """Run ``mm1-eval``."""
    door(_main)


def parser() -> ArgumentParser:
    """The whole command line."""
    running = ArgumentParser(description="Score a model on the benchmarks of a data folder; finished answers are kept.")
    running.add_argument("checkpoint", type=str, help="a *.ckpt of mm1-train, or an exported folder")
    running.add_argument(
        "--data", type=str, required=True, help="folder with benchmarks as downloaded (docs/evaluation.md)"
    )
    running.add_argument("--out", type=str | None, default=None, help="default: eval/<config> in the run folder")
    running.add_argument("--device", type=str, default="cpu")
    running.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the file's")
    running.add_argument(
        "--corpus", type=str, nargs="+", default=[], help="what it was trained on, to count scored pictures in"
    )
    running.add_argument("--config", action="config", help="such as configs/eval/fewshot.yaml")
    running.add_class_arguments(Settings)
    asking = ArgumentParser(description="Ask a model about pictures.")
    asking.add_argument("checkpoint", type=str, help="a *.ckpt of mm1-train, or an exported folder")
    asking.add_argument(
        "pictures_and_question", type=str, nargs=argparse.ONE_OR_MORE, help='a.jpg b.jpg "What is this?"'
    )
    asking.add_argument("--template", type=Literal["chat", "none"], default="chat", help="none: text as it is")
    asking.add_argument("--max_new_tokens", type=int, default=64)
    asking.add_argument("--device", type=str, default="cpu")
    asking.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the file's")
    scoring = ArgumentParser(description="Score stored answers again, without the model.")
    scoring.add_argument("answers", type=str, help="an answers.jsonl")
    scoring.add_argument("--java", type=list[Java], default=[], help="captions also by these, where there is Java")
    scoring.add_argument("--data", type=str | None, default=None, help="take references from these files instead")
    scoring.add_argument("--images", type=dict[str, str], default={}, help="as when it was run")
    comparing = ArgumentParser(description="Differences of two runs on the same questions, with paired intervals.")
    comparing.add_argument("answers", type=str, help="an answers.jsonl, or its folder")
    comparing.add_argument("other_answers", type=str, help="what is subtracted")
    comparing.add_argument("--arm", type=Arm, default="sighted", help="of the first")
    comparing.add_argument("--other_arm", type=Arm, default="sighted", help="of the second")
    looking = ArgumentParser(
        description="Scored pictures and questions in training corpora; exit code 1 if there are pictures."
    )
    looking.add_argument("corpora", type=str, nargs=argparse.ONE_OR_MORE, help="folders written by mm1-data shards")
    looking.add_argument(
        "--data", type=str, required=True, help="folder with benchmarks as downloaded (docs/evaluation.md)"
    )
    looking.add_argument("--images", type=dict[str, str], default={}, help="folders of pictures that lie elsewhere")
    whole = ArgumentParser(prog="mm1-eval", description=__doc__, exit_on_error=False)
    commands = whole.add_subcommands(dest="command")
    commands.add_subcommand("run", running, help="score a model on benchmarks")
    commands.add_subcommand("ask", asking, help="ask a model about pictures")
    commands.add_subcommand("score", scoring, help="score stored answers again")
    commands.add_subcommand("compare", comparing, help="two runs on the same questions")
    commands.add_subcommand("contamination", looking, help="scored pictures and questions among those trained on")
    commands.add_subcommand("text", _reading(), help="text-only skills, before and after tuning")
    add(commands)
    judging.add(commands)
    serving.add(commands)
    for harness, about in harnesses.ABOUT.items():
        commands.add_subcommand(harness, ArgumentParser(description=about), help=about.split(".")[0])
    return whole


def _reading() -> ArgumentParser:
    reading = ArgumentParser(
        description="Perplexity of held-out text and choices by likelihood, of one checkpoint or several."
    )
    reading.add_argument(
        "checkpoints", type=str, nargs=argparse.ONE_OR_MORE, help="such as the one before tuning, then the one after"
    )
    reading.add_argument("--documents", type=str | None, default=None, help="*.txt, *.jsonl, or a corpus: its val text")
    reading.add_argument("--questions", type=str | None, default=None, help="*.jsonl of context and choices, or target")
    reading.add_argument("--out", type=str | None, default=None, help="default: eval/text in the last one's run folder")
    reading.add_argument("--device", type=str, default="cpu")
    reading.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the file's")
    reading.add_class_arguments(Asked)
    return reading


def _main() -> None:
    if sys.argv[1:2] and sys.argv[1] in harnesses.PACKAGES:  # the rest of the line is another program's
        return harnesses.run(sys.argv[1], underscored(sys.argv[2:]))
    whole = parser()
    arguments = whole.parse_args(underscored(sys.argv[1:]))
    command = arguments.command
    if command == "run":
        _check_groups(arguments.run)
    does = {"run": _run, "ask": _ask, "score": _score, "compare": _compare, "contamination": _contamination}
    does |= {"text": _text, "judge": judging.run, "serve": serving.run, **DOES}
    does[command](whole.instantiate(arguments)[command])


def _check_groups(settings: Namespace) -> None:
    """Refuse one value where several belong, which the parser lets through."""
    wanted = dict.fromkeys(get_args(Kind), "template, stop and max_new_tokens") | {"retrieval": "model and pretrained"}
    wanted |= {f"{kind}.decoding": "beams, or temperature and seed" for kind in get_args(Kind)}
    for name, fields in wanted.items():
        if not isinstance(settings[name], Namespace):
            raise UserError(f"{name} is {settings[name]!r:.60}; expected {fields}, or the line left out")


def _run(arguments: Namespace) -> None:
    names = Settings.__dataclass_fields__
    settings = Settings(**{name: arguments[name] for name in names})
    settings.check()
    checkpoint, corpora = Path(arguments.checkpoint), [Path(corpus) for corpus in arguments.corpus]
    several = settings.processes > 1  # the model is then here only to be asked about
    assistant = mm1.load(checkpoint, device="cpu" if several else arguments.device, dtype=arguments.dtype)
    configs = arguments.get("config") or []
    name = Path(str(configs[-1])).stem if configs else "fewshot"
    if masks := masks_of(settings.mask_experts):  # beside the whole model's answers, not in their place
        name += "-without-" + "-".join(".".join(map(str, (layer, *of))) for layer, of in masks.items())
    out = Path(arguments.out) if arguments.out else default_out(checkpoint, name)
    check_tokenizer(corpora, assistant.tokenizer.fingerprint, checkpoint)
    with ExitStack() as stack:
        engine = None
        if several:
            given = {"device": arguments.device, "dtype": arguments.dtype, **engine_sizes(settings)}
            engine = stack.enter_context(Spread(checkpoint, settings.processes, **given))
        scores = run(assistant.model, assistant.tokenizer, checkpoint, arguments.data, settings, out, corpora, engine)
    print(table(scores))
    print(out / "scores.json")


def _ask(arguments: Namespace) -> None:
    *pictures, question = arguments.pictures_and_question
    if os.path.isfile(question):  # as a path, a question can be too long even to ask
        raise UserError(f"the last argument is the file {question}; expected the question there, in quotes")
    assistant = mm1.load(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    print(assistant.generate(pictures, question, arguments.max_new_tokens, template=arguments.template))


def _score(arguments: Namespace) -> None:
    path = Path(arguments.answers)
    answers = read_answers(path)
    once(answers, path)
    if arguments.data:
        names = {answer["task"] for answer in answers}
        data = Data(Path(arguments.data), arguments.images, max_missing_share=1)
        refer(answers, [offer.load() for offer in offers(data) if offer.name in names], path)
    else:
        check_metrics(answers, path)
    found = rescore(answers, read_leaks(path), unfinished(answers, path))
    in_java(found, answers, arguments.java)
    scores = beside(path, found)
    print(table(scores))
    if (scored := companion(path, "scores")).exists():
        write_json(scored, scores)
        write_answers(answers, path)


def _compare(arguments: Namespace) -> None:
    paths = [answers_file(Path(at)) for at in (arguments.answers, arguments.other_answers)]
    first, second = (read_answers(path) for path in paths)
    for answers, path in zip((first, second), paths, strict=True):
        check_metrics(answers, path)
        for of_task in by_task(answers).values():
            score_anew(of_task)  # a score may have been edited, or made by an earlier version
        for task, told_so in unfinished(answers, path).items():
            print(f"{path}: {task}: {told_so}", file=sys.stderr)
    print(told(compare(first, second, arguments.arm, arguments.other_arm)))


def _contamination(arguments: Namespace) -> None:
    tasks = discover(Data(Path(arguments.data), arguments.images))
    found = overlap([Path(corpus) for corpus in arguments.corpora], tasks, progress=True)
    print(found)
    if found.found:
        raise SystemExit(1)


def _text(arguments: Namespace) -> None:
    asked = Asked(**{name: arguments[name] for name in Asked.__dataclass_fields__})
    documents, questions = (Path(path) if path else None for path in (arguments.documents, arguments.questions))
    found = text_skills.run(arguments.checkpoints, documents, questions, asked, arguments.device, arguments.dtype)
    out = Path(arguments.out) if arguments.out else default_out(Path(arguments.checkpoints[-1]), "text")
    write_json(out / "text.json", found)
    print(text_skills.told(found))
    print(out / "text.json")


def default_out(checkpoint: Path, name: str) -> Path:
    """``eval/<name>`` in the run folder that a checkpoint lies in, or beside an exported model's files."""
    run_folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return (run_folder.parent if run_folder.name == "checkpoints" else run_folder) / "eval" / name


if __name__ == "__main__":
    main()
