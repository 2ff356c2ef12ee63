# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Making the disks of a launch anew that were lost with their host: the root disk from its image, the others empty."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from .._core.errors import Invalid, LifecycleError, NotFound, Unsupported
from .._images.base import ACTIVE
from .._images.nocloud import NoCloud
from .._libvirt.bases import BASES, Source
from .._libvirt.guest import Guest
from .._libvirt.launcher import remove_files
from .._model import records
from .._model.instance import Instance, Launch
from .._model.launch import root_size
from .._model.records import CONFIG, Loss, Record
from .._task import Context
from .sources import from_base, from_file, from_image, path_of


def image_of(context: Context, record: Record) -> Source:
    """The image that a VM was launched from: from the base cache here, from the store that the task names, or the file.

    :raises NotFound: It is in none of them.
    :raises Invalid: A file of that name has another content by now.
    """
    launch = record.instance.launch
    if launch is None:
        raise NotFound(f"VM {record.name} was not launched from an image.")
    return context.once(f"image {launch.image_id} {launch.image} {launch.base}", lambda: _find(context, launch))


def _find(context: Context, launch: Launch) -> Source:
    # What has the same name in the cache has the same content.
    base = context.storage.base_facts(os.path.join(launch.storage, BASES, os.path.basename(launch.base)))
    if base and not base.parent and base.sha256 == launch.base_sha256:
        return from_base(base)
    if launch.image_id:
        image = context.store.get(launch.image_id)
        if image is None or image.status != ACTIVE:
            raise NotFound(f"There is no image {launch.image_id} in {context.store.place}.")
        return from_image(context.store, image).source
    path = path_of(launch.image)
    if not path or not context.storage.there(path):
        raise NotFound(f"There is no file {launch.image} on {context.host.name}.")
    if launch.base_sha256 and context.storage.digest(path) != launch.base_sha256:
        raise Invalid(f"The file {path} on {context.host.name} has another content than when the VM was launched.")
    return from_file(path, launch.base_format)[0]


def why_imageless(context: Context, record: Record) -> str:
    """Why the image cannot be had here; empty when it can."""
    try:
        image_of(context, record)
    except LifecycleError as exc:
        return str(exc)
    return ""


class Disks:
    """The disks of one VM that are made anew.

    :param lost: What was on the dead host alone.
    """

    def __init__(self, context: Context, record: Record, lost: t.Iterable[Loss]) -> None:
        self.context = context
        self.record = record
        mine = [loss for loss in lost if loss.role]
        self.disks = [loss for loss in mine if loss.role != CONFIG]
        self.configs = [loss.path for loss in mine if loss.role == CONFIG]

    def config(self) -> dict[str, bytes]:
        """The config drive by its path, with name and instance of the VM. What the user once gave to cloud-init is not
        kept. Where nothing can write one it is left out."""
        try:
            content = NoCloud().image(instance_id=self.record.uuid, hostname=self.record.name) if self.configs else b""
        except Unsupported:
            return {}
        return dict.fromkeys(self.configs, content)

    def make(self, guest: Guest) -> dict[str, t.Any]:
        """Make them. What a run that was killed has made is kept.

        :raises Invalid: The image is not what it was, or the flavor's root disk is too small for it.
        """
        instance, storage = guest.recall(), self.context.storage
        sizes = records.sizes_anew(instance)
        figures = {}
        for loss in self.disks:
            if loss.role == "root":
                figures["base"] = self._make_root(guest, instance, loss)
            else:
                storage.make_disk(loss.path, sizes[loss.target])
        for path, content in self.config().items():
            storage.write(path, content)
        return figures

    def _make_root(self, guest: Guest, instance: Instance, loss: Loss) -> str:
        launch, flavor, storage = instance.launch, instance.flavor, self.context.storage
        if launch is None or flavor is None:
            raise NotFound(f"The metadata of VM {guest.name} are gone.", hint="Run the task again.")
        base = storage.fetch_base(image_of(self.context, self.record), launch.storage)
        if launch.base_sha256 not in ("", base.sha256):
            raise Invalid(
                f"Image {launch.image} has the sha256 {base.sha256}, and VM {guest.name} was launched from one with"
                f" {launch.base_sha256}.",
                hint="Put the image there that it was launched from.",
            )
        launch = replace(launch, base=base.path, base_format=base.format, base_sha256=base.sha256)
        guest.remember(replace(instance, launch=launch))
        storage.make_overlay(loss.path, base, root_size(flavor, base.virtual_size))
        return base.path

    def remove(self) -> None:
        """Remove them again, with the VM's own directory if nothing else is in it."""
        paths = [*(loss.path for loss in self.disks), *self.configs]
        own = [os.path.dirname(path) for path in paths if os.path.basename(os.path.dirname(path)) == self.record.uuid]
        remove_files(self.context.storage, paths, own[0] if own else "")
