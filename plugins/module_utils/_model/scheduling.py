# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Whether a host takes VMs (Nova: a compute service that is enabled or disabled): pure functions of what was kept."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

SCHEMA = 1


@dataclass(frozen=True)
class Scheduling:
    """Whether VMs are planned onto a host.

    :param reason: Why not; empty when they are.
    :param since: Stamp of when it was disabled.
    :param by: Who did that: ``user@node``.
    :param known: Whether what was kept could be read. Where it cannot, the host counts as disabled.
    """

    enabled: bool = True
    reason: str = ""
    since: str = ""
    by: str = ""
    known: bool = True

    def tell(self) -> dict[str, t.Any]:
        """For results."""
        return {"enabled": self.enabled, "reason": self.reason, "since": self.since, "by": self.by}


def unknown(why: str) -> Scheduling:
    """Of a host whose scheduling cannot be read: nothing is planned onto it until somebody has looked.

    :param why: A sentence.
    """
    return Scheduling(enabled=False, reason=why, known=False)


def load(text: str, place: str) -> Scheduling:
    """What :func:`dump` wrote.

    :param place: The file, for people.
    """
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict) or not isinstance(told.get("enabled"), bool):
        return unknown(f"{place} is damaged.")
    if told.get("schema") != SCHEMA:
        return unknown(f"{place} was written by another version of kvmops.lifecycle.")
    reason, since, by = (str(told.get(key, "")) for key in ("reason", "since", "by"))
    return Scheduling(told["enabled"], reason, since, by)


def dump(scheduling: Scheduling) -> str:
    """As JSON."""
    return json.dumps({"schema": SCHEMA, **scheduling.tell()}, sort_keys=True)


def enable(found: Scheduling, only_reason: str | None) -> Scheduling:
    """What an enabled host is.

    :param only_reason: A host that is disabled for another reason stays so; ``None`` enables it whatever the reason.
    """
    if found.enabled or only_reason not in (None, found.reason):
        return found
    return Scheduling()


def disable(found: Scheduling, reason: str, only_reason: str | None, *, since: str, by: str) -> Scheduling:
    """What a disabled host is. Who disabled it first has the say: the reason of one that is disabled stays.

    :param only_reason: The reason that gives way to *reason*.
    """
    if found.known and not found.enabled and only_reason != found.reason:
        return found
    if found.known and not found.enabled and found.reason == reason:
        return found
    return Scheduling(enabled=False, reason=reason, since=since, by=by)
