"""Routers, one class a file: which experts a token visits and with what weight. A new one is a class and a YAML."""

from mm1.model.moe.routers.base import Router
from mm1.model.moe.routers.top_k import TopK

__all__ = ["Router", "TopK"]
