"""The bound: a JPEG decoder alone in a loop, on files in memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from benchmarks.trial import report

BATCH = 32
IN_MEMORY = 1000


def pictures(corpus: Path) -> list[bytes]:
    """The first files of the corpus's caption shards."""
    from mm1.data.shards import ShardSet
    from mm1.sample import Image

    shards = ShardSet(corpus, "captions", "train")
    samples = (shards[number] for number in range(min(len(shards), IN_MEMORY)))
    return [item.data for sample in samples for item in sample.items if isinstance(item, Image)]


def decoded(corpus: str, decoder: str) -> Iterator[tuple[int, int]]:
    """Endless batches of the decoder ``simplejpeg`` or ``pil``."""
    import PIL.Image
    import simplejpeg

    def by_pil(data: bytes) -> None:
        PIL.Image.open(io.BytesIO(data)).load()

    def by_simplejpeg(data: bytes) -> None:
        simplejpeg.decode_jpeg(data, "RGB")

    files = pictures(Path(corpus))
    decode = {"pil": by_pil, "simplejpeg": by_simplejpeg}[decoder]
    while True:
        for start in range(0, len(files) - BATCH, BATCH):
            for data in files[start : start + BATCH]:
                decode(data)
            yield BATCH, 0


if __name__ == "__main__":
    report(decoded)
