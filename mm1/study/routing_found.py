"""What recorded routing says: load by kind of token, words of experts, pairs, sub-tokens, and what changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mm1.batch import IMAGE
from mm1.errors import UserError
from mm1.runs import DEAD
from mm1.study.routing_record import Recorded

WORDS = 10


@dataclass(frozen=True)
class Load:
    """How the tokens of one kind spread.

    Args:
        name: ``all tokens``, ``text``, ``pictures``, or ``source “captions”``.
        tokens: How many there were.
        share_LE: Each expert's share of their choices.
    """

    name: str
    tokens: int
    share_LE: np.ndarray

    @property
    def relative_LE(self) -> np.ndarray:
        """In even shares: 1 everywhere at perfect balance."""
        relative: np.ndarray = self.share_LE * self.share_LE.shape[-1]
        return relative


def loads(recorded: Recorded) -> list[Load]:
    """Of all tokens, of each modality, and of each source where there are several; kinds without tokens left out."""
    kinds = {"all tokens": np.ones(len(recorded.tokens_M), bool)}
    kinds |= {"text": ~recorded.image_M, "pictures": recorded.image_M}
    if len(recorded.sources) > 1:  # in quotes, since a source may be called text
        kinds |= {f"source “{name}”": recorded.sources_M == at for at, name in enumerate(recorded.sources)}
    return [Load(name, int(here_M.sum()), _shares(recorded, here_M)) for name, here_M in kinds.items() if here_M.any()]


def _shares(recorded: Recorded, here_M: np.ndarray) -> np.ndarray:
    load_LE = np.stack([hot_MPE[here_M].sum((0, 1)) for hot_MPE in recorded.hot_MPE]).astype(float)
    shares: np.ndarray = load_LE / np.maximum(load_LE.sum(-1, keepdims=True), 1)
    return shares


def apart(a_LE: np.ndarray, b_LE: np.ndarray) -> np.ndarray:
    """[L], the share of choices that would have to move for one kind to spread as the other (total variation)."""
    moved: np.ndarray = np.abs(a_LE - b_LE).sum(-1) / 2
    return moved


@dataclass(frozen=True)
class Expert:
    """One expert of one layer.

    Args:
        number: Counted from 0.
        share: Its share of all choices.
        pictures: Which share of its tokens are pictures'.
        words: What it took more often than its load explains, most first: word, how often, how often there was one.
    """

    number: int
    share: float
    pictures: float
    words: list[tuple[str, int, int]]


def experts(recorded: Recorded, layer: int, spell: Callable[[int], str]) -> list[Expert]:
    """The experts of the ``layer``-th sparse layer, and the words that each takes most (ST-MoE, section 7).

    A word counts by how much oftener an expert took it than it would by the expert's share of text alone, so that
    frequent words do not stand at every expert.
    """
    taken_ME: np.ndarray = np.any(recorded.hot_MPE[layer], axis=1)
    text_M = recorded.tokens_M != IMAGE
    ids, at_N = np.unique(recorded.tokens_M[text_M], return_inverse=True)
    counts_W = np.bincount(at_N, minlength=len(ids))
    share_E = _shares(recorded, np.ones(len(text_M), bool))[layer]
    found = []
    for expert, taken_M in enumerate(taken_ME.T):
        mine_W = np.bincount(at_N[taken_M[text_M]], minlength=len(ids))
        more_W = mine_W - counts_W * (mine_W.sum() / max(1, counts_W.sum()))
        order = [w for w in np.argsort(-more_W, kind="stable")[:WORDS] if more_W[w] > 0 and mine_W[w] > 1]
        words = [(spell(int(ids[w])), int(mine_W[w]), int(counts_W[w])) for w in order]
        pictures = float((taken_M & ~text_M).sum() / max(1, taken_M.sum()))
        found.append(Expert(expert, float(share_E[expert]), pictures, words))
    return found


def pairs(recorded: Recorded) -> list[np.ndarray]:
    """For each layer [E, E]: of the sub-tokens at the row's expert, the share that also visits the column's."""
    found = []
    for hot_MPE in recorded.hot_MPE:
        hot_SE = hot_MPE.reshape(-1, hot_MPE.shape[-1]).astype(np.float32)
        together_EE = hot_SE.T @ hot_SE
        found.append(together_EE / np.maximum(np.diag(together_EE), 1)[:, None])
    return found


def visits(recorded: Recorded) -> float:
    """How many experts a sub-token visits, in the mean."""
    return float(np.mean([hot_MPE.sum(-1).mean() for hot_MPE in recorded.hot_MPE]))


def different(hot_MPE: np.ndarray) -> np.ndarray:
    """int[M], how many different experts the sub-tokens of a token visit together (MH-MoE, figure 5)."""
    count: np.ndarray = hot_MPE.any(1).sum(-1)
    return count


@dataclass(frozen=True)
class Kept:
    """What an earlier checkpoint already routed as the later one does.

    Args:
        layer: Index of the layer.
        same: Share of tokens whose experts are all the same; then of text alone and of pictures alone, if there are.
        text: Likewise.
        pictures: Likewise.
        overlap: Share of the experts of a token that were there before.
        chance: What ``overlap`` would be if both spread as they do, but by chance.
    """

    layer: int
    same: float
    text: float | None
    pictures: float | None
    overlap: float
    chance: float


def saturation(now: Recorded, before: Recorded) -> list[Kept]:
    """Router saturation of each layer (OLMoE, section 5.1).

    Raises:
        UserError: The two do not route alike.
    """
    shapes = [[hot.shape for hot in recorded.hot_MPE] for recorded in (now, before)]
    if shapes[0] != shapes[1] or now.layers != before.layers:
        raise UserError(
            f"the earlier checkpoint routes {len(before.layers)} layers over {before.experts} experts, this run "
            f"{len(now.layers)} over {now.experts}; expected an earlier checkpoint of the same run (--earlier)"
        )
    found = []
    for layer, a, b in zip(now.layers, now.hot_MPE, before.hot_MPE, strict=True):
        same_M = (a == b).all((1, 2))
        visited = max(1, int(a.sum()))
        chance = float((a.sum((0, 1)) * b.mean((0, 1))).sum() / visited)
        text, pictures = (_mean(same_M[here_M]) for here_M in (~now.image_M, now.image_M))
        found.append(Kept(layer, float(same_M.mean()), text, pictures, float((a & b).sum() / visited), chance))
    return found


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def findings(recorded: Recorded, found: list[Load], kept: list[Kept]) -> list[str]:
    """The main things in sentences that a rule wrote."""
    whole = found[0].relative_LE
    layer, expert = np.unravel_index(whole.argmax(), whole.shape)
    dead = {at: int((row < DEAD).sum()) for at, row in zip(recorded.layers, whole, strict=True)}
    said = [_dead({at: count for at, count in dead.items() if count}, recorded)]
    said[0] += (
        f" The busiest, expert {expert} of layer {recorded.layers[layer]}, takes {whole.max():.2f} × its even share."
    )
    by_name = {load.name: load for load in found}
    if {"text", "pictures"} <= by_name.keys():
        moved = apart(by_name["text"].share_LE, by_name["pictures"].share_LE)
        at = int(moved.argmax())
        most = "most " if len(moved) > 1 else ""
        said.append(
            f"Text and pictures part {most}in layer {recorded.layers[at]}: {100 * moved[at]:.0f} % of the choices of "
            f"one would have to move for it to spread as the other does{_least(recorded.layers, moved)}."
        )
    if kept:
        ends = sorted(kept, key=lambda k: k.same)
        told = " to ".join(f"{100 * k.same:.0f} % (layer {k.layer})" for k in dict.fromkeys((ends[0], ends[-1])))
        said.append(f"Since the earlier checkpoint, {told} of tokens kept all their experts.")
    return said


def _dead(dead: dict[int, int], recorded: Recorded) -> str:
    if not dead:
        return "No expert is dead."
    if len(dead) > 3:
        most = max(dead, key=lambda at: dead[at])
        told = f"{len(dead)} of {len(recorded.layers)} layers have some, layer {most} most: {dead[most]}"
        return f"Dead experts: {told} of {recorded.experts}."
    return f"Dead experts: {', '.join(f'{n} of {recorded.experts} in layer {at}' for at, n in dead.items())}."


def _least(layers: list[int], moved: np.ndarray) -> str:
    at = int(moved.argmin())
    return f" (least in layer {layers[at]}, {100 * moved[at]:.0f} %)" if len(layers) > 1 else ""


def spread(layers: Iterable[int], most: int) -> list[int]:
    """Places of at most so many, evenly from the first to the last."""
    count = len(list(layers))
    return sorted({round(at) for at in np.linspace(0, count - 1, min(most, count))})
