#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module host_certificates."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_certificates
version_added: 0.1.0
short_description: The certificates of a KVM host, where libvirt and QEMU look for them
description:
  - One key and one certificate serve libvirt's and QEMU's connections, as server and as client. They are kept in
    O(directory) and copied to C(/etc/pki/CA), C(/etc/pki/libvirt) and C(/etc/pki/qemu).
  - The key is made on the host and does not leave it. When a certificate is needed, RV(request) is to be signed, by
    M(kvmops.lifecycle.host_authority) say, and the task run again with O(certificate).
  - Another certificate is needed when there is none, it expires soon, is not for all O(names), or is not of
    O(authority). Until it is given, the files that are there stay as they are.
  - What was in these places before the first run is kept beside it, with C(.before-kvmops) at the end of the name, and
    put back by O(state=absent).
  - libvirt is not told. C(virt-admin server-update-tls) does that.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
options:
  state:
    description:
      - Whether they are there, or what was there before.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description:
      - Where they are kept, for root only.
    type: path
    default: /etc/kvmops/tls
  authority:
    description:
      - The certificate of the authority that is trusted, as PEM. Without it, the one that is there is.
    type: str
    default: ""
  certificate:
    description:
      - The host's certificate, as PEM.
    type: str
    default: ""
  key:
    description:
      - Its key, as PEM, when it was not made here.
    type: str
    default: ""
  names:
    description:
      - Host names and addresses that the certificate has to be for. The first is the owner's name in a request.
    type: list
    elements: str
    default: []
  renew_before:
    description:
      - Days before its end another certificate is needed.
    type: int
    default: 60
  qemu_user:
    description:
      - As whom QEMU runs, who gets the keys in C(/etc/pki/qemu).
    type: str
    default: root
requirements:
  - the program C(openssl), 1.1.1 or newer
seealso:
  - module: kvmops.lifecycle.host_authority
"""

EXAMPLES = r"""
- name: Look whether a certificate is needed
  kvmops.lifecycle.host_certificates:
    authority: "{{ authority.authority }}"
    names: ["{{ inventory_hostname }}", "{{ ansible_host }}"]
    qemu_user: libvirt-qemu
  register: mine

- name: Have it signed
  kvmops.lifecycle.host_authority:
    requests:
      - name: "{{ inventory_hostname }}"
        request: "{{ mine.request }}"
        names: ["{{ inventory_hostname }}", "{{ ansible_host }}"]
  delegate_to: kvm1
  when: mine.request | length > 0
  register: signed

- name: Install it
  kvmops.lifecycle.host_certificates:
    authority: "{{ authority.authority }}"
    certificate: "{{ signed.certificates[inventory_hostname] }}"
    names: ["{{ inventory_hostname }}", "{{ ansible_host }}"]
    qemu_user: libvirt-qemu
  when: mine.request | length > 0
"""

RETURN = r"""
needed:
  description: Why another certificate is needed; empty when none is.
  returned: success
  type: str
request:
  description: What is to be signed, as PEM; empty when no certificate is needed, and in check mode when there is no
    key.
  returned: success
  type: str
fingerprint:
  description: Changes with any of authority, certificate and key; empty while a certificate is needed.
  returned: success
  type: str
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

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.pki import decide_certificates
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_machine


def main() -> None:
    """Entry point."""
    run_machine(
        {
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "directory": {"type": "path", "default": "/etc/kvmops/tls"},
            "authority": {"type": "str", "default": ""},
            "certificate": {"type": "str", "default": ""},
            "key": {"type": "str", "default": "", "no_log": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "renew_before": {"type": "int", "default": 60},
            "qemu_user": {"type": "str", "default": "root"},
        },
        decide_certificates,
        required_if=[("state", "present", ["names"])],
    )


if __name__ == "__main__":
    main()
