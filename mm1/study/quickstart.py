"""The main job: from raw pictures and text to a few-shot report, a dense model beside its MoE twin, on a laptop.

Every step is a door started as a process, the same that a big run uses. The two models run side by side.
"""

from __future__ import annotations

import os
from pathlib import Path

from mm1.errors import UserError
from mm1.runs import Run, read_json
from mm1.study.chapters import main_task
from mm1.study.compare import Side, Trained
from mm1.study.report import render
from mm1.study.stages import Stage, Stages

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = {"dense": "tiny", "moe": "tiny_moe"}
NAMES = {"dense": "Dense", "moe": "MoE"}
WORLDS = 6000
BAR_POINTS, BAR_QUESTIONS = 20.0, 400


def quickstart(
    data: Path | None = None,
    out: Path = Path("runs/quickstart"),
    *,
    worlds: int = WORLDS,
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
    """The job as a list; of the stages that could start the first does, so that the two models run side by side."""
    raw, corpus = data or out / "scenes", out / "corpus"
    asked = "chat" if data is None else "chat_llava"
    job = corpus_stages(data, out, worlds)
    of_each = [_of_model(name, base, chat, raw, corpus, asked) for name, base, chat in models(out)]
    return job + [stage for side_by_side in zip(*of_each, strict=True) for stage in side_by_side]


def corpus_stages(data: Path | None, out: Path, worlds: int) -> list[Stage]:
    """From raw data, or none, to ``out / "corpus"`` for the tiny models; the last stage is ``shards``."""
    raw, corpus = data or out / "scenes", out / "corpus"
    rows = {"row_tokens": 512, "images_per_row": 16, "tokens_per_image": 16, "image_px": 64}  # as configs/model/tiny
    draw = door("data_pipelines", "scenes", raw, worlds=worlds, seed=0)
    spell = door(
        "data_pipelines", "tokenizer", data=raw, out=corpus, vocabulary=2048 if data else 1024
    )  # scenes has few words
    write = door("data_pipelines", "shards", data=raw, out=corpus, **rows)
    job = [] if data else [Stage("scenes", draw, says="draw the generated world", writes=(raw,))]
    drawn = tuple(stage.name for stage in job)
    job += [
        Stage("tokenizer", spell, after=drawn, says="train a tokenizer", writes=(corpus,)),
        Stage("shards", write, after=("tokenizer",), says="write shards"),
    ]
    return job


def _of_model(name: str, base: Run, chat: Run, raw: Path, corpus: Path, asked: str) -> list[Stage]:
    on = {"data.corpus": corpus}
    pretrain, tune = (
        fit(f"{MODELS[name]}_pretrain", base, on),
        fit(f"{MODELS[name]}_sft", chat, on | {"init_from": base.last}),
    )
    fewshot, answer = score("fewshot", base, raw), score(asked, chat, raw, shots=[0])
    return [
        Stage(f"{name}-pretrain", pretrain, ("shards",), name, "pre-train", (base.folder,)),
        Stage(f"{name}-sft", tune, (f"{name}-pretrain",), name, "instruction-tune", (chat.folder,)),
        Stage(f"{name}-fewshot", fewshot, (f"{name}-pretrain",), name, "score 0, 4, 8 shots"),
        Stage(f"{name}-chat", answer, (f"{name}-sft",), name, "score after tuning"),
    ]


def door(module: str, command: str, *given: object, **options: object) -> tuple[str, ...]:
    """The words after ``python -m`` of a door's command line."""
    named = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return (module, command, *map(str, given), *named)


def fit(recipe: str, run: Run, options: dict[str, Path]) -> tuple[str, ...]:
    """Training by ``configs/train/<recipe>.yaml`` into ``run``."""
    return door("mm1.train", "fit", config=CONFIGS / "train" / f"{recipe}.yaml", run=run.folder, **options)


def score(settings: str, run: Run, raw: Path, **options: object) -> tuple[str, ...]:
    """Scoring of the newest checkpoint of ``run`` by ``configs/eval/<settings>.yaml``."""
    where = {"data": raw, "config": CONFIGS / "eval" / f"{settings}.yaml", "out": run.folder / "eval" / settings}
    return door("eval", "run", run.last, **where, **options)


def models(out: Path) -> list[tuple[str, Run, Run]]:
    """Name, pre-training run and instruction-tuning run of both models."""
    return [(name, Run(out / name), Run(out / f"{name}-chat")) for name in MODELS]


def report(out: Path, data: Path | None) -> Path:
    """Write report.html from what the stages left in ``out``."""
    a, b = (
        Side(key, NAMES[name], (Trained.read(base.folder), Trained.read(chat.folder)))
        for key, (name, base, chat) in zip("ab", models(out), strict=True)
    )
    about = "Trained and scored on scenes, a generated world of drawn pictures; its test worlds were never trained on."
    if data:
        about = (
            f"Trained and scored on the folder “{data.resolve().name}”; what it holds out or scores was not trained on."
        )
    return render(
        (a, b),
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
    for model, _, chat in models(out):
        main = main_task(Trained.read(chat.folder))
        n, task = (main[2]["n"], main[2]) if main else (0, {})
        if n < BAR_QUESTIONS:
            raise UserError(f"{model} was scored on {n} questions; expected at least {BAR_QUESTIONS} (--assert-bar)")
        score = task["shots"]["0"]
        margin = score["sighted"] - max(score["blind"], task["question_only"] or 0.0)
        if margin < BAR_POINTS:
            raise UserError(
                f"{model}: {score['sighted']:.1f} % with the right picture is {margin:.1f} points over the higher of "
                f"blind arm and question-only baseline; expected at least {BAR_POINTS:.0f} (--assert-bar)"
            )
        print(f"{model}: {margin:.1f} points over the higher of blind arm and question-only baseline, n = {n}")
