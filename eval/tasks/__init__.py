"""One file per benchmark, each with ``find(data) -> list[Task]``; :func:`eval.task.discover` asks every one."""
