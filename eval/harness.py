"""Runs benchmarks: every question with 0, 4, 8 demonstrations, each beside its blind arm (MM1, sections 3.1 and 4).

1. every (task, shots, arm, question) is a job; jobs that were answered before are left out
2. chunks of jobs become prompts, the engine answers them, answers are scored and written at once
3. means, intervals and baselines of each task become scores.json
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from eval.again import gold_of, stored_metric
from eval.contamination import Overlap, overlap
from eval.failing import failing
from eval.fewshot import Demonstrations
from eval.fewshot import blind as swapped
from eval.files import Data
from eval.fit import Length, excess, measure, refuse
from eval.metrics.metric import Metric
from eval.pictures import blank, read
from eval.prompts import Item, Prompt, Settings, document, spell
from eval.scores import FORMAT, of_task
from eval.similar import Similar
from eval.store import SCORED, Answer, Answers, Key, fingerprint, key
from eval.task import Kind, Query, Task, discover
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.assistant import Dtype, cast, check_dtype
from mm1.infer.decoding import GREEDY
from mm1.infer.engine import Engine
from mm1.infer.spread import Spread
from mm1.model.mm1 import MM1
from mm1.runs import read_object, write_json
from mm1.sample import Text

CHUNK = 512  # prompts held at once; within a chunk the engine puts like lengths together


@dataclass(frozen=True)
class Job:
    """One question to ask.

    Args:
        task: Whose question.
        shots: Number of demonstrations.
        arm: ``sighted``, ``blind`` or ``blank``.
        query: The question as it is.
        asked: The question as it is shown, with another picture in the blind arm.
        demonstrations: What stands before it; at 0 shots they come without their pictures.
        seed: Of the demonstrations.
        dropped: Ids of demonstrations that stood before these and had to go, as the prompt was too long.
    """

    task: Task
    shots: int
    arm: str
    query: Query
    asked: Query
    demonstrations: list[Query]
    seed: int = 0
    dropped: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What its answer is stored under."""
        return self.task.name, self.shots, self.arm, self.query.id, self.seed

    def without(self, dropped: int) -> Job:
        """The same without its first demonstrations."""
        gone = tuple(shot.id for shot in self.demonstrations[:dropped])
        return replace(self, demonstrations=self.demonstrations[dropped:], dropped=self.dropped + gone)

    def prompt(self, settings: Settings, read: Callable[[Path], bytes]) -> list[Item]:
        """The document to go on from; in the blank arm ``read`` is never called."""
        look = blank if self.arm == "blank" else read
        return document(self.asked, self.demonstrations, self.task.kind, settings, look, text_only=self.shots == 0)

    def continuations(self, settings: Settings, tokenizer: Tokenizer) -> list[str]:
        """Its choices as they would be said behind the prompt, parted from it as a demonstration's answer is."""
        spaced = settings.spaced(self.kind)
        return [tokenizer.spelling(Text(choice, after_space=spaced)) for choice in self.asked.choices]

    @property
    def kind(self) -> Kind:
        """Which prompt of the settings it is asked with."""
        return self.query.kind or self.task.kind


class Benchmarks:
    """Benchmarks as a function of a model, for callbacks that evaluate while training.

    Args:
        data: Data folder laid out as docs/data.md says.
        settings: What is asked, and how.
        dtype: Ask a copy of the model in this type, such as ``bfloat16`` on a GPU; None asks the model itself.

    Raises:
        UserError: Anything wrong with data or settings, before anything is trained.
    """

    def __init__(self, data: str, settings: Settings | None = None, dtype: Dtype | None = None) -> None:
        self.data, self.settings, self.dtype = data, settings or Settings(), dtype
        self.settings.check()
        if dtype is not None:
            check_dtype(dtype)
        self._tasks = chosen_tasks(data, self.settings)

    def __call__(self, model: MM1, tokenizer: Tokenizer) -> dict[str, float]:
        """Scores named ``<task>/<shots>``, other arms with ``/blind`` or ``/blank``; ``mean`` of the sighted ones."""
        training = model.training
        asked = model if self.dtype is None else cast(copy.deepcopy(model), self.dtype)
        try:
            found = evaluate(asked.eval(), tokenizer, self._tasks, self.settings, Answers(None, ""))
        finally:
            model.train(training)
        scores = {
            f"{name}/{shots}{suffix}": at[arm]
            for name, task in found.items()
            for shots, at in task["shots"].items()
            for arm, suffix in (("sighted", ""), ("blind", "/blind"), ("blank", "/blank"))
            if at[arm] is not None
        }
        sighted = [score for name, score in scores.items() if not name.endswith(("/blind", "/blank"))]
        return scores | ({"mean": sum(sighted) / len(sighted)} if sighted else {})


def run(
    model: MM1,
    tokenizer: Tokenizer,
    checkpoint: Path,
    data: str | Path,
    settings: Settings,
    out: Path,
    corpora: Sequence[Path] = (),
    engine: Engine | Spread | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a data folder, showing progress; write ``answers.jsonl`` and ``scores.json`` to ``out``.

    Finished answers are kept when it is run again; a changed setting, checkpoint or benchmark starts anew. The scored
    pictures that stand in ``corpora``, on which the model was trained, are counted. Another ``engine`` than one on the
    model in this process may answer.

    Returns:
        The content of scores.json.

    Raises:
        UserError: Anything wrong with data or settings, before the first question is asked.
    """
    tasks = chosen_tasks(data, settings)
    with failing(model, settings.mask_experts):
        pass  # refused now, before earlier answers are forgotten
    speed = ("batch_positions", "features_mb", "processes", "compiled")
    asked = {name: value for name, value in asdict(settings).items() if name not in speed}
    asked["retrieval"] = settings.retrieval.named() if settings.demonstrations == "similar" else None
    if not settings.mask_experts:
        del asked["mask_experts"]  # so that answers from before there was such a setting are kept
    for kind in get_args(Kind):
        if settings.prompt(kind).decoding == GREEDY:
            del asked[kind]["decoding"]
    answers = Answers(
        out,
        fingerprint(FORMAT, asked, identity(checkpoint), dtype_of(model), [task.fingerprint() for task in tasks]),
        tokenizer.fingerprint,
    )
    shared = overlap(list(corpora), tasks, progress=True) if corpora else None
    found = evaluate(model, tokenizer, tasks, settings, answers, progress=True, shared=shared, engine=engine)
    about = {"format": FORMAT, "checkpoint": str(checkpoint), "dtype": dtype_of(model)}
    scores = {**about, "settings": asdict(settings), "overlap": shared.record() if shared else None, "tasks": found}
    with suppress(UserError):  # there are none yet, or they are damaged
        if judge := read_object(out / SCORED, "scores").get("judge"):
            scores["judge"] = judge  # whose opinions stand beside the answers that were there
    write_json(out / SCORED, scores)
    return scores


def evaluate(
    model: MM1,
    tokenizer: Tokenizer,
    tasks: list[Task],
    settings: Settings,
    answers: Answers,
    progress: bool = False,
    shared: Overlap | None = None,
    engine: Engine | Spread | None = None,
) -> dict[str, dict[str, Any]]:
    """Ask what is not among ``answers`` yet, and score all; the entries of scores.json by task.

    Of questions that are among what is ``shared`` with training there is a second score without them.

    Raises:
        UserError: More shots than demonstrations, a prompt longer than the context, or experts to mask that there are
            not, before the first question.
    """
    settings.check()
    engine = engine or Engine(model, tokenizer, **engine_sizes(settings))
    jobs = [job for task in tasks for job in jobs_of(task, settings, progress)]
    left = _fitted(engine, [job for job in jobs if job.key not in answers.found], settings)
    _check_pictures(left, progress)
    asked = Counter(job.task.name for job in jobs)
    noted = {task.name: {"metric": stored_metric(task), "answers": asked[task.name]} for task in tasks}
    answers.begin(noted, shared.ids() if shared else {})
    leaks = {name: of.either for name, of in shared.tasks.items()} if shared else {}
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), unit=" answers", disable=not progress)
    with bar, failing(model, settings.mask_experts):
        for task in tasks:
            scorer = task.scorer()
            mine = [job for job in left if job.task is task]
            chunk = CHUNK * settings.processes
            for start in range(0, len(mine), chunk):
                for answer in _answer(engine, mine[start : start + chunk], settings, scorer):
                    answers.add([answer])
                    bar.update()
    wanted = {job.key for job in jobs}
    kept = [answer for answer in answers.found.values() if key(answer) in wanted]
    return {
        task.name: of_task(task, (a for a in kept if a["task"] == task.name), leaks.get(task.name, ()))
        for task in tasks
    }


def engine_sizes(settings: Settings) -> dict[str, Any]:
    """What the settings say of the engine alone: its context, its memory, its speed."""
    names = ("max_positions", "batch_positions", "features_mb", "compiled")
    return {name: getattr(settings, name) for name in names}


def chosen_tasks(data: str | Path, settings: Settings) -> list[Task]:
    """The benchmarks of a folder that the settings ask for, cut to their limit.

    Raises:
        UserError: The settings name a benchmark that is not there.
    """
    tasks = discover(Data(Path(data), settings.images, settings.max_missing_share), settings.tasks)
    if settings.choosing:
        tasks = [replace(task, choosing=settings.choosing) if task.kind == "choices" else task for task in tasks]
    return [task.limited(settings.limit, settings.seed) for task in tasks]


def jobs_of(task: Task, settings: Settings, progress: bool = False) -> Iterator[Job]:
    """All that is asked of one task, demonstrations chosen; made-up words bring their own."""
    other = swapped(task, settings.seed) if "blind" in settings.arms else {}
    own = task.kind == "icl"
    similar = None
    if settings.demonstrations == "similar" and not own and any(settings.shots):
        similar = Similar(task, settings.seed, settings.retrieval, progress)
    for shots in (0,) if own else settings.shots:
        count = shots or (0 if own else settings.text_only_demonstrations)
        for seed in settings.seeds_for(0 if similar and shots else count):
            demonstrations = similar if similar and shots else Demonstrations(task, seed)
            for query in task.queries:
                shown = demonstrations.of(query, count)
                for arm in settings.arms:
                    asked = task.asked(other[query.id] if arm == "blind" else query)
                    yield Job(task, shots, arm, query, asked, [task.asked(one) for one in shown], seed)


def dtype_of(model: MM1) -> str:
    """The type of the decoder's weights, such as ``bfloat16``."""
    return str(model.decoder.norm.weight.dtype).removeprefix("torch.")


def identity(checkpoint: Path) -> list[Any]:
    """What tells a checkpoint from another without reading all of it: its files, their sizes and dates."""
    files = sorted(checkpoint.glob("*.safetensors")) if checkpoint.is_dir() else [checkpoint]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _fitted(engine: Engine | Spread, jobs: list[Job], settings: Settings) -> list[Job]:
    """Jobs whose prompts fit: the first that does not is refused now, and not after hours of answers to shorter ones.

    Raises:
        UserError: The arithmetic of a prompt that does not fit, or of a question that would not fit alone.
    """
    fitted = []
    for job in jobs:
        spoken = [len(engine.tokenizer.encode(said)) for said in job.continuations(settings, engine.tokenizer)]
        if 0 in spoken:  # it would be certain, and taken every time
            raise UserError(
                f"{job.task.name}, question {job.query.id}: a choice is empty; expected text in each of them"
            )
        new = max(spoken, default=settings.prompt(job.kind).max_new_tokens)

        def length(job: Job, new: int = new) -> Length:
            items = engine.template.applied(job.prompt(settings, lambda picture: b""))
            return measure(items, new, engine.tokenizer, engine.tokens_per_image, engine.views)

        if length(job).total > settings.max_positions:
            lengths = [length(job.without(count)) for count in range(len(job.demonstrations) + 1)]
            dropped = excess(lengths, settings.max_positions)
            if settings.when_too_long == "refuse" or dropped is None:
                where = f"{job.task.name}, question {job.query.id}, {job.shots} shots"
                raise refuse(where, lengths, settings.max_positions)
            job = job.without(dropped)
        fitted.append(job)
    return fitted


def _check_pictures(jobs: Iterable[Job], progress: bool) -> None:
    """Read every scored picture once: one that is broken is told now, and not after hours of answers about others.

    Raises:
        UserError: It cannot be read; demonstrations were read when they were chosen.
    """
    paths = dict.fromkeys(path for job in jobs if job.arm != "blank" for path in job.asked.pictures)
    with ThreadPoolExecutor() as threads:
        found = threads.map(read, paths)
        for _ in tqdm(found, "scored pictures", len(paths), unit=" pictures", disable=not progress, leave=False):
            pass


def _answer(engine: Engine | Spread, jobs: list[Job], settings: Settings, scorer: Metric) -> Iterator[Answer]:
    prompts = [job.prompt(settings, read) for job in jobs]
    closed = [at for at, job in enumerate(jobs) if job.asked.choices]
    for kind in dict.fromkeys(job.kind for job in jobs):
        prompt = settings.prompt(kind)
        free = [at for at, job in enumerate(jobs) if not job.asked.choices and job.kind == kind]
        asked, names = [prompts[at] for at in free], ["/".join(map(str, jobs[at].key)) for at in free]
        for said in engine.answers(asked, prompt.max_new_tokens, prompt.stop, prompt.decoding, names):
            record = _record(jobs[free[said.index]], spell(engine.shown(asked[said.index])), said.text, scorer, prompt)
            yield record if said.margin is None else {**record, "margin": round(said.margin, 6)}
    pairs = [(at, choice) for at in closed for choice in jobs[at].asked.choices]
    spoken = [said for at in closed for said in jobs[at].continuations(settings, engine.tokenizer)]
    likelihoods = engine.score([prompts[at] for at, _ in pairs], spoken)
    for at in closed:
        mine = [(score, choice) for (of, choice), score in zip(pairs, likelihoods, strict=True) if of == at]
        likeliest = scorer.chosen(jobs[at].query.id, max(mine)[1])
        yield _record(jobs[at], spell(engine.shown(prompts[at])), likeliest, scorer)


def _record(job: Job, prompt: str, said: str, scorer: Metric, asked: Prompt | None = None) -> Answer:
    """What is stored: the answer, and all that was said where it had to be taken out of that."""
    taken = asked.taken(said) if asked else said
    answer = said if taken is None else taken
    return {
        "task": job.task.name,
        "shots": job.shots,
        "arm": job.arm,
        "id": job.query.id,
        "seed": job.seed,
        "demonstrations": [shot.id for shot in job.demonstrations],
        "dropped": list(job.dropped),
        "image": str(job.query.picture),
        "shown": "" if job.arm == "blank" else str(job.asked.picture),
        "question": job.query.question,
        "prompt": prompt,
        "answer": answer,
        **({"said": said, "taken": taken is not None} if asked and asked.extract else {}),
        **gold_of(job.task, job.query),
        "score": scorer.score(job.query.id, answer),
    }
