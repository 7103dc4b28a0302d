"""One file per benchmark, each with ``find(data) -> list[Offer]``; :func:`eval.task.offers` asks every one."""
