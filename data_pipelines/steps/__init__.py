"""What happens to documents between their files and the shards: each step keeps, changes or refuses them."""

from __future__ import annotations

from data_pipelines.steps.base import Alike, Pictures, Step, without

__all__ = ["Alike", "Pictures", "Step", "without"]
