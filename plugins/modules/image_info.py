#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module image_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
version_added: 0.1.0
short_description: Tell which images are in an image store
description:
  - Returns the images of a store, the oldest first. Without an option that narrows the choice, all of them.
  - Only images that are whole are told of; an image that is asked for by O(id) is told of in any status.
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.looks
  - kvmops.lifecycle._options.image_store
options:
  name:
    description:
      - Only images of this name. Several may have it; none is no error.
    type: str
  id:
    description:
      - Only the image with this identifier.
    type: str
  properties:
    description:
      - Only images with all these properties.
    type: dict
seealso:
  - module: kvmops.lifecycle.image
"""

EXAMPLES = r"""
- name: List the snapshots of a VM
  kvmops.lifecycle.image_info:
    properties:
      image_type: snapshot
      instance_uuid: 0c4e3f0a-9f3b-4c6e-8a44-1c1f1e1a7f10
  register: found

- name: Say how large they are
  ansible.builtin.debug:
    msg: "{{ found.images | map(attribute='size') | sum }} bytes"
"""

RETURN = r"""
images:
  description: The images, the oldest first.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: Its identifier.
      type: str
      returned: always
      sample: 3f0e4d27-3c0a-4d4e-9a0d-5a2f2b1f3a55
    name:
      description: Its name.
      type: str
      returned: always
      sample: debian-12
    status:
      description: V(active) when it can be read.
      type: str
      returned: always
      sample: active
    size:
      description: Size of the content, in bytes.
      type: int
      returned: always
    disk_format:
      description: V(qcow2) or V(raw); Glance may have other formats.
      type: str
      returned: always
      sample: qcow2
    digests:
      description: Hashes of the content by algorithm, as far as the store knows them.
      type: dict
      returned: always
      sample: {sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}
    properties:
      description: Its properties.
      type: dict
      returned: always
      sample: {os_type: linux}
    protected:
      description: Whether it refuses to be deleted.
      type: bool
      returned: always
    min_disk:
      description: GiB that a root disk must have at least.
      type: int
      returned: always
    min_ram:
      description: MiB that a VM must have at least.
      type: int
      returned: always
    created_at:
      description: When it was stored, in UTC.
      type: str
      returned: always
      sample: "2026-01-31T12:00:00Z"
    where:
      description: The path of its file, or its URL.
      type: str
      returned: always
    store:
      description: The directory, or the endpoint and project of the service.
      type: str
      returned: always
      sample: /var/lib/kvmops/images
code:
  description: >-
    The kind of failure: V(invalid), V(not_found), V(unreachable), V(denied), V(unsupported) or V(failed).
  returned: on failure
  type: str
"""

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import image_store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_images_query
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import StoreContext


def ask(context: StoreContext) -> list[Image]:
    """What was found."""
    name, identifier = context.params["name"], context.params["id"]
    wanted = {str(key): str(value) for key, value in (context.params["properties"] or {}).items()}
    if identifier is None:
        return context.store.find(name=name, properties=wanted)
    image = context.store.get(identifier)
    if image is None or name not in (None, image.name):
        return []
    return [image] if all(image.properties.get(key) == text for key, text in wanted.items()) else []


def main() -> None:
    """Entry point."""
    run_images_query(
        {**image_store(), "name": {"type": "str"}, "id": {"type": "str"}, "properties": {"type": "dict"}}, ask
    )


if __name__ == "__main__":
    main()
