"""Several models answer one question at the same time; what they have said comes as often as a page shows it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

from eval.serve.conversation import Items, Reply
from eval.serve.speaker import Sampling, Speaker

SHOWN_EVERY_S = 0.1


def together(
    speakers: Sequence[Speaker], prompts: Sequence[Items], sampling: Sampling, stop: threading.Event
) -> Iterator[list[Reply]]:
    """The replies of all models as they grow, the last time when all have ended.

    Whoever closes the iterator, or sets ``stop``, frees the models with the token being made.

    Args:
        speakers: The models.
        prompts: What each is asked.
        sampling: How to choose.
        stop: Ends all answers.
    """
    replies = [Reply() for _ in speakers]
    news = threading.Event()

    def run(at: int) -> None:
        try:
            for reply in speakers[at].say(prompts[at], sampling, stop):
                replies[at] = reply
                news.set()
        except Exception:  # of any kind: the page says that there was one, the log which
            logging.getLogger(__name__).exception("%s failed", speakers[at].label)
            replies[at] = Reply(done=True, error="the model failed on this prompt; the server's log says how")
        news.set()

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(speakers))]
    for thread in threads:
        thread.start()
    try:
        while not all(reply.done for reply in replies):
            news.wait(1.0)
            news.clear()
            yield list(replies)
            time.sleep(SHOWN_EVERY_S)
        yield list(replies)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
