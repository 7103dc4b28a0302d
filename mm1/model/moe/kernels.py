"""The pieces of the fast path that torch alone does not do well: copying tokens into rows and adding them up again."""

from __future__ import annotations

from torch import Tensor

from mm1.model.moe.routing import Rows


def take_rows(x_MD: Tensor, rows: Rows) -> Tensor:
    """[M, D] -> [R, D]: the token that each row is a copy of."""
    return x_MD.index_select(0, rows.tokens_R)


def add_rows(y_RD: Tensor, rows: Rows, tokens: int) -> Tensor:
    """[R, D] -> [M, D]: the sum of the rows of each token.

    Deterministic where tokens chose: each gathers its own k rows, nothing is scattered.
    """
    if rows.rows_MK is None:
        return y_RD.new_zeros(tokens, y_RD.shape[1]).index_add(0, rows.tokens_R, y_RD)
    y_MKD = y_RD.index_select(0, rows.rows_MK.clamp(min=0).flatten()).unflatten(0, rows.rows_MK.shape)
    return (y_MKD * (rows.rows_MK >= 0).unsqueeze(-1)).sum(1)
