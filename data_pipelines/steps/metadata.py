"""Filters by what a document's file says of it, with neither text nor picture looked at: LAION, COYO, DataComp."""

from __future__ import annotations

import math
from typing import Any, Literal

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps.base import Pictures, Step
from data_pipelines.steps.settings import in_order
from mm1.errors import UserError


class Metadata(Step):
    """Keeps documents whose file gives a field a value in a range, or one of some values.

    Names are the file's own: ``similarity``, ``punsafe``, ``pwatermark``, ``NSFW`` and ``AESTHETIC_SCORE`` of LAION,
    ``clip_similarity_vitb32``, ``nsfw_score_opennsfw2``, ``watermark_score`` and ``aesthetic_score_laion_v2`` of COYO,
    ``clip_l14_similarity_score`` of DataComp, ``status`` of img2dataset.

    Args:
        field: The field's name.
        minimum: The least value.
        maximum: The largest value.
        values: The values that are kept, as text; with these there is no range.
        missing: What becomes of documents without the field, or with nothing (null, nan) in it.
    """

    def __init__(
        self,
        field: str,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        values: tuple[str, ...] = (),
        missing: Literal["drop", "keep"] = "drop",
    ) -> None:
        in_order("minimum", minimum, "maximum", maximum)
        if bool(values) == (minimum is not None or maximum is not None):
            raise UserError(f"Metadata of {field} has {'both' if values else 'neither'}; expected a range or values")
        self.field, self.values, self.missing = field, frozenset(values), missing
        self.minimum = -math.inf if minimum is None else minimum
        self.maximum = math.inf if maximum is None else maximum

    def __call__(self, draft: Draft, pictures: Pictures) -> Draft | Rejection:
        value = draft.about.get(self.field)
        if value is None or value != value:
            kept = self.missing == "keep"
            return draft if kept else Rejection(draft.id, f"{self.field} is missing", fault=False)
        if self.values:
            return draft if str(value) in self.values else Rejection(draft.id, f"{self.field} not kept", fault=False)
        number = _number(value)
        if number is None:
            return Rejection(draft.id, f"{self.field} is no number")
        if self.minimum <= number <= self.maximum:
            return draft
        side, bound = ("under", self.minimum) if number < self.minimum else ("over", self.maximum)
        return Rejection(draft.id, f"{self.field} {side} {bound:g}", fault=False)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
