# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Other sizes for a guest: what it is given while it runs, and disks that become what lies over them."""

from __future__ import annotations

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import LifecycleError, TimedOut
from .._model.domain import Disk, read_domain
from .errors import doing
from .files import qemu_img
from .guest import Guest
from .xml import disk_nodes

# Seconds after which a merge that does not move is given up.
_STALLED = 300
# Seconds that all of a merge may take: a week, so that only one that stands still is given up.
_FOR_EVER = 7 * 24 * 3600


class Resizer:
    """The sizes of one VM."""

    def __init__(self, guest: Guest, clock: Clock) -> None:
        self.guest = guest
        self.clock = clock

    # ---- what a running guest is given

    def set_vcpus(self, count: int) -> None:
        """Plug CPUs in, now and in the definition (virDomainSetVcpusFlags)."""
        with doing(f"give VM {self.guest.name} {count} CPUs"):
            self.guest.domain.setVcpusFlags(count, libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def set_memory(self, mebibytes: int) -> None:
        """Let the balloon give the guest that much, now and in the definition (virDomainSetMemoryFlags)."""
        with doing(f"give VM {self.guest.name} {mebibytes} MiB of memory"):
            self.guest.domain.setMemoryFlags(
                mebibytes << 10, libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
            )

    # ---- disks with a file over them

    def merge(self, target: str, base: str, over: str) -> None:
        """Write what is in the file *over* into *base*, below it, which grows to its size; a running guest goes on
        with *base*. A merge that another process began is waited for. A VM that is off must not be started meanwhile.

        :raises TimedOut: It does not get on.
        """
        if self.guest.active():
            self._merge_live(target, base, over)
            return
        defined = read_domain(self.guest.xml(inactive=True)).disk(target)
        if defined is None or defined.image.source != over:
            return  # a run that died came to the end, and the guest may have written to *base* since
        if self.guest.host.local:
            qemu_img("commit", "-q", "-f", "qcow2", "-b", base, over)
        else:  # what is on the other machine, only its QEMU can write
            self.guest.start(paused=True)
            try:
                self._merge_live(target, base, over)
            finally:
                self.guest.power_off()

    def _merge_live(self, target: str, base: str, over: str) -> None:
        domain, name = self.guest.domain, self.guest.name
        disk = self._disk(target)
        if disk.image.source != over:  # a run that died came to the end
            return
        what = f"write what was added to disk {target} of VM {name} into {base}"
        with doing(what):
            if not domain.blockJobInfo(target, 0):
                layer = next((each for each in disk.backing if each.source == base), None)
                if layer is None:
                    raise LifecycleError(f"Failed to {what}: the running guest's disk does not lie upon it.")
                # No top: the file that the guest writes to. QEMU follows what is written meanwhile.
                domain.blockCommit(target, f"{target}[{layer.index}]", None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
        moved_at, cur = self.clock.monotonic(), -1

        def ready() -> bool:
            nonlocal moved_at, cur
            node = disk_nodes(self.guest.xml()).get(target)
            mirror = node.find("mirror") if node is not None else None
            if mirror is not None and mirror.get("ready") == "yes":
                return True
            with doing(what):
                told = domain.blockJobInfo(target, 0)
            if not told and mirror is None:
                raise LifecycleError(f"Failed to {what}: QEMU gave it up.", hint="Run the task again.")
            now = self.clock.monotonic()
            if told and told["cur"] != cur:
                moved_at, cur = now, told["cur"]
            if now - moved_at > _STALLED:
                raise TimedOut(f"Failed to {what}: nothing was written for {_STALLED} seconds.")
            return False

        wait_until(ready, clock=self.clock, timeout=_FOR_EVER, doing=f"waiting for QEMU to {what}")
        with doing(what):
            domain.blockJobAbort(target, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)

    def _disk(self, target: str) -> Disk:
        disk = read_domain(self.guest.xml()).disk(target)
        if disk is None:
            raise LifecycleError(f"VM {self.guest.name} has no disk {target} any more.")
        return disk
