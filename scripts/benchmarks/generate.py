"""Eight-shot captioning on one GPU beside transformers' ``generate`` on the same weights: speed, and who says the same.

Weights are random, and a random model has no opinions: its two best logits are often nearer than bfloat16 can tell, so
that transformers does not agree with itself at another batch size. To have answers that can be compared, embeddings are
made larger than what layers add and the head expects after each token one other: only the first token of an answer, at
the end of the picture asked about, is then left to the whole context.
"""

from __future__ import annotations

import gc
import io
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import PIL.Image
import torch
from torch import Tensor

from benchmarks.contestants.transformers_generate import TransformersGenerate
from benchmarks.machine import RESULTS, append, where
from benchmarks.photos import WORDS
from benchmarks.train import SIZES, our_model
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer
from mm1.data.tokenizer import train as train_tokenizer
from mm1.infer.assistant import cast
from mm1.infer.continuous import Answer
from mm1.infer.engine import Engine, exact
from mm1.infer.features import Asked
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text

NEW, SHOTS = 20, 8
BARS = {1: 5.0, 16: 1.5, 64: 1.5}  # times transformers at this batch size
NEAR = 1e-4


@dataclass(frozen=True)
class Bench:
    """What is asked, and whom.

    Args:
        model: Ours, in bfloat16 on a GPU.
        tokenizer: Its tokenizer.
        prompts: Of eight shots, all pictures different.
        shared: The same questions behind the same eight shots.
    """

    model: MM1
    tokenizer: Tokenizer
    prompts: list[list[Text | Image]]
    shared: list[list[Text | Image]]


def generate(
    *,
    size: Literal["1.2b", "3b", "tiny"] = "1.2b",
    prompts: int = 256,
    batches: tuple[int, ...] = (1, 16, 64),
    batch_positions: int = 98304,
    compiled: bool = True,
    exact_prompts: int = 8,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time our engine and transformers' generate at several batch sizes, and compare what they say.

    Args:
        size: Decoder beside a ViT-H/14 at 378 px; ``tiny`` runs on a CPU to see that everything does.
        prompts: Prompts that ours answers; transformers answers fewer of the same.
        batches: Batch sizes of transformers.
        batch_positions: Positions of our slots.
        compiled: Whether our layers are compiled; what it takes is told, not counted.
        exact_prompts: Prompts that are also answered in fp32 without TF32, by both and by ours one at a time.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    device, about = where("torch", "transformers", small=size == "tiny", flag="--size tiny")
    about |= {"size": size}
    bench = _bench(size, device, prompts)
    peer = TransformersGenerate(bench.model, SIZES[size], NEW)
    exactly = _exact(bench, SIZES[size], exact_prompts) if exact_prompts else ""
    rows: list[dict[str, Any]] = []

    def row(contestant: str, batch: int, count: int, seconds: float, **more: Any) -> None:
        line = {"contestant": contestant, "batch": batch, "prompts": count, "seconds": round(seconds, 3)}
        line |= {"prompts_s": round(count / seconds, 3), "equal": "", "margin_unequal": "", **more, "note": note}
        rows.append({**about, **line})
        print(f"{contestant:44} {count:5} prompts {seconds:8.2f} s {count / seconds:8.2f} prompts/s", flush=True)

    engine = Engine(bench.model, bench.tokenizer, batch_positions=batch_positions, compiled=compiled)
    start = time.perf_counter()
    _ours(engine, bench.prompts)  # all of it, so that no shape is new to the compiler afterwards
    forget(engine)
    _ours(engine, bench.shared)
    print(f"    compiled, recorded and warmed up in {time.perf_counter() - start:.0f} s", flush=True)
    forget(engine)
    said, seconds = _ours(engine, bench.prompts)
    row("ours, every picture encoded", 0, prompts, seconds)
    forget(engine)
    _, shared_seconds = _ours(engine, bench.shared)
    row("ours, the same eight shots for all", 0, prompts, shared_seconds)
    engine._kept = None
    _clear()
    theirs: dict[int, list[list[int]]] = {}
    for batch in batches:
        count = min(prompts, max(2 * batch, 12))
        theirs[batch], peer_seconds = _theirs(peer, engine, bench.prompts[:count], batch)
        equal, told = compare(said, theirs[batch])
        row(f"transformers generate, {batch} at a time", batch, count, peer_seconds, **equal)
        factor = prompts / seconds / (count / peer_seconds)
        print(f"    ours is {factor:.2f} x (bar {BARS.get(batch, 0)}); {told}", flush=True)
        if batch != batches[0]:
            shared_with = list(zip(theirs[batches[0]], theirs[batch], strict=False))
            same = sum(one == other for one, other in shared_with) / len(shared_with)
            print(f"    transformers with itself at {batches[0]} at a time: {same:.1%} equal", flush=True)
    print(exactly)
    print(append(results / "generate.csv", rows))


def compare(said: Sequence[Answer], theirs: Sequence[Sequence[int]]) -> tuple[dict[str, Any], str]:
    """Share of equal answers, and what the margins of ours are where they are not equal."""
    pairs = list(zip(said, theirs, strict=False))
    unequal = sorted(mine.margin or 0.0 for mine, other in pairs if list(mine.tokens) != list(other))
    margins = sorted(mine.margin or 0.0 for mine, _ in pairs)
    share = 1 - len(unequal) / len(pairs)
    told = f"{share:.1%} of {len(pairs)} answers equal (bar 99 %), median margin {margins[len(margins) // 2]:.3f}"
    if unequal:
        clear = [margin for margin in margins if margin > unequal[-1]]
        told += f"; unequal at margins up to {unequal[-1]:.4f}, {len(clear)} answers have larger ones"
    return {"equal": round(share, 4), "margin_unequal": round(unequal[-1], 5) if unequal else ""}, told


def forget(engine: Engine) -> None:
    """Let no picture be known."""
    engine._features._seen.clear()


def _ours(engine: Engine, prompts: list[list[Text | Image]]) -> tuple[list[Answer], float]:
    start = time.perf_counter()
    found = sorted(engine.answers(prompts, NEW), key=lambda said: said.index)
    return found, time.perf_counter() - start


def _theirs(
    peer: TransformersGenerate, engine: Engine, prompts: list[list[Text | Image]], batch: int
) -> tuple[list[list[int]], float]:
    """Their answers and seconds; pictures are prepared and on the device before the clock starts."""
    device = engine.model.decoder.norm.weight.device
    asked = [Asked.of(engine._encode(items, NEW)) for items in prompts]
    lots = [asked[at : at + batch] for at in range(0, len(asked), batch)]
    pixels = [prepared([data for one in lot for data in one.pictures], engine.model).to(device) for lot in lots]
    peer(lots[0], pixels[0])
    _wait(device)
    start = time.perf_counter()
    found = [ids for lot, images_ICHW in zip(lots, pixels, strict=True) for ids in peer(lot, images_ICHW)]
    _wait(device)
    return found, time.perf_counter() - start


def prepared(pictures: list[Image], model: MM1) -> Tensor:
    """uint8[I, 3, S, S]."""
    with ThreadPoolExecutor() as threads:
        return torch.stack(list(threads.map(lambda data: prepare(data, model.image_spec), pictures)))


def _exact(bench: Bench, size: Any, count: int) -> str:
    """In fp32 with TF32 off: ours in slots, ours one at a time, and transformers."""
    model = _copy(bench.model, size)
    prompts = bench.prompts[:count]
    together, _ = _ours(Engine(model, bench.tokenizer, batch_positions=98304), prompts)
    alone, _ = _ours(Engine(model, bench.tokenizer, batch_positions=1), prompts)
    with exact(model):
        theirs, _ = _theirs(TransformersGenerate(model, size, NEW), Engine(model, bench.tokenizer), prompts, count)
    near = [said.index for said in together if (said.margin or 0.0) < NEAR]
    with_itself = sum(one.tokens == other.tokens for one, other in zip(together, alone, strict=True))
    with_them = sum(list(one.tokens) == other for one, other in zip(together, theirs, strict=True))
    del model
    _clear()
    return (
        f"fp32 without TF32: of {count} answers {with_itself} are equal one at a time and together, {with_them} equal "
        f"transformers'; the two best logits are nearer than {NEAR} in {near or 'none'}"
    )


def _copy(model: MM1, size: Any) -> MM1:
    """The same weights in fp32."""
    device = model.decoder.norm.weight.device
    copied = our_model(size, device, False).eval()
    copied.load_state_dict(model.state_dict())
    return copied.float()


def _bench(size: str, device: torch.device, count: int) -> Bench:
    shape = SIZES[size]
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=12)) for _ in range(3000)]
    tokenizer = Tokenizer.from_bytes(train_tokenizer(lines, 700))
    torch.manual_seed(0)
    model = our_model(shape, device, False).eval()
    _settle(model, tokenizer)
    if device.type == "cuda":
        cast(model, "bfloat16")
    shots = SHOTS if size != "tiny" else 2
    with ThreadPoolExecutor() as threads:
        drawn = threads.map(lambda seed: picture(seed, shape.image_px), range((count + 1) * (shots + 1)))
        pictures: Iterator[Image] = map(Image, list(drawn))

    def shown() -> list[Text | Image]:
        text = " ".join(chance.choices(WORDS, k=chance.randint(13, 17)))
        return [next(pictures), Text(text)]

    def demonstrations() -> list[Text | Image]:
        return [item for _ in range(shots) for item in shown()]

    prompts = [[*demonstrations(), next(pictures)] for _ in range(count)]
    same = demonstrations()
    return Bench(model, tokenizer, prompts, [[*same, prompt[-1]] for prompt in prompts])


def _settle(model: MM1, tokenizer: Tokenizer) -> None:
    """Make each token expect another one, and let nothing be said that is no word."""
    decoder, words = model.decoder, torch.arange(4, tokenizer.vocabulary)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(words), generator=generator)
    with torch.no_grad():
        decoder.embedding.weight.mul_(50)
        table = decoder.embedding.weight / decoder.embedding.weight.std()
        expected = torch.zeros_like(table)
        expected[words[order].to(table.device)] = table[words[order.roll(1)].to(table.device)]
        head = decoder.head_VD
        head.add_(expected * head.std())
        head[:4] = 0
        head[tokenizer.vocabulary :] = 0


def picture(seed: int, side_px: int) -> bytes:
    """A smooth random picture, another for every seed."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (18, 18, 3), dtype=numpy.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((side_px, side_px), PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
