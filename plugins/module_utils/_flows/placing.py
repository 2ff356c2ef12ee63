# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The disks of a VM that moves: where they go, making them there, and letting go of them here.

Which storage both hosts see is found out by a probe file. What is local is copied: by libvirt while the guest runs, for
which an empty file of the right kind has to be at the destination, or through libvirt's streams while it is off. Bases
are brought once and stay in the destination's cache, so only what the VM wrote itself goes over the network.

A file that is made at the destination has a marker beside it, ``FILE.moving``, that tells whose it is. Without one it
is somebody else's, and is left alone.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import typing as t
import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial

from .._core.errors import Invalid, LifecycleError, NotFound, Refused, Unreachable
from .._libvirt.bases import BASES, Base, Layer
from .._libvirt.chains import Chains
from .._libvirt.definition import Definition
from .._libvirt.launcher import remove_files
from .._libvirt.pools import PoolStorage
from .._libvirt.secrets import Secret, Secrets
from .._libvirt.storage import Storage
from .._libvirt.streams import Digest, Extent, blocks, digest_of
from .._libvirt.swap import NVRAM
from .._libvirt.xml import disk_nodes, put_instance
from .._model import chain as chains
from .._model import instance as memory
from .._model import placing, removal
from .._model.domain import Disk, Domain, Image, read_domain
from .._model.instance import Instance
from .._model.placing import COPIED, NETWORK, SHARED, Below, Layout, Placed, Problem, Room
from .._task import Context, Side, Subject

MARKER = ".moving"
_SWTPM = "/var/lib/libvirt/swtpm"
# QEMU's cryptsetup header, version 1: where the data begins, in sectors.
_LUKS, _LUKS_VERSION, _LUKS_PAYLOAD, _SECTOR = b"LUKS\xba\xbe", slice(6, 8), slice(104, 108), 512


class Placing:
    """The disks of one VM on the way to one destination.

    :raises Invalid: The destination is this machine.
    """

    def __init__(self, context: Context, vm: Subject, there: Side) -> None:
        if not isinstance(there.storage, PoolStorage):
            raise Invalid(f"VM {vm.name} is on {context.host.name} already.", hint="Name another host as dest.")
        self.context = context
        self.vm = vm
        self.there = there
        self.source: Storage = context.storage
        self.dest: PoolStorage = there.storage
        self._bases: dict[str, Base] = {}
        self._problems: list[Problem] = []

    @property
    def _uuid(self) -> str:
        """Of the VM, which may be gone from here."""
        if self.vm.guest:
            return self.vm.guest.uuid
        if self.vm.seen:
            return self.vm.seen.uuid
        raise NotFound(f"VM {self.vm.name} is gone.")

    # ---- looking

    def look(self) -> Layout:
        """Where every disk goes, and what stands against that. Nothing is changed but for probe files that are gone
        again when this returns."""
        guest, _seen, _state = self.vm.there()
        self._problems = []
        root = guest.xml(inactive=not guest.active())
        domain = read_domain(root)
        instance = self.vm.instance
        own = removal.own_directory(guest.uuid, instance)
        disks = self._to(self._place(domain), own, guest.uuid)
        copied = [disk for disk in disks if disk.how == COPIED]
        storage = self._storage(copied, instance)
        directory, there = self._directories(disks, own, storage, guest.uuid)
        nvram, nvram_made = self._nvram(domain)
        tpm = self._tpm(root, guest.uuid)
        for disk in copied:
            self._see_free(disk, there, guest.uuid)
        return Layout(
            disks=tuple(disks),
            directory=directory,
            there=there,
            storage=storage,
            nvram=nvram,
            nvram_made=nvram_made,
            tpm=tpm,
            secrets=tuple(self._secrets(root)),
            room=self._room(copied, storage),
            problems=tuple(self._problems),
        )

    def _problem(self, code: str, message: str, way_out: str = "", *, live: bool = True, cold: bool = True) -> None:
        self._problems.append(Problem(code, message, way_out, live, cold))

    def _storage(self, copied: t.Sequence[Placed], instance: Instance) -> str:
        wanted = self.context.params["dest_storage"]
        if wanted:
            return str(wanted)
        if instance.launch:
            return instance.launch.storage
        return os.path.dirname(copied[0].there) if copied else ""

    def _directories(self, disks: t.Sequence[Placed], own: str, storage: str, vm_uuid: str) -> tuple[str, str]:
        """The VM's own directory here and there, unless both see it."""
        inside = [disk for disk in disks if own and os.path.dirname(disk.path) == own]
        if any(disk.how == SHARED for disk in inside) or (own and not inside and self._shared(own)):
            return "", ""
        return own, os.path.join(storage, vm_uuid) if own else ""

    def _place(self, domain: Domain) -> list[Placed]:
        return [self._placed(disk) for disk in domain.disks]

    def _placed(self, disk: Disk) -> Placed:
        """How one disk goes; where to comes later."""
        how = placing.image_kind(disk)
        placed = Placed(disk.target, disk.device, how, disk.image.source, readonly=disk.readonly)
        if how == NETWORK and disk.image.kind != "network":
            self._problem(
                "disk_kind",
                f"Disk {disk.target} is of the kind {disk.image.kind}, which cannot be moved.",
                "Detach it, or move what is in it to a file.",
            )
        if how:
            return placed
        pool = disk.image.source.partition("/")[0] if disk.image.kind == "volume" else ""
        try:
            image = Chains(self.context.host).resolved(disk.image)
        except LifecycleError as exc:
            self._problem("volume_missing", f"Disk {disk.target} cannot be looked at: {exc}")
            return replace(placed, how=SHARED, pool=pool)
        layers, known = self._chain(disk, image)
        placed = replace(
            placed,
            path=image.source,
            there=image.source,
            pool=pool,
            format=image.format or "raw",
            size=layers[0].capacity or 0,
            allocated=layers[0].allocation or 0,
        )
        if self._both_see(placed, image):
            self._see_backing(placed, layers[1:])
            return replace(placed, how=SHARED)
        if disk.readonly and not layers[1:] and self._same_medium(placed.path):
            return replace(placed, how=SHARED)
        if image.kind == "block":
            self._problem(
                "block_device",
                f"{self.there.host.name} does not have the device {image.source} of disk {disk.target}, as far as its"
                " storage pools tell.",
                "Start the same pool there; or say shared_storage, if both hosts have the device.",
            )
            return replace(placed, how=SHARED)
        return self._copied(placed, disk, layers, known=known)

    def _copied(self, placed: Placed, disk: Disk, layers: t.Sequence[chains.Layer], *, known: bool) -> Placed:
        target = placed.target
        if layers[0].capacity is None:
            self._problem("disk_unknown", f"{placed.path}, the file of disk {target}, cannot be looked at.")
        if disk.encrypted and placed.format != "raw":
            self._problem(
                "encrypted_format",
                f"Disk {target} is encrypted in the format {placed.format}: an empty one like it cannot be made.",
                "Move the VM while it is off (method: cold).",
                cold=False,
            )
        if placed.format not in ("qcow2", "raw"):
            self._problem(
                "disk_format",
                f"Disk {target} has the format {placed.format}, and disks are copied that are qcow2 or raw.",
                "Convert it while the VM is off: qemu-img convert -O qcow2 …",
            )
        below = layers[1:]
        if not known or any(layer.image.kind != "file" for layer in below):
            self._problem(
                "chain_unknown",
                f"What lies below {placed.path}, disk {target}, is not known, or no file.",
                "Make it whole: virsh blockpull.",
            )
            below = ()
        first = below[0].image.source if below else ""
        return replace(
            placed,
            how=COPIED,
            below=tuple(
                Below(each.image.source, each.image.format or "raw", each.capacity or 0, each.allocation or 0)
                for each in below
            ),
            shared_base=bool(first) and self._file_shared(first),
        )

    def _chain(self, disk: Disk, image: Image) -> tuple[list[chains.Layer], bool]:
        """The layers of a disk, from the top down, and whether these are all. On another machine what is in no storage
        pool is unknown, so pools are opened on the way down."""
        opened: set[str] = set()
        while True:
            found = Chains(self.context.host).below(image)
            last = found.layers[-1].image.path
            if found.known or not last or last in opened or disk.image.kind == "block":
                return list(found.layers), found.known
            opened.add(last)
            self.source.there(last)

    # ---- what both hosts see

    def _both_see(self, placed: Placed, image: Image) -> bool:
        if placing.vouched(placed.path, placed.target, self.context.params["shared_storage"]):
            return True
        if image.kind == "block":
            return self._same_volume(placed.path)
        return self._file_shared(placed.path)

    def _same_medium(self, path: str) -> bool:
        """Whether the destination has a medium that nobody writes to, in the same place: many keep them on every host.
        What is in the VM's own directory is the VM's."""
        if os.path.dirname(path) == removal.own_directory(self._uuid, self.vm.instance):
            return False
        if not self.dest.there(path) or self.dest.length(path) != self.source.length(path):
            return False
        return self.context.once(
            f"medium {self.there.uri} {path}",
            lambda: digest_of(self.dest.read(path)) == digest_of(self.source.read(path)),
        )

    def _see_backing(self, placed: Placed, below: t.Sequence[chains.Layer]) -> None:
        """A disk that both see may lie upon a file that only one of them has."""
        for layer in below:
            path = layer.image.path
            words = self.context.params["shared_storage"]
            if path and not placing.vouched(path, placed.target, words) and not self._file_shared(path):
                self._problem(
                    "backing_not_shared",
                    f"Both hosts have {placed.path}, disk {placed.target}, and only this one has {path}, which it lies"
                    " upon.",
                    "Put the lower one on shared storage too, or make the upper one whole: virsh blockpull.",
                )

    def _file_shared(self, path: str) -> bool:
        """Whether a file is the same one on both hosts."""
        try:
            return self.dest.there(path) and self._shared(os.path.dirname(path))
        except Unreachable:
            raise
        except LifecycleError:  # it is not for us to look at
            return False

    def _shared(self, directory: str) -> bool:
        """Whether a directory is the same one on both hosts: asked once a task."""
        return self.context.once(f"shared {self.there.uri} {directory}", lambda: self._probe(directory))

    def _probe(self, directory: str) -> bool:
        """A name that nobody has asked for before is in no cache of a network file system, so that the host that looks
        comes second; and the source, which looks for one name alone, begins."""
        if self.dest.free(directory) is None:  # there is no such directory, and none shall be made
            return False
        for writer, reader in ((self.dest, self.source), (self.source, self.dest)):
            path = os.path.join(directory, f"kvmops-probe-{uuid.uuid4()}")
            try:
                writer.write(path, b"kvmops\n")
                try:
                    if reader.there(path):
                        return True
                finally:
                    writer.remove(path)
            except Unreachable:
                raise
            except LifecycleError:  # one of them may not write there
                continue
        return False

    def _same_volume(self, path: str) -> bool:
        """Whether storage pools of both hosts that have the same source have a block device."""
        here, there = self.context.here.host.pool_source(path), self.there.host.pool_source(path)
        return bool(here) and here == there

    # ---- where it goes

    def _to(self, disks: list[Placed], own: str, vm_uuid: str) -> list[Placed]:
        paths = {disk.target: disk.path for disk in disks if disk.how == COPIED and not disk.pool}
        places = placing.place_files(paths, self.context.params["dest_storage"] or "", own, vm_uuid)
        return [replace(disk, there=places.get(disk.target) or self._in_pool(disk)) for disk in disks]

    def _in_pool(self, disk: Placed) -> str:
        """Where a disk goes that a storage pool has: into the pool of that name."""
        directory = self.there.host.pool_directory(disk.pool) if disk.pool and disk.how == COPIED else ""
        return os.path.join(directory, os.path.basename(disk.path)) if directory else disk.there

    def _see_free(self, disk: Placed, own: str, vm_uuid: str) -> None:
        """See that nothing of somebody else is where a disk goes."""
        if not self.dest.there(disk.there) or self._marker(disk.there).get("vm") == vm_uuid:
            return
        owners = self.context.once(f"owners {self.there.uri}", lambda: Chains(self.there.host).owners())
        users = _users(owners, disk.there, disk.pool)
        if not users and own and os.path.dirname(disk.there) == own:
            return  # of this VM, by its place, and no definition there has it
        self._problem(
            "path_taken",
            f"{self.there.host.name} has a file {disk.there}"
            + (f", which VM {users[0]} uses" if users else ", and nobody knows whose it is")
            + f": disk {disk.target} cannot be put there.",
            "Say another dest_storage, or move the file away there.",
        )

    def _marker(self, path: str) -> dict[str, t.Any]:
        """What the marker of a file at the destination says; nothing when there is none that is whole."""
        if not self.dest.there(path + MARKER):
            return {}
        content = b"".join(bytes(part) if isinstance(part, int) else part for part in self.dest.read(path + MARKER))
        try:
            told = json.loads(content)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def _nvram(self, domain: Domain) -> tuple[str, bool]:
        """The file of the firmware's variables that has to move, and whether the destination does not have it."""
        if domain.firmware.kind != "uefi":
            return "", False
        path = domain.firmware.nvram or f"{NVRAM}/{domain.name}_VARS.fd"
        if not self.source.there(path):  # the VM was never started
            return "", False
        is_there = self.dest.there(path)
        if is_there and self._shared(os.path.dirname(path)):
            return "", False
        return path, not is_there

    def _tpm(self, root: ET.Element, vm_uuid: str) -> str:
        if root.find("devices/tpm/backend[@type='emulator']") is None:
            return ""
        directory = f"{_SWTPM}/{vm_uuid}"
        if self._shared(_SWTPM):
            return ""
        self._problem(
            "tpm_state",
            f"The VM has an emulated TPM, whose state in {directory} libvirt does not give out.",
            "Move the VM while it runs: then QEMU carries the state.",
            live=False,
        )
        return directory

    def _secrets(self, root: ET.Element) -> list[str]:
        """Those that the destination lacks and can be given."""
        here, there = Secrets(self.context.host), Secrets(self.there.host)
        lacking = []
        for each in here.used_by(root):
            mine, its = here.find(each), there.find(each)
            if mine and its and mine.value is not None and its.value is not None and mine.value != its.value:
                self._problem(
                    "secret_differs",
                    f"The secret {each}, which the VM needs, has another value on {self.there.host.name}.",
                    "Make them the same: virsh secret-set-value.",
                )
            elif its and (its.private or its.value is not None):
                continue
            elif mine is None or mine.value is None:
                self._problem(
                    "secret_missing",
                    f"{self.there.host.name} lacks the secret {each}, which the VM needs, and libvirt does not give out"
                    " its value here.",
                    "Define it there: virsh secret-define and secret-set-value.",
                )
            else:
                lacking.append(each)
        return lacking

    def _room(self, copied: t.Sequence[Placed], storage: str) -> dict[str, Room]:
        needed: dict[str, Room] = {}

        def add(directory: str, real: int, promised: int) -> None:
            room = needed.get(directory) or Room(free=self._free(directory))
            needed[directory] = replace(room, real=room.real + real, promised=room.promised + promised)

        bases: dict[str, int] = {}
        for disk in copied:
            add(self._root(disk.there, storage), disk.allocated, max(disk.size, disk.allocated))
            if disk.below and not disk.shared_base and disk.below[0].path not in bases:
                bases[disk.below[0].path] = self._lacks(disk, storage)
        for lacking in bases.values():
            if lacking:
                add(storage, lacking, lacking)
        return needed

    @staticmethod
    def _root(path: str, storage: str) -> str:
        directory = os.path.dirname(path)
        return storage if storage and directory.startswith(f"{storage}/") else directory

    def _free(self, directory: str) -> int | None:
        """Free bytes where *directory* is or will be."""
        while True:
            free = self.dest.free(directory)
            if free is not None or directory in ("/", ""):
                return free
            directory = os.path.dirname(directory)

    def _lacks(self, disk: Placed, storage: str) -> int:
        """Bytes of the layers below a disk that the destination has not, without reading files for it."""
        if self.source.base_facts(disk.below[0].path) is None:
            return sum(layer.length for layer in disk.below)
        return self.dest.lacks(self._layer(disk.below), storage)

    def _layer(self, below: t.Sequence[Below]) -> Layer:
        """What lies below a disk, as something to be brought."""
        first = below[0]
        base = self.source.base_facts(first.path)
        length = self.source.length(first.path)
        parent = self._layer(below[1:]) if len(below) > 1 else None
        common: dict[str, t.Any] = {"read": partial(self.source.read, first.path), "length": length, "parent": parent}
        if base and bool(base.parent) == (parent is not None):
            return Layer(
                first.path,
                base.format,
                base.sha256,
                base.size,
                virtual_size=base.virtual_size,
                digests=base.digests,
                images=base.images,
                **common,
            )
        sha256 = self.source.digest(first.path)
        return Layer(first.path, first.format, sha256, length, virtual_size=first.size, **common)

    # ---- making

    def prepare(self, layout: Layout) -> dict[str, t.Any]:
        """Make at the destination what a live migration needs there: secrets, bases, an empty file for every disk that
        libvirt will copy, and media that it does not copy.

        :raises Refused: Something stands against it.
        """
        self._demand(layout, live=True)
        figures = self._begin(layout)
        sent = 0
        for disk in layout.disks:
            if disk.mirrored:
                self._claim(disk)
                self._make(disk)
            elif disk.sent:
                sent += self._send(disk)
        return {**figures, "sent_bytes": sent}

    def carry(self, layout: Layout) -> dict[str, t.Any]:
        """Copy the disks of the VM, which is off, to the destination. Each is read back there and compared; one that is
        there already with the same content is not sent again.

        :raises Refused: Something stands against it.
        """
        self._demand(layout, live=False)
        guest = self.vm.made()
        if guest.active():
            raise Refused(f"VM {guest.name} runs: its disks cannot be carried as files.", hint="Stop it first.")
        figures = self._begin(layout)
        sent = sum(self._send(disk) for disk in layout.disks if disk.how == COPIED)
        if layout.nvram:
            length = self.source.length(layout.nvram)
            self.dest.remove(layout.nvram)
            sent += self.dest.send(layout.nvram, self.source.read(layout.nvram), length).data
        return {**figures, "sent_bytes": sent}

    def _demand(self, layout: Layout, *, live: bool) -> None:
        found = layout.against(live=live)
        if found:
            raise Refused(
                " ".join(
                    [f"VM {self.vm.name} cannot be moved to {self.there.host.name}.", *(p.message for p in found)]
                ),
                hint=found[0].way_out,
                findings=[problem.code for problem in found],
            )

    def _begin(self, layout: Layout) -> dict[str, t.Any]:
        """Secrets and bases."""
        here, there = Secrets(self.context.host), Secrets(self.there.host)
        for each in layout.secrets:
            secret: Secret | None = here.find(each)
            if secret is None:
                raise NotFound(f"The secret {each}, which VM {self.vm.name} needs, is gone.")
            there.define(secret)
        sent = 0
        for disk in layout.disks:
            if disk.how != COPIED or not disk.below:
                continue
            if disk.shared_base:
                first = disk.below[0]
                self._bases[disk.target] = Base(first.path, first.format, "", first.length, first.size)
            else:
                self._bases[disk.target], more = self.dest.bring_base(self._layer(disk.below), layout.storage)
                sent += more
        return {"bases_sent_bytes": sent}

    def _claim(self, disk: Placed, digest: str = "") -> None:
        """Make the place of a disk free, and say whose it is."""
        if self.dest.there(disk.there):
            self._demand_unused(disk)
            self.dest.remove(disk.there)
        marker = {"vm": self._uuid, "digest": digest}
        self.dest.write(disk.there + MARKER, json.dumps(marker).encode())

    def _demand_unused(self, disk: Placed) -> None:
        users = _users(Chains(self.there.host).owners(), disk.there, disk.pool)
        if users:
            raise Refused(
                f"VM {self.vm.name} cannot be moved: VM {users[0]} on {self.there.host.name} has {disk.there}.",
                hint="If that VM is the rest of an earlier move, use state: recovered.",
            )

    def _make(self, disk: Placed) -> None:
        """An empty file like that of a disk."""
        base = self._bases.get(disk.target)
        head = self._luks_head(disk) if disk.format == "raw" else b""
        if head:
            length = self.source.length(disk.path)
            content: list[Extent] = [head, length - len(head)]
            self.dest.send(disk.there, content, length)
        elif disk.format == "raw":
            self.dest.make_raw(disk.there, disk.size)
        elif base:
            self.dest.make_overlay(disk.there, base, disk.size)
        else:
            self.dest.make_disk(disk.there, disk.size)

    def _luks_head(self, disk: Placed) -> bytes:
        """The header of an encrypted disk, with the key that its data are encrypted with; nothing for other disks."""
        node = disk_nodes(self.vm.made().xml()).get(disk.target)
        if node is None or next(node.iter("encryption"), None) is None:
            return b""
        head = bytearray()
        wanted = 0
        with contextlib.closing(self.source.read(disk.path)) as content:
            for block in blocks(content):
                missing = max(wanted - len(head), 0)
                head.extend(bytes(min(block, missing)) if isinstance(block, int) else block)
                if not wanted and head.startswith(_LUKS) and head[_LUKS_VERSION] == b"\0\1":
                    wanted = int.from_bytes(head[_LUKS_PAYLOAD], "big") * _SECTOR
                if len(head) >= wanted:
                    break
        if not wanted:
            raise Refused(
                f"Disk {disk.target} of VM {self.vm.name} is encrypted, but has no LUKS header of version 1.",
                hint="Move the VM while it is off (method: cold).",
            )
        return bytes(head[:wanted])

    def _send(self, disk: Placed) -> int:
        """Copy a file that nobody writes to; how many bytes went."""
        content = partial(self._content, disk)
        marker = self._marker(disk.there)
        if marker.get("digest") and self.dest.there(disk.there) and marker["digest"] == digest_of(content()):
            return 0
        self._claim(disk)
        length = self.source.length(disk.path)
        digest: Digest = self.dest.send(disk.there, content(), length)
        told = {"vm": self._uuid, "digest": digest.text}
        self.dest.write(disk.there + MARKER, json.dumps(told).encode())
        return digest.data

    def _content(self, disk: Placed) -> t.Iterator[Extent]:
        """That of a disk's own file, naming the base by its path at the destination."""
        base = self._bases.get(disk.target)
        for number, block in enumerate(blocks(self.source.read(disk.path))):
            if number == 0 and base and base.path != disk.below[0].path and isinstance(block, bytes):
                yield chains.with_backing(block, base.path)
            else:
                yield block

    # ---- the definition

    def definition(self, layout: Layout, domain: ET.Element, *, mirror: bool = False) -> ET.Element:
        """The VM's definition as the destination needs it; the same when nothing differs.

        :param domain: The definition here; it is not changed.
        :param mirror: For the running VM that libvirt copies the disks of: what is empty shall stay a hole.
        """
        root = copy.deepcopy(domain)
        nodes = disk_nodes(root)
        moved = {}
        for disk in layout.disks:
            node = nodes.get(disk.target)
            if disk.how != COPIED or node is None:
                continue
            for found in node.findall("backingStore"):
                node.remove(found)
            source, driver = node.find("source"), node.find("driver")
            if disk.there != disk.path and source is not None and not disk.pool:
                moved[disk.path] = disk.there
                source.set("file", disk.there)
            if mirror and disk.pool and source is not None:
                # libvirt looks for a file by its path alone, and does not find that of a volume.
                node.set("type", "file")
                source.attrib.clear()
                source.set("file", disk.there)
            if mirror and disk.mirrored and disk.format == "raw" and driver is not None:
                driver.set("discard", "unmap")
        self._remember(root, layout, moved)
        if layout.directory != layout.there:
            definition = Definition(ET.tostring(root, encoding="unicode"))
            definition.move_logs(layout.directory, layout.there)
            root = definition.root
        return root

    def _remember(self, root: ET.Element, layout: Layout, moved: t.Mapping[str, str]) -> None:
        """Let what is remembered of the VM follow its files."""
        instance = memory.find(root)
        launch = instance.launch
        disks = tuple(replace(disk, path=moved.get(disk.path, disk.path)) for disk in instance.disks)
        if launch:
            paths = {
                disk.below[0].path: self._bases[disk.target].path
                for disk in layout.disks
                if disk.below and disk.target in self._bases
            }
            storage = launch.storage
            if layout.there:
                storage = os.path.dirname(layout.there)
            launch = replace(launch, base=paths.get(launch.base, launch.base), storage=storage)
        changed = replace(instance, disks=disks, launch=launch)
        if changed != instance:
            put_instance(root, changed)

    # ---- letting go

    def discard(self, layout: Layout) -> None:
        """Remove from the destination what was made there for the VM, unless a VM there uses it. Bases stay."""
        owners = Chains(self.there.host).owners()
        vm_uuid = self._uuid
        arrived = self.there.host.guest_of(vm_uuid) is not None
        for disk in layout.disks:
            if disk.how != COPIED or _users(owners, disk.there, disk.pool):
                continue
            if self._marker(disk.there).get("vm") == vm_uuid:
                self.dest.remove(disk.there)
                self.dest.remove(disk.there + MARKER)
        if arrived:
            return
        if layout.nvram and layout.nvram_made:
            self.dest.remove(layout.nvram)
        if layout.there:
            remove_files(self.dest, [], layout.there)
        for each in layout.secrets:
            Secrets(self.there.host).remove(each)

    def let_go(self, layout: Layout) -> dict[str, t.Any]:
        """Remove here what lives at the destination now: the VM's own files, not bases, and not what another VM uses.

        :raises Refused: The VM is not there with these disks, or it runs here.
        """
        vm_uuid = self._uuid
        self._demand_moved(layout, vm_uuid)
        owners = Chains(self.context.host).owners()
        kept: dict[str, str] = {}
        removed: list[str] = []
        for path, pool, reason in self._going(layout):
            users = [user for user in _users(owners, path, pool) if user != vm_uuid]
            if users:
                kept[path] = f"VM {users[0]} uses it too"
            elif reason:
                kept[path] = reason
            elif self.source.remove(path):
                removed.append(path)
        told = remove_files(self.source, [], layout.directory)
        for disk in layout.disks:
            if disk.how == COPIED:
                self.dest.remove(disk.there + MARKER)
        return {**told, "removed_files": [*removed, *told["removed_files"]], "kept_disks": kept}

    def _demand_moved(self, layout: Layout, vm_uuid: str) -> None:
        here = self.context.host.guest_of(vm_uuid)
        there = self.there.host.guest_of(vm_uuid)
        if here and here.active():
            raise Refused(f"VM {here.name} runs on {self.context.host.name}: its disks are not let go of.")
        if there is None:
            raise Refused(f"VM {self.vm.name} is not on {self.there.host.name}: its disks are not let go of.")
        owners = Chains(self.there.host).owners()
        for disk in layout.disks:
            if disk.mirrored and vm_uuid not in _users(owners, disk.there, disk.pool):
                raise Refused(
                    f"VM {there.name} on {self.there.host.name} does not have {disk.there}: what is here is not let go"
                    " of.",
                )

    def _going(self, layout: Layout) -> t.Iterator[tuple[str, str, str]]:
        """Files here that may go, their pools, and for those that stay, why."""
        for disk in layout.disks:
            if disk.how != COPIED:
                continue
            theirs = disk.readonly and not (layout.directory and os.path.dirname(disk.path) == layout.directory)
            yield disk.path, disk.pool, "it is read-only, and may be of use to others" if theirs else ""
            for layer in disk.below:
                if layout.directory and os.path.dirname(layer.path) == layout.directory:
                    yield layer.path, "", ""
                elif not disk.shared_base and os.path.basename(os.path.dirname(layer.path)) != BASES:
                    yield layer.path, "", "it lies below a disk, and may be of use to others"
        if layout.nvram:
            yield layout.nvram, "", ""


def _users(owners: t.Mapping[str, t.Sequence[str]], path: str, pool: str) -> list[str]:
    """The UUIDs of the VMs that have a file, by its path or as a volume of a pool.

    :param owners: See :meth:`.Chains.owners`.
    """
    volume = f"{pool}/{os.path.basename(path)}"
    return [*owners.get(path, []), *(owners.get(volume, []) if pool else [])]
