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
import os
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.clock import Clock, wait_until
from .._core.errors import Busy, LifecycleError, NotFound, Unreachable, Unsupported
from .._core.files import working
from .._model.status import PAUSED
from .errors import doing
from .guard import FREEZE, PAUSE, Guard
from .guest import AGENT_PATIENCE, Guest

_NO_DOMAIN_CHECKPOINT = 103
_NO_DOMAIN_BACKUP = 104
_CHECKPOINT_INCONSISTENT = 109
_PAUSED_IOERROR = 5
# Where libvirt keeps a directory for each running VM of qemu:///system.
_DIRECTORY = "/var/lib/libvirt/qemu"


class CheckpointLost(Exception):
    """libvirt cannot tell what changed since a checkpoint: QEMU was killed, or its bitmap was removed. Users do not
    meet this error: they get a full backup."""


@dataclass(frozen=True)
class BackupOrder:
    """What a backup job is to do.

    :param run: Tells this job from those of others and of other runs; part of a file's name.
    :param scratch: For each disk, by target, the file for what the guest overwrites meanwhile: an empty qcow2 of the
        disk's size.
    :param since: The checkpoint that the exports tell the changes since; or empty.
    :param checkpoint: The checkpoint to make at the same point in time; or empty.
    """

    run: str
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

    # ---- the job

    def running(self) -> bool:
        """Whether the VM has a backup job of ours, of this run or another. Other programs make such jobs, too."""
        with doing(f"look at the backup job of VM {self.guest.name}"):
            try:
                told = ET.fromstring(self.domain.backupGetXMLDesc())
            except libvirt.libvirtError as exc:
                if exc.get_error_code() in (
                    _NO_DOMAIN_BACKUP,
                    libvirt.VIR_ERR_OPERATION_INVALID,  # it is off
                    libvirt.VIR_ERR_NO_DOMAIN,
                    libvirt.VIR_ERR_NO_SUPPORT,  # the hypervisor has no such jobs
                ):
                    return False
                raise
        server = told.find("server")
        name = os.path.basename(server.get("socket", "")) if server is not None else ""
        return name.startswith("kvmops-")

    def begin(self, order: BackupOrder) -> str:
        """Begin it (virDomainBackupBegin); the path of the socket with the exports.

        :raises CheckpointLost: The changes since ``order.since`` are not known.
        :raises Busy: Another program is making a backup of the VM.
        """
        socket = self.socket(order.run)
        checkpoint = _checkpoint_xml(order.checkpoint, order.scratch) if order.checkpoint else None
        with doing(f"begin a backup of VM {self.guest.name}"):
            try:
                self.domain.backupBegin(
                    self._xml(order, socket), checkpoint, libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
                )
            except libvirt.libvirtError as exc:
                if exc.get_error_code() in (_CHECKPOINT_INCONSISTENT, _NO_DOMAIN_CHECKPOINT):
                    raise CheckpointLost(
                        f"What changed in VM {self.guest.name} since the last backup is not known any more."
                    ) from exc
                if self._has_backup():
                    raise Busy(
                        f"VM {self.guest.name} is busy: another program makes a backup of it.",
                        hint="Run the task again when that has ended (virsh domjobinfo tells).",
                    ) from exc
                raise
        return socket

    def end(self) -> None:
        """End it, if there is one, and let a guest go on that stood still because a scratch file found no room."""
        if not self.running():
            return
        with doing(f"end the backup of VM {self.guest.name}"):
            try:
                self.domain.abortJob()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
                    raise
        wait_until(
            lambda: not self.running(),
            clock=self.clock,
            timeout=60,
            doing=f"waiting for the backup of VM {self.guest.name} to end",
        )
        if self.guest.active() and self.stalled():
            self.guest.resume()

    def stalled(self) -> bool:
        """Whether QEMU stopped the guest's CPUs because of an error in a file: no room, as a rule."""
        return self.guest.state() == (PAUSED, _PAUSED_IOERROR)

    def _has_backup(self) -> bool:
        try:
            self.domain.backupGetXMLDesc()
        except libvirt.libvirtError:
            return False
        return True

    def socket(self, run: str) -> str:
        """The path of the socket of the job *run*: in the VM's own directory of libvirt's, where QEMU may make it
        whatever user and confinement it has.

        :raises NotFound: The VM is off.
        :raises Denied: We may not look there.
        """
        if "session" in self.guest.host.uri:
            raise Unsupported(
                f"VM {self.guest.name} runs in a libvirt session of a user: backups of it are not supported.",
                hint="Stop it first, or use qemu:///system.",
            )
        number = self.guest.id
        if number < 0:
            raise NotFound(f"Failed to begin a backup of VM {self.guest.name}: it went off.", hint="Run it again.")
        with working(f"look for the directory of VM {self.guest.name} in {_DIRECTORY}"):
            found = [name for name in os.listdir(_DIRECTORY) if name.startswith(f"domain-{number}-")]
        if not found:
            raise Unsupported(f"libvirt has no directory for VM {self.guest.name} in {_DIRECTORY}.")
        return f"{_DIRECTORY}/{found[0]}/kvmops-{run}"

    @staticmethod
    def _xml(order: BackupOrder, socket: str) -> str:
        root = ET.Element("domainbackup", {"mode": "pull"})
        if order.since:
            ET.SubElement(root, "incremental").text = order.since
        ET.SubElement(root, "server", {"transport": "unix", "socket": socket})
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

    def drop_checkpoint(self, name: str) -> None:
        """Forget a checkpoint, and take its bitmaps out of the disks. Of a VM that is off only libvirt's record can be
        removed; the bitmaps stay."""
        with doing(f"delete the checkpoint {name} of VM {self.guest.name}"):
            try:
                checkpoint = self.domain.checkpointLookupByName(name)
                targets = _disks_of(checkpoint)
                if not self._delete(checkpoint):
                    # One disk has no such bitmap, as it was replaced or resized by other tools; then libvirt removes
                    # it from none. So it is made a checkpoint of one disk after the other.
                    for target in targets:
                        made = self._redefine(name, 0, [target], libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
                        self._delete(made)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != _NO_DOMAIN_CHECKPOINT:
                    raise

    def _delete(self, checkpoint: t.Any) -> bool:
        """Delete a checkpoint with its bitmaps or, if that is not possible, without; whether the bitmaps are gone, or
        the VM is off."""
        try:
            checkpoint.delete(0)
        except libvirt.libvirtError:
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
            return not self.domain.isActive()
        return True

    def adopt_checkpoint(self, name: str, created: int, targets: t.Iterable[str]) -> bool:
        """Make a checkpoint known again whose bitmaps came along with the disks, as after a migration; whether they
        did.

        :param created: When it was made, seconds since 1970.
        """
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
        with doing(f"redefine the checkpoint {name} of VM {self.guest.name}"):
            try:
                self._redefine(name, created, targets, flags)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == _CHECKPOINT_INCONSISTENT:
                    return False
                raise
        return True

    def _redefine(self, name: str, created: int, targets: t.Iterable[str], flags: int) -> t.Any:
        root = ET.fromstring(_checkpoint_xml(name, targets))
        ET.SubElement(root, "creationTime").text = str(created)
        for disk in root.iterfind("disks/disk"):
            disk.set("bitmap", name)
        return self.domain.checkpointCreateXML(ET.tostring(root, encoding="unicode"), flags)

    # ---- the point in time

    @contextlib.contextmanager
    def held(self, *, quiesce: str, pause: bool, timeout: int) -> t.Iterator[Held]:
        """Hold the guest still while the body runs, and let it go in every case: if we cannot, a process does that we
        leave behind.

        :param quiesce: ``required``, ``preferred`` or ``never``: freeze its file systems through its agent.
        :param pause: Stop its CPUs as well, which makes QEMU write out what it knows of its disks.
        :param timeout: Seconds that the agent has for the freeze.
        :raises Unreachable: It has to be quiesced, and was not.
        """
        held = Held()
        if quiesce == "never" and not pause:
            yield held
            return
        with Guard(self.guest.host.uri, self.guest.uuid) as guard:
            guard.wait()
            began = self.clock.monotonic()
            frozen = self._freeze(guard, held, timeout, required=quiesce == "required") if quiesce != "never" else 0
            holds = held.quiesced or pause
            if not held.quiesced:
                began = self.clock.monotonic()
            try:
                with self._paused(guard) if pause else contextlib.nullcontext():
                    yield held
            finally:
                if held.quiesced:
                    self._thaw(guard, held, frozen, timeout)
                if holds:
                    held.milliseconds = round((self.clock.monotonic() - began) * 1000)
            if quiesce == "required" and not held.quiesced:
                raise Unreachable(f"VM {self.guest.name} could not be quiesced: {held.why}", hint="Run the task again.")

    @contextlib.contextmanager
    def _paused(self, guard: Guard) -> t.Iterator[None]:
        guard.owe(PAUSE)
        self.guest.pause()
        try:
            yield
        finally:
            if self.guest.state()[0] == PAUSED:
                self.guest.resume()
            guard.paid(PAUSE)

    def _freeze(self, guard: Guard, held: Held, timeout: int, *, required: bool) -> int:
        """Freeze; how many file systems."""
        try:
            if not self.guest.agent_connected():
                raise Unreachable(
                    f"VM {self.guest.name} has no guest agent that could freeze its file systems.",
                    hint="Install and start qemu-guest-agent in the guest, or say quiesce: preferred.",
                )
            guard.owe(FREEZE)
            with self.guest.answering_within(timeout):
                frozen = self.guest.freeze()
        except LifecycleError as exc:
            # Not paid: an agent that did not answer in time may freeze the guest yet, so the guard thaws it.
            if required:
                raise
            held.why = str(exc)
            return 0
        held.quiesced = True
        return frozen

    def _thaw(self, guard: Guard, held: Held, frozen: int, timeout: int) -> None:
        with self.guest.answering_within(timeout):
            thawed = self.guest.thaw()
        guard.paid(FREEZE)
        if thawed < frozen:  # by an agent that gives up by itself, as Windows' does, or by somebody else
            held.quiesced = False
            held.why = f"of {frozen} file systems that were frozen only {thawed} still were afterwards."

    def thaw(self) -> None:
        """Thaw a guest that an attempt may have left frozen. An agent that does not answer cannot have frozen it."""
        with contextlib.suppress(Unreachable), self.guest.answering_within(AGENT_PATIENCE):
            self.guest.thaw()


def _disks_of(checkpoint: t.Any) -> list[str]:
    told = ET.fromstring(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
    return [disk.get("name", "") for disk in told.iterfind("disks/disk") if disk.get("checkpoint") == "bitmap"]


def _checkpoint_xml(name: str, targets: t.Iterable[str]) -> str:
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", {"name": target, "checkpoint": "bitmap"})
    return ET.tostring(root, encoding="unicode")
