"""The door ``mm1-convert``: trained parts come in, models leave as plain files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

from jsonargparse import ArgumentParser

from mm1.errors import door, underscored
from mm1.interop.encoders import encoder
from mm1.interop.export import export
from mm1.interop.join import join
from mm1.interop.task import cut_task
from mm1.interop.upcycle import upcycle

COMMANDS: dict[str, Callable[..., Path]] = {
    "encoder": encoder,
    "export": export,
    "join": join,
    "task": cut_task,
    "upcycle": upcycle,
}
NAMED = ("join",)  # takes several files, so that each is given by name
FLAGS = {"task": {"task": "name of the task", "out": "folder to write; must not exist"}}  # given by name as well
SWITCHES = {"allow_pickle": "read pytorch_model.bin where there is no safetensors; nothing in it is executed"}


def parser() -> ArgumentParser:
    """The whole command line: each command is a function, its arguments are those of the function."""
    whole = ArgumentParser(prog="mm1-convert", description=__doc__, exit_on_error=False)
    commands = whole.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        about = (function.__doc__ or "").partition("\n")[0]
        own = ArgumentParser(description=about, exit_on_error=False)
        flags = FLAGS.get(name, {})
        names = own.add_function_arguments(function, as_positional=name not in NAMED, skip={*SWITCHES, *flags})
        for flag, help_text in flags.items():
            own.add_argument(f"--{flag}", type=get_type_hints(function)[flag], required=True, help=help_text)
        taken = function.__annotations__.keys() & SWITCHES
        for switch in taken - {*names}:
            own.add_argument(f"--{switch}", action="store_true", help=SWITCHES[switch])
        commands.add_subcommand(name, own, help=about)
    return whole


def main() -> None:
    """Run ``mm1-convert``."""
    door(_main)


def _main() -> None:
    arguments = parser().parse_args(underscored(sys.argv[1:]))
    chosen = arguments[arguments.command].as_dict()
    chosen.pop("config", None)
    print(f"written: {COMMANDS[arguments.command](**chosen)}")


if __name__ == "__main__":
    main()
