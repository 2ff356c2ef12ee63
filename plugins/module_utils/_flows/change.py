# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Changing a VM that is there into what is asked."""

from __future__ import annotations

from functools import partial

from .._core.errors import Busy, Refused
from .._core.plan import Plan, Step
from .._images.nocloud import NoCloud
from .._libvirt.launcher import Adjuster
from .._model import launch, names
from .._model.actions import demand
from .._model.domain import read_domain
from .._model.flavor import Flavor
from .._model.instance import Launch
from .._task import Context, Subject
from .launch import asked_networks, check_words
from .sources import path_of, wanted


def change(context: Context, vm: Subject) -> Plan:
    """Make a VM that is there what is asked, or say why it cannot be."""
    guest, seen, state = vm.there()
    ask = context.params
    if ask["uuid"] and names.check_uuid(ask["uuid"]) != guest.uuid:
        raise Refused(
            f"VM {guest.name} has the UUID {guest.uuid}, not {ask['uuid']}.",
            hint="Remove it first, or give the new VM another name.",
        )
    check_words(context)
    if state.running:  # what a removal that died has left is not present
        raise Busy(
            f"VM {guest.name} is busy: {state.running}.",
            hint="Run that task again to finish it, or clear it with vm_status.",
        )
    if state.marked:
        demand("metadata", state, name=guest.name)
    domain = read_domain(guest.xml(inactive=True))
    known = seen.instance.launch
    flavor = ask["flavor"]
    asked = launch.Asked(
        image=ask["image"],
        image_id=_image_id(context, known),
        flavor=Flavor(**{**flavor, "ephemeral": tuple(flavor["ephemeral"])}) if flavor else None,
        networks=asked_networks(context, known.properties.get("hw_vif_model", "") if known else ""),
        title=ask["title"],
        description=ask["description"],
        autostart=ask["autostart"],
        firmware=ask["firmware"],
        machine=ask["machine"],
        domain_type=ask["domain_type"],
        storage=ask["storage"],
        cloud_init=NoCloud(**ask["cloud_init"]).digest() if ask["cloud_init"] else None,
    )
    there = launch.There(
        domain=domain,
        instance=seen.instance,
        autostart=guest.autostart(),
        root_size=guest.disk_size(domain.disks[0].target) if domain.disks and flavor and flavor["root"] else None,
        off=state.condition == "stopped",
    )
    differences = launch.compare(asked, there)
    told = [{"option": each.option, "before": each.before, "after": each.after} for each in differences]
    before: dict[str, object] = {"status": state.status, "power_state": state.power_state}
    if not differences:
        return Plan(before=before, after=before, figures={"differences": []})
    impossible = [each for each in differences if not each.operation]
    if impossible:
        reasons = "; ".join(
            f"{each.option} ({_words(each.before)} → {_words(each.after)}): {each.why}" for each in impossible
        )
        raise Refused(f"VM {guest.name} cannot become what is asked. {reasons}.", differences=told)
    adjuster = Adjuster(guest, context.storage, context.clock)
    return Plan(
        before={**before, **{f"{each['option']} {number}": each["before"] for number, each in enumerate(told)}},
        after={**before, **{f"{each['option']} {number}": each["after"] for number, each in enumerate(told)}},
        steps=[Step(each.operation, partial(adjuster.apply, each.operation, each.argument)) for each in differences],
        action="metadata",
        figures={"differences": told},
    )


def _image_id(context: Context, known: Launch | None) -> str | None:
    """The identifier of the image that the task names, where a VM was launched from a store and the task's word is not
    the one of the launch."""
    named = context.params["image"]
    if not named or known is None or not known.image_id or named in (known.image, known.image_id) or path_of(named):
        return None
    image = wanted(context).image
    return image.id if image else None


def _words(value: object) -> str:
    """*value* as a person writes it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    return "none" if value is None else str(value)
