# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The same call for many things at once."""

from __future__ import annotations

import collections
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

A = t.TypeVar("A")
R = t.TypeVar("R")

# As many requests as libvirtd serves one client at a time (max_client_requests).
WORKERS = 5


def spread(function: t.Callable[[A], R], items: t.Sequence[A], *, workers: int = WORKERS) -> list[R]:
    """*function* of every item, in their order. An exception is raised here, and nothing more begun.

    Each worker takes the next item by itself: handing them over one by one would cost as much as a call to libvirtd.
    """
    results: list[t.Any] = [None] * len(items)
    waiting = collections.deque(range(len(items)))

    def work() -> None:
        while True:
            try:
                index = waiting.popleft()
            except IndexError:  # nothing is left
                return
            try:
                results[index] = function(items[index])
            except BaseException:
                waiting.clear()
                raise

    workers = min(workers, len(items))
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(work) for _worker in range(workers)]:
            done.result()
    return results


def within(
    function: t.Callable[[A], R], items: t.Sequence[A], *, seconds: float, workers: int = WORKERS
) -> list[R | None]:
    """*function* of every item, in their order; ``None`` for those that take longer than *seconds*.

    A thread that hangs in libvirt cannot be ended. It is left behind, another takes its place, and as a daemon it ends
    with the process.

    :param function: Raises nothing.
    """
    results: list[R | None] = [None] * len(items)
    waiting = collections.deque(range(len(items)))
    begun: dict[int, float] = {}
    change = threading.Condition()

    def work() -> None:
        while True:
            with change:
                if not waiting:
                    return
                index = waiting.popleft()
                begun[index] = time.monotonic()
            result = function(items[index])
            with change:
                if begun.pop(index, None) is None:  # given up, and replaced
                    return
                results[index] = result
                change.notify()

    def hire() -> None:
        threading.Thread(target=work, name="kvmops-worker", daemon=True).start()

    for _worker in range(min(workers, len(items))):
        hire()
    with change:
        while waiting or begun:
            late = min(begun.values(), default=time.monotonic()) + seconds - time.monotonic()
            if late > 0:
                change.wait(late)
                continue
            for index in [index for index, since in begun.items() if since + seconds <= time.monotonic()]:
                del begun[index]
                hire()
    return results
