# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""One VM in libvirt: one libvirt call a method, keywords instead of flags, and each quirk with its reason beside it."""

from __future__ import annotations

import contextlib
import typing as t
import xml.etree.ElementTree as ET

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core import lock
from .._core.errors import LifecycleError, NotFound, TimedOut, Unreachable
from .._model import instance as memory
from .._model.instance import Instance
from .._model.status import Observation
from .errors import doing

if t.TYPE_CHECKING:
    from .host import Host

AGENT_CHANNEL = "org.qemu.guest_agent.0"
# Seconds that an agent has which has nothing to do but to answer.
AGENT_PATIENCE = 5
# Seconds that an agent has to answer when we are done with it. libvirt's default is for ever, and the setting is one
# for all who talk to the agent: a call that comes between two settings of ours would hang for ever with the agent.
AGENT_USUAL = 600


class Guest:
    """One VM of a host."""

    def __init__(self, host: Host, domain: t.Any) -> None:
        self.host = host
        self.domain = domain
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()

    # ---- looking

    def state(self) -> tuple[int, int]:
        """virDomainGetState: state and reason.

        :raises NotFound: The VM is gone.
        """
        with doing(f"look at VM {self.name}"):
            state, reason = self.domain.state()
            return state, reason

    def look(self, *, running: t.Mapping[str, t.Any] | None = None) -> Observation:
        """A fresh look at this VM alone.

        :param running: What the observation shall say of an operation under way; we hold the lock ourselves.
        """
        state, reason = self.state()
        with doing(f"look at VM {self.name}"):
            saved = bool(self.domain.hasManagedSaveImage())
            persistent = bool(self.domain.isPersistent())
        return Observation(
            name=self.name,
            uuid=self.uuid,
            state=state,
            reason=reason,
            managed_save=saved,
            persistent=persistent,
            instance=self.recall(persistent=persistent),
            running=running,
        )

    def running_operation(self) -> dict[str, t.Any] | None:
        """What the process says that holds this VM's operation lock."""
        return lock.holder(lock.key_of(self.host.name, self.name))

    @property
    def id(self) -> int:
        """The number of the running domain, -1 when off. It changes with every boot."""
        with doing(f"look at VM {self.name}"):
            # A new handle: the one we have keeps the number from when it was looked up.
            return int(self.host.connection.lookupByUUIDString(self.uuid).ID())

    def text(self, *, inactive: bool = False, secure: bool = False, migratable: bool = False) -> str:
        """The domain's XML.

        :param inactive: As it will be at the next boot, not as it is now.
        :param secure: With passwords.
        :param migratable: As another host wants it, which may have an older libvirt.
        """
        flags = (libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0) | (libvirt.VIR_DOMAIN_XML_SECURE if secure else 0)
        flags |= libvirt.VIR_DOMAIN_XML_MIGRATABLE if migratable else 0
        with doing(f"read the definition of VM {self.name}"):
            return str(self.domain.XMLDesc(flags))

    def xml(self, *, inactive: bool = False, secure: bool = False, migratable: bool = False) -> ET.Element:
        """The same as a tree."""
        return ET.fromstring(self.text(inactive=inactive, secure=secure, migratable=migratable))

    def agent_connected(self) -> bool | None:
        """Whether the guest agent has its channel open; ``None`` when the VM has no such channel.

        QEMU tells libvirt when the guest opens and closes the port, so this costs the guest nothing and cannot hang.
        """
        for target in self.xml().iterfind("devices/channel/target"):
            if target.get("name") == AGENT_CHANNEL:
                return target.get("state") == "connected"
        return None

    # ---- power

    def start(self, *, paused: bool = False) -> None:
        """Boot, or restore the managed save image if there is one."""
        with doing(f"start VM {self.name}"):
            self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def ask_to_shut_down(self, mode: str) -> None:
        """Ask the guest to shut down; returns at once, the guest may take its time or ignore it.

        :param mode: ``acpi`` (power button), ``agent`` (guest agent) or ``auto`` (libvirt chooses).
        """
        flags = {
            "auto": libvirt.VIR_DOMAIN_SHUTDOWN_DEFAULT,
            "acpi": libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
            "agent": libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT,
        }[mode]
        with doing(f"ask the guest of VM {self.name} to shut down"):
            self.domain.shutdownFlags(flags)

    def power_off(self) -> None:
        """Pull the plug. One that is off already is fine.

        :raises TimedOut: QEMU does not end, because it hangs in the kernel (storage that is gone, for example).
        """
        with doing(f"power VM {self.name} off"):
            try:
                self.domain.destroy()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                    raise

    def pause(self) -> None:
        """Stop the virtual CPUs; memory stays."""
        with doing(f"pause VM {self.name}"):
            self.domain.suspend()

    def resume(self) -> None:
        """Let the virtual CPUs run again."""
        with doing(f"resume VM {self.name}"):
            self.domain.resume()

    def save(self) -> None:
        """Write memory to the managed save image and end QEMU; whether the guest ran or was paused is remembered."""
        with doing(f"save the memory of VM {self.name}"):
            self.domain.managedSave()

    def saved(self) -> bool:
        """Whether there is a managed save image."""
        with doing(f"look at VM {self.name}"):
            return bool(self.domain.hasManagedSaveImage())

    def discard_save(self) -> None:
        """Remove the managed save image: the memory in it is lost. None there is fine."""
        with doing(f"discard the saved memory of VM {self.name}"):
            if self.domain.hasManagedSaveImage():
                self.domain.managedSaveRemove()

    def wake(self) -> None:
        """Wake a guest that put itself to sleep (PMSUSPENDED)."""
        with doing(f"wake VM {self.name}"):
            self.domain.pMWakeup()

    def set_time(self) -> bool:
        """Set the guest's clock to now through its agent, best effort as in Nova; whether it worked."""
        try:
            with self.answering_within(AGENT_PATIENCE):
                self.domain.setTime(flags=libvirt.VIR_DOMAIN_TIME_SYNC)
        except (libvirt.libvirtError, LifecycleError):
            return False
        return True

    # ---- the guest agent

    def set_agent_timeout(self, seconds: int) -> None:
        """How long libvirt waits for an answer of the agent, from now on and for everybody.

        Without a limit a call to an agent that hangs does not return (libvirt 9.0).
        """
        with doing(f"set the time that the agent of VM {self.name} has to answer"):
            self.domain.agentSetResponseTimeout(seconds, 0)

    def agent_answers(self) -> bool:
        """Whether the guest agent does more than hold its channel open. One that hangs is given five seconds."""
        try:
            with self.answering_within(AGENT_PATIENCE):
                self.ping_agent()
        except (TimedOut, Unreachable):
            return False
        return True

    def ping_agent(self) -> None:
        """See that the agent answers. virDomainGetGuestInfo does not tell: libvirt 9.0 takes an agent that stops
        answering for one that does not know the question.

        :raises Unreachable: It does not.
        :raises TimedOut: Another call waits for it.
        """
        try:
            with doing(f"talk to the guest agent of VM {self.name}"):
                self.domain.getTime()
        except (NotFound, TimedOut, Unreachable):
            raise
        except LifecycleError:  # one that has frozen the guest, or may not tell the time, refuses, and so answers
            return

    @contextlib.contextmanager
    def answering_within(self, seconds: int) -> t.Iterator[None]:
        """Give the agent that time for each answer in the body: at least a second, for less means "not at all" or "for
        ever" to libvirt."""
        self.set_agent_timeout(max(seconds, 1))
        try:
            yield
        finally:
            self.set_agent_timeout(AGENT_USUAL)

    def system(self, *, patience: int) -> str:
        """The guest's operating system as its agent calls it (``debian``, ``mswindows``); empty when it does not tell,
        as old agents do.

        :param patience: Seconds that the agent has to answer.
        :raises Unreachable: It does not.
        :raises TimedOut: Another call waits for it.
        """
        with self.answering_within(patience):
            self.ping_agent()
            try:
                with doing(f"ask the guest agent of VM {self.name} for the operating system"):
                    return str(self.domain.guestInfo(libvirt.VIR_DOMAIN_GUEST_INFO_OS, 0).get("os.id", ""))
            except (NotFound, TimedOut, Unreachable):
                raise
            except LifecycleError:
                return ""

    def set_password(self, user: str, password: str, *, encrypted: bool, patience: int) -> None:
        """Set the password of *user* in the guest, through its agent.

        :param encrypted: It is a hash, as crypt(3) makes it.
        :param patience: Seconds that the agent has to answer.
        """
        flags = libvirt.VIR_DOMAIN_PASSWORD_ENCRYPTED if encrypted else 0
        with self.answering_within(patience), doing(f"set the password of {user} in VM {self.name}"):
            self.domain.setUserPassword(user, password, flags)

    def freeze(self) -> int:
        """Freeze the guest's file systems (virDomainFSFreeze); how many."""
        with doing(f"freeze the file systems of VM {self.name}"):
            return int(self.domain.fsFreeze())

    def thaw(self) -> int:
        """Let the guest write again (virDomainFSThaw); how many file systems were frozen, which may be none."""
        with doing(f"thaw the file systems of VM {self.name}"):
            return int(self.domain.fsThaw())

    # ---- definition

    def autostart(self) -> bool:
        """Whether it is started when libvirtd starts."""
        with doing(f"look at VM {self.name}"):
            return bool(self.domain.autostart())

    def set_autostart(self, wanted: bool) -> None:
        """Whether it is to be started when libvirtd starts."""
        with doing(f"set the autostart of VM {self.name}"):
            self.domain.setAutostart(int(wanted))

    def set_title(self, text: str) -> None:
        """A line for people; empty removes it."""
        self._set_text(libvirt.VIR_DOMAIN_METADATA_TITLE, text)

    def set_description(self, text: str) -> None:
        """Some lines for people; empty removes them."""
        self._set_text(libvirt.VIR_DOMAIN_METADATA_DESCRIPTION, text)

    def _set_text(self, kind: int, text: str) -> None:
        with doing(f"describe VM {self.name}"):
            self.domain.setMetadata(kind, text or None, None, None, self._affected())

    def redefine(self, domain: ET.Element) -> None:
        """Replace the definition, keeping what libvirt keeps beside it: autostart, managed save, NVRAM."""
        with doing(f"define VM {self.name}"):
            self.host.connection.defineXML(ET.tostring(domain, encoding="unicode"))

    def undefine(self, *, keep_nvram: bool = False) -> None:
        """Forget the VM, with its NVRAM, managed save image, TPM state and the records of snapshots and checkpoints.

        :param keep_nvram: Leave the file of the firmware's variables.
        """
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | (libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM if keep_nvram else libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        )
        if self.host.version >= (8, 9):  # before, TPM state went with the definition
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_TPM
        with doing(f"undefine VM {self.name}"):
            self.domain.undefineFlags(flags)

    def attach(self, device: str) -> None:
        """Add a device, given as XML, to the definition and the running guest."""
        with doing(f"attach a device to VM {self.name}"):
            self.domain.attachDeviceFlags(device, self._affected())

    def update(self, device: ET.Element) -> None:
        """Change a device of the definition and the running guest."""
        with doing(f"change a device of VM {self.name}"):
            self.domain.updateDeviceFlags(ET.tostring(device, encoding="unicode"), self._affected())

    def detach(self, device: ET.Element, *, live: bool) -> None:
        """Take a device away from the running guest, which may take its time, or else from the definition."""
        with doing(f"detach a device from VM {self.name}"):
            self.domain.detachDeviceFlags(
                ET.tostring(device, encoding="unicode"),
                libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG,
            )

    def active(self) -> bool:
        """Whether it has a QEMU process."""
        with doing(f"look at VM {self.name}"):
            return bool(self.domain.isActive())

    def disk_size(self, target: str) -> int:
        """The virtual size of the disk *target* (``vda``), in bytes."""
        with doing(f"look at disk {target} of VM {self.name}"):
            return int(self.domain.blockInfo(target)[0])

    def resize_disk(self, target: str, size: int) -> None:
        """Grow the disk *target* of the running guest to *size* bytes."""
        with doing(f"resize disk {target} of VM {self.name}"):
            self.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    def _affected(self) -> int:
        return (libvirt.VIR_DOMAIN_AFFECT_CONFIG if self.domain.isPersistent() else 0) | (
            libvirt.VIR_DOMAIN_AFFECT_LIVE if self.domain.isActive() else 0
        )

    # ---- what we remember

    def recall(self, *, persistent: bool = True) -> Instance:
        """What the metadata says. The copy in the definition is the truth: after a managed save is restored, the live
        one is as old as the save.

        :raises NotFound: The VM is gone.
        """
        flag = libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else libvirt.VIR_DOMAIN_AFFECT_LIVE
        with doing(f"read the metadata of VM {self.name}"):
            try:
                return memory.load(self.domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, memory.NAMESPACE, flag))
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    return Instance()
                raise

    def remember(self, instance: Instance) -> None:
        """Write the metadata, in the definition and in the running domain."""
        with doing(f"write the metadata of VM {self.name}"):
            self.domain.setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT,
                None if instance.empty else memory.dump(instance),
                memory.PREFIX,
                memory.NAMESPACE,
                self._affected(),
            )
