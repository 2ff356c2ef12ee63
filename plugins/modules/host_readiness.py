#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_readiness."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_readiness
version_added: 0.1.0
short_description: Tell what a KVM host sees of those with which it shall exchange VMs
description:
  - Looks at the host and, from there, at others. It resolves their names, opens the TLS connection to their libvirt
    that a migration takes, looks whether packets get to the ports of a migration, and lets them compare CPUs.
  - Certificates are tried by TLS itself, in a handshake of the host with itself.
  - What all hosts tell is judged by M(kvmops.lifecycle.readiness_matrix). The role
    P(kvmops.lifecycle.host_prepare#role) does both.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options
options:
  peers:
    description:
      - The other hosts.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - By which the results tell of it; the name in the inventory, say.
        type: str
        required: true
      address:
        description:
          - The name or address by which VMs are sent to it. Without one it is O(peers[].name).
        type: str
        default: ""
  names:
    description:
      - The names and addresses under which other hosts reach this one. Its certificates have to be for all of them.
    type: list
    elements: str
    default: []
  storage:
    description:
      - Directories for disks.
    type: list
    elements: path
    default: [/var/lib/libvirt/images]
  probe:
    description:
      - What names of files in O(storage) begin with that all hosts have written there before, each with its own name at
        the end. So it is seen which hosts have the same directory. Empty when there are none.
    type: str
    default: ""
  asked_at:
    description:
      - The time of day at which the controller asks, in seconds since 1970, as C(now().timestamp()) tells it. The
        clock of the host is compared with it.
    type: float
  peer_timeout:
    description:
      - Seconds that another host has for each answer.
    type: int
    default: 5
seealso:
  - module: kvmops.lifecycle.readiness_matrix
  - module: kvmops.lifecycle.host_info
"""

EXAMPLES = r"""
- name: Look at each other
  kvmops.lifecycle.host_readiness:
    names: ["{{ inventory_hostname }}"]
    peers:
      - name: kvm2
      - name: kvm3
        address: 192.0.2.3
    asked_at: "{{ now().timestamp() }}"
  register: seen
"""

RETURN = r"""
readiness:
  description: What was seen, for M(kvmops.lifecycle.readiness_matrix).
  returned: always
  type: dict
  contains:
    name:
      description: The host name, as libvirt tells it.
      type: str
      returned: always
    uuid:
      description: The host's UUID, as libvirt tells it.
      type: str
      returned: always
    libvirt:
      description: The version of libvirt.
      type: str
      returned: always
    qemu:
      description: The version of QEMU.
      type: str
      returned: always
    time:
      description: What time it is there, in UTC.
      type: str
      returned: always
    clock_offset:
      description: By how many seconds its clock is ahead of O(asked_at), with the time that it took to ask; V(null)
        without that.
      type: float
      returned: always
    ports:
      description: The first and the last port on which VMs are taken.
      type: dict
      returned: always
    address:
      description: The host name or address to which VMs are sent in place of the host name; empty when none is set.
      type: str
      returned: always
    certificates:
      description: The certificates, as RV(kvmops.lifecycle.host_info#module:host.migration.certificates).
      type: list
      elements: dict
      returned: always
    refused:
      description: Certificates that TLS refuses, each with C(purpose), C(role) and C(problem).
      type: list
      elements: dict
      returned: always
    authorities:
      description: The SHA-256 of each certificate authority that is trusted, by purpose.
      type: dict
      returned: always
    cpu_models:
      description: The CPU models that VMs can have here; V(null) when unknown.
      type: list
      elements: str
      returned: always
    storage:
      description: For each directory of O(storage) whether it is C(there), and the hosts whose files are C(seen) in it,
        V(null) without O(probe).
      type: list
      elements: dict
      returned: always
    media:
      description: Files in the CD-ROM and floppy drives of VMs that are on, each with C(vm) and C(path).
      type: list
      elements: dict
      returned: always
    records_problem:
      description: What is the matter with the records of VMs; empty when nothing is, or when none are kept.
      type: str
      returned: always
    peers:
      description: What is seen of each other host, by its name.
      type: dict
      returned: always
      contains:
        name:
          description: The name or address that was tried.
          type: str
          returned: always
        addresses:
          description: To what it is resolved.
          type: list
          elements: str
          returned: always
        loopback:
          description: Whether one of them is the host's own.
          type: bool
          returned: always
        reached:
          description: Whether packets to libvirt's port are answered; V(null) when it was not tried, and so the next.
          type: bool
          returned: always
        migration_reached:
          description: Whether packets to the first port of a migration are answered, be it with a refusal.
          type: bool
          returned: always
        problem:
          description: Why no connection to libvirt could be opened; empty when one could.
          type: str
          returned: always
        uuid:
          description: The UUID of the host that answered; empty when none did.
          type: str
          returned: always
        own_name:
          description: What it calls itself.
          type: str
          returned: always
        own_name_resolved:
          description: Whether this host resolves that; V(null) when it is not known.
          type: bool
          returned: always
        cpu:
          description: Whether its CPU is V(identical) to this host's, a V(superset) of it, or V(incompatible);
            V(unknown) when libvirt cannot tell.
          type: str
          returned: always
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.peers import tell_pairs
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import Context


def ask(context: Context) -> dict[str, object]:
    """What was found."""
    return {"readiness": tell_pairs(context)}


def main() -> None:
    """Entry point."""
    run_query(
        {
            **connection(),
            "peers": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "address": {"type": "str", "default": ""},
                },
            },
            "names": {"type": "list", "elements": "str", "default": []},
            "storage": {"type": "list", "elements": "path", "default": ["/var/lib/libvirt/images"]},
            "probe": {"type": "str", "default": ""},
            "asked_at": {"type": "float"},
            "peer_timeout": {"type": "int", "default": 5},
        },
        ask,
    )


if __name__ == "__main__":
    main()
