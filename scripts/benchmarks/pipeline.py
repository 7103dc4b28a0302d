"""Documents per second and core, and the peak of memory, of ``mm1-data shards`` as corpora grow tenfold."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy
import PIL.Image

from benchmarks.machine import FOLDER, RESULTS, append, machine, versions
from benchmarks.photos import WORDS
from mm1.errors import UserError, at_least

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, LINEAR = 1024, 1.15
BLOCK = 10_000  # documents generated at once


def pipeline(
    *,
    sizes: tuple[int, ...] = (10_000, 100_000),
    large: bool = False,
    kind: Literal["text", "captions"] = "text",
    words: int = 40,
    workers: int = 1,
    folder: Path = FOLDER,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Time ``mm1-data shards`` on generated corpora of 10^4, 10^5 and, with ``--large true``, 10^6 documents.

    Args:
        sizes: Documents of each corpus, growing.
        large: A million documents as well.
        kind: Documents of text, or pictures of 16 pixels with captions in tars.
        words: Words of a document.
        workers: Processes of the pipeline.
        folder: Where corpora and shards are written.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run.
    """
    at_least(1, {"workers": workers, "words": words})
    rows: list[dict[str, Any]] = []
    for documents in (*sizes, 1_000_000)[: len(sizes) + large]:
        raw = _raw(folder / f"raw-{kind}-{documents}", kind, documents, words)
        out = folder / f"shards-{kind}-{documents}"
        shutil.rmtree(out, ignore_errors=True)
        _run(["tokenizer", "--data", folder / f"raw-{kind}-{sizes[0]}", "--out", out, "--vocabulary", VOCABULARY])
        before = machine()
        seconds, processor, peak = _run(_words(raw, out, workers))
        row = {"kind": kind, "documents": documents, "workers": workers, "seconds": round(seconds, 2)}
        row |= {
            "documents_s_core": round(documents / seconds / workers),
            "cpu_us_document": round(processor / documents * 1e6, 1),
            "peak_mb": round(peak / 2**20),
        }
        rows.append({**before, **versions("pillow", "sentencepiece"), **row, "note": note})
        print(json.dumps(row))
        shutil.rmtree(out)
    for small, big in itertools.pairwise(rows):
        clock, processor = (
            (big[key] / big["documents"]) / (small[key] / small["documents"])
            if key == "seconds"
            else big[key] / small[key]
            for key in ("seconds", "cpu_us_document")
        )
        print(
            f"{small['documents']:,} -> {big['documents']:,} documents: time per document x {clock:.2f} "
            f"(processor x {processor:.2f}, bar {LINEAR}), peak of memory x {big['peak_mb'] / small['peak_mb']:.2f}"
        )
    print(append(results / "pipeline.csv", rows))


def _words(raw: Path, out: Path, workers: int) -> list[Any]:
    sizes = ["--row_tokens", 512, "--tokens_per_image", 16, "--image_px", 16]
    return ["shards", "--data", raw, "--out", out, *sizes, "--workers", workers]


def _run(words: list[Any]) -> tuple[float, float, int]:
    """Run ``mm1-data``: seconds, processor seconds and the peak of resident memory of all its processes."""
    line = [sys.executable, "-m", "data_pipelines", *map(str, words)]
    start, spent = time.perf_counter(), os.times()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        peaks = [0]
        watch = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
        watch.start()
        code = process.wait()
        seconds, now = time.perf_counter() - start, os.times()
        watch.join()
        errors.seek(0)
        if code:
            raise UserError(f"mm1-data {words[0]} failed: {errors.read().strip().splitlines()[-1:]}")
    processor = now.children_user + now.children_system - spent.children_user - spent.children_system
    return seconds, processor, max(peaks)


def _watch(process: subprocess.Popen[bytes], peaks: list[int]) -> None:
    while process.poll() is None:
        peaks.append(_resident(process.pid))
        time.sleep(0.05)


def _resident(pid: int) -> int:
    """Memory of a process and all below it, what they share counted once (Pss), in bytes."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return 0
    own = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return own * 1024 + sum(_resident(int(child)) for child in children)


def _raw(folder: Path, kind: str, documents: int, words: int) -> Path:
    """A corpus of its kind; what is there already stays."""
    done = folder / "done"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (_texts if kind == "text" else _captions)(folder, documents, words)
    done.touch()
    return folder


def _sentences(number: int, count: int, words: int) -> list[str]:
    places = numpy.random.default_rng(number).zipf(1.3, (count, words)) % len(WORDS)
    return [" ".join(WORDS[place] for place in row) for row in places]


def _texts(folder: Path, documents: int, words: int) -> None:
    (folder / "text").mkdir(parents=True)
    with (folder / "text" / "pages.jsonl").open("w") as file:
        for block in range(0, documents, BLOCK):
            for text in _sentences(block, min(BLOCK, documents - block), words):
                file.write(json.dumps({"text": text}) + "\n")


def _captions(folder: Path, documents: int, words: int) -> None:
    """Tars of 10,000 as img2dataset writes them, each picture another one."""
    (folder / "captions").mkdir(parents=True)
    for block in range(0, documents, BLOCK):
        count = min(BLOCK, documents - block)
        colours = numpy.random.default_rng(block).integers(0, 256, (count, 4, 4, 3), dtype=numpy.uint8)
        with tarfile.open(folder / "captions" / f"{block // BLOCK:05d}.tar", "w") as tar:
            for number, (text, colour) in enumerate(zip(_sentences(block, count, words), colours, strict=True)):
                file = io.BytesIO()
                PIL.Image.fromarray(colour).resize((16, 16)).save(file, "JPEG")
                for kind, data in (("jpg", file.getvalue()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{block + number:09d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
