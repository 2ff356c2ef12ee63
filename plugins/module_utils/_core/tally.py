# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""How many VMs of a task are done, told to whoever began the task with a name (:data:`.lock.TASK`): in a file as those
of locks are, which goes with the process."""

from __future__ import annotations

import contextlib
import os
import threading
import typing as t

from . import line, lock

_LINE = "tasks"

Ended = t.Callable[[bool], None]


@contextlib.contextmanager
def tally(total: int) -> t.Iterator[Ended]:
    """The body is given a function to call when a VM has ended, with whether it failed; from any thread.

    Nothing is told of a task that nobody watches, nor of one with a single VM.

    :param total: How many VMs there are.
    """
    if total < 2 or lock.TASK not in os.environ:
        yield lambda failed: None
        return
    counts = {"total": total, "ended": 0, "failed": 0}
    guard = threading.Lock()
    with contextlib.ExitStack() as stack:
        tell = line.take(stack, _LINE, "", {"action": "tally"})
        tell(counts)

        def ended(failed: bool) -> None:
            with guard:
                counts["ended"] += 1
                counts["failed"] += failed
                tell(counts)

        yield ended
