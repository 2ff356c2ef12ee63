#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_rescue."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_rescue
version_added: 0.1.0
short_description: Boot VMs from a rescue disk to repair them, and let them be as they were
description:
  - A VM that does not boot any more is booted from a rescue disk, with its own disks attached. When they are repaired,
    the VM gets the definition and the power state back that it had.
  - The rescue disk is made while the VM runs. Then the VM is stopped, one change of its definition swaps the rescue
    disk in, and it is started. The definition from before is kept in the VM's metadata, in libvirt. If the VM does not
    start, it has its own definition again, and is started if it ran; the task fails and says so.
  - Nothing but the rescue disk can be booted from meanwhile. A VM with UEFI gets fresh variables for that time, its own
    are not touched. A TPM is left out, so that what is sealed in it stays as it is.
  - A rescued VM has the status RESCUE. M(kvmops.lifecycle.vm_power) can stop, start and reboot it, and it stays
    rescued, also when its host is rebooted. Most other modules refuse it.
  - If the module is killed, the same task finishes what it did, and the task for the opposite state takes it back.
  - VMs may be ACTIVE, SHUTOFF or ERROR, and on request (O(discard_memory)) PAUSED or SUSPENDED.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.selection
  - kvmops.lifecycle._options.override_lock
  - kvmops.lifecycle._options.image_store
attributes:
  idempotent:
    support: full
    details:
      - A VM that is rescued with another image or in another O(layout) than the task says is rescued anew. The
        definition and the power state from before the first rescue stay remembered. O(credentials) are not compared.
requirements:
  - oslo.utils 7.3 or newer with cryptography
  - qemu-img; with a remote O(uri) for deltas only
  - pycdlib, for O(credentials)
options:
  state:
    description:
      - V(rescued) boots the VM from a rescue disk. One that is rescued already, as the task says, is left as it is,
        also if it is off.
      - V(unrescued) gives the VM the definition back that it had, byte by byte. It is started if it ran before; one
        that was off, paused or suspended is off. The rescue disk is removed. If the VM does not start, it is rescued
        again. The status ERROR from before is cleared when it runs.
    type: str
    choices: [rescued, unrescued]
    required: true
  image:
    description:
      - What the rescue disk is made of. An absolute path is an image file on the machine on which the module runs.
        Anything else is the name or the identifier of an image in O(image_store).
      - It is copied once into the base cache of the VM's storage, verified on the way. The rescue disk is an overlay of
        that copy, and is as large as the image.
      - Without it, the VM is rescued with the image that it was launched from. The file systems on its own disk may
        then have the same labels and UUIDs, and which of them the rescue system mounts is not certain; so another image
        is better.
    type: str
  image_format:
    description:
      - The format of O(image) if that is a file. It is declared, never guessed.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  layout:
    description:
      - Where the rescue disk and the VM's own disks are.
      - With V(stable) all disks of the VM stay where they are, in their order, and the rescue disk is added as the
        last.
      - With V(classic) the rescue disk is in the place of the root disk, which is the second disk. All other disks, and
        drives, are left out.
      - In either layout, the rescue disk has the serial number C(kvmops-rescue), which tells it in the guest, except on
        buses that do not show it.
    type: str
    choices: [stable, classic]
    default: stable
  device:
    description:
      - What the rescue disk is in O(layout=stable). The default is the image's property C(hw_rescue_device), else
        V(disk).
    type: str
    choices: [disk, cdrom]
  bus:
    description:
      - The bus of the rescue disk in O(layout=stable). The default is the image's property C(hw_rescue_bus), else the
        bus of the root disk, or for a V(cdrom) one that has such.
    type: str
    choices: [virtio, scsi, sata, ide, usb]
  discard_memory:
    description:
      - Rescue also a VM that is paused or suspended. Its memory is lost with that, and it will be off when it is
        unrescued.
    type: bool
    default: false
  credentials:
    description:
      - Who can log in to the rescue system, if that has cloud-init. It is told by a drive of its own with the label
        C(cidata), which goes when the VM is unrescued. A drive that the VM has from its launch is left out meanwhile.
      - They are used when the VM is being rescued. Of a VM that is rescued already they are not changed.
    type: dict
    suboptions:
      user:
        description:
          - The name. Cloud-init makes the user if there is none.
        type: str
        default: root
      password:
        description:
          - The password, or a hash of it as crypt(3) makes it. Logging in with it by SSH is allowed.
        type: str
      ssh_keys:
        description:
          - Public keys, as they stand in C(authorized_keys).
        type: list
        elements: str
        default: []
  wait_for:
    description:
      - When a VM that is started counts as running. V(running) means that QEMU runs two seconds later, V(agent) that
        the guest agent has opened its channel.
      - With O(state=unrescued) and V(agent), a VM that still does not boot is rescued again.
    type: str
    choices: [running, agent]
    default: running
  wait_timeout:
    description:
      - Seconds that the agent has with O(wait_for=agent).
    type: int
    default: 120
  force:
    description:
      - Pull the plug at once, rather than to ask the guest to shut down.
    type: bool
    default: false
  shutdown_timeout:
    description:
      - Seconds until a guest that does not shut down loses its power. One that does not boot cannot hear, so a small
        value or O(force) saves time.
    type: int
    default: 60
  shutdown_retry_interval:
    description:
      - Seconds after which the guest is asked to shut down again.
    type: int
    default: 10
seealso:
  - module: kvmops.lifecycle.vm_rebuild
  - module: kvmops.lifecycle.vm_power
"""

EXAMPLES = r"""
- name: A VM does not boot; its disks are attached to a rescue system
  kvmops.lifecycle.vm_rescue:
    name: web1
    state: rescued
    image: /srv/images/rescue.qcow2
    force: true
    wait_for: agent

- name: With an image from Glance, and a key to log in with
  kvmops.lifecycle.vm_rescue:
    name: web1
    state: rescued
    image: debian-13-genericcloud
    image_store:
      type: glance
      cloud: mycloud
    credentials:
      ssh_keys:
        - "{{ lookup('ansible.builtin.file', '~/.ssh/id_ed25519.pub') }}"

- name: A live CD
  kvmops.lifecycle.vm_rescue:
    name: db1
    state: rescued
    image: /srv/images/live.iso
    image_format: raw
    device: cdrom

- name: It is repaired; if it does not come up, it is rescued again
  kvmops.lifecycle.vm_rescue:
    name: web1
    state: unrescued
    wait_for: agent
    wait_timeout: 300
"""

RETURN = r"""
vms:
  description: One entry a VM, in the order of O(name).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: The VM's name.
      type: str
      returned: always
      sample: web1
    uuid:
      description: Its UUID.
      type: str
      returned: when there is such a VM
    host:
      description: The host name of the KVM host, as libvirt tells it.
      type: str
      returned: when there is such a VM
    status:
      description: Its status in Nova's words; in check mode, the one it would have.
      type: str
      returned: when there is such a VM
      sample: RESCUE
    power_state:
      description: What the hypervisor tells, in Nova's words.
      type: str
      returned: when there is such a VM
      sample: RUNNING
    task_state:
      description: The transition under way in another process; empty when there is none.
      type: str
      returned: when there is such a VM
    changed:
      description: Whether this VM was changed.
      type: bool
      returned: always
    steps:
      description: What was done; in check mode, what would be.
      type: list
      elements: str
      returned: when there is such a VM
      sample: [stage, stop, swap, start]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        rescue:
          description: The rescue that there is or, with O(state=unrescued), was. In check mode file names are examples.
          type: dict
          returned: when there is one, or was one before the task
          contains:
            image:
              description: What the rescue disk is made of.
              type: str
              returned: always
            image_id:
              description: The identifier of that image; empty for a file.
              type: str
              returned: always
            image_store:
              description: What tells its store from others; empty for a file.
              type: str
              returned: always
            layout:
              description: See O(layout).
              type: str
              returned: always
            device:
              description: See O(device).
              type: str
              returned: always
            bus:
              description: See O(bus).
              type: str
              returned: always
            power_before:
              description: V(running), V(paused), V(suspended) or V(stopped).
              type: str
              returned: always
            disk:
              description: The file of the rescue disk.
              type: str
              returned: always
            seed:
              description: The file of the drive with O(credentials); empty without.
              type: str
              returned: always
            nvram:
              description: The file with the variables of UEFI meanwhile; empty without UEFI.
              type: str
              returned: always
            base:
              description: The file in the base cache that the rescue disk builds upon; empty in check mode.
              type: str
              returned: always
            sha256:
              description: The hash of its content; empty in check mode.
              type: str
              returned: always
        removed_files:
          description: Files of a rescue that were removed.
          type: list
          elements: str
          returned: when a rescue has ended
        start_seconds:
          description: How long it took until the VM ran.
          type: float
          returned: when it was started
        shutdown:
          description: V(guest) when the guest shut down by itself, V(forced) when the plug was pulled.
          type: str
          returned: when it was shut down
        shutdown_seconds:
          description: How long it took.
          type: float
          returned: when the guest was asked to shut down
        shutdown_requests:
          description: How often the guest was asked.
          type: int
          returned: when the guest was asked to shut down
        shutdown_refusals:
          description: Why it could not be asked.
          type: list
          elements: str
          returned: when that was so and the plug was pulled
    seconds:
      description: How long this VM took.
      type: float
      returned: when it did not fail
    failed:
      description: That this VM failed.
      type: bool
      returned: when it did
    msg:
      description: What was being done, what went wrong, and the way out.
      type: str
      returned: when it failed
    code:
      description: >-
        The kind of failure: V(invalid), V(not_found), V(ambiguous), V(refused), V(locked), V(busy), V(timed_out),
        V(unreachable), V(denied), V(no_space), V(unsupported) or V(failed).
      type: str
      returned: when it failed
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    image_store,
    override_lock,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.rescue import rescue, unrescue
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context, Subject


def decide(context: Context, vm: Subject) -> Plan:
    """What this VM needs to be rescued, or not to be."""
    return (rescue if context.params["state"] == "rescued" else unrescue)(context, vm)


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **override_lock(),
            **image_store(),
            "state": {"type": "str", "choices": ["rescued", "unrescued"], "required": True},
            "image": {"type": "str"},
            "image_format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "layout": {"type": "str", "choices": ["stable", "classic"], "default": "stable"},
            "device": {"type": "str", "choices": ["disk", "cdrom"]},
            "bus": {"type": "str", "choices": ["virtio", "scsi", "sata", "ide", "usb"]},
            "discard_memory": {"type": "bool", "default": False},
            "credentials": {
                "type": "dict",
                "options": {
                    "user": {"type": "str", "default": "root"},
                    "password": {"type": "str", "no_log": True},
                    "ssh_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
                },
                "required_one_of": [("password", "ssh_keys")],
            },
            "wait_for": {"type": "str", "choices": ["running", "agent"], "default": "running"},
            "wait_timeout": {"type": "int", "default": 120},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
        },
        decide,
    )


if __name__ == "__main__":
    main()
