"""METEOR and SPICE, which exist in Java only: pycocoevalcap runs them, where both are there.

METEOR 1.5 (Denkowski and Lavie 2014) comes with pycocoevalcap; SPICE (Anderson et al. 2016) fetches Stanford's parser,
300 MB, when it is first made.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eval.metrics.tokenize import tokenize
from mm1.errors import UserError

Java = Literal["meteor", "spice"]
CLASSES = {"meteor": ("pycocoevalcap.meteor.meteor", "Meteor"), "spice": ("pycocoevalcap.spice.spice", "Spice")}


def java_score(name: Java, answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """A score of captions, times 100.

    Args:
        name: Which.
        answers: A caption by picture.
        references: Reference captions by picture.

    Raises:
        UserError: No Java, no pycocoevalcap, or it failed, as SPICE does without the network the first time.
    """
    if shutil.which("java") is None:
        raise UserError(
            f"{name} needs Java, and there is no java on PATH; expected one (apt install default-jre-headless)"
        )
    module, called = CLASSES[name]
    try:
        scorer: Any = getattr(importlib.import_module(module), called)
    except ImportError:
        raise UserError(
            f"{name} needs pycocoevalcap, which is not installed; expected pip install pycocoevalcap"
        ) from None
    said = {id: [tokenize(answer)] for id, answer in answers.items()}
    right = {id: [tokenize(caption) for caption in references[id]] for id in answers}
    try:
        return 100 * float(scorer().compute_score(right, said)[0])
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"{name} failed ({error}); expected Java 8 or later, and a network when SPICE is run first"
        ) from None
