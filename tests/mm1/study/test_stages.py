"""Stages with real processes: order, parallel runs, memory, failure, and what a changed command does."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from mm1.errors import UserError
from mm1.study.stages import Stage, Stages

STEP = """
import pathlib, sys, time
trace, action, name = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with trace.open("a") as lines:
    lines.write(name + "\\n")
print("step", name, "\\rspeaks", flush=True)
if action == "fail" and not trace.with_name("mended").exists():
    print("the cause of it")
    sys.exit(3)
if action == "meet":  # ends only while its partner runs too
    trace.with_name(name).touch()
    until = time.monotonic() + 20
    while not trace.with_name(sys.argv[4]).exists():
        if time.monotonic() > until:
            sys.exit(4)
        time.sleep(0.02)
if action == "sleep":
    time.sleep(60)
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "step.py").write_text(STEP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return tmp_path / "trace"


def stage(
    trace: Path, name: str, *after: str, action: str = "end", partner: str = "", writes: tuple[Path, ...] = ()
) -> Stage:
    return Stage(name, ("step", str(trace), action, name, partner), after, writes=writes)


def run(trace: Path, *stages: Stage, slots: int = 1) -> str:
    screen = io.StringIO()
    Stages(trace.parent / "out", stages, slots=slots, screen=screen).run()
    return screen.getvalue()


def test_stages_run_in_order_once_and_are_remembered(trace: Path) -> None:
    job = [stage(trace, "one"), stage(trace, "two", "one"), stage(trace, "three", "two")]
    run(trace, *job)
    said = run(trace, *job)
    assert trace.read_text().split() == ["one", "two", "three"]
    assert said.count("done before") == 3
    memory = json.loads((trace.parent / "out" / "phases.json").read_text())["stages"]
    assert [record["done"] for record in memory.values()] == [True] * 3
    assert all(record["seconds"] > 0 for record in memory.values())
    times = [(record["began"], record["ended"]) for record in memory.values()]
    assert times == sorted(times)
    assert "step two" in (trace.parent / "out" / "logs" / "two.log").read_text()


def test_two_stages_run_side_by_side_where_there_are_slots(trace: Path) -> None:
    run(
        trace,
        stage(trace, "one", action="meet", partner="two"),
        stage(trace, "two", action="meet", partner="one"),
        slots=2,
    )


def test_a_changed_command_runs_again_from_a_clean_folder_and_so_does_what_follows(trace: Path) -> None:
    folder = trace.parent / "folder"
    first, other = stage(trace, "one", writes=(folder,)), stage(trace, "other")
    run(trace, first, other, stage(trace, "two", "one"))
    folder.mkdir()
    (folder / "stale").touch()
    changed = Stage("one", (*first.command, "changed"), writes=(folder,))
    run(trace, changed, other, stage(trace, "two", "one"))
    assert trace.read_text().split() == ["one", "other", "two", "one", "two"]
    assert not folder.exists()


def test_a_changed_yaml_runs_its_stage_again(trace: Path) -> None:
    settings, model = trace.parent / "settings.yaml", trace.parent / "model" / "tiny.yaml"
    model.parent.mkdir()
    settings.write_text("# like other.yaml\nmodel: model/tiny.yaml\n")
    model.write_text("width: 64")
    job = Stage("one", ("step", str(trace), "end", "one", str(settings)))
    run(trace, job)
    model.write_text("width: 96")
    run(trace, job)
    settings.write_text("model: model/tiny.yaml\nsteps: 2\n")
    run(trace, job)
    run(trace, job)
    assert trace.read_text().split() == ["one"] * 3


def test_a_failed_stage_shows_its_log_and_is_gone_on_with_in_its_folder(trace: Path) -> None:
    folder = trace.parent / "folder"
    job = [
        stage(trace, "one"),
        stage(trace, "two", "one", action="fail", writes=(folder,)),
        stage(trace, "three", "two"),
    ]
    screen = io.StringIO()
    with pytest.raises(UserError, match=r"stage two ended with exit code 3.*two\.log"):
        Stages(trace.parent / "out", job, screen=screen).run()
    assert "the cause of it" in screen.getvalue()
    folder.mkdir()
    (folder / "checkpoint").touch()
    trace.with_name("mended").touch()
    assert "goes on" in run(trace, *job)
    assert trace.read_text().split() == ["one", "two", "two", "three"]
    assert (folder / "checkpoint").exists()
    two = json.loads((trace.parent / "out" / "phases.json").read_text())["stages"]["two"]
    assert two["ended"] - two["began"] >= two["seconds"] - 0.2  # both attempts, and the clock stood still between them


def test_a_memory_that_is_none_is_told(trace: Path) -> None:
    (trace.parent / "out").mkdir(exist_ok=True)
    (trace.parent / "out" / "phases.json").write_text("[]")
    with pytest.raises(UserError, match=r"phases\.json holds a list, no object; expected the memory of an earlier run"):
        Stages(trace.parent / "out", [stage(trace, "one")])


def test_a_failure_stops_what_runs_beside_it(trace: Path) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="stage two"):
        run(trace, stage(trace, "one", action="sleep"), stage(trace, "two", action="fail"), slots=2)
    assert time.monotonic() - started < 30
    memory = json.loads((trace.parent / "out" / "phases.json").read_text())["stages"]
    assert not memory["one"]["done"]
    assert not memory["two"]["done"]


def test_progress_is_the_newest_line_of_a_stage(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm1.study.stages.SHOW_EVERY_S", 0.2)
    wait = Stage("wait", ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(1)"), says="waits")
    late = stage(trace, "two", "wait", action="meet", partner="one")
    said = run(trace, stage(trace, "one", action="meet", partner="two"), wait, late, slots=2)
    assert "speaks" in said
    assert "waits" in said


def test_a_failure_of_one_of_many_is_named_and_does_not_lose_the_others(trace: Path) -> None:
    job = [
        stage(trace, "one", action="fail"),
        stage(trace, "two", "one"),
        stage(trace, "three", "two"),
        stage(trace, "four"),
    ]
    screen = io.StringIO()
    failed = Stages(trace.parent / "out", job, keep_going=True, screen=screen).run()
    assert failed == ["one", "two", "three"]
    assert trace.read_text().split() == ["one", "four"]
    assert "one                          FAILED: ended with exit code 3, expected 0; its log is" in screen.getvalue()
    trace.with_name("mended").touch()
    assert Stages(trace.parent / "out", job, keep_going=True, screen=screen).run() == []
    assert trace.read_text().split() == ["one", "four", "one", "two", "three"]


def test_many_stages_of_a_kind_tell_how_long_the_rest_takes(trace: Path) -> None:
    said = run(trace, *(stage(trace, name) for name in ("one", "two", "three")))
    assert "1 of 3 done, about 0 min left" in said
    assert "3 of 3" not in said
