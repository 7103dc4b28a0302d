"""Routers in one table and claims over seeds: what is trained, how run folders are read, what is told of them."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm1.errors import UserError
from mm1.model.build import build
from mm1.runs import Run
from mm1.study import arms as arms_module
from mm1.study import routers as routers_module
from mm1.study.__main__ import parser
from mm1.study.arms import ABLATIONS, DENSE, RECIPE, SPARSE, Arm, Setting
from mm1.study.claims import CLAIMS, judge, told, verdict
from mm1.study.claims import write_csv as write_claims
from mm1.study.outcomes import over_seeds, read
from mm1.study.routers import arms, draw, looks_ahead, markdown, routers, row, write_csv

EVEN = [1 / 8] * 8
PLAIN = Arm("plain", SPARSE)


def made(run: Run, load: list[float] | None = None, *, finished: bool = True, loss: float = 2.5, **gauges: Any) -> Run:
    """A run of 100 steps as training leaves it, with this load in its second sparse layer at the end."""
    run.start("pretrain")
    run.update(finished=finished, device="cpu", parameters={"total": 2_154_192, "active": 1_269_456})
    for step in range(10, 101, 10):
        spent = {"time_s": 5 + step * 0.1, "positions": 1000 * step, "flops": 6e6 * step * 1000}
        run.log("train", step, **spent, loss=3.0, positions_per_s=9999.0)
        if load:
            loads = [EVEN, load if step > 80 else [1.0, *[0.0] * 7]]
            numbers = {"dropped": 0.0, "covered": 1.0, "entropy": 1.0, "z": 4.0, "visited": 2.0} | gauges
            run.log("experts", step, **spent, steps=10, load=loads, **{name: [v, v] for name, v in numbers.items()})
    run.log("val", 100, **spent, loss=loss)
    return run


def setting(out: Path, **options: Any) -> Setting:
    return Setting(out, **{"steps": 100, **options})


def test_numbers_are_those_of_the_end_in_the_worst_layer(tmp_path: Path) -> None:
    load = [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0]
    found = read(made(Run(tmp_path), load, dropped=0.05, entropy=1.039720770839918))
    assert found.max_load == pytest.approx(2.4)
    assert found.dead == 1
    assert found.used == 7.5
    assert found.drop_rate == pytest.approx(0.05)
    assert found.entropy == pytest.approx(0.5)
    assert found.positions_per_s == pytest.approx(10_000)
    assert found.flops_per_position == pytest.approx(6e6)
    assert (found.loss, found.active, found.total) == (2.5, 1_269_456, 2_154_192)


def test_a_dense_model_has_no_load(tmp_path: Path) -> None:
    found = read(made(Run(tmp_path)))
    assert found.max_load is found.z is found.coverage is None
    assert over_seeds([found, found]) == found


def test_an_unfinished_run_has_no_outcome(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finished"):
        read(made(Run(tmp_path), EVEN, finished=False))


def test_a_row_is_the_mean_over_seeds_and_says_what_failed(tmp_path: Path) -> None:
    of = setting(tmp_path, seeds=(0, 1, 2))
    made(of.run(PLAIN, 0), EVEN, loss=2.0)
    made(of.run(PLAIN, 1), EVEN, loss=3.0)
    made(of.run(PLAIN, 2), EVEN, finished=False)
    broken = Arm("broken", SPARSE)
    made(of.run(broken, 0), EVEN, finished=False).update(diverged=True)
    dense = Arm("dense", DENSE)
    made(of.run(dense, 0))
    rows = [row(of, arm) for arm in (PLAIN, broken, dense)]
    lines = markdown(rows).splitlines()
    assert lines[2].startswith(
        "| plain (1 of 3 failed) | 2.500 | 1.00 | 0 | 0.0 % | 100.0 % | 0.48 | 4.00 | 2.00 | 10,0"
    )
    assert lines[3].startswith("| broken (diverged) | – |")
    assert lines[4].endswith("| – | – | – | – | – | – | – | 10,000 | 1.27 M | 2.15 M |")
    write_csv(rows, of, tmp_path / "routers.csv")
    with (tmp_path / "routers.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(line["router"], line["seeds"], line["loss"]) for line in table] == [
        ("plain", "2", "2.5"),
        ("broken", "0", ""),
        ("dense", "1", "2.5"),
    ]
    draw(rows, tmp_path / "routers.png")
    assert (tmp_path / "routers.png").read_bytes().startswith(b"\x89PNG")


def test_every_router_with_a_yaml_is_an_arm() -> None:
    names = [arm.name for arm in arms()]
    assert names[:2] == ["dense", "plain"]
    assert {"switch", "gshard", "expert-choice"} <= set(names)
    assert all(arm.model.is_file() for arm in arms())


@pytest.mark.parametrize(("name", "ahead"), [("gshard", False), ("expert-choice", False), ("st-moe", True)])
def test_a_capacity_in_evaluation_looks_ahead(name: str, ahead: bool) -> None:
    assert looks_ahead(ABLATIONS / f"router-{name}.yaml") is ahead


def test_arms_of_the_claims_build_and_one_name_is_one_arm(tmp_path: Path) -> None:
    named: dict[str, Arm] = {}
    for claim in CLAIMS.values():
        for tested in claim.tested:
            assert named.setdefault(tested.arm.name, tested.arm) == tested.arm
    for arm in named.values():
        assert arm.model.is_file()
        if arm.moe:
            build(yaml.safe_load(arm.recipe(tmp_path).read_text())["model"]["model"])


def test_an_arm_trains_its_own_layer_and_nothing_of_the_recipes(tmp_path: Path) -> None:
    plain = yaml.safe_load(RECIPE.read_text())
    recipe = yaml.safe_load(Arm("dense", DENSE).recipe(tmp_path).read_text())
    assert recipe["model"].pop("model") == str(DENSE)
    assert recipe.pop("model") == {"optimizer": plain.pop("model")["optimizer"]}
    assert recipe == plain
    off = yaml.safe_load(Arm("off", SPARSE, {"balance_weight": 0.0}).recipe(tmp_path).read_text())["model"]["model"]
    moe = off["init_args"]["decoder"]["init_args"]["moe"]["init_args"]
    assert moe == {"experts": 8, "top_k": 2, "balance_weight": 0.0, "z_weight": 0.001}


@pytest.mark.parametrize(
    ("collapsed", "balanced", "expected"),
    [
        ([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], EVEN, "holds"),
        ([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0], EVEN, "holds"),
        ([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], EVEN, "does not hold"),
        ([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], [0.2, *[0.8 / 7] * 7], "does not hold"),
    ],
)
def test_balance_is_judged_by_load(
    tmp_path: Path, collapsed: list[float], balanced: list[float], expected: str
) -> None:
    of = setting(tmp_path)
    for tested in CLAIMS["balance"].tested:
        made(of.run(tested.arm, 0), collapsed if tested.arm.name == "unbalanced" else balanced)
    assert verdict(judge(of, "balance")) == expected


@pytest.mark.parametrize(
    ("dropped", "covered", "expected"),
    [(0.05, 0.99, "holds"), (0.2, 0.99, "does not hold"), (0.0, 0.8, "does not hold")],
)
def test_a_capacity_is_judged_by_what_it_drops(tmp_path: Path, dropped: float, covered: float, expected: str) -> None:
    of = setting(tmp_path)
    for tested in CLAIMS["balance"].tested:
        uneven = tested.arm.name in ("unbalanced", "capacity", "expert-choice")
        numbers = {"dropped": dropped, "covered": covered} if tested.arm.name == "capacity" else {}
        made(of.run(tested.arm, 0), [0.4, *[0.6 / 7] * 7] if uneven else EVEN, **numbers)
    assert verdict(judge(of, "balance")) == expected


def test_the_z_loss_is_judged_by_seed_and_only_at_equal_loss(tmp_path: Path) -> None:
    of = setting(tmp_path, seeds=(0, 1))
    without, plain = (tested.arm for tested in CLAIMS["z"].tested)
    for seed in of.seeds:
        made(of.run(without, seed), EVEN, z=6.0, loss=2.5)
    made(of.run(plain, 0), EVEN, z=2.0, loss=2.52)
    assert verdict(judge(of, "z")) == "not decided"
    made(of.run(plain, 1), EVEN, z=1.0, loss=2.53)
    lines = judge(of, "z")
    assert verdict(lines) == "does not hold"
    assert [line.holds for line in lines if line.tested.arm is plain] == [True, False]
    text = told("z", lines)
    assert text.startswith("**z: does not hold.** The z-loss keeps")
    assert "| plain | 2.00, 1.00 | 2.520, 2.530 | z at most 1/3, loss within 1% | does not hold |" in text
    write_claims(lines, 100, tmp_path / "claims.csv")
    with (tmp_path / "claims.csv").open() as file:
        holds = [(line["arm"], line["seed"], line["holds"]) for line in csv.DictReader(file)]
    assert holds == [("without-z", "0", ""), ("plain", "0", "1"), ("without-z", "1", ""), ("plain", "1", "0")]


def test_more_experts_count_only_at_equal_cost(tmp_path: Path) -> None:
    of = setting(tmp_path)
    plain, heads = (tested.arm for tested in CLAIMS["heads"].tested)
    made(of.run(plain, 0), EVEN)
    run = made(of.run(heads, 0), EVEN, visited=3.7)
    assert verdict(judge(of, "heads")) == "holds"
    lines = [line | {"flops": line["flops"] * 1.2} for line in run.history()]
    run.metrics.unlink()
    for line in lines:
        run.log(line.pop("split"), line.pop("step"), **line)
    assert verdict(judge(of, "heads")) == "does not hold"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": 0}, "--steps is 0; expected at least 1"),
        ({"jobs": 0}, "--jobs is 0; expected at least 1"),
        ({"worlds": 0}, "--worlds is 0; expected at least 1"),
        ({"seeds": (-1,)}, "--seeds is -1; expected at least 0"),
        ({"seeds": (0, 1, 0)}, "--seeds is 0 1 0; expected each seed once"),
        ({"device": "abacus"}, "--device is abacus; expected cpu or cuda"),
        ({"corpus": Path("nowhere")}, "--corpus is nowhere, which holds no manifest.json"),
        ({"only": ["plain", "crystal-ball"]}, "--only names 'crystal-ball'; expected some of dense, plain"),
    ],
)
def test_wrong_options_are_told_before_anything_is_made(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        routers(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_the_functions_do() -> None:
    for words, seeds in ((["routers"], [0]), (["claims"], [0, 1, 2])):
        options = vars(parser().parse_args(words))
        defaults = {field.name: field.default for field in dataclasses.fields(Setting) if field.name in options}
        assert options.items() >= (defaults | {"out": Path("runs") / words[0], "seeds": seeds, "jobs": 2}).items()


@pytest.mark.slow
def test_real_runs_make_the_table_and_a_broken_router_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "ablations", tmp_path / "out"
    folder.mkdir()
    model = yaml.safe_load(SPARSE.read_text())
    moe = model["init_args"]["decoder"]["init_args"]["moe"]["init_args"]
    for name, top_k in (("one", 1), ("greedy", 9)):
        moe["top_k"] = top_k
        (folder / f"router-{name}.yaml").write_text(yaml.safe_dump(model))
    for module in (arms_module, routers_module):
        monkeypatch.setattr(module, "ABLATIONS", folder)

    def study() -> None:
        routers(out, worlds=300, steps=4, jobs=2, only=["dense", "one", "greedy"])

    with pytest.raises(UserError, match="1 of 3 runs failed: greedy-0; their logs are in"):
        study()
    text = (out / "routers.md").read_text()
    names = [line.split(" |")[0] for line in text.splitlines()[2:5]]
    assert names == ["| dense", "| greedy (failed)", "| one"]
    assert "4 steps" in text
    assert "scenes (300 worlds); seed 0; 3 runs, 2 at a time on cpu" in text
    dense, one = read(Run(out / "runs" / "dense-0")), read(Run(out / "runs" / "one-0"))
    assert dense.max_load is None
    assert dense.total < one.total
    assert one.visited == 1
    assert one.max_load is not None
    assert 1 <= one.max_load <= 8
    (folder / "router-greedy.yaml").unlink()
    capsys.readouterr()
    routers(out, worlds=300, steps=4, jobs=2, only=["dense", "one"])
    said = capsys.readouterr().out
    assert said.count("done before") == 5  # corpus and both
