# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Standing in line: many tasks want to move VMs, and not all at once.

Each holds a ticket, one of the locks of :mod:`.lock`. So a process that dies leaves the line, and all processes of the
machine see who stands in it, without anybody who keeps a list.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import os
import typing as t

from . import lock
from .clock import Clock
from .errors import Busy

# Seconds between two looks at the line.
INTERVAL = 0.5

Ticket = dict[str, t.Any]
# Of the tickets in their order, and the number of one's own: why it has to wait; empty when it need not.
Obstacle = t.Callable[[t.Sequence[Ticket], int], str]
Look = t.Callable[[], Obstacle]


@contextlib.contextmanager
def turn(line: str, name: str, what: t.Mapping[str, t.Any], look: Look, *, clock: Clock) -> t.Iterator[None]:
    """Stand in line until there is no obstacle. Then the body runs, and the ticket counts as one that ``moves``.

    :param line: The name of the line, safe as part of a file's name.
    :param name: Of the VM.
    :param what: What the ticket says to others, beside its ``number`` and whether it ``moves``.
    :param look: Asks what there is to be asked beside the tickets. Nobody else is held up by that.
    :raises Denied: The ticket cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with _gate(line):
            number = max((ticket["number"] for ticket in tickets(line)), default=0) + 1
            tell = take(stack, line, name, {**what, "number": number})
        while True:
            obstacle = look()
            with _gate(line):
                why = obstacle(tickets(line), number)
                tell({"phase": "queued", "why": why} if why else {"moves": True})
            if not why:
                break
            clock.sleep(INTERVAL)
        yield


def tickets(line: str) -> list[Ticket]:
    """Of all who stand in line or move, in their order."""
    places = glob.glob(os.path.join(glob.escape(lock.DIRECTORY), f"{line}-*.lock"))
    found = (lock.holder(os.path.basename(place)[: -len(".lock")]) for place in places)
    valid = (ticket for ticket in found if ticket and isinstance(ticket.get("number"), int))  # anyone may write there
    return sorted(valid, key=lambda ticket: int(ticket["number"]))


def moves(ticket: Ticket) -> bool:
    """Whether it has had its turn."""
    progress = ticket.get("progress")
    return isinstance(progress, dict) and bool(progress.get("moves"))


def take(stack: contextlib.ExitStack, line: str, name: str, what: t.Mapping[str, t.Any]) -> lock.Tell:
    """Hold the first ticket that nobody holds, for as long as *stack* lasts: files are used again."""
    for place in itertools.count():
        try:
            return stack.enter_context(lock.hold(f"{line}-{place}", what, name=name))
        except Busy:
            continue
    raise AssertionError("there is no end to them")


@contextlib.contextmanager
def _gate(line: str) -> t.Iterator[None]:
    """One at a time looks at the line and takes its turn. Whoever is second sleeps in the kernel."""
    fd = lock.open_file(f"{line}.gate")
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, lock.flock(fcntl.F_WRLCK))
        yield
    finally:
        os.close(fd)
