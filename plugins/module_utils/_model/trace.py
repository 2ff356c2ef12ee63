# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What happened during the maintenance of hosts, as lines of a file: one JSON object each, the oldest first.

A file of lines can be added to by whoever comes, and loses no more than its last line when one of them is killed.
"""

from __future__ import annotations

import json
import math
import typing as t
from dataclasses import dataclass, field
from datetime import datetime, timezone

from .._core.errors import Invalid

Values = t.Mapping[str, t.Any]

# Conditions of VMs that take no memory.
_OFF = ("off", "suspended")
_TEXTS = ("host", "vm", "dest", "code", "message")
# Kinds of events that say that something was not done.
PROBLEMS = frozenset({"failed", "refused", "skipped", "cancelled"})
# Those that are about a VM and say that something begins, or is foreseen.
BEGINNINGS = frozenset({"move", "plan"})


@dataclass(frozen=True)
class Load:
    """How full a host is.

    :param memory: MiB of VMs that are on, of so many.
    :param cpus: The same of virtual CPUs; more than the host has may be in use.
    """

    memory: float
    memory_total: float
    cpus: float
    cpus_total: float
    vms: int


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    :param kind: A word: ``moved``.
    :param at: When it had happened; seconds since 1970.
    :param seconds: How long it took until then.
    :param host: Which host it is about, for a VM where it was.
    :param dest: Where the VM is since then.
    :param code: Why something was not done, as a word.
    :param hosts: How full hosts were by then.
    """

    kind: str
    at: float
    seconds: float = 0.0
    host: str = ""
    vm: str = ""
    dest: str = ""
    code: str = ""
    message: str = ""
    hosts: t.Mapping[str, Load] = field(default_factory=dict)

    @property
    def began(self) -> float:
        """When it began; seconds since 1970."""
        return self.at - self.seconds

    @property
    def problem(self) -> bool:
        """Whether it says that something was not done."""
        return self.kind in PROBLEMS


def line_of(told: Values, now: datetime) -> str:
    """An event as a line of the file, without its end. What is told beside that which is known is kept.

    :param now: When it happened, if it does not say that itself.
    :raises Invalid: It is no event.
    """
    event = read_event({"at": now.timestamp(), **told})
    kept = {key: value for key, value in told.items() if value not in (None, "") and key != "hosts"}
    if event.seconds or "seconds" in kept:
        kept["seconds"] = round(event.seconds, 3)
    if event.hosts:
        kept["hosts"] = {name: _tell_load(load) for name, load in event.hosts.items()}
    kept.pop("at", None)
    return json.dumps({"at": iso(event.at), **kept})


def read_lines(text: str) -> tuple[list[Event], int]:
    """The events of a file, in the order in which they happened, and how many of its lines tell none.

    Somebody may have been killed while he wrote a line.
    """
    events, broken = [], 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            events.append(read_event(json.loads(line)))
        except (ValueError, Invalid):
            broken += 1
    return sorted(events, key=lambda event: event.at), broken


def read_event(told: t.Any) -> Event:
    """An event, from plain values.

    :raises Invalid: They are none.
    """
    if not isinstance(told, dict) or not isinstance(told.get("event"), str) or not told["event"].strip():
        raise Invalid(
            f"An event is a dictionary whose 'event' is a word for what happened, and this is none: {told!r}."
        )
    texts = {key: "" if told.get(key) is None else str(told[key]) for key in _TEXTS}
    hosts = told.get("hosts") or {}
    if not isinstance(hosts, dict):
        raise Invalid(f"'hosts' of the event {told['event']!r} is no dictionary.")
    seconds = _number(told.get("seconds") or 0, "seconds", told["event"])
    if seconds < 0:
        raise Invalid(f"'seconds' of the event {told['event']!r} is less than nothing.")
    return Event(
        kind=told["event"],
        at=_moment(told.get("at"), told["event"]),
        seconds=seconds,
        hosts={str(name): _read_load(facts, str(name), told["event"]) for name, facts in hosts.items()},
        **texts,
    )


def iso(moment: float) -> str:
    """Seconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return f"{datetime.fromtimestamp(moment, timezone.utc).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def done_hosts(events: t.Sequence[Event]) -> list[str]:
    """Which hosts a roll through the cluster was done with, since the last one that began afresh."""
    done: list[str] = []
    for event in events:
        if event.kind == "roll_begun" and event.code != "resumed":
            done = []
        elif event.kind == "rolled" and event.host not in done:
            done.append(event.host)
    return done


def _number(value: t.Any, key: str, kind: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Invalid(f"{key!r} of the event {kind!r} is no number: {value!r}.")
    return number


def _moment(value: t.Any, kind: str) -> float:
    """Seconds since 1970, from that or from ISO 8601; UTC where no zone is told."""
    text = str(value)
    try:
        if text.replace(".", "", 1).isdigit():
            return datetime.fromtimestamp(float(text), timezone.utc).timestamp()
        moment = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise Invalid(
            f"'at' of the event {kind!r} is no time: {value!r}.",
            hint="Give seconds since 1970, or ISO 8601 as in 2026-01-31T23:59:59Z.",
        ) from exc


def _read_load(facts: t.Any, name: str, kind: str) -> Load:
    """How full a host is, from its placement facts, or from as much of them as is needed."""
    try:
        vms = facts["vms"]
        return Load(
            float(facts["memory"]["running"]),
            float(facts["memory"]["total"]),
            float(facts["cpus"]["running"]),
            float(facts["cpus"]["total"]),
            vms if isinstance(vms, int) else sum(vm["condition"] not in _OFF for vm in vms),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise Invalid(
            f"What the event {kind!r} tells of the host {name!r} are no placement facts: {type(exc).__name__} {exc}.",
            hint="Give host.placement as host_info tells it.",
        ) from exc


def _tell_load(load: Load) -> dict[str, t.Any]:
    return {
        "memory": {"running": round(load.memory), "total": round(load.memory_total)},
        "cpus": {"running": round(load.cpus), "total": round(load.cpus_total)},
        "vms": load.vms,
    }
