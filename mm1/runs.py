"""What a run folder holds, so that training writes it, evaluation adds to it, and studies read it without either.

    RUN/
      run.json                 format, name, kind, finished or not, hardware, versions
      config.yaml              the fully resolved configuration
      metrics.jsonl            one JSON object a line, see below
      quarantine.jsonl         damaged documents that were left out: step, rank, split, source, where, reason
      bad_steps/               batches of steps whose loss was no number or leapt, without their pictures
      tensorboard/             the same numbers as curves, unless trainer.logger says otherwise
      heartbeats/              where each rank is, and rank-*.stack of those that hung
      checkpoints/last.ckpt    newest state, to resume from;  best.ckpt where an evaluation chose one;
                               step-00001000.ckpt where older ones are kept; sharded ones are folders of that name,
                               and the other two links to them
      eval/<name>/answers.jsonl, scores.json

``run.json`` also carries what studies compare runs by; a study leaves out what an older run does not say:

    parameters    {total, active, non_embedding, dense_twin}   counts; the last two are the decoder's, for the law
    flops_parts   {vision, connector, decoder}                 shares of a training step's FLOPs, summing to 1
    diverged      true where the loss became NaN and training stopped
    mix_target    {source: weight}    mix_unit: positions | ...    what the mixture was asked for
    steps         of the whole run
    packing       {fill, fill_bound, images_needed}    positions that the first rows fill, can fill at most, and why

Lines of ``metrics.jsonl`` carry ``split`` (``train``, ``val``, ``experts`` or ``eval``), ``step``, ``time_s`` (seconds
of training), ``positions`` and ``flops`` (both cumulative), and the named numbers:

    train    loss  loss/<source>  balance  z  lr/<part>  positions_per_s  padding  images_per_row
             tflops  mfu      of a rank: FLOPs that the model needs, towers and active experts, none for recomputing,
                              and as a share of the card's best in bf16, where that is known
             peak_gib         most memory that the first rank's GPU has held so far
             mix/documents/<source>  mix/rows/<source>  mix/text/<source>  mix/image/<source>  mix/positions/<source>
                                                                       realised shares since the start
             epochs/<source>                                           how often each source was read through
             seconds/{encoder,connector,decoder,loss,optimizer}        of the line's step, forwards and backwards
             data_wait                                                 share of the time in which data was waited for
    val      loss  loss/<source>  sight_gap  sight_gap/<source>       blind minus sighted held-out loss, nats a token
    experts  what the routers of a sparse decoder did in the steps since the line before, see below
    eval     eval/<task>, one number each: benchmarks on the way, if the run has any

A line of ``experts`` averages over its ``steps``; ``layers`` are the indices of the L sparse layers in the decoder, and
everything else has one entry a layer, over tokens that are not padding (older runs have ``load`` and ``layers`` alone):

    load         share of the choices that each expert got, summing to 1; without those that were dropped
    max_load     the largest of them times E: 1 at perfect balance, E / k where all tokens take the same k experts
    dead         how many experts got less than a hundredth of an even share
    entropy      of the shares that a token gives to experts, in nats; ln E where it does not care
    z            squared logsumexp of the router's logits, what the z-loss pulls at
    logit_norm   length of the vector of a token's logits
    dropped      share of a token's choices that found no room
    visited      experts that a token visited
    covered      share of tokens that visited any
    modality     {text: .., image: ..}: load and all from entropy on of those tokens alone; a group without tokens lacks
    source       {<source>: ..}: likewise
    together     [L][E][E], share of tokens that visited both of two experts, the diagonal an expert's own; only where
                 tokens visit more than one of at most 32
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1.errors import UserError

FORMAT = 1
SURROGATE = re.compile("[\ud800-\udfff]")
DEAD = 0.01  # of an even share: an expert that gets less is taken for dead


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(spelled(value, indent=1) + "\n")
    os.replace(temporary, path)


def spelled(value: Any, indent: int | None = None) -> str:
    """A value as JSON that UTF-8 can hold: half a surrogate pair, which a file may escape, stays escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if text.isascii() or not SURROGATE.search(text) else json.dumps(value, indent=indent)


def read_json(path: Path, what: str) -> Any:
    """Read JSON that a user may have named wrongly.

    Raises:
        UserError: The file is missing or is not JSON; ``what`` says what it should have been.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; expected {what}") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); expected {what}") from None


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: As :func:`read_json`, or the file holds something else.
    """
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, no object; expected {what}")
    return found


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of one evaluation.

    Raises:
        UserError: There are none.
    """
    scores = read_object(path, "scores written by mm1-eval")
    if not isinstance(scores.get("tasks"), dict):
        raise UserError(f"{path} has no tasks; expected scores written by mm1-eval")
    for name, task in scores["tasks"].items():
        shots = task.get("shots") if isinstance(task, dict) else None
        if not isinstance(shots, dict) or not all(map(_is_scored, shots.items())):
            raise UserError(f"{path} has no scores of {name} by shots; expected scores written by mm1-eval")
    return scores


def _is_scored(shots: tuple[str, Any]) -> bool:
    count, at = shots
    return count.isdecimal() and isinstance(at, dict) and isinstance(at.get("sighted"), int | float | None)


def score_files(path: Path) -> list[Path]:
    """Every ``scores.json`` that a path stands for: a run folder, the folder of one evaluation, or the file.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return [path]
    files = [path / "scores.json"] if (path / "scores.json").is_file() else sorted(path.glob("eval/*/scores.json"))
    if not files:
        raise UserError(
            f"{path} holds no scores; expected a run folder, eval/<name> in it, or a scores.json of mm1-eval"
        )
    return files


def json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a file of one a line, None where a line is none, such as one cut short by a kill."""
    with path.open(errors="replace") as lines:
        for line in lines:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                found = None
            yield found if isinstance(found, dict) else None


class Run:
    """One run folder.

    Args:
        folder: Where it is; made by :meth:`start`, expected to exist otherwise.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.metrics = self.folder / "metrics.jsonl"
        self.quarantine = self.folder / "quarantine.jsonl"
        self.bad_steps = self.folder / "bad_steps"
        self.last = self.folder / "checkpoints" / "last.ckpt"
        self.best = self.folder / "checkpoints" / "best.ckpt"

    def kept(self, step: int) -> Path:
        """The checkpoint of a step that is kept beside the last."""
        return self.last.with_name(f"step-{step:08d}.ckpt")

    def all_kept(self) -> dict[int, Path]:
        """Those that are there, by step."""
        found = self.last.parent.glob("step-*.ckpt")
        return {int(path.stem.removeprefix("step-")): path for path in sorted(found)}

    def start(self, kind: str, **about: Any) -> None:
        """Make the folder and say what runs here; a second start of the same run keeps what is there."""
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "run.json").exists():
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            machine = f"{platform.machine()}, {os.cpu_count()} cores"
            about = {"started": started, "machine": machine, "python": platform.python_version(), **about}
            about = {"format": FORMAT, "name": self.folder.name, "kind": kind, "finished": False, **about}
            write_json(self.folder / "run.json", about)

    def forget(self) -> None:
        """Take away what a run wrote, for one that starts over in its folder; evaluations stay."""
        for path in (self.folder / "run.json", self.metrics, self.quarantine):
            path.unlink(missing_ok=True)
        for folder in (self.last.parent, self.bad_steps, self.folder / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)

    def about(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            UserError: No run folder, or one written by a newer version.
        """
        about = read_object(self.folder / "run.json", "a run folder written by mm1-train")
        if about.get("format") != FORMAT:
            raise UserError(f"{self.folder} has run format {about.get('format')}; this version reads format {FORMAT}")
        return about

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        write_json(self.folder / "run.json", {**self.about(), **changes})

    def log(self, split: str, step: int, **values: Any) -> None:
        """Append one line of metrics."""
        with self.metrics.open("a") as lines:
            lines.write(json.dumps({"split": split, "step": step, **values}) + "\n")

    def truncate(self, step: int) -> None:
        """Forget metrics after ``step``: a resumed run writes them again, and none may stand twice."""
        kept = [line for line in self.history() if line["step"] <= step]
        temporary = self.metrics.with_name(self.metrics.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.metrics)

    def history(self, split: str | None = None) -> list[dict[str, Any]]:
        """All metric lines, or those of one split; one cut short by a kill is left out."""
        if not self.metrics.exists():
            return []
        lines = [line for line in json_lines(self.metrics) if line and {"split", "step"} <= line.keys()]
        return [line for line in lines if split is None or line["split"] == split]

    def scores(self) -> dict[str, dict[str, Any]]:
        """Every ``eval/<name>/scores.json`` of this run, by name."""
        found = sorted(self.folder.glob("eval/*/scores.json"))
        return {path.parent.name: read_scores(path) for path in found}
