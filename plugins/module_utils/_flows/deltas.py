# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What a disk consists of, and which image of a store is a layer of it, so that only what lies above need be stored."""

from __future__ import annotations

import os
import typing as t

from .._core.errors import Unsupported
from .._core.files import working
from .._images.base import ACTIVE, Image
from .._images.rest import Layer
from .._libvirt.chains import Chains
from .._model import snapshot
from .._model.domain import Disk
from .._model.instance import Launch
from .._task import Context
from .copying import Upon


def layers_of(context: Context, disk: Disk, *, name: str) -> tuple[Layer, ...]:
    """The layers of a disk of VM *name*, from the top down; none for a disk that is on no storage of the host.

    :raises Unsupported: What it consists of cannot be told.
    """
    chains = Chains(context.host)
    images = tuple(chains.resolved(image) for image in (disk.image, *disk.backing))
    if images[0].kind == "network":
        return ()
    if not disk.chain_known:
        found = chains.below(images[0])
        if not found.known:
            lowest = found.layers[-1].image
            raise Unsupported(
                f"VM {name}: what disk {disk.target} consists of is not known beyond {lowest.source}.",
                hint="See that it can be read, and that every image declares the format of the one below it.",
            )
        images = tuple(layer.image for layer in found.layers)
    if any(image.kind not in ("file", "block") for image in images):
        return ()
    return tuple(Layer(image.source, image.format, image.kind) for image in images)


def parent_of(context: Context, layers: t.Sequence[Layer]) -> Upon | None:
    """The image in the store that is a layer of the disk: the first one from the top; ``None`` when there is none."""
    store, storage = context.store, context.storage
    for depth, layer in enumerate(layers[1:], 1):
        base = storage.base_facts(layer.path)
        if base is None:
            continue
        by_id = store.get(base.images.get(store.place, "")) if store.place in base.images else None
        images = [by_id] if by_id and by_id.status == ACTIVE else all_images(context)
        for image in images:
            if image.same_content(base.size, base.digests):
                return Upon(image.id, base.sha256, base.virtual_size, depth)
    bottom = layers[-1]
    if len(layers) > 1 and storage.base_facts(bottom.path) is None and bottom.kind == "file":
        with working(f"look at {bottom.path}"):
            size = os.path.getsize(bottom.path)
        digests = {"sha256": storage.digest(bottom.path)}
        for image in all_images(context):
            if image.same_content(size, digests):
                return Upon(image.id, digests["sha256"], 0, len(layers) - 1)
    return None


def all_images(context: Context) -> list[Image]:
    """All images of the store, as they were when a task first asked."""
    return context.once("images", context.store.find)


def properties_of(launch: Launch | None, uuid: str, kind: str) -> dict[str, str]:
    """What is told with an image of a VM, as Nova does.

    :param kind: The ``image_type``.
    """
    return {
        **(snapshot.inherited(launch.properties) if launch else {}),
        "instance_uuid": uuid,
        "image_type": kind,
        "image_location": "snapshot",
        "image_state": "available",
        **({"base_image_ref": launch.image_id} if launch and launch.image_id else {}),
    }
