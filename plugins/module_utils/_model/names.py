# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Names and addresses that we give to VMs."""

from __future__ import annotations

import hashlib
import posixpath
import re
import uuid
from dataclasses import dataclass

from .._core.errors import Invalid

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}")
# What XML 1.0 cannot hold, and the carriage return.
_UNSTORABLE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def check_name(name: str) -> str:
    """*name*, if it may be the name of a new VM. It becomes part of paths, host names and command lines, so it is
    narrow; VMs that exist already are found by whatever name they have.

    :raises Invalid: It may not.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise Invalid(
            f"{name!r} cannot be the name of a new VM.",
            hint="It takes 1 to 63 ASCII letters, digits and any of '_.+-', the first a letter or digit, and no '..'.",
            name=name,
        )
    if is_uuid(name):
        raise Invalid(
            f"{name!r} cannot be the name of a new VM: it is a UUID, and names are looked up as UUIDs, too.",
            hint="Give it a name, and the UUID with uuid.",
            name=name,
        )
    return name


def is_uuid(text: str) -> bool:
    """Whether *text* is written as a UUID."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def check_uuid(text: str) -> str:
    """*text* in lower case, if it is a UUID.

    :raises Invalid: It is not.
    """
    if not is_uuid(text):
        raise Invalid(f"{text!r} is not a UUID.", hint="It looks like 123e4567-e89b-42d3-a456-426614174000.")
    return text.lower()


def check_directory(path: str) -> str:
    """*path*, if it is absolute and says what it means: no ``..``, no double or last slash, no control characters, and
    not the root directory.

    :raises Invalid: It is not.
    """
    if not re.match("/[^/]", path) or posixpath.normpath(path) != path or not path.isprintable():
        raise Invalid(f"{path!r} cannot be a storage directory.", hint="It must be an absolute path without '..'.")
    return path


def check_text(text: str, *, what: str, lines: bool = True) -> str:
    """*text*, if a domain's definition gives it back as it was. XML cannot hold most control characters, and libvirt
    drops them or ends lines in its own way without a word.

    :param what: For the error: ``reason``.
    :param lines: Whether it may have more than one line.
    :raises Invalid: It does not.
    """
    found = _UNSTORABLE.search(text) or (None if lines else re.search(r"\n", text))
    if found:
        raise Invalid(
            f"{what} cannot contain the character U+{ord(found.group()):04X}.",
            hint="It takes any text in lines that end with a line feed, without control characters."
            if lines
            else "It takes any text in one line, without control characters.",
        )
    return text


@dataclass(frozen=True)
class Nic:
    """A network card.

    :param kind: ``bridge`` or ``network``, as in the domain XML.
    :param source: The bridge's or the libvirt network's name.
    :param mac: Lower case; empty while it is not decided.
    :param model: As in the domain XML: ``virtio``, ``e1000e`` …
    """

    kind: str
    source: str
    mac: str = ""
    model: str = "virtio"

    def tell(self) -> dict[str, str]:
        """For results and diffs."""
        return {self.kind: self.source, "mac": self.mac, "model": self.model}


def stable_mac(vm_uuid: str, index: int) -> str:
    """The address of the VM's network card number *index*: always the same for the same VM, in QEMU's own range."""
    digest = hashlib.sha256(f"{vm_uuid.lower()}/{index}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def check_mac(text: str) -> str:
    """*text* in lower case, if a network card can have that address.

    :raises Invalid: It is none, or one of a group.
    """
    mac = text.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise Invalid(f"{text!r} cannot be the MAC address of a network card.", hint="It looks like 52:54:00:12:34:56.")
    return mac
