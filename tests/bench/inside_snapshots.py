# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs in the KVM host: snapshots by the module, and what they are held to. What was measured is printed as JSON.

inside_snapshots.py prepare JSON         VMs, each with its disk; see prepare()
inside_snapshots.py ready VM             its disk as one flat file, for upload
inside_snapshots.py forget               nothing of the disks is in the page cache
inside_snapshots.py power VM WHAT        on, off, pause or resume
inside_snapshots.py startup              the module without a VM
inside_snapshots.py take VM KIND FORM    a snapshot
inside_snapshots.py held VM FORM HOW     the same of a running VM, whose guest is watched
inside_snapshots.py held VM nova|load    Nova's way, or only a copy, watched likewise
inside_snapshots.py nova VM              Nova's way, of which each part is timed
inside_snapshots.py convert VM           one qemu-img convert into the store
inside_snapshots.py upload               a file that is ready, by openstacksdk
inside_snapshots.py module NAME JSON     run a module with these arguments; the last line of stderr is its peak memory
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import typing as t
import uuid
from dataclasses import dataclass

from tests.bench import inside

IMAGES = "/var/lib/libvirt/images"
WORK = f"{IMAGES}/bench"
READY = f"{WORK}/ready.qcow2"
GUEST = "/opt/kvmops/images/guest.qcow2"
CLOUDS = "/etc/kvmops-lab/clouds.yaml"
CLOUD = "member"
STORES: dict[str, dict[str, t.Any]] = {
    "directory": {"type": "directory", "path": f"{WORK}/store"},
    "glance": {"type": "glance", "cloud": CLOUD, "clouds_file": CLOUDS},
}
MIB = 1 << 20
BLOCK = 4 << 20
# Where random data begin: behind the guest's partitions.
FREE = 128 * MIB
# Seconds between two beats of the guest's heart.
BEAT = 0.01
PORT = "kvmops.bench"
# Appends to a file, which blocks while the file system is frozen, and tells it, which blocks while nobody listens.
# Nothing is started for a beat: it is a shell that waits for what never comes.
HEART = f"""
rm -f /tmp/clock && mkfifo /tmp/clock && exec 3<>/tmp/clock 4>>/data/beats 5>/dev/virtio-ports/{PORT} || exit 1
while :; do echo >&4 && echo >&5; read -t {BEAT} -u 3 x; done
"""

Told = dict[str, float]


# ---- modules


@dataclass(frozen=True)
class Ran:
    """What came of a module.

    :param seconds: Of its process.
    :param peak: Of its memory, in MiB.
    """

    result: dict[str, t.Any]
    seconds: float
    peak: float


def module(called: str, /, **arguments: t.Any) -> Ran:
    """Run a module in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "module", called, json.dumps(arguments)]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{called} failed:\n{done.stdout}\n{done.stderr}")
    return Ran(json.loads(done.stdout), seconds, int(done.stderr.split()[-1]) / 1024)


def run_module(name: str, arguments: str) -> None:
    """The module, and its peak memory in KiB."""
    try:
        inside.module(name, arguments)
    finally:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)


def snapshot(vm: str, kind: str, form: str, quiesce: str = "never") -> Ran:
    """A snapshot by the module."""
    return module("vm_snapshot", name=[vm], image="bench", form=form, quiesce=quiesce, image_store=STORES[kind])


def remove(vm: str, kind: str) -> None:
    """The snapshot, again."""
    module("vm_snapshot", name=[vm], image="bench", state="absent", image_store=STORES[kind])


# ---- preparing


def call(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def disk(vm: str) -> str:
    """The file of a VM's root disk."""
    return f"{IMAGES}/{call('virsh', 'domuuid', vm)}/root.qcow2"


def prepare(told: str) -> None:
    """VMs and their images.

    :param told: By the name of each image in the store: ``gib`` of the disk in it, ``mib`` of random data, ``clouds``
        whether it is in Glance as well, and ``vms``, which are launched from it: by name, the ``gib`` of the disk,
        the ``mib`` of random data in the overlay, and whether there is a ``heart`` to watch.
    """
    os.makedirs(WORK, exist_ok=True)
    for name, image in json.loads(told).items():
        path = make_image(name, image["gib"], image["mib"])
        for kind in ("directory", "glance") if image["clouds"] else ("directory",):
            module("image", name=name, src=path, disk_format="qcow2", image_store=STORES[kind])
        os.unlink(path)
        for vm, wanted in image["vms"].items():
            launch(vm, name, **wanted)


def make_image(name: str, gib: int, mib: int) -> str:
    """The lab's guest on a larger disk, with random data behind it."""
    raw, path = f"{WORK}/{name}.raw", f"{WORK}/{name}.qcow2"
    call("qemu-img", "convert", "-f", "qcow2", "-O", "raw", GUEST, raw)
    with open(raw, "r+b") as file:
        file.truncate(gib << 30)
        file.seek(FREE)
        noise(file, mib)
    call("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    os.unlink(raw)
    return path


def ready(vm: str) -> None:
    """See above."""
    convert(vm, READY, keep=True)


def noise(file: t.IO[bytes], mib: int) -> None:
    """Random data. They are written in pieces, so that this process, of which modules are started, stays small."""
    for _number in range(mib):
        file.write(os.urandom(MIB))


def launch(vm: str, image: str, gib: int, mib: int, heart: bool) -> None:
    """A VM, which is started if it has a heart."""
    module(
        "vm",
        name=[vm],
        image=image,
        image_store=STORES["directory"],
        domain_type="qemu",
        flavor={"vcpus": 1, "memory": 96, "root": gib},
        networks=[{"bridge": "br0"}],
        graphics="none",
        start=False,
    )
    if mib:
        with open(f"{WORK}/noise", "wb") as file:
            noise(file, mib)
        # Behind all that the image has.
        write = f"write -s {WORK}/noise {(gib << 30) - 2 * mib * MIB} {mib}M"
        call("qemu-io", "-f", "qcow2", "-c", write, disk(vm))
        os.unlink(f"{WORK}/noise")
    if heart:
        with open(f"{WORK}/port.xml", "w", encoding="utf-8") as file:
            source = f"<source mode='bind' path='{port(vm)}'/>"
            file.write(f"<channel type='unix'>{source}<target type='virtio' name='{PORT}'/></channel>")
        call("virsh", "attach-device", vm, f"{WORK}/port.xml", "--config")
        power(vm, "on")
        agent(vm, "guest-exec", path="/bin/sh", arg=["-c", HEART])
        power(vm, "pause")


def port(vm: str) -> str:
    """Where a guest's heart is heard."""
    return f"/run/{PORT}.{vm}"


def agent(vm: str, command: str, **arguments: t.Any) -> None:
    """One command of the guest agent."""
    call("virsh", "qemu-agent-command", vm, json.dumps({"execute": command, "arguments": arguments}))


def power(vm: str, what: str) -> None:
    """Switch a VM on, until its agent answers; off, pause or resume it."""
    call("virsh", {"on": "start", "off": "destroy", "pause": "suspend", "resume": "resume"}[what], vm)
    if what == "on":
        end = time.monotonic() + 120
        ping = ["virsh", "qemu-agent-command", vm, '{"execute": "guest-ping"}']
        while subprocess.run(ping, check=False, capture_output=True).returncode:
            if time.monotonic() > end:
                raise SystemExit(f"VM {vm} does not come up.")
            time.sleep(0.3)
        time.sleep(3)  # what begins together with the agent


def forget() -> None:
    """See above. What is written lies on the disk afterwards."""
    os.sync()
    for directory, _directories, names in os.walk(IMAGES):
        for name in names:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


# ---- watching a guest


class Heart(threading.Thread):
    """Hears a guest's heart, for as long as the body of a ``with``, which begins when it beats."""

    def __init__(self, vm: str) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(port(vm))
        self._beats: list[float] = []

    def run(self) -> None:
        """Note when something comes."""
        with contextlib.suppress(OSError):
            while self._socket.recv(BLOCK):
                self._beats.append(time.monotonic())

    def __enter__(self) -> Heart:
        self.start()
        # What is heard at first waited for us.
        self.wait(time.monotonic() + 1)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self.join()
        self._socket.close()

    def wait(self, moment: float) -> None:
        """Until it beats after that moment."""
        while not self._beats or self._beats[-1] <= moment:
            if time.monotonic() > moment + 60:
                raise SystemExit("The guest's heart does not beat.")
            time.sleep(BEAT)

    def longest(self, begin: float, end: float) -> float:
        """The longest time between two beats which is, in part, between these moments; in milliseconds."""
        self.wait(end)
        beats = list(self._beats)
        return 1000 * max(later - one for one, later in zip(beats, beats[1:]) if later > begin and one < end)


def held(vm: str, *how: str) -> Told:
    """Watch a guest while its disk is copied, and then for as long without that."""
    with Heart(vm) as heart:
        began = time.monotonic()
        if how == ("nova",):
            told = suspended(vm)
        elif how == ("load",):
            told = {**convert(vm), "held": 0}
        else:
            told = taken(snapshot(vm, "directory", *how))
        ended = time.monotonic()
        heart.wait(ended)
        calm = time.monotonic()
        time.sleep(ended - began)
        told["gap"] = heart.longest(began, ended)
        told["calm"] = heart.longest(calm, time.monotonic())
    if how not in (("nova",), ("load",)):
        remove(vm, "directory")
    return told


def suspended(vm: str) -> Told:
    """Nova's way with a running VM, when it cannot have libvirt copy the disk: the guest stands still meanwhile."""
    path = disk(vm)
    began = time.perf_counter()
    call("virsh", "suspend", vm)
    call("qemu-img", "convert", "--force-share", "-f", "qcow2", "-O", "qcow2", path, f"{WORK}/flat.qcow2")
    call("virsh", "resume", vm)
    seconds = time.perf_counter() - began
    os.unlink(f"{WORK}/flat.qcow2")
    return {"seconds": seconds, "held": seconds * 1000}


# ---- copying


def taken(ran: Ran) -> Told:
    """What is known of a snapshot."""
    (vm,) = ran.result["vms"]
    return {
        "seconds": vm["seconds"],
        "process": ran.seconds,
        "peak": ran.peak,
        "held": vm["figures"]["held_ms"],
        "size": vm["figures"]["bytes"] / MIB,
    }


def take(vm: str, kind: str, form: str) -> Told:
    """A snapshot, and how much was read from the device meanwhile, by whomever."""
    before = device_read()
    told = taken(snapshot(vm, kind, form))
    told["read"] = (device_read() - before) / MIB
    remove(vm, kind)
    return told


def device_read() -> int:
    """Bytes that were read from the device with the images."""
    number = os.stat(IMAGES).st_dev
    with open(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat", encoding="ascii") as file:
        return int(file.read().split()[2]) * 512


def startup() -> Told:
    """The module without anything to do, connected to libvirt."""
    return {"process": module("vm_snapshot", name=[], image="bench").seconds}


def nova(vm: str) -> Told:
    """Convert to a temporary file, copy that into the store, hash it."""
    temporary, stored = f"{WORK}/flat.qcow2", f"{WORK}/store/flat.qcow2"
    told = {"convert": convert(vm, temporary, keep=True)["seconds"]}
    began = time.perf_counter()
    call("cp", temporary, stored)
    flush(stored)
    told["copy"] = time.perf_counter() - began
    began = time.perf_counter()
    digest = hashlib.sha256()
    with open(stored, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    told["hash"] = time.perf_counter() - began
    os.unlink(temporary)
    os.unlink(stored)
    return told


def convert(vm: str, target: str = f"{WORK}/store/flat.qcow2", keep: bool = False) -> Told:
    """One qemu-img convert, and what is written lies on the disk."""
    source = disk(vm)
    began = time.perf_counter()
    call("qemu-img", "convert", "--force-share", "-f", "qcow2", "-O", "qcow2", source, target)
    flush(target)
    seconds = time.perf_counter() - began
    if not keep:
        os.unlink(target)
    return {"seconds": seconds}


def flush(path: str) -> None:
    """What was written into a file lies on the disk."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def upload() -> Told:
    """The file that is ready, in one stream of known length; nothing is hashed or compared. How long the libraries take
    to be imported, and to log in, is told apart."""
    began = time.perf_counter()
    import openstack.config
    import openstack.connection

    region = openstack.config.OpenStackConfig(config_files=[CLOUDS]).get_one(cloud=CLOUD)
    image = openstack.connection.Connection(config=region).image
    image.get_endpoint()
    login = time.perf_counter() - began
    image_id = str(uuid.uuid4())
    record = {"id": image_id, "name": "bare", "disk_format": "qcow2", "container_format": "bare"}
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept": "",
        "X-OpenStack-Image-Size": str(os.path.getsize(READY)),
    }
    with open(READY, "rb") as file:
        began = time.perf_counter()
        image.post("/images", json=record)
        answer = image.put(f"/images/{image_id}/file", data=file, headers=headers)
        seconds = time.perf_counter() - began
    image.delete(f"/images/{image_id}")
    if answer.status_code != 204:
        raise SystemExit(f"The upload failed: {answer.status_code}.")
    return {"login": login, "seconds": seconds, "size": os.path.getsize(READY) / MIB}


COMMANDS: dict[str, t.Callable[..., Told | None]] = {
    "prepare": prepare,
    "ready": ready,
    "forget": forget,
    "power": power,
    "startup": startup,
    "take": take,
    "held": held,
    "nova": nova,
    "convert": convert,
    "upload": upload,
    "module": run_module,
}


def main() -> None:
    """See above."""
    inside.dispatch(COMMANDS)


if __name__ == "__main__":
    main()
