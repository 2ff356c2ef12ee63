#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_probe."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_probe
version_added: 0.1.0
short_description: Tell whether a machine answers in any way
description:
  - Sends echo requests (ping) to a machine and connects to some of its TCP ports, all at once, from the machine that
    the task runs on. An answer of any kind counts, a refused connection too, as a machine that refuses one lives.
  - Silence does not prove that a machine is dead. Between it and whoever asks there may be something that is.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
options:
  address:
    description:
      - Names and addresses of the machine. One whose address is not known is an error, for its silence would prove
        nothing.
    type: list
    elements: str
    required: true
  ports:
    description:
      - TCP ports that are tried. The default are those of ssh and of libvirt.
    type: list
    elements: int
    default: [22, 16509, 16514]
  timeout:
    description:
      - Seconds that the machine has to answer.
    type: float
    default: 3.0
seealso:
  - module: kvmops.lifecycle.vm_evacuate
"""

EXAMPLES = r"""
- name: Does kvm1 answer whom of the others
  kvmops.lifecycle.host_probe:
    address: [kvm1, 192.0.2.1]
  register: probe
  failed_when: probe.answers
"""

RETURN = r"""
answers:
  description: Whether it answered in any way.
  returned: success
  type: bool
answered:
  description: How it did, those of RV(tried) that had an answer.
  returned: success
  type: list
  elements: dict
  sample: [{address: 192.0.2.1, by: tcp 22, how: refused}]
tried:
  description: All that was tried.
  returned: success
  type: list
  elements: dict
  contains:
    address:
      description: The address.
      type: str
      returned: always
    by:
      description: V(ping), or V(tcp) and the port.
      type: str
      returned: always
    how:
      description: V(answered), V(accepted), V(refused), V(reset) or V(silent); V(not tried) for pings that this user
        must not send.
      type: str
      returned: always
code:
  description: The kind of failure, V(invalid) or V(not_found).
  returned: on failure
  type: str
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.probing import probe
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_pure


def main() -> None:
    """Entry point."""
    run_pure(
        {
            "address": {"type": "list", "elements": "str", "required": True},
            "ports": {"type": "list", "elements": "int", "default": [22, 16509, 16514]},
            "timeout": {"type": "float", "default": 3.0},
        },
        probe,
    )


if __name__ == "__main__":
    main()
