"""One loader worker beside the bound of its JPEG decoder and beside the loaders of others, on the same shards."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import FOLDER, RESULTS, append, machine, versions
from benchmarks.photos import write_photos
from mm1.data.shards import read_manifest
from mm1.errors import UserError, at_least

ROOT = Path(__file__).resolve().parents[2]
ROW_TOKENS, IMAGE_TOKENS, VOCABULARY = 4096, 144, 1024
BARS = {"decoder: simplejpeg": 0.85, "webdataset, as documented": 2.0, "webdataset, uint8": 1.3}
FIGURES = ("images_s", "images_cpu_s", "positions_s")


@dataclass
class Contestant:
    """What is timed.

    Args:
        name: As the table and the CSV call it.
        module: The file under ``contestants``.
        settings: What it is asked.
        python: Its interpreter.
    """

    name: str
    module: str
    settings: dict[str, Any]
    python: str = sys.executable
    trials: list[dict[str, float]] = field(default_factory=list)

    def trial(self, seconds: float) -> None:
        """Run it once."""
        asked = json.dumps({**self.settings, "seconds": seconds})
        paths = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
        done = subprocess.run(
            [self.python, "-m", f"benchmarks.contestants.{self.module}", asked],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=seconds + 300,
        )
        if done.returncode:
            raise UserError(f"{self.name} failed: {done.stderr.strip().splitlines()[-1:]}")
        self.trials.append(json.loads(done.stdout.splitlines()[-1]))

    def median(self, figure: str) -> float:
        """The median of its trials."""
        return statistics.median(trial[figure] for trial in self.trials)

    def spread(self) -> str:
        """Smallest and largest pictures per second of its trials."""
        found = [trial["images_s"] for trial in self.trials]
        return f"{min(found):.0f}-{max(found):.0f}"


def data(
    *,
    seconds: float = 5.0,
    repeats: int = 5,
    pictures: int = 2000,
    image_px: int = 378,
    batch: int = 128,
    data: Path | None = None,
    folder: Path = FOLDER,
    results: Path = RESULTS,
    energon_python: str = sys.executable,
    note: str = "",
) -> None:
    """Pictures per second of one loader worker: the decoder's bound, ours, webdataset's, Megatron-Energon's.

    Args:
        seconds: Length of a trial.
        repeats: Trials of each contestant; they take turns.
        pictures: How many pictures to generate.
        image_px: Side at which pictures are stored.
        batch: Pictures of a batch.
        data: A raw corpus with captions to use instead of generated pictures.
        folder: Where corpora are kept from run to run.
        energon_python: Interpreter that has megatron-energon.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run, such as how busy the machine was.
    """
    at_least(1, {"repeats": repeats, "pictures": pictures, "batch": batch})
    corpus = _corpus(folder, data, pictures, image_px)
    contestants = _contestants(folder, corpus, batch, image_px, energon_python)
    before = machine()
    for number in range(repeats):
        for contestant in contestants if number % 2 == 0 else contestants[::-1]:
            contestant.trial(seconds)
            print(f"{number + 1}/{repeats} {contestant.name}: {contestant.trials[-1]['images_s']:.0f}", file=sys.stderr)
    print(_table(contestants))
    about = {
        **before,
        **versions("torch", "pillow", "simplejpeg", "webdataset"),
        "energon": _energon(energon_python) or "-",
        "corpus": str(data.name) if data else "generated",
        "image_px": image_px,
        "picture_bytes": _picture_bytes(corpus),
        "batch": batch,
        "seconds": seconds,
        "repeats": repeats,
    }
    rows = [{**about, "contestant": one.name, **_figures(one), "note": note} for one in contestants]
    print(append(results / "data.csv", rows))


def _figures(contestant: Contestant) -> dict[str, Any]:
    return {**{figure: round(contestant.median(figure)) for figure in FIGURES}, "spread": contestant.spread()}


def _contestants(folder: Path, corpus: Path, batch: int, image_px: int, energon: str) -> list[Contestant]:
    where, sized = {"corpus": str(corpus)}, {"corpus": str(corpus), "batch": batch, "size_px": image_px}
    found = [
        Contestant("decoder: simplejpeg", "decoder", {**where, "decoder": "simplejpeg"}),
        Contestant("decoder: PIL", "decoder", {**where, "decoder": "pil"}),
        Contestant("ours", "ours", {**where, "batch": batch}),
        Contestant("webdataset, as documented", "plain", {**sized, "floats": True}),
        Contestant("webdataset, uint8", "plain", {**sized, "floats": False}),
    ]
    if not _energon(energon):
        print(f"megatron-energon is left out: {energon} does not have it (--energon_python)")
        return found
    prepared = {"folder": str(_prepared(folder, corpus, energon)), "batch": batch, "size_px": image_px}
    for name, decoder in {"energon, as documented": "documented", "energon, our decoder": "ours"}.items():
        found.append(Contestant(name, "energon", {**prepared, "decoder": decoder}, energon))
    return found


def _table(contestants: list[Contestant]) -> str:
    """Figures, and ours over each: trial by trial, so that what slows a round slows both sides of a ratio."""
    ours = next(one for one in contestants if one.name == "ours")
    head = (
        f"{'':28}{'images/s':>9}{'spread':>12}{'per cpu s':>11}{'positions/s':>13}{'ours/it':>9}{'(cpu)':>7}{'bar':>6}"
    )
    lines = [head]
    for one in contestants:
        ratio, by_processor = (
            statistics.median(a[figure] / b[figure] for a, b in zip(ours.trials, one.trials, strict=True))
            for figure in ("images_s", "images_cpu_s")
        )
        figures = [round(one.median(figure)) for figure in FIGURES]
        bar = f"{BARS[one.name]:.2f}" if one.name in BARS else ""
        lines.append(
            f"{one.name:28}{figures[0]:>9,}{one.spread():>12}{figures[1]:>11,}{figures[2] or '':>13}"
            f"{ratio:>9.2f}{by_processor:>7.2f}{bar:>6}"
        )
    return "\n".join(lines)


def _corpus(folder: Path, raw: Path | None, pictures: int, image_px: int) -> Path:
    """Shards of the raw corpus, by the doors that everybody uses; a rerun finds them."""
    name = f"{raw.resolve().name if raw else f'photos-{pictures}'}-{image_px}"
    corpus, source = folder / name, raw or write_photos(folder / f"raw-{pictures}-{image_px}", pictures, image_px)
    if not (corpus / "manifest.json").exists():
        _door("tokenizer", "--data", source, "--out", corpus, "--vocabulary", VOCABULARY)
    settings = {"row_tokens": ROW_TOKENS, "tokens_per_image": IMAGE_TOKENS, "image_px": image_px}
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    _door("shards", "--data", source, "--out", corpus, *words, "--shard_bytes", 20_000_000)
    return corpus


def _door(command: str, *words: Any) -> None:
    line = [sys.executable, "-m", "data_pipelines", command, *map(str, words)]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _picture_bytes(corpus: Path) -> int:
    """Mean size of a stored sample, nearly all of it the picture."""
    shards = read_manifest(corpus)["streams"]["captions"]["train"]["shards"]
    return sum(shard["bytes"] for shard in shards) // sum(shard["samples"] for shard in shards)


def _energon(python: str) -> str:
    """The version that an interpreter has, or nothing."""
    asked = "from importlib.metadata import version; print(version('megatron-energon'))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    return done.stdout.strip()


def _prepared(folder: Path, corpus: Path, python: str) -> Path:
    """The same tars with the files that Energon wants beside them, made by its own command."""
    prepared = folder / f"energon-{corpus.name}"
    if (prepared / ".nv-meta" / "dataset.yaml").exists():
        return prepared
    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(parents=True)
    for tar in (corpus / "captions").glob("train-*.tar"):
        (prepared / tar.name).symlink_to(tar.resolve())
    fields = json.dumps({"image": "0.jpg", "caption": "json[items][1][text]"})
    line = [str(Path(python).parent / "energon"), "prepare", str(prepared), "--non-interactive", "--no-progress"]
    line += ["--split-parts", r"train:train-.*\.tar", "--sample-type", "CaptioningSample", "--field-map", fields]
    subprocess.run(line, check=True, capture_output=True)
    return prepared
