"""One class for everything a user can get wrong, one sentence for it at every door, and how doors read options."""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Mapping


class UserError(ValueError):
    """A fault that the user can mend. The message says what was found, what was expected, and which setting."""


def at_least(least: float, settings: Mapping[str, float | None]) -> None:
    """Refuse numbers that are too small or not there, by the names that users set them by.

    Raises:
        UserError: The first of them.
    """
    for name, value in settings.items():
        if value is None or not value >= least:  # so that nan is too small as well
            raise UserError(f"{name} is {value}; expected at least {least}")


def door(main: Callable[[], object]) -> None:
    """Run a command-line entry point: what a user can mend becomes one line and exit code 2, no stack trace.

    That is a :class:`UserError`, an argument or YAML key the parser refuses, and what the system refuses: a folder that
    is none, a file that may not be written, a disk that is full, a file that is no text.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of few letters gets "?" for a dagger, not a stack trace
        sys.stdout.reconfigure(errors="replace")
    try:
        main()
    except (UserError, ArgumentError, OSError) as error:
        told = _refused(error) if isinstance(error, OSError) else sentence(error)
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(2) from None
    except UnicodeDecodeError as error:
        print(f"error: a file that was named is no text ({error}); expected UTF-8", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None


def underscored(words: list[str]) -> list[str]:
    """A command line with its options as the doors name them: ``--init-from a-b`` is ``--init_from a-b``."""
    return [re.sub(r"^--[^=]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in words]


def sentence(error: BaseException) -> str:
    """An error's message on one line; of jsonargparse's nested ones the dotted path and what is wrong there."""
    text = _without_loop(error)
    keys = re.findall(_KEY, text)
    lines = [line.strip("- ") for line in re.sub(_KEY, "", text).splitlines()]
    told = dict.fromkeys(line for line in lines if line and not line.startswith(_NOISE))  # each type says it once more
    fault = "; ".join(told)
    fault = re.sub(r"<class '(\w+)'>", r"\1", re.sub(_ADVICE, "", fault)).replace("Expected a int", "Expected an int")
    fault = re.sub(r"a typing\.Literal\[(.+?)\]", r"one of \1", fault)
    return f"{'.'.join(keys)}: {fault}" if keys else fault


_KEY = r'Parser key "([^"]+)"(?: element \d+)?: ?'
_ADVICE = (
    r"Type \S.+ expects a function or a callable class:;? ?|\. Got value: Namespace\(.*\)|; Not a valid subclass of .*"
)
_NOISE = (
    "Problem with given class_path",
    "Does not validate against any",
    "Subtypes: [",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a <class 'collections.abc.Iterable'>",
    "Given value type: ",
    "Given value: NestedArg(",
    "Given value: Namespace(",
    "Given value: {",
)
_LOOP = "Config file loop detected"


def _without_loop(error: BaseException) -> str:
    """jsonargparse parses a faulty file a second time and then complains of a loop; the fault stands further in."""
    inner: BaseException | None = error
    while inner and _LOOP in str(inner) and (inner.__cause__ or inner.__context__):
        inner = inner.__cause__ or inner.__context__
    return re.sub(f"{_LOOP}.*", lambda _: str(inner), str(error))


def _refused(error: OSError) -> str:
    where = error.filename2 or error.filename or "a file"  # of two, the one that was to be written
    why = error.strerror or str(error)
    return f"{where} cannot be used ({why}); expected a path that can be read and written; what was finished is kept"
