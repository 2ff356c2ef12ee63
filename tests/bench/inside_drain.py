# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs in the KVM host that is drained: its guests, and virsh. What was measured is printed as JSON.

inside_drain.py prepare COUNT MEMORY FILL    guests that run and have no disk; MiB, FILL of them not being zeros
inside_drain.py bare COUNT BANDWIDTH HOST... virsh, one after the other, to these hosts in turn; MiB/s
inside_drain.py home HOST...                 every guest back, and the host in scheduling
"""

from __future__ import annotations

import time
import typing as t

from tests.bench.inside import dispatch
from tests.bench.inside_migrate import FLAGS, HERE
from tests.bench.inside_snapshots import Told, call

# Where the host remembers whether it is in scheduling.
SCHEDULING = "/var/lib/kvmops/scheduling.json"
# What every guest has in its memory, from its 16th MiB on. QEMU wants the file on both hosts.
FILLING = "/srv/kvmops/shared/filling"
XML = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os><features><acpi/></features><devices/>
<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='loader,file={filling},addr=0x1000000,force-raw=on'/>
</qemu:commandline></domain>"""


def name(number: int) -> str:
    """Of a guest."""
    return f"guest{number:02}"


def prepare(count: str, memory: str, fill: str) -> None:
    """Guests in their firmware."""
    call("dd", "if=/dev/urandom", f"of={FILLING}", "bs=1M", f"count={fill}", "status=none")
    for number in range(int(count)):
        path = f"/tmp/{name(number)}.xml"
        with open(path, "w", encoding="utf-8") as file:
            file.write(XML.format(name=name(number), memory=memory, filling=FILLING))
        call("virsh", "-q", "define", path)
        call("virsh", "-q", "start", name(number))


def bare(count: str, bandwidth: str, *hosts: str) -> Told:
    """virsh."""
    began = time.perf_counter()
    for number in range(int(count)):
        dest = f"qemu+tls://{hosts[number % len(hosts)]}/system"
        call("virsh", "migrate", *FLAGS, "--bandwidth", bandwidth, name(number), dest)
    return {"process": time.perf_counter() - began}


def home(*hosts: str) -> None:
    """As it was."""
    for host in hosts:
        there = f"qemu+tls://{host}/system"
        for guest in call("virsh", "-c", there, "-q", "list", "--name").split():
            call("virsh", "-c", there, "migrate", *FLAGS, guest, HERE)
    call("rm", "-f", SCHEDULING)


COMMANDS: dict[str, t.Callable[..., Told | None]] = {"prepare": prepare, "bare": bare, "home": home}


def main() -> None:
    """See above."""
    dispatch(COMMANDS)


if __name__ == "__main__":
    main()
