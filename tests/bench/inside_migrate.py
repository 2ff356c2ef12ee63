# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs in the KVM host: migration by the module, and by virsh. What was measured is printed as JSON.

inside_migrate.py prepare JSON       VMs, booted, with memory that is in use; see prepare()
inside_migrate.py only VM...          let these run, and hold all others
inside_migrate.py startup            the module without a VM
inside_migrate.py ours JSON VM...    vm_migrate to the other host, with these options; and back
inside_migrate.py bare VM...         virsh, one after the other; and back
inside_migrate.py endless SECONDS VM virsh, of a guest that writes faster than is carried, given up after that time
inside_migrate.py converge JSON VM   vm_migrate of the same guest, with this policy; and back
inside_migrate.py changed VM         vm_migrate, with its disk; and back
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import typing as t

from tests.bench.inside import dispatch
from tests.bench.inside_snapshots import GUEST, MIB, STORES, WORK, Told, call, disk, make_image, module, noise

SHARED = "/srv/kvmops/shared/vms"
HERE, THERE = "qemu+tls://kvm1/system", "qemu+tls://kvm2/system"
# What vm_migrate asks libvirt for by default, in virsh's words.
FLAGS = ("--live", "--p2p", "--tls", "--persistent", "--undefinesource", "--auto-converge")
# Seconds that a guest may take to boot, and to fill its memory.
PATIENCE = 300
# Of a guest that never converges: MiB a second that it writes, in how many MiB, and that are carried.
DIRTY, RATE, BANDWIDTH = 20, 40, 8


# ---- preparing


def prepare(told: str) -> None:
    """VMs with their memory in use.

    :param told: ``vms``, on shared storage: by name, the MiB of ``memory`` and how many of them a file ``fill``s;
        ``diskless``: names of VMs that stay in their firmware, where they take no CPU time;
        ``base``: ``gib`` and ``mib`` of random data of the image of the VM *changed*, which is on the host's own
        storage and has ``changes`` MiB above it.
    """
    os.makedirs(WORK, exist_ok=True)
    wanted = json.loads(told)
    base = make_image("base", **wanted["base"])
    for name, path in (("guest", GUEST), ("base", base)):
        module("image", name=name, src=path, disk_format="qcow2", image_store=STORES["directory"])
    os.unlink(base)
    for name, vm in wanted["vms"].items():
        launch(name, "guest", vm["memory"], storage=SHARED)
    for name in wanted["diskless"]:
        without_disk(name)
    for name in ("seed", "changed"):
        launch(name, "base", 96, start=False)
    path = f"{WORK}/noise"
    with open(path, "wb") as file:
        noise(file, wanted["changes"])
    begin = (wanted["base"]["gib"] << 30) - 2 * wanted["changes"] * MIB
    call("qemu-io", "-f", "qcow2", "-c", f"write -q -s {path} {begin} {wanted['changes']}M", disk("changed"))
    os.unlink(path)
    for name in ("seed", "changed"):
        module("vm_power", name=[name], state="running")
    for name, vm in wanted["vms"].items():
        booted(name)
        if vm["fill"]:
            fill = f"dd if=/dev/urandom of=/fill/fill bs=1048576 count={vm['fill']}"
            inside(name, f"mkdir -p /fill && mount -t tmpfs -o size=100% none /fill && {fill}")
    booted("changed")
    booted("seed")
    # The other host has the base then.
    module("vm_migrate", name=["seed"], dest="kvm2")
    call("virsh", "-c", THERE, "suspend", "seed")


def launch(vm: str, image: str, memory: int, **options: t.Any) -> None:
    """A VM."""
    module(
        "vm",
        name=[vm],
        image=image,
        image_store=STORES["directory"],
        domain_type="qemu",
        flavor={"vcpus": 1, "memory": memory},
        networks=[{"bridge": "br0"}],
        graphics="none",
        **options,
    )


def without_disk(vm: str) -> None:
    """A VM that has nothing to boot."""
    path = f"{WORK}/{vm}.xml"
    with open(path, "w", encoding="ascii") as file:
        file.write(
            f"<domain type='qemu'><name>{vm}</name><memory unit='MiB'>96</memory><vcpu>1</vcpu><features><acpi/>"
            "</features><os><type arch='x86_64'>hvm</type></os><devices><serial type='pty'/></devices></domain>"
        )
    call("virsh", "define", path)
    call("virsh", "start", vm)


def agent(vm: str, command: str, **arguments: t.Any) -> t.Any:
    """What the agent in the guest answers; nothing while it does not."""
    request = json.dumps({"execute": command, "arguments": arguments})
    done = subprocess.run(
        ["virsh", "qemu-agent-command", vm, request], check=False, stdin=subprocess.DEVNULL, capture_output=True
    )
    return json.loads(done.stdout)["return"] if done.returncode == 0 else None


def booted(vm: str) -> None:
    """Wait until the guest has."""
    end = time.monotonic() + PATIENCE
    while agent(vm, "guest-ping") is None:
        if time.monotonic() > end:
            raise SystemExit(f"The guest {vm} does not boot.")
        time.sleep(0.5)


def inside(vm: str, script: str, wait: bool = True) -> None:
    """Run a shell script in the guest."""
    begun = agent(vm, "guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": wait})
    if begun is None:
        raise SystemExit(f"The guest {vm} does not answer.")
    end = time.monotonic() + PATIENCE
    while wait:
        told = agent(vm, "guest-exec-status", pid=begun["pid"])
        if told and told["exited"]:
            if told.get("exitcode"):
                raise SystemExit(f"{script} failed: {base64.b64decode(told.get('err-data', ''))!r}")
            return
        if time.monotonic() > end:
            raise SystemExit(f"{script} does not end.")
        time.sleep(0.2)


# ---- measuring


def only(*vms: str) -> None:
    """Nobody else takes CPU time from what is measured: an emulated guest that idles takes a twentieth of one."""
    for name in call("virsh", "-q", "list", "--state-running", "--name").split():
        if name not in vms:
            call("virsh", "suspend", name)
    for name in call("virsh", "-q", "list", "--state-paused", "--name").split():
        if name in vms:
            call("virsh", "resume", name)


def startup() -> Told:
    """The module without anything to do, connected to libvirt."""
    return {"process": module("vm_migrate", name=[], dest="kvm2").seconds}


def ours(options: str, *vms: str) -> Told:
    """The module."""
    ran = module("vm_migrate", name=list(vms), dest="kvm2", **json.loads(options))
    for vm in vms:
        home(vm)
    found = [vm["figures"] for vm in ran.result["vms"]]
    return {
        "process": ran.seconds,
        "total": max(figures.get("total_seconds", 0) for figures in found),
        "downtime": max(figures.get("downtime_ms", 0) for figures in found),
    }


def bare(*vms: str) -> Told:
    """virsh."""
    began = time.perf_counter()
    for vm in vms:
        call("virsh", "migrate", *FLAGS, vm, THERE)
    seconds = time.perf_counter() - began
    for vm in vms:
        home(vm)
    return {"process": seconds}


def home(vm: str) -> None:
    """Back again."""
    call("virsh", "-c", THERE, "migrate", *FLAGS, vm, HERE)


def dirty(vm: str) -> None:
    """Let the guest write to its memory for ever, and faster than is carried."""
    inside(vm, "killall dirty; true")
    inside(vm, f"exec dirty {DIRTY} {RATE}", wait=False)


def endless(seconds: str, vm: str) -> Told:
    """Whether ``virsh migrate --live`` comes to an end in that time."""
    dirty(vm)
    plain = [word for word in FLAGS if word != "--auto-converge"]
    began = time.perf_counter()
    with subprocess.Popen(
        ["virsh", "migrate", *plain, "--bandwidth", str(BANDWIDTH), vm, THERE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            ended = process.wait(float(seconds)) == 0
        except subprocess.TimeoutExpired:
            ended = False
            call("virsh", "domjobabort", vm)
            process.wait(PATIENCE)
    took = time.perf_counter() - began
    if ended:
        home(vm)
    inside(vm, "killall dirty; true")
    return {"process": took, "ended": float(ended)}


def converge(policy: str, vm: str) -> Told:
    """The module with the same guest."""
    dirty(vm)
    ran = module("vm_migrate", name=[vm], dest="kvm2", policy={"bandwidth": BANDWIDTH, **json.loads(policy)})
    figures = ran.result["vms"][0]["figures"]
    call("virsh", "-c", THERE, "suspend", vm)
    home(vm)
    call("virsh", "resume", vm)
    inside(vm, "killall dirty; true")
    return {"process": ran.seconds, "downtime": figures.get("downtime_ms", 0)}


def sent() -> int:
    """Bytes that the host has sent over its network."""
    with open("/sys/class/net/eth0/statistics/tx_bytes", encoding="ascii") as file:
        return int(file.read())


def changed(vm: str) -> Told:
    """With its disk, there; and back."""
    before = sent()
    ran = module("vm_migrate", name=[vm], dest="kvm2")
    moved = sent() - before
    figures = ran.result["vms"][0]["figures"]
    module("vm_migrate", name=[vm], dest="kvm1", uri=THERE)
    return {"process": ran.seconds, "sent": moved / MIB, "disk": figures.get("disk_bytes", 0) / MIB}


COMMANDS: dict[str, t.Callable[..., Told | None]] = {
    "prepare": prepare,
    "only": only,
    "startup": startup,
    "ours": ours,
    "bare": bare,
    "endless": endless,
    "converge": converge,
    "changed": changed,
}


def main() -> None:
    """See above."""
    dispatch(COMMANDS)


if __name__ == "__main__":
    main()
