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


class _Side(t.NamedTuple):
    """libvirt's flags for one side of a network.

    :param look: To read it, and ``change`` to change it.
    """

    look: int
    change: int


class Leases:
    """The fixed addresses of one host's networks."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def of(self, cards: t.Iterable[tuple[str, str]]) -> tuple[Lease, ...]:
        """Those that network cards have.

        :param cards: The network and the MAC address of each. A network that is not there has none.
        """
        found: list[Lease] = []
        for name, mac in cards:
            try:
                network = self._network(name)
            except NotFound:
                continue
            for side in self._sides(network):
                for _index, text in self._hosts(network, side):
                    if _mac(text) == mac.lower() and not any(_same(text, lease.xml) for lease in found):
                        found.append(Lease(name, mac, text))
        return tuple(found)

    def remove(self, lease: Lease) -> bool:
        """Take an address from a network; whether it was there."""
        try:
            network = self._network(lease.network)
        except NotFound:
            return False
        removed = False
        for side in self._sides(network):
            for index, text in self._hosts(network, side):
                if _same(text, lease.xml):
                    self._update(network, side, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, index, text)
                    removed = True
        return removed

    def add(self, lease: Lease) -> bool:
        """Give it back; whether it was missing.

        :raises NotFound: There is no such network.
        :raises LifecycleError: Another card has the address, or the network has no such addresses.
        """
        network = self._network(lease.network)
        added = False
        for side in self._sides(network):
            if any(_same(text, lease.xml) for _index, text in self._hosts(network, side)):
                continue
            wanted = "ipv6" if ":" in ET.fromstring(lease.xml).get("ip", "") else "ipv4"
            families = [node.get("family", "ipv4") for node in self._definition(network, side).iterfind("ip")]
            index = families.index(wanted) if wanted in families else -1  # libvirt's choice, or its refusal
            self._update(network, side, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, index, lease.xml)
            added = True
        return added

    def _network(self, name: str) -> t.Any:
        with doing(f"look at network {name} of {self.host.name}"):
            return self.host.connection.networkLookupByName(name)

    def _sides(self, network: t.Any) -> list[_Side]:
        """A network as it is defined, and as it runs: an address may be in one alone, and what is changed in both at
        once must be in both (libvirt 9.0)."""
        with doing(f"look at the networks of {self.host.name}"):
            defined = [_Side(libvirt.VIR_NETWORK_XML_INACTIVE, libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG)]
            runs = [_Side(0, libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE)]
            return [*(defined if network.isPersistent() else []), *(runs if network.isActive() else [])]

    def _definition(self, network: t.Any, side: _Side) -> ET.Element:
        with doing(f"look at the networks of {self.host.name}"):
            return ET.fromstring(network.XMLDesc(side.look))

    def _hosts(self, network: t.Any, side: _Side) -> list[tuple[int, str]]:
        """Its fixed addresses as text, each with the number of the ``<ip>`` that it is in."""
        return [
            (index, ET.tostring(node, encoding="unicode").strip())
            for index, ip in enumerate(self._definition(network, side).iterfind("ip"))
            for node in ip.iterfind("dhcp/host")
        ]

    def _update(self, network: t.Any, side: _Side, command: int, index: int, text: str) -> None:
        with doing(f"change the fixed addresses of a network of {self.host.name}"):
            network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, index, text, side.change)


def _mac(text: str) -> str:
    return ET.fromstring(text).get("mac", "").lower()


def _same(one: str, other: str) -> bool:
    return ET.fromstring(one).attrib == ET.fromstring(other).attrib
