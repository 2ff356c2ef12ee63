# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Asking a host what matters when VMs are moved to it and from it, whatever the VM and the other host."""

from __future__ import annotations

import typing as t

from .._core.clock import stamp
from .._core.errors import LifecycleError
from .._libvirt import machine
from .._libvirt.readiness import Readiness
from .._task import Context

Result = dict[str, t.Any]

# libvirt's defaults for migrations (keepalive_interval, keepalive_count in qemu.conf)
_KEEPALIVE = 5


def tell_readiness(context: Context, problems: list[str]) -> Result:
    """What libvirt tells of the host and, when it is this machine, what it does not tell. What is not known is
    ``None``.

    :param problems: Takes sentences about what could not be found out.
    """
    readiness = Readiness(context.host)

    def known(ask: t.Callable[[], t.Any]) -> t.Any:
        try:
            return ask()
        except LifecycleError as exc:
            problems.append(str(exc))
            return None

    links, filters = known(readiness.links), known(readiness.filters)
    return {
        "cpu_models": known(readiness.models),
        "huge_pages": known(readiness.huge_pages),
        "links": None if links is None else sorted(links),
        "filters": None if filters is None else sorted(filters),
        **(_machine(context) if context.host.local else dict.fromkeys(_OWN)),
    }


# What only the machine itself knows.
_OWN = (
    "addresses",
    "resolvable",
    "listening",
    "ports",
    "address",
    "keepalive",
    "certificates",
    "checks_clients",
    "time",
)


def _machine(context: Context) -> Result:
    settings = machine.qemu_settings()
    told = settings or {}
    first, last = machine.migration_ports(settings)
    addresses = machine.resolve(context.host.name)
    configured = settings is not None
    return {
        "addresses": addresses,
        "resolvable": bool(addresses),
        "listening": machine.listening(),
        "ports": {"first": first, "last": last} if configured else None,
        "address": str(told.get("migration_host", "")) if configured else None,
        "keepalive": {key: int(told.get(f"keepalive_{key}", _KEEPALIVE)) for key in ("interval", "count")}
        if configured
        else None,
        "certificates": [paper.tell() for paper in machine.papers(settings)],
        "checks_clients": machine.checks_clients(settings) if configured else None,
        "time": stamp(context.clock.now()),
    }
