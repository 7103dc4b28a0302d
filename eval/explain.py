"""How one answer got its score, for a person: prompt, pictures, answer, every step of its metric."""

from __future__ import annotations

from collections.abc import Iterator

from eval.again import metric_of
from eval.metrics.metric import Metric
from eval.store import Answer
from mm1.errors import UserError

WIDE = 100  # letters of a line of a prompt


def explain(
    answers: list[Answer], id: str, task: str | None = None, shots: int | None = None, arm: str = "sighted"
) -> str:
    """Everything about the stored answers to one question.

    Args:
        answers: All answers of an evaluation: CIDEr takes its weights from the references of all pictures.
        id: The question's.
        task: Of which benchmark; needed where two have this id.
        shots: With how many demonstrations; all if None.
        arm: Which arm.

    Raises:
        UserError: No such answer, or two benchmarks have one.
    """
    found = [answer for answer in answers if answer["id"] == id and answer["arm"] == arm]
    found = [answer for answer in found if task in (None, answer["task"]) and shots in (None, answer["shots"])]
    tasks = sorted({answer["task"] for answer in found})
    if len(tasks) > 1:
        raise UserError(f"question {id} stands in {' and '.join(tasks)}; expected --task to name one")
    if not found:
        near = list(dict.fromkeys(answer["id"] for answer in answers if task in (None, answer["task"])))
        raise UserError(
            f"there is no {arm} answer to question {id}{f' of {task}' if task else ''}"
            f"{f' at {shots} shots' if shots is not None else ''}; expected an id such as {', '.join(near[:3])}"
        )
    _, metric = metric_of([answer for answer in answers if answer["task"] == tasks[0]])
    return "\n\n".join("\n".join(_lines(answer, metric)) for answer in found)


def _lines(answer: Answer, metric: Metric) -> Iterator[str]:
    seed = f", seed {answer['seed']}" if "seed" in answer else ""
    yield f"{answer['task']}, question {answer['id']}, {answer['shots']} shots, {answer['arm']}{seed}"
    if demonstrations := answer.get("demonstrations"):
        yield f"demonstrations  {', '.join(demonstrations)}"
    if dropped := answer.get("dropped"):
        yield f"dropped         {', '.join(dropped)}: the context was too short"
    yield f"picture asked   {answer['image']}"
    if answer.get("shown") != answer["image"]:
        yield f"picture shown   {answer.get('shown') or 'a grey one'}"
    yield "prompt"
    for line in answer.get("prompt", "").splitlines():
        for start in range(0, max(len(line), 1), WIDE):
            yield f"    {line[start : start + WIDE]}"
    yield f"answer          {answer['answer']!r}"
    for reference in dict.fromkeys(answer["references"]):
        yield f"reference       {reference!r}"
    yield metric.title
    yield from (f"    {line}" for line in metric.explain(answer["id"], answer["answer"]))
