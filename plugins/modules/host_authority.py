#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_authority."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_authority
version_added: 0.1.0
short_description: A small certificate authority for KVM hosts
description:
  - Makes a certificate authority on the machine that the task runs on, when there is none or it expires soon, and signs
    requests of M(kvmops.lifecycle.host_certificates).
  - With O(certificate) and O(key) it signs with those, and leaves nothing on the machine.
  - Whoever has the key of the authority gets into libvirt on all hosts, which means root on them.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
attributes:
  idempotent:
    support: partial
    details:
      - What is in O(requests) is signed each time.
options:
  directory:
    description:
      - Where the authority is kept, for root only.
    type: path
    default: /etc/kvmops/ca
  certificate:
    description:
      - The certificate of another authority, as PEM.
    type: str
    default: ""
  key:
    description:
      - Its key, as PEM, without a password.
    type: str
    default: ""
  name:
    description:
      - The name of the authority that is made.
    type: str
    default: kvmops hosts
  days:
    description:
      - For how long the authority that is made is valid.
    type: int
    default: 3650
  renew_before:
    description:
      - Days before its end another certificate of the authority is made, with the same key.
    type: int
    default: 365
  requests:
    description:
      - What is to be signed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - By which the result tells of it.
        type: str
        required: true
      request:
        description:
          - The request, as PEM.
        type: str
        required: true
      names:
        description:
          - Host names and addresses that the certificate is for. The request has no say in that.
        type: list
        elements: str
        required: true
  certificate_days:
    description:
      - For how long certificates are valid that are signed.
    type: int
    default: 825
requirements:
  - the program C(openssl), 1.1.1 or newer
seealso:
  - module: kvmops.lifecycle.host_certificates
"""

EXAMPLES = r"""
- name: The hosts' authority, on the first of them
  kvmops.lifecycle.host_authority:
  run_once: true
  register: authority
"""

RETURN = r"""
authority:
  description: The certificate of the authority, as PEM; empty in check mode when it would be made.
  returned: success
  type: str
certificates:
  description: The certificates that were signed, as PEM, by O(requests[].name).
  returned: success
  type: dict
steps:
  description: What was done.
  returned: always
  type: list
  elements: str
code:
  description: The kind of failure, V(invalid), V(denied), V(unsupported) or V(failed).
  returned: on failure
  type: str
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.pki import decide_authority
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_machine


def main() -> None:
    """Entry point."""
    run_machine(
        {
            "directory": {"type": "path", "default": "/etc/kvmops/ca"},
            "certificate": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": True},
            "name": {"type": "str", "default": "kvmops hosts"},
            "days": {"type": "int", "default": 3650},
            "renew_before": {"type": "int", "default": 365},
            "requests": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "request": {"type": "str", "required": True},
                    "names": {"type": "list", "elements": "str", "required": True},
                },
            },
            "certificate_days": {"type": "int", "default": 825},
        },
        decide_authority,
        required_together=[("certificate", "key")],
    )


if __name__ == "__main__":
    main()
