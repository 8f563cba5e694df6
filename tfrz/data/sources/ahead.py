"""Computes the items of an iterator in a thread, ahead of their use."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], count: int = 2) -> Iterator[T]:
    """Yields items that a thread computes meanwhile.

    Args:
      items: To be computed.
      count: How many may wait.
    """
    waiting: queue.Queue[tuple[T, None] | tuple[None, BaseException | None]] = queue.Queue(count)
    ended = threading.Event()

    def put(entry: tuple[T, None] | tuple[None, BaseException | None]) -> bool:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(entry, timeout=0.1)
                return True
        return False

    def compute() -> None:
        failure: BaseException | None = None
        try:
            for item in items:
                if not put((item, None)):
                    return
        except BaseException as error:
            failure = error
        put((None, failure))

    thread = threading.Thread(target=compute, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, failure = waiting.get()
            if item is None:
                if failure is not None:
                    raise failure
                return
            yield item
    finally:
        ended.set()
        thread.join()
