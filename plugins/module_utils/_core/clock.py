# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A clock that is handed in, and waiting as predicate + deadline + clock."""

from __future__ import annotations

import time
import typing as t
from datetime import datetime, timezone

from .errors import TimedOut

T = t.TypeVar("T")


class Clock:
    """The real clock. Unit tests hand in one that jumps."""

    def monotonic(self) -> float:
        """Seconds since some moment, never going back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let *seconds* go by."""
        time.sleep(seconds)

    def now(self) -> datetime:
        """The time of day, with zone UTC, in whole seconds."""
        return datetime.now(timezone.utc).replace(microsecond=0)


def stamp(moment: datetime) -> str:
    """*moment* as it is written in metadata and results: ISO 8601, UTC, whole seconds."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_stamp(text: str) -> datetime:
    """The moment that :func:`stamp` wrote.

    :raises ValueError: *text* is no such stamp.
    """
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def wait_until(
    predicate: t.Callable[[], T | None],
    *,
    clock: Clock,
    timeout: float,
    doing: str,
    interval: float = 0.25,
    first_interval: float = 0.02,
) -> T:
    """Ask *predicate* until it answers something true, and return that answer.

    The first questions follow each other quickly and then more slowly, up to *interval*, so that what is quick is
    noticed at once and what is slow costs little.

    :param timeout: Seconds until it is given up. The predicate is asked at least once, and once more at the deadline.
    :param doing: For the error: "waiting for VM web1 to shut off".
    :raises TimedOut: The predicate did not become true in time.
    """
    deadline = clock.monotonic() + timeout
    pause = first_interval
    while True:
        answer = predicate()
        if answer:
            return answer
        left = deadline - clock.monotonic()
        if left <= 0:
            raise TimedOut(f"Gave up {doing} after {timeout:g} seconds.", seconds=timeout)
        clock.sleep(min(pause, left))
        pause = min(pause * 1.5, interval)
