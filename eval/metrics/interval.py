"""How sure a mean is: bootstrap intervals that draw pictures, as questions about one picture stand together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
DRAWN_AT_ONCE = 4_000_000  # numbers; RESAMPLES x clusters at once would be gigabytes on VQA v2


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
    generator, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // len(sums))
    means: list[float] = []
    while len(means) < RESAMPLES:
        drawn = generator.integers(len(sums), size=(min(at_once, RESAMPLES - len(means)), len(sums)))
        means.extend(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
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
