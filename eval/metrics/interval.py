"""How sure a mean is: bootstrap intervals that draw pictures, as questions about one picture stand together.

Where questions were asked with several seeds of demonstrations, pictures and seeds are drawn, independently of each
other (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 1, 2007, which errs on the wide side).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

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
    counts_QK = np.stack([np.asarray(scores, dtype=float), np.ones(len(scores))], axis=1)
    keys = range(len(scores)) if clusters is None else clusters
    return interval_of(lambda sums_K: sums_K[..., 0] / sums_K[..., 1], counts_QK, keys, level, seed, draws)


def interval_of(
    value: Callable[[np.ndarray], np.ndarray],
    counts_QK: np.ndarray,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    seed: int = 0,
    draws: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any function of sums, such as an F1.

    Args:
        value: From sums of counts, ``[R, K]``, to a number each; resamples for which it is nan are left out.
        counts_QK: What is counted of each question.
        clusters: What each question belongs to.
        level: Share of resampled values inside.
        seed: Of the resampling.
        draws: What each question also belongs to.
        resamples: How many.
    """
    groups, cluster = _numbered(clusters)
    sets, draw = _numbered([0] * len(counts_QK) if draws is None else draws)
    sums_KSC = np.zeros((counts_QK.shape[1], sets, groups))
    for sums_SC, column in zip(sums_KSC, counts_QK.T, strict=True):
        np.add.at(sums_SC, (draw, cluster), column)
    generator, at_once = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // groups)
    values = np.empty(0)
    while len(values) < resamples:
        count = min(at_once, resamples - len(values))
        drawn_RC = generator.integers(groups, size=(count, groups))
        times_RS = generator.multinomial(sets, [1 / sets] * sets, size=count) if sets > 1 else np.ones((1, 1))
        sums_RK = np.stack(
            [
                np.take_along_axis(np.broadcast_to(times_RS @ found_SC, drawn_RC.shape), drawn_RC, 1).sum(axis=1)
                for found_SC in sums_KSC
            ],
            axis=1,
        )
        with np.errstate(invalid="ignore"):  # an unfinished seed may be drawn with none of its pictures
            values = np.append(values, value(sums_RK))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _numbered(keys: Iterable[Hashable]) -> tuple[int, np.ndarray]:
    """How many different keys there are, and the number of each."""
    names, member = np.unique([str(key) for key in keys], return_inverse=True)
    return len(names), member
