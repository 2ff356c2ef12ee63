# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A VM that moves waits until there is room for it: limits per source and per destination."""

from __future__ import annotations

import contextlib
import typing as t

from .._core import line
from .._core.errors import Cancelled
from .._core.plan import Plan
from .._libvirt.bulk import Bulk
from .._libvirt.cordon import read_scheduling
from .._model import endpoints
from .._model.queueing import Limits, Mover, arriving, obstacle
from .._task import Context, Side, Subject

LINE = "moves"


@contextlib.contextmanager
def turn(context: Context, vm: Subject, plan: Plan) -> t.Iterator[None]:
    """The body runs when it is the VM's turn.

    What is to be done at the destination alone needs none, and what a run that died has begun goes on at once.

    :raises Cancelled: The host was enabled for scheduling before that.
    """
    ask = context.params
    if ask["state"] != "migrated" or vm.guest is None or vm.guest.host is not context.host:
        yield
        return
    there = context.side(endpoints.connection_uri(ask["dest"], ask["dest_transport"], insecure_tcp=ask["insecure_tcp"]))
    limits = Limits(ask["limits"]["per_source"], ask["limits"]["per_destination"])
    begun = vm.instance.journal is not None

    def look() -> line.Obstacle:
        if ask["while_disabled"] and not begun and read_scheduling().enabled:
            raise Cancelled(
                f"VM {vm.name} stays: {context.host.name} is enabled for scheduling, and its turn had not come.",
                hint="Disable the host with host_schedulable and run the task again, or leave while_disabled out.",
            )
        coming = 0 if begun or not limits.destination else _arriving(there)

        def why(tickets: t.Sequence[line.Ticket], number: int) -> str:
            return "" if begun else obstacle([_mover(ticket) for ticket in tickets], number, limits, coming)

        return why

    what = {"action": plan.action, "source": context.host.name, "to": there.host.name, "dest": there.uri}
    with line.turn(LINE, vm.name, what, look, clock=context.clock):
        yield


def _mover(ticket: line.Ticket) -> Mover:
    return Mover(ticket["number"], str(ticket.get("source")), str(ticket.get("to")), line.moves(ticket))


def _arriving(there: Side) -> int:
    """How many VMs arrive there, from whichever host."""
    return sum(map(arriving, Bulk(there.host).states(there.host.guests()).values()))
