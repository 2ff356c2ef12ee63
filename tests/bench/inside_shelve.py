# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs in the KVM host: shelving by the module, and what it is held to. What was measured is printed as JSON.

inside_shelve.py prepare JSON            VMs, each with its disk; see prepare()
inside_shelve.py forget                  nothing of the disks is in the page cache
inside_shelve.py startup                 the module without a VM
inside_shelve.py plain VM                start it by vm_power, and power it off
inside_shelve.py shelve VM KIND STATE    to that state: shelved or offloaded
inside_shelve.py purge                   no base is in the cache that no VM on the host uses
inside_shelve.py unshelve VM KIND        at once, until it is pulled, and power it off
inside_shelve.py classical VM            copy the flat image, convert it, start a VM with it
inside_shelve.py nova VM                 Nova's way of shelving, of which each part is timed
inside_shelve.py upload                  a file that is ready, by openstacksdk
inside_shelve.py cycles VM KIND COUNT    how much room the VM takes, after so many times there and back
"""

from __future__ import annotations

import json
import os
import threading
import time
import typing as t
import xml.etree.ElementTree as ET

from tests.bench.inside import connect, dispatch
from tests.bench.inside_snapshots import (
    GUEST,
    IMAGES,
    MIB,
    READY,
    STORES,
    WORK,
    Ran,
    Told,
    call,
    convert,
    disk,
    forget,
    launch,
    make_image,
    module,
    noise,
    nova,
    upload,
)

FLAT = f"{WORK}/flat"
# Each VM of the classical way has this name.
CLASSIC = "classic"
# What is written at once, in MiB.
PIECE = 64
# Seconds between two looks at a VM that is to run.
BEAT = 0.01
# Seconds that a pull may take.
PULL = 1200


# ---- preparing


def prepare(told: str) -> None:
    """VMs and their images.

    :param told: ``base``: ``gib`` and ``mib`` of random data of the image *base*; ``vms``: by name, the ``image`` that
        it is launched from, which may also be *guest*, the ``gib`` of its disk, the ``mib`` of random data that are its
        own, and whether its disk is made ``flat`` as well, for the classical way.
    """
    os.makedirs(FLAT, exist_ok=True)
    wanted = json.loads(told)
    images = {"guest": GUEST, "base": make_image("base", **wanted["base"])}
    for name, path in images.items():
        for store in STORES.values():
            module("image", name=name, src=path, disk_format="qcow2", image_store=store)
    os.unlink(images["base"])
    for vm, has in wanted["vms"].items():
        launch(vm, has["image"], has["gib"], mib=0, heart=False)
        fill(vm, has["gib"], has["mib"])
        if has["flat"]:
            convert(vm, f"{FLAT}/{vm}.qcow2", keep=True)
            classic_definition(vm)
    convert("changes", READY, keep=True)


def fill(vm: str, gib: int, mib: int) -> None:
    """Random data into a VM's disk, behind all that its image has. Piece for piece they are the same data."""
    path = f"{WORK}/noise"
    with open(path, "wb") as file:
        noise(file, min(PIECE, mib))
    begin = (gib << 30) - 2 * mib * MIB
    writes = [f"write -q -s {path} {begin + at * MIB} {min(PIECE, mib - at)}M" for at in range(0, mib, PIECE)]
    call("qemu-io", "-f", "qcow2", *(word for write in writes for word in ("-c", write)), disk(vm))
    os.unlink(path)


def classic_definition(vm: str) -> None:
    """A definition like the VM's, with a raw disk in another place."""
    domain = ET.fromstring(call("virsh", "dumpxml", "--inactive", vm))
    for name in ("uuid", "metadata"):
        for element in domain.findall(name):
            domain.remove(element)
    domain.find("name").text = CLASSIC  # type: ignore[union-attr]
    for log in domain.iterfind("devices/serial/log"):
        log.set("file", f"{WORK}/{CLASSIC}.log")
    first = domain.find("devices/disk")
    first.find("source").set("file", f"{WORK}/{CLASSIC}.raw")  # type: ignore[union-attr]
    first.find("driver").set("type", "raw")  # type: ignore[union-attr]
    ET.ElementTree(domain).write(f"{FLAT}/{vm}.xml", encoding="unicode")


# ---- starting


class Watch(threading.Thread):
    """Notes when a VM runs, for as long as the body of a ``with``. Until then there may be no such VM."""

    def __init__(self, vm: str) -> None:
        super().__init__(daemon=True)
        self._vm = vm
        self._connection = connect()
        self._over = threading.Event()
        self._began = time.perf_counter()
        self._seen = 0.0

    @property
    def seconds(self) -> float:
        """From the beginning of the body until it ran."""
        if not self._seen:
            raise SystemExit(f"VM {self._vm} does not run.")
        return self._seen - self._began

    def run(self) -> None:
        """Look, again and again."""
        while not (self._seen or self._over.wait(BEAT)):
            if self._runs():
                self._seen = time.perf_counter()

    def _runs(self) -> bool:
        import libvirt

        try:
            return bool(self._connection.lookupByName(self._vm).state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        except libvirt.libvirtError:
            return False

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._seen:
            time.sleep(2 * BEAT)
        self._over.set()
        self.join()
        self._connection.close()


def plain(vm: str) -> Told:
    """What a start takes by itself."""
    with Watch(vm) as watch:
        ran = module("vm_power", name=[vm], state="running")
    call("virsh", "destroy", vm)
    return {"running": watch.seconds, "process": ran.seconds, "peak": ran.peak}


def unshelve(vm: str, kind: str) -> Told:
    """The module's way back; ``told`` is what it says itself of ``running``."""
    with Watch(vm) as watch:
        ran = shelving(vm, kind, "unshelved", power="running", wait_timeout=PULL)
    call("virsh", "destroy", vm)
    told = float(ran.result["vms"][0]["figures"]["running_seconds"])
    return {"running": watch.seconds, "told": told, "process": ran.seconds, "peak": ran.peak}


def classical(vm: str) -> Told:
    """What Nova does: fetch the image, make a raw disk of it, start."""
    fetched, raw = f"{WORK}/{CLASSIC}.qcow2", f"{WORK}/{CLASSIC}.raw"
    told: Told = {}
    with Watch(CLASSIC) as watch:
        began = time.perf_counter()
        call("cp", f"{FLAT}/{vm}.qcow2", fetched)
        told["download"] = time.perf_counter() - began
        began = time.perf_counter()
        call("qemu-img", "convert", "-t", "none", "-f", "qcow2", "-O", "raw", fetched, raw)
        told["convert"] = time.perf_counter() - began
        call("virsh", "create", f"{FLAT}/{vm}.xml")
    call("virsh", "destroy", CLASSIC)
    os.unlink(fetched)
    os.unlink(raw)
    return {**told, "running": watch.seconds}


# ---- shelving


def shelving(vm: str, kind: str, state: str, **options: t.Any) -> Ran:
    """The module."""
    return module("vm_shelve", name=[vm], state=state, image_store=STORES[kind], **options)


def startup() -> Told:
    """The module without anything to do, connected to libvirt."""
    return {"process": module("vm_shelve", name=[], state="shelved").seconds}


def shelve(vm: str, kind: str, state: str) -> Told:
    """To that state. What the shelf takes is what the store says, not the module."""
    ran = shelving(vm, kind, state, force=True)
    found = module("image_info", properties={"image_type": "shelf"}, image_store=STORES[kind]).result["images"]
    size = sum(image["size"] for image in found) / MIB
    return {"seconds": ran.result["vms"][0]["seconds"], "process": ran.seconds, "peak": ran.peak, "size": size}


def purge() -> None:
    """See above."""
    module("image", state="purged", older_than=0)


def nova_way(vm: str) -> Told:
    """Convert, copy, hash; and how much there is then."""
    return {**nova(vm), "size": os.path.getsize(READY) / MIB}


def cycles(vm: str, kind: str, count: str) -> Told:
    """It is stopped when it goes, and boots when it comes; what its guest writes by then is in the figures."""
    told = {"before": used(vm)}
    for number in range(1, int(count) + 1):
        shelving(vm, kind, "offloaded")
        told[f"away {number}"] = used(vm)
        unshelve(vm, kind)
        told[f"back {number}"] = used(vm)
    return told


def used(vm: str) -> float:
    """MiB that a VM's files take on the host, with all bases."""
    places = [f"{IMAGES}/_base"]
    if vm in call("virsh", "-q", "list", "--all", "--name").split():
        places.append(os.path.dirname(disk(vm)))
    return sum(int(call("du", "-s", "-B1", place).split()[0]) for place in places) / MIB


COMMANDS: dict[str, t.Callable[..., Told | None]] = {
    "prepare": prepare,
    "forget": forget,
    "startup": startup,
    "plain": plain,
    "shelve": shelve,
    "purge": purge,
    "unshelve": unshelve,
    "classical": classical,
    "nova": nova_way,
    "upload": upload,
    "cycles": cycles,
}


def main() -> None:
    """See above."""
    dispatch(COMMANDS)


if __name__ == "__main__":
    main()
