# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Which of the VMs that wait may move next: pure functions of who moves, who waits and the limits."""

from __future__ import annotations

import collections
import typing as t
from dataclasses import dataclass

from .status import PAUSED

# virDomainPausedReason: what a VM that arrives has from the beginning to the end.
_PAUSED_MIGRATION = 2


@dataclass(frozen=True)
class Limits:
    """How many VMs move at the same time, at the most; 0 is no limit."""

    source: int
    destination: int


@dataclass(frozen=True)
class Mover:
    """A VM that moves or waits for its turn."""

    number: int
    source: str
    dest: str
    moving: bool


def obstacle(movers: t.Sequence[Mover], number: int, limits: Limits, arriving: int = 0) -> str:
    """Why the one with *number* has to wait; empty when it need not.

    Those before it have precedence where they could move themselves: one that waits for another host holds up nobody.

    :param movers: In the order in which they came.
    :param arriving: How many VMs arrive at its destination, as the destination tells, from wherever they come.
    """
    leaving: collections.Counter[str] = collections.Counter()
    coming: collections.Counter[str] = collections.Counter()
    for each in movers:
        if each.moving:
            leaving[each.source] += 1
            coming[each.dest] += 1
    for each in movers:
        if each.moving:
            continue
        mine = each.number == number
        coming_there = max(coming[each.dest], arriving) if mine else coming[each.dest]
        if limits.source and leaving[each.source] >= limits.source:
            why = f"{leaving[each.source]} leave {each.source} already"
        elif limits.destination and coming_there >= limits.destination:
            why = f"{coming_there} go to {each.dest} already"
        else:
            why = ""
        if mine:
            return why
        if not why:
            leaving[each.source] += 1
            coming[each.dest] += 1
    return ""


def arriving(state: tuple[int, int]) -> bool:
    """Whether a VM is on its way to its host, by its state and the reason for that, as libvirt tells them there."""
    return state == (PAUSED, _PAUSED_MIGRATION)


def interleaved(keys: t.Sequence[str]) -> list[int]:
    """An order in which to begin with things that have *keys*, as their indexes: in turn one of each, so that no host
    waits while the VMs of another one have all the workers."""
    groups: dict[str, collections.deque[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, collections.deque()).append(index)
    order: list[int] = []
    while groups:
        for name in list(groups):
            order.append(groups[name].popleft())
            if not groups[name]:
                del groups[name]
    return order
