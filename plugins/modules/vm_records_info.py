#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module vm_records_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vm_records_info
version_added: 0.1.0
short_description: Tell what a dead KVM host has written of its VMs
description:
  - Reads the records that a host kept of its VMs on shared storage, and looks what of them is seen from the host that
    the task runs on, which is one that survives.
  - The role P(kvmops.lifecycle.host_prepare#role) lets hosts keep records.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.image_store
  - kvmops.lifecycle._options.dead_host
options:
  uri:
    description:
      - How libvirt is reached. The task must run on the KVM host itself, so a remote URI is refused.
seealso:
  - module: kvmops.lifecycle.vm_evacuate
"""

EXAMPLES = r"""
- name: What was on kvm1
  kvmops.lifecycle.vm_records_info:
    host: kvm1
  register: dead
"""

RETURN = r"""
host:
  description: The dead host.
  returned: success
  type: str
  sample: kvm1
directory:
  description: Where its records are.
  returned: success
  type: str
  sample: /srv/kvmops/shared/records/kvm1
problems:
  description: Sentences about records that cannot be read.
  returned: success
  type: list
  elements: str
vms:
  description:
    - The VMs, by name, as RV(kvmops.lifecycle.host_info#module:host.placement) tells of them, and what follows.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The VM's name.
      type: str
      returned: always
    uuid:
      description: Its UUID.
      type: str
      returned: always
    state:
      description: What it did when the record was written, V(running), V(paused), V(off) or V(suspended).
      type: str
      returned: always
    at:
      description: When the record was written.
      type: str
      returned: always
      sample: "2026-11-20T08:12:00Z"
    generation:
      description: What the last evacuation called its definition; V(0) when there was none.
      type: str
      returned: always
    disks:
      description: Its disks; C(here) tells whether one, and all that it lies upon, is seen from this host, C(anew)
        whether it would be made anew.
      type: list
      elements: dict
      returned: always
    tombstone:
      description: Where it was evacuated to (C(to)), when (C(at)), by whom (C(by)), on which C(evidence), and the
        generation that it has since (C(token)). V(null) when it was not.
      type: dict
      returned: always
    lost:
      description: What lay on the dead host alone, each with C(kind), a word of O(lose), C(path), C(target) and
        C(role), as RV(kvmops.lifecycle.vm_evacuate#module:vms[].figures.lost) tells it.
      type: list
      elements: dict
      returned: always
    findings:
      description: What stands in the way of bringing it up here, each with C(code), C(message) and C(way_out).
      type: list
      elements: dict
      returned: always
code:
  description: The kind of failure, V(invalid), V(not_found), V(refused), V(denied), V(unreachable) or V(failed).
  returned: on failure
  type: str
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, dead_host, image_store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.evacuate import tell_records
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.records import LOSSES
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_query


def main() -> None:
    """Entry point."""
    run_query(
        {
            **connection(),
            **image_store(),
            **dead_host(LOSSES),
        },
        tell_records,
    )


if __name__ == "__main__":
    main()
