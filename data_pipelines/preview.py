"""A page of samples to look at before training: raw files, a finished corpus, or rows packed as training sees them.

    raw files          the first documents of every kind of file there, as their reader tells them
    corpus of shards   documents evenly out of each stream, with the corpus's own tokens and targets
    rows               whole rows of a training step: documents in colours, targets, padding

The page is one file without scripts; what raw files hold cannot act on it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy

from data_pipelines.contents import Contents, Found, contents_of, inputs_of
from data_pipelines.parts import Tally
from data_pipelines.pipeline_file import read_pipeline
from data_pipelines.settings import Settings
from data_pipelines.shown import Card, Run, Shown, items_of, plain, runs, shown, shown_pixels, visible, words
from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps import Pictures
from data_pipelines.train_tokenizer import take_tokenizer
from data_pipelines.validate import read_drafts
from mm1.batch import IGNORE, Batch, ImageSpec
from mm1.data.encode import encode
from mm1.data.image import PictureError
from mm1.data.mixture import DEFAULT_WEIGHTS
from mm1.data.recipe import Recipe
from mm1.data.shards import ShardSet, read_manifest
from mm1.data.streams import Loader, Windows
from mm1.data.tokenizer import Tokenizer, find
from mm1.errors import UserError, at_least
from mm1.page import environment, write
from mm1.sample import Image, Sample, Text

FILES = 50  # of each reader, so many are opened
REFUSED = 20  # so many documents that cannot be used are read for one that can, before a reader is left
HUES = {"captions": 255, "interleaved": 150, "text": 60, "sft": 330, "vqa": 20, "fewshot": 200}
ROW_HUES = (255, 55, 150, 330, 200, 100, 20, 290)  # of neighbours, far apart


@dataclass(frozen=True)
class Row:
    """A packed row.

    Args:
        cards: Its documents.
        runs: Its positions, with what each stretch of them is.
        facts: What is worth telling of it.
    """

    cards: list[Card]
    runs: list[Run]
    facts: list[str]


def preview(
    path: Path,
    out: Path,
    n: int = 20,
    *,
    tokenizer: Path | None = None,
    rows: bool = False,
    weights: dict[str, float] | None = None,
    seed: int = 0,
) -> Path:
    """Write the page.

    Args:
        path: Raw files, a raw corpus folder (docs/data.md), a pipeline's YAML, or a finished corpus.
        out: The HTML file.
        n: How many samples, or rows.
        tokenizer: A corpus or a model whose tokens text is shown in; a finished corpus has its own.
        rows: Of a finished corpus, packed rows instead of documents.
        weights: The mix of rows, as ``data.weights``; by default that of training, of the streams that are there.
        seed: As ``data.seed``.

    Raises:
        UserError: Nothing that can be read; rows of what is no corpus.
    """
    at_least(1, {"n": n})
    if path.suffix in (".yaml", ".yml"):
        pipeline = read_pipeline(path)[0]
        contents, settings = inputs_of(pipeline.inputs, path), pipeline.settings
    else:
        contents, settings = contents_of(path), Settings()
    if rows and contents.layout != "shards":
        raise UserError(f"{path} is no finished corpus; expected one for --rows: write it with mm1-data shards first")
    if rows:
        values = _packed(path, n, weights, seed)
    elif contents.layout == "shards":
        values = _stored(path, n)
    else:
        values = _raw(contents, n, _taken(tokenizer), settings)
    empty: dict[str, Any] = {"rows": [], "cards": [], "faults": [], "tokens": True}
    page = environment("data_pipelines").get_template("preview.html")
    return write(out, page.render(title=visible(path.name or str(path)), **{**empty, **values}))


def _taken(path: Path | None) -> Tokenizer | None:
    if path is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return take_tokenizer(path, Path(folder))


def _raw(contents: Contents, n: int, tokenizer: Tokenizer | None, settings: Settings) -> dict[str, Any]:
    """The first documents of each reader in turn, conversations in the words of the pipeline's template."""
    faults = Tally()
    each = [_usable(found, faults) for found in contents.found]
    words = settings.words
    cards = [
        _card(replace(draft, items=tuple(words.applied(draft.items))), tokenizer)
        for draft in itertools.islice(_in_turn(each), n)
    ]
    return {
        "told": [visible(f"{found.where}: {found.title} ({found.why})") for found in contents.found[:8]],
        "summary": f"{len(cards)} documents, as they stand before any step.",
        "cards": cards,
        "faults": _faults(faults),
        "tokens": tokenizer is not None,
    }


def _usable(found: Found, faults: Tally) -> Iterator[Draft]:
    """Documents that can be used, until too many cannot; first one of every file, then the next."""
    refused = 0
    for draft in _in_turn([read_drafts(found.source, file) for file in found.source.files()[:FILES]]):
        if isinstance(draft, Draft):
            yield draft
            refused = 0
        else:
            faults.drop(draft)
            refused += 1
        if refused > REFUSED:
            return


def _in_turn(several: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """One of each, then the next of each, until all have ended."""
    waiting = list(several)
    while waiting:
        for one in list(waiting):
            try:
                yield next(one)
            except StopIteration:
                waiting.remove(one)


def _card(draft: Draft, tokenizer: Tokenizer | None) -> Card:
    pictures = Pictures()
    items: list[Text | Shown] = []
    for item in draft.items:
        try:
            items.append(item if isinstance(item, Text) else shown(pictures.data(item)))
        except PictureError as error:
            items.append(Shown(None, str(error)))
    card = Card(visible(draft.id), draft.source, HUES.get(draft.source, 290), plain(items))
    card.facts = [f"{len(draft.text):,} characters"]
    if draft.pictures:
        card.facts.insert(0, _several(len(draft.pictures), "picture"))
    if tokenizer:
        texts = [Image(b"") if isinstance(item, Shown) else item for item in items]
        _in_tokens(card, Sample(tuple(texts), draft.source, draft.id), items, tokenizer, 1)
    return card


def _in_tokens(card: Card, sample: Sample, items: Sequence[Text | Shown], tokenizer: Tokenizer, per_image: int) -> None:
    """Show the text of a card as the tokens that training would get."""
    encoded = encode(sample, tokenizer, per_image)
    tokens, learned = encoded.tokens.tolist(), encoded.learn.tolist()
    pictures = iter([item for item in items if isinstance(item, Shown)])
    card.items = words(tokens, learned, pictures, tokenizer, per_image)
    text = len(tokens) - per_image * card.pictures
    card.facts[-1] = f"{_several(text, 'text token')}, {sum(learned):,} learned"


def _stored(corpus: Path, n: int) -> dict[str, Any]:
    """Documents of a finished corpus, evenly out of the training part of each stream."""
    manifest, tokenizer, faults = read_manifest(corpus), Tokenizer(find(corpus)), Tally()
    per_image, each, known = manifest["tokens_per_image"], [], 0
    for stream in manifest["streams"]:
        shards = ShardSet(corpus, stream, "train")
        known += len(shards)
        each.append(_samples(shards, min(n, len(shards)), faults))
    cards = []
    for sample in itertools.islice(_in_turn(each), n):
        items = items_of(sample)
        card = Card(visible(sample.id), sample.source, HUES.get(sample.source, 290), plain(items), [""])
        _in_tokens(card, sample, items, tokenizer, per_image)
        if card.pictures:
            card.facts.insert(0, f"{_several(card.pictures, 'picture')} of {_several(per_image, 'position')}")
        cards.append(card)
    fills = f"rows of {manifest['row_tokens']:,} positions, {per_image} a picture"
    return {
        "told": [f"A finished corpus: {', '.join(manifest['streams'])}; {fills}."],
        "summary": f"{len(cards)} of {known:,} documents to train on, evenly out of every stream.",
        "cards": cards,
        "faults": _faults(faults),
    }


def _samples(shards: ShardSet, n: int, faults: Tally) -> Iterator[Sample]:
    for number in numpy.linspace(0, len(shards) - 1, n).round().astype(int).tolist():
        try:
            yield shards[number]
        except UserError as error:
            reason = getattr(error, "reason", "damaged")
            faults.drop(Rejection(f"{shards.path(number).name}:{number}", reason))


def _packed(corpus: Path, n: int, weights: dict[str, float] | None, seed: int) -> dict[str, Any]:
    """Rows of the first step of training."""
    manifest, tokenizer = read_manifest(corpus), Tokenizer(find(corpus))
    filled = [stream for stream, split in manifest["streams"].items() if split["train"]["pieces"]]
    usual = {name: weight for name, weight in DEFAULT_WEIGHTS.items() if name in filled}
    spec = ImageSpec(manifest["image_px"], manifest["tokens_per_image"], resize=manifest["resize"])
    recipe = Recipe(
        corpus=corpus,
        image_spec=spec,
        row_tokens=manifest["row_tokens"],
        images_per_row=manifest["images_per_row"],
        rows_per_step=n,
        weights=weights or usual or dict.fromkeys(filled, 1.0),
        seed=seed,
    )
    windows = Windows(recipe, rank=0, ranks=1, micro_batches=1, state=None, threads=1)
    batch = next(iter(Loader(windows, workers=0)))
    rows, damaged = rows_of(batch, tokenizer, spec.tokens), Tally()
    for source, where, reason in batch.damaged:
        damaged.drop(Rejection(f"{source}: {where}", reason))
    documents, pictures = len(batch.documents), _several(len(batch.images_ICHW), "picture")
    padding, targets = 1 - batch.tokens / batch.tokens_BT.numel(), batch.targets / max(1, batch.tokens)
    return {
        "told": [f"Rows of the first step of training, seed {seed}: {_mix(batch)}."],
        "summary": (
            f"{_several(len(rows), 'row')} of {recipe.row_tokens:,} positions hold {documents:,} documents and "
            f"{pictures}. {padding:.1%} of positions are padding, {targets:.1%} of the others are targets."
        ),
        "rows": rows,
        "faults": _faults(damaged),
    }


def _mix(batch: Batch) -> str:
    shares = [
        (name, ((batch.sources_BT == number) & (batch.segments_BT > 0)).sum().item() / max(1, batch.tokens))
        for number, name in enumerate(batch.sources)
    ]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares) + " of positions"


def rows_of(batch: Batch, tokenizer: Tokenizer, per_image: int) -> list[Row]:
    """The rows of a batch, told from its tensors alone: what stands here is what a model would get."""
    pictures = iter([shown_pixels(image) for image in batch.images_ICHW])
    names = iter(batch.documents)
    rows = []
    for b in range(len(batch.tokens_BT)):
        tokens, segments = batch.tokens_BT[b].tolist(), batch.segments_BT[b].tolist()
        learned = [False, *(target != IGNORE for target in batch.targets_BT[b].tolist()[:-1])]  # by the position before
        cards: list[Card] = []
        stretches: list[Run] = []
        at = 0
        for segment, positions in itertools.groupby(segments):
            start, at = at, at + len(list(positions))
            if not segment:  # at the end, and in the place of a document that is damaged
                stretches.append(Run("padding", at - start, 0, f"padding, {_several(at - start, 'position')}"))
                continue
            hue = ROW_HUES[len(cards) % len(ROW_HUES)]
            ids, targets = tokens[start:at], learned[start:at]
            source = batch.sources[int(batch.sources_BT[b, start])]
            card = Card(visible(next(names)), source, hue, words(ids, targets, pictures, tokenizer, per_image))
            card.facts = [f"positions {start:,} to {at - 1:,}", f"{sum(targets):,} learned"]
            cards.append(card)
            stretches += runs(ids, targets, hue, per_image)
        count = sum(card.pictures for card in cards)
        facts = [_several(len(cards), "document"), _several(count, "picture"), f"{sum(learned):,} targets"]
        rows.append(Row(cards, stretches, [*facts, f"padding {segments.count(0) / len(tokens):.1%}"]))
    return rows


def _faults(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            "reason": visible(reason),
            "count": found["count"],
            "examples": [visible(one) for one in found["examples"][:3]],
        }
        for reason, found in sorted(tally.dropped.items(), key=lambda entry: -entry[1]["count"])
    ]


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
