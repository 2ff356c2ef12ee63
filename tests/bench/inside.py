# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs in the KVM host: the modules without Ansible around them, and the bare calls of libvirt that they are held to.

inside.py define COUNT          define so many VMs without disks
inside.py time ...              run this program with the other words in a process of its own; print its seconds
inside.py module NAME JSON      run a module with these arguments
inside.py work WHAT ...         the bare calls; prints the seconds that they took, connection apart
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

WORKERS = 5
METADATA = "urn:kvmops:lifecycle:instance"


def module(name: str, arguments: str) -> None:
    """A module as Ansible runs it, its code unpacked."""
    import importlib

    from ansible.module_utils import basic

    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": json.loads(arguments)}).encode()
    basic._ANSIBLE_PROFILE = "legacy"
    importlib.import_module(f"ansible_collections.kvmops.lifecycle.plugins.modules.{name}").main()


def connect() -> t.Any:
    """A connection; libvirt does not print its errors."""
    import libvirt

    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt.open("qemu:///system")


def define(count: int) -> None:
    """So many VMs without disks, and no others.

    A hundred are there to be started. They have no network card: its firmware would look for a boot server, and twenty
    emulated guests that do so leave no CPU for what is measured. A thousand are there to be looked at, half of them
    with metadata of ours.
    """
    connection = connect()
    for domain in connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()
    lock = "<k:lock since='2026-01-01T00:00:00Z'>audit</k:lock>"
    instance = f"<k:instance xmlns:k='{METADATA}' schema='1'>{lock}</k:instance>"
    many = count > 100
    for number in range(count):
        connection.defineXML(
            f"""<domain type='qemu'>
            <name>vm{number:04}</name>
            <metadata>{instance if many and number % 2 else ""}</metadata>
            <memory unit='MiB'>32</memory><vcpu>1</vcpu>
            <os><type arch='x86_64'>hvm</type></os><features><acpi/></features>
            <devices>
              {"<interface type='user'><model type='virtio'/></interface>" if many else ""}
              <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
              <serial type='pty'/><graphics type='vnc'/>
            </devices></domain>"""
        )


def metadata(domain: t.Any) -> str | None:
    """What the collection remembers of a VM."""
    import libvirt

    try:
        return str(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA, libvirt.VIR_DOMAIN_AFFECT_CONFIG))
    except libvirt.libvirtError:
        return None


def states(connection: t.Any, domains: list[t.Any]) -> None:
    """What has to be known of VMs before one can tell whether there is anything to do."""
    import libvirt

    connection.domainListGetStats(domains, libvirt.VIR_DOMAIN_STATS_STATE, 0)
    connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
    connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT)


def work(what: str, count: int = 0) -> float:
    """The bare calls, in a thread pool where there is one for each VM."""
    import libvirt

    connection = connect()
    began = time.perf_counter()
    domains = connection.listAllDomains()
    if what == "stats":
        began = time.perf_counter()
        connection.getAllDomainStats()
        return time.perf_counter() - began
    if what == "info":
        for flag in ("ACTIVE", "PERSISTENT", "MANAGEDSAVE", "AUTOSTART", "HAS_SNAPSHOT", "HAS_CHECKPOINT"):
            connection.listAllDomains(getattr(libvirt, f"VIR_CONNECT_LIST_DOMAINS_{flag}"))
        connection.getAllDomainStats()
        for domain in domains:
            domain.XMLDesc()
        return time.perf_counter() - began
    domains = sorted(domains, key=lambda domain: domain.name())[:count]
    states(connection, domains)
    with ThreadPoolExecutor(WORKERS) as pool:
        if what == "nothing":
            list(pool.map(metadata, domains))
        elif what == "start":
            list(pool.map(lambda domain: (metadata(domain), domain.create()), domains))
        elif what == "destroy":
            list(pool.map(lambda domain: (metadata(domain), domain.destroy()), domains))
    return time.perf_counter() - began


def measure(*kind: str) -> float:
    """The wall time of one process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, __file__, *kind], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def dispatch(commands: t.Mapping[str, t.Callable[..., t.Any]]) -> None:
    """Do what the first word of the command line names, with the others, and print as JSON what it tells."""
    command, *words = sys.argv[1:]
    told = commands[command](*words)
    if told is not None:
        print(json.dumps(told))


def main() -> None:
    """See above."""
    command, *words = sys.argv[1:]
    if command == "define":
        define(int(words[0]))
    elif command == "module":
        module(*words)
    elif command == "work":
        print(work(words[0], int((words[1:] or ["0"])[0])))
    elif command == "time":
        print(measure(*words))


if __name__ == "__main__":
    main()
