"""What happens to documents between their files and the shards: each step keeps, changes or refuses them."""

from __future__ import annotations

from data_pipelines.steps.base import Alike, EachPicture, Pictures, Step, told, without
from data_pipelines.steps.duplicates import NearPicture, NearText, Same
from data_pipelines.steps.metadata import Metadata
from data_pipelines.steps.optout import OptOut
from data_pipelines.steps.pictures import Judged, PictureCount, PictureSize
from data_pipelines.steps.recaption import Captioner, Recaption
from data_pipelines.steps.repetition import Repetition
from data_pipelines.steps.scored import ScoredText
from data_pipelines.steps.similarity import Similarity
from data_pipelines.steps.subset import Subset
from data_pipelines.steps.text import BadWords, Language, TextLength, Wording

__all__ = [
    "Alike",
    "BadWords",
    "Captioner",
    "EachPicture",
    "Judged",
    "Language",
    "Metadata",
    "NearPicture",
    "NearText",
    "OptOut",
    "PictureCount",
    "PictureSize",
    "Pictures",
    "Recaption",
    "Repetition",
    "Same",
    "ScoredText",
    "Similarity",
    "Step",
    "Subset",
    "TextLength",
    "Wording",
    "told",
    "without",
]
