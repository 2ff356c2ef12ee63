# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Finding out, before anything is touched, whether a VM can be moved, and all that stands in the way.

What libvirt tells of the destination is asked through the connection to it. Names, ports and certificates are those of
the host that the VM is on; they are known only when the task runs there, and else it is said that they are not.
"""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace
from datetime import datetime

from .._core.errors import LifecycleError, NotFound, Refused
from .._core.plan import Plan
from .._libvirt import machine
from .._libvirt.details import Details
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._libvirt.readiness import Readiness
from .._model import endpoints, preflight
from .._model.actions import ACTIONS, Verdict, judge, refusal
from .._model.needs import read_needs
from .._model.placing import SHARED, Layout
from .._model.preflight import LIVE, Case, Finding, Fit, HostFacts, Route, Status
from .._task import Context, Side, Subject
from .placing import Placing

# Seconds that the answer to a packet may take; one that vanishes in a firewall takes all of it, once a task.
_ANSWER = 2.0
# Where QEMU's certificates usually are.
_CERTIFICATES = ("/etc/pki/qemu/server-cert.pem", "/etc/pki/libvirt-migrate/server-cert.pem")

_ACTIONS = {LIVE: "live_migrate"}


def check(context: Context, vm: Subject) -> Plan:
    """Tell whether a VM can be moved to the destination, and how. Changes nothing, and no finding is an error.

    :raises NotFound: The VM is on neither host.
    """
    ask = context.params
    uri = endpoints.connection_uri(ask["dest"], ask["dest_transport"], insecure_tcp=ask["insecure_tcp"])
    try:
        there = context.side(uri)
    except LifecycleError as exc:
        return _told(context, vm, uri, _unreached(context, vm, uri, exc))
    if vm.guest is None:
        return _elsewhere(context, vm, there)
    _guest, _seen, state = vm.there()
    here = _Source(context).facts()
    facts = _facts(context, there)
    if facts.uuid == here.uuid:
        return _told(context, vm, uri, preflight.examine_hosts(here, facts))
    layout = Placing(context, vm, there).look()
    method = preflight.choose_method(ask["method"], state.condition, shared=layout.shared)
    examination = _Examination(context, vm, there, method, layout)
    case = replace(examination.case(), status=_whole_status(context, vm, method))
    return _told(context, vm, uri, preflight.examine(case), method=method, layout=layout)


def examine(context: Context, vm: Subject, there: Side, *, method: str, layout: Layout) -> list[Finding]:
    """All that stands in the way of a move, blockers first. Whether the VM's status allows it, and its lock, is for the
    move itself to see.

    :param method: ``live``, ``cold`` or ``offline``.
    """
    return preflight.examine(_Examination(context, vm, there, method, layout).case())


def demand(findings: t.Sequence[Finding], name: str) -> None:
    """See that nothing stands in the way of moving VM *name*.

    :raises Refused: Something does; the error has all of it.
    """
    blockers = preflight.blockers(findings)
    if blockers:
        raise Refused(
            f"VM {name} cannot be moved: " + " ".join(finding.message for finding in blockers),
            hint=" ".join(dict.fromkeys(finding.way_out for finding in blockers if finding.way_out)),
            findings=[finding.tell() for finding in findings],
        )


def _told(
    context: Context,
    vm: Subject,
    uri: str,
    findings: t.Sequence[Finding],
    *,
    method: str = "",
    layout: Layout | None = None,
) -> Plan:
    overcommit = context.params["overcommit"]
    state = vm.state
    what = {"status": state.status if state else vm.absent}
    figures: dict[str, t.Any] = {
        "migratable": not preflight.blockers(findings),
        "method": method,
        "source": context.host.name,
        "dest": uri,
        "findings": [finding.tell() for finding in findings],
        "disks": layout.tell() if layout else {},
        "to_copy_bytes": layout.to_copy if layout else 0,
        "room": {
            directory: {"needed": room.real if overcommit else room.promised, "free": room.free}
            for directory, room in (layout.room.items() if layout else ())
        },
    }
    return Plan(before=what, after=what, figures=figures)


def _elsewhere(context: Context, vm: Subject, there: Side) -> Plan:
    """The VM is at the destination already, or nowhere."""
    found = pick(there.host.guests(), [vm.name])[0]
    if not isinstance(found, Guest):
        raise NotFound(
            f"There is no VM with the name or UUID {vm.name!r} on {context.host.name} or {there.host.name}.",
            name=vm.name,
        )
    vm.name, vm.guest, vm.seen = found.name, found, found.look()
    return _told(context, vm, there.uri, [])


def _unreached(context: Context, vm: Subject, uri: str, exc: LifecycleError) -> list[Finding]:
    """What is known when the destination does not answer: that, and what the source is lacking for it to do so."""
    if vm.guest is None:
        raise exc
    name, (guest, _seen, state) = endpoints.host_of(uri), vm.there()
    method = preflight.choose_method(context.params["method"], state.condition, shared=True)
    source = _Source(context)
    nowhere = HostFacts(name, "", (), ())
    case = Case(
        method,
        read_needs(guest.xml()),
        _whole_status(context, vm, method),
        source.facts(),
        nowhere,
        papers=source.papers(uri, method, reached=False),
        now=source.now(),
    )
    told = Finding("destination_unreachable", preflight.BLOCKER, exc.message, exc.hint)
    return [told, *preflight.examine_source(case)]


def _whole_status(context: Context, vm: Subject, method: str) -> Status:
    """With what a user may do about it: status, lock, other operations."""
    guest, _seen, state = vm.there()
    action = _ACTIONS.get(method, "migrate")
    found = _status(guest, vm)
    if judge(action, state.vm_state) is not Verdict.ALLOWED:
        error = refusal(action, state, name=guest.name)
        found = replace(found, refused=state.status, way_out=error.hint)
    lock = vm.instance.lock
    if lock and ACTIONS[action].lock and not context.params["override_lock"]:
        found = replace(found, locked=lock.since + (f" ({lock.reason})" if lock.reason else ""))
    return replace(found, busy=state.running)


def _status(guest: Guest, vm: Subject) -> Status:
    _guest, seen, _state = vm.there()
    details, active = Details(guest), guest.active()
    job = details.job() if active else None
    targets = [disk.target for disk in read_needs(guest.xml()).disks if disk.path] if active else []
    return Status(
        active=active,
        persistent=seen.persistent,
        saved=seen.managed_save,
        snapshots=details.snapshots(),
        job=job["operation"] if job else "",
        copying=tuple(target for target in targets if details.block_job(target)),
    )


def _readiness(context: Context, side: Side) -> Readiness:
    return context.once(f"readiness {side.uri}", lambda: Readiness(side.host))


def _facts(context: Context, side: Side) -> HostFacts:
    """What is known of a host, asked once a task."""
    return context.once(f"facts {side.uri}", lambda: _readiness(context, side).facts())


class _Source:
    """The host that the VM is on; what is asked of the machine itself is known only when the task runs there."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.local = context.host.local

    def facts(self) -> HostFacts:
        """What libvirt tells of it."""
        return _facts(self.context, self.context.here)

    def now(self) -> datetime | None:
        """The time there."""
        return self.context.clock.now() if self.local else None

    def papers(self, uri: str, method: str, *, reached: bool) -> tuple[preflight.Paper, ...]:
        """The certificates that a move needs.

        :param reached: The destination answers, so root, as whom libvirtd runs, needs nothing more to reach it.
        """
        if not self.local:
            return ()
        settings = machine.qemu_settings()
        known = self.context.once("papers", lambda: machine.papers(settings))
        purposes = []
        if endpoints.transport_of(uri) == endpoints.TLS and "pkipath=" not in uri:
            purposes.append("libvirt")
        if method == LIVE and not self.context.params["insecure_tcp"]:
            purposes.append("qemu")
        needless = set() if machine.checks_clients(settings) else {("qemu", "client")}
        if reached and os.geteuid() == 0:
            needless.add(("libvirt", "client"))
        return tuple(
            paper for paper in known if paper.purpose in purposes and (paper.purpose, paper.role) not in needless
        )

    def route(self, address: str) -> Route:
        """The way to where memory and disks are sent."""

        def look() -> Route:
            ports = machine.migration_ports(machine.qemu_settings())
            resolved = bool(machine.resolve(address))
            answers = machine.gets_there(address, ports[0], timeout=_ANSWER) if resolved else None
            return Route(address, resolved, answers, ports)

        return self.context.once(f"route {address}", look)


class _Examination:
    """Putting together all that is known of one move."""

    def __init__(self, context: Context, vm: Subject, there: Side, method: str, layout: Layout) -> None:
        self.context = context
        self.vm = vm
        self.there = there
        self.method = method
        self.layout = layout
        self.source = _Source(context)
        self.guest, _seen, _state = vm.there()
        self.needs = read_needs(self.guest.xml(inactive=method != LIVE))

    def case(self) -> Case:
        """All of it."""
        source, local = self.source, self.source.local
        network = endpoints.migration_address(self.there.uri, self.context.params["migration_network"])
        address = network or self.there.host.name
        return Case(
            method=self.method,
            needs=self.needs,
            status=_status(self.guest, self.vm),
            here=source.facts(),
            there=_facts(self.context, self.there),
            fit=self._fit(),
            layout=self.layout,
            overcommit=self.context.params["overcommit"],
            papers=source.papers(self.there.uri, self.method, reached=True),
            certificate_there=self._certificate_there(),
            now=source.now(),
            route=source.route(address) if local and self.method == LIVE else Route(address),
            file_systems=self._file_systems(),
            foreign_listens=frozenset(filter(machine.is_own, self.needs.listens)) if local else None,
            unknown=tuple(self._unknown()),
        )

    def _fit(self) -> Fit:
        cpu = _readiness(self.context, self.context.here).cpu
        answered = _readiness(self.context, self.there).fit(self.needs, cpu)
        return replace(answered, missing=frozenset(path for path in self._paths() if not self._is_there(path)))

    def _paths(self) -> set[str]:
        """Files and directories that have to be there and do not come along."""
        needs, layout = self.needs, self.layout
        come = {disk.path for disk in layout.disks if disk.how != SHARED}
        paths = {os.path.dirname(path) for path in needs.outputs if path} - {layout.directory, layout.there}
        paths |= {*needs.boot_files, *needs.firmware}
        paths |= {disk.path for disk in needs.disks if disk.device in ("cdrom", "floppy") and disk.path not in come}
        return {path for path in paths if path.startswith("/")}

    def _is_there(self, path: str) -> bool:
        """Whether the destination has the file. What cannot be looked at counts as there."""
        try:
            return self.context.once(
                f"there {self.there.uri} {path}", lambda: self.there.storage.there(path.rstrip("/"))
            )
        except LifecycleError:
            return True

    def _certificate_there(self) -> bool | None:
        if self.method != LIVE or self.context.params["insecure_tcp"] or not self.source.local:
            return None
        return any(map(self._is_there, _CERTIFICATES))

    def _file_systems(self) -> dict[str, str]:
        """What shared disks lie on, which matters to libvirt when the guest runs."""
        if self.method != LIVE or not self.source.local:
            return {}
        return {
            disk.target: machine.file_system(disk.path)
            for disk in self.layout.disks
            if disk.how == SHARED and disk.path.startswith("/") and not disk.path.startswith("/dev/")
        }

    def _unknown(self) -> t.Iterator[str]:
        if not self.source.local:
            yield (
                f"The names that {self.context.host.name} resolves, the ports that it gets to and its certificates are"
                " not known, as the task does not run there."
            )
        plugged = any(nic.kind in ("bridge", "direct") for nic in self.needs.domain.interfaces)
        if plugged and _facts(self.context, self.there).links is None:
            yield f"Which bridges {self.there.host.name} has is not known: its libvirt has no interface driver."
