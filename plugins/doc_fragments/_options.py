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
attributes:
  action_group:
    description: Use C(group/kvmops.lifecycle.all) in C(module_defaults) to set the defaults for talking to libvirt, and
      C(group/kvmops.lifecycle.images) for the image store, where the module has one.
    membership:
      - kvmops.lifecycle.all
    support: full
requirements:
  - "libvirt-python on the machine on which the module runs (package C(python3-libvirt))"
  - "libvirt 8.0 or newer on the KVM host"
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

    # image_store()
    IMAGE_STORE = r"""
attributes:
  action_group:
    description: Use C(group/kvmops.lifecycle.all) in C(module_defaults) to set the defaults for talking to libvirt, and
      C(group/kvmops.lifecycle.images) for the image store, where the module has one.
    membership:
      - kvmops.lifecycle.images
    support: full
options:
  image_store:
    description:
      - Where images are kept. Without this option it is the directory that is the default of O(image_store.path).
      - To set it once for all tasks, use C(group/kvmops.lifecycle.images) in C(module_defaults).
    type: dict
    suboptions:
      type:
        description:
          - V(directory) keeps images as files, with what is told of them beside them. It may be on shared storage.
          - V(glance) keeps them in OpenStack's image service. It needs C(openstacksdk) on the machine on which the
            module runs (package C(python3-openstacksdk)), and O(image_store.cloud) or O(image_store.auth).
        type: str
        choices: [directory, glance]
        default: directory
      path:
        description:
          - The directory on the machine on which the module runs. It is made when the first image is stored.
        type: path
        default: /var/lib/kvmops/images
      cloud:
        description:
          - The name of a cloud in a C(clouds.yaml) on the machine on which the module runs.
        type: str
      clouds_file:
        description:
          - That C(clouds.yaml), when it is in none of the places where openstacksdk looks for it.
        type: path
      auth:
        description:
          - How to log in, as the authentication plugin wants it, for example C(auth_url), C(username), C(password),
            C(project_name), C(user_domain_id) and C(project_domain_id).
          - Every value in it is kept out of what the task tells, wherever it appears. A C(clouds.yaml) on the host
            keeps the password out of the playbook as well.
        type: dict
      auth_type:
        description:
          - The authentication plugin, for example V(v3applicationcredential). The default is openstacksdk's.
        type: str
      region_name:
        description:
          - The region.
        type: str
      interface:
        description:
          - Which endpoint of the service is used.
        type: str
        choices: [public, internal, admin]
      ca_cert:
        description:
          - A file with the certificates of authorities to trust, on the machine on which the module runs.
        type: path
      validate_certs:
        description:
          - Whether the service's certificate must be valid. It must when neither this nor the C(clouds.yaml) says so.
        type: bool
"""

    # dead_host()
    DEAD_HOST = r"""
options:
  records:
    description:
      - The directory of the records, on shared storage. Without it, the one that this host has itself.
    type: path
  host:
    description:
      - The dead host, by the name that it has in the records.
    type: str
    required: true
  lose:
    description:
      - What may be lost of the VMs, because it lay on the dead host alone. Without a word of it, a VM is refused that
        would lose it.
      - V(nvram) are the variables of the firmware, V(memory) is that of a VM that was suspended, V(tpm) the state of an
        emulated TPM.
      - V(disks) are files that are not seen from here, of a VM that M(kvmops.lifecycle.vm) has launched. Its root disk
        is made anew from its image, its ephemeral disks and its swap are empty, and its config drive has no more than
        its name. The image is looked for in the base cache here, then in O(image_store) or, when it was a file, in the
        file of the same name, which must have the same content. Disks that are seen are kept.
    type: list
    elements: str
    choices: [nvram, memory, tpm, disks]
    default: []
"""

    # destination()
    DESTINATION = r"""
options:
  dest:
    description:
      - The host that the VM moves to, by its host name or address, or by a libvirt URI such as
        C(qemu+tls://kvm2.example.com/system).
      - It must mean the same host on the machine on which the module runs and on the KVM host that the VM leaves, since
        the libvirtd of that one talks to it as well.
    type: str
  dest_transport:
    description:
      - How the libvirtd of O(dest) is talked to, when that is not a URI. V(tls) needs certificates on both hosts
        (libvirt's page "TLS certificates"); V(ssh) needs that root of the one may log in on the other.
    type: str
    choices: [tls, ssh]
    default: tls
  insecure_tcp:
    description:
      - Let memory and disks go over the network in the clear, and let O(dest) be a C(qemu+tcp) URI. Without it they go
        over TLS, which needs the same certificates for QEMU (C(/etc/pki/qemu), or those of libvirt where QEMU may read
        them).
    type: bool
    default: false
  migration_network:
    description:
      - On which address the destination takes memory and disks, when that is not its host name.
      - An address or a host name; or a suffix of the destination's host name that begins with a hyphen or a dot. With
        V(-mig), kvm2.example.com is kvm2-mig.example.com; with V(.mig.example.com) it is kvm2.mig.example.com.
    type: str
    default: ""
"""

    PLACEMENT = r"""
options:
  dest_storage:
    description:
      - The directory at the destination for the disks that are copied there. A VM that was launched by
        M(kvmops.lifecycle.vm) gets its own directory in it, and its base image is looked for, and kept, in C(_base)
        there.
      - Without it, every file has the same path at the destination as here.
    type: path
  shared_storage:
    description:
      - Whether both hosts see the same storage is found out, for each directory, by a file that one of them writes and
        the other looks for. Where that cannot be found out, as with devices that are in no storage pool, this says so.
      - Names of disks (V(vdb)), files, devices (V(/dev/mapper/lun7)) or directories.
      - A disk that is named here wrongly is not copied, and the VM has another one, or none, at the destination.
    type: list
    elements: str
    default: []
"""
