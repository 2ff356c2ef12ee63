# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection kvmops.lifecycle: no part of its public interface.
"""Fixed addresses that libvirt's networks give to network cards: ``<host>`` in ``<dhcp>`` (libvirt's page "Network XML
format")."""

from __future__ import annotations

import typing as t
import xml.etree.ElementTree as ET

try:
    import libvirt
except ImportError:  # run_module() tells the user
    libvirt = None

from .._core.errors import NotFound
from .._model.shelf import Lease
from .errors import doing
from .host import Host


class Leases:
    """The fixed addresses of one host's networks."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def of(self, cards: t.Iterable[tuple[str, str]]) -> tuple[Lease, ...]:
        """Those that network cards have.

        :param cards: The network and the MAC address of each. A network that is not there has none.
        """
        found = []
        for name, mac in cards:
            try:
                hosts = self._hosts(self._network(name))
            except NotFound:
                continue
            found += [Lease(name, mac, text) for _ip, text in hosts if _mac(text) == mac.lower()]
        return tuple(found)

    def remove(self, lease: Lease) -> bool:
        """Take an address from a network; whether it was there."""
        try:
            network = self._network(lease.network)
        except NotFound:
            return False
        for index, text in self._hosts(network):
            if _same(text, lease.xml):
                self._update(network, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, index, text)
                return True
        return False

    def add(self, lease: Lease) -> bool:
        """Give it back; whether it was missing.

        :raises NotFound: There is no such network.
        :raises Invalid: Another card has the address, or the network has no such addresses.
        """
        network = self._network(lease.network)
        if any(_same(text, lease.xml) for _ip, text in self._hosts(network)):
            return False
        wanted = "ipv6" if ":" in ET.fromstring(lease.xml).get("ip", "") else "ipv4"
        families = [node.get("family", "ipv4") for node in self._definition(network).iterfind("ip")]
        index = families.index(wanted) if wanted in families else -1  # libvirt's choice, or its refusal
        self._update(network, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, index, lease.xml)
        return True

    def _network(self, name: str) -> t.Any:
        with doing(f"look at network {name} of {self.host.name}"):
            return self.host.connection.networkLookupByName(name)

    def _definition(self, network: t.Any) -> ET.Element:
        with doing(f"look at the networks of {self.host.name}"):
            # What is not in the definition of a persistent network is gone when it is started again.
            flags = libvirt.VIR_NETWORK_XML_INACTIVE if network.isPersistent() else 0
            return ET.fromstring(network.XMLDesc(flags))

    def _hosts(self, network: t.Any) -> list[tuple[int, str]]:
        """Its fixed addresses as text, each with the number of the ``<ip>`` that it is in."""
        return [
            (index, ET.tostring(node, encoding="unicode").strip())
            for index, ip in enumerate(self._definition(network).iterfind("ip"))
            for node in ip.iterfind("dhcp/host")
        ]

    def _update(self, network: t.Any, command: int, index: int, text: str) -> None:
        with doing(f"change the fixed addresses of a network of {self.host.name}"):
            flags = (libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG if network.isPersistent() else 0) | (
                libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE if network.isActive() else 0
            )
            network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, index, text, flags)


def _mac(text: str) -> str:
    return ET.fromstring(text).get("mac", "").lower()


def _same(one: str, other: str) -> bool:
    return ET.fromstring(one).attrib == ET.fromstring(other).attrib
