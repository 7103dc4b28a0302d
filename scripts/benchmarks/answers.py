"""A trained model's captions by our engine beside transformers' ``generate`` on its decoder: who says the same.

Random weights have no opinions (:mod:`benchmarks.generate`); whether two ways of decoding agree, and what their
captions are worth, is a question about trained ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

import mm1
from benchmarks.generate import prepared
from benchmarks.machine import RESULTS, append, where
from eval.harness import Job, chosen_tasks, jobs_of
from eval.pictures import read
from eval.prompts import Item, Settings
from eval.task import Task
from mm1.data.encode import Encoded
from mm1.errors import UserError
from mm1.infer.assistant import Assistant
from mm1.infer.continuous import Answer
from mm1.infer.spelling import Spelling
from mm1.interop.decoder_out import export_decoder


@dataclass(frozen=True)
class Case:
    """What a benchmark of captions asks, and how answers end.

    Args:
        task: Whose pictures.
        jobs: Its questions with their demonstrations.
        prompts: Their prompts.
        encoded: Likewise, as token ids.
        new: Tokens of an answer at most.
        stop: Strings before which it ends.
    """

    task: Task
    jobs: list[Job]
    prompts: list[list[Item]]
    encoded: list[Encoded]
    new: int
    stop: tuple[str, ...]


def answers(
    checkpoint: str,
    data: str,
    *,
    shots: int = 8,
    tasks: tuple[str, ...] = (),
    limit: int | None = None,
    batches: tuple[int, ...] = (1, 16, 64),
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    batch_positions: int = 98304,
    results: Path = RESULTS,
    note: str = "",
) -> None:
    """Caption pictures with a trained model, in both ways; compare texts, near ties and CIDEr.

    transformers is given the decoder as a folder that it reads by itself, and pictures by our encoder. Its time leaves
    out what prepares pictures, ours does not, and nothing is warmed up: ``generate`` is there to time.

    Args:
        checkpoint: Checkpoint or model folder; its decoder has to be of a family that transformers knows.
        data: Data folder with captions.
        shots: Demonstrations before a picture.
        tasks: Some benchmarks of captions; all that the folder holds, if empty.
        limit: At most so many pictures of each.
        batches: Batch sizes of transformers.
        dtype: Type of the weights.
        batch_positions: Positions of our slots.
        results: Folder of the CSV file that rows are added to.
        note: What to remember of this run, such as which model it was.
    """
    device, about = where("torch", "transformers", small=True, flag="")
    assistant = mm1.load(checkpoint, device=device.type, dtype=dtype)
    assistant.engine.batch_positions = batch_positions
    settings = Settings(shots=(shots,), arms=("sighted",), tasks=tasks, limit=limit)
    found = [task for task in chosen_tasks(data, settings) if task.kind == "captions"]
    if not found:
        raise UserError(f"{data} has no benchmark of captions among {', '.join(tasks) or 'all'}; expected one (tasks)")
    language = _language(checkpoint, assistant)
    rows: list[dict[str, Any]] = []
    for task in found:
        case = _case(task, settings, assistant)
        start = time.perf_counter()
        # no stop string: transformers knows none here, and both are cut afterwards
        said = sorted(assistant.engine.answers(case.prompts, case.new), key=lambda one: one.index)
        seconds = time.perf_counter() - start
        mine = [_spelled(assistant, case, list(one.tokens)) for one in said]
        everything = {"task": task.name, "shots": shots, "dtype": dtype, "note": note}
        rows.append({**about, **everything, "contestant": "ours", "batch": 0, **_row(case, mine, mine, said, seconds)})
        rows[-1]["equal_itself"] = ""
        _tell(rows[-1])
        first: list[str] = []
        for batch in batches:
            theirs, seconds = _theirs(language, assistant, case, batch)
            first = first or theirs
            row = {**about, **everything, "contestant": "transformers generate", "batch": batch}
            row |= _row(case, theirs, mine, said, seconds)
            same = sum(a == b for a, b in zip(first, theirs, strict=True)) / len(theirs)
            rows.append({**row, "equal_itself": round(same, 4)})
            _tell(rows[-1])
    print(append(results / "answers.csv", rows))


def _language(checkpoint: str, assistant: Assistant) -> Any:
    from transformers import AutoModelForCausalLM

    weight = assistant.model.decoder.norm.weight
    with TemporaryDirectory() as folder:
        export_decoder(checkpoint, Path(folder) / "decoder")
        made = AutoModelForCausalLM.from_pretrained(Path(folder) / "decoder", dtype=weight.dtype)
    return made.to(weight.device).eval()


def _case(task: Task, settings: Settings, assistant: Assistant) -> Case:
    jobs, asked = list(jobs_of(task, settings)), settings.prompt("captions")
    prompts = [job.prompt(settings, read) for job in jobs]
    encoded = [assistant.engine._encode(prompt, asked.max_new_tokens) for prompt in prompts]
    return Case(task, jobs, prompts, encoded, asked.max_new_tokens, asked.stop)


@torch.inference_mode()
def _theirs(language: Any, assistant: Assistant, case: Case, batch: int) -> tuple[list[str], float]:
    """Their captions, and seconds without what prepares pictures."""
    model, tokenizer, engine = assistant.model, assistant.tokenizer, assistant.engine
    device, said, seconds = model.decoder.norm.weight.device, [], 0.0
    for at in range(0, len(case.encoded), batch):
        lot = case.encoded[at : at + batch]
        pixels = prepared([picture for one in lot for picture in one.images], model).to(device)
        start = time.perf_counter()
        tokens_BT, seen_BT, _ = engine._pad(lot)
        ids = language.generate(
            inputs_embeds=model.embed(tokens_BT, model.encode_images(pixels)),
            attention_mask=seen_BT,
            max_new_tokens=case.new,
            do_sample=False,
            num_beams=1,
            eos_token_id=tokenizer.eos,
            pad_token_id=tokenizer.eos,
        )
        said += [_spelled(assistant, case, row) for row in ids.tolist()]
        seconds += time.perf_counter() - start
    return said, seconds


def _spelled(assistant: Assistant, case: Case, tokens: Sequence[int]) -> str:
    spelling = Spelling(assistant.tokenizer, case.stop)
    for token in tokens:
        spelling.add(token)
    return spelling.spell()


def _row(
    case: Case, captions: list[str], mine: list[str], said: Sequence[Answer], seconds: float
) -> dict[str, float | int | str]:
    scorer = case.task.scorer()
    scores = [scorer.score(job.query.id, text) or 0.0 for job, text in zip(case.jobs, captions, strict=True)]
    margins = sorted(one.margin or 0.0 for one, a, b in zip(said, captions, mine, strict=True) if a != b)
    return {
        "prompts": len(captions),
        "equal": round(1 - len(margins) / len(captions), 4),
        "margin_unequal": round(margins[-1], 5) if margins else "",
        "cider": round(fmean(scores), 3),
        "seconds": round(seconds, 2),
        "prompts_s": round(len(captions) / seconds, 3),
    }


def _tell(row: dict[str, Any]) -> None:
    batch = f", {row['batch']} at a time" if row["batch"] else ""
    print(
        f"{row['task']:28} {row['contestant'] + batch:38} {row['prompts']:5} captions, CIDEr {row['cider']:7.2f}, "
        f"{row['equal']:.1%} equal ours, {row['prompts_s']:8.2f} prompts/s"
        + (f", unequal at margins up to {row['margin_unequal']}" if row["margin_unequal"] != "" else "")
        + (f"; {row['equal_itself']:.1%} equal to itself at its first batch size" if row["batch"] else ""),
        flush=True,
    )
