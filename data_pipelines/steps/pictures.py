"""Filters that look at pictures: their size and shape, how many a document has, and what a model says of them."""

from __future__ import annotations

from collections.abc import Callable

import PIL.Image

from data_pipelines.sources.base import Draft, Place, Rejection
from data_pipelines.steps.base import EachPicture, Pictures, Step
from data_pipelines.steps.settings import in_order
from mm1.errors import at_least


class PictureSize(EachPicture):
    """Leaves out pictures that are too small, too large or too oblong; only the head of a file is read.

    Sides as MMC4 and OBELICS (arXiv 2306.16527, appendix A.1.3) have them, the shape as COYO and DataComp's basic
    filter (arXiv 2304.14108). OBELICS takes ``max_aspect`` 2, DataComp ``min_side_px`` 200, LAION and COYO
    ``min_bytes`` 5,000.

    Args:
        min_side_px: The least width and height.
        max_side_px: The largest width and height.
        max_aspect: The most that the long side may be of the short one.
        min_bytes: The least size of the file.
    """

    def __init__(
        self, *, min_side_px: int = 150, max_side_px: int = 20_000, max_aspect: float = 3.0, min_bytes: int = 0
    ) -> None:
        at_least(1, {"min_side_px": min_side_px, "max_side_px": max_side_px, "max_aspect": max_aspect})
        at_least(0, {"min_bytes": min_bytes})
        in_order("min_side_px", min_side_px, "max_side_px", max_side_px)
        self.min_side_px, self.max_side_px = min_side_px, max_side_px
        self.max_aspect, self.min_bytes = max_aspect, min_bytes

    def refuse(self, place: Place, pictures: Pictures) -> str:
        if len(pictures.data(place)) < self.min_bytes:
            return f"picture file under {self.min_bytes} bytes"
        short, long = sorted(pictures.size(place))
        if short < self.min_side_px:
            return f"picture side under {self.min_side_px}"
        if long > self.max_side_px:
            return f"picture side over {self.max_side_px}"
        return f"picture aspect over {self.max_aspect:g}" if long > self.max_aspect * short else ""


class PictureCount(Step):
    """Keeps documents with so many pictures. OBELICS keeps 1 to 30; stands after the filters of pictures.

    Args:
        least: The fewest.
        most: The most.
    """

    def __init__(self, *, least: int = 1, most: int = 30) -> None:
        at_least(0, {"least": least})
        in_order("least", least, "most", most)
        self.least, self.most = least, most

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        count = len(draft.pictures)
        if count < self.least:
            return Rejection(draft.id, f"fewer than {self.least} pictures", fault=False)
        return Rejection(draft.id, f"more than {self.most} pictures", fault=False) if count > self.most else draft


class Judged(EachPicture):
    """Leaves out pictures that a callable gives too high a score: the hook for detectors of nudity, watermarks, faces.

    Args:
        judge: From a PIL image, RGB and upright, to a number: the import path of a function, or ``class_path`` and
            ``init_args`` of a class with ``__call__``, which then has its settings. It is copied to worker processes;
            a large model is best loaded at the first call.
        maximum: The highest score that is kept.
        what: What it finds, for the reason that is counted.
    """

    def __init__(self, judge: Callable[[PIL.Image.Image], float], *, maximum: float = 0.5, what: str = "nsfw") -> None:
        self.judge, self.maximum, self.what = judge, maximum, what

    def refuse(self, place: Place, pictures: Pictures) -> str:
        kept = float(self.judge(pictures.pixels(place))) <= self.maximum
        return "" if kept else f"picture is {self.what}"  # a judge that says nan keeps nothing
