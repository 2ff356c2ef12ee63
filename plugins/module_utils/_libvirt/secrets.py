# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""libvirt's secrets of a host: passphrases of encrypted disks, keys of network storage. None is ever shown."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .errors import doing
from .host import Host

# What a secret is for, and how virSecretLookupByUsage calls that.
_USES = {"volume": 1, "ceph": 2, "iscsi": 3, "tls": 4, "vtpm": 5}


@dataclass(frozen=True)
class Secret:
    """A secret.

    :param text: Its definition, as XML.
    :param value: ``None`` when it has none, or none that libvirt gives out.
    """

    uuid: str
    text: str = field(repr=False)
    value: bytes | None = field(default=None, repr=False)

    @property
    def private(self) -> bool:
        """Whether libvirt gives its value to nobody."""
        return ET.fromstring(self.text).get("private") == "yes"


class Secrets:
    """Those of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def find(self, uuid: str) -> Secret | None:
        """The secret with that UUID, or ``None``."""
        with doing(f"look at secret {uuid} of {self.host.name}"):
            try:
                secret = self.host.connection.secretLookupByUUIDString(uuid)
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                    return None
                raise
            text = str(secret.XMLDesc())
            try:
                value = secret.value()
            except libvirt.libvirtError as exc:
                # It has no value, or is private, or we may not see it.
                if exc.get_error_code() not in (
                    libvirt.VIR_ERR_NO_SECRET,
                    libvirt.VIR_ERR_INVALID_SECRET,
                    libvirt.VIR_ERR_OPERATION_DENIED,
                    libvirt.VIR_ERR_ACCESS_DENIED,
                ):
                    raise
                value = None
        return Secret(uuid, text, value)

    def used_by(self, domain: ET.Element) -> list[str]:
        """The UUIDs of the secrets that the devices of a domain name; of those that are named by their use, if they are
        here."""
        found: dict[str, None] = {}
        for node in domain.iterfind("devices//secret"):
            uuid = node.get("uuid") or self._by_use(node.get("type", ""), node.get("usage", ""))
            if uuid:
                found[uuid.lower()] = None
        for node in domain.iterfind("devices/tpm/backend/encryption"):
            found[node.get("secret", "").lower()] = None
        return [uuid for uuid in found if uuid]

    def _by_use(self, kind: str, use: str) -> str:
        if kind not in _USES or not use:
            return ""
        with doing(f"look for the secret {use} of {self.host.name}"):
            try:
                return str(self.host.connection.secretLookupByUsage(_USES[kind], use).UUIDString())
            except libvirt.libvirtError as exc:
                if exc.get_error_code() == libvirt.VIR_ERR_NO_SECRET:
                    return ""
                raise

    def define(self, secret: Secret) -> None:
        """Define *secret* as it is elsewhere: private and ephemeral as there."""
        with doing(f"define secret {secret.uuid} on {self.host.name}"):
            made = self.host.connection.secretDefineXML(secret.text)
            if secret.value is not None:
                made.setValue(secret.value)

    def remove(self, uuid: str) -> None:
        """Remove a secret. One that is gone is fine."""
        with doing(f"remove secret {uuid} of {self.host.name}"):
            try:
                self.host.connection.secretLookupByUUIDString(uuid).undefine()
            except libvirt.libvirtError as exc:
                if exc.get_error_code() != libvirt.VIR_ERR_NO_SECRET:
                    raise
