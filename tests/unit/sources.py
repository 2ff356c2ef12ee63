# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that bases are made of: files, and what a store gives, without a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import typing as t
from functools import partial
from pathlib import Path

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.bases import Source

STORE = "a store"


def sha256(path: Path | str) -> str:
    """Of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def bases(place: Path) -> list[str]:
    """What is in the cache, but for the memo and the locks."""
    return sorted(name for name in os.listdir(place / "_base") if name not in (".lock", ".use", "hashes.json"))


def file_source(path: Path, image_format: str = "raw") -> Source:
    """The file *path*. Whatever is in it, it is found to be what it is declared to be."""

    @contextlib.contextmanager
    def read() -> t.Iterator[t.Iterator[bytes]]:
        with path.open("rb", buffering=0) as file:
            yield iter(partial(file.read, 1 << 20), b"")

    return Source(
        label=str(path),
        key=hashlib.sha256(os.path.realpath(path).encode()).hexdigest(),
        format=image_format,
        size=path.stat().st_size if path.exists() else 0,
        read=read,
        inspect=os.path.getsize,
        path=str(path),
    )


def stored(
    content: bytes,
    *,
    image: str = "1",
    image_format: str = "raw",
    algorithms: t.Sequence[str] = ("sha256",),
    parent: Source | None = None,
    sent: t.Callable[[], t.Iterable[bytes]] | None = None,
    **changes: t.Any,
) -> Source:
    """An image of a store.

    :param algorithms: Of the hashes that the store tells.
    :param sent: What really comes.
    """

    @contextlib.contextmanager
    def read() -> t.Iterator[t.Iterable[bytes]]:
        yield sent() if sent else (content[start : start + (1 << 16)] for start in range(0, len(content), 1 << 16))

    told: dict[str, t.Any] = {
        "label": f"image {image}",
        "key": hashlib.sha256(image.encode()).hexdigest(),
        "format": image_format,
        "size": len(content),
        "read": read,
        "inspect": os.path.getsize,
        "digests": {name: hashlib.new(name, content).hexdigest() for name in algorithms},
        "images": {STORE: image},
        "parent": parent,
    }
    return Source(**{**told, **changes})
