"""Rows of a static cache that prompts come and go in, and the step that takes all of them on by one token.

Slotted rather than paged (PagedAttention, Kwon et al. 2023): evaluation asks prompts of like length, so that a slot as
long as the longest wastes little, and shapes never change. On a GPU the step is therefore captured once as a CUDA graph
and replayed, without the host: what ends a row is decided there too, and the host looks every few tokens only::

    slot 0   <s> I I a b | c d          positions 0 1 2 3 4 | 5 6     what follows is not looked at
    slot 1   <s> I I a | b </s>         ended: the next prompt takes its place
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from mm1.batch import IMAGE
from mm1.infer.decoding import Decoding
from mm1.infer.features import Asked, Features, to_device
from mm1.model.attention import UNBOUNDED, Filled, Mask, causal_mask
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import Mixture
from mm1.model.moe.routers import Router
from mm1.model.moe.routing import Places

log = logging.getLogger(__name__)

Scores = Callable[[Tensor], Tensor]


class Shared(NamedTuple):
    """Keys and values [1, G, P, K] by layer of the P positions that several prompts begin with."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        """P."""
        return self.keys[0].shape[2]


class Reading:
    """The cache's side of reading prompts: they see what is shared and themselves; what was read is put away.

    Args:
        shared: What they begin with, read before.
        put: Told of each layer's keys and values, those shared among them.
    """

    def __init__(self, shared: Shared | None, put: Callable[[int, Tensor, Tensor], None]) -> None:
        self.shared, self.put, self.length = shared, put, 0

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values from the first position on."""
        if self.shared is not None:
            rows = len(k_BGTK)
            k_BGTK = torch.cat((self.shared.keys[layer].expand(rows, -1, -1, -1), k_BGTK), dim=2)
            v_BGTK = torch.cat((self.shared.values[layer].expand(rows, -1, -1, -1), v_BGTK), dim=2)
        self.put(layer, k_BGTK, v_BGTK)
        return k_BGTK, v_BGTK

    def mask(self, segments_BT: Tensor, window: int | None = None) -> Mask:
        """The same for all rows, as all begin at the first position and are padded on the right."""
        new, before = segments_BT.shape[1], 0 if self.shared is None else self.shared.tokens
        if not before and (window is None or window >= new):
            return None
        row_1T = segments_BT.new_ones(1, before + new)
        return causal_mask(row_1T[:, :new], row_1T, before, window)


@cache
def reading_of_compiled_layers() -> type[Reading]:
    """A :class:`Reading` that the compiler does not look into: it would compile every layer's anew."""
    append = torch.compiler.disable(Reading.append)
    return type("ReadingOfCompiledLayers", (Reading,), {"append": append})


class Stepping:
    """The cache's side of a step: one new position in each of the first ``rows`` slots."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], position_S: Tensor, columns: int) -> None:
        self._keys, self._values, self._columns, self.length = keys, values, columns, 0
        self._position_S, self._rows_S = position_S, torch.arange(len(position_S), device=position_S.device)

    def append(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Each slot's new position goes to its place; all places of the slots come back."""
        rows, keys, values = len(self._rows_S), self._keys[layer], self._values[layer]
        keys[self._rows_S, :, self._position_S] = k_BGTK[:, :, 0]
        values[self._rows_S, :, self._position_S] = v_BGTK[:, :, 0]
        return keys[:rows, :, : self._columns], values[:rows, :, : self._columns]

    def mask(self, segments_BT: Tensor, window: int | None = None) -> Mask:
        """What was read so far, on a CPU bool[S, 1, 1, columns]."""
        if segments_BT.is_cuda:
            return Filled(self._position_S, UNBOUNDED if window is None else window)
        place_T, last_S1 = torch.arange(self._columns, device=segments_BT.device), self._position_S[:, None]
        seen_ST = place_T <= last_S1
        if window is not None:
            seen_ST = seen_ST & (last_S1 - place_T < window)
        return seen_ST[:, None, None]


@cache
def stepping_of_compiled_layers() -> type[Stepping]:
    """As :func:`reading_of_compiled_layers`."""
    return type("SteppingOfCompiledLayers", (Stepping,), {"append": torch.compiler.disable(Stepping.append)})


class Slots:
    """S slots of T positions.

    Args:
        model: Whose decoder reads.
        scores: Logits of what may be said, of hidden states [B, D].
        decoding: How a token is chosen.
        eos: The end token.
        rows: Slots S.
        columns: Positions T of a slot.
        new: Tokens of an answer at most.
        compiled: Whether the model's layers are compiled.
        graphs: Whether steps are captured as CUDA graphs; on a GPU only.
    """

    def __init__(
        self,
        model: MM1,
        scores: Scores,
        decoding: Decoding,
        *,
        eos: int,
        rows: int,
        columns: int,
        new: int,
        compiled: bool = False,
        graphs: bool = True,
    ) -> None:
        decoder = model.decoder
        decoder.check_generates()
        weight = decoder.norm.weight
        self.model, self.scores, self.decoding, self.eos = model, scores, decoding, eos
        self.rows, self.columns, self.new, self.compiled = rows, columns, new, compiled
        self.graphs = graphs and weight.is_cuda and capturable(model)
        shape, layers = (rows, decoder.kv_heads, columns, decoder.head_width), range(len(decoder.layers))
        # zeros, since what is never looked at is still multiplied, by zero
        self.keys = [weight.new_zeros(shape) for _ in layers]
        self.values = [weight.new_zeros(shape) for _ in layers]

        def integers(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.int64, device=weight.device)

        self.token_S, self.position_S, self.count_S = integers(rows), integers(rows), integers(rows)
        self.active_S = integers(rows).bool()
        self.tokens_SN = integers(rows, new)
        self.margin_S = torch.zeros(rows, device=weight.device)
        self.chance_SN = torch.zeros(rows, new, device=weight.device)
        self._captured: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def state(self) -> list[Tensor]:
        """All but keys and values, by slot."""
        return [
            self.token_S,
            self.position_S,
            self.count_S,
            self.active_S,
            self.tokens_SN,
            self.margin_S,
            self.chance_SN,
        ]

    def read(self, slots: list[int], prompts: list[Asked], features: Features, shared: Shared | None) -> Tensor:
        """Read prompts into slots; the hidden state [B, D] that each one's first token is chosen by.

        Args:
            slots: Where each goes.
            prompts: Without what is shared.
            features: Of pictures.
            shared: What all of them begin with.
        """
        rows_B = to_device(torch.tensor(slots), self.token_S.device)

        def put(layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> None:
            self.keys[layer][rows_B, :, : k_BGTK.shape[2]] = k_BGTK
            self.values[layer][rows_B, :, : v_BGTK.shape[2]] = v_BGTK

        before = 0 if shared is None else shared.tokens
        hidden_BTD = self._forward(prompts, features, before, self._reading(shared, put))
        lengths_B = to_device(torch.tensor([len(asked) for asked in prompts]), rows_B.device)
        self.position_S[rows_B] = lengths_B + before
        return hidden_BTD[torch.arange(len(prompts), device=rows_B.device), lengths_B - 1]

    def share(self, prompt: Asked, features: Features) -> Shared:
        """Read once what several prompts begin with."""
        kept = Shared([], [])

        def put(layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> None:
            kept.keys.append(k_BGTK)
            kept.values.append(v_BGTK)

        self._forward([prompt], features, 0, self._reading(None, put))
        return kept

    def _reading(self, shared: Shared | None, put: Callable[[int, Tensor, Tensor], None]) -> Reading:
        return (reading_of_compiled_layers() if self.compiled else Reading)(shared, put)

    def _forward(self, prompts: list[Asked], features: Features, before: int, reading: Reading) -> Tensor:
        longest, device = max(len(asked) for asked in prompts), self.token_S.device
        tokens_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        segments_BT = torch.zeros_like(tokens_BT)
        for row, asked in enumerate(prompts):
            tokens_BT[row, : len(asked)] = asked.tokens_T
            segments_BT[row, : len(asked)] = 1
        tokens_BT, segments_BT = to_device(tokens_BT, device), to_device(segments_BT, device)
        positions_BT = (torch.arange(longest, device=device) + before).expand(len(prompts), -1)
        places = Places(segments_BT > 0, tokens_BT == IMAGE, torch.zeros_like(tokens_BT))
        x_BTD = self.model.embed(tokens_BT, features.of(prompts))
        return self.model.decoder(x_BTD, segments_BT, positions_BT, reading, places).hidden_BTD

    def begin(self, slots: list[int], hidden_BD: Tensor, names: list[str]) -> None:
        """Choose the first token of the answers in ``slots``."""
        rows_B = to_device(torch.tensor(slots), self.token_S.device)
        if self.decoding.sampled:
            chance_BN = torch.stack([self.decoding.chances(name, self.new) for name in names])
            self.chance_SN[rows_B] = to_device(chance_BN, rows_B.device)
        self.active_S[rows_B], self.count_S[rows_B], self.margin_S[rows_B] = True, 0, torch.inf
        self.position_S[rows_B] -= 1  # the token chosen is counted below
        self._choose(hidden_BD, rows_B)

    def step(self, rows: int, columns: int) -> None:
        """Take the first ``rows`` slots on by a token; none looks beyond ``columns``."""
        if self.graphs and rows not in self._captured:
            self._capture(rows)
        if self.graphs:
            self._captured[rows].replay()
        else:
            self._step(rows, columns)

    def hidden(self, rows: int, columns: int) -> Tensor:
        """Read the last token of the first ``rows`` slots: [rows, D]."""
        decoder, position_S = self.model.decoder, self.position_S[:rows]
        segments_S1 = self.active_S[:rows].long()[:, None]
        x_S1D = decoder.embedding(self.token_S[:rows])[:, None]
        stepping = stepping_of_compiled_layers() if self.compiled else Stepping
        seen = stepping(self.keys, self.values, position_S, columns)
        return decoder(x_S1D, segments_S1, position_S[:, None], seen).hidden_BTD[:, 0]

    def _step(self, rows: int, columns: int) -> None:
        hidden_SD = self.hidden(rows, columns)
        self._choose(hidden_SD, torch.arange(rows, device=hidden_SD.device))

    def _choose(self, hidden_BD: Tensor, rows_B: Tensor) -> None:
        """Choose and note the next token of slots; those that have ended stay as they are."""
        going_B, count_B = self.active_S[rows_B], self.count_S[rows_B]
        place_B = count_B.clamp(max=self.new - 1)
        chance_B = self.chance_SN[rows_B, place_B] if self.decoding.sampled else None
        next_B, margin_B = self.decoding.choose(self.scores(hidden_BD), chance_B)
        next_B = torch.where(going_B, next_B, self.token_S[rows_B])
        self.tokens_SN[rows_B, place_B] = torch.where(going_B, next_B, self.tokens_SN[rows_B, place_B])
        self.margin_S[rows_B] = self.margin_S[rows_B].minimum(margin_B.masked_fill(~going_B, torch.inf))
        self.token_S[rows_B] = next_B
        self.position_S[rows_B] += going_B.long()
        self.count_S[rows_B] = count_B + going_B
        self.active_S[rows_B] = going_B & (next_B != self.eos) & (count_B + 1 < self.new)

    def told(self) -> tuple[list[list[int]], list[int], list[bool], list[float]]:
        """By slot: tokens, how many of them count, whether it goes on, its smallest margin. Waits for the device."""
        counts = torch.cat((self.tokens_SN, self.count_S[:, None], self.active_S[:, None].long()), dim=1).tolist()
        return [c[:-2] for c in counts], [c[-2] for c in counts], [bool(c[-1]) for c in counts], self.margin_S.tolist()

    def end(self, slots: list[int]) -> None:
        """Nothing more is said in these."""
        self.active_S[to_device(torch.tensor(slots), self.token_S.device)] = False

    def move(self, sources: list[int], targets: list[int], first: int = 0, state: bool = True) -> None:
        """Slots ``targets`` become what ``sources`` are, from position ``first`` on."""
        from_B, to_B = (to_device(torch.tensor(rows), self.token_S.device) for rows in (sources, targets))
        for kept in (*self.keys, *self.values):
            kept[to_B, :, first:] = kept[from_B, :, first:]
        for kept in self.state if state else ():
            kept[to_B] = kept[from_B]

    def _capture(self, rows: int) -> None:
        """Record a step; where that cannot be done, steps are launched one by one from now on."""
        before = [kept.clone() for kept in self.state]
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # kernels are loaded and tuned before anything is recorded
                for _ in range(2):
                    self._step(rows, self.columns)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(rows, self.columns)
            self._captured[rows] = graph
        except RuntimeError as error:
            log.warning("decoding goes on without CUDA graphs, which is slower: %s", str(error).splitlines()[0])
            self.graphs = False
        for kept, was in zip(self.state, before, strict=True):
            kept.copy_(was)  # keys and values of the steps tried are written again before anybody sees them


def capturable(model: MM1) -> bool:
    """Whether a step keeps the host out: experts do in bfloat16 alone, and not while some are made to fail."""
    mixtures = [layer.ffn for layer in model.decoder.layers if isinstance(layer.ffn, Mixture)]
    failed = any(router.failed for layer in mixtures for router in layer.modules() if isinstance(router, Router))
    return not mixtures or (model.decoder.norm.weight.dtype == torch.bfloat16 and not failed)
