# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""What an image store is: images of disks, with properties, by identifiers of their own.

A store is one file beside this one. It streams: content goes in and comes out in one pass, hashed on the way, in blocks
that are reused, so that memory does not grow with the image.
"""

from __future__ import annotations

import contextlib
import re
import typing as t
from dataclasses import dataclass, field

from .._core.errors import Ambiguous, Invalid, NotFound

Block = t.Union[bytes, bytearray, memoryview]

ACTIVE = "active"

_IDENTIFIER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Spent(Exception):
    """An identifier cannot be given to an image: one that was deleted had it, and the store gives none twice. Users do
    not meet this error: who chooses identifiers that can come again chooses another one."""


class Content(t.Protocol):
    """The bytes of an image on their way, once: the length is known before, the blocks come in order.

    A block may be overwritten when the next one is asked for. All but the last are multiples of 64 KiB, and at most
    4 MiB.
    """

    def __len__(self) -> int:
        """All bytes."""

    def __iter__(self) -> t.Iterator[Block]:
        """The blocks."""


@dataclass(frozen=True)
class Image:
    """An image in a store.

    :param id: A UUID; names may be shared, this not.
    :param status: ``active`` when it is whole; only such images can be read.
    :param size: Of the content, in bytes.
    :param disk_format: As declared: ``qcow2`` or ``raw``. A delta is declared ``raw`` (see :mod:`.._model.snapshot`).
    :param digests: Hashes of the content, hexadecimal, by algorithm: ``sha256`` where the store knows it, and whatever
        the store keeps itself.
    :param properties: Strings by name, as Nova and Glance write them (``image_type``, ``instance_uuid``, ``os_*``,
        ``hw_*`` …).
    :param protected: Refuses to be deleted.
    :param min_disk: GiB that a root disk must have at least.
    :param min_ram: MiB that a VM must have at least.
    :param created_at: As :func:`.._core.clock.stamp` writes it.
    :param where: For people: path of the file, or the URL of the image.
    """

    id: str
    name: str
    status: str
    size: int
    disk_format: str
    digests: t.Mapping[str, str] = field(default_factory=dict)
    properties: t.Mapping[str, str] = field(default_factory=dict)
    protected: bool = False
    min_disk: int = 0
    min_ram: int = 0
    created_at: str = ""
    where: str = ""

    def same_content(self, size: int, digests: t.Mapping[str, str]) -> bool:
        """Whether a content of *size* bytes with these hashes is this image's. Without a hash in common: no."""
        common = set(self.digests) & set(digests)
        return bool(common) and size == self.size and all(self.digests[name] == digests[name] for name in common)


@dataclass(frozen=True)
class NewImage:
    """An image to be. The fields are those of :class:`Image`.

    :param id: Chosen by us, so that a later run can find what a dead one left.
    """

    id: str
    name: str
    disk_format: str
    properties: t.Mapping[str, str] = field(default_factory=dict)
    protected: bool = False
    min_disk: int = 0
    min_ram: int = 0


@dataclass(frozen=True)
class Exposed:
    """Where QEMU on this machine can read an image's content in place.

    :param kind: ``file``, or ``nbd``: an export on a UNIX socket.
    :param path: Of the file or of the socket.
    :param export: The export's name.
    """

    kind: str
    path: str
    export: str = ""


class Store(t.Protocol):
    """Where images are kept. All methods raise ``Unreachable`` when the store does not answer, ``Denied`` when it says
    that we may not, ``NoSpace`` when it is full."""

    kind: str
    place: str  # for people and for comparing: the directory, or the endpoint and project

    def find(self, *, name: str | None = None, properties: t.Mapping[str, str] | None = None) -> list[Image]:
        """All whole images with that name and all these properties, the oldest first."""

    def get(self, image_id: str) -> Image | None:
        """The image of that identifier, whole or not; ``None`` when there is none."""

    def put(self, new: NewImage, content: Content) -> Image:
        """Store *content* in one pass, and see that the store has the size and hash that were sent.

        Whatever goes wrong, no image is left; nothing is sent twice.

        :raises Invalid: There is an image of that identifier; the content is not what it is declared to be.
        :raises Spent: There was one, and this store gives no identifier twice.
        """

    def open(self, image: Image) -> contextlib.AbstractContextManager[Content]:
        """Read an image. The last block comes only when all bytes had the size and hash that the store tells.

        :raises Invalid: They do not; or the image is not whole.
        :raises NotFound: It is gone.
        """

    def expose(self, image: Image, directory: str) -> Exposed:
        """Let QEMU on this machine read the content where it is, read only, also when this process has ended. When the
        store is away, reads wait. What is exposed already, and is well, stays as it is.

        Content is not verified on this way: it is read in pieces.

        :param directory: For what is needed for it, if anything is; of this image's VM alone, on this machine. Nobody
            but us may write in it, and its group is whom QEMU belongs to.
        :raises Invalid: The image is not whole, or has another content by now.
        :raises NotFound: It is gone.
        :raises Unsupported: A program is missing.
        """

    def withdraw(self, image: Image, directory: str) -> None:
        """Undo :meth:`expose`; what is not exposed is fine. QEMU must be done with it, and the image may be gone."""

    def update(
        self,
        image: Image,
        *,
        properties: t.Mapping[str, str | None] | None = None,
        name: str | None = None,
        protected: bool | None = None,
        min_disk: int | None = None,
        min_ram: int | None = None,
    ) -> Image:
        """Change what is told about an image. A property that is ``None`` is removed, others are kept."""

    def delete(self, image_id: str) -> bool:
        """Remove an image, whole or not; whether there was one.

        :raises Refused: It is protected.
        """

    def close(self) -> None:
        """Let go of what was held for the work."""


def is_identifier(text: str) -> bool:
    """Whether *text* has the form of an image's identifier: a UUID in lower case."""
    return _IDENTIFIER.fullmatch(text) is not None


def unchanged(store: Store, image: Image) -> Image:
    """*image* as it is now, if it is whole and has the content that it had.

    :raises Invalid: It is not, or has another.
    :raises NotFound: It is gone.
    """
    called = f"Image {image.name} ({image.where})"
    there = store.get(image.id)
    if there is None:
        raise NotFound(f"{called} is gone.")
    if there.status != ACTIVE:
        raise Invalid(f"{called} is {there.status} and cannot be read.")
    common = set(there.digests) & set(image.digests)
    if there.size != image.size or any(there.digests[name] != image.digests[name] for name in common):
        raise Invalid(f"{called} has another content than it had.")
    return there


def resolve(store: Store, named: str) -> Image:
    """The one whole image that *named* means: an identifier, or a name.

    :raises NotFound: There is none.
    :raises Ambiguous: Several images have that name.
    """
    found = store.find(name=named)
    if not found:
        by_id = store.get(named)
        found = [by_id] if by_id and by_id.status == ACTIVE else []
    if not found:
        raise NotFound(f"There is no image {named!r} in {store.place}.")
    if len(found) > 1:
        raise Ambiguous(
            f"{len(found)} images in {store.place} are called {named!r}.",
            hint="Give the identifier of one of them.",
            images=[image.id for image in found],
        )
    return found[0]
