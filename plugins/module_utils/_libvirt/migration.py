# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The migration of one VM: the call that lasts until it has ended, and what can be asked and done meanwhile.

It is peer to peer: the source's libvirtd talks to the destination's, and goes on when we are killed.
"""

from __future__ import annotations

import threading
import time
import typing as t

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import LifecycleError, NotFound
from .._model.migration import Order
from .errors import doing
from .guest import Guest
from .host import open_host

# VIR_ERR_CHECKPOINT_INCONSISTENT
_CHECKPOINT_INCONSISTENT = 109
# Seconds between looks at a migration that another process began.
_LOOK = 0.1


class Migration:
    """One migration, at its source."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.error: LifecycleError | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    # ---- the call

    def start(self, order: Order, *, timeout: float) -> None:
        """Begin it, in a thread of its own and over a connection of its own: the call lasts until the end, and libvirtd
        serves each connection a few calls at a time.

        :param timeout: Seconds that libvirtd has to accept the connection.
        :raises LifecycleError: It cannot be connected to.
        """
        host = open_host(self.guest.host.uri, timeout=timeout)
        guest = host.guest_of(self.guest.uuid)
        if guest is None:
            host.close()
            raise NotFound(f"VM {self.guest.name} is gone.")
        flags, parameters = _flags(order), _parameters(order)
        domain, what = guest.domain, f"migrate VM {self.guest.name} to {order.uri}"

        def call() -> None:
            try:
                with doing(what):
                    domain.migrateToURI3(order.uri, parameters, flags)
            except LifecycleError as exc:
                self.error = exc
            finally:
                self._ended.set()
                host.close()

        # The thread of a call that hangs in libvirt cannot be ended; as a daemon it ends with the process.
        self._thread = threading.Thread(target=call, name="libvirt-migrate", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most *seconds*; whether it has.

        :raises LifecycleError: Another process began it, and libvirtd does not answer.
        """
        if self._thread is not None:
            return self._ended.wait(seconds)
        end = time.monotonic() + seconds
        while self.running():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_LOOK, left))
        return True

    # ---- looking

    def statistics(self) -> dict[str, t.Any]:
        """virDomainGetJobStats; empty when no migration runs, or the VM is gone."""
        try:
            with doing(f"look at the migration of VM {self.guest.name}"):
                try:
                    told = dict(self.guest.domain.jobStats())
                except libvirt.libvirtError as exc:
                    if exc.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:  # off: at the end of a migration
                        return {}
                    raise
        except NotFound:
            return {}
        # Between its phases libvirt tells no operation.
        other = told.get("operation", 0) not in (0, libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
        return {} if other or told.get("type", 0) == libvirt.VIR_DOMAIN_JOB_NONE else told

    def failure(self) -> str:
        """What libvirt says of one that failed and that another process began; empty when it does not know any more."""
        try:
            told = self.guest.domain.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED)
        except libvirt.libvirtError:
            return ""
        return str(told.get(libvirt.VIR_DOMAIN_JOB_ERRMSG, ""))

    def running(self) -> bool:
        """Whether libvirt is at it."""
        return bool(self.statistics())

    # ---- acting

    def abort(self) -> None:
        """Ask libvirt to give it up. When that was the moment at which a disk was through, it is not heard (libvirt
        9.0): ask again until the migration has ended.

        :raises LifecycleError: It cannot be given up, or not any more.
        """
        with doing(f"abort the migration of VM {self.guest.name}"):
            self.guest.domain.abortJob()

    def set_downtime(self, milliseconds: int) -> None:
        """How long the guest may stand still at the end."""
        with doing(f"set the downtime of the migration of VM {self.guest.name}"):
            self.guest.domain.migrateSetMaxDowntime(milliseconds, 0)

    def set_bandwidth(self, mebibytes: int) -> None:
        """How much may be carried a second, in MiB."""
        with doing(f"set the bandwidth of the migration of VM {self.guest.name}"):
            self.guest.domain.migrateSetMaxSpeed(mebibytes, 0)

    def start_post_copy(self) -> None:
        """Let the guest run at the destination now and fetch what is missing. It must have been allowed at the
        start."""
        with doing(f"switch the migration of VM {self.guest.name} to post-copy"):
            self.guest.domain.migrateStartPostCopy(0)

    def force(self) -> None:
        """Hold the guest, so that it changes nothing more: it runs again at the destination."""
        with doing(f"hold VM {self.guest.name} for its migration"):
            self.guest.domain.suspend()


def checkpoints_of(guest: Guest) -> list[str]:
    """The VM's checkpoints as XML, parents first. In a migration their bitmaps go with the disks; these records do
    not."""
    order = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
    with doing(f"list the checkpoints of VM {guest.name}"):
        return [
            str(checkpoint.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
            for checkpoint in guest.domain.listAllCheckpoints(order)
        ]


def adopt_checkpoint(guest: Guest, xml: str) -> bool:
    """Make a checkpoint known to a host that the VM has come to; whether its bitmaps are there."""
    flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE
    with doing(f"redefine a checkpoint of VM {guest.name}"):
        try:
            guest.domain.checkpointCreateXML(xml, flags)
        except libvirt.libvirtError as exc:
            if exc.get_error_code() == _CHECKPOINT_INCONSISTENT:
                return False
            raise
    return True


def completed_statistics(guest: Guest) -> dict[str, t.Any]:
    """What the destination tells of the migration by which the VM came; empty after a post-copy (libvirt 9.0)."""
    flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
    try:
        return dict(guest.domain.jobStats(flags))
    except libvirt.libvirtError:
        return {}


def _flags(order: Order) -> int:
    flags = libvirt.VIR_MIGRATE_PEER2PEER
    wanted = {
        libvirt.VIR_MIGRATE_LIVE: order.live,
        libvirt.VIR_MIGRATE_OFFLINE: order.offline,
        libvirt.VIR_MIGRATE_PERSIST_DEST: order.persist,
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE: order.undefine,
        libvirt.VIR_MIGRATE_TLS: order.tls and not order.offline,
        # Without a list of disks it would mean all of them.
        libvirt.VIR_MIGRATE_NON_SHARED_INC: bool(order.disks),
        libvirt.VIR_MIGRATE_PARALLEL: order.connections > 1,
        libvirt.VIR_MIGRATE_COMPRESSED: bool(order.compression),
        libvirt.VIR_MIGRATE_AUTO_CONVERGE: order.auto_converge,
        libvirt.VIR_MIGRATE_POSTCOPY: order.post_copy,
        getattr(libvirt, "VIR_MIGRATE_POSTCOPY_RESUME", 0): order.resume,  # since libvirt 8.5
    }
    for flag, on in wanted.items():
        flags |= flag if on else 0
    return int(flags)


def _parameters(order: Order) -> dict[str, t.Any]:
    parameters: dict[str, t.Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: order.address,
        libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION: order.tls_name if order.tls else "",
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: list(order.disks),
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: order.definition,
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: order.persistent,
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: order.bandwidth,
        libvirt.VIR_MIGRATE_PARAM_COMPRESSION: list(order.compression),
        libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS: order.connections if order.connections > 1 else 0,
    }
    if order.throttle:
        initial, increment = order.throttle
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL] = initial
        parameters[libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT] = increment
    return {key: value for key, value in parameters.items() if value}
