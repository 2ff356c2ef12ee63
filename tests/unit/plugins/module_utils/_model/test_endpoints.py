# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a VM moves."""

from __future__ import annotations

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import Invalid
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.endpoints import (
    connection_uri,
    host_of,
    migrate_uri,
    migration_address,
    same_way,
    transport_of,
)


@pytest.mark.parametrize(
    ("destination", "transport", "uri"),
    [
        ("kvm2", "tls", "qemu+tls://kvm2/system"),
        ("kvm2.example.com", "ssh", "qemu+ssh://kvm2.example.com/system"),
        ("10.0.0.2", "tls", "qemu+tls://10.0.0.2/system"),
        ("fd00::2", "tls", "qemu+tls://[fd00::2]/system"),
        ("qemu+ssh://root@kvm2:2222/system", "tls", "qemu+ssh://root@kvm2:2222/system"),
    ],
)
def test_a_name_an_address_or_a_uri_says_where_to(destination: str, transport: str, uri: str) -> None:
    assert connection_uri(destination, transport, insecure_tcp=False) == uri


@pytest.mark.parametrize("destination", ["", "-o", "kvm2/system", "kvm 2", "qemu:///system", "qemu+tcp://kvm2/system"])
def test_what_names_no_host_or_goes_in_the_clear_is_refused(destination: str) -> None:
    with pytest.raises(Invalid):
        connection_uri(destination, "tls", insecure_tcp=False)


def test_plain_tcp_is_taken_where_it_is_said() -> None:
    assert connection_uri("qemu+tcp://kvm2/system", "tls", insecure_tcp=True) == "qemu+tcp://kvm2/system"


@pytest.mark.parametrize(
    ("uri", "host", "transport"),
    [
        ("qemu+tls://kvm2/system", "kvm2", "tls"),
        ("qemu://kvm2/system", "kvm2", "tls"),
        ("qemu+ssh://root@[fd00::2]:22/system", "fd00::2", "ssh"),
        ("qemu:///system", "", "unix"),
    ],
)
def test_a_uri_tells_its_host_and_transport(uri: str, host: str, transport: str) -> None:
    assert (host_of(uri), transport_of(uri)) == (host, transport)


@pytest.mark.parametrize(
    ("uri", "network", "address"),
    [
        ("qemu+tls://kvm2/system", "", ""),
        ("qemu+tls://kvm2/system", "10.9.0.2", "10.9.0.2"),
        ("qemu+tls://kvm2/system", "fd00::2", "fd00::2"),
        ("qemu+tls://kvm2/system", "-mig", "kvm2-mig"),
        ("qemu+tls://kvm2.example.com/system", "-mig", "kvm2-mig.example.com"),
        ("qemu+tls://kvm2.example.com/system", ".mig.example.com", "kvm2.mig.example.com"),
    ],
)
def test_the_migration_network_is_an_address_or_a_suffix(uri: str, network: str, address: str) -> None:
    assert migration_address(uri, network) == address


@pytest.mark.parametrize("network", ["a b", "-m/g", "-mig"])
def test_other_migration_networks_are_refused(network: str) -> None:
    uri = "qemu+tls://[fd00::2]/system" if network == "-mig" else "qemu+tls://kvm2/system"
    with pytest.raises(Invalid):
        migration_address(uri, network)


def test_addresses_of_version_6_are_bracketed() -> None:
    assert [migrate_uri("kvm2"), migrate_uri("fd00::2")] == ["tcp://kvm2", "tcp://[fd00::2]"]


@pytest.mark.parametrize(
    ("uri", "way"),
    [
        ("qemu+tls://KVM2/system", "qemu+tls://kvm1/system"),
        ("qemu+tls://tls/system", "qemu+tls://kvm1/system"),
        ("qemu+ssh://ada@kvm2.example.com:22/system?no_verify=1", "qemu+ssh://ada@kvm1:22/system?no_verify=1"),
        ("qemu+tls://[fd00::2]/system", "qemu+tls://kvm1/system"),
    ],
)
def test_the_way_back_is_like_the_way_there(uri: str, way: str) -> None:
    assert same_way(uri, "kvm1") == way
