"""The door ``mm1-convert``: trained parts come in, models leave as plain files."""

from __future__ import annotations

from jsonargparse import auto_cli

from mm1.errors import door
from mm1.interop.encoders import encoder
from mm1.interop.export import export

COMMANDS = {"encoder": encoder, "export": export}


def main() -> None:
    """Run ``mm1-convert``."""
    door(lambda: print(f"written: {auto_cli(COMMANDS, prog='mm1-convert', exit_on_error=False)}"))


if __name__ == "__main__":
    main()
