"""The mixture of 1991 (Jacobs et al.): all experts run on everything, a softmax weighs them.

It costs as much as it has parameters, and is what sparse mixtures are an economy of. Nothing asks experts to be alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mm1.errors import UserError
from mm1.model.ffn import SwiGLU
from mm1.model.moe.layer import ARGS, Mixture, check_losses
from mm1.model.moe.losses import Balance, LoadTimesShare, z_loss
from mm1.model.moe.routers import TopK
from mm1.model.moe.routing import Places
from mm1.model.moe.stats import RouterStats, measure


class SoftMixture(Mixture):
    """The sum of all experts' answers, each times its share.

    Args:
        width: Width D of what is read and answered.
        ffn_width: Inner width of the dense twin, and of each expert that is only counted.
        experts: How many SwiGLU experts; or what makes each of the width: any module from [B, T, D] to [B, T, D].
        balance: What is balanced and how.
        balance_weight: Coefficient of the balance loss; the choices of a soft mixture are always balanced.
        z_weight: Coefficient of the router's z-loss.

    Raises:
        UserError: Not one expert, or losses that do not go with its gate.
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        *,
        experts: int | list[Callable[[int], nn.Module]],
        balance: Balance | None = None,
        balance_weight: float = 0.0,
        z_weight: float = 0.001,
    ) -> None:
        super().__init__()
        if isinstance(experts, int):
            made: Sequence[nn.Module] = [SwiGLU(width, ffn_width) for _ in range(experts)]
        else:
            made = [make(width) for make in experts]
        if not made:
            raise UserError(f"a soft mixture of no experts; expected one at least ({ARGS}.experts)")
        self.experts = nn.ModuleList(made)
        self.router = TopK(width, len(made), len(made))
        self.balance, self.balance_weight, self.z_weight = balance or LoadTimesShare(), balance_weight, z_weight
        check_losses(self.balance, self.router, balance_weight, z_weight)

    def forward(self, x_BTD: Tensor, places: Places) -> tuple[Tensor, RouterStats]:
        """The layer's output and what the gate did."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            routing = self.router(x_BTD, places)
            hot_BTE = torch.ones_like(routing.shares_BTE, dtype=torch.float32)
            balance = self.balance(routing, hot_BTE, places)
            z = z_loss(routing.logits_BTE, places.valid_BT)
        shares = routing.shares_BTE.to(x_BTD.dtype).unbind(-1)
        answers = (expert(x_BTD).to(x_BTD.dtype) for expert in self.experts)
        y_BTD = sum((share.unsqueeze(-1) * y for share, y in zip(shares, answers, strict=True)), x_BTD.new_zeros(()))
        stats = RouterStats(
            self.balance_weight * balance + self.z_weight * z,
            balance.detach(),
            z.detach(),
            *measure(routing, hot_BTE.flatten(0, 1), places),
        )
        return y_BTD, stats

    @property
    def idle(self) -> int:
        """None."""
        return 0

    @property
    def multiplied(self) -> int:
        """All matrices of all experts, and the gate's."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.dim() > 1)


def competitive_loss(answers_MED: Tensor, targets_MD: Tensor, gate_logits_ME: Tensor) -> Tensor:
    """fp[M], -log sum_e g_e exp(-|target - answer_e|^2 / 2): what made experts of 1991 compete rather than co-operate.

    The error of the blend would pull every expert to mend what others do; here an expert learns in proportion to how
    likely it was the one that answered. For regression; language models train on the blend.

    Args:
        answers_MED: What each expert says.
        targets_MD: What should have been said.
        gate_logits_ME: The gate's scores, before their softmax.
    """
    errors_ME = (targets_MD.unsqueeze(1) - answers_MED).square().sum(-1)
    return -(gate_logits_ME.log_softmax(-1) - errors_ME / 2).logsumexp(-1)
