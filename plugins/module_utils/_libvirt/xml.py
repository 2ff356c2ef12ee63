# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""A new domain's XML, built as a tree (libvirt's page "Domain XML format")."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from .._model import instance as memory
from .._model.instance import Instance
from .._model.launch import Order
from .._model.names import Nic


def build_domain(order: Order, *, uuid: str, domain_type: str, arch: str, instance: Instance) -> str:
    """The XML for a new VM.

    :param order: What the user wants, with everything decided.
    :param domain_type: ``kvm`` or ``qemu``.
    :param arch: Of the host.
    :param instance: Goes into the metadata.
    """
    domain = ET.Element("domain", {"type": domain_type})
    _text(domain, "name", order.name)
    _text(domain, "uuid", uuid)
    if order.title:
        _text(domain, "title", order.title)
    if order.description:
        _text(domain, "description", order.description)
    ET.register_namespace(memory.PREFIX, memory.NAMESPACE)
    ET.SubElement(domain, "metadata").append(_qualified(ET.fromstring(memory.dump(instance))))
    _text(domain, "memory", str(order.flavor.memory), unit="MiB")
    _text(domain, "vcpu", str(order.flavor.vcpus))

    system = ET.SubElement(domain, "os")
    if order.firmware == "uefi":
        system.set("firmware", "efi")
        enabled = "yes" if order.secure_boot else "no"
        features = ET.SubElement(system, "firmware")
        for feature in ("secure-boot", "enrolled-keys"):
            ET.SubElement(features, "feature", {"enabled": enabled, "name": feature})
    _text(system, "type", "hvm", arch=arch, **({"machine": order.machine} if order.machine else {}))
    ET.SubElement(system, "boot", {"dev": "hd"})

    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if order.secure_boot:
        ET.SubElement(features, "smm", {"state": "on"})
    if order.cpu_model:
        cpu = ET.SubElement(domain, "cpu", {"mode": "custom", "match": "exact"})
        _text(cpu, "model", order.cpu_model)
    elif order.cpu_mode:
        ET.SubElement(domain, "cpu", {"mode": order.cpu_mode})
    _clock(domain, domain_type)
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    _devices(domain, order)
    return ET.tostring(domain, encoding="unicode")


def nic_xml(nic: Nic) -> str:
    """An ``<interface>`` alone, to attach."""
    parent = ET.Element("devices")
    _nic(parent, nic)
    return ET.tostring(parent[0], encoding="unicode")


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    node = ET.SubElement(parent, tag, attributes)
    node.text = text
    return node


def _qualified(root: ET.Element) -> ET.Element:
    for node in root.iter():
        node.tag = f"{{{memory.NAMESPACE}}}{node.tag}"
    return root


def _clock(domain: ET.Element, domain_type: str) -> None:
    clock = ET.SubElement(domain, "clock", {"offset": "utc"})
    if domain_type == "kvm":  # as libosinfo has it for Linux guests
        ET.SubElement(clock, "timer", {"name": "rtc", "tickpolicy": "catchup"})
        ET.SubElement(clock, "timer", {"name": "pit", "tickpolicy": "delay"})
        ET.SubElement(clock, "timer", {"name": "hpet", "present": "no"})


def _devices(domain: ET.Element, order: Order) -> None:
    devices = ET.SubElement(domain, "devices")
    for disk in order.disks:
        device = "cdrom" if disk.role == "config" else "disk"
        node = ET.SubElement(devices, "disk", {"type": "file", "device": device})
        if device == "cdrom":
            ET.SubElement(node, "driver", {"name": "qemu", "type": "raw"})
        else:
            ET.SubElement(
                node, "driver", {"name": "qemu", "type": "qcow2", "cache": order.disk_cache, "discard": "unmap"}
            )
        ET.SubElement(node, "source", {"file": disk.path})
        bus = order.config_bus if device == "cdrom" else order.disk_bus
        ET.SubElement(node, "target", {"dev": disk.target, "bus": bus})
        if device == "cdrom":
            ET.SubElement(node, "readonly")
    if "scsi" in (order.disk_bus, order.config_bus if any(disk.role == "config" for disk in order.disks) else ""):
        ET.SubElement(devices, "controller", {"type": "scsi", "model": "virtio-scsi"})
    for nic in order.networks:
        _nic(devices, nic)
    console = ET.SubElement(devices, "serial", {"type": "pty"})
    ET.SubElement(console, "log", {"file": order.console_log, "append": "on"})
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
    if order.graphics != "none":
        graphics = ET.SubElement(devices, "graphics", {"type": order.graphics, "autoport": "yes"})
        ET.SubElement(graphics, "listen", {"type": "address", "address": order.graphics_listen})
        ET.SubElement(
            ET.SubElement(devices, "video"), "model", {"type": "virtio" if order.firmware == "uefi" else "vga"}
        )
    balloon = ET.SubElement(devices, "memballoon", {"model": "virtio"})
    ET.SubElement(balloon, "stats", {"period": "10"})
    rng = ET.SubElement(devices, "rng", {"model": "virtio"})
    _text(rng, "backend", "/dev/urandom", model="random")


def _nic(devices: ET.Element, nic: Nic) -> None:
    node = ET.SubElement(devices, "interface", {"type": nic.kind})
    ET.SubElement(node, "mac", {"address": nic.mac})
    ET.SubElement(node, "source", {nic.kind: nic.source})
    ET.SubElement(node, "model", {"type": nic.model})


def interface_node(domain: ET.Element, mac: str) -> ET.Element | None:
    """The ``<interface>`` of *mac* in a domain's XML."""
    for node in domain.iterfind("devices/interface"):
        address = node.find("mac")
        if address is not None and address.get("address", "").lower() == mac.lower():
            return node
    return None


def disk_nodes(domain: ET.Element) -> dict[str, ET.Element]:
    """The ``<disk>`` elements in a domain's XML, by target."""
    return {
        target.get("dev", ""): node
        for node in domain.iterfind("devices/disk")
        if (target := node.find("target")) is not None
    }


def put_instance(domain: ET.Element, instance: Instance) -> None:
    """Make *instance* what the metadata in a domain's XML remember."""
    ET.register_namespace(memory.PREFIX, memory.NAMESPACE)
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(domain, "metadata")
    for old in metadata.findall(f"{{{memory.NAMESPACE}}}instance"):
        metadata.remove(old)
    metadata.append(_qualified(ET.fromstring(memory.dump(instance))))
