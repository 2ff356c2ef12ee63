# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""The options of ``_core.spec``."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation that modules extend."""

    # connection()
    DOCUMENTATION = r"""
options:
  uri:
    description:
      - How libvirt is reached, as in libvirt's page "Connection URIs".
      - With the default the task runs on the KVM host itself. With a remote URI, for example
        C(qemu+tls://kvm1.example.com/system), it may be delegated to any machine that reaches the host.
    type: str
    default: qemu:///system
  connect_timeout:
    description:
      - Seconds to wait for libvirtd to accept the connection.
    type: int
    default: 30
"""

    # selection()
    SELECTION = r"""
options:
  name:
    description:
      - Names or UUIDs of the VMs. Many are handled concurrently in one task, which is much faster than a loop.
      - If some fail, the task fails and RV(vms) tells which and why; the others are done.
    type: list
    elements: str
    required: true
    aliases:
      - names
  concurrency:
    description:
      - How many VMs are handled at the same time.
    type: int
    default: 5
"""

    # override_lock()
    OVERRIDE_LOCK = r"""
options:
  override_lock:
    description:
      - Act on VMs that are locked with M(kvmops.lifecycle.vm_lock) all the same.
    type: bool
    default: false
"""
