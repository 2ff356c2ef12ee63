# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Finding a host for each of many VMs: what each host has left, the least loaded one that can take a VM, and another
try for those that find none though the others could make room.

The same input gives the same answer, in whatever order hosts and VMs are handed in.
"""

from __future__ import annotations

import collections
import heapq
import typing as t
from dataclasses import dataclass

from .placement_facts import (
    AFFINITY,
    ANTI_AFFINITY,
    POLICIES,
    SOFT_AFFINITY,
    SOFT_ANTI_AFFINITY,
    Disk,
    Host,
    Raw,
    Vm,
    on,
)
from .placement_rules import MIB, OFFLINE, Obstacle, Rules, Way

# How many pairs of a VM and a host are looked at, at the most, to find places for those that have found none.
_EFFORT = 20_000
# How many VMs may be shuffled in all ways, and onto how many pairs of a VM and a host.
_SHUFFLED = 200, 20_000

# Hosts, the least loaded first, by what is bad about them and by their size.
Badness = tuple[bool, int]
Heaps = dict["tuple[Badness, tuple[int, int]]", "list[tuple[tuple[float, int, str], Account]]"]
# How VMs get to one host, in the order in which their unit has them.
Ways = tuple[Way, ...]


@dataclass(frozen=True)
class Limits:
    """How full hosts may become. The defaults are Nova's.

    :param cpu_ratio: CPUs of VMs that are on, for each of the host's (Nova: ``initial_cpu_allocation_ratio``).
    :param memory_ratio: The same of memory (``initial_ram_allocation_ratio``).
    :param disk_ratio: Of a file system's capacity, what may be used (``initial_disk_allocation_ratio``).
    :param memory_reserve: MiB that are the host's own (``reserved_host_memory_mb``).
    :param reserve_hosts: How many of the largest hosts may fail afterwards, and all VMs still find room.
    :param overcommit: For the room that carried disks need, count what they take now, not what they may grow to.
    """

    cpu_ratio: float = 4.0
    memory_ratio: float = 1.0
    disk_ratio: float = 1.0
    memory_reserve: int = 512
    reserve_hosts: int = 0
    overcommit: bool = False

    def room(self, disk: Disk) -> int:
        """Bytes that a disk counts where it is carried to."""
        return disk.bytes if self.overcommit else max(disk.bytes, disk.size)


class Unit:
    """VMs that go to the same host: one, or those of a group that belong together.

    :param hows: How each goes.
    """

    def __init__(self, vms: t.Sequence[Vm], hows: t.Sequence[str]) -> None:
        self.vms = tuple(vms)
        self.hows = tuple(hows)
        # Those that take memory (MiB) and CPUs where they arrive, and how much.
        self.taking = [vm for vm, how in zip(vms, hows) if how != OFFLINE]
        self.memory = sum(vm.memory for vm in self.taking)
        self.vcpus = sum(vm.vcpus for vm in self.taking)
        # For a stable order.
        self.key = self.vms[0].name, self.vms[0].uuid


class Account:
    """What a host has, and what is taken of it. Memory in MiB, storage in bytes."""

    def __init__(self, host: Host, limits: Limits) -> None:
        self.host = host
        self.memory_limit = max(0, int((host.memory - limits.memory_reserve) * limits.memory_ratio))
        self.memory = host.running
        # Who promises more than there is bears it that guests do not get all at once.
        self.real = int(host.available * max(1.0, limits.memory_ratio))
        self.cpus_limit = int(host.cpus * limits.cpu_ratio)
        self.cpus = host.running_cpus
        self.vms = sum(on(str(raw["condition"])) for raw in host.vms)
        self.coming = 0
        self.names = {str(raw["name"]): raw for raw in host.vms}
        self.uuids = {str(raw["uuid"]): raw for raw in host.vms}
        self.members: collections.Counter[str] = collections.Counter()

    def load(self, memory: int = 0, vcpus: int = 0) -> float:
        """The larger of the shares of memory and of CPUs that are taken, with these on top."""
        shares = (self.memory + memory) / (self.memory_limit or 1), (self.cpus + vcpus) / (self.cpus_limit or 1)
        return max(shares)

    @property
    def order(self) -> tuple[float, int, str]:
        """The least loaded first; of equal ones that to which the fewest have come."""
        return self.load(), self.coming, self.host.name

    @property
    def size(self) -> tuple[int, int]:
        """Equal for hosts that are about as large."""
        return _rounded(self.memory_limit), _rounded(self.cpus_limit)

    def tell(self) -> dict[str, int]:
        """For results."""
        return {
            "vms": self.vms,
            "memory": self.memory,
            "memory_limit": self.memory_limit,
            "cpus": self.cpus,
            "cpus_limit": self.cpus_limit,
            "load": round(100 * self.load()),
        }


def _rounded(number: int) -> int:
    """To its three highest bits."""
    low = max(0, number.bit_length() - 3)
    return number >> low << low


class Groups:
    """Which VMs belong together or apart, and where those of them are that do not move.

    :param vms: Pairs of a host's name and a VM, of all hosts, those that move included.
    :param moving: UUIDs of those that move.
    """

    def __init__(self, vms: t.Iterable[tuple[str, t.Any]], moving: t.Container[str]) -> None:
        self.policies: dict[str, str] = {}
        self.apart: dict[str, collections.Counter[str]] = {}
        self.together: dict[str, set[str]] = {}
        for host, vm in vms:
            for name, policy in vm.groups:
                known = self.policies.get(name, policy)
                self.policies[name] = min(known, policy, key=_strength)
                if vm.uuid not in moving:
                    self.apart.setdefault(host, collections.Counter())[name] += 1
                    if vm.on:
                        self.together.setdefault(name, set()).add(host)

    def of(self, vm: Vm) -> list[tuple[str, str]]:
        """The VM's groups, each with the strongest policy that one of its VMs has for it."""
        return [(name, self.policies[name]) for name, _policy in vm.groups]


def _strength(policy: str) -> int:
    return POLICIES.index(policy) if policy in POLICIES else len(POLICIES)


class Member(t.NamedTuple):
    """A VM that is in groups, wherever it is."""

    uuid: str
    on: bool
    groups: tuple[tuple[str, str], ...]


def members(host: str, raws: t.Iterable[Raw]) -> t.Iterator[tuple[str, Member]]:
    """Those of a host's VMs that are in groups."""
    for raw in raws:
        if raw["groups"]:
            groups = tuple((str(group["name"]), str(group["policy"])) for group in raw["groups"])
            yield host, Member(str(raw["uuid"]), on(str(raw["condition"])), groups)


def bundle(vms: t.Sequence[tuple[Vm, str]], groups: Groups) -> list[Unit]:
    """Units of VMs that have to go together.

    :param vms: Each with how it goes.
    """
    heads = list(range(len(vms)))

    def head(index: int) -> int:
        while heads[index] != index:
            index = heads[index]
        return index

    first: dict[str, int] = {}
    for index, (vm, _how) in enumerate(vms):
        for name, policy in groups.of(vm):
            if policy == AFFINITY:
                heads[head(index)] = head(first.setdefault(name, index))
    found: dict[int, list[tuple[Vm, str]]] = {}
    for index, each in enumerate(vms):
        found.setdefault(head(index), []).append(each)
    units = []
    for unit in found.values():
        mine = sorted(unit, key=lambda each: (each[0].name, each[0].uuid)) if len(unit) > 1 else unit
        units.append(Unit([vm for vm, _how in mine], [how for _vm, how in mine]))
    return units


class Search:
    """Finds hosts for VMs.

    :param hosts: Those that are there, without the one that the VMs leave.
    :param barred: What stands against a host whatever the VM, by its name.
    :param excluded: What is known to be impossible: by the VM's name or UUID and the host's name.
    """

    def __init__(
        self,
        rules: Rules,
        hosts: t.Iterable[Host],
        limits: Limits,
        groups: Groups,
        *,
        barred: t.Mapping[str, Obstacle],
        excluded: t.Mapping[tuple[str, str], Obstacle],
    ) -> None:
        self.rules = rules
        self.limits = limits
        self.groups = groups
        self.barred = barred
        self.excluded = excluded
        self.accounts = {host.name: Account(host, limits) for host in hosts}
        self.open = [account for name, account in sorted(self.accounts.items()) if name not in barred]
        self.rooms: dict[t.Hashable, float] = {}
        for account in self.accounts.values():
            account.members.update(groups.apart.get(account.host.name, {}))
            for place in account.host.storage.values():
                used = place.capacity - place.available
                left = min(place.available, place.capacity * limits.disk_ratio - used)
                key = self._room(account, place.path)
                self.rooms[key] = min(self.rooms.get(key, left), left)
        self.where: dict[Unit, tuple[Account, Ways]] = {}
        self._heaps: dict[t.Hashable, Heaps] = {}
        self._effort = 0

    # ---- the books

    @staticmethod
    def _room(account: Account, place: str) -> t.Hashable:
        """Storage that several hosts see is filled by all of them."""
        storage = account.host.storage[place]
        return storage.shared or (account.host.name, place)

    def _book(self, unit: Unit, account: Account, ways: Ways, sign: int) -> None:
        memory, taking = unit.memory, unit.taking
        account.memory += sign * memory
        account.real -= sign * memory
        account.cpus += sign * unit.vcpus
        account.vms += sign * len(taking)
        account.coming += sign * len(unit.vms)
        for vm, way in zip(unit.vms, ways):
            for name, _policy in vm.groups:
                account.members[name] += sign
            for place, disk in way.carried:
                self.rooms[self._room(account, place)] -= sign * self.limits.room(disk)

    def put(self, unit: Unit, account: Account, ways: Ways) -> None:
        """To that host."""
        self._book(unit, account, ways, 1)
        self.where[unit] = account, ways

    def take(self, unit: Unit) -> tuple[Account, Ways]:
        """Away from its host again."""
        account, ways = self.where.pop(unit)
        self._book(unit, account, ways, -1)
        return account, ways

    def leave(self, account: Account, vms: t.Iterable[Vm]) -> None:
        """VMs that are on leave their host."""
        for vm in vms:
            if vm.on:
                account.memory -= vm.memory
                account.cpus -= vm.vcpus
                account.vms -= 1

    # ---- one VM and one host

    def look(self, unit: Unit, account: Account) -> Ways | Obstacle:
        """How they get to a host, or what stands against it, with all that has been put there."""
        name = account.host.name
        if name in self.barred:
            return self.barred[name]
        ways: list[Way] = []
        for vm, how in zip(unit.vms, unit.hows):
            obstacle = self.excluded.get((vm.uuid, name)) or self.excluded.get((vm.name, name))
            way = self.rules.way(vm, how, account.host)
            if obstacle or isinstance(way, Obstacle):
                return obstacle or t.cast(Obstacle, way)
            ways.append(way)
        found = tuple(ways)
        return self._taken(unit, account) or self._full(unit, account, found) or self._grouped(unit, account) or found

    @staticmethod
    def _taken(unit: Unit, account: Account) -> Obstacle | None:
        name = account.host.name
        for vm in unit.vms:
            same = account.uuids.get(vm.uuid)
            if same and on(str(same["condition"])):
                return Obstacle("runs_there", f"it runs on {name} as well")
            if not same and vm.name in account.names:
                return Obstacle("name_taken", f"{name} has another VM of that name")
        return None

    def _full(self, unit: Unit, account: Account, ways: Ways) -> Obstacle | None:
        name, memory, vcpus = account.host.name, unit.memory, unit.vcpus
        if memory and account.memory + memory > account.memory_limit:
            left = max(0, account.memory_limit - account.memory)
            return Obstacle("memory_promised", f"{name} has {left} MiB left of its {account.memory_limit}")
        if memory > account.real:
            return Obstacle("memory_short", f"of {name}'s memory {max(0, account.real)} MiB can be had")
        if vcpus and account.cpus + vcpus > account.cpus_limit:
            left = max(0, account.cpus_limit - account.cpus)
            return Obstacle("cpus_short", f"{name} has {left} CPUs left of its {account.cpus_limit}")
        needed: dict[str, int] = {}
        for way in ways:
            for place, disk in way.carried:
                needed[place] = needed.get(place, 0) + self.limits.room(disk)
        for place, number in needed.items():
            left = int(max(0, self.rooms[self._room(account, place)]))
            if number > left:
                told = f"{name} has {left // MIB} MiB left in {place}, and {-(-number // MIB)} MiB would be carried"
                return Obstacle("no_room", told)
        return None

    def _grouped(self, unit: Unit, account: Account) -> Obstacle | None:
        name = account.host.name
        seen: set[str] = set()
        for vm in unit.vms:
            for group, policy in self.groups.of(vm):
                if policy == ANTI_AFFINITY:
                    if account.members[group] or group in seen:
                        return Obstacle("anti_affinity", f"another VM of the group {group} is on {name}")
                    seen.add(group)
                elif policy == AFFINITY and name not in self.groups.together.get(group, (name,)):
                    there = ", ".join(sorted(self.groups.together[group]))
                    return Obstacle("affinity", f"{name} is not where the group {group} is, which is on {there}")
        return None

    def _likes(self, unit: Unit, account: Account) -> int:
        """What soft policies say about a host; the less, the better."""
        found = 0
        for vm in unit.vms:
            for group, policy in self.groups.of(vm):
                found += (account.members[group] if policy == SOFT_ANTI_AFFINITY else 0) - (
                    min(1, account.members[group]) if policy == SOFT_AFFINITY else 0
                )
        return found

    def candidates(self, unit: Unit) -> list[tuple[Account, Ways]]:
        """The hosts that can take them now, the best first."""
        found = []
        for account in self.open:
            self._effort += 1
            ways = self.look(unit, account)
            if not isinstance(ways, Obstacle):
                badness = max(way.older for way in ways), sum(len(way.carried) for way in ways)
                after = account.load(unit.memory, unit.vcpus)
                key = *badness, self._likes(unit, account), after, account.coming, account.host.name
                found.append((key, account, ways))
        return [(account, ways) for _key, account, ways in sorted(found, key=lambda each: each[0])]

    # ---- all of them

    def run(self, units: t.Sequence[Unit]) -> list[Unit]:
        """Put them all, those that come first before the others. Returns those that find no place."""
        missing = []
        for unit in units:
            best = self._quickly(unit) if self._plain(unit) else next(iter(self.candidates(unit)), None)
            if best:
                self.put(unit, *best)
            else:
                missing.append(unit)
        self._effort = 0
        missing = self._make_rooms(missing)
        if missing and len(units) <= _SHUFFLED[0] and len(units) * len(self.open) <= _SHUFFLED[1]:
            missing = self._shuffle(units, missing)
        return missing

    @staticmethod
    def _plain(unit: Unit) -> bool:
        """Whether it is one VM, and nobody else has a say where it goes."""
        return len(unit.vms) == 1 and not unit.vms[0].groups

    def _quickly(self, unit: Unit) -> tuple[Account, Ways] | None:
        """The same as the first of :meth:`candidates`, nearly, without looking at each host: of about equal hosts, for
        which VMs of a kind are alike, the least loaded one is the first."""
        vm, how = unit.vms[0], unit.hows[0]
        best: tuple[t.Any, Account, Ways] | None = None
        for (badness, _size), heap in self._sorted(vm, how).items():
            aside = []
            while heap:
                order, account = heap[0]
                if order != account.order:
                    heapq.heapreplace(heap, (account.order, account))
                    continue
                ways = self.look(unit, account)
                if not isinstance(ways, Obstacle):
                    key = badness, account.load(unit.memory, unit.vcpus), account.coming, account.host.name
                    if best is None or key < best[0]:
                        best = key, account, ways
                    break
                aside.append(heapq.heappop(heap))
            for entry in aside:
                heapq.heappush(heap, entry)
        return best[1:] if best else None

    def _sorted(self, vm: Vm, how: str) -> Heaps:
        """Hosts that VMs of a kind may go to, by what is bad about them and by their size."""
        kind = self.rules.kind(vm, how)
        if kind not in self._heaps:
            heaps: Heaps = {}
            for account in self.open:
                way = self.rules.way(vm, how, account.host)
                if not isinstance(way, Obstacle):
                    heaps.setdefault((way.badness, account.size), []).append((account.order, account))
            for heap in heaps.values():
                heapq.heapify(heap)
            self._heaps[kind] = {key: heaps[key] for key in sorted(heaps)}
        return self._heaps[kind]

    def _make_rooms(self, units: t.Sequence[Unit]) -> list[Unit]:
        """Those for which no room could be made. What found none for one finds none for another one that is alike."""
        missing: list[Unit] = []
        hopeless: set[t.Hashable] = set()
        named = {name for name, _host in self.excluded}
        for unit in units:
            vm = unit.vms[0]
            rooms = tuple(self.limits.room(disk) for disk in vm.disks)
            alike = (
                self._plain(unit)
                and vm.name not in named
                and vm.uuid not in named
                and (self.rules.kind(vm, unit.hows[0]), unit.memory, unit.vcpus, rooms)
            )
            if alike and alike in hopeless:
                missing.append(unit)
            elif self._make_room(unit):
                hopeless.clear()
            else:
                missing.append(unit)
                hopeless.update([alike] if alike else [])
        return missing

    def _make_room(self, unit: Unit) -> bool:
        """Put a VM where another one was that fits elsewhere."""
        best = next(iter(self.candidates(unit)), None)
        if best:
            self.put(unit, *best)
            return True
        guests: dict[str, list[Unit]] = {}
        for other, (account, _ways) in self.where.items():
            guests.setdefault(account.host.name, []).append(other)
        for account in self.open:
            for other in sorted(guests.get(account.host.name, ()), key=lambda each: (each.memory, each.key)):
                if self._effort > _EFFORT:
                    return False
                self._effort += 1
                back = self.take(other)
                ways = self.look(unit, account)
                if not isinstance(ways, Obstacle):
                    self.put(unit, account, ways)
                    place = next(iter(self.candidates(other)), None)
                    if place:
                        self.put(other, *place)
                        return True
                    self.take(unit)
                self.put(other, *back)
        return False

    def _shuffle(self, units: t.Sequence[Unit], missing: list[Unit]) -> list[Unit]:
        """Try all ways to put those that have a place at all when they are alone, as long as it does not take too
        long. What was found before stays when that finds nothing."""
        before = dict(self.where)
        for unit in before:
            self.take(unit)
        choices = {unit: len(self.candidates(unit)) for unit in units}
        possible = sorted(
            (unit for unit in units if choices[unit]),
            key=lambda each: (choices[each], -each.memory, -each.vcpus, each.key),
        )
        memory = sum(max(0, account.memory_limit - account.memory) for account in self.open)
        enough = sum(unit.memory for unit in possible) <= memory
        if enough and len(possible) > len(before) and self._deeper(possible, 0):
            return [unit for unit in missing if unit not in self.where]
        for unit in [*self.where]:
            self.take(unit)
        for unit, place in before.items():
            self.put(unit, *place)
        return missing

    def _deeper(self, units: t.Sequence[Unit], index: int) -> bool:
        if index == len(units):
            return True
        for account, ways in self.candidates(units[index]):
            if self._effort > 3 * _EFFORT:
                return False
            self.put(units[index], account, ways)
            if self._deeper(units, index + 1):
                return True
            self.take(units[index])
        return False


def survives(accounts: t.Iterable[Account], number: int, guests: t.Mapping[str, t.Sequence[tuple[int, int]]]) -> str:
    """Whether all VMs still find memory and CPUs when the largest hosts fail; the name of one whose VMs do not, or
    nothing.

    :param number: How many fail, and those with the most memory.
    :param guests: Memory and CPUs of VMs that are on, by host.
    """
    order = sorted(accounts, key=lambda each: (-each.memory_limit, -each.memory, each.host.name))
    heap = [(account.load(), account.host.name, account.memory, account.cpus, account) for account in order[number:]]
    heapq.heapify(heap)
    for failed in order[:number]:
        for memory, vcpus in sorted(guests.get(failed.host.name, ()), reverse=True):
            aside = []
            while heap:
                _load, name, used, cpus, account = heapq.heappop(heap)
                if used + memory <= account.memory_limit and cpus + vcpus <= account.cpus_limit:
                    used, cpus = used + memory, cpus + vcpus
                    load = max(used / (account.memory_limit or 1), cpus / (account.cpus_limit or 1))
                    heapq.heappush(heap, (load, name, used, cpus, account))
                    break
                aside.append((_load, name, used, cpus, account))
            else:
                return failed.host.name
            for entry in aside:
                heapq.heappush(heap, entry)
    return ""
