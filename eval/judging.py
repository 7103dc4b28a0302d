"""``mm1-eval judge``: have the long answers of a run judged, and score the run anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from eval.again import beside, read_leaks, rescore
from eval.judge import Command, Judge, Server, Wording, count, judge
from eval.scores import table
from eval.store import answers_file, check_metrics, companion, read_answers, unfinished, write_answers
from mm1.errors import UserError, at_least
from mm1.runs import write_json


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    judging = ArgumentParser(description="Have long answers judged by a command or a server; opinions are kept.")
    judging.add_argument("answers", type=str, help="an answers.jsonl, or its folder")
    judging.add_argument("--command", type=str | None, default=None, help="reads a prompt, writes its opinion")
    judging.add_argument("--url", type=str | None, default=None, help="of a server of OpenAI's protocol, up to /v1")
    judging.add_argument("--model", type=str, default="", help="its name at that server")
    judging.add_argument("--key_variable", type=str, default="OPENAI_API_KEY", help="holds the server's key")
    judging.add_argument("--timeout_s", type=float, default=120.0, help="for one opinion")
    judging.add_argument("--at_once", type=int, default=4, help="opinions asked for at the same time")
    judging.add_argument("--config", action="config", help="such as configs/eval/judge/own.yaml")
    judging.add_class_arguments(Wording)
    commands.add_subcommand("judge", judging, help="have long answers judged")


def run(arguments: Namespace) -> None:
    """Ask a judge, put its opinions beside the answers, and write the scores that come of them."""
    at_least(1, {"at_once": arguments.at_once})
    path = answers_file(Path(arguments.answers))
    answers, asked = read_answers(path), _judge_of(arguments)
    check_metrics(answers, path)
    wording = Wording(**{name: arguments[name] for name in Wording.__dataclass_fields__})
    wording.check()
    with tqdm(total=count(answers, asked, wording), unit=" opinions") as bar:
        unread = judge(answers, path.parent, asked, wording, arguments.at_once, bar.update)
    scores = beside(path, rescore(answers, read_leaks(path), unfinished(answers, path)))
    scores["judge"] = {"name": asked.name, "wording": vars(wording), "unread": unread}
    write_answers(answers, path)
    write_json(companion(path, "scores"), scores)
    print(table(scores))
    if unread:
        print(f"{unread} opinions could not be read: these answers stay unjudged (judgements.jsonl has them)")


def _judge_of(arguments: Namespace) -> Judge:
    if (arguments.command is None) == (arguments.url is None):
        given = "both" if arguments.command else "neither"
        raise UserError(f"{given} of command and url are given; expected one of them, the judge")
    if arguments.command is not None:
        return Command(arguments.command, arguments.timeout_s)
    if not arguments.model:
        raise UserError("model is not given; expected the judge's name at the server (--model)")
    return Server(arguments.url, arguments.model, key_variable=arguments.key_variable, timeout_s=arguments.timeout_s)
