"""Three lines in a folder by which transformers finds the classes of this package where nobody imported them.

``from_pretrained(folder, trust_remote_code=True)`` runs them; the package must be installed. No copy of our classes
lies in a folder, so a model gets the mended code of a newer version.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MODULE = "modeling_mm1"
CODE = '''"""Lets transformers find the classes of the installed package mm1 by trust_remote_code=True."""

from mm1.interop.transformers_mm1 import MM1Config, MM1ForConditionalGeneration, MM1ImageProcessor, MM1Processor
'''


class Installed:
    """For classes that come from the installed package and not from a folder."""

    @classmethod
    def register_for_auto_class(cls, *_: Any) -> None:
        """Nothing: transformers would copy the file of the class into every folder that it saves."""


def auto_map(**classes: str) -> dict[str, str]:
    """Where the class for each of transformers' Auto classes is."""
    return {auto: f"{MODULE}.{name}" for auto, name in classes.items()}


def leave_code(folder: str | os.PathLike[str]) -> None:
    """Write the three lines."""
    (Path(folder) / f"{MODULE}.py").write_text(CODE)
