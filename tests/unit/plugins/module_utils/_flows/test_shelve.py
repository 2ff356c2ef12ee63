# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shelving on libvirt's in-memory driver with a real image store and real files. What reads disks over NBD stores their
files as they are instead; guests that run are on the lab."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import typing as t
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils import _module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import NoSpace
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import shelving
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows.copying import Copied, Copier
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images import nbd
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage, Spent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent, TextContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.details import Details
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import shelf, shelve, snapshot
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    Instance,
    Launch,
    Lock,
    Mark,
    OwnDisk,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.shelf import Claim, Contents, Shelf
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.snapshot import Manifest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.unshelve import Began, Piece
from ansible_collections.kvmops.lifecycle.plugins.modules import image, vm, vm_info, vm_power, vm_shelve, vm_snapshot
from tests.unit.hypervisor import Hypervisor, Task, uuid_of

MIB = 1 << 20
LAUNCH = Launch("then", "ada", "img", "/b", "qcow2", "00", "/i", properties={"os_type": "linux"})


class Died(BaseException):
    """The process is killed: nothing is taken back."""


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver does not have: jobs, and more than a definition to undefine."""

    def still(self: Copier) -> Copied:
        self.copied.at = "2026-01-01T00:00:00Z"
        for index, disk in enumerate(self.job.disks):
            content = FileContent(self.job.layers[disk.target][0].path)
            self._put(index, disk, content, 8 * MIB, self.job.upon.get(disk.target))
        return self.copied

    def undefine(self: Guest) -> None:
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    monkeypatch.setattr(Copier, "still", still)
    monkeypatch.setattr(shelving, "demand_libnbd", lambda _what: None)
    monkeypatch.setattr(Guest, "undefine", undefine)
    monkeypatch.setattr(Details, "job", lambda _self: None)
    monkeypatch.setattr(Details, "block_job", lambda _self, _target: None)


class World:
    """A host with VMs that have an overlay over a common base, and a store."""

    def __init__(self, kvm: Hypervisor, task: Task, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kvm, self.task, self.monkeypatch = kvm, task, monkeypatch
        self.place = str(place / "store")
        self.store = DirectoryStore(self.place)
        self.disks = place / "disks"
        self.disks.mkdir()
        self.base = self.disks / "base.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", self.base, "8M")

    def define(self, *names: str, running: bool = False) -> None:
        for name in names:
            path = self.path(name)
            qemu_img("create", "-q", "-f", "qcow2", "-b", self.base, "-F", "qcow2", path)
            self.kvm.define(name, running=running, disks=[str(path)])

    def path(self, name: str = "web1") -> Path:
        return self.disks / f"{name}.qcow2"

    def params(self, state: str, **more: t.Any) -> dict[str, t.Any]:
        return {"name": "web1", "state": state, "force": True, "image_store": {"path": self.place}, **more}

    def __call__(self, state: str, **more: t.Any) -> dict[str, t.Any]:
        return self.task(vm_shelve.main, **self.params(state, **more))

    def one(self, state: str, **more: t.Any) -> dict[str, t.Any]:
        (told,) = self(state, **more)["vms"]
        return t.cast("dict[str, t.Any]", told)

    def quartet(self, state: str, **more: t.Any) -> dict[str, t.Any]:
        (told,) = self.task.quartet(vm_shelve.main, **self.params(state, **more))["vms"]
        return t.cast("dict[str, t.Any]", told)

    def killed_at(self, step: str, state: str, **more: t.Any) -> None:
        """Run the module, which dies right before that step; its journal says so."""
        write = _module._write_journal

        def write_and_die(subject: t.Any) -> None:
            if subject.journal is None and step == "end":
                raise Died
            write(subject)
            if subject.journal is not None and subject.journal.step == step:
                raise Died

        with self.monkeypatch.context() as patch:
            patch.setattr(_module, "_write_journal", write_and_die)
            patch.setattr(_module._Runner, "_take_back", lambda *_arguments: None)
            with pytest.raises(Died):
                self(state, **more)

    def shelves(self) -> list[Shelf]:
        return shelf.shelves(self.store.find())

    def shelf(self) -> Shelf:
        (found,) = self.shelves()
        return found

    def bases(self) -> list[str]:
        """The names of images that belong to no shelf."""
        return [each.name for each in self.store.find() if each.properties.get("image_type") != shelf.KIND]

    def marks(self, name: str = "web1") -> list[str]:
        return [mark.state for mark in self.kvm.recall(name).marks]

    def claim(self, host: str) -> str:
        claim = Claim(host, "then")
        key = shelf.claim_id(self.shelf().key)
        told = {"image_type": shelf.KIND, snapshot.SET: self.shelf().key, shelf.CLAIMED: claim.dump()}
        self.store.put(NewImage(key, "claim", "raw", told), TextContent(b"claim"))
        return key


@pytest.fixture
def world(kvm: Hypervisor, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(kvm, task, tmp_path, monkeypatch)
    made.define("web1")
    return made


def qemu_img(*arguments: t.Any) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True)


# ---- what is stored


def test_a_vm_is_shelved_offloaded_and_gone(world: World) -> None:
    done = world.quartet("shelved")
    assert done["steps"] == ["put_bases", "copy_disks", "copy_rest", "complete", "mark"]
    assert (done["status"], done["power_state"]) == ("SHELVED", "SHUTDOWN")
    found = world.shelf()
    contents = Contents(host=world.kvm.host.name, power="stopped", autostart=False, vcpus=2, memory=512)
    assert replace(found.contents, arch="", machine="", domain_type="", firmware="bios") == contents
    assert found.manifest.name == "web1-shelved"
    disk, definition = found.manifest.members
    assert (disk.role, disk.form, definition.role) == ("disk", "delta", "domain")
    assert all(each.protected for each in world.store.find(properties={"image_type": "shelf"}))
    (base,) = world.store.find(name=world.bases()[0])
    assert (disk.parent, base.id, base.size) == (
        base.id,
        shelve.base_id(base.digests["sha256"]),
        os.stat(world.base).st_size,
    )
    gone = world.quartet("offloaded")
    assert gone["steps"] == ["verify", "remove_leases", "remove_disks", "undefine", "finish"]
    assert gone["status"] == "SHELVED_OFFLOADED"
    assert gone["figures"]["read_bytes"] == sum(each.size for each in world.store.find())
    assert gone["figures"]["removed_files"] == [str(world.path())]
    assert (world.kvm.names(), world.path().exists(), world.base.exists()) == ([], False, True)
    assert world.shelf().state == "offloaded"
    # That is so whatever state is asked for that it has.
    assert [world.one(state)["changed"] for state in ("shelved", "offloaded")] == [False, False]


def test_the_definition_that_is_stored_has_the_mark_and_no_journal(world: World) -> None:
    world.kvm.remember(Instance(lock=Lock("then", "audit"), launch=LAUNCH))
    world("shelved", override_lock=True)
    found = world.shelf()
    told = world.task(vm_info.main, gather=["status"], image_store={"path": world.place})["vms"][0]
    assert told["shelf"]["bytes"] == found.manifest.size
    first = world.store.get(found.manifest.members[0].id)
    assert first
    assert first.properties["os_type"] == "linux"
    definition = next(each for each in found.manifest.members if each.role == "domain")
    text = Path(f"{world.place}/{definition.id}.img").read_text(encoding="utf-8")
    assert "audit" in text
    assert "journal" not in text
    assert 'value="shelved"' in text


def test_a_base_is_put_once_and_found_again(world: World) -> None:
    world.define("web2", "web3")
    told = world("shelved", name=["web1", "web2"])["vms"]
    assert [vm["status"] for vm in told] == ["SHELVED"] * 2
    (base,) = world.store.find(name=world.bases()[0])
    assert "put_bases" not in world.one("shelved", name="web3")["steps"]
    assert {each.manifest.members[0].parent for each in world.shelves()} == {base.id}


def test_a_store_that_gives_no_identifier_twice_gets_another_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put = DirectoryStore.put
    sha256 = hashlib.sha256(world.base.read_bytes()).hexdigest()

    def refuse(store: DirectoryStore, new: NewImage, content: t.Any) -> t.Any:
        if new.id in (shelve.base_id(sha256), shelve.base_id(sha256, 1)):
            raise Spent("An image that was deleted had it.")
        return put(store, new, content)

    monkeypatch.setattr(DirectoryStore, "put", refuse)
    assert list(world.one("offloaded")["figures"]["put_bases"]) == [shelve.base_id(sha256, 2)]
    assert world.shelf().manifest.members[0].parent == shelve.base_id(sha256, 2)


def test_a_base_that_is_a_trap_is_not_put_into_the_store(world: World) -> None:
    other = world.disks / "other.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", other, "8M")
    qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", other, "-F", "qcow2", world.base)
    domain = world.kvm.domain()
    backing = "<backingStore type='file'><format type='qcow2'/><source file='{}'/><backingStore/></backingStore>"
    text = (
        world.kvm.guest()
        .text(inactive=True)
        .replace(f"<source file='{world.path()}'/>", f"<source file='{world.path()}'/>{backing.format(world.base)}")
    )
    assert domain is not None
    world.kvm.host.define(text)
    world("shelved")
    assert world.shelf().manifest.members[0].form == "full"
    assert world.bases() == []


def test_files_that_others_use_and_bases_stay(world: World) -> None:
    config = world.disks / "own" / "config.iso"
    config.parent.mkdir()
    config.write_bytes(b"cd")
    world.kvm.clear()
    world.define("web1")
    world.kvm.remember(Instance(disks=(OwnDisk("config", "vdb", str(config)),)))
    drive = (
        f"<disk type='file' device='cdrom'><source file='{config}'/><target dev='vdb' bus='virtio'/><readonly/></disk>"
    )
    text = world.kvm.guest().text(inactive=True).replace("</disk>", f"</disk>{drive}", 1)
    world.kvm.host.define(text)
    world.kvm.define("other", running=False, disks=[str(config)])
    done = world.one("offloaded")
    assert [each.role for each in world.shelf().manifest.members] == ["disk", "drive", "domain"]
    assert config.exists()
    assert world.base.exists()
    assert "other" not in done["figures"]["removed_files"]
    assert done["figures"]["kept_disks"][str(config)] == f"VM {uuid_of(2)} uses it too"


# ---- refusals


@pytest.mark.parametrize(
    ("params", "code", "word"),
    [
        ({"state": "shelved", "older_than": 5}, "invalid", "state: offloaded"),
        ({"state": "offloaded", "older_than": -1}, "invalid", "at least 0"),
        ({"state": "shelved", "bandwidth": -1}, "invalid", "bandwidth"),
        ({"state": "unshelved", "wait_timeout": 0}, "invalid", "wait_timeout"),
        ({"state": "shelved", "name": "nobody"}, "not_found", "no shelf"),
        ({"state": "offloaded", "name": "nobody"}, "not_found", "no shelf"),
    ],
)
def test_what_cannot_be_meant_is_refused(world: World, params: dict[str, t.Any], code: str, word: str) -> None:
    told = world(**params)
    assert (told["code"], word in told["msg"]) == (code, True), told["msg"]
    assert world.store.find() == []


@pytest.mark.parametrize("vm_state", ["rescued", "resized", "soft-delete", "error"])
def test_what_is_in_no_plain_state_is_refused_with_the_way_out(world: World, vm_state: str) -> None:
    world.kvm.guest().remember(Instance().marked(Mark(vm_state, "2026-01-01T00:00:00Z")))
    for state in ("shelved", "offloaded"):
        told = world(state)
        assert (told["code"], "se vm" in told["msg"] or "se the module vm" in told["msg"]) == ("refused", True), told[
            "msg"
        ]
    assert world.store.find() == []
    assert world.path().exists()


def test_a_shelf_that_cannot_be_read_hides_no_other(world: World) -> None:
    world.define("web2")
    world.one("shelved")
    first = world.store.get(world.shelf().manifest.members[0].id)
    assert first
    told = json.loads(first.properties[snapshot.MANIFEST])
    for wrong in ({"leases": 5}, {"networks": [["bridge"]]}, {"more": 1}, {"leases": [{"ip": "1"}]}):
        damaged = json.dumps({**told, "shelf": {**told["shelf"], **wrong}})
        world.store.update(first, properties={snapshot.MANIFEST: damaged})
        assert world.shelves() == []
    world.one("shelved", name="web2")
    assert [each.manifest.vm for each in world.shelves()] == ["web2"]
    assert world.one("unshelved", name="web2")["changed"]


def test_a_suspended_vm_wants_to_be_told_of_its_memory(world: World) -> None:
    guest = world.kvm.guest()
    guest.start()
    guest.save()
    told = world("shelved")
    assert (told["code"], "memory: true" in told["msg"]) == ("refused", True)
    done = world.one("shelved", memory=False)
    assert done["status"] == "SHELVED"
    assert not guest.saved()
    assert world.shelf().contents.power == "suspended"
    assert world.one("unshelved")["status"] == "SHUTOFF"


def test_a_job_of_libvirt_and_a_tpm_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.kvm.guest().start()
    monkeypatch.setattr(Details, "block_job", lambda _self, target: {"operation": "copy"} if target == "vda" else None)
    told = world("shelved")
    assert (told["code"], "copy of disk vda" in told["msg"]) == ("busy", True)
    world.kvm.guest().power_off()
    text = world.kvm.guest().text(inactive=True)
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm></devices>"
    world.kvm.host.define(text.replace("</devices>", tpm))
    told = world("shelved")
    assert (told["code"], "TPM" in told["msg"]) == ("unsupported", True)


def test_room_is_looked_for_before_anything_is_touched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.kvm.guest().start()
    storage = "ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.local.LocalStorage"
    monkeypatch.setattr(f"{storage}.free", lambda _self, _directory: MIB)
    told = world("shelved")
    assert (told["code"], "1.0 MiB are free" in told["msg"]) == ("no_space", True)
    assert world.kvm.guest().active()
    assert told["vms"][0]["steps"] == []


def test_a_machine_that_cannot_read_disks_stops_no_vm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.kvm.guest().start()
    monkeypatch.setattr(nbd, "nbd", None)
    monkeypatch.setattr(shelving, "demand_libnbd", nbd.demand_libnbd)
    told = world("shelved")
    assert (told["code"], "python3-libnbd" in told["msg"]) == ("unsupported", True)
    assert world.kvm.guest().active()


def test_what_fails_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = world.kvm.guest()
    guest.start()
    guest.set_autostart(True)

    def full(_self: Copier, *_arguments: t.Any, **_more: t.Any) -> None:
        raise NoSpace("The store is full.")

    monkeypatch.setattr(Copier, "beside", full)
    told = world("shelved")
    assert told["msg"] == "The store is full. VM web1 is not shelved, and runs."
    assert (guest.active(), guest.autostart(), world.marks(), world.kvm.recall().journal) == (True, True, [], None)
    assert [name.split("-")[0] for name in world.bases()] == ["base"]
    assert len(world.store.find()) == 1


# ---- dead runs


@pytest.mark.parametrize("step", ["stop", "put_bases", "copy_disks", "copy_rest", "complete", "mark", "end"])
@pytest.mark.parametrize("then", ["shelved", "offloaded", "unshelved"])
def test_a_shelving_that_died_is_finished_or_taken_back(world: World, step: str, then: str) -> None:
    guest = world.kvm.guest()
    guest.start()
    guest.set_autostart(True)
    world.killed_at(step, "shelved")
    done = world.quartet(then)
    assert len(world.shelves()) == (then != "unshelved")
    assert len(world.store.find()) <= 3
    if then == "offloaded":
        assert (world.kvm.names(), done["status"]) == ([], "SHELVED_OFFLOADED")
        return
    assert world.kvm.recall().journal is None
    if then == "shelved":
        assert (world.marks(), guest.active(), guest.autostart()) == (["shelved"], False, False)
        assert world.one("unshelved")["status"] == "ACTIVE"
    assert (world.marks(), guest.active(), guest.autostart()) == ([], True, True)
    assert [name.split("-")[0] for name in world.bases() + [each.name for each in world.store.find()]] in (
        ["base", "base"],
        [],
    )


@pytest.mark.parametrize("step", ["verify", "remove_leases", "remove_disks", "undefine", "finish"])
def test_an_offload_that_died_is_finished(world: World, step: str) -> None:
    world("shelved")
    world.killed_at(step, "offloaded")
    if step == "finish":
        assert (world.kvm.names(), world.shelf().state) == ([], "shelved")
    elif step in ("remove_disks", "undefine"):
        told = world("unshelved")
        assert (told["code"], "state: offloaded" in told["msg"]) == ("busy", True)
    assert world.quartet("offloaded")["status"] == "SHELVED_OFFLOADED"
    assert (world.kvm.names(), world.path().exists(), world.shelf().state) == ([], False, "offloaded")


@pytest.mark.parametrize("state", ["shelved", "offloaded"])
def test_an_offload_that_died_behind_libvirts_back_is_finished_without_a_name(world: World, state: str) -> None:
    world("shelved")
    world.killed_at("finish", "offloaded")
    told = world(state, **({"name": None, "older_than": 9999} if state == "offloaded" else {}))
    assert (told["changed"], told["vms"][0]["steps"]) == (True, ["finish"])
    assert world.shelf().state == "offloaded"


def test_both_in_one_go_may_die_in_the_second(world: World) -> None:
    for step in ("mark", "verify", "remove_disks"):
        world.killed_at(step, "offloaded")
    assert world.quartet("offloaded")["status"] == "SHELVED_OFFLOADED"


@pytest.mark.parametrize("step", ["start", "unmark", "drop_shelf", "end"])
def test_coming_back_that_died_is_finished(world: World, step: str) -> None:
    guest = world.kvm.guest()
    guest.start()
    world("shelved")
    world.killed_at(step, "unshelved")
    world.quartet("unshelved")
    assert (world.marks(), guest.active(), len(world.store.find())) == ([], True, 1)


# ---- offloading


def test_a_host_keeps_what_the_store_has_not(world: World) -> None:
    world("shelved")
    disk = world.shelf().manifest.members[0]
    for image_id in (disk.id, disk.parent):
        path = Path(f"{world.place}/{image_id}.img")
        whole = path.read_bytes()
        path.write_bytes(whole[:70000] + bytes([whole[70000] ^ 1]) + whole[70001:])
        told = world("offloaded")
        assert (told["code"], str(path) in told["msg"], "still has everything" in told["msg"]) == (
            "invalid",
            True,
            True,
        )
        assert (world.marks(), world.kvm.recall().journal, world.path().exists()) == (["shelved"], None, True)
        path.write_bytes(whole)
    base = world.store.get(disk.parent)
    assert base
    world.store.delete(base.id)
    assert world("offloaded", verify="quick")["code"] == "not_found"
    # What is damaged or gone does not keep the VM from coming back.
    world.store.delete(shelf.claim_id(world.shelf().key))
    Path(f"{world.place}/{disk.id}.img").unlink()
    assert "is not whole" in world("offloaded", verify="quick")["msg"]
    told = world("unshelved")
    assert told["vms"][0]["status"] == "SHUTOFF"
    assert "not whole" in str(told["warnings"]), told
    assert world.store.find() == []


def test_what_was_written_since_is_not_lost(world: World) -> None:
    world("shelved")
    world.kvm.guest().start()
    assert "somebody started it" in world("offloaded")["msg"]
    world.kvm.guest().power_off()
    os.utime(world.path())
    told = world("offloaded")
    assert (told["code"], str(world.path()) in told["msg"]) == ("refused", True)
    world.path().unlink()
    assert world("offloaded")["code"] == "not_found"
    assert world.kvm.names() == ["web1"]


def test_time_and_the_wish_tell_what_is_offloaded_without_a_name(world: World) -> None:
    world.define("web2", "web3")
    world("shelved")
    world("shelved", name="web2", offload="never")
    early = world("offloaded", name=None, older_than=10**9)
    assert [(each["name"], each["changed"]) for each in early["vms"]] == [("web1", False)]
    assert early["vms"][0]["figures"]["offload_at"]
    assert not world("offloaded", name=["web1", "web2", "web3"], older_than=10**9)["changed"]
    assert [each["name"] for each in world("offloaded", name=None)["vms"]] == ["web1"]
    assert world.one("shelved", name="web3", offload="now")["status"] == "SHELVED_OFFLOADED"
    assert world.kvm.names() == ["web2"]
    assert world.one("offloaded", name="web2")["status"] == "SHELVED_OFFLOADED"


# ---- who has it


def test_the_store_must_be_the_one_that_has_the_shelf(world: World, tmp_path: Path) -> None:
    world("shelved")
    other: dict[str, t.Any] = {"image_store": {"path": str(tmp_path / "other")}}
    for told in (world("offloaded", **other), world("unshelved", **other)):
        assert (told["code"], world.place in told["msg"]) == ("refused", True)
    told = world.task(vm.main, name="web1", state="absent", **other)
    assert (told["code"], world.place in told["msg"]) == ("refused", True)
    # Without a name it is not meant.
    (told,) = world("offloaded", name=None, **other)["vms"]
    assert (told["changed"], told["figures"]["image_store"]) == (False, world.place)


def test_a_base_is_read_back_once_a_task(world: World) -> None:
    world.define("web2", "web3")
    told = world("offloaded", name=["web1", "web2", "web3"], concurrency=1)["vms"]
    first, second, third = (vm["figures"]["read_bytes"] for vm in told)
    assert (second, third) == (first - world.base.stat().st_size, second)


def test_a_vm_that_another_host_took_over_stays_off(world: World) -> None:
    world("shelved")
    key = world.claim("kvm9")
    told = world("unshelved")
    assert (told["code"], "kvm9" in told["msg"]) == ("refused", True)
    assert world("offloaded")["code"] == "busy"
    assert world.kvm.recall().journal is None
    assert world.one("unshelved", override_claim=True)["status"] == "SHUTOFF"
    assert world.store.get(key) is None


def test_a_vm_that_is_shelved_on_another_host_is_told_so(world: World) -> None:
    world("shelved")
    found = world.shelf()
    first = world.store.get(found.manifest.members[0].id)
    assert first
    elsewhere = replace(found.manifest, shelf=replace(found.contents, host="kvm9").dump())
    world.store.update(first, properties={snapshot.MANIFEST: elsewhere.dump()})
    world.kvm.clear()
    for told in (
        world("shelved"),
        world("offloaded"),
        world.task(vm.main, name="web1", state="absent", image_store={"path": world.place}),
    ):
        assert (told["code"], "kvm9" in told["msg"]) == ("refused", True)
    assert world("offloaded", name=None)["vms"] == []


def test_the_power_that_is_asked_for_is_there_afterwards(world: World) -> None:
    guest = world.kvm.guest()
    for before, asked, after in ((False, "running", True), (True, "stopped", False), (True, "before", True)):
        if guest.active() != before:
            guest.start() if before else guest.power_off()
        world("shelved")
        world.quartet("unshelved", power=asked)
        assert guest.active() is after


# ---- other modules


def test_others_leave_a_shelf_alone(world: World) -> None:
    into: dict[str, t.Any] = {"image_store": {"path": world.place}}
    world("shelved")
    told = world.task(vm_snapshot.main, name="web1", image="web1-shelved", state="absent", **into)
    assert not told["changed"]
    told = world.task(image.main, name="web1-shelved", state="absent", **into)
    assert (told["code"], f"shelf of the VM {uuid_of(1)}" in told["msg"]) == ("refused", True)
    assert "vm_shelve" in world.task(vm_power.main, name="web1", state="running")["msg"]
    assert world.shelf().state == "shelved"


def test_a_shelf_goes_with_its_vm(world: World) -> None:
    into: dict[str, t.Any] = {"image_store": {"path": world.place}}
    world("shelved")
    assert "drop_shelf" in world.task(vm.main, name="web1", state="absent", **into)["vms"][0]["steps"]
    assert (world.kvm.names(), world.shelves()) == ([], [])
    world.define("web2")
    world("offloaded", name="web2")
    told = world.task(vm.main, name="web2", state="absent", reclaim_after=9, **into)
    assert (told["code"], "reclaim_after: 0" in told["msg"]) == ("refused", True)
    key = world.claim("kvm9")
    assert world.task(vm.main, name="web2", state="absent", **into)["code"] == "busy"
    world.store.delete(key)
    done = world.task.quartet(vm.main, name="web2", state="absent", **into)["vms"][0]
    assert (done["status"], done["steps"]) == ("ABSENT", ["drop_shelf"])
    assert len(world.store.find()) == 1


def test_a_vm_that_is_just_brought_back_goes_with_its_shelf(world: World) -> None:
    into: dict[str, t.Any] = {"image_store": {"path": world.place}}
    world("offloaded")
    key = world.claim(world.kvm.host.name)
    found = world.shelf()
    world.define("web1")
    overlay = world.disks / "web1-pulled.qcow2"
    overlay.write_bytes(b"")
    disk = found.manifest.members[0]
    piece = Piece("vda", disk.id, (disk.parent,), str(world.path()), str(overlay), 8 * MIB, 0, "/i")
    images = tuple(member.id for member in found.manifest.members)
    began = Began(found.key, images, "directory", world.place, "instant", "running", (piece,))
    journal = Journal("unshelve", "then", platform.node(), 1, "pull", began.dump())
    world.kvm.remember(Instance(marks=(Mark("shelved_offloaded", "then"),), journal=journal))
    assert world.task(vm.main, name="web1", state="absent")["code"] == "refused"
    done = world.task.quartet(vm.main, name="web1", state="absent", **into)["vms"][0]
    assert done["status"] == "ABSENT"
    assert (world.kvm.names(), world.shelves(), world.store.get(key)) == ([], [], None)
    assert list(world.disks.iterdir()) == [world.base]


def test_the_lock_of_a_vm_that_no_host_has_is_honoured(world: World) -> None:
    into: dict[str, t.Any] = {"image_store": {"path": world.place}}
    world.kvm.remember(Instance(lock=Lock("then", "audit")))
    assert world("offloaded")["code"] == "locked"
    world("offloaded", override_lock=True)
    told = world.task(vm.main, name="web1", state="absent", **into)
    assert (told["code"], "audit" in told["msg"]) == ("locked", True)
    assert world.task(vm.main, name="web1", state="absent", override_lock=True, **into)["changed"]


def test_an_image_that_others_build_upon_stays_as_an_ordinary_one(world: World) -> None:
    world("shelved")
    disk = world.shelf().manifest.members[0]
    upper = NewImage(shelve.base_id("upper"), "upper", "raw", {snapshot.PARENT: disk.id})
    world.store.put(upper, TextContent(b"x"))
    done = world.one("unshelved")
    assert done["figures"]["kept_images"] == {"web1-shelved": "upper lies upon it"}
    left = world.store.get(disk.id)
    assert left
    assert (left.protected, left.properties["image_type"], snapshot.MANIFEST in left.properties) == (
        False,
        "snapshot",
        False,
    )
    assert world.shelves() == []


def test_vm_info_tells_of_vms_that_no_host_has_when_a_store_is_named(world: World) -> None:
    world.define("web0", "web2")
    world.kvm.remember(Instance(launch=LAUNCH), name="web2")
    world("offloaded", name=["web0", "web2"])
    world("shelved")
    into: dict[str, t.Any] = {"image_store": {"path": world.place}}
    told = world.task(vm_info.main, gather=["status"], **into)
    assert [(each["name"], each["status"]) for each in told["vms"]] == [
        ("web0", "SHELVED_OFFLOADED"),
        ("web1", "SHELVED"),
        ("web2", "SHELVED_OFFLOADED"),
    ]
    assert told["vms"][2]["launched"]["by"] == "ada"
    assert (told["vms"][2]["host"], told["vms"][2]["shelf"]["host"]) == ("", world.kvm.host.name)
    keys = [sorted(each["shelf"]) for each in told["vms"][::2]]
    assert keys[0] == keys[1]
    named = world.task(vm_info.main, gather=["status"], name=["web2", "nobody", "web1"], **into)
    assert ([each["name"] for each in named["vms"]], named["missing"]) == (["web2", "web1"], ["nobody"])
    only = world.task(vm_info.main, gather=["status"], status=["SHELVED"], **into)
    assert [each["name"] for each in only["vms"]] == ["web1"]
    # Without a store none is asked, and the mark tells what it knows.
    (plain,) = world.task(vm_info.main, gather=["status"])["vms"]
    assert (plain["shelf"]["image_store"], plain["shelf"]["bytes"]) == (world.place, None)
    assert Manifest.load(world.store.find(name="web1-shelved")[0].properties[snapshot.MANIFEST]).shelf


def test_another_machines_work_is_waited_for(world: World) -> None:
    world.killed_at("copy_rest", "shelved")
    instance = world.kvm.recall()
    assert instance.journal
    world.kvm.remember(replace(instance, journal=replace(instance.journal, node=f"not-{platform.node()}")))
    assert [world(state)["code"] for state in ("shelved", "offloaded")] == ["busy", "busy"]
