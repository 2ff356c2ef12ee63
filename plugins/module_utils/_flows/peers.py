# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Looking at this host and from it at those with which it shall exchange VMs."""

from __future__ import annotations

import ipaddress
import json
import os
import time
import typing as t
import xml.etree.ElementTree as ET

from .._core.clock import stamp
from .._core.errors import LifecycleError, NotFound, Refused
from .._core.workers import spread
from .._libvirt import machine, trust
from .._libvirt.host import open_host
from .._libvirt.inventory import Inventory
from .._libvirt.readiness import Readiness
from .._model.needs import read_needs
from .._model.readiness import LIBVIRT_PORT
from .._task import Context

Result = dict[str, t.Any]

_WORKERS = 16
_RECORDS = "/etc/kvmops/records.json"


def tell_pairs(context: Context) -> Result:
    """Everything that the judgement of pairs needs of this host.

    :raises Refused: The task does not run on the KVM host.
    """
    began, params, host = time.time(), context.params, context.host
    if not host.local:
        raise Refused(
            f"What {host.name} sees of other hosts cannot be asked from elsewhere.",
            hint="Run the task on the KVM host itself, with a local uri.",
        )
    readiness, inventory = Readiness(host), Inventory(host)
    settings = machine.qemu_settings()
    papers = machine.papers(settings)
    first, last = machine.migration_ports(settings)
    asked = params["asked_at"]
    try:
        models: list[str] | None = readiness.models()
    except LifecycleError:
        models = None
    versions = inventory.versions()
    look = _Peers(readiness, first, params["peer_timeout"])
    return {
        "name": host.name,
        "uuid": inventory.capabilities().uuid,
        "libvirt": versions["libvirt"],
        "qemu": versions["hypervisor"],
        "time": stamp(context.clock.now()),
        "clock_offset": None if asked is None else round(began - asked, 1),
        "ports": {"first": first, "last": last},
        "address": str((settings or {}).get("migration_host", "")),
        "certificates": [paper.tell() for paper in papers],
        "refused": trust.refusals(papers, params["names"]),
        "authorities": {paper.purpose: trust.authorities(paper.path) for paper in papers if paper.role == "authority"},
        "cpu_models": models,
        "storage": [_storage(path, params["probe"]) for path in params["storage"]],
        "media": _media(context),
        "records_problem": _records(_RECORDS),
        "peers": dict(spread(look.tell, params["peers"], workers=_WORKERS)),
    }


class _Peers:
    """What this host sees of others."""

    def __init__(self, readiness: Readiness, port: int, timeout: float) -> None:
        self.cpu = ET.tostring(readiness.cpu, encoding="unicode")
        self.port = port
        self.timeout = timeout

    def tell(self, peer: Result) -> tuple[str, Result]:
        """One of them. The name by which it is known, and what is seen of it."""
        target = peer["address"] or peer["name"]
        addresses = machine.resolve(target)
        told: Result = {
            "name": target,
            "addresses": addresses,
            "loopback": any(ipaddress.ip_address(each.split("%")[0]).is_loopback for each in addresses),
            "reached": None,
            "migration_reached": None,
            "problem": "",
            "uuid": "",
            "own_name": "",
            "own_name_resolved": None,
            "cpu": "unknown",
        }
        if addresses and not told["loopback"]:
            told["reached"] = machine.gets_there(target, LIBVIRT_PORT, timeout=self.timeout)
            told["migration_reached"] = machine.gets_there(target, self.port, timeout=self.timeout)
            if told["reached"]:
                told.update(self._connected(target))
        return peer["name"], told

    def _connected(self, target: str) -> Result:
        """By the connection that a migration takes."""
        name = f"[{target}]" if ":" in target else target
        try:
            other = open_host(f"qemu+tls://{name}/system", timeout=self.timeout)
        except LifecycleError as exc:
            return {"problem": exc.message}
        try:
            return {
                "uuid": Inventory(other).capabilities().uuid,
                "own_name": other.name,
                "own_name_resolved": bool(machine.resolve(other.name)),
                "cpu": Readiness(other).compared(self.cpu),
            }
        except LifecycleError as exc:
            return {"problem": exc.message}
        finally:
            other.close()


def _storage(path: str, probe: str) -> Result:
    """A directory for disks.

    :param probe: What names of files begin with that other hosts have written into what they take for it; what follows
        is their names. Empty when there are none, and ``seen`` is ``None`` then.
    """
    there, seen = os.path.isdir(path), None
    if there and probe:
        try:
            seen = sorted(name[len(probe) :] for name in os.listdir(path) if name.startswith(probe))
        except OSError:
            there = False
    return {"path": path, "there": there, "seen": seen}


def _media(context: Context) -> list[dict[str, str]]:
    """What is in the drives of VMs that are on: config drives among them."""
    found = []
    for guest in context.host.guests():
        try:
            if not guest.active():
                continue
            needs = read_needs(guest.xml())
        except NotFound:  # it went meanwhile
            continue
        found += [
            {"vm": guest.name, "path": disk.path}
            for disk in needs.disks
            if disk.device in ("cdrom", "floppy") and disk.path.startswith("/")
        ]
    return found


def _records(path: str) -> str:
    """What is the matter with the records of VMs; empty when nothing is, or none are kept."""
    try:
        with open(path, encoding="utf-8") as file:
            directory = str(json.load(file)["directory"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return f"{path} cannot be read: {exc}."
    return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory} is not there, or cannot be written to."
