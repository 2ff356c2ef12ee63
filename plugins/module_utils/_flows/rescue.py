# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Booting a VM from a rescue disk with its own disks attached, and letting it be as it was (Nova: rescue, unrescue).

The rescue disk is made while the VM runs. One change of the definition swaps it in, and remembers the definition
before. Whatever fails, the VM has that again.
"""

from __future__ import annotations

import json
import os
import secrets
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace

from .._core.clock import stamp
from .._core.errors import Invalid, NotFound, Refused
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._images.base import Image, resolve
from .._images.nocloud import NoCloud
from .._libvirt.bases import Base, Source
from .._libvirt.chains import Chains
from .._libvirt.swap import on_variables
from .._model import names, removal
from .._model import rescue as rules
from .._model.actions import demand, demand_idle, refusal
from .._model.domain import Disk, Domain, read_domain
from .._model.instance import OwnDisk
from .._model.rebuild import disowning, new_path
from .._model.rescue import CLASSIC, RESCUED, STABLE, Began, Order, Record
from .._model.status import status_of
from .._task import Context, Subject
from .launch import DEFAULT_STORAGE
from .redefining import Redefining
from .sources import digest_of, from_file, from_image, path_of, wanted

RESCUE, UNRESCUE = "rescue", "unrescue"


def rescue(context: Context, vm: Subject) -> Plan:
    """Boot a VM from a rescue disk, unless it is; or finish what a run that died has begun."""
    return _Rescue(context, vm).plan()


def unrescue(context: Context, vm: Subject) -> Plan:
    """Let a rescued VM be as it was; or take back what a rescue that died has begun."""
    return _Unrescue(context, vm).plan()


def give_back(context: Context, vm: Subject) -> list[Step]:
    """The steps that give a rescued VM without power the definition from before, for who removes it; its rescue's files
    are still its own."""
    if rules.rescued_mark(vm.instance.marks) is None:
        return []
    return [Step("swap_back", _Unrescue(context, vm).swap_back)]


@dataclass(frozen=True)
class _Chosen:
    """The image for the rescue disk.

    :param label: For people.
    :param base: The base that there is of it already, if that is all that is known; else ``source``.
    :param image: What a store tells of it; ``None`` when none was asked.
    :param image_id: Its identifier, and ``place`` its store, when it is of one.
    :param properties: Of the image.
    """

    label: str
    source: Source | None = None
    base: Base | None = None
    image: Image | None = None
    image_id: str = ""
    place: str = ""
    properties: t.Mapping[str, str] = field(default_factory=dict)


class _Work(Redefining):
    """What rescuing and going back have in common."""

    ours = (RESCUE, UNRESCUE)

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        self.dead = Began.load(self.journal.data) if self.journal else None
        self.mark = rules.rescued_mark(self.seen.instance.marks)
        self.record = Record.load(self.mark) if self.mark else None

    def _ran(self) -> bool:
        """The same, from before what a run that died has done since."""
        dead, journal = self.dead, self.journal
        if dead is None or journal is None:
            return self.runs
        if journal.action == RESCUE:  # which starts what it has swapped in
            return True if self.record and self.record.disk == dead.disk else dead.ran
        return dead.ran if self.record else dead.power == "running"

    def _power(self) -> str:
        """What the guest did before the rescue."""
        if self.record:
            return self.record.power
        return self.dead.power if self.dead else rules.power_of(self.state.condition)

    def _before(self) -> dict[str, t.Any]:
        told: dict[str, t.Any] = {"status": self.state.status, "power_state": self.state.power_state}
        told["rescue"] = _shown(self.record) if self.record else None
        return told

    def _original(self) -> ET.Element:
        """The definition without a rescue, with secrets and without metadata."""
        current = self.secure()
        return rules.restored(self.record.definition, current) if self.record else current

    def remove(self) -> dict[str, t.Any]:
        """Remove what a rescue has left that is over."""
        return {"removed_files": self.clear(rules.leftovers(self.guest.recall()))}

    def _check_disks(self, original: ET.Element, targets: t.Sequence[str], hint: str) -> None:
        """See that the VM's own disks are there.

        :raises NotFound: They are not.
        """
        missing = {}
        for disk in read_domain(original).disks:
            if disk.target not in targets or disk.empty:
                continue
            path = self._lost(self.swap_tool.located(disk))
            if path:
                missing[disk.target] = path
        if missing:
            told = ", ".join(f"{target} ({path})" for target, path in missing.items())
            raise NotFound(f"VM {self.guest.name} has lost what is on its disks: {told}.", hint=hint, missing=missing)

    def _lost(self, disk: Disk) -> str:
        """The file of the disk, or one that it builds upon, that is not there; empty when none is known to be
        missing."""
        layers = Chains(self.context.host).below(disk.image).layers
        paths = [layer.image.path for layer in layers]
        return next((path for path in paths if path and not self.context.storage.there(path)), "")


class _Rescue(_Work):
    """One rescue of one VM."""

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        self.made: Record | None = None
        self.text = ""
        self.previous = ""
        self.ran = False

    # ---- looking

    def plan(self) -> Plan:
        """What there is to do."""
        ask, name = self.ask, self.guest.name
        if ask["layout"] == CLASSIC and (ask["device"] or ask["bus"]):
            raise Invalid(
                f"VM {name}: in the layout classic the rescue disk is what the root disk is.",
                hint="Leave out device and bus, or say layout: stable.",
            )
        self._demand()
        if self.record and self._is_it(self.record):
            return self._nothing_or_finish(self.record)
        return self._fresh()

    def _demand(self) -> None:
        """See that the VM may be rescued."""
        state, name = self.state, self.guest.name
        if self.mark:
            if state.vm_state != RESCUED:
                hint = "Use vm_status with state: active first: below that it is rescued."
                raise refusal(RESCUE, state, name=name, hint=hint if state.vm_state == "error" else "")
            return
        if state.condition in ("paused", "suspended"):
            if not self.ask["discard_memory"]:
                raise refusal(
                    RESCUE,
                    state,
                    name=name,
                    why=", as its memory would be lost",
                    hint="Say discard_memory: true to lose it, or use vm_power with state: running first.",
                )
            if not state.marked:
                state = replace(state, vm_state="stopped")
        demand(RESCUE, state, name=name)

    def _is_it(self, record: Record) -> bool:
        """Whether the VM is rescued as the task says. What the task does not say is not compared."""
        ask = self.ask
        if record.layout != ask["layout"]:
            return False
        if record.layout == STABLE and (ask["device"] or record.device, ask["bus"] or record.bus) != (
            record.device,
            record.bus,
        ):
            return False
        if ask["image"] is None:
            return True
        found = wanted(self.context)
        if found.image and (found.image.id, found.place) == (record.image_id, record.place):
            return True
        if found.image:
            return found.image.digests.get("sha256", "unknown") == record.sha256
        return digest_of(self.context, found.source) == record.sha256

    def _nothing_or_finish(self, record: Record) -> Plan:
        """It is rescued so; a run that died may not have started it."""
        before = self._before()
        figures = {"rescue": record.tell()}
        if self.journal is None or self.dead is None:
            return Plan(before=before, after=before, figures=figures)
        self.made, self.ran = record, record.power == "running"
        self.previous = _text(self._original())
        steps = [Step("remove", self.remove)]
        reached = before
        starts = self._ran() and self.journal.step != "remove"
        if starts:
            undo = self.take_back if self.journal.action == RESCUE else None
            steps.insert(0, replace(self._step("start", self.start), undo=undo, lasting=True))
            reached = {**before, "power_state": "RUNNING"}
        # Without the disk: what is there was started before.
        began = Began(record.power, starts, record.disk if starts else "")
        self.vm.journal = Journal.begin(RESCUE, self.context.clock.now(), **began.dump())
        return Plan(
            before=before,
            after={**reached, "status": _RESCUED},
            steps=steps,
            action=RESCUE,
            journaled=True,
            figures=figures,
        )

    def _fresh(self) -> Plan:
        """Rescue it, or rescue it otherwise."""
        ask, name, instance = self.ask, self.guest.name, self.seen.instance
        demand_idle(RESCUE, self.state, name=name)
        chosen = self._choose()
        original = self._original()
        domain = read_domain(original)
        self._check(domain, chosen)
        layout = ask["layout"]
        device, bus = "disk", rules.root_bus(original)
        if layout == STABLE:
            device, bus = rules.attachment(
                (ask["device"], ask["bus"]), chosen.properties, original, name=name, image=chosen.label
            )
        drop = rules.config_drives(instance) if ask["credentials"] else ()
        hint = "Bring that back first." if layout == CLASSIC else "Bring that back first, or say layout: classic."
        self._check_disks(original, rules.needed(original, layout, drop), hint)
        made = self._made(chosen, original, layout, device, bus)
        self.made = made
        nvram = ""
        if made.nvram:
            node = original.find("os/nvram")
            nvram = on_variables(_text(node) if node is not None else "", made.nvram)
        order = Order(layout, device, bus, made.disk, made.seed, nvram, drop)
        tree = rules.lay_out(original, order, name=name)
        rules.demand_return(made.definition, tree, original, name=name, layout=layout)
        self.text = _text(tree)
        self.previous = _text(self.secure() if self.record else original)
        self.ran = self._ran()
        steps = [self._step("stage", lambda: self.stage(chosen))]
        if self.state.condition != "stopped":
            steps.append(self._step("stop", self.stop))
        steps += [self._step("swap", self.swap), replace(self._step("start", self.start), lasting=True)]
        if self.record:
            steps.append(Step("remove", self.remove))
        steps[0] = replace(steps[0], undo=self.take_back)
        self.vm.journal = Journal.begin(
            RESCUE, self.context.clock.now(), **Began(made.power, self.ran, made.disk).dump()
        )
        after = {
            "status": _RESCUED,
            "power_state": "RUNNING",
            "rescue": _shown(made),
        }
        return Plan(
            before=self._before(),
            after=after,
            steps=steps,
            action=RESCUE,
            journaled=True,
            figures={"rescue": made.tell()},
            warnings=self._warnings(chosen),
        )

    def _demand_made(self) -> Record:
        if self.made is None:
            raise NotFound(f"There is no rescue of VM {self.guest.name}.")
        return self.made

    def _choose(self) -> _Chosen:
        """The image: the one that the task names, else the one that the VM was launched from."""
        if self.ask["image"] is not None:
            found = wanted(self.context)
            if found.image:
                label = f"{found.image.name} ({found.image.id})"
                image = found.image
                return _Chosen(label, found.source, None, image, image.id, found.place, image.properties)
            return _Chosen(found.source.path, found.source)
        if self.record:  # otherwise than now, and with the same
            base = self.context.storage.base_facts(self.record.base)
            if base:
                return _Chosen(self.record.image, None, base, None, self.record.image_id, self.record.place)
        launch = self.seen.instance.launch
        hint = "Say with image which one to rescue it with."
        if launch is None:
            raise NotFound(f"VM {self.guest.name} was not launched by this collection from an image.", hint=hint)
        label = f"{launch.image} ({launch.image_id})" if launch.image_id else launch.image
        base = self.context.storage.base_facts(launch.base)
        if base:  # what its root disk builds upon is the image
            return _Chosen(label, None, base, None, launch.image_id, launch.place, launch.properties)
        try:
            if launch.image_id:
                found = from_image(self.context.store, resolve(self.context.store, launch.image_id))
                return _Chosen(label, found.source, None, found.image, launch.image_id, found.place, launch.properties)
            path = path_of(launch.image)
            if path:
                return _Chosen(label, from_file(path, launch.base_format)[0], properties=launch.properties)
        except (NotFound, Invalid) as exc:
            exc.hint = hint
            raise
        raise NotFound(f"The image {label} that VM {self.guest.name} was launched from is not there.", hint=hint)

    def _check(self, domain: Domain, chosen: _Chosen) -> None:
        """See that the VM can run with the image."""
        self.demand_agent(domain)
        if chosen.image and chosen.image.min_ram > domain.memory:
            raise Invalid(
                f"VM {self.guest.name} has {domain.memory} MiB of memory, and image {chosen.label} needs"
                f" {chosen.image.min_ram} MiB (min_ram).",
                hint="Use a smaller image.",
            )
        firmware = chosen.properties.get("hw_firmware_type", "")
        if firmware and firmware != domain.firmware.kind:
            raise Refused(
                f"VM {self.guest.name} has the firmware {domain.firmware.kind}, and image {chosen.label} needs"
                f" {firmware} (hw_firmware_type).",
                hint="Use another image.",
            )

    def _made(self, chosen: _Chosen, original: ET.Element, layout: str, device: str, bus: str) -> Record:
        """What will be remembered."""
        tag = secrets.token_hex(4)
        directory = self._directory()
        nvram = ""
        if rules.has_variables(original):
            nvram = new_path(read_domain(original).firmware.nvram or self.swap_tool.nvram()[1], tag)
        definition = self.record.definition if self.record else rules.split(self.guest.text(inactive=True))[0]
        return Record(
            definition=definition,
            power=self._power(),
            layout=layout,
            device=device,
            bus=bus,
            image=chosen.label,
            image_id=chosen.image_id,
            place=chosen.place,
            base="",
            sha256="",
            disk=rules.rescue_path(directory, tag),
            seed=rules.rescue_path(directory, tag, rules.SEED) if self.ask["credentials"] else "",
            nvram=nvram,
        )

    def _directory(self) -> str:
        """Where the rescue's files lie: with the VM's own."""
        own = removal.own_directory(self.guest.uuid, self.seen.instance)
        return own or self._storage()

    def _storage(self) -> str:
        """The directory whose base cache is used."""
        launch = self.seen.instance.launch
        if launch:
            return launch.storage
        domain = self.record.domain if self.record else read_domain(self.secure())
        root = next((disk for disk in domain.disks if disk.device in ("disk", "lun")), None)
        image = self.swap_tool.located(root).image if root else None
        if image is None or image.kind != "file" or not image.source:
            return DEFAULT_STORAGE
        try:
            return names.check_directory(os.path.dirname(image.source))
        except Invalid:  # it lies in the root directory
            return DEFAULT_STORAGE

    def _warnings(self, chosen: _Chosen) -> list[str]:
        """What the user should know."""
        told = []
        launch = self.seen.instance.launch
        known = {launch.image, launch.image_id, launch.base, launch.base_sha256} - {""} if launch else set()
        digest = chosen.image.digests.get("sha256", "") if chosen.image else ""
        path = chosen.base.path if chosen.base else chosen.source.path if chosen.source else ""
        if known & {chosen.image_id, digest, path}:
            told.append(
                "It is rescued with the image that it was launched from: the file systems on the rescue disk and on its"
                " own may have the same labels and UUIDs, and the rescue system may mount the wrong ones."
            )
        if self.state.condition in ("paused", "suspended"):
            told.append("Its memory is lost. It will be off when it is unrescued.")
        return told

    # ---- the steps

    def stage(self, chosen: _Chosen) -> dict[str, t.Any]:
        """Make the rescue disk. The VM goes on meanwhile."""
        made, storage = self._demand_made(), self.context.storage
        self.clear(rules.leftovers(self.guest.recall()))
        own = [OwnDisk(rules.ROLE, target, path) for target, path in _targets(made)]
        # It is known whose they are before they are there.
        instance = self.guest.recall()
        self.guest.remember(replace(instance, disks=(*disowning(instance, made.files).disks, *own)))
        base = chosen.base
        if base is None and chosen.source:
            base = storage.fetch_base(chosen.source, self._storage())
        if base is None:
            raise NotFound(f"There is no image to rescue VM {self.guest.name} with.")
        storage.make_overlay(made.disk, base, base.virtual_size)
        if made.seed:
            storage.write(made.seed, self._seed(os.path.basename(made.disk).partition(".")[0]))
        self.made = replace(made, base=base.path, sha256=base.sha256)
        return {"rescue": self.made.tell()}

    def _seed(self, instance_id: str) -> bytes:
        """What cloud-init is told: it has never seen this instance, so it does all that it is told."""
        asked = self.ask["credentials"]
        user = asked["user"]
        config: dict[str, t.Any] = {"users": ["default", {"name": user, "lock_passwd": False}]}
        if user == "root":
            config["disable_root"] = False
        if asked["ssh_keys"]:
            config["users"][1]["ssh_authorized_keys"] = list(asked["ssh_keys"])
        if asked["password"]:
            config["ssh_pwauth"] = True
            config["chpasswd"] = {"expire": False, "list": f"{user}:{asked['password']}\n"}
        # JSON is YAML, which is what cloud-init reads.
        seed = NoCloud(user_data=f"#cloud-config\n{json.dumps(config, sort_keys=True)}\n")
        return seed.image(instance_id=instance_id, hostname=self.guest.name)

    def swap(self) -> None:
        """Define the VM with the rescue disk, and remember how it was, in one call."""
        since = self.mark.since if self.mark else stamp(self.context.clock.now())
        self.define(self.text, self.guest.recall().marked(self._demand_made().mark(since)))

    def start(self) -> dict[str, t.Any]:
        """Boot from the rescue disk."""
        return self.run("from its rescue disk")

    # ---- taking it back

    def take_back(self) -> None:
        """After a step failed: the definition from before, and the VM as it was."""
        made, instance = self._demand_made(), self.guest.recall()
        mark = rules.rescued_mark(instance.marks)
        what = "nothing of it was changed"
        if mark and Record.load(mark).disk == made.disk:
            self.guest.power_off()
            before = self.mark if self.record and self.record.disk != made.disk else None
            self.define(self.previous, instance.marked(before) if before else instance.unmarked(RESCUED))
            what = "it has its definition from before again"
        self.clear(made.files)
        if self.ran and not self.guest.active():
            self.guest.start()
            what = "it has its definition from before again and was started"
        elif self.state.condition in ("paused", "suspended") and not self.guest.active() and not self.guest.saved():
            what += ", and is off: its memory is lost"
        self._explain(f"VM {self.guest.name} is not rescued with this: {what}.")


class _Unrescue(_Work):
    """The way back of one VM."""

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        self.rescued_as = ""
        self.rescue_ran = False

    def plan(self) -> Plan:
        """What there is to do."""
        before = self._before()
        if self.record is None:
            if self.journal is None:
                demand(UNRESCUE, self.state, name=self.guest.name)
                return Plan(before=before, after=before)
            return self._finish(before)
        demand(UNRESCUE, self.state, name=self.guest.name)
        record = self.record
        original = self._original()
        self._check_disks(
            original, rules.needed(original, ""), "Bring that back first. The VM is still rescued, as it was."
        )
        starts = record.power == "running"
        if starts:
            self.demand_agent(record.domain)
        self.rescued_as = _text(self.secure())
        self.rescue_ran = self._ran()
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
            UNRESCUE, self.context.clock.now(), **Began(record.power, self.rescue_ran).dump()
        )
        return Plan(
            before=before,
            after={**self._reached(starts), "rescue": None},
            steps=steps,
            action=UNRESCUE,
            journaled=True,
            figures={"rescue": record.tell()},
        )

    def _finish(self, before: dict[str, t.Any]) -> Plan:
        """The VM has its definition: a rescue has not come further, or a way back was cut short."""
        journal = self._demand_journal()
        # A rescue that has not come further has stopped it at most; a way back has begun its start at most.
        due = journal.step != "remove" if journal.action == UNRESCUE else self.state.condition == "stopped"
        starts = due and self._ran()
        steps = [Step("remove", self.remove)]
        reached: dict[str, t.Any] = {}
        if starts:
            self.demand_agent(read_domain(self.secure()))
            steps.insert(0, Step("start", self.start, lasting=True))
            reached = self._reached(starts)
        self.vm.journal = Journal.begin(UNRESCUE, self.context.clock.now(), **Began(self._power(), self.runs).dump())
        return Plan(before=before, after={**before, **reached}, steps=steps, action=UNRESCUE, journaled=True)

    def _demand_journal(self) -> Journal:
        if self.journal is None:
            raise NotFound(f"Nothing of a rescue of VM {self.guest.name} was begun.")
        return self.journal

    def _reached(self, starts: bool) -> dict[str, t.Any]:
        if starts:
            return {"status": status_of("active"), "power_state": "RUNNING"}
        error = any(mark.state == "error" for mark in self.seen.instance.marks)
        return {"status": status_of("error" if error else "stopped"), "power_state": "SHUTDOWN"}

    # ---- the steps

    def swap_back(self) -> None:
        """Define the VM as it was."""
        instance = self.guest.recall()
        mark = rules.rescued_mark(instance.marks)
        if mark:  # else a run that died was here already
            original = rules.restored(Record.load(mark).definition, self.secure())
            self.define(_text(original), instance.unmarked(RESCUED))

    def start(self) -> dict[str, t.Any]:
        """Boot from its own disk."""
        figures = self.run("as it was before the rescue")
        self.guest.remember(self.guest.recall().unmarked("error"))
        return figures

    # ---- taking it back

    def take_back(self) -> None:
        """After a step failed: the rescue again."""
        instance = self.guest.recall()
        if self.mark and rules.rescued_mark(instance.marks) is None:
            self.guest.power_off()
            self.define(self.rescued_as, instance.marked(self.mark))
        what = "it is still rescued"
        if self.rescue_ran and not self.guest.active():
            self.guest.start()
            what = "it is rescued again, and was started so"
        self._explain(f"VM {self.guest.name} is not unrescued: {what}.")


_RESCUED = status_of(RESCUED)


def _text(tree: ET.Element) -> str:
    return ET.tostring(tree, encoding="unicode")


def _shown(record: Record) -> dict[str, str]:
    """What the diff says of a rescue."""
    return {"image": record.image, "layout": record.layout, "device": record.device, "bus": record.bus}


def _targets(made: Record) -> list[tuple[str, str]]:
    """The rescue's files, each with what it is."""
    known = (("disk", made.disk), (rules.SEED, made.seed), (rules.NVRAM, made.nvram))
    return [(target, path) for target, path in known if path]
