"""How sure a mean is: bootstrap intervals that draw pictures, as questions about one picture stand together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 2000


def interval(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        scores: One number a question, at least one.
        clusters: What the numbers belong to, such as the picture; drawn as a whole. Default: each by itself.
        level: Share of resampled means inside.
        seed: Of the resampling.
    """
    keys = list(range(len(scores))) if clusters is None else list(clusters)
    _, member = np.unique([str(key) for key in keys], return_inverse=True)
    sums = np.bincount(member, weights=np.asarray(scores, dtype=float))
    sizes = np.bincount(member).astype(float)
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for at in range(RESAMPLES):  # one by one: RESAMPLES x clusters indices at once would be gigabytes on VQA v2
        drawn = generator.integers(len(sums), size=len(sums))
        means[at] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    scores: Sequence[float],
    others: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean difference ``scores - others`` of two models, or two arms, on the same questions."""
    return interval([ours - theirs for ours, theirs in zip(scores, others, strict=True)], clusters, level, seed)
