# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The disks of a running VM at one point in time: a backup job in pull mode (libvirt's page "Backup XML format").

QEMU serves the disks as they were as NBD exports on a UNIX socket; what the guest overwrites meanwhile is put aside in
scratch files. The definition of the VM is not touched.
"""

from __future__ import annotations

import contextlib
import glob
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import LifecycleError, Unreachable, Unsupported
from .._model.status import PAUSED
from .errors import doing
from .guard import FREEZE, PAUSE, Guard
from .guest import Guest

_NO_DOMAIN_CHECKPOINT = 103
_CHECKPOINT_INCONSISTENT = 109
_PAUSED_IOERROR = 5
# virDomainAgentSetResponseTimeout: wait for ever, which is libvirt's default.
_AGENT_BLOCK = -2
# Seconds for an agent that has to do nothing but answer.
_AGENT_TIMEOUT = 5


class CheckpointLost(LifecycleError):
    """libvirt cannot tell what changed since a checkpoint: QEMU was killed, or its bitmap was removed."""


@dataclass(frozen=True)
class BackupOrder:
    """What a backup job is to do.

    :param scratch: For each disk, by target, the file for what the guest overwrites meanwhile; libvirt makes and
        removes it.
    :param since: The checkpoint that the exports tell the changes since; or empty.
    :param checkpoint: The checkpoint to make at the same point in time; or empty.
    """

    scratch: t.Mapping[str, str]
    since: str = ""
    checkpoint: str = ""


@dataclass
class Held:
    """How a guest was held for the point in time.

    :param quiesced: Whether its file systems were frozen.
    :param why: Why they were not, if that was wanted.
    :param milliseconds: How long it stood still: from before the freeze until after the thaw, or while its CPUs were
        stopped.
    """

    quiesced: bool = False
    why: str = ""
    milliseconds: int = 0


class Backup:
    """The backup job of one running VM."""

    def __init__(self, guest: Guest, clock: Clock) -> None:
        self.guest = guest
        self.clock = clock
        self.domain = guest.domain
        self.socket = ""

    # ---- the job

    def running(self) -> bool:
        """Whether the VM has a backup job."""
        with doing(f"look at the jobs of VM {self.guest.name}"):
            try:
                return bool(self.domain.jobStats().get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:  # off
                    return False
                raise

    def begin(self, order: BackupOrder) -> None:
        """Begin it (virDomainBackupBegin).

        :raises CheckpointLost: The changes since ``order.since`` are not known.
        """
        self.socket = self._socket()
        with doing(f"begin a backup of VM {self.guest.name}"):
            try:
                self.domain.backupBegin(
                    self._xml(order), _checkpoint_xml(order.checkpoint, order.scratch) if order.checkpoint else None, 0
                )
            except libvirt.libvirtError as exc:
                if exc.get_error_code() in (_CHECKPOINT_INCONSISTENT, _NO_DOMAIN_CHECKPOINT):
                    raise CheckpointLost(
                        f"What changed in VM {self.guest.name} since the last backup is not known any more."
                    ) from exc
                raise

    def end(self) -> None:
        """End it, if there is one, and let a guest go on that stood still because a scratch file found no room."""
        with doing(f"end the backup of VM {self.guest.name}"):
            try:
                self.domain.abortJob()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                    raise
                return
        wait_until(
            lambda: not self.running(),
            clock=self.clock,
            timeout=60,
            doing=f"waiting for the backup of VM {self.guest.name} to end",
        )
        if self.stalled():
            self.guest.resume()

    def stalled(self) -> bool:
        """Whether QEMU stopped the guest's CPUs because of an error in a file: no room, as a rule."""
        return self.guest.state() == (PAUSED, _PAUSED_IOERROR)

    def _socket(self) -> str:
        """In the VM's own directory of libvirt's, where QEMU may make it whatever user and confinement it has."""
        directory = "/var/lib/libvirt/qemu"
        with doing(f"look at VM {self.guest.name}"):
            if "session" in self.guest.host.uri:
                raise Unsupported(
                    f"VM {self.guest.name} runs in a libvirt session of a user: backups of it are not supported.",
                    hint="Stop it first, or use qemu:///system.",
                )
        found = glob.glob(f"{directory}/domain-{self.guest.id}-*")
        if not found:
            raise Unsupported(f"libvirt has no directory for VM {self.guest.name} in {directory}.")
        return f"{found[0]}/kvmops.sock"

    def _xml(self, order: BackupOrder) -> str:
        root = ET.Element("domainbackup", {"mode": "pull"})
        if order.since:
            ET.SubElement(root, "incremental").text = order.since
        ET.SubElement(root, "server", {"transport": "unix", "socket": self.socket})
        disks = ET.SubElement(root, "disks")
        for target, scratch in order.scratch.items():
            disk = ET.SubElement(disks, "disk", {"name": target, "backup": "yes", "type": "file", "exportname": target})
            ET.SubElement(disk, "driver", {"type": "qcow2"})
            ET.SubElement(disk, "scratch", {"file": scratch})
        return ET.tostring(root, encoding="unicode")

    # ---- checkpoints

    def checkpoints(self) -> list[str]:
        """The names of the VM's checkpoints."""
        with doing(f"list the checkpoints of VM {self.guest.name}"):
            return [checkpoint.getName() for checkpoint in self.domain.listAllCheckpoints()]

    def drop_checkpoint(self, name: str) -> bool:
        """Forget a checkpoint, and take its bitmaps out of the disks. Of a VM that is off only libvirt's record can be
        removed; whether the bitmaps are gone, too."""
        with doing(f"delete the checkpoint {name} of VM {self.guest.name}"):
            try:
                checkpoint = self.domain.checkpointLookupByName(name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == _NO_DOMAIN_CHECKPOINT:
                    return True
                raise
            try:
                checkpoint.delete(0)
            except libvirt.libvirtError:
                # The VM is off, or the bitmap, which a killed QEMU left unusable, is not there.
                checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
                return self.guest.active()
        return True

    def adopt_checkpoint(self, name: str, created: int, targets: t.Iterable[str]) -> bool:
        """Make a checkpoint known again whose bitmaps came along with the disks, as after a migration; whether they
        did.

        :param created: When it was made, seconds since 1970.
        """
        root = ET.fromstring(_checkpoint_xml(name, targets))
        ET.SubElement(root, "creationTime").text = str(created)
        for disk in root.iterfind("disks/disk"):
            disk.set("bitmap", name)
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        with doing(f"redefine the checkpoint {name} of VM {self.guest.name}"):
            try:
                self.domain.checkpointCreateXML(ET.tostring(root, encoding="unicode"), flags)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == _CHECKPOINT_INCONSISTENT:
                    return False
                raise
        return True

    # ---- the point in time

    @contextlib.contextmanager
    def held(self, guard: Guard, *, quiesce: str, pause: bool, timeout: int) -> t.Iterator[Held]:
        """Hold the guest still while the body runs, and let it go in every case.

        :param quiesce: ``required``, ``preferred`` or ``never``: freeze its file systems through its agent.
        :param pause: Stop its CPUs as well, which makes QEMU write out what it knows of its disks.
        :param timeout: Seconds that the agent has for the freeze.
        :raises Unreachable: It has to be quiesced, and the agent does not answer.
        """
        held = Held()
        began = self.clock.monotonic()
        if quiesce != "never":
            began = self._freeze(guard, held, timeout, required=quiesce == "required")
        try:
            if pause:
                if not held.quiesced:
                    began = self.clock.monotonic()
                guard.owe(PAUSE)
                self.guest.pause()
            yield held
        finally:
            try:
                if pause:
                    self.guest.resume()
                    guard.paid(PAUSE)
            finally:
                if held.quiesced:
                    self.guest.set_agent_timeout(timeout)
                    try:
                        self.guest.thaw()
                    finally:
                        self.guest.set_agent_timeout(_AGENT_BLOCK)
                    guard.paid(FREEZE)
                if held.quiesced or pause:
                    held.milliseconds = round((self.clock.monotonic() - began) * 1000)

    def thaw(self) -> None:
        """Thaw a guest that an attempt may have left frozen. An agent that does not answer cannot have frozen it."""
        self.guest.set_agent_timeout(_AGENT_TIMEOUT)
        try:
            self.guest.thaw()
        except Unreachable:
            return
        finally:
            self.guest.set_agent_timeout(_AGENT_BLOCK)

    def _freeze(self, guard: Guard, held: Held, timeout: int, *, required: bool) -> float:
        """Freeze; when that began."""
        connected = self.guest.agent_connected()
        began = self.clock.monotonic()
        try:
            if not connected:
                raise Unreachable(
                    f"VM {self.guest.name} has no guest agent that could freeze its file systems.",
                    hint="Install and start qemu-guest-agent in the guest, or say quiesce: preferred.",
                )
            guard.owe(FREEZE)
            self.guest.set_agent_timeout(timeout)
            try:
                self.guest.freeze()
            finally:
                self.guest.set_agent_timeout(_AGENT_BLOCK)
            held.quiesced = True
        except LifecycleError as exc:
            # Not paid: an agent that did not answer in time may freeze the guest yet, so the guard thaws it.
            if required:
                raise
            held.why = str(exc)
        return began


def _checkpoint_xml(name: str, targets: t.Iterable[str]) -> str:
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "bitmap"})
    return ET.tostring(root, encoding="unicode")
