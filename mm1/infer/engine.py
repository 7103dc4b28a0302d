"""Greedy decoding of many prompts at once: pictures encoded once, keys and values cached, like lengths together.

1. every prompt becomes token ids with places for its pictures (mm1.data.encode)
2. prompts are sorted by length and cut into batches of at most ``batch_positions``
3. each distinct picture of a batch is encoded, unless an earlier batch did
4. a batch is padded on the left, so that all its rows go on at the same position of the cache::

       . <s> I I a       segment 0 0 1 1 1 1 ..        . = padding, seen by nobody
       <s> I I b c       segment 1 1 1 1 1 1 ..

5. a row ends at the end token, at a stop string, or at its last token; once half the rows have ended, the cache
   is cut down to those that go on. The device is waited for once a token. Spelling hundreds of answers takes as long
   as deciding their next token, so stop strings are looked for every fourth time; what was said beyond one is cut off.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mm1.data.encode import Encoded, prompt, prompt_text_tokens
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.decoding import GREEDY, Decoding
from mm1.infer.visits import Visits, watched
from mm1.model.attention import KVCache
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text

Prompt = Sequence[Text | Image]

ENCODED_AT_ONCE = 64  # pictures; bounds the encoder's memory, not what is remembered
SPELLED_EVERY = 4  # tokens


@dataclass
class Row:
    """One answer in the making: its ids, how many of them are spelled, as what, and whether it has ended."""

    tokens: list[int] = field(default_factory=list)
    spelled: int = 0
    text: str = ""
    ended: bool = False


class Engine:
    """Decodes with one model; stateless but for the features of pictures it has seen.

    Args:
        model: The model, on its device.
        tokenizer: The one it was trained with.
        max_positions: The context, positions a prompt and its answer may take together. MM1's rows by default; a model
            that was trained on shorter ones has not seen positions beyond them.
        batch_positions: Positions of a batch, padding counted, answers too.
        features_mb: Memory for the features of pictures seen, in MB of 10^6 bytes.
    """

    def __init__(
        self,
        model: MM1,
        tokenizer: Tokenizer,
        *,
        max_positions: int = 4096,
        batch_positions: int = 16384,
        features_mb: int = 1024,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_positions, self.batch_positions = max_positions, batch_positions
        self.tokens_per_image = model.connector.tokens
        self._features = Features(model, features_mb)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[tuple[int, str]]:
        """Answers as they are finished, each with the index of its prompt; what ``stop`` begins is cut off.

        Raises:
            UserError: A prompt and its answer would not fit ``max_positions``; nothing was decoded then.
        """
        encoded = [self._encode(items, max_new_tokens) for items in prompts]
        return self._generate(encoded, max_new_tokens, stop)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[str]) -> list[float]:
        """Log-likelihood (natural logarithm) of each continuation after its prompt, summed over its tokens.

        Raises:
            UserError: A prompt with its continuation would not fit ``max_positions``.
        """
        spoken = [self.tokenizer.encode(text) for text in continuations]
        encoded = [self._encode(items, len(ids)) for items, ids in zip(prompts, spoken, strict=True)]
        whole = [
            Encoded(torch.cat((e.tokens, torch.tensor(ids, dtype=torch.int64))), e.learn, e.images)
            for e, ids in zip(encoded, spoken, strict=True)
        ]
        scores = [0.0] * len(whole)
        for chosen in self._batches(whole, 0):
            found = self._score_batch([whole[at] for at in chosen], [len(spoken[at]) for at in chosen])
            for at, score in zip(chosen, found, strict=True):
                scores[at] = score
        return scores

    def check(self, items: Prompt, new: int) -> None:
        """Refuse a prompt that does not fit, by its length alone: pictures are counted, not read.

        Raises:
            UserError: The prompt and ``new`` tokens would not fit ``max_positions``.
        """
        pictures = sum(isinstance(item, Image) for item in items)
        in_pictures = pictures * self.tokens_per_image
        length = in_pictures + prompt_text_tokens(items, self.tokenizer)
        if length + new > self.max_positions:
            raise UserError(
                f"a prompt of {length} positions ({pictures} pictures x {self.tokens_per_image} = {in_pictures}, text "
                f"{length - in_pictures}) and {new} new tokens make {length + new}; expected at most "
                f"{self.max_positions}: ask with fewer shots or raise max_positions"
            )

    def _encode(self, items: Prompt, new: int) -> Encoded:
        self.check(items, new)
        return prompt(items, self.tokenizer, self.tokens_per_image)

    def _generate(self, encoded: list[Encoded], new: int, stop: Sequence[str]) -> Iterator[tuple[int, str]]:
        for chosen in self._batches(encoded, new):
            answers = self._decode_batch([encoded[at] for at in chosen], new, stop)
            yield from zip(chosen, answers, strict=True)

    def _batches(self, encoded: list[Encoded], new: int) -> Iterator[list[int]]:
        """Indices of prompts of like length, the longest first, so that memory is known from the first batch on."""
        batch: list[int] = []
        for at in sorted(range(len(encoded)), key=lambda at: -len(encoded[at].tokens)):
            longest = len(encoded[batch[0] if batch else at].tokens) + new
            if batch and (len(batch) + 1) * longest > self.batch_positions:
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch

    @torch.inference_mode()
    def stream(self, items: Prompt, new: int, decoding: Decoding = GREEDY) -> Iterator[tuple[int, Visits]]:
        """Token after token of one answer, the end token left out, each with the experts it visits when it is read.

        Raises:
            UserError: The prompt and its answer would not fit ``max_positions``.
        """
        encoded = self._encode(items, new)
        decoder, chance_N = self.model.decoder, decoding.chances("0", new)
        with watched(decoder) as visits:
            tokens_BT, segments_BT, positions_BT = self._pad([encoded])
            cache = decoder.new_cache(1, tokens_BT.shape[1] + new)
            x_BTD = self.model.embed(tokens_BT, self._features.of([encoded]))
            token = -1
            for step in range(new):
                hidden_BD = decoder(x_BTD, segments_BT, positions_BT, cache).hidden_BTD[:, -1]
                if step:
                    yield token, dict(visits)
                next_B, _ = decoding.choose(self._scores(hidden_BD), chance_N[step : step + 1].to(hidden_BD.device))
                token = int(next_B)
                if token == self.tokenizer.eos:
                    return
                x_BTD, positions_BT = decoder.embedding(next_B)[:, None], positions_BT[:, -1:] + 1
                segments_BT = torch.ones_like(positions_BT)
            decoder(x_BTD, segments_BT, positions_BT, cache)
            yield token, dict(visits)

    @torch.inference_mode()
    def _decode_batch(self, encoded: list[Encoded], new: int, stop: Sequence[str]) -> list[str]:
        decoder = self.model.decoder
        tokens_BT, segments_BT, positions_BT = self._pad(encoded)
        cache = decoder.new_cache(len(encoded), tokens_BT.shape[1] + new)
        x_BTD = self.model.embed(tokens_BT, self._features.of(encoded))
        answers = rows = [Row() for _ in encoded]
        for step in range(new):
            hidden_BD = decoder(x_BTD, segments_BT, positions_BT, cache).hidden_BTD[:, -1]
            next_B = self._scores(hidden_BD).argmax(dim=-1)
            self._add(rows, next_B.tolist(), stop, spell=(step + 1) % SPELLED_EVERY == 0)
            going = [at for at, row in enumerate(rows) if not row.ended]
            if step + 1 == new or not going:
                break
            positions_B1 = positions_BT[:, -1:] + 1
            if len(going) * 2 <= len(rows):
                keep = torch.tensor(going, device=next_B.device)
                cache, next_B, positions_B1 = _rows_of(cache, keep), next_B[keep], positions_B1[keep]
                rows = [rows[at] for at in going]
            x_BTD, positions_BT = decoder.embedding(next_B)[:, None], positions_B1
            segments_BT = torch.ones_like(positions_BT)
        for row in answers:
            self._spell(row, stop)
        return [row.text.strip() for row in answers]

    def _scores(self, hidden_BD: Tensor) -> Tensor:
        """Logits of what may be said: rows of the embedding that are no token are left out, a picture's never comes."""
        scores_BV = self.model.decoder.logits(hidden_BD)[:, : self.tokenizer.vocabulary]
        if self.tokenizer.image is not None:
            scores_BV[:, self.tokenizer.image] = -torch.inf
        return scores_BV

    def _add(self, rows: list[Row], tokens: list[int], stop: Sequence[str], spell: bool) -> None:
        """Add a token to every answer that has not ended."""
        for row, token in zip(rows, tokens, strict=True):
            if not row.ended and token == self.tokenizer.eos:
                row.ended = True
            elif not row.ended:
                row.tokens.append(token)
                if spell and stop:
                    self._spell(row, stop)

    def _spell(self, row: Row, stop: Sequence[str]) -> None:
        """Bring an answer's text up to its tokens; it ends before the first stop string that a token completes."""
        if row.spelled == len(row.tokens):
            return
        first, row.spelled = row.spelled + 1, len(row.tokens)
        row.text = self.tokenizer.decode(row.tokens)
        if not any(mark in row.text for mark in stop):
            return
        for count in range(first, len(row.tokens) + 1):
            text = self.tokenizer.decode(row.tokens[:count])
            if cuts := [at for at in (text.find(mark) for mark in stop) if at >= 0]:
                row.text, row.ended = text[: min(cuts)], True
                return

    @torch.inference_mode()
    def _score_batch(self, encoded: list[Encoded], spoken: list[int]) -> list[float]:
        decoder, longest = self.model.decoder, max(1, *spoken)
        tokens_BT, segments_BT, positions_BT = self._pad(encoded)
        x_BTD = self.model.embed(tokens_BT, self._features.of(encoded))
        hidden_BTD = decoder(x_BTD, segments_BT, positions_BT).hidden_BTD[:, -longest - 1 : -1]
        said_BT = tokens_BT[:, -longest:].clamp(min=0)
        logs_BT = decoder.logits(hidden_BTD).log_softmax(dim=-1).gather(-1, said_BT[..., None])[..., 0]
        return [float(logs_BT[row, longest - count :].sum()) for row, count in enumerate(spoken)]

    def _pad(self, encoded: list[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, segments and positions int64[B, T] of prompts that all end at the last position."""
        longest, device = max(len(e.tokens) for e in encoded), self.model.decoder.norm.weight.device
        tokens_BT = torch.full((len(encoded), longest), self.tokenizer.pad, dtype=torch.int64)
        segments_BT, positions_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
        for row, e in enumerate(encoded):
            length = len(e.tokens)
            tokens_BT[row, -length:] = e.tokens
            segments_BT[row, -length:] = 1
            positions_BT[row, -length:] = torch.arange(length)
        return tokens_BT.to(device), segments_BT.to(device), positions_BT.to(device)


class Features:
    """Tokens of pictures seen, by content, the least recently used forgotten first.

    Args:
        model: Whose encoder and connector.
        limit_mb: Memory in MB of 10^6 bytes; what one batch needs is held in any case.
    """

    def __init__(self, model: MM1, limit_mb: int) -> None:
        self._model, self._limit_bytes = model, limit_mb * 10**6
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()
        self.encoded = 0  # pictures, for tests and for those who wonder about speed

    def of(self, encoded: list[Encoded]) -> Tensor:
        """Features [I, N, D] of all pictures of a batch in the order of their places."""
        pictures = [picture for e in encoded for picture in e.images]
        names = [hashlib.sha256(picture).digest() for picture in pictures]
        new = {name: data for name, data in zip(names, pictures, strict=True) if name not in self._seen}
        self._encode(list(new), list(new.values()))
        for name in names:
            self._seen.move_to_end(name)
        empty = self._model.encode_images(torch.empty(0, 3, 1, 1, dtype=torch.uint8))
        features_IND = torch.stack([self._seen[name] for name in names]) if names else empty
        self._forget()
        return features_IND

    def _encode(self, names: list[bytes], pictures: list[bytes]) -> None:
        spec, device = self._model.image_spec, self._model.decoder.norm.weight.device
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(names), ENCODED_AT_ONCE):
                chunk = slice(start, start + ENCODED_AT_ONCE)
                images = list(threads.map(lambda data: prepare(data, spec), pictures[chunk]))
                features_IND = self._model.encode_images(torch.stack(images).to(device))
                for name, feature_ND in zip(names[chunk], features_IND, strict=True):
                    self._seen[name] = feature_ND.clone()  # a view would keep the whole chunk alive
        self.encoded += len(names)

    def _forget(self) -> None:
        each = next((f.numel() * f.element_size() for f in self._seen.values()), 0)
        while len(self._seen) * each > self._limit_bytes:
            self._seen.popitem(last=False)


def _rows_of(cache: KVCache, keep: Tensor) -> KVCache:
    return KVCache(cache.keys_LBGTK[:, keep], cache.values_LBGTK[:, keep], cache.segments_BT[keep], cache.length)
