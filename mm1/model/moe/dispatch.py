"""Bringing tokens to their experts and back. Here everything stands on one device.

A layer holds a :class:`Dispatch`; training across devices puts another one in its place (``MoE.dispatch``), which
also exchanges rows between ranks, and nothing else of the model changes.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from mm1.model.moe.experts import Experts
from mm1.model.moe.kernels import add_rows, take_rows
from mm1.model.moe.routing import Rows


class Dispatch(Protocol):
    """Send every row to its expert and return, for each token, the weighted sum of the answers."""

    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor: ...


class LocalDispatch:
    """All experts are here: copy tokens into rows, run, add up. All shapes are known beforehand."""

    def __call__(self, x_MD: Tensor, rows: Rows, experts: Experts) -> Tensor:
        """[M, D] -> [M, D]."""
        y_RD = experts(take_rows(x_MD, rows), rows.weights_R, rows.counts_E)
        return add_rows(y_RD, rows, len(x_MD))
