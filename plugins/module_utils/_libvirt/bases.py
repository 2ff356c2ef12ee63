# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Base images: what one is made of, what is known of one, and the marker that says so.

``STORAGE/_base`` holds them, each complete when its marker, the file of the same name with ``.ok``, lies beside it:

* ``SHA256[-…].FORMAT`` is the content as it came.
* ``delta-SHA256-….qcow2`` is a delta (see :mod:`.._model.snapshot`) whose header was made to name the base of its
  parent, by a relative name, so the directory may be mounted anywhere. Its hash is that of the content as it came.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import typing as t
from dataclasses import dataclass, field, replace

from .streams import Extent

BASES = "_base"
MARKER = ".ok"

Block = t.Union[bytes, bytearray, memoryview]


@dataclass(frozen=True)
class Source:
    """What a base is made of: a local file, or an image of a store.

    :param label: For people: the path, or the image's name and store.
    :param key: The same for the same image and safe as a file's name: what is fetched once at a time.
    :param format: ``qcow2`` or ``raw``: what the content is.
    :param size: Of the content, in bytes.
    :param read: The content in blocks, once; it raises when the bytes are not those that the store tells.
    :param inspect: The virtual size in bytes of what was copied to a path; it raises ``Invalid`` when that is not what
        it is declared to be, or refers to another file.
    :param digests: Hashes of the content that are known without reading it, by algorithm.
    :param path: Of a local file; empty for an image of a store.
    :param images: The image's identifier, by the place of its store.
    :param parent: What a delta lies upon.
    """

    label: str
    key: str
    format: str
    size: int
    read: t.Callable[[], contextlib.AbstractContextManager[t.Iterable[Block]]]
    inspect: t.Callable[[str], int]
    digests: t.Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    images: t.Mapping[str, str] = field(default_factory=dict)
    parent: Source | None = None


@dataclass(frozen=True)
class Layer:
    """A file on another host that is to be a base here.

    :param label: For people.
    :param format: ``qcow2`` or ``raw``.
    :param sha256: Of the content as it came there, hexadecimal.
    :param size: Of that content, in bytes.
    :param length: Of the file, in bytes.
    :param virtual_size: Of the disk in it, in bytes.
    :param read: The file's content.
    :param digests: Other hashes of the content, by algorithm.
    :param images: Identifiers of images with that content, by the place of their stores.
    :param parent: What it lies upon.
    """

    label: str
    format: str
    sha256: str
    size: int
    length: int
    virtual_size: int
    read: t.Callable[[], t.Iterator[Extent]]
    digests: t.Mapping[str, str] = field(default_factory=dict)
    images: t.Mapping[str, str] = field(default_factory=dict)
    parent: Layer | None = None

    @property
    def total(self) -> int:
        """Bytes that it and all that it lies upon have."""
        return self.length + (self.parent.total if self.parent else 0)


@dataclass(frozen=True)
class Base:
    """A base image on the host.

    :param path: Where it lies.
    :param format: ``qcow2`` or ``raw``.
    :param sha256: Of the content as it came, hexadecimal.
    :param size: Of that content, in bytes.
    :param virtual_size: Of the disk in it, in bytes.
    :param digests: All hashes of that content that were seen to be right, by algorithm.
    :param images: Identifiers of images with that content, by the place of their stores.
    :param parent: The base that a delta lies upon, a path; empty for whole images.
    """

    path: str
    format: str
    sha256: str
    size: int
    virtual_size: int
    digests: t.Mapping[str, str] = field(default_factory=dict, hash=False)
    images: t.Mapping[str, str] = field(default_factory=dict, hash=False)
    parent: str = ""


@dataclass(frozen=True)
class Marker:
    """What the marker of a base says.

    :param base: With only the file's name as path.
    :param length: Of the file, in bytes: making a delta lie upon its parent may change it.
    :param source: Where it came from first, for people.
    :param hosts: Those that have used it: on shared storage there are several.
    """

    base: Base
    length: int
    source: str
    hosts: tuple[str, ...] = ()

    def dump(self) -> bytes:
        """As JSON."""
        base = self.base
        told = {
            "size": base.size,
            "sha256": base.sha256,
            "virtual_size": base.virtual_size,
            "digests": dict(base.digests),
            "images": dict(base.images),
            "parent": base.parent,
            "length": self.length,
            "source": self.source,
            "hosts": list(self.hosts),
        }
        return json.dumps(told, sort_keys=True).encode()

    @staticmethod
    def load(name: str, content: bytes) -> Marker | None:
        """The marker of the base *name*; ``None`` when it says nothing that can be read."""
        try:
            told = json.loads(content)
            base = Base(
                path=name,
                format=name.rpartition(".")[2],
                sha256=str(told["sha256"]),
                size=int(told["size"]),
                virtual_size=int(told["virtual_size"]),
                digests=_strings(told["digests"]),
                images=_strings(told["images"]),
                parent=str(told["parent"]),
            )
            return Marker(base, int(told["length"]), str(told["source"]), tuple(map(str, told["hosts"])))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def of(self, source_format: str, size: int, digests: t.Mapping[str, str], parent: str) -> bool:
        """Whether this base was made of that content upon that parent. Without a hash in common: no."""
        base = self.base
        common = set(base.digests) & set(digests)
        return (
            bool(common)
            and (base.format, base.size, base.parent) == (source_format, size, parent)
            and all(base.digests[name] == digests[name] for name in common)
        )


def _strings(told: t.Mapping[str, t.Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in told.items()}


def base_name(sha256: str, image_format: str, parent: str, unique: str = "") -> str:
    """The name of a base's file.

    :param parent: The name of the base that it lies upon; empty for a whole image.
    :param unique: Tells it from another with the same content.
    """
    parts = [sha256, *([unique] if unique else [])]
    if parent:
        parts = ["delta", sha256, hashlib.sha256(parent.encode()).hexdigest()[:16], *parts[1:]]
    return f"{'-'.join(parts)}.{image_format}"


def placed(base: Base, bases: str) -> Base:
    """*base* as its marker tells it, with paths: it lies in the directory *bases*."""
    parent = os.path.join(bases, base.parent) if base.parent else ""
    return replace(base, path=os.path.join(bases, base.path), parent=parent)
