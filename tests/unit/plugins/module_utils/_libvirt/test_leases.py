# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixed addresses in the networks of libvirt's in-memory driver."""

from __future__ import annotations

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import NotFound
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.leases import Leases
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelf import Lease
from tests.unit.hypervisor import Hypervisor

MAC = "52:54:00:00:00:01"
LEASE = Lease("default", MAC, f'<host mac="{MAC}" name="web1" ip="192.168.122.5" />')


@pytest.fixture
def leases(kvm: Hypervisor, monkeypatch: pytest.MonkeyPatch) -> Leases:
    monkeypatch.setattr(libvirt, "VIR_NETWORK_XML_INACTIVE", 0)  # the driver keeps one of both only
    return Leases(kvm.host)


def test_an_address_is_given_once_and_taken_once(leases: Leases) -> None:
    assert leases.of([("default", MAC)]) == ()
    assert [leases.add(LEASE), leases.add(LEASE)] == [True, False]
    try:
        (found,) = leases.of([("default", MAC.upper()), ("default", "52:54:00:00:00:02"), ("gone", MAC)])
        assert (found.network, found.mac) == ("default", MAC.upper())
    finally:
        # It is known by what it says, however that is written.
        assert leases.remove(found)
    assert not leases.remove(LEASE)
    assert leases.of([("default", MAC)]) == ()


def test_a_network_that_is_gone_gives_no_address(leases: Leases) -> None:
    lost = Lease("gone", MAC, LEASE.xml)
    assert not leases.remove(lost)
    with pytest.raises(NotFound):
        leases.add(lost)


def test_an_address_goes_to_the_part_of_its_own_family(kvm: Hypervisor, leases: Leases) -> None:
    network = kvm.connection.networkDefineXML(
        "<network><name>both</name><bridge name='virbr9'/>"
        "<ip address='10.9.0.1' netmask='255.255.255.0'><dhcp><range start='10.9.0.2' end='10.9.0.99'/></dhcp></ip>"
        "<ip family='ipv6' address='fd00:9::1' prefix='64'>"
        "<dhcp><range start='fd00:9::2' end='fd00:9::99'/></dhcp></ip>"
        "</network>"
    )
    try:
        lease = Lease("both", MAC, '<host name="web1" ip="fd00:9::5" />')
        assert leases.add(lease)
        assert "fd00:9::5" in network.XMLDesc()
        assert leases.remove(lease)
        assert "fd00:9::5" not in network.XMLDesc()
    finally:
        network.undefine()
