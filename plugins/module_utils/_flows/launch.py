# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Launching a VM (Nova: spawn)."""

from __future__ import annotations

import getpass
import platform as machine_platform
import typing as t
import uuid
from dataclasses import replace

from .._core.clock import stamp
from .._core.errors import Invalid, NotFound, Refused, Unsupported
from .._core.plan import Plan, Step
from .._images.nocloud import NoCloud
from .._libvirt.launcher import Launcher
from .._model import image as images
from .._model import launch, names
from .._model.actions import demand
from .._model.flavor import Flavor
from .._model.instance import Instance, Launch
from .._task import Context, Subject
from .sources import Wanted, wanted

DEFAULT_STORAGE = "/var/lib/libvirt/images"


def make(context: Context, vm: Subject) -> Plan:
    """Launch a VM, or finish a launch that died."""
    ask = context.params
    name = vm.guest.name if vm.guest else names.check_name(vm.name)
    if ask["image"] is None or ask["flavor"] is None:
        raise Invalid(f"There is no VM with the name {name!r} here, and to launch one, image and flavor are needed.")
    check_words(context)
    state = vm.state
    if state:
        demand("launch", replace(state, running=""), name=name)
    flavor = Flavor(**{**ask["flavor"], "ephemeral": tuple(ask["flavor"]["ephemeral"])})
    image = wanted(context)
    traits = see_that_it_fits(image, flavor)
    disk_bus = ask["disk_bus"] or traits.disk_bus or "virtio"
    firmware = ask["firmware"] or traits.firmware or "bios"
    secure_boot = bool(traits.secure_boot if ask["secure_boot"] is None else ask["secure_boot"])
    if secure_boot and firmware != "uefi":
        raise Invalid("A VM without UEFI cannot have Secure Boot.", hint="Say firmware: uefi as well.")
    machine = ask["machine"] or traits.machine
    kind = context.host.platform(machine=machine, domain_type=ask["domain_type"] or "")
    if kind.arch == "x86_64" and not machine:
        kind = context.host.platform(machine="q35", domain_type=ask["domain_type"] or "")
    if firmware == "uefi" and not kind.uefi:
        raise Unsupported(
            f"{context.host.name} has no UEFI firmware for {kind.machine}.", hint="Install the package ovmf."
        )
    vm_uuid = vm.guest.uuid if vm.guest else free_uuid(context)
    nics = asked_networks(context, traits.nic_model) or ()
    networks = launch.place_networks(vm_uuid, nics)
    check_networks(context, vm_uuid, networks)

    cloud_init = NoCloud(**ask["cloud_init"]) if ask["cloud_init"] else None
    storage = names.check_directory(ask["storage"] or DEFAULT_STORAGE)
    directory = f"{storage}/{vm_uuid}"
    cdrom_bus = launch.config_bus(kind.machine, disk_bus)
    order = launch.Order(
        name=name,
        flavor=flavor,
        disks=launch.lay_out_disks(
            directory, flavor, disk_bus=disk_bus, cdrom_bus=cdrom_bus, config=cloud_init is not None
        ),
        networks=networks,
        console_log=f"{directory}/console.log",
        title=ask["title"] or "",
        description=ask["description"] or "",
        machine=kind.machine,
        firmware=firmware,
        secure_boot=secure_boot,
        cpu_mode=ask["cpu_mode"] or ("host-model" if kind.domain_type == "kvm" and not ask["cpu_model"] else ""),
        cpu_model=ask["cpu_model"] or "",
        disk_bus=disk_bus,
        disk_cache=ask["disk_cache"],
        config_bus=cdrom_bus,
        graphics=ask["graphics"],
        graphics_listen=ask["graphics_listen"],
    )
    now = stamp(context.clock.now())
    instance = Instance(
        flavor=flavor,
        launch=Launch(
            at=now,
            by=f"{getpass.getuser()}@{machine_platform.node()}",
            image=ask["image"],
            base="",
            base_format=image.source.format,
            base_sha256="",
            storage=storage,
            spec={"cloud_init": cloud_init.digest()} if cloud_init else {},
            **remembered(image),
        ),
        disks=order.disks,
    )
    launcher = Launcher(context.host, context.storage, order, kind, uuid=vm_uuid)
    # A dead launch that had come to its last steps has whole disks; any other begins anew.
    journal = vm.instance.journal
    whole = journal is not None and journal.step in ("set_autostart", "start", "finish")

    def define() -> None:
        if vm.guest:  # what an earlier attempt left
            vm.guest.power_off()
            launcher.clear()
        vm.guest = launcher.define(replace(instance, journal=vm.journal))

    def make_disks() -> dict[str, str]:
        config = cloud_init.image(instance_id=vm_uuid, hostname=name) if cloud_init else None
        return launcher.make_disks(vm.made(), image.source, config)

    def start() -> None:
        if not vm.made().active():
            vm.made().start()

    def take_back() -> None:
        if vm.guest:
            vm.guest.power_off()
            launcher.clear()
            vm.guest.undefine()
            vm.guest = None

    steps = []
    if not whole:
        steps = [Step("define", define, undo=take_back), Step("make_disks", make_disks)]
    if ask["autostart"]:
        steps.append(Step("set_autostart", lambda: vm.made().set_autostart(True)))
    steps.append(Step("start", start) if ask["start"] else Step("finish", lambda: None))
    reached = {"status": "ACTIVE", "power_state": "RUNNING"}
    if not ask["start"]:
        reached = {"status": "SHUTOFF", "power_state": "SHUTDOWN"}
    after = {
        **reached,
        "image": ask["image"],
        "flavor": flavor.tell(),
        "networks": [nic.tell() for nic in nics],
        "firmware": order.firmware,
        "machine": order.machine,
        "domain_type": kind.domain_type,
    }
    return Plan(
        before={"status": state.status if state else "ABSENT"},
        after=after,
        steps=steps,
        action="launch",
        journaled=True,
    )


def see_that_it_fits(image: Wanted, flavor: Flavor) -> images.Traits:
    """See that VMs of *flavor* can be made of *image*; what it wants of their hardware."""
    if image.image:
        images.check_fits(
            flavor,
            image=image.image.name,
            size=image.image.size,
            min_disk=image.image.min_disk,
            min_ram=image.image.min_ram,
        )
    if image.virtual_size is not None:
        launch.root_size(flavor, image.virtual_size)
    return images.read_traits(image.image.properties, image=image.image.name) if image.image else images.Traits()


def remembered(image: Wanted) -> dict[str, t.Any]:
    """What a launch remembers of an image in a store."""
    if image.image is None:
        return {}
    properties = images.kept(image.image.properties)
    return {"image_id": image.image.id, "store": image.kind, "place": image.place, "properties": properties}


def check_words(context: Context) -> None:
    """See that libvirt can keep what the task says for people."""
    for option, lines in (("title", False), ("description", True)):
        text = context.params[option]
        if text is not None:
            names.check_text(text, what=option, lines=lines)


def free_uuid(context: Context) -> str:
    """The UUID for a new VM."""
    wanted = context.params["uuid"]
    if not wanted:
        return str(uuid.uuid4())
    wanted = names.check_uuid(wanted)
    other = context.host.guest_of(wanted)
    if other:
        raise Refused(f"The UUID {wanted} is that of VM {other.name}.", hint="Give another UUID, or none.")
    return wanted


def asked_networks(context: Context, model: str = "") -> tuple[names.Nic, ...] | None:
    """The network cards that the task wants, or ``None`` when it does not say.

    :param model: Of those for which the task gives none; ``virtio`` when it is empty.
    """
    asked = context.params["networks"]
    if asked is None:
        return None
    return tuple(
        names.Nic(
            kind="bridge" if nic["bridge"] else "network",
            source=nic["bridge"] or nic["network"],
            mac=names.check_mac(nic["mac"]) if nic["mac"] else "",
            model=nic["model"] or model or "virtio",
        )
        for nic in asked
    )


def check_networks(context: Context, vm_uuid: str, networks: tuple[names.Nic, ...]) -> None:
    """See that the networks are there and active, and that nobody else has the addresses."""
    for nic in networks:
        if nic.kind != "network":
            continue
        active = context.host.network_active(nic.source)
        if active is None:
            raise NotFound(f"There is no libvirt network {nic.source!r} on {context.host.name}.")
        if not active:
            raise Refused(
                f"The libvirt network {nic.source!r} on {context.host.name} is not active.",
                hint=f"Start it: virsh net-start {nic.source}",
            )
    if any(nic["mac"] for nic in context.params["networks"] or ()):
        owners = context.host.macs()
        for nic in networks:
            if owners.get(nic.mac, vm_uuid) != vm_uuid:
                raise Refused(f"The MAC address {nic.mac} is that of the VM with UUID {owners[nic.mac]}.")
