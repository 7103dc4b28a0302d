"""The rate law: what is fitted, how sure it is, and what bad results get."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mm1.errors import UserError
from mm1.study import __main__ as door
from mm1.study.lr_grid import COLUMNS, Grid, run_grid
from mm1.study.lr_law import PUBLISHED_INTERCEPT, PUBLISHED_SLOPE, best_rate, fit, lr_law, read_results

SIZES = (9e6, 85e6, 302e6, 1.2e9)  # MM1's grid


def published(size: float) -> float:
    return math.exp(PUBLISHED_SLOPE * math.log(size) + PUBLISHED_INTERCEPT)


def noisy(seed: int, times: int = 3, noise: float = 0.15) -> list[tuple[float, float]]:
    draw = np.random.default_rng(seed)
    return [(size, published(size) * math.exp(draw.normal(0, noise))) for size in SIZES for _ in range(times)]


def test_noisy_points_give_both_published_numbers_back() -> None:
    law = fit(noisy(seed=0))
    assert law.slope_interval[0] < PUBLISHED_SLOPE < law.slope_interval[1]
    assert law.intercept_interval[0] < PUBLISHED_INTERCEPT < law.intercept_interval[1]
    assert law.slope == pytest.approx(PUBLISHED_SLOPE, abs=0.05)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    covered = np.zeros(3)
    for seed in range(500):
        law = fit(noisy(seed))
        another = published(2.9e9) * math.exp(np.random.default_rng(10_000 + seed).normal(0, 0.15))
        covered += [
            law.slope_interval[0] < PUBLISHED_SLOPE < law.slope_interval[1],
            law.intercept_interval[0] < PUBLISHED_INTERCEPT < law.intercept_interval[1],
            law.interval(2.9e9)[0] < another < law.interval(2.9e9)[1],
        ]
    assert (covered >= 450).all(), covered
    assert (covered <= 495).all(), covered


def test_exact_points_give_an_exact_line() -> None:
    law = fit([(size, published(size)) for size in SIZES])
    assert (law.slope, law.intercept) == pytest.approx((PUBLISHED_SLOPE, PUBLISHED_INTERCEPT), abs=1e-9)
    assert law.rate(30e9) == pytest.approx(2.21e-5, rel=0.01)
    assert law.interval(30e9) == pytest.approx((law.rate(30e9),) * 2, rel=1e-6)


def bowl(rates: list[float], bottom: float) -> list[tuple[float, float]]:
    return [(rate, 2 + 0.1 * math.log(rate / bottom) ** 2) for rate in rates]


def test_the_bottom_of_a_parabola_lies_between_the_rates_tried() -> None:
    rate, warning = best_rate(bowl([1e-3 * 2**i for i in range(-3, 4)], bottom=1.3e-3))
    assert rate == pytest.approx(1.3e-3)
    assert warning is None


def test_seeds_of_one_rate_are_averaged() -> None:
    tried = bowl([5e-4, 1e-3, 2e-3], bottom=1e-3)
    noisy_seeds = [(rate, loss + sign * 0.3) for rate, loss in tried for sign in (-1, 1)]
    assert best_rate(noisy_seeds)[0] == pytest.approx(1e-3)


def test_a_best_rate_at_the_edge_is_taken_with_a_warning() -> None:
    rate, warning = best_rate(bowl([1e-3, 2e-3, 4e-3], bottom=2e-2), "N = 5")
    assert rate == 4e-3
    assert warning is not None
    assert "N = 5" in warning
    assert "edge" in warning


def test_losses_without_a_bottom_are_taken_with_a_warning() -> None:
    rate, warning = best_rate([(1e-3, 2.0), (2e-3, 3.0), (4e-3, 1.9), (8e-3, 1.95), (1.6e-2, 1.92)])
    assert rate == 4e-3
    assert warning is not None
    assert "no bottom" in warning


def test_a_grid_is_read_size_by_size_and_diverged_runs_left_out(tmp_path: Path) -> None:
    results = tmp_path / "grid.csv"
    lines = [
        f"{size},{r},{v}"
        for size in SIZES
        for r, v in bowl([published(size) * 2**i for i in (-2, -1, 0, 1, 2)], published(size))
    ]
    results.write_text("\n".join(["n,lr,loss", *lines, "9e6,1,nan", "9e6,2,inf", "9e6,3,"]) + "\n")
    points, warnings = read_results(results)
    assert warnings == []
    assert fit(points).slope == pytest.approx(PUBLISHED_SLOPE, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("size,rate\n1,2\n", "size,rate; expected n,lr"),
        ("", "columns none"),
        ("n,lr\n1e6,fast\n", "line 2: lr is 'fast'"),
        ("n,lr\n1e6,1e-3\n-3,1e-3\n", "line 3: n is '-3'"),
        ("n,lr,loss\n1e6,1e-3,low\n", "loss is 'low'"),
        ("n,lr\n" + "1" * 200_000 + ",1\n", "is no CSV (field larger"),
        ("\x89PNG\n\x1a\n", "expected n,lr or n,lr,loss"),
        ("n,lr\n1e6,1e-3\n2e6,1e-3\n", "2 sizes; expected at least 3"),
    ],
)
def test_wrong_results_are_refused_with_what_was_found(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "results.csv").write_text(content)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        fit(read_results(tmp_path / "results.csv")[0])


def test_missing_results_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="is no file; expected a CSV"):
            read_results(path)


def test_a_spreadsheets_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_bytes("\ufeffn, lr\r\n1e6, 1e-3\r\n".encode())
    assert read_results(tmp_path / "results.csv") == ([(1e6, 1e-3)], [])


def test_a_file_that_no_grid_wrote_is_not_appended_to(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text("n,lr,loss,layers,width,steps\n1e6,1e-3,3.0,two,64,10\n")
    with pytest.raises(UserError, match=r"results\.csv, line 2 is no row of a grid"):
        lr_law(results, out=tmp_path, predict=[1e9], sizes=[(2, 64)], rates=[1e-3], corpus=tmp_path, steps=1)


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0, 0.0])
def test_sizes_that_are_none_are_refused(tmp_path: Path, size: float) -> None:
    with pytest.raises(UserError, match=f"found {size:g}; expected sizes, rates and steps above zero"):
        lr_law(tmp_path / "x.csv", out=tmp_path, predict=[size], sizes=[], rates=[], corpus=None, steps=1)


def test_the_command_predicts_plots_and_writes_what_training_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "points.csv"
    results.write_text("n,lr\n" + "".join(f"{size},{rate}\n" for size, rate in noisy(seed=1)))
    out = tmp_path / "law"
    monkeypatch.setattr(
        "sys.argv", ["mm1-study", "lr-law", str(results), "--out", str(out), "--predict", "2.9e9", "6.4e9"]
    )
    door.main()
    written = yaml.safe_load((out / "law.yaml").read_text())
    law = fit(noisy(seed=1))
    assert (written["slope"], written["intercept"]) == pytest.approx((law.slope, law.intercept))
    assert written["results"] == "points.csv"
    assert (out / "law.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"rate {law.rate(2.9e9):.3g}" in said
    assert f"rate {law.rate(6.4e9):.3g}" in said


def test_a_grid_skips_the_cells_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No cell is missing, so nothing is trained: there is no corpus that could be trained on."""
    results = tmp_path / "grid.csv"
    results.write_text(",".join(COLUMNS) + "\n1000,0.001,2.5,2,64,30\n1000,0.002,2.4,2,64,30\n")
    run_grid(Grid([(2, 64)], [1e-3, 2e-3], tmp_path / "no-corpus", steps=30), results, tmp_path / "runs")
    assert capsys.readouterr().out.count("already in") == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_grid_is_trained_and_appended_cell_by_cell(tmp_path: Path) -> None:
    scenes, corpus, results = tmp_path / "scenes", tmp_path / "corpus", tmp_path / "grid.csv"
    for command in (
        ["scenes", str(scenes), "--worlds", "300"],
        ["tokenizer", "--data", str(scenes), "--out", str(corpus), "--vocabulary", "1024"],
        ["shards", "--data", str(scenes), "--out", str(corpus)],
    ):
        subprocess.run([sys.executable, "-m", "data_pipelines", *command], check=True, capture_output=True)
    run_grid(Grid([(1, 64), (2, 64)], [1e-3], corpus, steps=2), results, tmp_path / "runs")
    small, large = results.read_text().splitlines()[1:]
    assert float(small.split(",")[0]) < float(large.split(",")[0]) < 200_000
    assert all(5 < float(row.split(",")[2]) < 9 for row in (small, large))
    run_grid(Grid([(1, 64), (2, 64)], [1e-3], corpus, steps=2), results, tmp_path / "runs")
    assert len(results.read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_failing_run_of_a_grid_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.txt"):
        run_grid(Grid([(2, 64)], [1e-3], tmp_path / "no-corpus", steps=2), tmp_path / "grid.csv", tmp_path / "runs")
    assert not (tmp_path / "grid.csv").exists()


def test_a_grid_resizes_only_the_decoder(tmp_path: Path) -> None:
    grid = Grid([], [], tmp_path, 1)
    before, after = yaml.safe_load(grid.model.read_text())["init_args"], grid.resized(6, 192)["init_args"]
    old, new = before.pop("decoder")["init_args"], after.pop("decoder")["init_args"]
    assert before == after
    assert (new["layers"], new["width"], new["heads"]) == (6, 192, 192 * old["heads"] // old["width"])
    assert new["ffn_width"] / new["width"] == pytest.approx(old["ffn_width"] / old["width"], abs=0.03)
    assert new["vocabulary"] == old["vocabulary"]
    with pytest.raises(UserError, match="multiple of 32"):
        grid.resized(6, 100)


def test_a_grid_needs_rates_and_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rates or --corpus"):
        lr_law(tmp_path / "x.csv", out=tmp_path, predict=[1e9], sizes=[(2, 64)], rates=[], corpus=None, steps=1)


def test_shapes_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ("4by64", "4", "0x64"):
        monkeypatch.setattr("sys.argv", ["mm1-study", "lr-law", "x.csv", "--sizes", shape])
        with pytest.raises(SystemExit, match="2"):
            door.main()
        assert f"'{shape}'; expected layers x width, such as 4x64" in capsys.readouterr().err
