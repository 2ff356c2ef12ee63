# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Snapshots and backups of VMs into an image store (Nova: snapshot, backup with rotation)."""

from __future__ import annotations

import os
import typing as t
import uuid
from dataclasses import replace

from .._core.clock import stamp
from .._core.errors import Invalid, NotFound, Refused, Unsupported
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images.base import Image
from .._images.rest import Layer
from .._libvirt.backup import Backup
from .._model import names, shelf, snapshot
from .._model.actions import demand
from .._model.domain import read_domain
from .._model.snapshot import Manifest, Member
from .._task import Context, Subject
from .copying import Copied, Copier, Job, Upon, clean_up, whole
from .deltas import layers_of, parent_of, properties_of

# Where libvirt keeps the managed save images of qemu:///system.
_SAVES = "/var/lib/libvirt/qemu/save"
ACTIONS = ("snapshot", "backup")
# Properties by which snapshots and backups are found.
_OURS = ("instance_uuid", "image_type", "backup_type")


def take(context: Context, vm: Subject) -> Plan:
    """Make a snapshot or backup of a VM, unless it is there."""
    guest, seen, state = vm.there()
    ask = context.params
    action = "backup" if ask["backup_type"] else "snapshot"
    if not context.host.local:
        raise Unsupported(
            f"Snapshots of VM {guest.name} are made on its host itself, not through {context.host.uri}.",
            hint="Run the task on the KVM host, with the default uri.",
        )
    _check(ask)
    dead = _dead(vm)
    demand(action, replace(state, running="") if dead else state, name=guest.name)

    about = _About(context, guest.uuid)
    name = _name(context, guest.name, about, dead)
    there = about.named(name, guest.name)
    left = _left(context, vm, dead, about)
    work = _Work(context, vm, about, name, left)
    steps = [Step("clean_up", work.clean_up)] if left else []
    before: dict[str, t.Any] = {"image": name if there else ""}
    if ask["backup_type"]:
        before["backups"] = [each.name for each in about.backups(ask["backup_type"])]
    after = {**before, "image": name}
    if there is None:
        work.prepare()
        steps += work.steps()
    elif left:
        vm.journal = dead
    if ask["rotation"]:
        after["backups"], rotates = work.foresee(there)
        if rotates or there is None:
            steps.append(Step("rotate", lambda: work.rotate(there)))
    elif ask["backup_type"] and there is None:
        after["backups"] = [*before["backups"], name]
    return Plan(
        before=before,
        after=after,
        steps=steps,
        action=action,
        journaled=seen.persistent,
        figures=tell(there) if there else {"left": dict(work.chosen.left)},
        warnings=_elsewhere(context, dead),
    )


def _check(ask: t.Mapping[str, t.Any]) -> None:
    """See that the options go together."""
    if not ask["backup_type"]:
        for option in ("rotation", "incremental", "full_every"):
            if ask[option]:
                raise Invalid(f"Only backups have {option}.", hint="Say backup_type as well.")
    for option, least in (("rotation", 1), ("full_every", 1), ("quiesce_timeout", 1), ("bandwidth", 0)):
        if ask[option] is not None and ask[option] < least:
            raise Invalid(f"The option {option} is {ask[option]}, and must be at least {least}.")


def _dead(vm: Subject) -> Journal | None:
    """The journal of a snapshot of this VM whose process died."""
    journal = vm.instance.journal
    if vm.seen is None or vm.seen.running is not None or journal is None:
        return None
    return journal if journal.ours and journal.action in ACTIONS else None


class _About:
    """What the store has of a VM.

    :ivar images: All of them.
    :ivar complete: The sets that have all their images.
    """

    def __init__(self, context: Context, vm_uuid: str) -> None:
        self.context = context
        found = context.store.find(properties={"instance_uuid": vm_uuid})
        self.images = [image for image in found if image.properties.get("image_type") != shelf.KIND]
        self.complete = snapshot.complete(self.images)
        self._known: dict[str, Image | None] = {image.id: image for image in self.images}

    def _look(self, image_id: str) -> Image | None:
        if image_id not in self._known:
            self._known[image_id] = self.context.store.get(image_id)
        return self._known[image_id]

    def missing(self, manifest: Manifest) -> str:
        """See :func:`.snapshot.missing`."""
        return snapshot.missing(manifest, self._look)

    def backups(self, backup_type: str) -> list[Manifest]:
        """The backups of that type that can be restored, the oldest first."""
        found = [each for each in self.complete if each.backup_type == backup_type and not self.missing(each)]
        return snapshot.newest_last(found)

    def broken(self, backup_type: str) -> list[Manifest]:
        """Those of that type that cannot be restored, as images are missing, and what is left of some."""
        good = {each.set_id for each in self.backups(backup_type)}
        found = [*snapshot.manifests(self.images), *snapshot.orphaned(self.images)]
        return [each for each in found if each.backup_type == backup_type and each.set_id not in good]

    def named(self, name: str, vm: str) -> Manifest | None:
        """The set of that name.

        :raises Refused: It is another one than is asked for, or cannot be restored.
        """
        found = next((each for each in self.complete if each.name == name), None)
        if found is None:
            return None
        wanted = self.context.params["backup_type"] or ""
        if found.backup_type != wanted:
            is_there = f"a backup of the type {found.backup_type}" if found.backup_type else "a snapshot, and no backup"
            raise Refused(f"The name {name} is taken for VM {vm}: it is {is_there}.", hint="Give another name.")
        lost = self.missing(found)
        if lost:
            raise Refused(
                f"The snapshot {name} of VM {vm} is there, and the image {lost} that it builds upon is not.",
                hint="Bring that image back, or remove the snapshot with state: absent and make it again.",
                missing=lost,
            )
        return found


class _Work:
    """The steps that make one snapshot."""

    def __init__(self, context: Context, vm: Subject, about: _About, name: str, left: t.Mapping[str, t.Any]) -> None:
        self.context = context
        self.vm = vm
        self.about = about
        self.name = name
        self.left = left
        self.guest, self.seen, self.state = vm.there()
        self.ask = context.params
        self.action = "backup" if self.ask["backup_type"] else "snapshot"
        # One that a run that died has started, with its CPUs stopped, is as good as off: it will be.
        died_paused = self.state.condition == "paused" and self.left.get("started")
        self.condition = "stopped" if died_paused else self.state.condition
        self.live = self.condition not in ("stopped", "suspended")
        self.chosen = snapshot.Chosen((), {})
        self.job: Job | None = None
        self.starts = False
        self.why_full = ""
        self.copied = Copied()
        self.sealed: Manifest | None = None

    # ---- looking

    def prepare(self) -> None:
        """Find out what is to be copied, and how."""
        ask = self.ask
        domain = read_domain(self.guest.xml(inactive=not self.live))
        self.chosen = snapshot.choose(domain.disks, ask["disks"], name=self.guest.name)
        self._check_options()
        incremental = bool(ask["incremental"]) and self._can_remember()
        self.starts = incremental and not self.live
        still = not self.live and not self.starts
        # QEMU, when it runs, knows what a disk consists of, and tells the disk as a whole.
        looked_at = self.chosen.disks if still or ask["form"] == snapshot.DELTA else ()
        layers = {disk.target: layers_of(self.context, disk, name=self.guest.name) for disk in looked_at}
        since = self._since() if incremental else None
        upon: dict[str, Upon] = {}
        if ask["form"] == snapshot.DELTA:
            upon = {target: self._parent(target, each) for target, each in layers.items()}
        otherwise: dict[str, Upon] = {}
        if since:
            otherwise, upon = (
                upon,
                {target: Upon(each.id, each.sha256, each.virtual_size) for target, each in since.disks.items()},
            )
        if still:
            for target, each in layers.items():
                if not each:
                    raise Unsupported(
                        f"VM {self.guest.name}: disk {target} lies on network storage, and cannot be copied while the"
                        " VM is off.",
                        hint="Start it first.",
                    )
        set_id = str(uuid.uuid4())
        flavor = self.seen.instance.flavor
        self.job = Job(
            set_id=set_id,
            name=self.name,
            disks=self.chosen.disks,
            layers=layers,
            upon=upon,
            otherwise=otherwise,
            properties=self._properties(),
            min_disk=flavor.root if flavor else 0,
            min_ram=flavor.memory if flavor else 0,
            scratch=self._scratch(),
            since=since,
            checkpoint=snapshot.checkpoint_name(ask["backup_type"], set_id) if incremental else "",
        )

    def _check_options(self) -> None:
        ask = self.ask
        if ask["memory"] and self.condition != "suspended":
            raise Refused(
                f"VM {self.guest.name} is {self.state.status}: only a suspended VM has its memory in a file.",
                hint="Use vm_power with state: suspended first, or leave memory out.",
            )
        if ask["quiesce"] == "required" and self.condition != "running":
            how = "its guest cannot act" if self.live else "its guest is not running"
            raise Refused(
                f"VM {self.guest.name} is {self.state.status}, so {how} and cannot be quiesced.",
                hint="Say quiesce: preferred.",
            )
        if ask["form"] == snapshot.DELTA and self.condition not in ("running", "paused", "stopped", "suspended"):
            raise Refused(
                f"VM {self.guest.name} is {self.condition}: QEMU has not written everything that a delta is told by.",
                hint="Wake it first, or say form: full.",
            )

    def _can_remember(self) -> bool:
        """Whether libvirt can remember what is written from now on; else ``why_full`` tells why not."""
        strange = [disk for disk in self.chosen.disks if disk.image.format != "qcow2"]
        if self.condition == "suspended":
            self.why_full = "a suspended VM has no QEMU that knows what was written"
        elif not self.seen.persistent:
            self.why_full = "libvirt remembers no checkpoints of a transient VM"
        elif strange:
            told = ", ".join(f"{disk.target} is {disk.image.format or 'raw'}" for disk in strange)
            self.why_full = f"what was written is remembered in qcow2 files only: {told}"
        return not self.why_full

    def _since(self) -> Manifest | None:
        """The backup that this one is an increment of."""
        ask = self.ask
        backups = self.about.backups(ask["backup_type"])
        # What libvirt does not list may be in the disks all the same; see Copier.
        known = {each.checkpoint for each in backups}
        every = ask["full_every"] or ask["rotation"] or 7
        found = snapshot.increment(backups, known, [disk.target for disk in self.chosen.disks], every)
        self.why_full = found.why
        return found.parent

    def _parent(self, target: str, layers: tuple[Layer, ...]) -> Upon:
        """The image in the store that is a layer of the disk."""
        if not layers:
            raise Unsupported(
                f"VM {self.guest.name}: there is no delta of disk {target}, as it is on no storage of the host.",
                hint="Say form: full.",
            )
        found = parent_of(self.context, layers)
        if found is None:
            raise Refused(
                f"VM {self.guest.name}: there is no delta of disk {target}, as no image in {self.context.store.place}"
                " is what it is made of.",
                hint="Put its base image there with the module image, or say form: full.",
                target=target,
            )
        return found

    def _scratch(self) -> str:
        """Where the guest's overwrites are put aside: beside the first disk that is a file."""
        if self.ask["scratch"]:
            directory = names.check_directory(self.ask["scratch"])
            if not os.path.isdir(directory):
                raise NotFound(
                    f"There is no directory {directory} on {self.context.host.name} for scratch files.",
                    hint="Make it, so that QEMU may write there, or say another one with scratch.",
                )
            return directory
        for disk in self.chosen.disks:
            if disk.image.kind == "file":
                return os.path.dirname(disk.image.source)
        return "/var/lib/libvirt/images"

    def _properties(self) -> dict[str, str]:
        """As Nova writes them, and the user's."""
        found = properties_of(self.seen.instance.launch, self.guest.uuid, self.action)
        if self.ask["backup_type"]:
            found["backup_type"] = self.ask["backup_type"]
        for key, value in self.ask["properties"].items():
            if key.startswith("kvmops_") or key in _OURS:
                raise Invalid(f"The property {key} is not the user's to set: its name is one of ours.")
            found[key] = str(value)
        return found

    # ---- doing

    def steps(self) -> list[Step]:
        """From nothing to a complete set."""
        job = self._demand_job()
        self._begin_journal(job)
        copy = [Step("copy_disks", self._copy, undo=self._take_back), Step("complete", self._complete)]
        if not self.starts:
            return copy
        start = Step("start_paused", lambda: self.guest.start(paused=True), undo=self.guest.power_off)
        return [start, *copy, Step("power_off", self.guest.power_off)]

    def clean_up(self) -> None:
        """Remove what a run that died has left, and forget about it."""
        clean_up(self.context, self.guest, self.left)
        self.left = {}
        if self.job is not None:
            self._begin_journal(self.job)

    def foresee(self, there: Manifest | None) -> tuple[list[str], bool]:
        """The names of the backups after the rotation, and whether it removes any."""
        kind = self.ask["backup_type"]
        backups = self.about.backups(kind)
        if there is None:
            backups = [*backups, self._future()]
        rotation = snapshot.rotate(backups, self.ask["rotation"], self.about.broken(kind))
        going, _kept = _may_go(self.context, rotation)
        gone = {each.set_id for each in going}
        return [each.name for each in snapshot.newest_last(backups) if each.set_id not in gone], bool(going)

    def _future(self) -> Manifest:
        """The backup that will be made, as far as the rotation needs to know it."""
        job = self._demand_job()
        members = tuple(
            Member(
                role="disk",
                id=snapshot.image_id(job.set_id, "disk", disk.target),
                size=0,
                sha256="",
                target=disk.target,
                parent=job.upon[disk.target].image if disk.target in job.upon else "",
            )
            for disk in job.disks
        )
        return Manifest(
            set_id=job.set_id,
            name=self.name,
            vm=self.guest.name,
            vm_uuid=self.guest.uuid,
            kind=self.action,
            at=stamp(self.context.clock.now()),
            quiesced=False,
            state=self.condition,
            members=members,
            backup_type=self.ask["backup_type"],
        )

    def _demand_job(self) -> Job:
        if self.job is None:
            raise NotFound(f"There is nothing to copy of VM {self.guest.name}.")
        return self.job

    def _begin_journal(self, job: Job) -> None:
        """What a later run would have to remove, together with what an earlier one has left."""
        left = self.left
        qcow2 = {disk.image.source for disk in job.disks if (disk.image.kind, disk.image.format) == ("file", "qcow2")}
        began = Journal.begin(
            self.action,
            self.context.clock.now(),
            name=self.name,
            store=self.context.store.place,
            images=[*left.get("images", []), *job.ids],
            scratch=[*left.get("scratch", []), *job.files],
            checkpoints=[*left.get("checkpoints", []), *([job.checkpoint] if job.checkpoint else [])],
            disks=sorted({*left.get("disks", []), *qcow2}),
            quiesce=self.ask["quiesce"] != "never" or bool(left.get("quiesce")),
            started=self.starts,
        )
        self.vm.journal = began if self.vm.journal is None else replace(self.vm.journal, data=began.data)

    def _copy(self) -> dict[str, t.Any]:
        copier = Copier(self.context, self.guest, self._demand_job(), self.vm.tell)
        self.copied = copier.copied
        if self.live or self.starts:
            running = self.condition == "running"
            copier.live(quiesce=self.ask["quiesce"] if running else "never", paused=not running)
        else:
            copier.still()
            if self.ask["memory"]:
                copier.memory(f"{_SAVES}/{self.guest.name}.save")
        held = self.copied.held
        figures: dict[str, t.Any] = {"quiesced": held.quiesced, "held_ms": held.milliseconds}
        if self.ask["quiesce"] != "never" and not held.quiesced and self.live:
            figures["not_quiesced"] = held.why or "its CPUs are stopped"
        if self.ask["incremental"]:
            figures["increment"] = self.copied.increment
            if not self.copied.increment:
                figures["why_full"] = self.copied.why_full or self.why_full
        return figures

    def _take_back(self) -> None:
        journal = self.vm.journal
        if self.sealed is None and journal is not None:
            clean_up(self.context, self.guest, {**journal.data, "started": False})

    def _complete(self) -> dict[str, t.Any]:
        """Write the manifest, once every image is seen to be whole."""
        job, copied = self._demand_job(), self.copied
        store = self.context.store
        images = whole(self.context, copied, f"snapshot {self.name}")
        manifest = Manifest(
            set_id=job.set_id,
            name=self.name,
            vm=self.guest.name,
            vm_uuid=self.guest.uuid,
            kind=self.action,
            at=copied.at,
            quiesced=copied.held.quiesced,
            state=self.condition,
            members=tuple(copied.members),
            backup_type=self.ask["backup_type"] or "",
            checkpoint=copied.checkpoint,
            left=dict(self.chosen.left),
        )
        store.update(images[0], properties={snapshot.MANIFEST: manifest.dump()})
        self.sealed = manifest
        if copied.checkpoint:
            self._drop_old_checkpoints(copied.checkpoint)
        return tell(manifest)

    def _drop_old_checkpoints(self, newest: str) -> None:
        """An increment begins at the newest backup, so the checkpoints of earlier ones are of no use any more. Those
        of a VM that is off stay until it runs."""
        if not self.guest.active():
            return
        backup = Backup(self.guest, self.context.clock)
        for name in snapshot.own_checkpoints(backup.checkpoints(), self.ask["backup_type"]):
            if name != newest:
                backup.drop_checkpoint(name)

    def rotate(self, there: Manifest | None) -> dict[str, t.Any]:
        """Remove the backups that have had their time. The new one counts, and only complete ones do."""
        about, kind = _About(self.context, self.guest.uuid), self.ask["backup_type"]
        backups = about.backups(kind)
        mine = there or self.sealed
        if mine is None or mine.set_id not in [each.set_id for each in backups]:
            raise NotFound(f"The backup {self.name} is not in {self.context.store.place} any more: none is removed.")
        rotation = snapshot.rotate(backups, self.ask["rotation"], about.broken(kind))
        going, kept = _may_go(self.context, rotation)
        for each in going:
            remove_set(self.context, each)
        kept.update({each.name: "later increments build upon it" for each in rotation.needed})
        return {"removed_backups": [each.name for each in going], "kept_backups": kept}


def _may_go(context: Context, rotation: snapshot.Rotation) -> tuple[list[Manifest], dict[str, str]]:
    """The backups that a rotation removes, increments before what they build upon; and the names of those that have to
    stay all the same, with the reason."""
    going: list[Manifest] = []
    kept: dict[str, str] = {}
    gone: set[str] = set()
    for each in reversed(rotation.remove):
        why = why_kept(context, each, gone)
        if why:
            kept[each.name] = why
            continue
        going.append(each)
        gone.update(member.id for member in each.members)
    return going, kept


def why_kept(context: Context, manifest: Manifest, gone: t.Container[str] = ()) -> str:
    """Why a set must not be removed, or nothing.

    :param gone: Identifiers of images that will have been removed before it.
    """
    mine = {member.id for member in manifest.members}
    for member in manifest.members:
        others = [
            other
            for other in context.store.find(properties={snapshot.PARENT: member.id})
            if other.id not in mine and other.id not in gone
        ]
        if others:
            return "other images build upon it: " + ", ".join(sorted(other.name for other in others))
        image = context.store.get(member.id)
        if image and image.protected:
            return f"the image {image.name} is protected"
    return ""


def remove_set(context: Context, manifest: Manifest) -> None:
    """Remove all images of a set. The one with the manifest goes last: it leads a later run to the others."""
    for member in reversed(manifest.members):
        context.store.delete(member.id)


def tell(manifest: Manifest) -> dict[str, t.Any]:
    """A set, for results."""
    return {
        "image": manifest.name,
        "images": [
            {
                "id": member.id,
                "role": member.role,
                "disk": member.target,
                "form": member.form,
                "parent": member.parent,
                "size": member.size,
                "sha256": member.sha256,
                "virtual_size": member.virtual_size,
            }
            for member in manifest.members
        ],
        "bytes": manifest.size,
        "at": manifest.at,
        "quiesced": manifest.quiesced,
        "left": dict(manifest.left),
    }


def _name(context: Context, vm: str, about: _About, dead: Journal | None) -> str:
    """The name of the snapshot: as given, or made of the VM, the type of backup and the time. A backup that died when
    its images were whole is finished, and keeps its name."""
    ask = context.params
    if ask["image"]:
        return str(ask["image"])
    if not ask["backup_type"]:
        raise Invalid("A snapshot needs a name.", hint="Say it with image; only backups get one by themselves.")
    if dead:
        for each in about.backups(ask["backup_type"]):
            if each.name == dead.data.get("name"):
                return each.name
    at = stamp(context.clock.now()).replace(":", "").replace("-", "")
    return f"{vm}-{ask['backup_type']}-{at}"


def _left(context: Context, vm: Subject, dead: Journal | None, about: _About) -> dict[str, t.Any]:
    """What a run that died has left behind: what its journal names, without what became a complete set. A transient VM
    has no journal that lasts; of it the store tells which images belong to no set that was completed."""
    sealed = snapshot.sealed(about.images)
    whole = {image.id for image in about.images if image.properties.get(snapshot.SET) in sealed}
    if dead is None:
        orphans = [image.id for image in about.images if snapshot.SET in image.properties and image.id not in whole]
        transient = vm.seen is not None and not vm.seen.persistent
        return {"images": orphans, "quiesce": True} if transient and orphans else {}
    here = dead.data.get("store", context.store.place) == context.store.place
    return {
        **dead.data,
        "images": [image for image in dead.data.get("images", []) if here and image not in whole],
        "checkpoints": [
            name
            for name in dead.data.get("checkpoints", [])
            if here and not any(name.endswith(each) for each in sealed)
        ],
    }


def _elsewhere(context: Context, dead: Journal | None) -> list[str]:
    """What cannot be removed of a run that died, as it used another image store."""
    if dead is None or dead.data.get("store", context.store.place) == context.store.place:
        return []
    what = f"{dead.action} {dead.data.get('name', '')} into {dead.data['store']}"
    return [f"the {what} died, and may have left images there: {', '.join(dead.data.get('images', []))}."]


def remove(context: Context, vm: Subject) -> Plan:
    """Remove a snapshot with all its images, also of a VM that is gone."""
    name = context.params["image"]
    if not name:
        raise Invalid("Which snapshot is to be removed has to be said.", hint="Say its name with image.")
    named = vm.guest.uuid if vm.guest else vm.name
    found = [
        manifest
        for manifest in snapshot.manifests(context.store.find())
        if manifest.name == name and manifest.kind != shelf.KIND and named in (manifest.vm_uuid, manifest.vm)
    ]
    dead = _dead(vm)
    left = _left(context, vm, dead, _About(context, vm.guest.uuid)) if dead and vm.guest else {}
    if left.get("name") != name:
        left = {}
    before = {"image": name if found or left else ""}
    if not before["image"]:
        return Plan(before=before, after=before)
    for manifest in found:
        why = why_kept(context, manifest)
        if why:
            raise Refused(
                f"The snapshot {name} of VM {vm.name} is kept: {why}.",
                hint="Remove those first, or take the protection away with the module image.",
            )

    def delete() -> dict[str, t.Any]:
        for manifest in found:
            remove_set(context, manifest)
        return {"removed_images": [member.id for manifest in found for member in manifest.members]}

    steps = [Step("clean_up", lambda: clean_up(context, vm.guest, left))] if left else []
    if found:
        steps.append(Step("delete", delete))
    return Plan(
        before=before,
        after={"image": ""},
        steps=steps,
        action=dead.action if dead and left else "snapshot",
        journaled=bool(left),
    )
