"""Task-level routing (Kudugunta et al. 2021): the task decides the experts, not the token.

All tokens of a task visit the same experts, so that what a task needs of a sparse model can be cut out of it as a small
dense one (``mm1-convert task``). A task here is a source of the data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from mm1.errors import UserError
from mm1.model.moe.routers.base import ARGS, LinearRouter, exact
from mm1.model.moe.routing import Places, Routing, TokenChoice


class ByTask(LinearRouter):
    """The ``top_k`` best of a softmax over experts whose scores come from a learned vector of the token's task.

    Args:
        width: Width D, of the tasks' vectors too.
        experts: Experts E.
        top_k: Experts that a task visits.
        tasks: Names of the tasks: the sources of the data, in the order of ``data.weights``.

    Raises:
        UserError: No tasks, or one that is there twice.
    """

    def __init__(self, width: int, experts: int, top_k: int = 2, *, tasks: list[str]) -> None:
        super().__init__(width, experts, top_k)
        if not tasks or len({*tasks}) < len(tasks):
            raise UserError(f"tasks are {tasks}; expected the names of the sources, each once ({ARGS}.router.tasks)")
        self.tasks = tuple(tasks)
        self.vectors = nn.Parameter(torch.empty(len(tasks), width))

    def forward(self, x_BTD: Tensor, places: Places) -> Routing:
        """Route every position by its source.

        Raises:
            UserError: Positions are of other sources than the tasks, as in decoding, where nobody says the task.
        """
        if places.sources != len(self.tasks):
            raise UserError(
                f"a batch of {places.sources} sources for a router of the tasks {', '.join(self.tasks)}; expected "
                f"these sources; to evaluate or decode, cut out one task by mm1-convert task ({ARGS}.router.tasks)"
            )
        logits_SE = self.standing(linear(exact(self.vectors), exact(self.weight)))
        logits_BTE = embedding(places.sources_BT, logits_SE)
        shares_BTE = logits_BTE.softmax(-1)
        weights_MK, experts_MK = shares_BTE.flatten(0, 1).topk(self.top_k)
        weights_MK = weights_MK / weights_MK.sum(-1, keepdim=True)
        return Routing(TokenChoice(experts_MK, weights_MK), logits_BTE, shares_BTE)
