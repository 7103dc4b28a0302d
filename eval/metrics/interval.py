"""How sure a mean is: bootstrap intervals that draw pictures, as questions about one picture stand together.

Where questions were asked with several seeds of demonstrations, pictures and seeds are drawn, independently of each
other (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1, 2007, which errs on the wide side).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

RESAMPLES = 10_000
DRAWN_AT_ONCE = 4_000_000  # numbers; RESAMPLES x clusters at once would be gigabytes on VQA v2


def interval(
    scores: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        scores: One number a question, at least one.
        clusters: What the numbers belong to, such as the picture; drawn as a whole. Default: each by itself.
        level: Share of resampled means inside.
        seed: Of the resampling.
        draws: What the numbers also belong to, such as the seed of their demonstrations; drawn as a whole, too.
    """
    groups, cluster = _numbered(range(len(scores)) if clusters is None else clusters)
    sets, draw = _numbered([0] * len(scores) if draws is None else draws)
    sums_SC, sizes_SC = np.zeros((sets, groups)), np.zeros((sets, groups))
    np.add.at(sums_SC, (draw, cluster), np.asarray(scores, dtype=float))
    np.add.at(sizes_SC, (draw, cluster), 1.0)
    generator, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // groups)
    means: list[float] = []
    while len(means) < RESAMPLES:
        count = min(at_once, RESAMPLES - len(means))
        drawn_RC = generator.integers(groups, size=(count, groups))
        times_RS = generator.multinomial(sets, [1 / sets] * sets, size=count) if sets > 1 else np.ones((1, 1))
        sums_R, sizes_R = (
            np.take_along_axis(np.broadcast_to(times_RS @ found_SC, drawn_RC.shape), drawn_RC, 1).sum(axis=1)
            for found_SC in (sums_SC, sizes_SC)
        )
        with np.errstate(invalid="ignore"):  # an unfinished seed may be drawn with none of its pictures
            means.extend(sums_R / sizes_R)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _numbered(keys: Iterable[Hashable]) -> tuple[int, np.ndarray]:
    """How many different keys there are, and the number of each."""
    names, member = np.unique([str(key) for key in keys], return_inverse=True)
    return len(names), member


def paired_interval(
    scores: Sequence[float],
    others: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    seed: int = 0,
    draws: Sequence[Hashable] | None = None,
) -> tuple[float, float]:
    """Interval of the mean difference ``scores - others`` of two models, or two arms, on the same questions."""
    return interval([ours - theirs for ours, theirs in zip(scores, others, strict=True)], clusters, level, seed, draws)
