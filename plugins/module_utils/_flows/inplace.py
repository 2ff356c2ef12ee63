# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Other sizes for a VM on the host that it is on, with a second thought (Nova: resize, confirm, revert).

A disk that grows gets a file over it, and so stays as it was until the user has confirmed. The definition from before
is remembered in the mark. So a revert gives all of it back to the bit, and a confirmation merges without a pause.
"""

from __future__ import annotations

import json
import secrets
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace

from .._core.clock import stamp
from .._core.errors import Busy, Invalid, LifecycleError, NotFound, Refused, Unreachable
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt.bases import Base
from .._libvirt.chains import Chains
from .._libvirt.resizer import Resizer
from .._libvirt.swap import on_file
from .._model import rescue, resize
from .._model.actions import demand, demand_idle, refusal
from .._model.domain import Domain, read_domain
from .._model.instance import Instance, OwnDisk
from .._model.rebuild import disowning
from .._model.resize import PLACE, RESIZED, ROLE, Asked, Growth, Record, Reshape
from .._model.status import State, status_of
from .._task import Context, Subject
from .redefining import Redefining

RESIZE, MIGRATE, CONFIRM, REVERT = "resize", "migrate", "confirm_resize", "revert_resize"
VERIFY = status_of(RESIZED)


class Work(Redefining):
    """What resizing, confirming and reverting have in common."""

    ours = (RESIZE, MIGRATE, CONFIRM, REVERT)

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        self.mark = resize.resized_mark(self.seen.instance.marks)
        self.record = Record.load(self.mark) if self.mark else None

    # ---- looking

    def data(self, *actions: str) -> dict[str, t.Any] | None:
        """What the journal of a run that died says, if that was one of *actions*."""
        return dict(self.journal.data) if self.journal and self.journal.action in actions else None

    def demand_marked(self, action: str) -> bool:
        """Whether there is something to confirm or to revert.

        :raises Refused: The VM has another state over it.
        """
        if self.mark and self.state.vm_state != RESIZED:
            hint = "Use vm_status with state: active first: below that it waits to be confirmed."
            raise refusal(action, self.state, name=self.guest.name, hint=hint if self.state.vm_state == "error" else "")
        return demand(action, self.state, name=self.guest.name)

    def sized(self, domain: Domain) -> tuple[Domain, dict[str, int]]:
        """The definition with files in the place of volumes, and the sizes of the disks in bytes as far as they can be
        told."""
        domain = replace(domain, disks=tuple(self.swap_tool.located(disk) for disk in domain.disks))
        sizes: dict[str, int] = {}
        chains = Chains(self.context.host)
        for disk in domain.disks:
            if disk.device not in ("disk", "lun") or disk.empty:
                continue
            known = chains.below(disk.image).layers[0].capacity
            if known is None:
                try:
                    known = self.guest.disk_size(disk.target)
                except Unreachable:
                    raise
                except LifecycleError:
                    continue
            sizes[disk.target] = known
        return domain, sizes

    # ---- what steps do

    def remove(self) -> dict[str, t.Any]:
        """Remove what a resize has left that is over."""
        return {"removed_files": self.clear(resize.leftovers(self.guest.recall()))}

    def reached(self, runs: bool) -> dict[str, t.Any]:
        """How the VM is afterwards, without a mark of ours."""
        error = any(mark.state == "error" for mark in self.seen.instance.marks)
        if runs:
            return {"status": status_of("error" if error else "active"), "power_state": "RUNNING"}
        return {"status": status_of("error" if error else "stopped"), "power_state": "SHUTDOWN"}

    def as_it_is(self) -> dict[str, t.Any]:
        """Status and power."""
        return {"status": self.state.status, "power_state": self.state.power_state}


# ---- resizing


class Resizing(Work):
    """One resize of one VM in its place."""

    def __init__(self, context: Context, vm: Subject, asked: Asked) -> None:
        super().__init__(context, vm)
        self.asked = asked
        self.tag = secrets.token_hex(4)
        self.reshape: Reshape | None = None
        self.made: Record | None = None
        self.text = ""
        self.previous = ""
        self.ran = False

    def look(self) -> tuple[Domain, dict[str, int], Reshape]:
        """The VM as it is defined, the sizes of its disks, and what becomes of it."""
        domain, sizes = self.sized(read_domain(self.guest.xml(inactive=True)))
        shape = resize.figure(domain, self.seen.instance, sizes, self.asked, tag=self.tag, name=self.guest.name)
        return domain, sizes, shape

    def plan(self) -> Plan:
        """What there is to do."""
        if self.mark and self.state.vm_state != RESIZED:
            self.demand_marked(RESIZE)
        domain, sizes, shape = self.look()
        flavor = self.seen.instance.flavor
        before = {**self.as_it_is(), "flavor": resize.tell_sizes(domain, flavor, sizes)}
        dead = self.data(RESIZE)
        if self.data(CONFIRM, REVERT) is not None:
            raise Busy(
                f"VM {self.guest.name} is busy: what was to {'confirm' if self.data(CONFIRM) else 'revert'} its resize"
                " died.",
                hint="Run that task again to finish it.",
            )
        if dead and "dest" in dead:
            raise Busy(
                f"VM {self.guest.name} is busy: its resize with a move to {dead['dest']} died.",
                hint="Run that task again to finish it.",
            )
        different = resize.changes(domain, shape)
        if self.record:
            if different:
                demand(RESIZE, self.state, name=self.guest.name)
            if dead is None or different:
                return Plan(before=before, after=before, figures={"resize": self.record.tell()})
            return self._finish(before, dead)
        if not different and dead is None:
            return Plan(before=before, after=before)
        if dead is None:
            demand(RESIZE, self.state, name=self.guest.name)
        return self._fresh(domain, sizes, shape, before, dead)

    def _fresh(
        self,
        domain: Domain,
        sizes: t.Mapping[str, int],
        shape: Reshape,
        before: dict[str, t.Any],
        dead: dict[str, t.Any] | None,
    ) -> Plan:
        name, instance = self.guest.name, self.seen.instance
        demand_idle(RESIZE, self.state, name=name)
        self.demand_agent(domain)
        check_vcpus(self.context, domain, shape, name)
        if shape.grown:
            self._check_grown()
        self.ran = bool(dead["ran"]) if dead else self.runs
        self.reshape = shape
        after = resize.tell_after(before["flavor"], shape, domain)
        self.made = Record(
            definition=rescue.split(self.guest.text(inactive=True))[0],
            power="running" if self.ran else "stopped",
            flavor=resize.dump_flavor(instance.flavor),
            sizes=json.dumps(before["flavor"], sort_keys=True),
            resized_to=json.dumps(after, sort_keys=True),
            reshape=shape.dump(),
            disks=resize.dump_disks(disk for disk in instance.disks if disk.role != ROLE),
        )
        original = self.secure()
        tree, warnings = shaped(original, shape, name=name)
        rescue.demand_return(self.made.definition, tree, original, name=name, layout="")
        self.text, self.previous = _text(tree), _text(original)
        steps = []
        if self.state.condition != "stopped":
            steps.append(self._step("stop", self.stop))
        if shape.files:
            steps.append(self._step("stage", self.stage))
        steps.append(self._step("swap", self.swap))
        steps.append(self._last())
        steps[0] = replace(steps[0], undo=self.take_back)
        self.vm.journal = Journal.begin(RESIZE, self.context.clock.now(), ran=self.ran)
        return Plan(
            before=before,
            after={"status": VERIFY, "power_state": "RUNNING" if self.ran else "SHUTDOWN", "flavor": after},
            steps=steps,
            action=RESIZE,
            journaled=True,
            figures={"resize": self.made.tell()},
            warnings=warnings,
        )

    def _check_grown(self) -> None:
        snapshots = self.swap_tool.snapshots()
        if snapshots:
            raise Refused(
                f"VM {self.guest.name} has snapshots of libvirt's own, whose data are in its disks:"
                f" {', '.join(sorted(snapshots))}.",
                hint="Remove them with virsh snapshot-delete, or keep them as images with vm_snapshot first.",
            )

    def _last(self) -> Step:
        step = self._step("start", self.start) if self.ran else self._step("prove", self.swap_tool.prove)
        return replace(step, lasting=True)

    def _finish(self, before: dict[str, t.Any], dead: dict[str, t.Any]) -> Plan:
        """The VM has its new sizes; a run that died may not have started it."""
        record = self._demand_record()
        self.ran = bool(dead["ran"])
        self.made, self.reshape, self.text = record, record.shape, _text(self.secure())
        self.previous = _text(rescue.restored(record.definition, self.secure()))
        self.vm.journal = self.journal
        power = "RUNNING" if self.ran else "SHUTDOWN"
        return Plan(
            before=before,
            after={**before, "status": VERIFY, "power_state": power},
            steps=[replace(self._last(), undo=self.take_back)],
            action=RESIZE,
            journaled=True,
            figures={"resize": record.tell()},
        )

    def _demand_record(self) -> Record:
        if self.made is None and self.record is None:
            raise NotFound(f"There is no resize of VM {self.guest.name}.")
        return t.cast("Record", self.made or self.record)

    # ---- the steps

    def stage(self) -> None:
        """Make the files."""
        storage, shape = self.context.storage, self.reshape
        self.clear(resize.leftovers(self.guest.recall()))
        if shape is None:
            return
        own = [OwnDisk(ROLE, each.target, each.over) for each in shape.grown]
        own += [OwnDisk(ROLE, each.target, each.path) for each in shape.added]
        instance = self.guest.recall()
        # It is known whose they are before they are there.
        self.guest.remember(replace(instance, disks=(*disowning(instance, shape.files).disks, *own)))
        for growth in shape.grown:
            storage.make_overlay(growth.over, below(growth), growth.size)
        for extra in shape.added:
            storage.make_disk(extra.path, extra.size)

    def swap(self) -> None:
        """Define the VM with its new sizes, and remember how it was, in one call."""
        record, shape = self._demand_record(), self.reshape
        instance = self.guest.recall().marked(record.mark(stamp(self.context.clock.now())))
        if shape and shape.flavor:
            instance = replace(instance, flavor=shape.flavor)
        self.define(self.text, instance)

    def start(self) -> dict[str, t.Any]:
        """Boot with the new sizes."""
        return self.run("with its new size")

    # ---- taking it back

    def take_back(self) -> None:
        """After a step failed: the definition from before, and the VM as it was."""
        record, instance = self._demand_record(), self.guest.recall()
        what = "nothing of it was changed"
        if resize.resized_mark(instance.marks):
            self.guest.power_off()
            self.define(self.previous, _as_before(instance, record))
            what = "it has its old size again"
        self.clear(self.reshape.files if self.reshape else [])
        if self.ran and not self.guest.active():
            self.guest.start()
            what = "it has its old size again and was started"
        self._explain(f"VM {self.guest.name} is not resized: {what}.")


def shaped(original: ET.Element, shape: Reshape, *, name: str) -> tuple[ET.Element, list[str]]:
    """The definition with other sizes, and with the files over the disks that grow."""
    tree, warnings = resize.reshaped(original, shape, name=name)
    devices = tree.find("devices")
    overs = {each.target: each.over for each in shape.grown if each.over}
    for index, node in enumerate(list(devices) if devices is not None else []):
        target = node.find("target")
        if devices is not None and node.tag == "disk" and target is not None and target.get("dev") in overs:
            element = on_file(ET.tostring(node, encoding="unicode"), overs[target.get("dev", "")])
            devices[index] = ET.fromstring(element)
    return tree, warnings


def below(growth: Growth) -> Base:
    """The file of a disk that grows, for what is laid over it."""
    return Base(growth.path, growth.format, "", 0, growth.was)


def check_vcpus(context: Context, domain: Domain, shape: Reshape, name: str) -> None:
    """See that the host can run a VM with so many CPUs.

    :raises Invalid: It cannot.
    """
    if shape.vcpus <= domain.max_vcpus:
        return
    kind = context.host.platform(machine=domain.machine, domain_type=domain.type, arch=domain.arch)
    if kind.max_vcpus and shape.vcpus > kind.max_vcpus:
        raise Invalid(
            f"VM {name}: {shape.vcpus} CPUs are asked for, and {kind.machine} of {context.host.name} can have"
            f" {kind.max_vcpus}."
        )


def _as_before(instance: Instance, record: Record) -> Instance:
    """What we remember, without the resize; its files are still the VM's own, to be removed."""
    files = tuple(disk for disk in instance.disks if disk.role == ROLE)
    return replace(instance.unmarked(RESIZED), flavor=record.old_flavor, disks=(*record.own_disks, *files))


def _text(tree: ET.Element) -> str:
    return ET.tostring(tree, encoding="unicode")


# ---- confirming


class Confirming(Work):
    """Letting a resize in its place be."""

    def plan(self) -> Plan:
        """What there is to do."""
        before = self.as_it_is()
        if not self.demand_marked(CONFIRM):
            if self.data(CONFIRM) is None:
                return Plan(before=before, after=before)
            return self._planned(before, [Step("remove", self.remove)], {})
        record = self._demand_record()
        if self.data(RESIZE, REVERT) is not None:
            raise Busy(
                f"VM {self.guest.name} is busy: its {'resize' if self.data(RESIZE) else 'way back'} died.",
                hint="Run that task again to finish it; then this one, if there is something to confirm.",
            )
        shape = record.shape
        if self.state.condition == "suspended" and shape and shape.grown:
            raise refusal(
                CONFIRM,
                self.state,
                name=self.guest.name,
                why=" while its memory is saved, which goes with the files as they are",
                hint="Let it run again first (virsh start).",
            )
        steps = []
        if shape and shape.grown:
            steps.append(Step("merge", self.merge))
        steps += [Step("settle", self.settle), Step("remove", self.remove)]
        return self._planned(before, steps, {"resize": record.tell()})

    def _planned(self, before: dict[str, t.Any], steps: list[Step], figures: dict[str, t.Any]) -> Plan:
        after = {**before, "status": _unmarked(self.state)}
        self.vm.journal = self.journal or Journal.begin(CONFIRM, self.context.clock.now())
        return Plan(before=before, after=after, steps=steps, action=CONFIRM, journaled=True, figures=figures)

    def _demand_record(self) -> Record:
        if self.record is None:
            raise NotFound(f"There is no resize of VM {self.guest.name}.")
        return self.record

    def merge(self) -> dict[str, t.Any]:
        """Write what is in the files over the disks into these. A guest that runs goes on with them."""
        shape = self._demand_record().shape
        grown = [each for each in shape.grown if each.over] if shape else []
        targets = [each.target for each in grown]
        # No increment may begin at what was written to other files.
        self.swap_tool.forget_checkpoints(targets)
        for growth in grown:
            Resizer(self.guest, self.context.clock).merge(growth.target, growth.path, growth.over)
        return {"merged": targets}

    def settle(self) -> None:
        """Define the VM with its disks as they were called before, and forget how it was, in one call."""
        record = self._demand_record()
        shape = record.shape
        original = ET.fromstring(record.definition)
        texts = {}
        for growth in [each for each in shape.grown if each.over] if shape else []:
            node = next(
                node
                for node in original.iterfind("devices/disk")
                if (target := node.find("target")) is not None and target.get("dev") == growth.target
            )
            texts[growth.target] = _text(node)
        instance = self.guest.recall()
        files = [OwnDisk(ROLE, each.target, each.over) for each in shape.grown if each.over] if shape else []
        files += [OwnDisk(ROLE, each.target, each.path) for each in shape.dropped] if shape else []
        disks = (*resize.settled_disks(instance.disks, record), *files)
        tree = self.swap_tool.definition(texts)
        bare = ET.fromstring(rescue.split(_text(tree))[0]) if tree.find("metadata") is not None else tree
        self.define(_text(bare), replace(instance.unmarked(RESIZED), disks=disks))


def _unmarked(state: State) -> str:
    """The status that the VM has without its resize."""
    words = {"running": "active", "asleep": "active", "going_down": "active", "crashed": "error"}
    return status_of(words.get(state.condition, state.condition))


# ---- reverting


class Reverting(Work):
    """Giving a VM the size back that it had."""

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        self.resized_as = ""
        self.resized_ran = False

    def plan(self) -> Plan:
        """What there is to do."""
        before = self.as_it_is()
        if self.data(CONFIRM) is not None and self.record:
            raise Busy(
                f"VM {self.guest.name} is busy: what was to confirm its resize died, and may have changed its disks.",
                hint="Run that task again to finish it.",
            )
        if not self.demand_marked(REVERT):
            if self.journal is None or self.journal.action == CONFIRM:
                return Plan(before=before, after=before)
            return self._finish(before)
        record = self.record
        if record is None:
            raise NotFound(f"There is no resize of VM {self.guest.name}.")
        self._check_files(record)
        starts = record.power == "running"
        if starts:
            self.demand_agent(record.domain)
        self.resized_as = _text(self.secure())
        dead = self.data(REVERT)
        self.resized_ran = bool(dead["ran"]) if dead else self.runs
        steps = []
        if self.state.condition != "stopped":
            steps.append(self._step("stop", self.stop))
        steps.append(self._step("swap_back", self.swap_back))
        if starts:
            steps.append(self._step("start", self.start))
        steps[0] = replace(steps[0], undo=self.take_back)
        steps[-1] = replace(steps[-1], lasting=True)
        steps.append(Step("remove", self.remove))
        self.vm.journal = Journal.begin(
            REVERT, self.context.clock.now(), ran=self.resized_ran, starts=starts, power=record.power
        )
        return Plan(
            before=before,
            after=self.reached(starts),
            steps=steps,
            action=REVERT,
            journaled=True,
            figures={"resize": record.tell()},
        )

    def _check_files(self, record: Record) -> None:
        domain = replace(record.domain, disks=tuple(self.swap_tool.located(disk) for disk in record.domain.disks))
        missing = {
            disk.target: disk.image.source
            for disk in domain.disks
            if disk.image.path and not self.context.storage.there(disk.image.source)
        }
        if missing:
            told = ", ".join(f"{target} ({path})" for target, path in missing.items())
            raise NotFound(
                f"VM {self.guest.name} has lost what its disks were before: {told}.",
                hint="Bring that back first. Nothing of the VM was changed.",
                missing=missing,
            )

    def _finish(self, before: dict[str, t.Any]) -> Plan:
        """The VM has its definition: a resize has not come further, or a way back was cut short."""
        journal = self.journal
        data = journal.data if journal else {}
        # A resize that has not come further has stopped it at most; a way back has begun its start at most.
        way_back = journal is not None and journal.action == REVERT
        due = journal is not None and journal.step != "remove" if way_back else self.state.condition == "stopped"
        starts = due and bool(data.get("starts" if way_back else "ran"))
        steps = [Step("remove", self.remove)]
        reached: dict[str, t.Any] = {}
        if starts:
            steps.insert(0, Step("start", self.start, lasting=True))
            reached = self.reached(starts)
        self.vm.journal = Journal.begin(REVERT, self.context.clock.now(), ran=self.runs, starts=starts)
        return Plan(before=before, after={**before, **reached}, steps=steps, action=REVERT, journaled=True)

    def swap_back(self) -> None:
        """Define the VM as it was."""
        instance = self.guest.recall()
        mark = resize.resized_mark(instance.marks)
        if mark:  # else a run that died was here already
            record = Record.load(mark)
            self.define(_text(rescue.restored(record.definition, self.secure())), _as_before(instance, record))

    def start(self) -> dict[str, t.Any]:
        """Boot with the old sizes."""
        return self.run("as it was before the resize")

    def take_back(self) -> None:
        """After a step failed: the new sizes again."""
        instance = self.guest.recall()
        if self.mark and self.record and resize.resized_mark(instance.marks) is None:
            self.guest.power_off()
            shape = self.record.shape
            flavor = shape.flavor if shape else instance.flavor
            self.define(self.resized_as, replace(instance.marked(self.mark), flavor=flavor))
        what = "it still waits to be confirmed"
        if self.resized_ran and not self.guest.active():
            self.guest.start()
            what = "it has its new size again, and was started so"
        self._explain(f"VM {self.guest.name} is not reverted: {what}.")


def give_back(context: Context, vm: Subject) -> list[Step]:
    """The steps that give a VM without power that waits to be confirmed the definition from before, for who removes it;
    the files of the resize are still its own."""
    mark = resize.resized_mark(vm.instance.marks)
    if mark is None or Record.load(mark).side != PLACE:
        return []
    return [Step("swap_back", Reverting(context, vm).swap_back)]
