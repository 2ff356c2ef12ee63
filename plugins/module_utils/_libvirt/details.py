# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What libvirt tells about one VM only: one libvirt call a method."""

from __future__ import annotations

import typing as t

try:
    import libvirt
except ImportError:  # run_query() tells the user
    libvirt = None

from .._core.errors import LifecycleError, NotFound, TimedOut, Unreachable, Unsupported
from .._model.info import Address
from .errors import doing
from .guest import Guest

# virDomainBlockJobType and virDomainJobOperation, from 0
_BLOCK_JOBS = ("unknown", "pull", "copy", "commit", "active_commit", "backup")
_JOBS = (
    "unknown",
    "start",
    "save",
    "restore",
    "migration_in",
    "migration_out",
    "snapshot",
    "snapshot_revert",
    "dump",
    "backup",
    "snapshot_delete",
)


class Details:
    """More about one VM."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.domain = guest.domain

    def snapshots(self) -> int:
        """How many snapshots of its own libvirt knows."""
        with doing(f"count the snapshots of VM {self.guest.name}"):
            return int(self.domain.snapshotNum())

    def checkpoints(self) -> int:
        """How many checkpoints it has."""
        with doing(f"count the checkpoints of VM {self.guest.name}"):
            return len(self.domain.listAllCheckpoints())

    def job(self) -> dict[str, t.Any] | None:
        """The job that runs on the whole domain: a migration, a backup …; ``None`` without one."""
        with doing(f"look at the job of VM {self.guest.name}"):
            told = self.domain.jobStats()
        if told.get("type", 0) == libvirt.VIR_DOMAIN_JOB_NONE:
            return None
        return {
            "operation": _word(_JOBS, told.get("operation", 0)),
            "seconds": round(told.get("time_elapsed", 0) / 1000, 3),
            "done": told.get("data_processed", told.get("disk_processed", 0)),
            "total": told.get("data_total", told.get("disk_total", 0)),
        }

    def block_job(self, target: str) -> dict[str, t.Any] | None:
        """The block job on the disk *target*; ``None`` without one. ``done`` and ``total`` are in QEMU's own unit."""
        with doing(f"look at the block job of disk {target} of VM {self.guest.name}"):
            told = self.domain.blockJobInfo(target)
        if not told:
            return None
        return {
            "operation": _word(_BLOCK_JOBS, told["type"]),
            "bandwidth": told["bandwidth"],
            "done": told["cur"],
            "total": told["end"],
        }

    def neighbours(self) -> dict[str, list[Address]]:
        """The addresses that the KVM host has met on its links, by MAC address."""
        with doing(f"look up the addresses of VM {self.guest.name}"):
            found = self.domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP)
        return {
            str(card["hwaddr"]).lower(): [Address(each["addr"], "arp") for each in card["addrs"] or ()]
            for card in found.values()
            if card["hwaddr"]
        }

    def agent(self, *, patience: int) -> tuple[dict[str, t.Any], list[str]]:
        """What the guest agent tells in one go: host name, operating system, addresses, file systems; and what of it it
        refuses to tell, as sentences.

        :param patience: Seconds that it has for each answer.
        :raises Unreachable: It does not answer.
        :raises TimedOut: Another call waits for it.
        """
        kinds = (
            libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME,
            libvirt.VIR_DOMAIN_GUEST_INFO_OS,
            libvirt.VIR_DOMAIN_GUEST_INFO_INTERFACES,
            libvirt.VIR_DOMAIN_GUEST_INFO_FILESYSTEM,
        )
        with self.guest.answering_within(patience):
            self.guest.ping_agent()
            try:
                return self._ask(kinds[0] | kinds[1] | kinds[2] | kinds[3]), []
            except (NotFound, TimedOut, Unreachable):
                raise
            except LifecycleError:  # an old agent, or one that may not do all of it: what it can, one by one
                told: dict[str, t.Any] = {}
                refused: list[str] = []
                for kind in kinds:
                    try:
                        told.update(self._ask(kind))
                    except (NotFound, TimedOut, Unreachable):
                        raise
                    except Unsupported:
                        continue
                    except LifecycleError as exc:
                        refused.append(str(exc))
                return told, refused

    def _ask(self, kinds: int) -> dict[str, t.Any]:
        with doing(f"ask the guest agent of VM {self.guest.name}"):
            return dict(self.domain.guestInfo(kinds, 0))


def _word(words: t.Sequence[str], number: int) -> str:
    return words[number] if 0 <= number < len(words) else words[0]
