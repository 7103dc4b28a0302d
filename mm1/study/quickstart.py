"""The main job: from raw pictures and text to a few-shot report, a dense model beside its MoE twin, on a laptop.

Every step is a door started as a process, the same that a big run uses. The two models run side by side.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from mm1.errors import UserError
from mm1.runs import Run, read_json
from mm1.study.compare import Side, Trained
from mm1.study.report import render
from mm1.study.stages import Stage, Stages

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BAR_POINTS, BAR_QUESTIONS = 20.0, 400


def quickstart(
    data: Path | None = None,
    out: Path = Path("runs/quickstart"),
    *,
    worlds: int = 2000,
    assert_bar: bool = False,
) -> None:
    """Run the main job to its report; run it again to go on where it stopped.

    Args:
        data: Raw corpus in the layout of docs/data.md; the generated world "scenes" if not given.
        out: Folder for corpus, runs, logs and report.html.
        worlds: How many worlds scenes draws, without --data.
        assert_bar: Fail unless both models answer at least 400 unseen questions 20 points better with the right
            picture than blind or from the question alone.

    Raises:
        UserError: A stage failed, or the bar was not reached.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"--data is {data}, which is no folder; expected a corpus laid out as docs/data.md says")
    if not CONFIGS.is_dir():
        raise UserError(
            f"{CONFIGS} does not exist; the quickstart reads its YAMLs from a checkout, install with --editable"
        )
    slots = min(2, os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // slots)
    Stages(out, stages(data, out, worlds), slots=slots, threads=threads).run()
    page = report(out, data)
    if assert_bar:
        check_bar(out)
    print(page.resolve())


def stages(data: Path | None, out: Path, worlds: int) -> list[Stage]:
    """The job as a list; of the stages that could start, the first does, so the two models run side by side."""
    raw, corpus = data or out / "scenes", out / "corpus"
    models = ("dense", "moe")
    base = {side: Run(out / side) for side in models}
    chat = {side: Run(out / f"{side}-chat") for side in models}
    job = []
    if data is None:
        scenes = ("data_pipelines", "scenes", str(raw), "--worlds", str(worlds), "--seed", "0")
        job += [Stage("scenes", scenes, says="draw the generated world", writes=(raw,))]
    given = ("--data", str(raw), "--out", str(corpus))
    tokenizer = ("data_pipelines", "tokenizer", *given, "--vocabulary", "2048")
    rows = ("--row-tokens", "512", "--tokens-per-image", "16", "--images-per-row", "16", "--image-px", "64")
    job += [
        Stage(
            "tokenizer",
            tokenizer,
            after=tuple(stage.name for stage in job),
            says="train the tokenizer",
            writes=(corpus,),
        ),
        Stage("shards", ("data_pipelines", "shards", *given, *rows), after=("tokenizer",), says="write shards"),
    ]
    job += [_train(f"{m}-pretrain", m, "tiny_pretrain", base[m], corpus, after="shards") for m in models]
    job += [_train(f"{m}-sft", m, "tiny_sft", chat[m], corpus, after=f"{m}-pretrain", start=base[m]) for m in models]
    job += [_score(f"{m}-fewshot", m, "fewshot", base[m], raw, after=f"{m}-pretrain") for m in models]
    job += [_score(f"{m}-chat", m, "chat", chat[m], raw, after=f"{m}-sft") for m in models]
    return job


def _train(name: str, side: str, recipe: str, run: Run, corpus: Path, after: str, start: Run | None = None) -> Stage:
    model = {"dense": "tiny", "moe": "tiny_moe"}[side]
    command = ["mm1.train", "fit", "--config", str(CONFIGS / "train" / f"{recipe}.yaml")]
    command += ["--model.model", str(CONFIGS / "model" / f"{model}.yaml")]
    command += ["--run", str(run.folder), "--data.corpus", str(corpus)]
    if start is not None:
        command += ["--init-from", str(start.last)]
    says = "pre-train" if start is None else "instruction-tune"
    return Stage(name, tuple(command), (after,), side, says, (run.folder,), partial(_progress, run))


def _progress(run: Run) -> str:
    """Where a training run is, in a few words."""
    lines = run.history("train")
    return f"step {lines[-1]['step']}, loss {lines[-1]['loss']:.3f}" if lines else ""


def _score(name: str, side: str, config: str, run: Run, raw: Path, after: str) -> Stage:
    out = run.folder / "eval" / config
    settings = CONFIGS / "eval" / f"{config}.yaml"
    command = ("eval", "run", str(run.last), "--data", str(raw), "--config", str(settings), "--out", str(out))
    says = "score, 0/4/8 shots" if config == "fewshot" else "score after tuning"
    return Stage(name, command, (after,), side, says, (out,))


def report(out: Path, data: Path | None) -> Path:
    """Write report.html from what the stages left in ``out``."""
    names = {"dense": "Dense", "moe": "MoE"}
    sides = tuple(
        Side(
            key,
            names[m],
            (Trained.read(out / m, "pre-training"), Trained.read(out / f"{m}-chat", "instruction tuning")),
        )
        for key, m in (("a", "dense"), ("b", "moe"))
    )
    about = (
        "Trained and scored on scenes, a generated world of drawn pictures; its test worlds were never trained on."
        if data is None
        else f"Trained and scored on the data in {data.resolve().name}, apart from what it marks as held out or scored."
    )
    return render(
        (sides[0], sides[1]),
        out / "report.html",
        title="Dense beside MoE",
        data=about,
        phases=read_json(out / "phases.json", "the times of the stages"),
        corpus=read_json(out / "corpus" / "manifest.json", "a corpus written by mm1-data shards"),
        beside=(os.cpu_count() or 1) > 1,
    )


def check_bar(out: Path) -> None:
    """Hold both models to the bar of the main job.

    Raises:
        UserError: What was reached, and what was expected.
    """
    for model in ("dense", "moe"):
        tasks = Run(out / f"{model}-chat").scores()["chat"]["tasks"]
        vqa = [task for task in tasks.values() if task["metric"] == "vqa_accuracy" and task["n"] >= BAR_QUESTIONS]
        if not vqa:
            raise UserError(
                f"{model}: no VQA task with {BAR_QUESTIONS} questions was scored; expected one (--assert-bar)"
            )
        score = vqa[0]["shots"]["0"]
        margin = score["sighted"] - max(score["blind"], vqa[0]["question_only"])
        if margin < BAR_POINTS:
            raise UserError(
                f"{model}: {score['sighted']:.1f} % with the right picture is {margin:.1f} points over the higher of "
                f"blind arm and question-only baseline; expected at least {BAR_POINTS:.0f} (--assert-bar)"
            )
        print(
            f"{model}: {margin:.1f} points over the higher of blind arm and question-only baseline, n = {vqa[0]['n']}"
        )
