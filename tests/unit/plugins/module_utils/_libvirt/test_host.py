# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hosts and their VMs, on libvirt's in-memory driver."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from pathlib import Path

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Denied,
    LifecycleError,
    NotFound,
    Unreachable,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.host import Host, is_local, open_host, pick
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local import LocalStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.pools import PoolStorage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.storage import storage_of
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Lock
from tests.unit.hypervisor import URI, Hypervisor, uuid_of

# ---- connecting


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/x", True),
        ("test:///default", True),
        ("qemu+tls://kvm1/system", False),
        ("qemu+ssh://root@kvm1/system", False),
        ("qemu+tcp://[::1]:16509/system", False),
    ],
)
def test_the_files_of_a_host_are_ours_when_its_uri_names_no_machine(uri: str, local: bool) -> None:
    assert is_local(uri) == local


def test_a_host_knows_its_name_and_whose_its_files_are(kvm: Hypervisor) -> None:
    host = open_host(URI, timeout=5)
    try:
        assert host.name == kvm.connection.getHostname()
        assert host.version >= (8, 0)
        assert isinstance(storage_of(host), LocalStorage)
        assert isinstance(storage_of(Host(host.connection, "qemu+tls://kvm1/system")), PoolStorage)
    finally:
        host.close()


def test_a_daemon_that_does_not_answer_is_given_up_in_time() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.closing(socket.socket(socket.AF_UNIX)) as silent:
        path = str(Path(place) / "sock")
        silent.bind(path)
        silent.listen()
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"no answer within 0\.2 seconds") as caught:
            open_host(f"test+unix:///default?socket={path}", timeout=0.2)
        assert time.monotonic() - began < 2
        assert "not stuck" in caught.value.hint


def test_a_daemon_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="Failed to connect to test") as caught:
        open_host("test+unix:///default?socket=/nowhere/sock", timeout=5)
    assert "uri" in caught.value.hint


def test_a_host_that_asks_for_a_password_is_denied(tmp_path: Path) -> None:
    described = tmp_path / "host.xml"
    described.write_text("<node><auth><user password='x'>ada</user></auth></node>", encoding="utf-8")
    with pytest.raises(Denied) as caught:
        open_host(f"test://{described}", timeout=5)
    assert "credentials" in caught.value.hint


def test_a_connection_that_is_lost_is_closed_without_a_word(tmp_path: Path) -> None:
    described = tmp_path / "host.xml"
    described.write_text("<node/>", encoding="utf-8")
    host = open_host(f"test://{described}", timeout=5)

    class Lost:
        def close(self) -> None:
            raise libvirt.libvirtError("lost")

    host.close()
    host.connection = Lost()
    host.close()


# ---- VMs


def test_vms_are_listed_by_name(kvm: Hypervisor) -> None:
    kvm.define("b", "a", "c")
    assert [guest.name for guest in kvm.host.guests()] == ["a", "b", "c"]


def test_a_vm_is_looked_up_by_its_uuid_or_is_none(kvm: Hypervisor) -> None:
    kvm.define("a")
    found = kvm.host.guest_of(uuid_of(1))
    assert found is not None
    assert found.name == "a"
    assert kvm.host.guest_of(uuid_of(2)) is None


def names(found: list[Guest | LifecycleError]) -> list[str]:
    return [each.name if isinstance(each, Guest) else each.code for each in found]


def test_vms_are_picked_by_name_or_uuid_in_order_and_once(kvm: Hypervisor) -> None:
    kvm.define("a", "b", "c")
    guests = kvm.host.guests()
    assert names(pick(guests, ["c", uuid_of(1), "b", "a", "c"])) == ["c", "a", "b"]
    assert names(pick(guests, [uuid_of(2).upper()])) == ["b"]
    assert names(pick(guests, ["A", "d", "b"])) == ["not_found", "not_found", "b"]
    assert names(pick(guests, [])) == []


def test_a_vm_whose_name_is_its_own_uuid_is_one_vm(kvm: Hypervisor) -> None:
    kvm.define(uuid_of(1))
    assert names(pick(kvm.host.guests(), [uuid_of(1)])) == [uuid_of(1)]


def test_a_word_that_means_two_vms_is_ambiguous_and_the_way_out_is_told(kvm: Hypervisor) -> None:
    kvm.define("a", uuid_of(1))
    (error,) = pick(kvm.host.guests(), [uuid_of(1)])
    assert isinstance(error, LifecycleError)
    assert error.code == "ambiguous"
    assert error.hint == f"Say {uuid_of(2)} for the first or a for the second."
    assert names(pick(kvm.host.guests(), ["a", uuid_of(2)])) == ["a", uuid_of(1)]


# ---- one VM


def test_a_look_tells_everything_that_a_status_needs(kvm: Hypervisor) -> None:
    kvm.define("a")
    guest = kvm.guest("a")
    seen = guest.look(running={"action": "stop"})
    assert (seen.name, seen.uuid, seen.managed_save, seen.persistent) == ("a", uuid_of(1), False, True)
    assert seen.state == libvirt.VIR_DOMAIN_RUNNING
    assert (seen.instance, seen.running) == (Instance(), {"action": "stop"})
    guest.save()
    assert guest.look().managed_save
    guest.discard_save()
    guest.discard_save()  # none there is fine
    assert not guest.look().managed_save


def test_a_vm_that_is_gone_is_not_found(kvm: Hypervisor) -> None:
    kvm.define("a")
    guest = kvm.guest("a")
    kvm.clear()
    for attempt in (guest.look, guest.recall, guest.xml, guest.active):
        with pytest.raises(NotFound, match="VM a"):
            attempt()


def test_pulling_the_plug_of_a_vm_that_is_off_is_fine(kvm: Hypervisor) -> None:
    kvm.define("a", running=False)
    kvm.guest("a").power_off()
    assert not kvm.guest("a").active()


@pytest.mark.parametrize("running", [True, False])
def test_what_is_remembered_is_written_live_and_in_the_definition_and_nothing_leaves_nothing(
    kvm: Hypervisor, running: bool
) -> None:
    kvm.define("a", running=running)
    guest = kvm.guest("a")
    assert guest.recall() == Instance()
    guest.remember(Instance(lock=Lock("2026-01-01T00:00:00Z", "audit")))
    for inactive in (True, False):
        (element,) = guest.xml(inactive=inactive).iter("{urn:kvmops:lifecycle:instance}lock")
        assert element.text == "audit"
    assert guest.recall(persistent=not running).lock == Lock("2026-01-01T00:00:00Z", "audit")
    guest.remember(Instance())
    for inactive in (True, False):
        assert not list(guest.xml(inactive=inactive).iter("{urn:kvmops:lifecycle:instance}instance"))


def test_titles_and_descriptions_come_and_go(kvm: Hypervisor) -> None:
    kvm.define("a")
    guest = kvm.guest("a")
    guest.set_title("The shop")
    guest.set_description("ask Ada\nfirst")
    assert (kvm.domain("a").findtext("title"), kvm.domain("a").findtext("description")) == (
        "The shop",
        "ask Ada\nfirst",
    )
    guest.set_title("")
    guest.set_description("")
    assert (kvm.domain("a").find("title"), kvm.domain("a").find("description")) == (None, None)


class Lost:
    """A connection to a libvirtd that is gone."""

    def isAlive(self) -> int:  # noqa: N802  # libvirt's name
        return 0

    def close(self) -> None:
        raise libvirt.libvirtError("it is gone")


def test_a_connection_that_is_lost_is_made_anew_and_one_that_is_not_is_kept(kvm: Hypervisor) -> None:
    kvm.define("web1")
    host = open_host(URI, timeout=5)
    host.connection.close()
    host.connection = Lost()
    host.reconnect(timeout=5)
    assert [guest.name for guest in host.guests()] == ["web1"]
    there = host.connection
    host.reconnect(timeout=5)
    assert host.connection is there
    host.close()
