# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults on demand, their mending, and the state that a lab is in: all of it read from the kernel."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from . import hosts, util
from .lab import HERE, PRIVATE, Lab
from .util import LabError, Process, run

FILLER = ".kvmops-fill"


@dataclasses.dataclass(frozen=True)
class HostState:
    """What is the matter with a host."""

    name: str
    address: str
    uuid: str
    state: str  # on, off, frozen, booting
    link: str  # up, cut; "" when off
    rate: str  # what its link is slowed to
    delay: str
    libvirtd: bool
    guests: int


# ---- looking


def state(lab: Lab, host: str) -> HostState:
    init = lab.init(host)
    base = {"name": host, "address": lab.address(host), "uuid": hosts.host_uuid(lab, host)}
    if init is None:
        return HostState(**base, state="off", link="", rate="", delay="", libvirtd=False, guests=0)
    members = _members(lab, host)
    condition = "on" if hosts.host_ready(lab, host) else "booting"
    if _marker(lab, host).exists():
        condition = "frozen"
    relay = _relay(lab, host)
    return HostState(
        **base,
        state=condition,
        link="up" if _link_up(lab, host) else "cut",
        rate=_rate(lab, host),
        delay=relay.arguments().split()[-1] + "s" if relay else "",
        libvirtd=any(item.command == "libvirtd" for item in members),
        guests=sum(item.command.startswith("qemu-system") and " -name guest=" in item.arguments() for item in members),
    )


def _marker(lab: Lab, host: str) -> Path:
    """Exists while a host is frozen; tells how its link was before."""
    return lab.host_dir(host) / "frozen"


def _members(lab: Lab, host: str) -> list[Process]:
    """The processes of a host, without its PID 1."""
    init = lab.need_init(host)
    namespace = init.namespace("pid")
    return [item for item in util.processes() if item.pid != init.pid and item.namespace("pid") == namespace]


def _link_up(lab: Lab, host: str) -> bool:
    done = lab.in_hub("ip", "-json", "link", "show", host, check=False)
    return done.returncode == 0 and "UP" in json.loads(done.stdout)[0]["flags"]


def _rate(lab: Lab, host: str) -> str:
    found = re.search(r"^qdisc tbf .* rate (\S+)", lab.in_hub("tc", "qdisc", "show", "dev", host).stdout, re.M)
    return found[1] if found else ""


def _relay(lab: Lab, host: str) -> Process | None:
    for item in util.processes():
        environment = item.environment()
        ours = environment.get("KVMOPS_LAB_ID") == lab.id and environment.get("KVMOPS_LAB_ROLE") == "delay-" + host
        if ours and item.alive and item.command != "nsenter":
            return item
    return None


def _need_on(lab: Lab, host: str) -> None:
    lab.need_init(host)
    if _marker(lab, host).exists():
        raise LabError(f"{host} is frozen: thaw it first")


# ---- the link


def cut(lab: Lab, host: str) -> None:
    """Pull the network cable."""
    lab.need_init(host)
    lab.in_hub("ip", "link", "set", host, "down")


def mend(lab: Lab, host: str) -> None:
    """Plug it in again."""
    lab.need_init(host)
    if _marker(lab, host).exists():
        raise LabError(f"{host} is frozen, which cuts its link too: thaw it")
    lab.in_hub("ip", "link", "set", host, "up")


def slow(lab: Lab, host: str, rate: str = "", delay: float = 0.0) -> None:
    """Slow the link down, both ways: to a rate, and by a delay each way."""
    lab.need_init(host)
    if not rate and not delay:
        raise LabError("slow needs --rate or --delay")
    unslow(lab, host)
    if rate:
        # A token bucket, not netem: it is there in more kernels, and does the same for the rate.
        words = ["root", "tbf", "rate", rate, "burst", "32kb", "latency", "300ms"]
        run("ip", "netns", "exec", lab.netns(host), "tc", "qdisc", "replace", "dev", "eth0", *words)
        lab.in_hub("tc", "qdisc", "replace", "dev", host, *words)
    if delay:
        _start_relay(lab, host, delay)


def unslow(lab: Lab, host: str) -> None:
    """The link at full speed again."""
    lab.need_init(host)
    run("ip", "netns", "exec", lab.netns(host), "tc", "qdisc", "del", "dev", "eth0", "root", check=False)
    lab.in_hub("tc", "qdisc", "del", "dev", host, "root", check=False)
    relay = _relay(lab, host)
    if relay:
        util.kill(relay.pid, signal.SIGKILL)
        util.wait_for(lambda: _relay(lab, host) is None, 5)
    lab.in_hub("ip", "link", "set", host, "master", "sw0", "promisc", "off")


def _start_relay(lab: Lab, host: str, delay: float) -> None:
    """See delay.py. It lives in the hub, and ends with it."""
    hub = lab.need_init("hub")
    environment = lab.environment("delay-" + host)
    environment["PYTHONPATH"] = str(HERE)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    log = lab.dir / "hub" / f"delay-{host}.log"
    log.unlink(missing_ok=True)
    argv = ["nsenter", "--target", str(hub.pid), "--net", "--pid", "--", "/usr/bin/python3", "-m", "kvmlab.delay"]
    started = util.spawn([*argv, host, "late-" + host, f"{delay:g}"], log, environment)

    def ready() -> bool:
        done = lab.in_hub("ip", "-json", "link", "show", "late-" + host, check=False)
        return done.returncode == 0 and json.loads(done.stdout)[0].get("master") == "sw0"

    util.wait_for(lambda: ready() or started.poll() is not None, 20)
    if not ready():
        raise LabError(f"the delay for {host} did not start: {log.read_text('utf-8')}")


# ---- libvirtd


def kill_libvirtd(lab: Lab, host: str) -> None:
    """SIGKILL, as a crash does; guests run on, nothing restarts it."""
    _end_libvirtd(lab, host, signal.SIGKILL)


def stop_libvirtd(lab: Lab, host: str) -> None:
    """SIGTERM, as a service manager does."""
    _end_libvirtd(lab, host, signal.SIGTERM)


def _end_libvirtd(lab: Lab, host: str, number: int) -> None:
    _need_on(lab, host)

    def running() -> list[Process]:
        return [item for item in _members(lab, host) if item.command == "libvirtd" and item.alive]

    if not running():
        raise LabError(f"libvirtd does not run on {host}")
    for item in running():
        util.kill(item.pid, number)
    if not util.wait_for(lambda: not running(), 30):
        raise LabError(f"libvirtd on {host} does not end")


def start_libvirtd(lab: Lab, host: str) -> None:
    """Start it where it does not run."""
    _need_on(lab, host)
    if not any(item.command == "libvirtd" for item in _members(lab, host)):
        lab.run_in(host, "libvirtd", "--daemon", "--listen", timeout=60)


# ---- the host


def freeze(lab: Lab, host: str) -> None:
    """Stop every process, and the link with them: a frozen machine does not answer a ping either."""
    lab.need_init(host)
    marker = _marker(lab, host)
    if not marker.exists():
        util.write(marker, "up" if _link_up(lab, host) else "cut")
    lab.in_hub("ip", "link", "set", host, "down")

    def all_stopped() -> bool:
        running = [item for item in _members(lab, host) if item.state not in ("T", "Z", "X")]
        for item in running:
            util.kill(item.pid, signal.SIGSTOP)
        return not running

    if not util.wait_for(all_stopped, 20):
        raise LabError(f"could not stop every process of {host}")


def thaw(lab: Lab, host: str) -> None:
    """Let it go on."""
    init = lab.need_init(host)
    marker = _marker(lab, host)
    members = {item.pid: item for item in _members(lab, host)}
    for item in members.values():
        util.kill(item.pid, signal.SIGCONT)
    # what stands outside and waits for one inside stopped with it
    for pid in {item.ppid for item in members.values()} - set(members) - {init.pid}:
        parent = util.process(pid)
        if parent and parent.state == "T":
            util.kill(pid, signal.SIGCONT)
    if not marker.exists() or marker.read_text("utf-8") == "up":
        lab.in_hub("ip", "link", "set", host, "up")
    marker.unlink(missing_ok=True)


def power_off(lab: Lab, host: str) -> None:
    """The power cut. What was written is kept (also what was not synced: the disks are files of this machine)."""
    hosts.stop_host(lab, host)


def boot(lab: Lab, host: str) -> None:
    """Power on."""
    if lab.init(host) is not None:
        raise LabError(f"{host} is on")
    if not hosts.hub_works(lab):
        raise LabError("the lab is not up: lab up")
    hosts.boot(lab, [host])


# ---- disks


def _storage(lab: Lab, host: str, which: str) -> Path:
    settings = lab.settings()
    if (settings.private_size if which == "private" else settings.shared_size) == "none":
        raise LabError(
            "this machine has no loop devices, the storages are not of limited size: refusing to fill its disk"
        )
    lab.need_init(host)
    return lab.root(host) / PRIVATE.lstrip("/") if which == "private" else lab.shared_dir()


def fill_disk(lab: Lab, host: str, which: str = "private", leave: int = 0) -> None:
    """Take all the room on a storage but some bytes. What is written then gets ENOSPC."""
    directory = _storage(lab, host, which)
    (directory / FILLER).unlink(missing_ok=True)
    if which == "shared":  # FUSE has no fallocate for us: go below it
        directory = directory.parent / "raw"
    take_room(directory, leave)


def take_room(directory: Path, leave: int) -> None:
    """Fill the file system of a directory, but for some bytes."""
    path = directory / FILLER
    room = os.statvfs(directory)
    size = room.f_bavail * room.f_frsize - leave
    if size <= 0:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while size > 0:  # the file's own map needs room too
            try:
                os.posix_fallocate(descriptor, 0, size)
                break
            except OSError:
                size -= 1 << 20
        if leave == 0:
            block = bytes(4096)
            os.lseek(descriptor, 0, os.SEEK_END)
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, block)
    finally:
        os.close(descriptor)


def empty_disk(lab: Lab, host: str, which: str = "private") -> None:
    """Give the room back."""
    (_storage(lab, host, which) / FILLER).unlink(missing_ok=True)


# ---- all of it


def heal(lab: Lab, host: str) -> None:
    """Mend whatever is the matter with a host."""
    if lab.init(host) is None:
        boot(lab, host)
        empty_disk(lab, host)
        return
    thaw(lab, host)
    mend(lab, host)
    unslow(lab, host)
    start_libvirtd(lab, host)
    if lab.settings().private_size != "none":
        empty_disk(lab, host)
        empty_disk(lab, host, "shared")


def report(lab: Lab) -> dict[str, Any]:
    """The whole lab."""
    settings = lab.settings()
    return {
        "name": lab.name,
        "dir": str(lab.dir),
        "subnet": settings.subnet + ".0/24",
        "hub": "on" if hosts.hub_works(lab) else "off",
        "shared_dir": str(lab.shared_dir()) if lab.init("hub") else "",
        "hosts": [dataclasses.asdict(state(lab, host)) for host in lab.hosts()],
    }
