"""Two runs beside each other: what differs, whether the batches were the same, losses at equal budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mm1.errors import UserError
from mm1.runs import Run
from mm1.study.compare import Trained, at_equal, differences, order, sides, sources
from tests.mm1.study.made_up import config, make_run


def two(tmp_path: Path) -> tuple[Run, Run]:
    runs = Run(tmp_path / "a"), Run(tmp_path / "b")
    for run in runs:
        run.start("pretrain")
        run.config.write_text(yaml.safe_dump(config()))
    return runs


def read(*runs: Run) -> tuple[Trained, ...]:
    return tuple(Trained.read(run.folder) for run in runs)


def test_loss_is_read_where_the_one_that_spent_less_stopped(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for step, loss_a, loss_b in ((0, 8.0, 8.0), (10, 4.0, 3.0), (20, 2.0, 1.0)):
        a.log("val", step, positions=step * 100, flops=step * 1e9, time_s=step * 1.0, loss=loss_a)
        b.log("val", step, positions=step * 100, flops=step * 2e9, time_s=step * 4.0, loss=loss_b)
    positions, flops, seconds = at_equal(*read(a, b))
    assert positions == {"budget": "positions", "spent": 2000, "a": 2.0, "b": 1.0}
    assert flops == {"budget": "FLOPs", "spent": 20e9, "a": 2.0, "b": 3.0}  # b was there at its step 10
    assert seconds == {"budget": "seconds", "spent": 20.0, "a": 2.0, "b": 5.5}  # at its step 5, half-way from 8 to 3


def test_runs_without_a_held_out_loss_have_no_row(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for run in (a, b):
        run.log("train", 1, positions=10, flops=1.0, time_s=1.0, loss=3.0)
    assert at_equal(*read(a, b)) == []


def test_twins_saw_the_same_batches(pair: tuple[Run, Run]) -> None:
    seen = order(*read(*pair))
    assert seen.same
    assert seen.checked == 41
    assert list(differences(*read(*pair))) == ["model.model.decoder.moe.experts"]


def test_workers_do_not_change_the_order(pair: tuple[Run, Run]) -> None:
    changed = config(moe={"experts": 8})
    changed["data"]["workers"] = 4
    pair[1].config.write_text(yaml.safe_dump(changed))
    assert order(*read(*pair)).same


def test_another_seed_is_named(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", moe=False), make_run(tmp_path / "b", moe=True, seed=1)
    seen = order(*read(a, b))
    assert not seen.same
    assert seen.differing == {"data.seed": (0, 1)}


def test_positions_that_part_are_found_though_the_settings_agree(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for step in (1, 2, 3):
        a.log("train", step, positions=step * 100, flops=1.0, time_s=1.0)
        b.log("train", step, positions=step * 100 + (step == 3), flops=1.0, time_s=1.0)
    seen = order(*read(a, b))
    assert (seen.same, seen.parted) == (False, 3)


def test_runs_that_logged_no_common_step_prove_nothing(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    a.log("train", 1, positions=100, flops=1.0, time_s=1.0)
    b.log("train", 2, positions=200, flops=1.0, time_s=1.0)
    assert not order(*read(a, b)).same


def test_sources_come_in_the_order_they_were_logged(pair: tuple[Run, Run]) -> None:
    assert sources(*read(*pair)) == ["captions", "interleaved", "text"]


def test_sides_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("monday", "tuesday"):
        make_run(tmp_path / parent / "moe", moe=True, steps=20)
    a, b = sides(tmp_path / "monday" / "moe", tmp_path / "tuesday" / "moe")
    assert (a.name, b.name) == ("monday/moe", "tuesday/moe")


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    with pytest.raises(UserError, match="holds no metrics"):
        Trained.read(a.folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder"):
        Trained.read(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a run folder"):
        Trained.read(tmp_path / "file")


def test_files_of_a_run_that_are_not_what_they_should_be_are_named(pair: tuple[Run, Run]) -> None:
    run = pair[0]
    scores = next(run.folder.glob("eval/*/scores.json"))
    for content, told in (("{}", "has no tasks"), ("[]", "holds a list, no object"), ("{", "is not readable as JSON")):
        scores.write_text(content)
        with pytest.raises(UserError, match=rf"scores\.json {told}.*; expected scores written by mm1-eval"):
            Trained.read(run.folder)
    run.config.write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is not YAML"):
        Trained.read(run.folder)


def test_nothing_is_said_of_a_budget_before_the_first_evaluation(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    a.log("val", 10, positions=1000, flops=1e9, time_s=1.0, loss=3.0)
    b.log("val", 10, positions=1000, flops=5e9, time_s=1.0, loss=2.0)
    assert [row["budget"] for row in at_equal(*read(a, b))] == ["positions", "seconds"]
