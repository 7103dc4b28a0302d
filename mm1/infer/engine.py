"""Decodes many prompts at once: pictures encoded once, keys and values cached, rows taken again when they are free.

1. every prompt becomes token ids with places for its pictures (:mod:`mm1.data.encode`)
2. prompts that begin alike form groups, and groups of like length crews of slots (:mod:`mm1.infer.queue`)
3. a crew's prompts are read as slots become free, what a group shares once, each picture once (:mod:`mm1.infer.slots`)
4. all slots go on token by token; an answer ends at the end token, at a stop string, or at its last token

Prompts are read from the first place of their slots, padded on the right::

    <s> I I a .       segment 1 1 1 1 0        . = padding, seen by nobody: the answer is written over it
    <s> I I b c       segment 1 1 1 1 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from mm1.data.encode import Encoded, prompt, prompt_text_tokens
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.beams import Beams
from mm1.infer.continuous import Answer, Continuous, Task
from mm1.infer.decoding import GREEDY, Decoding
from mm1.infer.features import Asked, Features
from mm1.infer.queue import Crew, crews, groups
from mm1.infer.slots import Slots
from mm1.infer.visits import Visits, watched
from mm1.model.mm1 import MM1
from mm1.model.rope import DynamicRope
from mm1.sample import Image, Text, expand
from mm1.template import Template

Prompt = Sequence[Text | Image]
Thing = TypeVar("Thing")

COLUMNS_STEP = 64  # positions of a slot on a GPU are a multiple of this, so that calls alike find the slots of the last


class Engine:
    """Decodes with one model; stateless but for the features of pictures it has seen.

    Args:
        model: The model, on its device.
        tokenizer: The one it was trained with.
        max_positions: The context, positions a prompt and its answer may take together. MM1's rows by default; a model
            that was trained on shorter ones has not seen positions beyond them.
        batch_positions: Positions of all slots together, padding counted, answers too.
        features_mb: Memory for the features of pictures seen, in MB of 10^6 bytes.
        share: Whether what several prompts begin with is read once; changes speed, no answer.
        compiled: Compile the model's layers, in place: pays on a GPU, for some thousand prompts.
    """

    def __init__(
        self,
        model: MM1,
        tokenizer: Tokenizer,
        *,
        max_positions: int = 4096,
        batch_positions: int = 16384,
        features_mb: int = 1024,
        share: bool = True,
        compiled: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.share, self.compiled = share, compiled or any(layer._compiled_call_impl for layer in model.decoder.layers)
        self.max_positions, self.batch_positions = max_positions, batch_positions
        self.tokens_per_image, self.views = model.connector.tokens, model.views
        self._features = Features(model, features_mb)
        self._kept: tuple[object, Slots] | None = None
        if compiled:
            compile_parts(model)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str] = (), decoding: Decoding = GREEDY
    ) -> Iterator[tuple[int, str]]:
        """Answers as they are finished, each with the index of its prompt; what ``stop`` begins is cut off.

        Raises:
            UserError: A prompt and its answer would not fit ``max_positions``; nothing was decoded then.
        """
        return ((said.index, said.text) for said in self.answers(prompts, max_new_tokens, stop, decoding))

    def answers(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        decoding: Decoding = GREEDY,
        names: Sequence[str] | None = None,
    ) -> Iterator[Answer]:
        """The same with the tokens of each answer and its margin.

        Args:
            prompts: What is asked.
            max_new_tokens: Length of an answer at most.
            stop: Strings before which an answer ends.
            decoding: How tokens are chosen.
            names: What owns what is drawn for each prompt, with the seed; the indices of prompts if not given.

        Raises:
            UserError: A prompt and its answer would not fit ``max_positions``, or numbers that cannot be; nothing was
                decoded then.
        """
        decoding.check()
        self.model.decoder.check_generates()
        encoded = [self._encode(items, max_new_tokens) for items in prompts]
        names = [str(at) for at in range(len(prompts))] if names is None else names
        return self._answers([Asked.of(e) for e in encoded], max_new_tokens, stop, decoding, names)

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
            with exact(self.model):
                found = self._score_batch([whole[at] for at in chosen], [len(spoken[at]) for at in chosen])
            for at, score in zip(chosen, found, strict=True):
                scores[at] = score
        return scores

    @property
    def template(self) -> Template:
        """The words in which conversations are put to the model."""
        return self.model.template

    def shown(self, items: Prompt) -> list[Text | Image]:
        """A prompt as the model sees it: turns in the words of its template, pictures in its views."""
        return expand(self.template.applied(items), self.model.views)

    def check(self, items: Prompt, new: int) -> None:
        """Refuse a prompt that does not fit, by its length alone: pictures are counted, not read.

        Raises:
            UserError: The prompt and ``new`` tokens would not fit ``max_positions``.
        """
        shown = self.shown(items)
        pictures, views = (sum(isinstance(item, Image) for item in some) for some in (items, shown))
        in_pictures = views * self.tokens_per_image
        length = in_pictures + prompt_text_tokens(shown, self.tokenizer)
        if length + new > self.max_positions:
            what = f"{pictures} pictures" + f" in {views} views" * (views != pictures)
            raise UserError(
                f"a prompt of {length} positions ({what} x {self.tokens_per_image} = {in_pictures}, text "
                f"{length - in_pictures}) and {new} new tokens make {length + new}; expected at most "
                f"{self.max_positions}: ask with fewer shots or raise max_positions"
            )

    def _encode(self, items: Prompt, new: int) -> Encoded:
        self.check(items, new)
        return prompt(self.shown(items), self.tokenizer, self.tokens_per_image)

    @torch.inference_mode()
    def _answers(
        self, prompts: list[Asked], new: int, stop: Sequence[str], decoding: Decoding, names: Sequence[str]
    ) -> Iterator[Answer]:
        together = groups(prompts, self.tokens_per_image, self._shares(prompts, new))
        step = COLUMNS_STEP if self._device.type == "cuda" else 1
        for crew in crews(prompts, together, new, self.batch_positions, beams=decoding.beams, step=step):
            task = Task(prompts, names, crew.groups, self.tokens_per_image)
            worker = Continuous if decoding.beams == 1 else Beams
            at_work = worker(self._slots(crew, new, decoding), self._features, self.tokenizer, stop)
            yield from exactly(self.model, at_work.run(task))

    def _shares(self, prompts: list[Asked], new: int) -> bool:
        """Whether what is shared may be read before what follows: not where keys depend on the whole length."""
        rope = self.model.decoder.rope
        longest = max((len(asked) + new for asked in prompts), default=0)
        return self.share and not (isinstance(rope, DynamicRope) and longest > rope.original_positions)

    def _slots(self, crew: Crew, new: int, decoding: Decoding) -> Slots:
        """Slots for a crew; on a GPU those of the last crew if they are alike, with what was recorded of them."""
        shape = (crew.rows, crew.columns, new, decoding)
        if self._kept is not None and self._kept[0] == shape:
            return self._kept[1]
        self._kept = None  # before there are others
        slots = Slots(
            self.model,
            self._scores,
            decoding,
            eos=self.tokenizer.eos,
            rows=crew.rows,
            columns=crew.columns,
            new=new,
            compiled=self.compiled,
        )
        if self._device.type == "cuda":
            self._kept = shape, slots
        return slots

    @property
    def _device(self) -> torch.device:
        return self.model.decoder.norm.weight.device

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

    def stream(self, items: Prompt, new: int, decoding: Decoding = GREEDY) -> Iterator[tuple[int, Visits]]:
        """Token after token of one answer, the end token left out, each with the experts it visits when it is read.

        Raises:
            UserError: The prompt and its answer would not fit ``max_positions``.
        """
        return exactly(self.model, self._stream(self._encode(items, new), new, decoding))

    @torch.inference_mode()
    def _stream(self, encoded: Encoded, new: int, decoding: Decoding) -> Iterator[tuple[int, Visits]]:
        decoder, chance_N = self.model.decoder, decoding.chances("0", new)
        with watched(decoder) as visits:
            tokens_BT, segments_BT, positions_BT = self._pad([encoded])
            cache = decoder.new_cache(1, tokens_BT.shape[1] + new)
            x_BTD = self.model.embed(tokens_BT, self._features.of([Asked.of(encoded)]))
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

    def _scores(self, hidden_BD: Tensor) -> Tensor:
        """Logits of what may be said: rows of the embedding that are no token are left out, a picture's never comes."""
        scores_BV = self.model.decoder.logits(hidden_BD)[:, : self.tokenizer.vocabulary]
        if self.tokenizer.image is not None:
            scores_BV[:, self.tokenizer.image] = -torch.inf
        return scores_BV

    @torch.inference_mode()
    def _score_batch(self, encoded: list[Encoded], spoken: list[int]) -> list[float]:
        decoder, longest = self.model.decoder, max(1, *spoken)
        tokens_BT, segments_BT, positions_BT = self._pad(encoded)
        x_BTD = self.model.embed(tokens_BT, self._features.of([Asked.of(e) for e in encoded]))
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


def compile_parts(model: MM1) -> None:
    """Compile what repeats, in place, for reading and for steps: first for the shapes met, then for any like them."""
    from torch._dynamo import config  # half a second that only those pay who compile

    config.recompile_limit = max(config.recompile_limit, 32)  # layers share what is compiled: kinds of calls x shapes
    for part in (*model.decoder.layers, *model.vision.blocks, model.connector):
        part.compile()


@contextmanager
def exact(model: MM1) -> Iterator[None]:
    """Products in full fp32 where the weights are: TF32, which convolutions take unasked, has 10 bits."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    if model.decoder.norm.weight.dtype == torch.float32:
        cuda.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before


def exactly(model: MM1, things: Iterator[Thing]) -> Iterator[Thing]:
    """The same, each made under :func:`exact`, and nothing else done under it."""
    while True:
        with exact(model):
            thing = next(things, None)
        if thing is None:
            return
        yield thing
