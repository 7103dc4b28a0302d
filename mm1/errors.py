"""One class for everything a user can get wrong, so that the doors can answer it with one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A fault that the user can mend. The message says what was found, what was expected, and which setting."""


def door(main: Callable[[], object]) -> None:
    """Run a command-line entry point: a :class:`UserError` becomes one line and exit code 2, no stack trace."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None
