#!/usr/bin/python
# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image
version_added: 0.1.0
short_description: Keep images of disks in an image store
description:
  - An image of a disk is in a store, with its properties; or is not.
  - It is streamed into the store in one pass and hashed on the way, and is there when the store was seen to have what
    was sent. Of an upload that fails, nothing is left; what a task that was killed left is removed by the next one that
    stores an image, in Glance by the next one on the same machine.
  - Of what launches have copied to a KVM host, it removes what no VM builds upon any more.
  - Stores have no unique names. When several hosts share a store, let one of them do this, with C(run_once).
author:
  - kvmops contributors (@kvmops)
extends_documentation_fragment:
  - kvmops.lifecycle._attributes
  - kvmops.lifecycle._attributes.acts
  - kvmops.lifecycle._options
  - kvmops.lifecycle._options.image_store
requirements:
  - "For O(state=present) with O(src): oslo.utils 7.3 or newer with cryptography"
  - "For O(state=purged): libvirt-python"
options:
  name:
    description:
      - The name of the image. An image that is there may be given by its identifier as well.
      - Required unless O(state=purged).
    type: str
  state:
    description:
      - V(present) stores the image if it is not there, and else changes what is told about it.
      - V(absent) removes it, whatever its status. It is refused while the image is protected, and while deltas of
        M(kvmops.lifecycle.vm_snapshot) lie upon it.
      - V(purged) is not about the store, but about the host of O(uri), on which the module must run. There it removes
        from the base cache below O(storage) all images that no VM builds upon. What is kept is told with the reason.
    type: str
    choices: [present, absent, purged]
    default: present
  storage:
    description:
      - With O(state=purged), the directory of M(kvmops.lifecycle.vm)'s option O(kvmops.lifecycle.vm#module:storage).
      - It may be shared by several hosts. A base is kept that is named by any file below this directory, and so by the
        disks of all hosts' VMs there; and one that another host has used as well, until that host was purged, too.
    type: str
    default: /var/lib/libvirt/images
  older_than:
    description:
      - With O(state=purged), remove only what no VM was launched from in the last so many seconds.
    type: int
    default: 86400
  gone_hosts:
    description:
      - With O(state=purged), hosts that do not exist any more, and whose use of images counts no more. Names as in the
        reason that is told of images that are kept.
    type: list
    elements: str
    default: []
  src:
    description:
      - What the image is made of. An absolute path, or a URL with C(file), is a file on the machine on which the module
        runs; a URL with C(http) or C(https) is downloaded by it, to a temporary file beside the store or, for Glance,
        in C(/var/tmp).
      - Required if there is no such image. If there is one, it is compared with the content by size and hash, for which
        the file is read or downloaded, unless O(checksum) tells already that it is the same.
      - What is not as O(disk_format) says, refers to a backing file, or has an external data file, is refused.
    type: str
  checksum:
    description:
      - The hash that the content must have, as C(sha256:) or C(sha512:) and the hexadecimal digits.
    type: str
  disk_format:
    description:
      - The format of O(src). It is declared, never guessed. When it is not given, a new image is V(qcow2).
      - It belongs to the content, so an image of another format has other content.
    type: str
    choices: [qcow2, raw]
  replace:
    description:
      - Whether an image of that name with other content is replaced. The new one is stored first, with a new
        identifier and with what the task tells of it; then the old one goes, and all others of that name.
      - VMs that were launched from the old one keep running, as they have copies.
    type: bool
    default: false
  properties:
    description:
      - Properties by name, as Nova and Glance know them, for example C(os_type), C(hw_disk_bus) or C(hw_firmware_type).
        Values are strings; booleans are written as V(true) and V(false).
      - Those that are not named here stay as they are. One without a value is removed.
    type: dict
  protected:
    description:
      - Whether the image refuses to be deleted. A new one does not.
    type: bool
  min_disk:
    description:
      - How large a root disk must be at least, in GiB. Of a new image V(0), which is any size.
    type: int
  min_ram:
    description:
      - How much memory a VM must have at least, in MiB. Of a new image V(0), which is any amount.
    type: int
seealso:
  - module: kvmops.lifecycle.image_info
  - module: kvmops.lifecycle.vm
"""

EXAMPLES = r"""
- name: Keep an image in the directory that is the default
  kvmops.lifecycle.image:
    name: debian-12
    src: https://cloud.example.com/debian-12-genericcloud-amd64.qcow2
    checksum: sha256:4f1a0d0c0d9a4e4ad8d0f7c1fbd3ad9e4a35f3a93c4e2b6d6f6b4d2a6b0a5c11
    min_disk: 2
    properties:
      os_type: linux
      hw_disk_bus: virtio
  run_once: true

- name: Keep one in Glance, from a file of the host
  kvmops.lifecycle.image:
    name: appliance
    src: /srv/images/appliance.raw
    disk_format: raw
    protected: true
    image_store:
      type: glance
      cloud: mycloud

- name: There is a newer one
  kvmops.lifecycle.image:
    name: debian-12
    src: /srv/images/debian-12-new.qcow2
    replace: true

- name: Remove from the hosts what no VM was launched from for a week, and none builds upon
  kvmops.lifecycle.image:
    state: purged
    older_than: 604800

- name: It is not needed any more
  kvmops.lifecycle.image:
    name: debian-12
    state: absent
"""

RETURN = r"""
images:
  description: The image, as it is or, in check mode, as it would be. Empty when it is not there any more.
  returned: when O(state) is not V(purged)
  type: list
  elements: dict
  contains:
    id:
      description: Its identifier; empty in check mode for one that would be stored.
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
      description: Size of the content, in bytes; V(0) in check mode for one that would be downloaded.
      type: int
      returned: always
    disk_format:
      description: V(qcow2) or V(raw).
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
      description: When it was stored, in UTC; empty in check mode for one that would be.
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
removed:
  description: Files that were removed from the base cache; in check mode, that would be.
  returned: when O(state=purged)
  type: list
  elements: str
kept:
  description: Files of the base cache that were kept, each with the reason.
  returned: when O(state=purged)
  type: dict
  sample:
    /var/lib/libvirt/images/_base/9f86d081884c7d65….qcow2: VM web1 uses it
freed:
  description: How much room they took, in bytes.
  returned: when O(state=purged)
  type: int
steps:
  description: What was done; in check mode, what would be.
  returned: always
  type: list
  elements: str
code:
  description: >-
    The kind of failure: V(invalid), V(not_found), V(ambiguous), V(refused), V(busy), V(unreachable), V(denied),
    V(no_space), V(unsupported) or V(failed).
  returned: on failure
  type: str
"""

import contextlib
import http.client
import os
import re
import tempfile
import typing as t
import urllib.error
import urllib.parse
import uuid
from dataclasses import replace
from functools import cached_property

from ansible.module_utils.urls import ConnectionError as NoConnection
from ansible.module_utils.urls import open_url

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Ambiguous,
    Denied,
    Invalid,
    LifecycleError,
    NotFound,
    Refused,
    Unreachable,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.files import working
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.plan import Plan, Step
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.spec import connection, image_store
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.launch import DEFAULT_STORAGE
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.purge import purge
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import Image, NewImage, is_identifier
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import (
    FileContent,
    VerifiedContent,
    digests_of,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.formats import inspect_image
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelf import KIND
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.snapshot import PARENT
from ansible_collections.kvmops.lifecycle.plugins.module_utils._module import run_images
from ansible_collections.kvmops.lifecycle.plugins.module_utils._task import StoreContext

_CHUNK = 1 << 20
# Seconds of silence.
_PATIENCE = 60
_CHECKSUM = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


def decide(context: StoreContext) -> Plan:
    """How the image comes into the store, or out of it."""
    return remove(context) if context.params["state"] == "absent" else keep(context)


def remove(context: StoreContext) -> Plan:
    """The image is not there."""
    found = _found(context)
    if len(found) > 1:
        raise _several(context, found)
    for image in found:
        _demand_needless(context, image, "removed")
    steps = [_delete(context, image) for image in found]
    return Plan(_tell(found[0]) if found else {}, {}, steps)


def keep(context: StoreContext) -> Plan:
    """The image is there, with this content and these properties."""
    ask = context.params
    found = _found(context)
    wanted = {key: ask[key] for key in ("protected", "min_disk", "min_ram") if ask[key] is not None}
    properties = _properties(ask["properties"] or {})
    for image in found:
        if image.status != "active":
            raise Invalid(
                f"Image {image.name} ({image.id}) in {context.store.place} is {image.status}.",
                hint="Remove it with state: absent.",
            )
    source = Source(context) if ask["src"] is not None else None
    if source is None:
        if not found:
            raise NotFound(
                f"There is no image {ask['name']!r} in {context.store.place}, and to store one, src is needed."
            )
        if len(found) > 1:
            raise _several(context, found)
        if ask["disk_format"] not in (None, found[0].disk_format):
            raise Invalid(
                f"Image {ask['name']} is {found[0].disk_format}, which cannot be changed.",
                hint="Say replace: true and src, which is stored in its place.",
            )
        return _change(context, found[0], properties, wanted)
    same = [image for image in found if source.is_content_of(image)]
    if same and (len(found) == 1 or not ask["replace"]):
        return _change(context, same[0], properties, wanted, called_alike=len(found))
    if found and not ask["replace"]:
        raise Refused(
            f"{context.store.place} has an image {ask['name']!r} with other content ({found[0].id}).",
            hint="Say replace: true, or give the new one another name.",
            images=[image.id for image in found],
        )
    for image in found:
        if image not in same[:1]:
            _demand_needless(context, image, "replaced")
    if same:
        plan = _change(context, same[0], properties, wanted)
        steps = [*plan.steps, *(_delete(context, image, told=False) for image in found if image is not same[0])]
        return replace(
            plan, before={**plan.before, "images": len(found)}, after={**plan.after, "images": 1}, steps=steps
        )
    return _store(context, source, found, properties, wanted)


def _found(context: StoreContext) -> list[Image]:
    """The images that the name means: whole ones, or the one of that identifier in any status."""
    name = context.params["name"]
    found = context.store.find(name=name)
    if not found:
        by_id = context.store.get(name)
        found = [by_id] if by_id else []
    return found


def _several(context: StoreContext, found: t.Sequence[Image]) -> LifecycleError:
    return Ambiguous(
        f"{len(found)} images in {context.store.place} are called {context.params['name']!r}.",
        hint="Give the identifier of one of them.",
        images=[image.id for image in found],
    )


def _demand_needless(context: StoreContext, image: Image, doing: str) -> None:
    """See that nobody wants to keep an image: it is not protected, and no delta lies upon it."""
    called = f"Image {image.name} ({image.id}) in {context.store.place}"
    if image.protected:
        why, hint = "", "Say protected: false first."
        if image.properties.get("image_type") == KIND:
            why = f", as a part of the shelf of the VM {image.properties.get('instance_uuid', '')},"
            hint = "Use vm_shelve with state: unshelved, or the module vm with state: absent: they remove the shelf."
        raise Refused(f"{called} is protected{why} and cannot be {doing}.", hint=hint)
    upon = context.store.find(properties={PARENT: image.id})
    if upon:
        names = ", ".join(sorted(each.name for each in upon))
        raise Refused(
            f"{called} cannot be {doing}: {names} lies upon it, and would be lost.",
            hint="Remove what lies upon it first, with vm_snapshot or this module.",
            images=[each.id for each in upon],
        )


def _properties(told: t.Mapping[str, t.Any]) -> dict[str, str | None]:
    properties: dict[str, str | None] = {}
    for key, value in told.items():
        if isinstance(value, (dict, list)):
            raise Invalid(f"The property {key} of an image must be a string, not a list or a dictionary.")
        properties[str(key)] = None if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return properties


def _tell(image: Image) -> dict[str, t.Any]:
    """For the diff."""
    return {
        "name": image.name,
        "size": image.size,
        "digests": dict(image.digests),
        "disk_format": image.disk_format,
        "properties": dict(image.properties),
        "protected": image.protected,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
    }


def _delete(context: StoreContext, image: Image, *, told: bool = True) -> Step:
    def do() -> None:
        context.store.delete(image.id)

    return Step("delete image" if told else "delete other image", do)


def _change(
    context: StoreContext,
    image: Image,
    properties: t.Mapping[str, str | None],
    wanted: t.Mapping[str, t.Any],
    called_alike: int = 1,
) -> Plan:
    """Change what is told about an image."""
    other = {key: text for key, text in properties.items() if image.properties.get(key) != text}
    told = {key: value for key, value in wanted.items() if getattr(image, key) != value}
    kept = {key: text for key, text in image.properties.items() if key not in other}
    after = replace(image, properties={**kept, **{k: v for k, v in other.items() if v is not None}}, **told)
    context.images = [after]
    warnings = [f"There are {called_alike} images called {image.name}."] if called_alike > 1 else []
    if not other and not told:
        return Plan(_tell(image), _tell(image), warnings=warnings)

    def do() -> None:
        context.images = [context.store.update(image, properties=other, **told)]

    return Plan(_tell(image), _tell(after), [Step("change image", do)], warnings=warnings)


def _store(
    context: StoreContext,
    source: Source,
    old: t.Sequence[Image],
    properties: t.Mapping[str, str | None],
    wanted: t.Mapping[str, t.Any],
) -> Plan:
    """Store an image, and remove those in whose place it comes."""
    name = old[0].name if old else context.params["name"]
    if not old and is_identifier(name):
        raise NotFound(f"There is no image {name} in {context.store.place}, and the store chooses identifiers itself.")
    source.inspect()
    new = NewImage(
        id=str(uuid.uuid4()),
        name=name,
        disk_format=source.disk_format,
        properties={key: text for key, text in properties.items() if text is not None},
        **wanted,
    )
    foreseen = Image(
        id="",
        name=name,
        status="active",
        size=source.size or 0,
        disk_format=new.disk_format,
        digests=source.known_digests,
        properties=new.properties,
        protected=new.protected,
        min_disk=new.min_disk,
        min_ram=new.min_ram,
    )
    context.images = [foreseen]

    def do() -> None:
        context.images = [context.store.put(new, source.verified())]

    steps = [Step("store image", do), *(_delete(context, image, told=False) for image in old)]
    return Plan(_tell(old[0]) if old else {}, _tell(foreseen), steps)


class Source:
    """What an image is made of: a file, or what is at a URL, which is downloaded when it is needed."""

    def __init__(self, context: StoreContext) -> None:
        ask = context.params
        self._store = context.store
        self._format = ask["disk_format"]
        self.disk_format: str = self._format or "qcow2"
        self.url = ask["src"] if re.match(r"https?://", ask["src"], re.IGNORECASE) else None
        self.path = _path(ask["src"]) if self.url is None else None
        self.called = self.path or _without_password(ask["src"])
        self.known_digests: dict[str, str] = {}
        if ask["checksum"] is not None:
            told = _CHECKSUM.fullmatch(ask["checksum"].lower())
            if not told:
                raise Invalid("checksum must be sha256: or sha512: and the hexadecimal digits of the hash.")
            self.known_digests = {told[1] or told[3]: told[2] or told[4]}
        self._expected = dict(self.known_digests)
        self._size: int | None = None

    @property
    def size(self) -> int | None:
        """In bytes; ``None`` while it is not known."""
        return len(self._content) if self.path else self._size

    def is_content_of(self, image: Image) -> bool:
        """Whether *image* has this content."""
        if self._format not in (None, image.disk_format):
            return False
        common = set(image.digests) & set(self.known_digests)
        if common:
            return all(image.digests[each] == self.known_digests[each] for each in common)
        if not image.digests:
            return False
        if len(self._content) != image.size:
            return False
        best = "sha256" if "sha256" in image.digests else sorted(image.digests)[0]
        found = digests_of(self._content, [best])
        self.known_digests.update(found)
        return image.same_content(image.size, found)

    def inspect(self) -> None:
        """Refuse what is not what it is declared to be, as far as that is known without a download."""
        if self.path or self._size is not None:
            self._inspect()

    def verified(self) -> VerifiedContent:
        """The content for a store."""
        self._inspect()
        return VerifiedContent(self._content, self._expected, called=self.called)

    def _inspect(self) -> None:
        inspect_image(self._content.path, self.disk_format, called=self.called)

    @cached_property
    def _content(self) -> FileContent:
        if self.path:
            return FileContent(self.path)
        content = FileContent(f"/proc/self/fd/{self._file.fileno()}", called=self.called)
        self._size = len(content)
        return content

    @cached_property
    def _file(self) -> t.IO[bytes]:
        """What was downloaded, in a file without a name: whatever becomes of this process, it is not left."""
        with working(f"download {self.called}"):
            directory = _room(self._store.kind, self._store.place)
            file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (it lives as long as this)
        for chunk in _download(self.url or "", self.called):
            with working(f"download {self.called}"):
                file.write(chunk)
        with working(f"download {self.called}"):
            file.flush()
        return file


def _path(src: str) -> str:
    path = src
    if src.lower().startswith("file:"):
        parts = urllib.parse.urlsplit(src)
        if parts.netloc not in ("", "localhost"):
            raise Invalid(f"The URL {src} names a file of another machine.")
        path = urllib.parse.unquote(parts.path)
    if not os.path.isabs(path):
        raise Invalid(f"src must be an absolute path, or a URL with http, https or file: {src!r} is neither.")
    return path


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _room(kind: str, place: str) -> str:
    """A directory for what is downloaded: beside a store that is a directory."""
    directory = place if kind == "directory" else "/var/tmp"
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    return directory


def _download(url: str, called: str) -> t.Iterator[bytes]:
    """The bytes at *url*, all of them."""
    with _network(called):
        response = open_url(url, timeout=_PATIENCE, headers={"Accept-Encoding": "identity"}, decompress=False)
    with contextlib.closing(response):
        if (response.headers.get("Content-Encoding") or "identity") != "identity":
            raise Unsupported(f"Failed to download {called}: the server compresses it, though it was asked not to.")
        length = response.headers.get("Content-Length")
        done = 0
        while True:
            with _network(called):
                chunk = response.read(_CHUNK)
            if not chunk:
                break
            done += len(chunk)
            yield chunk
        if length is not None and done != int(length):
            raise Unreachable(f"Failed to download {called}: it ended after {done} of {length} bytes.")


@contextlib.contextmanager
def _network(called: str) -> t.Iterator[None]:
    what = f"Failed to download {called}"
    try:
        yield
    except urllib.error.HTTPError as exc:
        kind = {401: Denied, 403: Denied, 404: NotFound, 410: NotFound}.get(exc.code, Unreachable)
        raise kind(f"{what}: the server answers {exc.code} ({exc.reason}).") from exc
    except (NoConnection, http.client.HTTPException, OSError, ValueError) as exc:
        raise Unreachable(f"{what}: {getattr(exc, 'reason', None) or exc}.") from exc


def main() -> None:
    """Entry point."""
    run_images(
        {
            **image_store(),
            **connection(),
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent", "purged"], "default": "present"},
            "src": {"type": "str"},
            "checksum": {"type": "str"},
            "disk_format": {"type": "str", "choices": ["qcow2", "raw"]},
            "replace": {"type": "bool", "default": False},
            "properties": {"type": "dict"},
            "protected": {"type": "bool"},
            "min_disk": {"type": "int"},
            "min_ram": {"type": "int"},
            "storage": {"type": "str", "default": DEFAULT_STORAGE},
            "older_than": {"type": "int", "default": 86400},
            "gone_hosts": {"type": "list", "elements": "str", "default": []},
        },
        decide,
        on_host={"purged": purge},
        required_if=[("state", "present", ["name"]), ("state", "absent", ["name"])],
        required_by={"checksum": ["src"]},
    )


if __name__ == "__main__":
    main()
