# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Where the image of a VM comes from: a file of the machine on which the module runs, or an image store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import typing as t
from dataclasses import dataclass
from functools import partial

from .._core.errors import Invalid, NotFound, Unsupported
from .._images.base import ACTIVE, Image, Store, resolve
from .._images.formats import inspect_image
from .._libvirt.bases import Base, Source
from .._model import snapshot
from .._model.chain import LONGEST
from .._task import Context

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """The image that a task names.

    :param source: What the base is made of.
    :param virtual_size: Of the disk in it, in bytes; ``None`` when only the content tells.
    :param image: What the store tells of it; ``None`` for a file.
    :param kind: Of the store, and ``place`` what tells it from others; empty for a file.
    """

    source: Source
    virtual_size: int | None
    image: Image | None = None
    kind: str = ""
    place: str = ""


def wanted(context: Context) -> Wanted:
    """The image that the task wants VMs of. It is looked for once a task."""
    return context.once("image", lambda: _find(context))


def _find(context: Context) -> Wanted:
    path = path_of(context.params["image"])
    if path:
        return Wanted(*from_file(path, context.params["image_format"]))
    return from_image(context.store, resolve(context.store, context.params["image"]))


def from_image(store: Store, image: Image) -> Wanted:
    """An image of a store, as if a task had named it. For the errors see :func:`from_store`."""
    told = image.properties.get(snapshot.VIRTUAL_SIZE, "")
    virtual_size = int(told) if told.isdecimal() else None
    return Wanted(from_store(store, image), virtual_size, image, store.kind, store.place)


def path_of(image: str) -> str:
    """The file that the option ``image`` means; empty when it is the name or identifier of an image in a store."""
    path = os.path.expanduser(os.path.expandvars(image))
    return path if os.path.isabs(path) else ""


def from_file(path: str, declared: str) -> tuple[Source, int]:
    """The file *path*, and the virtual size of what is in it, in bytes.

    :param declared: Its format.
    :raises Invalid: It is something else.
    """
    facts = inspect_image(path, declared)
    source = Source(
        label=path,
        key=_key(os.path.realpath(path)),
        format=facts.format,
        size=facts.size,
        read=partial(_read_file, path),
        inspect=lambda copy: inspect_image(copy, declared, path).virtual_size,
        path=path,
    )
    return source, facts.virtual_size


def from_base(base: Base) -> Source:
    """A whole base image of this machine's cache: it is found there again, and not read."""
    return Source(
        label=base.path,
        key=_key(base.path),
        format=base.format,
        size=base.size,
        read=partial(_read_file, base.path),
        inspect=lambda copy: inspect_image(copy, base.format, base.path).virtual_size,
        digests={"sha256": base.sha256},
        path=base.path,
    )


def digest_of(context: Context, source: Source) -> str:
    """The sha256, hexadecimal, of an image that is a file of the machine on which the module runs."""
    if context.host.local:
        return context.storage.digest(source.path)

    def read() -> str:
        digest = hashlib.sha256()
        with source.read() as content:
            for block in content:
                digest.update(block)
        return digest.hexdigest()

    return context.once(f"sha256 {source.path}", read)


def from_store(store: Store, image: Image) -> Source:
    """An image of a store, with those that it lies upon.

    :raises NotFound: One of these is not there.
    :raises Invalid: They lie upon each other, or one is not what a delta says that it lies upon.
    :raises Unsupported: It has a format that is not for the disks of VMs.
    """
    source: Source | None = None
    lineage = _lineage(store, image)
    for index in range(len(lineage) - 1, -1, -1):
        each = lineage[index]
        known = dict(each.digests)
        if index:  # whatever the store tells, a delta is of use upon that content only
            upon = lineage[index - 1].properties.get(snapshot.PARENT_SHA256, "")
            if upon and known.get("sha256", upon) != upon:
                raise Invalid(
                    f"Image {lineage[index - 1].name} in {store.place} was made upon an image with the sha256 {upon},"
                    f" and its parent, {each.id}, has {known['sha256']}.",
                    hint="Use another image: this one cannot be restored.",
                )
            known.update({"sha256": upon} if upon else {})
        source = _source(store, each, known, source)
    if source is None:
        raise NotFound(f"There is no image {image.id} in {store.place}.")
    return source


def _lineage(store: Store, image: Image) -> list[Image]:
    """The image, its parent, and so on."""
    found = [image]
    while found[-1].properties.get(snapshot.FORM) == snapshot.DELTA:
        last = found[-1]
        parent_id = last.properties.get(snapshot.PARENT, "")
        if parent_id in [each.id for each in found] or len(found) == LONGEST:
            raise Invalid(
                f"Image {image.name} in {store.place} cannot be composed: after {len(found)} images {last.id} lies upon"
                f" {parent_id}, and there is no end to it.",
                hint="Somebody changed the properties of these images. Use another one.",
            )
        parent = store.get(parent_id) if parent_id else None
        if parent is None or parent.status != ACTIVE:
            raise NotFound(
                f"Image {last.name} ({last.id}) in {store.place} lies upon the image {parent_id or 'without a name'},"
                " which is not there.",
                hint="Without it only a part of the disk is known. Use another image.",
                image=last.id,
                parent=parent_id,
            )
        found.append(parent)
    return found


def _source(store: Store, image: Image, digests: t.Mapping[str, str], parent: Source | None) -> Source:
    label = f"{image.name} ({image.id}) in {store.place}"
    really = image.properties.get(snapshot.FORMAT, image.disk_format)
    if image.properties.get(snapshot.ROLE, "disk") != "disk":
        raise Unsupported(f"Image {label} is no disk: it is {image.properties[snapshot.ROLE]} of a VM.")
    if really not in (("qcow2",) if parent else ("qcow2", "raw")):
        raise Unsupported(
            f"Image {label} has the format {really}, and VMs are launched from qcow2 and raw.",
            hint=f"Convert it: qemu-img convert -f {really} -O qcow2 …",
        )
    return Source(
        label=label,
        key=_key(f"{store.kind} {store.place} {image.id}"),
        format=really,
        size=image.size,
        read=partial(store.open, image),
        inspect=lambda copy: inspect_image(copy, really, label).virtual_size,
        digests=digests,
        images={store.place: image.id},
        parent=parent,
    )


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _read_file(path: str) -> t.Iterator[t.Iterator[bytes]]:
    with open(path, "rb", buffering=0) as file:
        yield iter(partial(file.read, _CHUNK), b"")
