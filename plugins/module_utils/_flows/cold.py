# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Moving a VM while it is off, with a second thought (Nova: cold migration, confirm, revert).

The VM is made whole at the destination before it is started there. What it was stays where it is: defined, off, not to
be started, with its disks, until the user confirms or reverts. Both definitions remember it, each knows the other host,
and so both can be done from either. The half that the task is about goes last, so that a run that was killed finds its
way again.
"""

from __future__ import annotations

import json
import os
import typing as t
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import timedelta
from functools import partial

from .._core.clock import parse_stamp, stamp
from .._core.errors import Busy, Invalid, NotFound, Refused
from .._core.journal import Journal
from .._core.plan import Plan, Step
from .._libvirt.guest import Guest
from .._libvirt.host import pick
from .._libvirt.swap import Swap
from .._libvirt.xml import put_instance
from .._model import endpoints, rescue, resize
from .._model import instance as memory
from .._model.actions import demand, demand_idle
from .._model.domain import Domain, read_domain
from .._model.instance import OwnDisk
from .._model.placing import COPIED, Layout
from .._model.resize import MOVED, ORIGIN, PLACE, RESIZED, ROLE, Record, Reshape, resized_mark
from .._task import Context, Side, Subject
from .inplace import CONFIRM, MIGRATE, RESIZE, REVERT, VERIFY, Confirming, Reverting, Work, below, shaped
from .placing import Placing
from .preflight import demand as demand_findings
from .preflight import examine
from .stopping import switch_off

COLD, OFFLINE = "cold", "offline"
# A host, and what it has of the VM.
Half = tuple[Context, t.Optional[Subject], Side]


def move(context: Context, vm: Subject, there: Side, reshape: Reshape | None = None) -> Plan:
    """Move a VM that is off, or stop, move and start one that runs; or finish what a run that died has begun.

    :param reshape: Other sizes that it gets on the way.
    """
    return Moving(context, vm, there, reshape).plan()


def takes(context: Context, vm: Subject) -> bool:
    """Whether a VM is moved while it is off: as the task says, since it is, or since a run that died has begun so."""
    _guest, seen, state = vm.there()
    journal, mark = seen.instance.journal, resized_mark(seen.instance.marks)
    if mark or (journal and journal.action in (MIGRATE, RESIZE)):
        return True
    if journal:  # of a live migration, say, which goes its own way
        return False
    method = context.params["method"]
    return method in (COLD, OFFLINE) or (method == "auto" and state.condition == "stopped")


def confirm(context: Context, vm: Subject) -> Plan:
    """Let a VM stay as it is since its resize or its move, if that is long enough ago."""
    context, vm = _seek(context, vm)
    _guest, seen, state = vm.there()
    mark = resized_mark(seen.instance.marks)
    journal = seen.instance.journal
    if mark and context.params["older_than"] and journal is None:
        try:
            since = parse_stamp(mark.since)
        except ValueError as exc:
            raise Invalid(f"Since when VM {vm.name} waits to be confirmed cannot be read from its metadata.") from exc
        if since + timedelta(seconds=context.params["older_than"]) > context.clock.now():
            before = {"status": state.status, "power_state": state.power_state}
            return Plan(before=before, after=before, figures={"since": mark.since})
    if mark and Record.load(mark).side != PLACE:
        return _Staying(context, vm).plan()
    return Confirming(context, vm).plan()


def revert(context: Context, vm: Subject) -> Plan:
    """Let a VM be as it was before its resize or its move."""
    context, vm = _seek(context, vm)
    mark, journal = resized_mark(vm.instance.marks), vm.instance.journal
    if mark is None and journal and journal.action in (RESIZE, MIGRATE) and "dest" in journal.data:
        return Moving(context, vm, context.side(str(journal.data["dest"])), None).undone()
    cut_short = journal is not None and journal.action == REVERT and "peer" in journal.data
    if cut_short or (mark and Record.load(mark).side != PLACE):
        return _Returning(context, vm).plan()
    return Reverting(context, vm).plan()


def waits(vm: Subject) -> bool:
    """Whether a confirmation without names is about this VM: not about what is left of one on the host that it left."""
    mark = resized_mark(vm.instance.marks)
    return mark is not None and Record.load(mark).side != ORIGIN


def _seek(context: Context, vm: Subject) -> tuple[Context, Subject]:
    """The VM where it is: here or, if this host does not have it, at the destination that the task names.

    :raises NotFound: It is nowhere.
    """
    ask = context.params
    if vm.guest is None and ask.get("dest"):
        uri = endpoints.connection_uri(ask["dest"], ask["dest_transport"], insecure_tcp=ask["insecure_tcp"])
        found = pick(context.side(uri).host.guests(), [vm.name])[0]
        if isinstance(found, Guest):
            vm.name, vm.guest, vm.seen = found.name, found, found.look()
    if vm.guest is None:
        raise NotFound(
            f"There is no VM with the name or UUID {vm.name!r} on {context.host.name}.",
            hint="If it has moved and was confirmed, it is on the other host.",
            name=vm.name,
        )
    if vm.guest.host is context.host:
        return context, vm
    return context.at(context.side(vm.guest.host.uri)), vm


# ---- moving


class Moving(Work):
    """One move of one VM."""

    def __init__(self, context: Context, vm: Subject, there: Side, reshape: Reshape | None) -> None:
        super().__init__(context, vm)
        self.there = there
        self.reshape = reshape
        self.action = RESIZE if reshape else MIGRATE
        running, journal = self.seen.running or {}, self.seen.instance.journal
        if (running.get("action"), running.get("dest")) == (self.action, there.uri):
            # A process that does the same: it is waited for, and what it has left then is looked at.
            self.state = replace(self.state, running="", task_state="")
            self.journal = journal if journal and journal.ours and journal.action == self.action else None
        self.placing = Placing(context, vm, there)
        self.layout = Layout()
        self.method = COLD
        self.before: dict[str, t.Any] = {}
        self.after: dict[str, t.Any] = {}

    def plan(self) -> Plan:
        """What there is to do."""
        before = {**self.as_it_is(), "host": self.context.host.name}
        dead = self.data(self.action)
        if self.data(CONFIRM, REVERT) is not None:
            raise Busy(
                f"VM {self.guest.name} is busy: what was to confirm or to revert its move died.",
                hint="Run that task again to finish it.",
            )
        if dead is not None and dead.get("dest") != self.there.uri:
            raise Busy(
                f"VM {self.guest.name} is busy: {self.action} to {dead.get('dest', 'nowhere else')} died.",
                hint="Run that task again to finish it.",
            )
        if self.record and self.record.side == ORIGIN and self.record.peer == self.there.uri:
            if dead is None:
                return Plan(before=before, after=before, figures={"resize": self.record.tell()})
        elif self.record or dead is None:
            demand(self.action, self.state, name=self.guest.name)
        return self._moving(before, dead)

    def undone(self) -> Plan:
        """Take back what a run that died has begun, which has not handed the VM over."""
        dead = self.data(RESIZE, MIGRATE)
        if dead is None or self.journal is None:
            raise Busy(f"VM {self.guest.name} is busy: {self.state.running}.", hint="Wait for it.")
        self.action = self.journal.action
        self.layout = Layout.load(dead["layout"])
        self.reshape = Reshape.load(dead["shape"]) if dead["shape"] else None
        self.vm.journal = self.journal
        return Plan(
            before=self.as_it_is(),
            after=self.reached(bool(dead["ran"])),
            steps=[Step("take_back", self.take_back)],
            action=self.action,
            journaled=True,
        )

    def _moving(self, before: dict[str, t.Any], dead: dict[str, t.Any] | None) -> Plan:
        name = self.guest.name
        demand_idle(self.action, self.state, name=name)
        self.layout = Layout.load(dead["layout"]) if dead else self.placing.look()
        self.method = OFFLINE if self.layout.shared else COLD
        if self.ask.get("method") == OFFLINE and self.method == COLD:
            raise Refused(
                f"VM {name} cannot be moved with nothing but its definition: not all of its disks are on storage that"
                " both hosts see.",
                hint="Say method: cold.",
                disks=self.layout.tell(),
            )
        domain, sizes = self.sized(read_domain(self.guest.xml(inactive=True)))
        if not dead:
            demand_findings(examine(self.context, self.vm, self.there, method=self.method, layout=self.layout), name)
        self._check_there()
        ran = bool(dead["ran"]) if dead else self.runs
        if ran:
            self.demand_agent(domain)
        if self.reshape:
            self.reshape = _there_shape(Reshape.load(dead["shape"]) if dead else self.reshape, self.layout)
            self.before = resize.tell_sizes(domain, self.seen.instance.flavor, sizes)
            self.after = resize.tell_after(self.before, self.reshape, domain)
        journal = self.journal or Journal.begin(
            self.action,
            self.context.clock.now(),
            dest=self.there.uri,
            method=self.method,
            ran=ran,
            autostart=self.guest.autostart(),
            layout=self.layout.dump(),
            shape=self.reshape.dump() if self.reshape else "",
        )
        self.vm.journal = journal
        handed_over = self.record is not None
        steps: list[Step] = []
        if not handed_over:
            if self.state.condition != "stopped":
                steps.append(self._step("stop", self.stop))
            if not self.layout.shared or self.layout.secrets:
                steps.append(self._step("carry", lambda: self.placing.carry(self.layout)))
            if self.reshape and (self.reshape.grown or self.reshape.added):
                steps.append(self._step("shape", self.shape))
            steps += [self._step("define", self.define_there), self._step("hand_over", self.hand_over)]
        if ran:
            steps.append(self._step("start", self.start))
        elif self.reshape:
            steps.append(self._step("prove", self.prove))
        if not handed_over:  # else its guest may have run there already
            steps[0] = replace(steps[0], undo=self.take_back)
            steps[-1] = replace(steps[-1], lasting=True)
        steps.append(self._step("finish", self.finish))
        after: dict[str, t.Any] = {
            "status": VERIFY,
            "power_state": "RUNNING" if ran else "SHUTDOWN",
            "host": self.there.host.name,
        }
        if self.reshape:
            before, after = {**before, "flavor": self.before}, {**after, "flavor": self.after}
        return Plan(
            before=before,
            after=after,
            steps=steps,
            action=self.action,
            journaled=True,
            figures={
                "method": self.method,
                "source": self.context.host.name,
                "dest": self.there.host.name,
                "disks": self.layout.tell(),
            },
            tells={"dest": self.there.uri},
            waits=True,
        )

    def _check_there(self) -> None:
        """See that the destination has no VM that would be in the way."""
        guest = self._found()
        if guest is None:
            return
        instance = guest.recall()
        mark = resized_mark(instance.marks)
        ours = mark is not None and Record.load(mark).side == MOVED
        if self.journal is None or not ours:
            raise Refused(
                f"VM {self.guest.name} is defined on {self.there.host.name} as well.",
                hint="See with state: recovered which of the two is the right one.",
            )

    def _found(self) -> Guest | None:
        return self.there.host.guest_of(self.guest.uuid)

    def _data(self) -> t.Mapping[str, t.Any]:
        if self.vm.journal is None:
            raise NotFound(f"There is no move of VM {self.guest.name}.")
        return self.vm.journal.data

    # ---- the steps

    def shape(self) -> None:
        """Make the disks at the destination as large as they shall be, and the new ones."""
        storage, shape = self.there.storage, self.reshape
        for growth in shape.grown if shape else ():
            if growth.over:
                storage.make_overlay(growth.over, below(growth), growth.size)
            else:
                storage.grow(growth.path, growth.format, growth.size)
        for extra in shape.added if shape else ():
            storage.make_disk(extra.path, extra.size)

    def define_there(self) -> None:
        """Define the VM at the destination, as one that waits to be confirmed."""
        name, shape = self.guest.name, self.reshape
        self._check_there()
        tree = self.placing.definition(self.layout, self.guest.xml(inactive=True, secure=True))
        open_tree = self.placing.definition(self.layout, self.guest.xml(inactive=True))
        instance = memory.find(tree)
        record = replace(
            self._record(MOVED, way_back(self.context, self.there), self.context.host.name),
            definition=rescue.split(_text(open_tree))[0],
            disks=resize.dump_disks(disk for disk in instance.disks if disk.role != ROLE),
        )
        if shape:
            tree, _warnings = shaped(tree, shape, name=name)
            own = [OwnDisk(ROLE, each.target, each.over) for each in shape.grown if each.over]
            own += [OwnDisk(ROLE, each.target, each.path) for each in shape.added]
            instance = replace(instance, flavor=shape.flavor or instance.flavor, disks=(*instance.disks, *own))
        marked = replace(instance, journal=None).marked(record.mark(stamp(self.context.clock.now())))
        put_instance(tree, marked)
        self.there.host.define(_text(tree))

    def _record(self, side: str, peer: str, host: str) -> Record:
        data = self._data()
        return Record(
            definition="",
            power="running" if data["ran"] else "stopped",
            autostart="yes" if data["autostart"] else "no",
            flavor=resize.dump_flavor(self.seen.instance.flavor),
            sizes=json.dumps(self.before, sort_keys=True) if self.before else "",
            resized_to=json.dumps(self.after, sort_keys=True) if self.after else "",
            side=side,
            peer=peer,
            host=host,
            reshape=self.reshape.dump() if self.reshape else "",
            layout=json.dumps(self.layout.dump(), sort_keys=True),
            action=self.action,
        )

    def hand_over(self) -> None:
        """From here on the VM is the one at the destination: this one is not started any more."""
        self.guest.set_autostart(False)
        record = self._record(ORIGIN, self.there.uri, self.there.host.name)
        self.guest.remember(self.guest.recall().marked(record.mark(stamp(self.context.clock.now()))))

    def _at_dest(self) -> Guest:
        guest = self._found()
        if guest is None:
            raise NotFound(
                f"VM {self.guest.name} is not on {self.there.host.name} any more.", hint="Use state: reverted."
            )
        return guest

    def start(self) -> dict[str, t.Any]:
        """Start it at the destination."""
        began = self.context.clock.monotonic()
        Swap(self._at_dest(), self.context.clock).run(
            agent=self.ask.get("wait_for") == "agent",
            timeout=self.ask.get("wait_timeout") or 0,
            what=f"on {self.there.host.name}",
        )
        return {"start_seconds": round(self.context.clock.monotonic() - began, 3)}

    def prove(self) -> None:
        """See that it could be started there."""
        Swap(self._at_dest(), self.context.clock).prove()

    def finish(self) -> None:
        """Give the VM at the destination what its definition does not have."""
        guest = self._at_dest()
        guest.set_autostart(bool(self._data()["autostart"]))
        # What is told of the VM is told of the one that counts. Its other half has no part in it any more.
        self.guest.remember(replace(self.guest.recall(), journal=None))
        self.vm.guest = guest

    # ---- taking it back

    def take_back(self) -> None:
        """After a step failed: nothing is left at the destination, and the VM is here as it was."""
        guest = self._found()
        if guest is not None:
            self._check_there()
            guest.power_off()
            guest.undefine(keep_nvram=not self.layout.nvram)
        for path in self.reshape.files if self.reshape else ():
            self.there.storage.remove(path)
        self.placing.discard(self.layout)
        data = self._data()
        self.guest.remember(self.guest.recall().unmarked(RESIZED))
        self.guest.set_autostart(bool(data["autostart"]))
        what = "it is as it was"
        if data["ran"] and not self.guest.active():
            self.guest.start()
            what = "it was started here again"
        self._explain(f"VM {self.guest.name} has not moved: {what}.")


def way_back(context: Context, there: Side) -> str:
    """The URI by which the destination reaches the host that the VM leaves."""
    if context.params.get("origin"):
        return str(context.params["origin"])
    return context.host.uri if not context.host.local else endpoints.same_way(there.uri, context.host.name)


def _there_shape(shape: Reshape, layout: Layout) -> Reshape:
    """The sizes with the files of the destination: what was copied there grows itself, as the one here is the way
    back."""
    grown = []
    for growth in shape.grown:
        disk = layout.disk(growth.target)
        if disk and disk.how == COPIED:
            growth = replace(growth, path=disk.there, over="")
        grown.append(growth)
    places = {os.path.dirname(disk.path): os.path.dirname(disk.there) for disk in layout.disks if disk.how == COPIED}

    def there(path: str) -> str:
        directory, name = os.path.split(path)
        return os.path.join(places.get(directory, directory), name)

    return replace(
        shape,
        grown=tuple(grown),
        added=tuple(replace(extra, path=there(extra.path)) for extra in shape.added),
        dropped=tuple(replace(disk, path=there(disk.path)) for disk in shape.dropped),
    )


def _text(tree: ET.Element) -> str:
    return ET.tostring(tree, encoding="unicode")


# ---- the second thought


class _Halves(Work):
    """The two halves of a VM that has moved."""

    action = ""

    def __init__(self, context: Context, vm: Subject) -> None:
        super().__init__(context, vm)
        data = self.data(self.action) or {}
        if self.record is None and "peer" not in data:
            raise NotFound(f"There is no move of VM {vm.name}.")
        self.is_origin = self.record.side == ORIGIN if self.record else bool(data["is_origin"])
        peer = self.record.peer if self.record else str(data["peer"])
        layout = self.record.layout if self.record else str(data["layout"])
        self.layout = Layout.load(json.loads(layout))
        self.power = self.record.power if self.record else str(data["power"])
        self.autostart = self.record.autostart if self.record else str(data["autostart"])
        self.peer = context.side(peer)
        other = self.peer.host.guest_of(self.guest.uuid)
        self.other = Subject(vm.name, other, other.look()) if other else None
        if self.other:
            left = self.other.instance.journal
            if left and (not left.ours or left.action != self.action):
                raise Busy(
                    f"VM {vm.name} is busy on {self.peer.host.name}: {left.action} since {left.since}, by process"
                    f" {left.pid} of the machine {left.node}.",
                    hint="Run that task again there.",
                    running=left.tell(),
                )
        mine: Half = (context, vm, context.here)
        its: Half = (context.at(self.peer), self.other, self.peer)
        self.origin, self.living = (mine, its) if self.is_origin else (its, mine)

    def demand_no_other(self, *actions: str) -> None:
        """See that no run that died has begun one of *actions*.

        :raises Busy: One has.
        """
        if self.data(*actions) is not None:
            raise Busy(
                f"VM {self.guest.name} is busy: {self.journal.action if self.journal else 'a task'} died.",
                hint="Run that task again to finish it.",
            )

    def marked(self, vm: Subject | None, side: str) -> bool:
        """Whether a half is still marked as *side* of the move.

        :raises Refused: It is another VM's by now, as far as it is known.
        """
        if vm is None or vm.guest is None:
            return False
        mark = resized_mark(vm.guest.recall().marks)
        if mark and Record.load(mark).side != side:
            raise Refused(
                f"VM {self.guest.name} on {vm.guest.host.name} has been resized or moved since.",
                hint="Confirm or revert that first.",
            )
        return mark is not None

    def _journal(self) -> Journal:
        """With what a later run needs, once the mark is gone."""
        if self.journal and self.journal.action == self.action:
            return self.journal
        return Journal.begin(
            self.action,
            self.context.clock.now(),
            is_origin=self.is_origin,
            peer=self.peer.uri,
            layout=json.dumps(self.layout.dump(), sort_keys=True),
            power=self.power,
            autostart=self.autostart,
        )


def _see_whole(context: Context, name: str, domain: Domain, hint: str) -> None:
    """See that a VM has its disks where it is to stay: its others go."""
    images = [disk.image for disk in domain.disks]
    missing = [image.source for image in images if image.path and not context.storage.there(image.source)]
    if missing:
        raise NotFound(
            f"VM {name} has lost disks on {context.host.name}: {', '.join(missing)}.", hint=hint, missing=missing
        )


class _Staying(_Halves):
    """Letting a VM stay where it came to."""

    action = CONFIRM

    def plan(self) -> Plan:
        """What there is to do."""
        self.demand_marked(CONFIRM)
        self.demand_no_other(RESIZE, MIGRATE, REVERT)
        context, vm, _side = self.living
        if vm is None:
            raise Refused(
                f"VM {self.guest.name} is not on {self.peer.host.name}, where it came to: what is here is all there is"
                " of it.",
                hint="Use state: reverted.",
            )
        staying = Confirming(context, vm)
        steps: list[Step] = []
        settle: list[Step] = []
        if self.marked(vm, MOVED):
            domain = staying.sized(read_domain(staying.guest.xml(inactive=True)))[0]
            _see_whole(context, self.guest.name, domain, "Use state: reverted, or bring them back first.")
            shape = staying.record.shape if staying.record else None
            if shape and any(growth.over for growth in shape.grown):
                steps.append(Step("merge", staying.merge))
            settle.append(Step("settle", staying.settle))
        if settle or resize.leftovers(vm.instance):
            settle.append(Step("remove", staying.remove))
        release = [Step("release", self.release)]
        steps += [*settle, *release] if self.is_origin else [*release, *settle]
        if self.is_origin:
            steps.append(Step("finish", partial(self._tell_of, vm)))
        self.vm.journal = self._journal()
        guest, _seen, state = vm.there()
        runs = state.power_state != "SHUTDOWN"
        return Plan(
            before={**self.as_it_is(), "host": self.context.host.name},
            after={
                **self.reached(runs),
                "power_state": state.power_state,
                "host": guest.host.name,
            },
            steps=steps,
            action=CONFIRM,
            journaled=True,
            figures={"resize": self.record.tell()} if self.record else {},
        )

    def release(self) -> dict[str, t.Any]:
        """Remove the half that was the way back."""
        context, vm, _side = self.origin
        if vm is None or vm.guest is None:  # a run that died was here already
            return {}
        if not self.marked(vm, ORIGIN):
            raise Refused(
                f"VM {vm.name} on {context.host.name} is not what is left of its move any more.",
                hint="Look which of the two is the right one.",
            )
        there = self.living[0].remote(self.living[2])
        figures = Placing(context, vm, there).let_go(self.layout)
        vm.guest.undefine(keep_nvram=not self.layout.nvram)
        if self.is_origin:
            self.vm.guest = self.vm.seen = None
        return figures

    def _tell_of(self, vm: Subject) -> None:
        """What is told of the VM is told of the half that stays."""
        self.vm.guest = vm.guest


class _Returning(_Halves):
    """Letting a VM be where it came from."""

    action = REVERT

    def plan(self) -> Plan:
        """What there is to do."""
        self.demand_no_other(CONFIRM)
        if self.record:
            self.demand_marked(REVERT)
        context, origin, _side = self.origin
        if origin is None or origin.guest is None:
            raise Refused(
                f"VM {self.guest.name} is not on {context.host.name} any more, where it came from: there is no way"
                " back.",
                hint="Use state: confirmed.",
            )
        living = self.living[1]
        here = self.marked(origin, ORIGIN)
        if here:
            domain = read_domain(origin.guest.xml(inactive=True))
            _see_whole(context, self.guest.name, domain, "Bring them back first. Nothing of the VM was changed.")
        steps: list[Step] = []
        self.ran = bool(living and living.guest and living.guest.active())
        if self.ran:
            steps.append(self._step("stop", self.stop_living))
        starts = self.power == "running"
        if here:
            steps.append(self._step("bring_back", self.bring_back))
        if steps:
            steps[0] = replace(steps[0], undo=self.take_back)
            steps[-1] = replace(steps[-1], lasting=True)
        steps.append(Step("discard", self.discard))
        if not self.is_origin:
            steps.append(Step("finish", partial(self._tell_of, origin)))
        self.vm.journal = self._journal()
        after = self.reached(starts if here else origin.guest.active())
        return Plan(
            before={**self.as_it_is(), "host": self.context.host.name},
            after={**after, "host": context.host.name},
            steps=steps,
            action=REVERT,
            journaled=True,
            figures={"resize": self.record.tell()} if self.record else {},
        )

    def stop_living(self) -> dict[str, t.Any]:
        """Take the power of the half that goes."""
        context, vm, _side = self.living
        return switch_off(context, vm) if vm else {}

    def bring_back(self) -> dict[str, t.Any]:
        """Let the half that stays be the VM again."""
        context, vm, _side = self.origin
        living = self.living[1]
        if living and living.guest and living.guest.active():
            raise Refused(f"VM {self.guest.name} runs on {living.guest.host.name}: it is not started twice.")
        if vm is None or vm.guest is None:
            raise NotFound(f"VM {self.guest.name} is gone from {context.host.name}.")
        figures: dict[str, t.Any] = {}
        if self.power == "running":
            began = context.clock.monotonic()
            Swap(vm.guest, context.clock).run(
                agent=self.ask.get("wait_for") == "agent",
                timeout=self.ask.get("wait_timeout") or 0,
                what=f"on {context.host.name} again",
            )
            figures["start_seconds"] = round(context.clock.monotonic() - began, 3)
        vm.guest.set_autostart(self.autostart == "yes")
        vm.guest.remember(vm.guest.recall().unmarked(RESIZED))
        return figures

    def discard(self) -> dict[str, t.Any]:
        """Remove the half that goes, with what was made for it."""
        origin_context, origin, _side = self.origin
        context, vm, side = self.living
        if vm is None or vm.guest is None:
            return {}
        if vm.guest.active():
            raise Refused(f"VM {vm.name} runs on {context.host.name}: it is not removed.")
        if not self.marked(vm, MOVED):
            raise Refused(f"VM {vm.name} on {context.host.name} does not wait to be reverted: it is not removed.")
        files = [disk.path for disk in vm.guest.recall().disks if disk.role == ROLE]
        # Its definition goes last, and until then has none of the disks that go.
        tree = vm.guest.xml(inactive=True, secure=True)
        devices = tree.find("devices")
        for node in devices.findall("disk") if devices is not None else []:
            t.cast("ET.Element", devices).remove(node)
        vm.guest.redefine(tree)
        placing = Placing(origin_context, origin, origin_context.remote(side)) if origin else None
        for path in files:
            context.storage.remove(path)
        if placing:
            placing.discard(self.layout)
        vm.guest.undefine(keep_nvram=not self.layout.nvram)
        if not self.is_origin:
            self.vm.guest = self.vm.seen = None
        if placing:
            placing.discard(self.layout)
        return {"removed_files": files}

    def _tell_of(self, vm: Subject) -> None:
        """What is told of the VM is told of the half that stays."""
        self.vm.guest = vm.guest

    def take_back(self) -> None:
        """After a step failed: the VM where it came to."""
        _context, vm, _side = self.origin
        if vm and vm.guest and self.record:
            vm.guest.power_off()
            if resized_mark(vm.guest.recall().marks) is None:
                mark = resized_mark(vm.instance.marks)
                if mark:
                    vm.guest.remember(vm.guest.recall().marked(mark))
        living = self.living[1]
        what = "it still waits to be confirmed"
        if self.ran and living and living.guest and not living.guest.active():
            living.guest.start()
            what = f"it was started on {living.guest.host.name} again"
        self._explain(f"VM {self.guest.name} is not reverted: {what}.")
