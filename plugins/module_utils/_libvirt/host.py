# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A connection to one libvirtd, and what can be asked of it for many VMs in one call."""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from urllib.parse import urlsplit

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import Ambiguous, LifecycleError, NotFound, Unreachable
from .._model.domain import read_domain
from .errors import doing, translate
from .guest import Guest

# Seconds between questions to a silent libvirtd, and how many go unanswered before the connection is given up.
KEEPALIVE = (5, 5)
# Seconds between turns of libvirt's event loop.
TURN = 0.5

_loop_guard = threading.Lock()
_reconnecting = threading.Lock()
_loop: threading.Thread | None = None


def _run_event_loop() -> None:
    """libvirt asks for an event loop before it sends keepalive messages.

    Whoever waits for an answer sees to these messages himself. The loop is for the time between calls, so it is turned
    now and then: one that waits for something to happen is woken by every call, which costs more than the call.
    """
    global _loop
    with _loop_guard:
        if _loop is not None:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # else libvirt prints errors on stderr
        libvirt.virEventRegisterDefaultImpl()
        libvirt.virEventAddTimeout(0, lambda _timer, _nothing: None, None)  # so that a turn does not wait
        _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.start()


def _turn() -> None:
    while True:
        time.sleep(TURN)
        libvirt.virEventRunDefaultImpl()


def is_local(uri: str) -> bool:
    """Whether *uri* means the libvirtd of this machine, so that its files are our files."""
    return not urlsplit(uri).netloc


def open_host(uri: str, *, timeout: float) -> Host:
    """Connect to a libvirtd.

    :param uri: As in libvirt's page "Connection URIs".
    :param timeout: Seconds until it is given up; libvirt itself would wait for a silent daemon for ever.
    :raises Unreachable: There is no libvirtd, or it does not answer.
    :raises Denied: It does not let us in.
    :raises LifecycleError: The URI is wrong, or something else.
    """
    _run_event_loop()
    answer: list[t.Any] = []

    def connect() -> None:
        try:
            answer.append(libvirt.open(uri))
        except libvirt.libvirtError as exc:
            answer.append(translate(exc, f"connect to {uri}"))

    # The thread of a call that hangs in libvirt cannot be ended; as a daemon it ends with the process.
    thread = threading.Thread(target=connect, name="libvirt-open", daemon=True)
    thread.start()
    thread.join(timeout)
    if not answer:
        raise Unreachable(
            f"Failed to connect to {uri}: no answer within {timeout:g} seconds.",
            hint="See that libvirtd (or virtqemud) runs there and is not stuck.",
            uri=uri,
        )
    if isinstance(answer[0], LifecycleError):
        raise answer[0]
    return Host(answer[0], uri)


@dataclass(frozen=True)
class Platform:
    """A kind of VM that a host can run.

    :param arch: ``x86_64`` …
    :param domain_type: ``kvm`` or ``qemu``.
    :param machine: With its version.
    :param uefi: Whether there is UEFI firmware for it.
    :param emulator: The program that runs them.
    :param max_vcpus: That one of them can have.
    """

    arch: str
    domain_type: str
    machine: str
    uefi: bool
    emulator: str = ""
    max_vcpus: int = 0


class Host:
    """One libvirtd and what is behind it."""

    def __init__(self, connection: t.Any, uri: str) -> None:
        self.connection = connection
        self.uri = uri
        with doing(f"talk to {uri}"):
            try:
                self.connection.setKeepAlive(*KEEPALIVE)
            except libvirt.libvirtError as exc:
                # Drivers inside the process, like test://, have none. An error without a code is one that was lost:
                # when Python frees any object of libvirt's in between, the last error of the thread is forgotten.
                if exc.get_error_code() not in (None, libvirt.VIR_ERR_NO_SUPPORT):
                    raise
            self.name: str = self.connection.getHostname()

    @property
    def local(self) -> bool:
        """Whether the host's files are our files."""
        return is_local(self.uri)

    @property
    def version(self) -> tuple[int, int]:
        """libvirtd's version, major and minor."""
        with doing(f"talk to {self.uri}"):
            number = self.connection.getLibVersion()
        return number // 1000000, number // 1000 % 1000

    def reconnect(self, *, timeout: float) -> None:
        """Connect again, if the connection is lost, as after a restart of libvirtd. What was found through the old one
        has to be looked up anew.

        :param timeout: Seconds.
        :raises Unreachable: It does not answer.
        """
        with _reconnecting:
            if not self.connection.isAlive():
                lost, self.connection = self.connection, open_host(self.uri, timeout=timeout).connection
                with contextlib.suppress(libvirt.libvirtError):
                    lost.close()

    def close(self) -> None:
        """Close the connection; one that is lost already is fine."""
        try:
            self.connection.close()
        except libvirt.libvirtError:
            return

    def guests(self) -> list[Guest]:
        """All VMs that libvirt knows here, by name."""
        with doing(f"list the VMs of {self.name}"):
            return sorted(
                (Guest(self, domain) for domain in self.connection.listAllDomains()), key=lambda guest: guest.name
            )

    def guest_of(self, uuid: str) -> Guest | None:
        """The VM with that UUID, or ``None``."""
        with doing(f"look up VM {uuid}"):
            try:
                return Guest(self, self.connection.lookupByUUIDString(uuid))
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

    def macs(self) -> dict[str, str]:
        """The MAC addresses of all VMs here, lower case, each with the VM's UUID."""
        found: dict[str, str] = {}
        for guest in self.guests():
            try:
                found.update((nic.mac.lower(), guest.uuid) for nic in read_domain(guest.xml(inactive=True)).interfaces)
            except NotFound:
                continue
        return found

    def define(self, xml: str) -> Guest:
        """Define a VM."""
        with doing(f"define a VM on {self.name}"):
            return Guest(self, self.connection.defineXML(xml))

    def platform(self, *, machine: str, domain_type: str, arch: str = "") -> Platform:
        """What VMs of a kind are here (virConnectGetDomainCapabilities).

        :param machine: Machine type, or empty for libvirt's choice.
        :param domain_type: ``kvm``, ``qemu``, or empty for the better one that the host has.
        :param arch: ``x86_64`` …, or empty for the host's own.
        :raises LifecycleError: The host has no such VMs.
        """
        with doing(f"find out what VMs {self.name} can run"):
            capabilities = ET.fromstring(
                self.connection.getDomainCapabilities(None, arch or None, machine or None, domain_type or None)
            )
        return Platform(
            arch=capabilities.findtext("arch", ""),
            domain_type=capabilities.findtext("domain", ""),
            machine=capabilities.findtext("machine", ""),
            uefi=any(value.text == "efi" for value in capabilities.iterfind("os/enum[@name='firmware']/value")),
            emulator=capabilities.findtext("path", ""),
            max_vcpus=int(vcpu.get("max", "0")) if (vcpu := capabilities.find("vcpu")) is not None else 0,
        )

    def network_active(self, name: str) -> bool | None:
        """Whether the libvirt network *name* is active; ``None`` when there is none."""
        with doing(f"look at network {name} of {self.name}"):
            try:
                return bool(self.connection.networkLookupByName(name).isActive())
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                    return None
                raise

    def pool_directory(self, name: str) -> str:
        """The directory of the storage pool *name*; empty when there is no such pool."""
        with doing(f"look for storage pool {name} of {self.name}"):
            try:
                pool = self.connection.storagePoolLookupByName(name)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                    return ""
                raise
            return ET.fromstring(pool.XMLDesc()).findtext("target/path", "")

    def pool_source(self, path: str) -> str:
        """What tells the source of the active storage pool that has the volume *path* from others; empty when no pool
        has it."""
        with doing(f"look for {path} in the storage pools of {self.name}"):
            try:
                pool = self.connection.storageVolLookupByPath(path).storagePoolLookupByVolume()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
                    return ""
                raise
            told = ET.fromstring(pool.XMLDesc())
        source = told.find("source")
        words = "" if source is None else "".join(ET.tostring(source, encoding="unicode").split())
        return f"{told.get('type')} {words}"


def pick(guests: t.Sequence[Guest], wanted: t.Sequence[str]) -> list[Guest | LifecycleError]:
    """For each name or UUID in *wanted*, the VM or the error.

    :returns: In the order of *wanted*; a VM that is named twice comes once.
    """
    by_name = {guest.name: guest for guest in guests}
    by_uuid = {guest.uuid: guest for guest in guests}
    found: list[Guest | LifecycleError] = []
    seen: set[str] = set()
    for word in wanted:
        named, numbered = by_name.get(word), by_uuid.get(word.lower())
        if named and numbered and named.uuid != numbered.uuid:
            found.append(
                Ambiguous(
                    f"{word} is the name of the VM with UUID {named.uuid} and the UUID of VM {numbered.name}.",
                    hint=f"Say {named.uuid} for the first or {numbered.name} for the second.",
                    name=word,
                )
            )
            continue
        guest = named or numbered
        if guest is None:
            found.append(NotFound(f"There is no VM with the name or UUID {word!r} here.", name=word))
        elif guest.uuid not in seen:
            seen.add(guest.uuid)
            found.append(guest)
    return found
