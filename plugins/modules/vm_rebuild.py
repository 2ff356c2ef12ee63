#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_rebuild."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_rebuild
version_added: 0.1.0
short_description: Give VMs a new root disk from an image, or their disks from a snapshot
description:
  - Makes the root disk of a VM anew from an image, or restores its disks from a snapshot of
    M(kvmops.lifecycle.vm_snapshot). UUID, definition, flavor, network cards with their addresses, NVRAM and all other
    disks stay. What the guest wrote to the disks that are replaced is lost.
  - The new disks are made and verified while the VM runs. Then it is stopped, one change of its definition swaps them
    in, and it is started. Only when it runs (O(wait_for)), the old disks are removed. If it does not, it gets its old
    disks back and is started with them; the task fails and says so.
  - A VM that was off stays off. That it could be started is proven by starting it with its CPUs stopped.
  - If the module is killed, the VM has the status REBUILD, and the same task finishes it.
  - "VMs may be ACTIVE, SHUTOFF or ERROR; a rebuild that succeeds clears the status ERROR. Disks must be files: the ones
    on block devices and network storage are refused, and so are VMs with snapshots of libvirt's own."
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
    support: partial
    details:
      - Nothing is done when the disks are made of these images already, whatever was written to them since; with
        O(reinstall=true) the VM is rebuilt each time.
requirements:
  - oslo.utils 7.3 or newer with cryptography
  - qemu-img; with a remote O(uri) for deltas only
options:
  image:
    description:
      - What the disks are made of. An absolute path is an image file on the machine on which the module runs. Anything
        else is the name of a snapshot of this VM, or the name or the identifier of an image, in O(image_store).
      - It is copied once into the base cache of the VM's storage, verified on the way. The new disk is an overlay of
        that copy. Deltas and increments are composed with the images that they lie upon.
      - It is refused if it is not what O(image_format) or the store says, or refers to another file, or if the VM is
        too small for it.
    type: str
    required: true
  image_format:
    description:
      - The format of O(image) if that is a file. It is declared, never guessed.
    type: str
    choices: [qcow2, raw]
    default: qcow2
  disks:
    description:
      - Which disks. V(root) is the first one, V(all) are those that a snapshot of all disks has; others are named by
        target, as V(vdb).
      - For disks other than the root disk, O(image) must be a complete snapshot that has an image of each of them. Each
        is restored from its own.
    type: list
    elements: str
    default: [root]
  reinstall:
    description:
      - Rebuild also when the disks are made of these images already. That throws away what was written to them, each
        time that the task runs.
      - Without it, a VM counts as rebuilt when the first base image below each of the disks is a copy of the image it
        should be of. A newer image of the same name in a store, or other content in an image file, is another image.
    type: bool
    default: false
  reset_nvram:
    description:
      - Give a VM with UEFI new variables as well, such as boot entries. Otherwise they stay.
    type: bool
    default: false
  remove_disks:
    description:
      - Old disks to remove in the end beside those that a launch or a rebuild made, as device names (V(vda)) or paths.
        Others are kept and told in RV(vms[].figures.kept_disks), and so are those that another VM uses.
    type: list
    elements: str
    default: []
  wait_for:
    description:
      - When a VM that is started counts as running. V(running) means that QEMU runs two seconds later, V(agent) that
        the guest agent has opened its channel. V(agent) finds an image that does not boot; the VM is then given its old
        disks back.
      - Of no meaning for a VM that was off.
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
      - Seconds until a guest that does not shut down loses its power.
    type: int
    default: 60
  shutdown_retry_interval:
    description:
      - Seconds after which the guest is asked to shut down again.
    type: int
    default: 10
seealso:
  - module: kvmops.lifecycle.vm
  - module: kvmops.lifecycle.vm_snapshot
"""

EXAMPLES = r"""
- name: A newer system for two web servers; the VM comes back as it was if that does not boot
  kvmops.lifecycle.vm_rebuild:
    name: [web1, web2]
    image: /srv/images/debian-13.qcow2
    wait_for: agent
    wait_timeout: 300

- name: From an image in Glance
  kvmops.lifecycle.vm_rebuild:
    name: web1
    image: debian-13-genericcloud
    image_store:
      type: glance
      cloud: mycloud

- name: All disks as they were before the update
  kvmops.lifecycle.vm_rebuild:
    name: db1
    image: db1-before-update
    disks: all

- name: A VM of another tool, whose old disk is not needed any more
  kvmops.lifecycle.vm_rebuild:
    name: legacy
    image: /srv/images/debian-13.qcow2
    remove_disks: [vda]

- name: The same image again, as it came
  kvmops.lifecycle.vm_rebuild:
    name: lab1
    image: /srv/images/debian-13.qcow2
    reinstall: true
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
      sample: ACTIVE
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
      sample: [stage, stop, swap, start, remove_old]
    figures:
      description: Details of what was done.
      type: dict
      returned: when there is such a VM
      contains:
        disks:
          description: >-
            The disks that are replaced, by target, each with the files C(old) and C(new). In check mode the names of
            new files are examples.
          type: dict
          returned: when there was something to do
        bases:
          description: The files in the base cache that the new disks build upon, by target.
          type: dict
          returned: when new disks were made
        left:
          description: Disks that stay as they are, each with the reason.
          type: dict
          returned: when no run that died was finished
        kept_disks:
          description: Files of old disks that are kept, each with the reason.
          type: dict
          returned: when there was something to do
        removed_files:
          description: Files that were removed.
          type: list
          elements: str
          returned: when it was rebuilt
        start_seconds:
          description: How long it took until the VM ran.
          type: float
          returned: when it was started
        put_back:
          description: Whether the disks of another rebuild, which died, were taken back first.
          type: bool
          returned: when one had died
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import (
    connection,
    image_store,
    override_lock,
    selection,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.rebuild import remake
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_module


def main() -> None:
    """Entry point."""
    run_module(
        {
            **connection(),
            **selection(),
            **override_lock(),
            **image_store(),
            "image": {"type": "str", "required": True},
            "image_format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
            "disks": {"type": "list", "elements": "str", "default": ["root"]},
            "reinstall": {"type": "bool", "default": False},
            "reset_nvram": {"type": "bool", "default": False},
            "remove_disks": {"type": "list", "elements": "str", "default": []},
            "wait_for": {"type": "str", "choices": ["running", "agent"], "default": "running"},
            "wait_timeout": {"type": "int", "default": 120},
            "force": {"type": "bool", "default": False},
            "shutdown_timeout": {"type": "int", "default": 60},
            "shutdown_retry_interval": {"type": "int", "default": 10},
        },
        remake,
    )


if __name__ == "__main__":
    main()
