# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What libvirt tells about many VMs in one call."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

try:
    import libvirt
except ImportError:  # run_query() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import LifecycleError, TimedOut
from .._core.workers import spread, within
from .._model.capacity import on
from .._model.info import Address
from .._model.instance import Instance
from .._model.statistics import answered
from .._model.status import NOSTATE, Observation
from .errors import doing
from .guest import Guest
from .host import Host

# Seconds that the bulk statistics may take. A QEMU that hangs, because its storage is gone for example, lets libvirtd
# wait for ever; how many such VMs to bear.
PATIENCE = 10.0
HANGING = 3
# Seconds for which it is looked what guests change.
_SAMPLE = 1

_PID_FILES = "/run/libvirt/qemu"
_NEIGHBOURS = "/proc/net/arp"

Raw = t.Mapping[str, t.Any]


class Bulk:
    """Looking at many VMs of a host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def flagged(self, *names: str) -> dict[str, frozenset[str]]:
        """The UUIDs of the VMs for which something is so, for each of *names*: ``managedsave``, ``persistent``,
        ``autostart``, ``has_snapshot``, ``has_checkpoint``, ``active``."""
        with doing(f"list the VMs of {self.host.name}"):
            return {
                name: frozenset(
                    domain.UUIDString()
                    for domain in self.host.connection.listAllDomains(
                        getattr(libvirt, f"VIR_CONNECT_LIST_DOMAINS_{name.upper()}")
                    )
                )
                for name in names
            }

    def states(self, guests: t.Sequence[Guest]) -> dict[str, tuple[int, int]]:
        """virDomainState and its reason, by UUID. VMs that vanished meanwhile are left out."""
        with doing(f"look at the VMs of {self.host.name}"):
            return {
                uuid: (raw.get("state.state", libvirt.VIR_DOMAIN_NOSTATE), raw.get("state.reason", 0))
                for uuid, raw in self._statistics(guests, libvirt.VIR_DOMAIN_STATS_STATE, 0).items()
            }

    def look(self, guests: t.Sequence[Guest]) -> dict[str, Observation | LifecycleError]:
        """Look at many VMs with few calls.

        :returns: By UUID, the observation, or the error for a VM that vanished or whose metadata cannot be read.
        """
        if not guests:
            return {}
        states = self.states(guests)
        flagged = self.flagged("managedsave", "persistent")

        def recall(guest: Guest) -> Instance | LifecycleError:
            try:
                return guest.recall(persistent=guest.uuid in flagged["persistent"])
            except LifecycleError as exc:
                exc.details.setdefault("name", guest.name)
                return exc

        return {
            guest.uuid: self.observe(guest, states.get(guest.uuid), flagged, instance)
            if isinstance(instance, Instance)
            else instance
            for guest, instance in zip(guests, spread(recall, guests))
        }

    @staticmethod
    def observe(
        guest: Guest, state: tuple[int, int] | None, flagged: t.Mapping[str, frozenset[str]], instance: Instance
    ) -> Observation:
        """What the calls for many VMs say of one.

        :param flagged: With ``managedsave`` and ``persistent``.
        """
        return Observation(
            name=guest.name,
            uuid=guest.uuid,
            state=state[0] if state else NOSTATE,
            reason=state[1] if state else 0,
            managed_save=guest.uuid in flagged["managedsave"],
            persistent=guest.uuid in flagged["persistent"],
            instance=instance,
            running=guest.running_operation(),
        )

    def statistics(self, guests: t.Sequence[Guest], *groups: str, backing: bool = False) -> dict[str, Raw]:
        """Statistics by UUID.

        No VM is waited for that is busy with another request, at first: those are asked again at the end. If one hangs,
        it is busy with our question when we ask the others again, and is passed over.

        :param groups: Beside ``state`` and ``balloon``: ``cpu_total``, ``vcpu``, ``interface``, ``block``.
        :param backing: With the images below the top of every disk; only running VMs have them.
        """
        wanted = libvirt.VIR_DOMAIN_STATS_STATE | libvirt.VIR_DOMAIN_STATS_BALLOON
        for group in groups:
            wanted |= getattr(libvirt, f"VIR_DOMAIN_STATS_{group.upper()}")
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING if backing else 0
        found: dict[str, Raw] | None = None
        for _attempt in range(HANGING + 1):
            found = self._in_time(guests, wanted, flags | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT)
            if found is not None:
                break
        if found is None:
            return {}
        busy = [guest for guest in guests if on(found.get(guest.uuid, {})) and not answered(found[guest.uuid])]
        if busy:
            found.update(self._in_time(busy, wanted, flags) or {})
        return found

    def _in_time(self, guests: t.Sequence[Guest], groups: int, flags: int) -> dict[str, Raw] | None:
        """``None`` when there is no answer in time."""

        def ask(_nothing: None) -> dict[str, Raw] | LifecycleError:
            try:
                with doing(f"get the statistics of the VMs of {self.host.name}"):
                    return self._statistics(guests, groups, flags)
            except LifecycleError as exc:
                return exc

        (answer,) = within(ask, [None], seconds=PATIENCE)
        if isinstance(answer, LifecycleError):
            raise answer
        return answer

    def _statistics(self, guests: t.Sequence[Guest], groups: int, flags: int) -> dict[str, Raw]:
        if not guests:
            return {}
        return {
            domain.UUIDString(): raw
            for domain, raw in self.host.connection.domainListGetStats(
                [guest.domain for guest in guests], groups, flags
            )
        }

    def dirty_rates(self, guests: t.Sequence[Guest], *, clock: Clock) -> dict[str, int]:
        """How many MiB of their memory guests that run change a second, by UUID; measured for a second, all at once.
        Those of which it cannot be told are left out."""

        def start(guest: Guest) -> bool:
            try:
                guest.domain.startDirtyRateCalc(_SAMPLE)
            except libvirt.libvirtError:  # an old QEMU, or the guest has ended
                return False
            return True

        begun = [guest for guest, done in zip(guests, within(start, guests, seconds=PATIENCE)) if done]
        found: dict[str, int] = {}

        def measured() -> bool:
            for uuid, raw in (self._in_time(begun, libvirt.VIR_DOMAIN_STATS_DIRTYRATE, 0) or {}).items():
                if raw.get("dirtyrate.calc_status") == libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
                    found[uuid] = int(raw.get("dirtyrate.megabytes_per_second", 0))
            return len(found) == len(begun)

        if begun:
            clock.sleep(_SAMPLE)
            with contextlib.suppress(TimedOut):  # what is known is told
                wait_until(measured, clock=clock, timeout=PATIENCE, doing="measuring what guests change")
        return found

    def leases(self) -> dict[str, list[Address]]:
        """What the DHCP servers of all libvirt networks here have given out, by MAC address."""
        found: dict[str, list[Address]] = {}
        with doing(f"read the DHCP leases of {self.host.name}"):
            for network in self.host.connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
                for lease in network.DHCPLeases():
                    found.setdefault(str(lease["mac"]).lower(), []).append(
                        Address(
                            address=lease["ipaddr"],
                            source="lease",
                            prefix=lease["prefix"],
                            hostname=lease["hostname"] or "",
                        )
                    )
        return found

    def neighbours(self) -> dict[str, list[Address]] | None:
        """The IPv4 addresses that this machine has met on its links, by MAC address; ``None`` of another machine."""
        if not self.host.local:
            return None
        found: dict[str, list[Address]] = {}
        try:
            with open(_NEIGHBOURS, encoding="ascii") as table:
                rows = [line.split() for line in table][1:]
        except OSError:
            return None
        for row in rows:
            if int(row[2], 16):  # the answer has come
                found.setdefault(row[3].lower(), []).append(Address(row[0], "arp"))
        return found

    def uptime(self, guest: Guest) -> float | None:
        """Seconds since the QEMU process of a running VM began.

        libvirt tells nothing of the kind, so it is known on the KVM host itself only.
        """
        if not self.host.local or not self.host.uri.startswith("qemu:///system"):
            return None
        try:
            with open(os.path.join(_PID_FILES, f"{guest.name}.pid"), encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                # The name of the process, in parentheses, may contain anything; its start is the 22nd field.
                ticks = int(file.read().rpartition(")")[2].split()[19])
        except (OSError, ValueError, IndexError):
            return None
        return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")), 1)
