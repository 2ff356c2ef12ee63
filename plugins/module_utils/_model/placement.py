# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Planning where VMs go: away from a host that shall be empty, back to it, or from a dead one.

Facts in, a plan out. Whatever can be found at once is found at once, so that a reader sees all that stands in the way.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from .._core.errors import Invalid, Refused
from . import placement_facts as facts
from .placement_facts import COLD, LEAVE, LIVE, STOP, Raw, Vm
from .placement_rules import CODES, MIB, OFFLINE, START, STAYS, Obstacle, Rules
from .placement_search import Groups, Limits, Search, Unit, bundle, members, survives
from .placement_tell import changes, fingerprint, hosts_basis, table, vms_basis

DRAIN, RESTORE, EVACUATE = "drain", "restore", "evacuate"
# What becomes of VMs that are off.
MOVE = "move"
# What a guest does that ran when its host was emptied.
_RAN = ("running", "paused", "asleep")

Result = dict[str, t.Any]


@dataclass(frozen=True)
class Order:
    """What is wanted.

    :param kind: :data:`DRAIN`, :data:`RESTORE` or :data:`EVACUATE`.
    :param host: The host that it is about.
    :param hosts: Placement facts of those that answered, by name in the inventory.
    :param vms: For an evacuation: the VMs that the host had.
    :param strategy: What becomes of VMs that are on and whose owners have said nothing.
    :param stopped: What becomes of VMs that are off: ``leave`` or :data:`MOVE`.
    :param destinations: Names of hosts; ``None`` for all.
    :param exclude: What is known to be impossible: ``vm``, ``dest``, ``code`` and ``why`` of each.
    :param approved: A plan that was made before, and that shall be carried out as it is.
    :param override_lock: Move locked VMs too.
    :param dest_storage: As of :class:`.placement_rules.Rules`, and so the next.
    """

    kind: str
    host: str
    hosts: t.Mapping[str, Raw]
    vms: t.Sequence[Raw] = ()
    strategy: str = LIVE
    stopped: str = LEAVE
    limits: Limits = field(default_factory=Limits)
    destinations: t.Sequence[str] | None = None
    exclude: t.Sequence[Raw] = ()
    approved: Raw | None = None
    override_lock: bool = False
    dest_storage: str = ""
    shared_storage: t.Sequence[str] = ()


@dataclass
class Sorted:
    """What becomes of the VMs that a plan is about.

    :param movers: Those that go elsewhere, each with how.
    """

    movers: list[tuple[Vm, str]] = field(default_factory=list)
    stops: list[Result] = field(default_factory=list)
    stays: list[Result] = field(default_factory=list)
    starts: list[Result] = field(default_factory=list)
    blockers: list[Result] = field(default_factory=list)

    def stay(self, vm: Vm, code: str, why: str = "") -> None:
        """It stays where it is."""
        self.stays.append({"vm": vm.name, "uuid": vm.uuid, "code": code, "why": why or STAYS[code]})

    def block(self, vm: Vm, code: str, message: str, way_out: str = "") -> None:
        """It would have to go, and cannot."""
        self.blockers.append(_blocker(vm.name, vm.uuid, code, message, way_out))


def _blocker(name: str, uuid: str, code: str, message: str, way_out: str = "") -> Result:
    way_out = way_out or (CODES[code].way_out if code in CODES else "")
    return {"vm": name, "uuid": uuid, "code": code, "message": message, "way_out": way_out}


def plan(order: Order) -> Result:
    """The plan.

    :raises Invalid: The facts cannot be read, or there are none of the host.
    """
    return Planner(order).plan()


class Planner:
    """One plan in the making."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.hosts = facts.read_hosts(order.hosts)
        if order.kind == EVACUATE:
            # What the dead host says of itself is not asked.
            self.hosts.pop(order.host, None)
        elif order.host not in self.hosts:
            raise Invalid(
                f"There are no facts of {order.host}, which the plan is about.",
                hint="See that it answers, and hand over its host.placement of host_info as well.",
            )
        self.rules = Rules(self.hosts, dest_storage=order.dest_storage, shared_storage=order.shared_storage)
        self.subjects = sorted(self._subjects(), key=lambda vm: (vm.name, vm.uuid))
        self.homes = {str(raw["uuid"]): host.name for host in self.hosts.values() for raw in host.vms}
        self.sorted = Sorted()

    def plan(self) -> Result:
        """The plan."""
        for vm in self.subjects:
            {DRAIN: self._sort_leaving, RESTORE: self._sort_coming, EVACUATE: self._sort_dead}[self.order.kind](vm)
        groups = self._groups()
        search = self._search(groups)
        before = {name: account.tell() for name, account in search.accounts.items()}
        self._start_here(search)
        units = self._in_order(bundle(self.sorted.movers, groups), search)
        missing = self._as_approved(units, search) if self.order.approved is not None else search.run(units)
        self._leave(search)
        for unit in missing:
            self._tell_missing(unit, search)
        moves = self._moves(search)
        self._check_reserve(search)
        told: Result = {
            "kind": self.order.kind,
            "host": self.order.host,
            "complete": not self.sorted.blockers,
            "moves": moves,
            "stops": self.sorted.stops,
            "stays": sorted(self.sorted.stays, key=lambda each: (each["vm"], each["uuid"])),
            "starts": self.sorted.starts,
            "blockers": sorted(self.sorted.blockers, key=lambda each: (each["vm"], each["uuid"], each["code"])),
            "hosts": {name: {"before": before[name], "after": each.tell()} for name, each in search.accounts.items()},
        }
        told["basis"] = self.order.approved["basis"] if self.order.approved is not None else self._basis()
        told["fingerprint"] = fingerprint(told)
        told["table"] = table(told)
        return told

    # ---- what was approved

    def _basis(self) -> Result:
        """What the plan is made from, of the things that do not change by themselves."""
        order = self.order
        hosts = [
            host
            for host in self.hosts.values()
            if (host.name == order.host) == (order.kind == RESTORE)
            and (order.destinations is None or order.kind == RESTORE or host.name in order.destinations)
        ]
        return {"vms": vms_basis(self.subjects), "hosts": hosts_basis(hosts)}

    def _as_approved(self, units: t.Sequence[Unit], search: Search) -> list[Unit]:
        """Put VMs where the plan says that was approved.

        :raises Refused: Something has changed since.
        """
        then = self.order.approved or {}
        self._see_that_it_is_ours(then)
        found = changes(then, self._basis())
        wanted = {str(move["uuid"]): str(move["dest"]) for move in then["moves"]}
        missing = []
        for unit in units:
            account = search.accounts.get(wanted.get(unit.vms[0].uuid, ""))
            ways = search.look(unit, account) if account else None
            if account is None or ways is None:
                missing.append(unit)
            elif isinstance(ways, Obstacle):
                found.append(f"VM {unit.vms[0].name} cannot go to {account.host.name} any more: {ways.words}.")
            else:
                search.put(unit, account, ways)
        if found:
            raise Refused(
                f"The plan that was approved for {self.order.host} is refused, as the world has changed since:"
                f" {' '.join(found)}",
                hint="Plan again, and have that approved.",
                changed=found,
            )
        return missing

    def _see_that_it_is_ours(self, then: Raw) -> None:
        try:
            mine = (then["kind"], then["host"]) == (self.order.kind, self.order.host)
            whole = fingerprint(then) == then["fingerprint"]
            told = [str(each["uuid"]) for key in ("moves", "stops", "starts") for each in then[key]]
        except (KeyError, TypeError) as exc:
            raise Invalid(f"What was approved is no plan: {exc!r}.", hint="Hand over the whole of plan.") from exc
        if not mine:
            raise Invalid(f"What was approved is the plan of a {then['kind']} of {then['host']}.")
        if not whole or not {*told} <= {*then["basis"]["vms"]}:
            raise Invalid("The plan that was approved has been changed since it was made.", hint="Plan again.")

    # ---- whom it is about

    def _subjects(self) -> list[Vm]:
        host = self.order.host
        if self.order.kind == EVACUATE:
            return [facts.read_vm(host, raw) for raw in self.order.vms]
        if self.order.kind == DRAIN:
            return [facts.read_vm(host, raw) for raw in self.hosts[host].vms]
        names = (host, self.hosts[host].own)
        return [
            facts.read_vm(each.name, raw)
            for each in self.hosts.values()
            for raw in each.vms
            if raw["origin"] and raw["origin"]["host"] in names
        ]

    def _ran_here(self, vm: Vm) -> bool:
        """Whether it was on when somebody began to empty this host."""
        host = self.hosts[self.order.host]
        return vm.origin.get("host") in (host.name, host.own) and vm.origin.get("power") in _RAN

    def _sort_leaving(self, vm: Vm) -> None:
        """Of a host that shall be empty."""
        strategy = vm.strategy or self.order.strategy
        if strategy == LEAVE:
            self.sorted.stay(vm, "left")
        elif vm.task_state:
            self._block_busy(vm)
        elif not vm.on and self._ran_here(vm):
            self.sorted.stay(vm, "off", "The VM was shut down for this, and starts again when the host returns.")
        elif not vm.on and self.order.stopped != MOVE:
            self.sorted.stay(vm, "off")
        elif self._movable(vm, strategy):
            if vm.on and strategy == STOP:
                why = "its policy says stop" if vm.strategy else "the task says stop"
                self.sorted.stops.append({"vm": vm.name, "uuid": vm.uuid, "why": why})
            else:
                self.sorted.movers.append((vm, (COLD if strategy == COLD else LIVE) if vm.on else OFFLINE))

    def _sort_coming(self, vm: Vm) -> None:
        """That were on the host before."""
        if vm.host == self.order.host:
            if not vm.on and self._ran_here(vm):
                if vm.task_state:
                    self._block_busy(vm)
                else:
                    why = f"it was {vm.origin['power']} when the host was emptied"
                    self.sorted.starts.append({"vm": vm.name, "uuid": vm.uuid, "memory": vm.memory, "why": why})
            return
        if vm.strategy == LEAVE:
            self.sorted.stay(vm, "left")
        elif vm.task_state:
            self._block_busy(vm)
        elif not vm.on and self.order.stopped != MOVE:
            self.sorted.stay(vm, "off")
        elif self._movable(vm, vm.strategy):
            self.sorted.movers.append((vm, (COLD if vm.strategy == COLD else LIVE) if vm.on else OFFLINE))

    def _sort_dead(self, vm: Vm) -> None:
        """From a host that is dead."""
        if vm.uuid in self.homes:
            self.sorted.stay(vm, "elsewhere", f"The VM is on {self.homes[vm.uuid]} already.")
        elif vm.evacuated:
            self.sorted.stay(vm, "evacuated", f"An evacuation has brought the VM to {vm.evacuated} already.")
        elif vm.strategy == LEAVE:
            self.sorted.stay(vm, "left")
        elif not vm.on and self.order.stopped != MOVE:
            self.sorted.stay(vm, "off")
        elif vm.devices:
            self._block_devices(vm)
        else:
            self.sorted.movers.append((vm, START if vm.on else OFFLINE))

    def _movable(self, vm: Vm, strategy: str) -> bool:
        """Whether nothing of the VM itself stands in the way; tells all that does."""
        known = len(self.sorted.blockers)
        stops = vm.on and strategy in (STOP, COLD)
        if vm.locked and not self.order.override_lock:
            self.sorted.block(vm, "locked", f"VM {vm.name} is locked.")
        allowed = ("ACTIVE",) if vm.on and strategy == COLD else ("ACTIVE", "PAUSED", "SHUTOFF")
        if vm.condition == "suspended":
            message = f"VM {vm.name} is suspended: its memory lies in a file of {vm.host}, which does not come along."
            self.sorted.block(vm, "saved_memory", message)
        elif vm.status not in allowed and not (vm.on and strategy == STOP):
            message = f"VM {vm.name} is {vm.status}, and cannot be moved in that status."
            self.sorted.block(vm, "wrong_status", message)
        if not vm.persistent and stops:
            self.sorted.block(
                vm, "not_persistent", f"VM {vm.name} is not defined: nothing is left of it when it is off."
            )
        if vm.devices and strategy != STOP:
            self._block_devices(vm)
        return len(self.sorted.blockers) == known

    def _block_busy(self, vm: Vm) -> None:
        self.sorted.block(vm, "busy", f"VM {vm.name} is busy: {vm.task_state}.")

    def _block_devices(self, vm: Vm) -> None:
        self.sorted.block(vm, "host_device", f"VM {vm.name} has devices of {vm.host}: {', '.join(vm.devices)}.")

    # ---- where to

    def _groups(self) -> Groups:
        """Of all VMs; those of a dead host are nowhere."""
        here = [pair for host in self.hosts.values() for pair in members(host.name, host.vms)]
        dead = [(vm.host, vm) for vm in self.subjects] if self.order.kind == EVACUATE else []
        gone = {vm.uuid for vm in self.subjects} if dead else {vm.uuid for vm, _how in self.sorted.movers}
        there = {vm.uuid for _host, vm in here} if dead else set()
        return Groups([*here, *dead], gone - there)

    def _search(self, groups: Groups) -> Search:
        order = self.order
        barred: dict[str, Obstacle] = {}
        for name, host in self.hosts.items():
            if order.kind == RESTORE and name == order.host:
                continue
            if order.kind == RESTORE or name == order.host:
                barred[name] = Obstacle("not_a_destination", f"{name} is not where it came from")
            elif order.destinations is not None and name not in order.destinations:
                barred[name] = Obstacle("not_a_destination", f"{name} is not among the destinations")
            elif not host.enabled:
                why = f" ({host.reason})" if host.reason else ""
                barred[name] = Obstacle("host_disabled", f"{name} is out of scheduling{why}")
        excluded: dict[tuple[str, str], Obstacle] = {}
        for each in order.exclude:
            words = str(each.get("why") or f"{each['dest']} is excluded").rstrip(". ")
            excluded.setdefault(
                (str(each["vm"]), str(each["dest"])), Obstacle(str(each.get("code") or "excluded"), words)
            )
        return Search(self.rules, self.hosts.values(), order.limits, groups, barred=barred, excluded=excluded)

    def _in_order(self, units: list[Unit], search: Search) -> list[Unit]:
        """Who finds a place first."""
        if self.order.kind == EVACUATE:
            return sorted(units, key=lambda unit: (-max(vm.priority for vm in unit.vms), -unit.memory, unit.key))
        if self.order.kind == RESTORE:
            # As many as fit come back.
            return sorted(units, key=lambda unit: (-max(vm.priority for vm in unit.vms), unit.memory, unit.key))
        # What is large finds a place while there is much room.
        memory = max((account.memory_limit for account in search.open), default=0) or 1
        cpus = max((account.cpus_limit for account in search.open), default=0) or 1
        return sorted(units, key=lambda unit: (-len(unit.vms), -max(unit.memory / memory, unit.vcpus / cpus), unit.key))

    def _start_here(self, search: Search) -> None:
        """VMs that ran on the host take what they need before others come."""
        if self.order.kind != RESTORE:
            return
        known = {vm.uuid: vm for vm in self.subjects}
        account = search.accounts[self.order.host]
        fitting = []
        for start in sorted(
            self.sorted.starts, key=lambda each: (-known[each["uuid"]].priority, each["memory"], each["vm"])
        ):
            vm = known[start["uuid"]]
            if account.memory + vm.memory > account.memory_limit:
                left = max(0, account.memory_limit - account.memory)
                why = (
                    f"{account.host.name} has {left} MiB left of its {account.memory_limit}, and it needs {vm.memory}."
                )
                self.sorted.stay(vm, "memory_promised", why)
                continue
            account.memory += vm.memory
            account.cpus += vm.vcpus
            account.real -= vm.memory
            account.vms += 1
            fitting.append(start)
        self.sorted.starts = fitting

    def _leave(self, search: Search) -> None:
        """What leaves a host is not there any more."""
        if self.order.kind == EVACUATE:
            return
        for unit in search.where:
            for vm, how in zip(unit.vms, unit.hows):
                if how != OFFLINE:
                    search.leave(search.accounts[vm.host], [vm])
        stopped = {stop["uuid"] for stop in self.sorted.stops}
        search.leave(search.accounts[self.order.host], [vm for vm in self.subjects if vm.uuid in stopped])

    def _tell_missing(self, unit: Unit, search: Search) -> None:
        """Why no host takes them."""
        reasons: dict[str, list[Obstacle]] = {}
        for name, account in search.accounts.items():
            if name != self.order.host or self.order.kind == RESTORE:
                found = search.look(unit, account)
                if isinstance(found, Obstacle) and not (self.order.kind == RESTORE and name != self.order.host):
                    reasons.setdefault(found.code, []).append(found)
        # Who is no destination matters only when there is none.
        told = {code: found for code, found in reasons.items() if code != "not_a_destination"} or reasons
        code = next(iter(told)) if len(told) == 1 else "no_valid_host"
        words = "; ".join(
            found[0].words + (f", and {len(found) - 1} more like it" if len(found) > 1 else "")
            for _code, found in sorted(told.items())
        )
        for vm, how in zip(unit.vms, unit.hows):
            needs = (
                f"{vm.memory} MiB and {vm.vcpus} CPU{'' if vm.vcpus == 1 else 's'}" if how != OFFLINE else "no memory"
            )
            others = f" with {', '.join(each.name for each in unit.vms if each is not vm)}" if len(unit.vms) > 1 else ""
            message = f"No host takes VM {vm.name}{others}, which needs {needs}: {words or 'there is none'}."
            if self.order.kind == RESTORE:
                self.sorted.stay(vm, code, message)
            elif code == "no_shared_disk":
                lost = [disk for disk in vm.disks if not disk.network]
                size = sum(disk.bytes for disk in lost) // MIB
                paths = ", ".join(disk.path for disk in lost)
                self.sorted.block(
                    vm, code, f"VM {vm.name} has disks that no other host sees: {paths}; {size} MiB would be lost."
                )
            else:
                self.sorted.block(vm, code, message)

    def _check_reserve(self, search: Search) -> None:
        number = self.order.limits.reserve_hosts
        if not number or self.order.kind == RESTORE:
            return
        moved = {vm.uuid for unit in search.where for vm in unit.vms}
        guests = {
            name: [
                (int(raw["memory"]), int(raw["vcpus"]))
                for raw in account.host.vms
                if facts.on(str(raw["condition"])) and str(raw["uuid"]) not in moved
            ]
            for name, account in search.accounts.items()
            if name not in search.barred
        }
        for unit, (account, _ways) in search.where.items():
            guests[account.host.name] += [(vm.memory, vm.vcpus) for vm in unit.taking]
        failed = survives(search.open, number, guests)
        if failed:
            message = (
                f"Afterwards, {number} of the largest hosts may not fail: the VMs of {failed} would not all find room."
            )
            self.sorted.blockers.append(_blocker("", "", "reserve_short", message))

    # ---- the moves

    def _moves(self, search: Search) -> list[Result]:
        pairs = [
            (vm, how, account, way, unit)
            for unit, (account, ways) in search.where.items()
            for vm, how, way in zip(unit.vms, unit.hows, ways)
        ]
        moves = []
        for vm, how, account, way, unit in pairs:
            guest = vm.memory if how == LIVE else 0
            moves.append(
                (
                    self._rank(vm, shared=way.shared, cost=guest + way.bytes // MIB),
                    {
                        "vm": vm.name,
                        "uuid": vm.uuid,
                        "source": vm.host,
                        "dest": account.host.name,
                        # One that is off and whose disks have to be carried goes as a cold migration does.
                        "how": COLD if how == OFFLINE and not way.shared and self.order.kind != EVACUATE else how,
                        "shared": way.shared,
                        "memory": vm.memory,
                        "cost": guest + way.bytes // MIB,
                        "why": self._why(vm, how, unit, way.shared),
                    },
                )
            )
        return [move for _rank, move in sorted(moves, key=lambda each: each[0])]

    def _rank(self, vm: Vm, *, shared: bool, cost: int) -> tuple[t.Any, ...]:
        """Cheapest first; from a dead host, what matters most."""
        if self.order.kind == EVACUATE:
            return -vm.priority, -vm.memory, vm.name, vm.uuid
        return not shared, vm.dirty_rate, cost, vm.name, vm.uuid

    def _why(self, vm: Vm, how: str, unit: Unit, shared: bool) -> str:
        words = []
        if self.order.kind == RESTORE:
            words.append("it came from there")
        elif len(unit.vms) > 1:
            words.append(f"together with {', '.join(each.name for each in unit.vms if each is not vm)}")
        elif shared:
            words.append("least loaded of those that see its disks" if vm.disks else "least loaded")
        else:
            words.append("least loaded of those that take its disks")
        if self.order.kind == EVACUATE and vm.priority:
            words.append(f"priority {vm.priority}")
        if self.order.kind == EVACUATE and vm.condition == "suspended":
            words.append("its saved memory is lost")
        return ", ".join(words)
