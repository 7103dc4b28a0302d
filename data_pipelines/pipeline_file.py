"""A pipeline as a YAML: inputs, steps and settings by import path, the same file on one machine and on a cluster.

    out: corpora/mine
    inputs: {captions: [{class_path: CaptionTars, init_args: {files: "s3://bucket/laion/{00000..00127}.tar"}}]}
    steps: [{class_path: PictureSize, init_args: {min_side_px: 200}}]
    settings: {row_tokens: 4096, tokens_per_image: 144, image_px: 378}
    scored: ../eval

A class of ours needs no module before its name; one of yours is ``my_package.MyStep``. ``scored`` is a raw corpus
folder whose scored pictures are never trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_pipelines.picture_index
import data_pipelines.sources
import data_pipelines.steps  # noqa: F401  (classes that are imported may be named without their module)
from data_pipelines.pipeline import Pipeline
from mm1.errors import UserError, sentence


def read_pipeline(path: Path) -> tuple[Pipeline, Path | None]:
    """The pipeline of a YAML, and its corpus folder if it names one.

    Raises:
        UserError: No such file, or the setting that is wrong in it.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if not path.is_file():
        raise UserError(f"{path} is no file; expected a pipeline's YAML (docs/data.md)")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Pipeline)
    parser.add_argument("--out", type=Path | None, default=None)
    try:
        made: Any = parser.instantiate_classes(parser.parse_path(path))
    except (ArgumentError, ValueError, TypeError) as error:  # a constructor's own among them
        raise UserError(f"{path}: {sentence(error)}") from None
    out = made.pop("out")
    return Pipeline(**vars(made)), out
