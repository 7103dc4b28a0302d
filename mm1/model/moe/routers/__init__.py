"""Routers, one class a file: which experts a token visits and with what weight. A new one is a class and a YAML."""

from mm1.model.moe.routers.base import Router
from mm1.model.moe.routers.by_task import ByTask
from mm1.model.moe.routers.cosine import Cosine
from mm1.model.moe.routers.expert_choice import ExpertChoice
from mm1.model.moe.routers.force_balanced import ForceBalanced
from mm1.model.moe.routers.gshard import GShard
from mm1.model.moe.routers.noisy_top_k import NoisyTopK
from mm1.model.moe.routers.sigmoid import Sigmoid
from mm1.model.moe.routers.st_moe import STMoE
from mm1.model.moe.routers.switch import Switch
from mm1.model.moe.routers.top_k import TopK
from mm1.model.moe.routers.topology import Topology

__all__ = [
    "ByTask",
    "Cosine",
    "ExpertChoice",
    "ForceBalanced",
    "GShard",
    "NoisyTopK",
    "Router",
    "STMoE",
    "Sigmoid",
    "Switch",
    "TopK",
    "Topology",
]
