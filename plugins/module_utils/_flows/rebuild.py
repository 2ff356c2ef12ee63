# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Giving a VM other disks: its root disk from an image, or disks from a snapshot (Nova: rebuild).

The new disks are made beside the old ones while the VM runs, then swapped in by one change of the definition. The old
ones stay until the VM was seen to run, and come back if it does not.
"""

from __future__ import annotations

import os
import secrets
import typing as t
from dataclasses import dataclass, replace

from .._core.errors import Ambiguous, Busy, Invalid, LifecycleError, NotFound, Refused, Unreachable, Unsupported
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images.base import resolve
from .._images.rest import remove_bitmap
from .._libvirt.bases import Base, Source
from .._libvirt.chains import Chains
from .._libvirt.swap import Swap, on_file, on_variables
from .._model import image as images
from .._model import names, rebuild, removal, snapshot
from .._model.actions import demand, refusal
from .._model.domain import Disk, Domain, read_domain
from .._model.flavor import Flavor
from .._model.rebuild import Began, Change
from .._model.snapshot import Manifest
from .._model.status import State, status_of
from .._task import Context, Subject
from .launch import remembered
from .noting import Noting
from .sources import Wanted, digest_of, from_image, path_of, wanted
from .stopping import switch_off

ACTION = "rebuild"
# Where the definition names new disks that nobody saw the VM run with.
_NOT_OLD = (rebuild.SWAPPED, rebuild.ASTRAY)


def remake(context: Context, vm: Subject) -> Plan:
    """Give a VM other disks, unless it has them; or finish what a run that died has begun."""
    guest, seen, state = vm.there()
    if not seen.persistent:
        raise Refused(
            f"VM {guest.name} is transient: without power it would be gone from libvirt.",
            hint="Define it first.",
            status=state.status,
        )
    dead = _dead(vm)
    work = _Work(context, vm, replace(state, running="") if dead else state, dead)
    return work.plan()


def _dead(vm: Subject) -> Journal | None:
    """The journal of a rebuild of this VM whose process died."""
    journal = vm.instance.journal
    if vm.seen is None or vm.seen.running is not None or journal is None:
        return None
    return journal if journal.ours and journal.action == ACTION else None


@dataclass(frozen=True)
class _Part:
    """One disk that gets another content.

    :param storage: The directory whose base cache is used.
    :param old_size: In bytes; ``None`` when it cannot be told.
    """

    target: str
    wanted: Wanted
    new: str
    storage: str
    old_size: int | None


class _Work(Noting):
    """One rebuild of one VM."""

    def __init__(self, context: Context, vm: Subject, state: State, dead: Journal | None) -> None:
        self.context = context
        self.vm = vm
        self.ask = context.params
        self.guest, self.seen, _state = vm.there()
        self.state = state
        self.swap = Swap(self.guest, context.clock)
        self.dead = Began.load(dead.data) if dead else None
        self.phase = self.dead.phase(dead.step, self._files()) if dead and self.dead else ""
        self.parts: list[_Part] = []
        self.bases: dict[str, Base] = {}
        self.proven = False
        self._began: Began | None = None

    # ---- looking

    def plan(self) -> Plan:
        """What there is to do."""
        asked = {"image": self.ask["image"], "disks": list(self.ask["disks"])}
        came_far = self.phase in (rebuild.SWAPPED, rebuild.PROVEN)
        if self.dead and came_far and self.dead.asked == asked:
            return self._finish(self.dead)
        # What a dead run has stopped, paused or started counts as what it was before.
        ran = self.dead.ran if self.dead and self.phase != rebuild.PROVEN else self._runs()
        if self.dead is None or self.phase == rebuild.PROVEN:
            demand(ACTION, self.state, name=self.guest.name)
        if self.state.condition == "suspended":
            raise refusal(
                ACTION,
                self.state,
                name=self.guest.name,
                why=" while the memory of the system on the old disk is saved",
                hint="Use vm_power with state: running first, or with state: stopped and force: true.",
            )
        return self._fresh(asked, ran)

    def _runs(self) -> bool:
        """Whether the VM is to run afterwards: one that goes down by itself shall be off."""
        return self.state.condition in ("running", "paused", "asleep", "crashed")

    def _finish(self, began: Began) -> Plan:
        """Go on where the run that died has swapped the disks already."""
        self._began = began
        steps = []
        ran = began.ran
        if self.phase == rebuild.SWAPPED:
            steps.append(self._last_but_one(ran))
        else:
            self.proven = True
            ran = self.state.condition in ("running", "paused", "asleep")
        steps.append(self._step("remove_old", self.remove_old))
        before: dict[str, t.Any] = {"status": self.state.status, "power_state": self.state.power_state}
        return self._planned(before, _reached(ran), steps)

    def _fresh(self, asked: dict[str, t.Any], ran: bool) -> Plan:
        swapped_back = self.dead if self.phase in _NOT_OLD else None
        xmls = {target: change.xml for target, change in swapped_back.disks.items()} if swapped_back else {}
        domain = read_domain(self.swap.definition(xmls))
        domain = replace(domain, disks=tuple(self.swap.located(disk) for disk in domain.disks))
        chosen = rebuild.choose(domain.disks, self.ask["disks"], name=self.guest.name)
        others = sorted(set(xmls) - set(chosen.targets))
        if others:
            raise Busy(
                f"VM {self.guest.name} is busy: a rebuild of its disk {', '.join(others)} died.",
                hint="Run that task again to finish it, then this one.",
            )
        found, warnings = self._images(chosen)
        self._check(domain, chosen, found, ran)
        layers = {disk.target: self._layers(disk) for disk in chosen.disks}
        before = {
            "status": self.state.status,
            "power_state": self.state.power_state,
            "disks": {disk.target: self._origin(disk, chosen) for disk in chosen.disks},
        }
        if not self.dead and not self.ask["reinstall"] and self._is_there(chosen, found, layers):
            return Plan(before=before, after=before, figures={"left": dict(chosen.left)})
        snapshots = self.swap.snapshots()
        if snapshots:
            raise Refused(
                f"VM {self.guest.name} has snapshots of libvirt's own, whose data are in its disks:"
                f" {', '.join(sorted(snapshots))}.",
                hint="Remove them with virsh snapshot-delete, or keep them as images with vm_snapshot first.",
            )
        tag = secrets.token_hex(4)
        self.parts = [self._part(disk, found[disk.target], tag) for disk in chosen.disks]
        for part in self.parts:
            self._size(part, part.wanted.virtual_size, chosen.root)
        began = self._begin(asked, ran, chosen, domain, layers, {**self.swap.disks(), **xmls}, tag)
        self._began = began
        steps = []
        if swapped_back:
            steps.append(self._step("put_back", lambda: {"put_back": self._put_back()}))
        steps.append(self._step("stage", self.stage))
        if self.state.condition != "stopped":
            steps.append(self._step("stop", self.stop))
        steps.append(self._step("swap", self.exchange))
        steps += [self._last_but_one(ran), self._step("remove_old", self.remove_old)]
        after = {**_reached(ran), "disks": {part.target: self._told(part) for part in self.parts}}
        if self.ask["reset_nvram"]:
            before["nvram"], after["nvram"] = "as it is", "new" if began.nvram else "as it is"
        return self._planned(before, after, steps, warnings, dict(chosen.left))

    def _planned(
        self,
        before: dict[str, t.Any],
        after: dict[str, t.Any],
        steps: list[Step],
        warnings: t.Sequence[str] = (),
        left: t.Mapping[str, str] | None = None,
    ) -> Plan:
        began = self._demand_began()
        self.vm.journal = Journal.begin(ACTION, self.context.clock.now(), **began.dump())
        # Taken back as a whole: it is the first step's, so it comes last whichever step fails.
        steps[0] = replace(steps[0], undo=self.take_back)
        figures = {
            "disks": {target: {"old": change.old, "new": change.new} for target, change in began.disks.items()},
            "kept_disks": dict(began.keep),
            **({"left": left} if left is not None else {}),
        }
        return Plan(
            before=before,
            after=after,
            steps=steps,
            action=ACTION,
            journaled=True,
            figures=figures,
            warnings=warnings,
        )

    def _last_but_one(self, ran: bool) -> Step:
        return self._step("start", self.start) if ran else self._step("prove", self.prove)

    def _demand_began(self) -> Began:
        if self._began is None:
            raise NotFound(f"There is no rebuild of VM {self.guest.name}.")
        return self._began

    def _files(self) -> dict[str, str]:
        """The files of the VM's disks as it is defined, by target."""
        disks = read_domain(self.guest.xml(inactive=True)).disks
        return {disk.target: self.swap.located(disk).image.source for disk in disks}

    def _images(self, chosen: rebuild.Chosen) -> tuple[dict[str, Wanted], list[str]]:
        """The image for each disk, and what the user should know."""
        named, name = self.ask["image"], self.guest.name
        root_only = chosen.targets == [chosen.root]
        if path_of(named):
            if not root_only:
                raise Invalid(
                    f"VM {name}: {named} is one disk, and a file is for the root disk only.",
                    hint="Say disks: root, or the name of a snapshot.",
                )
            return {chosen.root: wanted(self.context)}, []
        manifest = self._own_set(named) or (None if root_only else self._any_set(named))
        if manifest is None:
            return {chosen.root: wanted(self.context)}, []
        store = self.context.store
        missing = sorted(set(chosen.targets) - set(manifest.disks))
        if missing:
            raise NotFound(
                f"VM {name}: the snapshot {manifest.name} has no image of disk {', '.join(missing)}.",
                hint=f"Say with disks which are to be restored: it has {', '.join(sorted(manifest.disks))}.",
            )
        found = {}
        for target in chosen.targets:
            image = store.get(manifest.disks[target].id)
            if image is None:
                raise NotFound(f"Image {manifest.disks[target].id} of the snapshot {manifest.name} is gone.")
            found[target] = from_image(store, image)
        unused = sorted(set(manifest.disks) - set(chosen.targets))
        if unused and not root_only:
            return found, [f"The snapshot {manifest.name} has images of other disks too: {', '.join(unused)}."]
        return found, []

    def _own_set(self, named: str) -> Manifest | None:
        """The complete snapshot of this VM with that name."""
        mine = self.context.store.find(properties={"instance_uuid": self.guest.uuid})
        found = [each for each in snapshot.complete(mine) if each.name == named]
        if len(found) > 1:
            raise Ambiguous(
                f"{len(found)} snapshots of VM {self.guest.name} in {self.context.store.place} are called {named!r}.",
                hint="Give the identifier of the first image of one of them.",
                images=[each.members[0].id for each in found],
            )
        return found[0] if found else None

    def _any_set(self, named: str) -> Manifest:
        """The complete snapshot, of whichever VM, whose first image that is."""
        store = self.context.store
        image = resolve(store, named)
        set_id = image.properties.get(snapshot.SET, "")
        for each in snapshot.complete(store.find(properties={snapshot.SET: set_id})) if set_id else []:
            if each.members[0].id == image.id:
                return each
        raise Invalid(
            f"VM {self.guest.name}: image {named} in {store.place} is no complete snapshot, and only the root disk is"
            " made of a single image.",
            hint="Say disks: root, or the name of a snapshot.",
        )

    def _check(self, domain: Domain, chosen: rebuild.Chosen, found: dict[str, Wanted], ran: bool) -> None:
        """See that the VM can run with what it gets."""
        if ran and self.ask["wait_for"] == "agent" and domain.agent is None:
            raise Unsupported(
                f"VM {self.guest.name} has no channel for a guest agent that could be waited for.",
                hint="Say wait_for: running.",
            )
        image = found[chosen.root].image if chosen.root in found else None
        if image is None:
            return
        flavor = self.seen.instance.flavor or Flavor(vcpus=domain.max_vcpus, memory=max(domain.memory, 1))
        images.check_fits(flavor, image=image.name, size=0, min_disk=image.min_disk, min_ram=image.min_ram)
        firmware = image.properties.get("hw_firmware_type", "")
        if firmware and firmware != domain.firmware.kind:
            raise Refused(
                f"VM {self.guest.name} has the firmware {domain.firmware.kind}, and image {image.name} needs {firmware}"
                " (hw_firmware_type).",
                hint="Use another image, or launch a new VM from this one.",
            )

    def _layers(self, disk: Disk) -> list[str]:
        """The files of a disk from the top down, as far as they are known."""
        live = read_domain(self.guest.xml()).disk(disk.target) if self.guest.active() else None
        if live and live.chain_known and live.image.source == disk.image.source:
            layers: t.Sequence[t.Any] = (live.image, *live.backing)
        else:
            layers = [layer.image for layer in Chains(self.context.host).below(disk.image).layers]
        return [layer.path for layer in layers if layer.path]

    def _part(self, disk: Disk, image: Wanted, tag: str) -> _Part:
        launch = self.seen.instance.launch
        directory = launch.storage if launch else names.check_directory(os.path.dirname(disk.image.source))
        return _Part(
            target=disk.target,
            wanted=image,
            new=rebuild.new_disk_path(disk.image.source, tag),
            storage=directory,
            old_size=self._old_size(disk),
        )

    def _old_size(self, disk: Disk) -> int | None:
        """Of the disk that is there, in bytes; one whose file is lost has none."""
        told = Chains(self.context.host).below(disk.image).layers[0].capacity
        if told is not None:
            return told
        try:
            return self.guest.disk_size(disk.target)
        except Unreachable:
            raise
        except LifecycleError:
            return None

    def _size(self, part: _Part, virtual_size: int | None, root: str) -> int:
        """Of the new disk, in bytes.

        :param virtual_size: Of the image, if it is known yet.
        """
        flavor = self.seen.instance.flavor if part.target == root else None
        return rebuild.new_size(
            virtual_size or 0, part.old_size, flavor, name=self.guest.name, image=part.wanted.source.label
        )

    def _told(self, part: _Part) -> str:
        """What the disk will be of, for people."""
        image = part.wanted.image
        return f"{image.name} ({image.id})" if image else part.wanted.source.path

    def _origin(self, disk: Disk, chosen: rebuild.Chosen) -> str:
        """What the disk is of, for people."""
        launch = (self.dead.launch if self.dead else None) or self.seen.instance.launch
        if launch is None or disk.target != chosen.root:
            return disk.image.source
        return f"{launch.image} ({launch.image_id})" if launch.image_id else launch.image

    # ---- whether it is there already

    def _is_there(
        self, chosen: rebuild.Chosen, found: t.Mapping[str, Wanted], layers: t.Mapping[str, t.Sequence[str]]
    ) -> bool:
        """Whether each of these disks was made of its image."""
        return all(self._made_of(target, found[target], layers[target], chosen.root) for target in chosen.targets)

    def _made_of(self, target: str, image: Wanted, layers: t.Sequence[str], root: str) -> bool:
        """The first base below a disk tells; of a disk without one, what we remember of the launch does."""
        for path in layers:
            base = self.context.storage.base_facts(path)
            if base:
                return self._same(base, image.source)
        launch = self.seen.instance.launch
        if launch is None or target != root:
            return False
        if image.image:
            if launch.image_id:
                return (launch.image_id, launch.place) == (image.image.id, image.place)
            return launch.base_sha256 == image.image.digests.get("sha256", "unknown")
        return launch.base_sha256 == digest_of(self.context, image.source)

    def _same(self, base: Base, source: Source) -> bool:
        """Whether a base was made of that image."""
        if any(base.images.get(place) == image for place, image in source.images.items()):
            return True
        if (base.format, base.size, bool(base.parent)) != (source.format, source.size, source.parent is not None):
            return False
        if source.parent:
            below = self.context.storage.base_facts(base.parent)
            if below is None or not self._same(below, source.parent):
                return False
        digests = {"sha256": digest_of(self.context, source)} if source.path else source.digests
        common = set(digests) & set(base.digests)
        return bool(common) and all(digests[name] == base.digests[name] for name in common)

    # ---- what is begun

    def _begin(
        self,
        asked: dict[str, t.Any],
        ran: bool,
        chosen: rebuild.Chosen,
        domain: Domain,
        layers: t.Mapping[str, t.Sequence[str]],
        xmls: t.Mapping[str, str],
        tag: str,
    ) -> Began:
        context, instance, dead = self.context, self.seen.instance, self.dead
        own = {
            target: [path for path in paths if context.storage.base_facts(path) is None]
            for target, paths in layers.items()
        }
        remove, keep = rebuild.let_go(
            own,
            instance,
            removal.own_directory(self.guest.uuid, instance),
            self.ask["remove_disks"],
            self._users([path for paths in own.values() for path in paths]),
            name=self.guest.name,
        )
        nvram = None
        if self.phase in _NOT_OLD and dead and dead.nvram:  # which put_back brings back
            nvram = replace(dead.nvram, new=rebuild.new_path(dead.nvram.old, tag))
        elif self.ask["reset_nvram"] and domain.firmware.kind == "uefi":
            xml, path = self.swap.nvram()
            nvram = Change(xml, path, rebuild.new_path(path, tag))
        done = dead if self.phase == rebuild.PROVEN else None
        launch = instance.launch
        if dead and self.phase in _NOT_OLD and dead.launch:
            launch = dead.launch
        return Began(
            asked=asked,
            ran=ran,
            disks={
                part.target: Change(xmls[part.target], self._old_file(domain, part.target), part.new)
                for part in self.parts
            },
            nvram=nvram,
            remove=(*(done.going if done else ()), *remove),
            keep=keep,
            leftovers=tuple([*dead.leftovers, *dead.new_files] if dead and not done else []),
            launch=launch if chosen.root in chosen.targets else None,
        )

    @staticmethod
    def _old_file(domain: Domain, target: str) -> str:
        disk = domain.disk(target)
        return disk.image.source if disk else ""

    def _users(self, paths: t.Iterable[str]) -> dict[str, str]:
        """Those of *paths* that other VMs use, with the UUID of one."""
        found = {}
        for path in paths:
            known = {path, os.path.normpath(path), *([os.path.realpath(path)] if self.context.host.local else [])}
            others = [
                uuid for each in known for uuid in self.context.disk_owners.get(each, []) if uuid != self.guest.uuid
            ]
            if others:
                found[path] = others[0]
        return found

    # ---- the steps

    def stage(self) -> dict[str, t.Any]:
        """Make the new disks. The VM goes on meanwhile."""
        began, storage = self._demand_began(), self.context.storage
        for path in began.leftovers:
            storage.remove(path)
        root = self._root()
        # It is known whose they are before they are there.
        self.guest.remember(began.owning_both(rebuild.disowning(self.guest.recall(), began.leftovers), root))
        for part in self.parts:
            base = storage.fetch_base(part.wanted.source, part.storage)
            size = self._size(part, base.virtual_size, root)
            storage.make_overlay(part.new, base, size)
            self.bases[part.target] = base
        return {"bases": {target: base.path for target, base in self.bases.items()}}

    def _root(self) -> str:
        """The target of the VM's first disk."""
        disks = read_domain(self.guest.xml(inactive=True)).disks
        return next((disk.target for disk in disks if disk.device in ("disk", "lun")), "")

    def stop(self) -> dict[str, t.Any]:
        """Take the VM's power."""
        return switch_off(self.context, self.vm)

    def exchange(self) -> None:
        """Define the VM with the new disks, and remember where they come from, in one call."""
        began = self._demand_began()
        xmls = {target: on_file(change.xml, change.new) for target, change in began.disks.items()}
        instance = self.guest.recall()
        root = self._root()
        part = next((each for each in self.parts if each.target == root), None)
        if part and instance.launch:
            base = self.bases[root]
            origin = {"image_id": "", "store": "", "place": "", "properties": {}, **remembered(part.wanted)}
            launch = replace(
                instance.launch,
                image=self.ask["image"],
                base=base.path,
                base_format=base.format,
                base_sha256=base.sha256,
                **origin,
            )
            instance = replace(instance, launch=launch)
        nvram = on_variables(began.nvram.xml, began.nvram.new) if began.nvram else None
        self.swap.define(xmls, nvram, instance)
        # No increment may begin at what was written to other disks.
        files = self._files()
        for name, targets in self.swap.forget_checkpoints(list(began.disks)).items():
            for target in targets:
                if self.context.host.local and target in files:
                    remove_bitmap(files[target], name)

    def start(self) -> dict[str, t.Any]:
        """Boot from the new disks."""
        began = self.context.clock.monotonic()
        self.swap.run(agent=self.ask["wait_for"] == "agent", timeout=self.ask["wait_timeout"])
        self._prove()
        return {"start_seconds": round(self.context.clock.monotonic() - began, 3)}

    def prove(self) -> None:
        """See that the VM could be started."""
        self.swap.prove()
        self._prove()

    def _prove(self) -> None:
        """From here on nothing is taken back."""
        self.guest.remember(self.guest.recall().unmarked("error"))
        self.proven = True

    def remove_old(self) -> dict[str, t.Any]:
        """Remove the old files, unless another VM uses them by now. One that cannot be removed is told, and no more:
        the VM runs."""
        began, storage = self._demand_began(), self.context.storage
        going = began.going
        users = self._users(going)
        keep = dict(began.keep)
        removed = []
        for path in going:
            try:
                if path in users:
                    keep[path] = f"VM {users[path]} uses it too"
                elif storage.remove(path):
                    removed.append(path)
            except Unreachable:
                raise
            except LifecycleError as exc:
                keep[path] = str(exc)
        gone = [path for path in going if path not in keep]
        self.guest.remember(rebuild.disowning(self.guest.recall(), gone))
        return {"removed_files": removed, "kept_disks": keep}

    # ---- taking it back

    def take_back(self) -> None:
        """After a step failed: the old disks again, and the VM as it was. What was proven stays."""
        if self.proven:
            return
        began = self._demand_began()
        what = "nothing of it was changed"
        if self._put_back():
            what = "it has its old disks again"
        made = [*began.leftovers, *began.new_files]
        for path in made:
            self.context.storage.remove(path)
        self.guest.remember(rebuild.disowning(self.guest.recall(), made))
        if began.ran and not self.guest.active():
            self.guest.start()
            what = "it has its old disks again and was started"
        self._explain(f"VM {self.guest.name} is not rebuilt: {what}.")

    def _put_back(self) -> bool:
        """Define the VM with its old disks, if it has others; whether it had."""
        began = self._demand_began()
        files = self._files()
        if all(files.get(target) == change.old for target, change in began.disks.items()):
            return False
        self.guest.power_off()
        instance = self.guest.recall()
        if began.launch:
            instance = replace(instance, launch=began.launch)
        nvram = began.nvram.xml if began.nvram else None
        self.swap.define({target: change.xml for target, change in began.disks.items()}, nvram, instance)
        return True


def _reached(ran: bool) -> dict[str, t.Any]:
    if ran:
        return {"status": status_of("active"), "power_state": "RUNNING"}
    return {"status": status_of("stopped"), "power_state": "SHUTDOWN"}
