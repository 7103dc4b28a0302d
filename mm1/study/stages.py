"""Runs a list of commands that depend on each other: in parallel where they may, resumed where they stopped, timed.

``phases.json`` in the output folder is the whole memory: per stage its fingerprint (of its command, the YAMLs it names
and what it depends on), whether it is done, the seconds of all attempts, and when it began and ended by a clock that
stands still between runs of the job. A stage that is done and whose fingerprint is unchanged is skipped; one whose
fingerprint changed starts from a clean folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mm1.errors import UserError
from mm1.runs import read_object, write_json

FORMAT = 1
LOG_LINES = 20  # shown of a failed stage
SHOW_EVERY_S = 5


@dataclass(frozen=True)
class Stage:
    """One process of a job.

    Args:
        name: Of its log and its record.
        command: Arguments after ``python -m``.
        after: Stages that must be done first.
        side: ``dense``, ``moe`` or empty; how progress lines and the report group it.
        says: What it does, for people.
        writes: Folders that are its own, emptied when it starts anew.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    side: str = ""
    says: str = ""
    writes: tuple[Path, ...] = ()


@dataclass
class _Running:
    stage: Stage
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)
    said: str = ""


class Stages:
    """The stages of one job and their memory.

    Args:
        out: Output folder; holds ``phases.json`` and ``logs/``.
        stages: Every stage stands after those it depends on; of several that could start, the first does.
        slots: Processes at a time.
        threads: Threads for a process, when ``slots`` of them run.
        keep_going: A stage that fails is named, those that depend on it are left out, and the others run all the same.
        screen: Where progress goes.
    """

    def __init__(
        self,
        out: Path,
        stages: Sequence[Stage],
        *,
        slots: int = 1,
        threads: int = 1,
        keep_going: bool = False,
        screen: TextIO | None = None,
    ) -> None:
        self.out, self.stages, self.slots, self.threads = out, stages, slots, threads
        self.keep_going, self.failed = keep_going, list[str]()
        self.screen = screen or sys.stdout
        self.path = out / "phases.json"
        self.memory: dict[str, Any] = {"format": FORMAT, "clock": 0.0, "stages": {}}
        if self.path.exists():
            self.memory |= read_object(self.path, "the memory of an earlier run of this job")
        self.opened, self.before = time.monotonic(), self.memory["clock"]
        self.fingerprints: dict[str, str] = {}
        for stage in stages:
            self.fingerprints[stage.name] = self._fingerprint(stage)

    def run(self) -> list[str]:
        """Run what is not done yet; the names of the stages that failed, which are none without ``keep_going``.

        Raises:
            UserError: A stage failed; its last lines have been shown, the others were stopped.
        """
        waiting = [stage for stage in self.stages if not self._done(stage)]
        running: list[_Running] = []
        for stage in self.stages:
            if stage not in waiting:
                self._say(stage, f"done before, {self.memory['stages'][stage.name]['seconds']:.0f} s")
        shown = time.monotonic()
        try:
            while waiting or running:
                ready = [stage for stage in waiting if all(self._done(self._by_name(name)) for name in stage.after)]
                for stage in ready[: self.slots - len(running)]:
                    waiting.remove(stage)
                    running.append(self._start(stage))
                time.sleep(0.1)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    self._end(one)
                    waiting = self._possible(waiting)
                    self._tell_time(one.stage, [*waiting, *(other.stage for other in running)])
                if time.monotonic() - shown > SHOW_EVERY_S:
                    shown = time.monotonic()
                    self._show(running)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
                self._remember(one, done=False)
        return self.failed

    def _possible(self, waiting: list[Stage]) -> list[Stage]:
        """Those that no failed stage stands in the way of; the others have failed with it."""
        for stage in waiting:  # every stage stands after those it depends on
            if not {*self.failed}.isdisjoint(stage.after):
                self.failed.append(stage.name)
        return [stage for stage in waiting if stage.name not in self.failed]

    def _by_name(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def _fingerprint(self, stage: Stage) -> str:
        digest = hashlib.sha256("\0".join(stage.command).encode())
        for word in stage.command:
            for path in _yamls(Path(word)):
                digest.update(path.read_bytes())
        for name in stage.after:
            digest.update(self.fingerprints[name].encode())
        return digest.hexdigest()[:16]

    def _done(self, stage: Stage) -> bool:
        record = self.memory["stages"].get(stage.name, {})
        return bool(record.get("done")) and record["fingerprint"] == self.fingerprints[stage.name]

    def _start(self, stage: Stage) -> _Running:
        record = self.memory["stages"].get(stage.name)
        resumed = record is not None and record["fingerprint"] == self.fingerprints[stage.name]
        if not resumed:
            for folder in stage.writes:
                shutil.rmtree(folder, ignore_errors=True)
            record = {
                "fingerprint": self.fingerprints[stage.name],
                "done": False,
                "seconds": 0.0,
                "began": self._clock(),
            }
            self.memory["stages"][stage.name] = record | {"side": stage.side, "says": stage.says, "after": stage.after}
            self._save()
        log = self.out / "logs" / f"{stage.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._say(stage, "goes on" if resumed else "starts")
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("ab" if resumed else "wb") as lines:
            process = subprocess.Popen(
                [sys.executable, "-m", *stage.command],
                stdout=lines,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **threads},
            )
        return _Running(stage, process, log)

    def _end(self, one: _Running) -> None:
        code = one.process.wait()
        self._remember(one, done=code == 0)
        if code:
            print(*(f"    {line}" for line in _tail(one.log, LOG_LINES)), sep="\n", file=self.screen)
            told = f"ended with exit code {code}, expected 0; its log is {one.log}"
            if not self.keep_going:
                raise UserError(f"stage {one.stage.name} {told}; mend the cause and run the same command to go on")
            self.failed.append(one.stage.name)
            self._say(one.stage, f"FAILED: {told}")
            return
        self._say(one.stage, f"done, {self.memory['stages'][one.stage.name]['seconds']:.0f} s")

    def _tell_time(self, ended: Stage, left: list[Stage]) -> None:
        """How far many stages of one kind have come, and how long the rest takes if they go on like this."""
        alike = [stage for stage in self.stages if stage.command[:2] == ended.command[:2]]
        seconds = [self.memory["stages"][stage.name]["seconds"] for stage in alike if self._done(stage)]
        to_go = [stage for stage in left if stage in alike]
        if len(alike) <= self.slots or not seconds or not to_go:
            return
        spent = sum(self.memory["stages"].get(stage.name, {}).get("seconds", 0.0) for stage in to_go)
        left_s = max(0.0, len(to_go) * sum(seconds) / len(seconds) - spent) / min(self.slots, len(to_go))
        print(f"{len(seconds)} of {len(alike)} done, about {left_s / 60:.0f} min left", file=self.screen, flush=True)

    def _remember(self, one: _Running, done: bool) -> None:
        record = self.memory["stages"][one.stage.name]
        record["seconds"] += time.monotonic() - one.started
        record |= {"done": done, "ended": self._clock()}
        self._save()

    def _clock(self) -> float:
        return self.before + time.monotonic() - self.opened

    def _save(self) -> None:
        self.memory["clock"] = self._clock()
        write_json(self.path, self.memory)

    def _show(self, running: list[_Running]) -> None:
        for one in running:
            said = "".join(_tail(one.log, 1))
            if said != one.said:
                one.said = said
                self._say(one.stage, said[:100])

    def _say(self, stage: Stage, word: str) -> None:
        print(f"{stage.side or 'data':6} {stage.says or stage.name:28} {word}", file=self.screen, flush=True)


def _yamls(path: Path) -> Iterator[Path]:
    """A YAML and those it refers to, relative to itself; nothing where ``path`` is none."""
    if path.suffix == ".yaml" and path.is_file():
        yield path
        for name in re.findall(r"^[^#\n]*?([\w./-]+\.yaml)", path.read_text(), flags=re.M):
            yield from _yamls(path.parent / name)


def _tail(log: Path, lines: int) -> list[str]:
    """The newest lines that a process wrote; what a progress bar overwrote counts as lines of its own."""
    with log.open("rb") as content:
        content.seek(max(0, content.seek(0, os.SEEK_END) - 8000))
        text = content.read().decode(errors="replace")
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]
