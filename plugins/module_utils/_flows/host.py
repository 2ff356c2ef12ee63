# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Asking about a host: what it has, and what its VMs take of it."""

from __future__ import annotations

import typing as t

from .._core.errors import Invalid, LifecycleError
from .._libvirt.bulk import Bulk
from .._libvirt.guest import Guest
from .._libvirt.inventory import Inventory
from .._model import capacity
from .._model.capacity import Pool
from .._model.statistics import answered
from .._model.status import RUNNING
from .._task import Context
from .info import Inquiry, Sight
from .placement import Placement, scheduling, sightings
from .readiness import tell_readiness

Result = dict[str, t.Any]

_UNKNOWN: Result = {"defined": None, "running": None}


def tell_host(context: Context, directories: t.Sequence[str], gather: t.Container[str] = ()) -> Result:
    """Everything about the host.

    :param directories: For which to tell the room there is.
    :param gather: What is told besides: ``migration``, ``placement``, and in the latter the ``dirty_rate``.
    :raises Invalid: One is not an absolute path.
    """
    for directory in directories:
        if not directory.startswith("/"):
            raise Invalid(f"{directory!r} in storage is not an absolute path.")
    host = context.host
    inventory = Inventory(host)
    guests = host.guests()
    raws = Bulk(host).statistics(guests, "vcpu", "block")
    known = bool(raws) or not guests
    taken = capacity.taken(raws.values()) if known else dict.fromkeys(("memory", "vcpus"), _UNKNOWN)
    can = inventory.capabilities()
    problems = _problems(guests, raws)
    # A host may do without virtstoraged or virtnetworkd.
    pools = _or_nothing(inventory.pools, problems)
    networks = _or_nothing(inventory.networks, problems)
    planning = "placement" in gather or "dirty_rate" in gather
    inquiry = Inquiry(context, {"config"} if planning else set(), 0)
    sights = inquiry.look(guests)
    problems += [f"VM {sight.guest.name}: {problem}" for sight in sights for problem in sight.problems]
    more: Result = {}
    if "migration" in gather:
        more["migration"] = tell_readiness(context, problems)
    if planning:
        rates = _rates(context, sights) if "dirty_rate" in gather else {}
        more["placement"] = Placement(context, problems).tell(
            sightings(inquiry, sights, raws, rates), can=can, pools=pools, networks=networks, directories=directories
        )
    return {
        "name": host.name,
        "uuid": can.uuid,
        "hypervisor": inventory.hypervisor(),
        "versions": inventory.versions(),
        "emulator": inventory.emulator(),
        "types": {arch: list(types) for arch, types in can.types.items()},
        "machines": list(can.machines),
        "cpu": {
            "arch": can.arch,
            "model": can.model,
            "vendor": can.vendor,
            "features": list(can.features),
            **inventory.processors(),
            **taken["vcpus"],
        },
        "memory": {**inventory.memory(), **taken["memory"]},
        "storage": [
            {
                **_room(inventory, directory, pools),
                **(capacity.promised(raws.values(), directory) if known else {"disks": None, "promised": None}),
            }
            for directory in directories
        ],
        "pools": [dict(vars(pool)) for pool in pools],
        "networks": [dict(vars(network)) for network in networks],
        "vms": capacity.by_status((sight.guest.name, sight.status) for sight in sights),
        "scheduling": scheduling(context),
        **more,
        "problems": problems,
    }


def _rates(context: Context, sights: t.Sequence[Sight]) -> dict[str, int]:
    """What guests change. One that hangs is not asked."""
    running = [sight.guest for sight in sights if sight.seen.state == RUNNING]
    return Bulk(context.host).dirty_rates(running, clock=context.clock)


T = t.TypeVar("T")


def _or_nothing(ask: t.Callable[[], list[T]], problems: list[str]) -> list[T]:
    try:
        return ask()
    except LifecycleError as exc:
        problems.append(str(exc))
        return []


def _problems(guests: t.Sequence[Guest], raws: t.Mapping[str, capacity.Raw]) -> list[str]:
    if guests and not raws:
        return ["libvirt did not answer in time: what VMs take is not known."]
    silent = [
        guest.name for guest in guests if capacity.on(raws.get(guest.uuid, {})) and not answered(raws[guest.uuid])
    ]
    return [f"QEMU did not answer: {', '.join(silent)}. Some sizes may be missing."] if silent else []


def _room(inventory: Inventory, directory: str, pools: t.Sequence[Pool]) -> Result:
    room = inventory.room(directory)
    pool = capacity.pool_of(directory, pools)
    told = room or pool
    return {
        "path": directory,
        "pool": pool.name if pool else "",
        "capacity": told.capacity if told else None,
        "allocation": told.allocation if told else None,
        "available": told.available if told else None,
    }
