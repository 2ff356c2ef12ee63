# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Asking about VMs: few calls for many VMs, several at once where libvirt has one for each only, and none waited for
that does not answer."""

from __future__ import annotations

import contextlib
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace

from .._core.errors import Invalid, LifecycleError, NotFound, Unsupported
from .._core.workers import spread, within
from .._libvirt.bulk import PATIENCE, Bulk
from .._libvirt.chains import Chains
from .._libvirt.details import Details
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._model import info, shelf, status
from .._model import instance as memory
from .._model.chain import Chain, Layer
from .._model.domain import Disk, Domain, read_domain
from .._model.info import Address, Traits
from .._model.instance import Instance, Mark
from .._model.shelf import Shelf
from .._model.statistics import answered, figures, sizes
from .._model.status import Observation
from .._task import Context
from .shelves import kept

Result = dict[str, t.Any]
Addresses = dict[str, list[Address]]

GROUPS = ("status", "config", "disks", "interfaces", "graphics", "statistics", "guest")
# Those for which the domain's XML is read.
_IN_XML = {"config", "disks", "interfaces", "graphics", "guest"}
_OFFLOADED = shelf.VM_STATES[shelf.OFFLOADED]
# Seconds in which libvirt tells that an agent had no time left.
_GRACE = 3
_FLAGS = ("active", "persistent", "managedsave", "autostart", "has_snapshot", "has_checkpoint")


@dataclass
class More:
    """What libvirt tells about one VM only."""

    job: Result | None = None
    block_jobs: dict[str, Result] = field(default_factory=dict)
    neighbours: Addresses = field(default_factory=dict)
    snapshots: int = 0
    checkpoints: int = 0
    chains: dict[str, Chain] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class Sight:
    """What was seen of one VM."""

    guest: Guest
    seen: Observation
    active: bool
    domain: Domain | None
    problems: list[str]
    statistics: t.Mapping[str, t.Any] = field(default_factory=dict)
    more: More = field(default_factory=More)
    agent: t.Mapping[str, t.Any] | None = None
    root: ET.Element | None = None

    @property
    def status(self) -> str:
        """In Nova's words."""
        return status.read(self.seen).status

    @property
    def hangs(self) -> bool:
        """Whether QEMU was asked and did not answer."""
        return self.active and bool(self.statistics) and not answered(self.statistics)


class Inquiry:
    """One question about VMs of a host.

    :param gather: Which of :data:`GROUPS` to tell; the first is always told.
    :param patience: Seconds that the agent of a guest has to answer.
    :param shelved: Tell what the image store knows as well, also of VMs that no host has.
    """

    def __init__(self, context: Context, gather: t.AbstractSet[str], patience: int, *, shelved: bool = False) -> None:
        self.context = context
        self.host = context.host
        self.bulk = Bulk(context.host)
        self.chains = Chains(context.host)
        self.gather = gather
        self.patience = patience
        self.flagged: dict[str, frozenset[str]] = {}
        self.leases: Addresses = {}
        self.table: Addresses | None = None
        images = context.store.find(properties={"image_type": shelf.KIND}) if shelved else []
        # By the UUIDs of their VMs; of several the newest.
        found = sorted(shelf.shelves(images), key=lambda each: each.manifest.at)
        self.shelves = {each.manifest.vm_uuid: each for each in found}

    def tell(self, names: t.Sequence[str] | None, statuses: t.Sequence[str] | None) -> Result:
        """The answer.

        :param names: Which VMs; ``None`` for all.
        :param statuses: Leave out VMs of any other status; ``None`` for all.
        :raises Ambiguous: A name means two VMs.
        """
        guests, missing = self._choose(names)
        sights = self.look(guests)
        if statuses is not None:
            sights = [sight for sight in sights if sight.status in statuses]
        self._measure(sights)
        self._look_closer(sights)
        if "guest" in self.gather:
            self._ask_agents(sights)
        told = [self._tell(sight) for sight in sights]
        nowhere, missing = self._nowhere(names, missing)
        if statuses is None or status.status_of(_OFFLOADED) in statuses:
            told += nowhere
            if names is None:
                told.sort(key=lambda vm: str(vm["name"]))
            else:
                told.sort(key=lambda vm: _place(names, vm))
        return {"vms": told, "missing": missing}

    def _nowhere(self, names: t.Sequence[str] | None, missing: list[str]) -> tuple[list[Result], list[str]]:
        """VMs that are in the image store only, and the names that are left without one."""
        gone = [each for each in self.shelves.values() if each.state == shelf.OFFLOADED]
        if names is None:
            here = {guest.uuid for guest in self.host.guests()} if gone else set()
            return [self._tell_offloaded(each) for each in gone if each.manifest.vm_uuid not in here], missing
        chosen: dict[str, Shelf] = {}
        left = []
        for name in missing:
            found = shelf.pick(gone, name)
            if found:
                chosen.setdefault(found.key, found)
            else:
                left.append(name)
        return [self._tell_offloaded(each) for each in chosen.values()], left

    def _tell_offloaded(self, found: Shelf) -> Result:
        manifest = found.manifest
        instance = replace(kept(self.context, found), marks=(Mark(_OFFLOADED, manifest.at),))
        seen = Observation(
            name=manifest.vm,
            uuid=manifest.vm_uuid,
            state=status.NOSTATE,
            reason=0,
            managed_save=False,
            persistent=False,
            instance=instance,
        )
        return {
            "name": seen.name,
            "uuid": seen.uuid,
            "host": "",
            **info.tell_status(seen, Traits(autostart=found.contents.autostart)),
            "shelf": info.tell_shelf(Instance(), "", found),
            "job": None,
            "problems": [],
        }

    def _choose(self, names: t.Sequence[str] | None) -> tuple[list[Guest], list[str]]:
        guests = self.host.guests()
        if names is None:
            return guests, []
        chosen: list[Guest] = []
        missing: list[str] = []
        for found in pick(guests, names):
            if isinstance(found, Guest):
                chosen.append(found)
            elif isinstance(found, NotFound):
                missing.append(found.details["name"])
            else:
                raise found
        return chosen, missing

    # ---- looking

    def look(self, guests: t.Sequence[Guest]) -> list[Sight]:
        """What is seen of VMs, without those that vanish meanwhile."""
        self.flagged = self.bulk.flagged(*_FLAGS)
        states = self.bulk.states(guests)
        there = [guest for guest in guests if guest.uuid in states]
        # Threads wait for libvirt; one thread alone does what needs the CPU.
        read = spread(self._read, there)
        return [
            self._understand(guest, states[guest.uuid], *what)
            for guest, what in zip(there, read)
            if not isinstance(what, NotFound)
        ]

    def _read(self, guest: Guest) -> tuple[str | None, Instance | LifecycleError | None] | NotFound:
        """The XML, if it is needed, and what we remember, if it is not in there; an error when the VM has vanished."""
        try:
            text = guest.text() if self.gather & _IN_XML else None
            persistent = guest.uuid in self.flagged["persistent"]
            if text is not None and not (persistent and guest.uuid in self.flagged["active"]):
                return text, None
            try:
                return text, guest.recall(persistent=persistent)
            except (Invalid, Unsupported) as exc:
                return text, exc
        except NotFound as exc:
            return exc

    def _understand(
        self, guest: Guest, state: tuple[int, int], text: str | None, instance: Instance | LifecycleError | None
    ) -> Sight:
        root = None if text is None else ET.fromstring(text)
        if root is not None and instance is None:
            try:
                instance = memory.find(root)
            except (Invalid, Unsupported) as exc:
                instance = exc
        known = instance if isinstance(instance, Instance) else Instance()
        return Sight(
            guest,
            self.bulk.observe(guest, state, self.flagged, known),
            active=guest.uuid in self.flagged["active"],
            domain=None if root is None else read_domain(root),
            problems=[str(instance)] if isinstance(instance, LifecycleError) else [],
            root=root,
        )

    def _measure(self, sights: t.Sequence[Sight]) -> None:
        groups = {"cpu_total", "vcpu", "interface", "block"} if "statistics" in self.gather else set()
        if "disks" in self.gather:
            groups.add("block")
        if not groups:
            return
        found = self.bulk.statistics([sight.guest for sight in sights], *sorted(groups), backing="disks" in self.gather)
        who = "QEMU" if found else "libvirt"
        for sight in sights:
            sight.statistics = found.get(sight.guest.uuid, {"state.state": sight.seen.state})
            if sight.hangs or not found:
                sight.problems.append(f"{who} did not answer: there are no statistics, and sizes may be missing.")

    def _look_closer(self, sights: t.Sequence[Sight]) -> None:
        if "interfaces" in self.gather and any(sight.active for sight in sights):
            self.table = self.bulk.neighbours()
            try:
                self.leases = self.bulk.leases()
            except LifecycleError as exc:  # a host of bridges alone may not run virtnetworkd
                for sight in sights:
                    if (
                        sight.active
                        and sight.domain
                        and any(card.kind == "network" for card in sight.domain.interfaces)
                    ):
                        sight.problems.append(str(exc))
        counted = self.flagged["has_snapshot"] | self.flagged["has_checkpoint"]
        chosen = [
            sight for sight in sights if sight.active or sight.guest.uuid in counted or _has_disks(sight, self.gather)
        ]
        for sight, more in zip(chosen, within(self._more, chosen, seconds=PATIENCE)):
            if more is None:
                sight.problems.append(f"libvirt did not answer within {PATIENCE:g} seconds: details are missing.")
            else:
                sight.more = more
                sight.problems += more.problems

    def _more(self, sight: Sight) -> More:
        more, details, uuid = More(), Details(sight.guest), sight.guest.uuid
        domain = sight.domain
        try:
            if uuid in self.flagged["has_snapshot"]:
                more.snapshots = details.snapshots()
            if uuid in self.flagged["has_checkpoint"]:
                more.checkpoints = details.checkpoints()
            if sight.active and not sight.hangs:
                more.job = details.job()
            if domain and "disks" in self.gather and not sight.hangs:
                for disk in domain.disks:
                    if disk.empty:
                        continue
                    if not sight.active:
                        more.chains[disk.target] = self.chains.below(disk.image)
                    else:
                        job = details.block_job(disk.target)
                        if job:
                            more.block_jobs[disk.target] = job
        except NotFound:  # it ended meanwhile
            pass
        except LifecycleError as exc:
            more.problems.append(str(exc))
        if domain and domain.interfaces and sight.active and "interfaces" in self.gather and self.table is None:
            # Some libvirt cannot read the table of a newer kernel, and the addresses in it are a guess anyhow.
            with contextlib.suppress(LifecycleError):
                more.neighbours = details.neighbours()
        return more

    def _ask_agents(self, sights: t.Sequence[Sight]) -> None:
        chosen = [
            sight
            for sight in sights
            if sight.seen.state == status.RUNNING and sight.domain is not None and sight.domain.agent
        ]
        # libvirt gives up by itself, and only then lets others talk to the agent.
        patience = self.patience + _GRACE
        for sight, answer in zip(chosen, within(self._ask_agent, chosen, seconds=patience)):
            if answer is None:
                sight.problems.append(f"The guest agent did not answer within {patience:g} seconds.")
            elif isinstance(answer, LifecycleError):
                sight.problems.append(str(answer))
            else:
                sight.agent, refused = answer
                sight.problems += refused

    def _ask_agent(self, sight: Sight) -> tuple[Result, list[str]] | LifecycleError:
        try:
            return Details(sight.guest).agent(patience=self.patience)
        except LifecycleError as exc:
            return exc

    # ---- telling

    def _tell(self, sight: Sight) -> Result:
        uuid, domain, gather = sight.guest.uuid, sight.domain, self.gather
        traits = Traits(
            autostart=uuid in self.flagged["autostart"],
            snapshots=sight.more.snapshots,
            checkpoints=sight.more.checkpoints,
            uptime=self.bulk.uptime(sight.guest) if sight.active else None,
        )
        told: Result = {
            "name": sight.guest.name,
            "uuid": uuid,
            "host": self.host.name,
            **info.tell_status(sight.seen, traits),
            "shelf": self._tell_shelf(sight),
            "job": sight.more.job,
        }
        if domain and "config" in gather:
            told["config"] = info.tell_config(domain)
        if domain and "disks" in gather:
            told["disks"] = self._tell_disks(sight, domain.disks)
        if domain and "interfaces" in gather:
            told["interfaces"] = self._tell_interfaces(sight, domain)
        if domain and "graphics" in gather:
            told["graphics"] = [dict(vars(graphics)) for graphics in domain.graphics]
        if "statistics" in gather:
            told["statistics"] = figures(sight.statistics) if sight.active else None
        if domain and "guest" in gather:
            told["guest"] = _tell_guest(sight, domain)
        told["problems"] = sight.problems
        return told

    def _tell_shelf(self, sight: Sight) -> Result | None:
        return info.tell_shelf(sight.seen.instance, self.host.name, self.shelves.get(sight.guest.uuid))

    @staticmethod
    def _tell_disks(sight: Sight, disks: t.Sequence[Disk]) -> list[Result]:
        known = sizes(sight.statistics, running=sight.active)
        told = []
        for disk in disks:
            if disk.empty:
                chain = Chain((), known=True)
            elif sight.active:
                chain = info.running_chain(disk, known)
            else:
                chain = sight.more.chains.get(disk.target) or Chain((Layer(disk.image),), known=False)
                size = known.get((disk.target, None))
                if size and chain.layers[0].capacity is None:
                    top = replace(chain.layers[0], capacity=size.capacity, allocation=size.allocation)
                    chain = replace(chain, layers=(top, *chain.layers[1:]))
            told.append(info.tell_disk(disk, chain, sight.more.block_jobs.get(disk.target)))
        return told

    def _tell_interfaces(self, sight: Sight, domain: Domain) -> list[Result]:
        agent = info.agent_addresses(sight.agent or {})
        neighbours = sight.more.neighbours if self.table is None else self.table
        told = []
        for interface in domain.interfaces:
            sources = (agent, self.leases, neighbours) if sight.active else ()
            told.append(
                info.tell_interface(
                    interface, (address for source in sources for address in source.get(interface.mac, ()))
                )
            )
        return told


def _place(names: t.Sequence[str], vm: Result) -> int:
    """Where a VM was asked for."""
    return min((index for index, name in enumerate(names) if name in (vm["name"], vm["uuid"])), default=len(names))


def _has_disks(sight: Sight, gather: t.AbstractSet[str]) -> bool:
    return "disks" in gather and sight.domain is not None and not all(disk.empty for disk in sight.domain.disks)


def _tell_guest(sight: Sight, domain: Domain) -> Result:
    if sight.agent is not None:
        return info.tell_guest("connected", sight.agent)
    if domain.agent is None:
        return info.tell_guest("absent", {})
    return info.tell_guest("silent" if domain.agent else "disconnected", {})
