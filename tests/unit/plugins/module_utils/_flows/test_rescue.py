# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rescuing VMs and letting them be as they were, on libvirt's in-memory driver with real files."""

from __future__ import annotations

import platform
import re
import subprocess
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils import _module
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.journal import Journal
from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import rescue as flows
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.base import NewImage
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.content import FileContent
from ansible_collections.kvmops.lifecycle.plugins.module_utils._images.directory import DirectoryStore
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import swap
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.chains import Chains
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import rescue as rules
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import (
    Instance,
    Launch,
    Lock,
    Mark,
    OwnDisk,
    dump,
)
from ansible_collections.kvmops.lifecycle.plugins.modules import vm, vm_info, vm_power, vm_rescue, vm_status
from tests.unit.hypervisor import Hypervisor, Task

MIB = 1 << 20
UUID = "00000001-abcd-4000-8000-00000000000a"
SECRET = "open-sesame"

# As another tool defines it: metadata and a display of its own, a boot order, a TPM.
DOMAIN = """
<domain type='test'>
  <name>web1</name>
  <uuid>{uuid}</uuid>
  <metadata>
    <tool:notes xmlns:tool="urn:tool"><tool:note>keep me</tool:note></tool:notes>
    {ours}
  </metadata>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <os{uefi}><type arch='x86_64' machine='q35'>hvm</type><kernel>/boot/vmlinuz</kernel>{os}</os>
  <devices>
    {disks}
    <interface type='user'><mac address='52:54:00:00:00:01'/><boot order='3'/></interface>
    <graphics type='vnc' passwd='{secret}'/>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>
"""


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that runs is seen to at once."""
    monkeypatch.setattr(swap, "_SETTLED", 0)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Where the VM has its disks."""
    made = tmp_path / "images"
    (made / UUID).mkdir(parents=True)
    return made


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A rescue image."""
    path = tmp_path / "rescue.raw"
    path.write_bytes(b"rescue".ljust(MIB, b"\0"))
    return str(path)


def qcow2(path: Path) -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    return str(path)


def define(
    kvm: Hypervisor, storage: Path, *, running: bool = True, uefi: bool = False, instance: Instance | None = None
) -> list[str]:
    """A VM with two disks and a drive with data for cloud-init; their files."""
    files = [qcow2(storage / UUID / name) for name in ("root.qcow2", "data.qcow2")]
    config = storage / UUID / "config.iso"
    config.write_bytes(b"mine")
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        f"<target dev='vd{letter}' bus='virtio'/><boot order='{number}'/></disk>"
        for path, letter, number in zip(files, "ab", (2, 1))
    )
    disks += (
        f"<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{config}'/>"
        "<target dev='sda' bus='scsi'/><readonly/></disk>"
    )
    own = tuple(
        OwnDisk(role, target, path)
        for role, target, path in zip(("root", "ephemeral", "config"), ("vda", "vdb", "sda"), [*files, str(config)])
    )
    launch = Launch("then", "ada", "gone", f"{storage}/_base/none.raw", "raw", "00", str(storage))
    kept = instance or Instance(launch=launch, disks=own)
    ours = dump(kept).replace("<instance ", '<instance xmlns="urn:kvmops:lifecycle:instance" ')
    system = "<nvram>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>" if uefi else ""
    domain = kvm.connection.defineXML(
        DOMAIN.format(
            uuid=UUID, ours=ours, disks=disks, secret=SECRET, os=system, uefi=" firmware='efi'" if uefi else ""
        )
    )
    kvm.guest().remember(kept)
    if running:
        domain.create()
    return files


def original(kvm: Hypervisor) -> str:
    """The definition with secrets, byte by byte, without what we remember."""
    text = kvm.guest().text(inactive=True, secure=True)
    return re.sub(r"\s*<kvmops:instance.*</kvmops:instance>", "", text, flags=re.DOTALL)


def layout(kvm: Hypervisor) -> list[str]:
    """Each disk: its target, what it is, its boot order."""
    told = []
    for node in kvm.domain().iterfind("devices/disk"):
        target, boot = node.find("target"), node.find("boot")
        assert target is not None
        order = boot.get("order") if boot is not None else "-"
        told.append(f"{target.get('dev')} {target.get('bus')} {node.get('device')} {order}")
    return told


def source_of(kvm: Hypervisor, target: str) -> str:
    node = kvm.domain().find(f"devices/disk/target[@dev='{target}']/../source")
    assert node is not None
    return node.get("file", "")


def files(storage: Path) -> list[str]:
    """What there is but for the base cache."""
    return sorted(path.name for path in storage.rglob("*") if path.is_file() and path.parent.name != "_base")


def options(storage: Path, **more: t.Any) -> dict[str, t.Any]:
    store = storage.parent / "store"
    return {"name": "web1", "image_format": "raw", "image_store": {"path": str(store)}, "force": True, **more}


OWN = ["config.iso", "data.qcow2", "root.qcow2"]
WAYS = [
    ("stable", ["vda virtio disk -", "vdb virtio disk -", "vdc virtio disk 1", "sda scsi cdrom -"]),
    ("classic", ["vda virtio disk 1", "vdb virtio disk -"]),
]


# ---- there and back


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(("way", "expected"), WAYS)
def test_a_rescued_vm_boots_from_the_rescue_disk_only_and_is_as_it_was_afterwards(
    kvm: Hypervisor, task: Task, storage: Path, image: str, way: str, expected: list[str], running: bool
) -> None:
    root, _data = define(kvm, storage, running=running)
    before = original(kvm)
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", image=image, layout=way))["vms"][0]
    assert told["steps"] == ["stage", *(["stop"] if running else []), "swap", "start"]
    assert (told["status"], told["power_state"]) == ("RESCUE", "RUNNING")
    assert told["figures"].get("shutdown") == ("forced" if running else None)
    assert layout(kvm) == expected
    domain = kvm.domain()
    for gone in ("os/boot", "os/kernel", "devices/tpm", "devices/interface/boot"):
        assert domain.find(gone) is None, gone
    rescue = told["figures"]["rescue"]
    target, other = ("vdc", "vda") if way == "stable" else ("vda", "vdb")
    assert (source_of(kvm, target), source_of(kvm, other)) == (rescue["disk"], root)
    assert Path(rescue["base"]).parent == storage / "_base"
    assert (rescue["layout"], rescue["power_before"]) == (way, "running" if running else "stopped")
    assert (rescue["device"], rescue["bus"], rescue["image"]) == ("disk", "virtio", image)
    assert SECRET not in dump(kvm.recall())
    assert kvm.recall().journal is None
    # What happens to the metadata meanwhile stays.
    kvm.remember(Instance(**{**vars(kvm.recall()), "lock": Lock("now", "mine")}))
    told = task.quartet(vm_rescue.main, **options(storage, state="unrescued", override_lock=True))["vms"][0]
    assert told["steps"] == ["stop", "swap_back", *(["start"] if running else []), "remove"]
    assert told["status"] == ("ACTIVE" if running else "SHUTOFF")
    assert told["figures"]["removed_files"] == [rescue["disk"]]
    assert original(kvm) == before
    assert (kvm.recall().marks, kvm.recall().lock) == ((), Lock("now", "mine"))
    assert [disk.role for disk in kvm.recall().disks] == ["root", "ephemeral", "config"]
    assert files(storage) == OWN


def test_a_locked_vm_is_refused(kvm: Hypervisor, task: Task, storage: Path, image: str) -> None:
    define(kvm, storage, instance=Instance(lock=Lock("then", "hands off")))
    before = kvm.guest().text(inactive=True, secure=True)
    assert task(vm_rescue.main, **options(storage, state="rescued", image=image))["code"] == "locked"
    assert kvm.guest().text(inactive=True, secure=True) == before


def test_a_vm_with_uefi_has_fresh_variables_meanwhile(kvm: Hypervisor, task: Task, storage: Path, image: str) -> None:
    define(kvm, storage, uefi=True)
    before = original(kvm)
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", image=image))["vms"][0]
    nvram = told["figures"]["rescue"]["nvram"]
    assert re.fullmatch(r"/var/lib/libvirt/qemu/nvram/web1_VARS-[0-9a-f]{8}\.fd", nvram)
    assert kvm.domain().findtext("os/nvram") == nvram
    # And another fresh one with the next image, beside the same.
    other = Path(image).with_name("other.raw")
    other.write_bytes(b"other".ljust(MIB, b"\0"))
    told = task(vm_rescue.main, **options(storage, state="rescued", image=str(other)))["vms"][0]
    assert re.fullmatch(r"/var/lib/libvirt/qemu/nvram/web1_VARS-[0-9a-f]{8}\.fd", told["figures"]["rescue"]["nvram"])
    assert told["figures"]["rescue"]["nvram"] != nvram
    task(vm_rescue.main, **options(storage, state="unrescued"))
    assert original(kvm) == before


def test_rescued_with_another_image_or_layout_is_a_change_and_the_first_state_stays_remembered(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage, running=False)
    before = original(kvm)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    since = kvm.recall().marks[0].since
    other = Path(image).with_name("other.raw")
    other.write_bytes(b"other".ljust(MIB, b"\0"))
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", image=str(other)))["vms"][0]
    assert told["steps"] == ["stage", "stop", "swap", "start", "remove"]
    assert files(storage) == sorted([*OWN, Path(source_of(kvm, "vdc")).name])
    # The same content under another name is the same image; what is not said is not compared.
    copied = Path(image).with_name("copied.raw")
    copied.write_bytes(other.read_bytes())
    assert not task(vm_rescue.main, **options(storage, state="rescued", image=str(copied)))["changed"]
    assert not task(vm_rescue.main, **options(storage, state="rescued", bus="virtio", device="disk"))["changed"]
    # Otherwise, and with the same image as now.
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", layout="classic"))["vms"][0]
    assert told["figures"]["rescue"]["image"] == str(other)
    assert layout(kvm) == WAYS[1][1]
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", device="cdrom"))["vms"][0]
    assert layout(kvm)[-1] == "sdb scsi cdrom 1"
    (mark,) = kvm.recall().marks
    assert (mark.since, mark.data["power"]) == (since, "stopped")
    told = task(vm_rescue.main, **options(storage, state="unrescued"))["vms"][0]
    assert (told["status"], original(kvm)) == ("SHUTOFF", before)
    assert files(storage) == OWN


def test_credentials_are_on_a_drive_of_their_own_and_nowhere_else(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage)
    asked = {"password": "s3cr3t-word", "ssh_keys": ["ssh-ed25519 AAAA ada"]}
    told = task.quartet(vm_rescue.main, **options(storage, state="rescued", image=image, credentials=asked))
    seed = told["vms"][0]["figures"]["rescue"]["seed"]
    assert layout(kvm) == WAYS[0][1]
    assert source_of(kvm, "sda") == seed
    content = Path(seed).read_bytes()
    assert Path(seed).stat().st_mode & 0o777 == 0o600
    for word in (b"root:s3cr3t-word", b"ssh-ed25519 AAAA ada", b'"disable_root": false', b"cidata", b"rescue-"):
        assert word in content, word
    assert "s3cr3t" not in str(told) + kvm.guest().text(inactive=True, secure=True)
    task(vm_rescue.main, **options(storage, state="unrescued"))
    assert files(storage) == OWN


def test_the_default_is_the_image_that_it_was_launched_from_and_that_is_warned_of(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage)
    told = task(vm_rescue.main, **options(storage, state="rescued"))
    assert (told["code"], "Say with image" in told["msg"]) == ("not_found", True)
    # As a launch has made it.
    told = task(vm_rescue.main, **options(storage, state="rescued", image=image))
    assert "warnings" not in told
    base = told["vms"][0]["figures"]["rescue"]["base"]
    task(vm_rescue.main, **options(storage, state="unrescued"))
    launch = Launch("then", "ada", "debian", base, "raw", "00", str(storage), image_id="7", place="there")
    kvm.remember(Instance(launch=launch, disks=kvm.recall().disks))
    told = task(vm_rescue.main, **options(storage, state="rescued"))
    assert told["vms"][0]["figures"]["rescue"]["image"] == "debian (7)"
    assert "same labels" in str(told["warnings"])


def test_an_image_of_a_store_says_what_the_rescue_disk_is(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage, instance=Instance(marks=(Mark("error", "then"),)))
    ask = options(storage, state="rescued", image="fix")
    store = DirectoryStore(ask["image_store"]["path"])
    properties = {"hw_rescue_device": "cdrom", "hw_rescue_bus": "usb"}
    new = NewImage(id=UUID, name="fix", disk_format="raw", properties=properties, min_ram=1024)
    store.put(new, FileContent(image))
    assert "1024 MiB" in task(vm_rescue.main, **ask)["msg"]
    kvm.connection.defineXML(kvm.guest().text(inactive=True, secure=True).replace("524288", "1048576"))
    assert kvm.recall().marks
    told = task.quartet(vm_rescue.main, **ask)["vms"][0]
    assert layout(kvm)[-1] == "sdb usb cdrom 1"
    assert (told["figures"]["rescue"]["image"], told["figures"]["rescue"]["image_id"]) == (f"fix ({UUID})", UUID)
    # Its disks are those of another tool: the rescue's files lie beside them.
    assert Path(told["figures"]["rescue"]["disk"]).parent == storage / UUID
    told = task.quartet(vm_rescue.main, **options(storage, state="unrescued"))["vms"][0]
    assert told["status"] == "ACTIVE"
    assert kvm.recall() == Instance()


# ---- what fails


def fail(*_args: object) -> None:
    raise LifecycleError("It is as it is.")


def failing(monkeypatch: pytest.MonkeyPatch, *, rescued: bool) -> None:
    """A VM does not start while it is rescued, or while it is not."""
    start = Guest.start

    def start_or_fail(guest: Guest, *, paused: bool = False) -> None:
        if bool(rules.rescued_mark(guest.recall().marks)) == rescued:
            raise LifecycleError("QEMU says no.")
        start(guest, paused=paused)

    monkeypatch.setattr(Guest, "start", start_or_fail)


@pytest.mark.parametrize(("running", "again"), [(True, " and was started"), (False, "")])
def test_a_rescue_that_fails_leaves_the_vm_as_it_was(
    kvm: Hypervisor,
    task: Task,
    storage: Path,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    running: bool,
    again: str,
) -> None:
    define(kvm, storage, running=running)
    before = original(kvm)
    failing(monkeypatch, rescued=True)
    told = task(vm_rescue.main, **options(storage, state="rescued", image=image))
    assert f"it has its definition from before again{again}." in told["msg"]
    assert told["vms"][0]["status"] == ("ACTIVE" if running else "SHUTOFF")
    assert (original(kvm), files(storage)) == (before, OWN)
    assert (kvm.recall().marks, kvm.recall().journal, len(kvm.recall().disks)) == ((), None, 3)


def test_another_rescue_that_fails_leaves_the_first(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(kvm, storage)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    before, left = original(kvm), files(storage)
    run = flows._Rescue.run
    monkeypatch.setattr(flows._Rescue, "run", fail)
    told = task(vm_rescue.main, **options(storage, state="rescued", image=image, layout="classic"))
    assert "and was started" in told["msg"]
    assert (told["vms"][0]["status"], told["vms"][0]["power_state"]) == ("RESCUE", "RUNNING")
    assert (original(kvm), files(storage)) == (before, left)
    monkeypatch.setattr(flows._Rescue, "run", run)
    assert not task(vm_rescue.main, **options(storage, state="rescued", image=image))["changed"]


def test_a_way_back_that_fails_leaves_the_vm_rescued(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(kvm, storage)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    before, left = original(kvm), files(storage)
    with monkeypatch.context() as patched:
        failing(patched, rescued=False)
        told = task(vm_rescue.main, **options(storage, state="unrescued"))
    assert "it is rescued again, and was started so" in told["msg"]
    assert (told["vms"][0]["status"], told["vms"][0]["power_state"]) == ("RESCUE", "RUNNING")
    assert (original(kvm), files(storage)) == (before, left)
    # A disk that is gone is found before anything is touched.
    data = storage / UUID / "data.qcow2"
    data.rename(data.with_suffix(".away"))
    told = task(vm_rescue.main, check=True, **options(storage, state="unrescued"))
    assert (told["code"], str(data) in told["msg"], "still rescued" in told["msg"]) == ("not_found", True, True)
    data.with_suffix(".away").rename(data)
    # A file that cannot be removed does not bring the rescue back.
    remove = flows._Unrescue.clear
    monkeypatch.setattr(flows._Unrescue, "clear", fail)
    told = task(vm_rescue.main, **options(storage, state="unrescued"))
    assert (told["vms"][0]["status"], told["vms"][0]["steps"]) == ("ACTIVE", ["stop", "swap_back", "start"])
    monkeypatch.setattr(flows._Unrescue, "clear", remove)
    assert task(vm_rescue.main, **options(storage, state="unrescued"))["vms"][0]["steps"] == ["remove"]
    assert files(storage) == OWN


@pytest.mark.parametrize("after", ["rescued", "unrescued"])
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize(
    ("state", "method"),
    [
        ("rescued", "stage"),
        ("rescued", "stop"),
        ("rescued", "swap"),
        ("rescued", "start"),
        ("again", "stage"),
        ("again", "swap"),
        ("again", "start"),
        ("again", "remove"),
        ("unrescued", "stop"),
        ("unrescued", "swap_back"),
        ("unrescued", "start"),
        ("unrescued", "remove"),
    ],
)
def test_what_was_killed_is_finished_or_taken_back(
    kvm: Hypervisor,
    task: Task,
    storage: Path,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    method: str,
    running: bool,
    after: str,
) -> None:
    define(kvm, storage, running=running)
    before = original(kvm)
    if state != "rescued":
        task(vm_rescue.main, **options(storage, state="rescued", image=image))
    ask = (
        options(storage, state="unrescued")
        if state == "unrescued"
        else options(storage, state="rescued", image=image, layout="classic" if state == "again" else "stable")
    )
    if state == "rescued" and method == "stop" and not running:
        method = "swap"
    with monkeypatch.context() as patched:
        killed(patched, flows._Unrescue if state == "unrescued" else flows._Rescue, method)
        told = task(vm_rescue.main, **ask)
    if state == "unrescued" and method == "start" and not running:
        assert told["changed"]  # there is no such step
    else:
        assert told["msg"].endswith("It is as it is.")
        assert kvm.recall().journal
    if after == "rescued":
        ask = options(storage, state="rescued", image=image, layout="classic" if state == "again" else "stable")
        told = task(vm_rescue.main, **ask)["vms"][0]
        assert (told["status"], told["power_state"]) == ("RESCUE", "RUNNING")
        assert len(files(storage)) == 4
        assert not task(vm_rescue.main, **ask)["changed"]
    told = task(vm_rescue.main, **options(storage, state="unrescued"))["vms"][0]
    assert told["status"] == ("ACTIVE" if running else "SHUTOFF")
    assert (original(kvm), files(storage)) == (before, OWN)
    assert (kvm.recall().marks, kvm.recall().journal, len(kvm.recall().disks)) == ((), None, 3)
    assert not task(vm_rescue.main, **options(storage, state="unrescued"))["changed"]


def killed(monkeypatch: pytest.MonkeyPatch, work: type, method: str) -> None:
    """A run dies right before that step."""
    monkeypatch.setattr(work, method, fail)
    monkeypatch.setattr(_module._Runner, "_take_back", lambda *_args: None)


def test_what_was_done_after_a_run_that_died_at_its_end_stays(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(kvm, storage, running=False)
    before = original(kvm)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    ask = options(storage, state="rescued", image=image, layout="classic")
    with monkeypatch.context() as patched:
        killed(patched, flows._Rescue, "remove")
        task(vm_rescue.main, **ask)
    kvm.guest().power_off()
    told = task.quartet(vm_rescue.main, **ask)["vms"][0]
    assert (told["steps"], told["power_state"]) == (["remove"], "SHUTDOWN")
    # It was off before all that, and so it is when the next rescue fails.
    kvm.guest().start()
    with monkeypatch.context() as patched:
        killed(patched, flows._Unrescue, "remove")
        task(vm_rescue.main, **options(storage, state="unrescued"))
    failing(monkeypatch, rescued=True)
    told = task(vm_rescue.main, **ask)
    assert (told["vms"][0]["status"], original(kvm), files(storage)) == ("SHUTOFF", before, OWN)


@pytest.mark.parametrize(
    ("state", "more", "code", "way_out"),
    [
        ("on", {"image": "nothing"}, "not_found", ""),
        ("on", {"image_format": "qcow2"}, "invalid", ""),
        ("on", {"layout": "classic", "bus": "sata"}, "invalid", "layout: stable"),
        ("on", {"device": "cdrom", "bus": "virtio"}, "invalid", "bus: scsi"),
        ("on", {"bus": "ide"}, "invalid", "bus: sata"),
        ("on", {"wait_for": "agent"}, "unsupported", "wait_for: running"),
        ("paused", {}, "refused", "discard_memory: true"),
        ("suspended", {}, "refused", "discard_memory: true"),
        ("lost", {}, "not_found", "layout: classic"),
        ("rootless", {"layout": "classic"}, "not_found", "Bring that back"),
        ("soft-delete", {"discard_memory": True}, "refused", "state: restored"),
        ("rebuild", {}, "busy", ""),
    ],
)
def test_what_cannot_be_is_refused_in_check_mode_already(
    kvm: Hypervisor,
    task: Task,
    storage: Path,
    image: str,
    state: str,
    more: dict[str, t.Any],
    code: str,
    way_out: str,
) -> None:
    define(kvm, storage)
    if state in ("paused", "soft-delete"):
        kvm.guest().pause()
    if state == "suspended":
        kvm.guest().save()
    if state in ("lost", "rootless"):
        (storage / UUID / ("data.qcow2" if state == "lost" else "root.qcow2")).unlink()
    if state == "soft-delete":
        kvm.remember(Instance(marks=(Mark(state, "then"),)))
    if state == "rebuild":
        kvm.remember(Instance(journal=Journal("rebuild", "then", platform.node(), 1)))
    before, left = kvm.guest().text(inactive=True), files(storage)
    for check in (True, False):
        ask = {**options(storage, state="rescued", image=image), **more}
        told = task(vm_rescue.main, check=check, **ask)
        assert (told["code"], way_out in told["msg"]) == (code, True), told["msg"]
    assert (kvm.guest().text(inactive=True), files(storage)) == (before, left)


@pytest.mark.parametrize("state", ["paused", "suspended"])
def test_memory_is_discarded_when_that_is_said(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    define(kvm, storage)
    before = original(kvm)
    if state == "paused":
        kvm.guest().pause()
    else:
        kvm.guest().save()
    ask = options(storage, state="rescued", image=image, discard_memory=True)
    with monkeypatch.context() as patched:
        failing(patched, rescued=True)
        assert "its memory is lost" in task(vm_rescue.main, **ask)["msg"]
    assert (original(kvm), kvm.guest().active(), kvm.guest().saved()) == (before, False, False)
    kvm.guest().start()
    if state == "paused":
        kvm.guest().pause()
    else:
        kvm.guest().save()
    told = task.quartet(vm_rescue.main, **ask)
    assert told["vms"][0]["figures"]["rescue"]["power_before"] == state
    assert "memory is lost" in str(told["warnings"])
    told = task.quartet(vm_rescue.main, **options(storage, state="unrescued"))["vms"][0]
    assert (told["status"], original(kvm)) == ("SHUTOFF", before)


def test_a_transient_vm_is_refused(kvm: Hypervisor, task: Task, storage: Path, image: str) -> None:
    define(kvm, storage)
    kvm.guest().domain.undefine()
    told = task(vm_rescue.main, **options(storage, state="rescued", image=image))
    assert (told["code"], "transient" in told["msg"]) == ("refused", True)


# ---- what others make of a rescued VM


def test_vm_info_tells_of_the_rescue_and_not_of_the_definition(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage)
    assert task(vm_info.main, name="web1")["vms"][0]["rescue"] is None
    done = task(vm_rescue.main, **options(storage, state="rescued", image=image))["vms"][0]["figures"]["rescue"]
    told = task(vm_info.main, name="web1")["vms"][0]
    assert told["rescue"] == {"since": kvm.recall().marks[0].since, **done}
    assert "<domain" not in str(told["marks"])
    kvm.remember(Instance(marks=(Mark("rescued", "then", {"disk": "/x"}),)))
    assert task(vm_info.main, name="web1")["vms"][0]["rescue"] == {"since": "then"}
    told = task(vm_rescue.main, **options(storage, state="unrescued"))
    assert (told["code"], "virsh" in told["msg"]) == ("invalid", True)


@pytest.mark.parametrize("way", ["stable", "classic"])
def test_removing_a_rescued_vm_removes_all_that_is_its_own(
    kvm: Hypervisor, task: Task, storage: Path, image: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _root, data = define(kvm, storage, uefi=True)
    before = original(kvm)
    ask = options(storage, state="rescued", image=image, layout=way)
    task(vm_rescue.main, **ask)
    # Disks that it does not have for the time are not free for others.
    assert Chains(kvm.host).owners()[data] == [UUID]
    gone: list[str] = []

    def see(guest: Guest) -> None:
        gone.append(original(kvm))
        guest.domain.undefine()  # the driver knows no flags for it

    monkeypatch.setattr(Guest, "undefine", see)
    told = task.quartet(vm.main, name="web1", state="absent", force=True)["vms"][0]
    assert told["steps"] == ["power_off", "swap_back", "remove_disks", "undefine"]
    # So its own variables and the state of its TPM went with it.
    assert gone == [before]
    assert (files(storage), kvm.names()) == ([], [])


def test_a_rescued_vm_can_be_deleted_softly_and_comes_back_rescued(
    kvm: Hypervisor, task: Task, storage: Path, image: str
) -> None:
    define(kvm, storage)
    before = original(kvm)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    told = task.quartet(vm.main, name="web1", state="absent", reclaim_after=3600, force=True)["vms"][0]
    assert told["status"] == "SOFT_DELETED"
    told = task(vm_rescue.main, **options(storage, state="unrescued"))
    assert (told["code"], "state: restored" in told["msg"]) == ("refused", True)
    told = task(vm_rescue.main, **options(storage, state="rescued", image=image))
    assert (told["code"], "state: restored" in told["msg"]) == ("refused", True)
    told = task.quartet(vm.main, name="web1", state="restored")["vms"][0]
    assert (told["status"], told["power_state"]) == ("RESCUE", "RUNNING")
    task(vm_rescue.main, **options(storage, state="unrescued"))
    assert original(kvm) == before


def test_power_and_status_do_not_lose_the_way_back(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(kvm, storage)
    before = original(kvm)
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    for state in ("stopped", "running", "rebooted"):
        told = task(vm_power.main, name="web1", state=state, force=True, reboot="hard")["vms"][0]
        assert told["status"] == "RESCUE"
        assert not task(vm_rescue.main, **options(storage, state="rescued", image=image))["changed"]
    told = task(vm.main, name="web1", title="x")
    assert "state: unrescued" in told["msg"]
    task(vm_status.main, name="web1", state="error")
    for state in ("rescued", "unrescued"):
        told = task(vm_rescue.main, **options(storage, state=state))
        assert (told["code"], "vm_status" in told["msg"]) == ("refused", True)
    task(vm_status.main, name="web1", state="active")
    # The journal of a way back that died is cleared: the VM is still rescued.
    with monkeypatch.context() as patched:
        killed(patched, flows._Unrescue, "swap_back")
        task(vm_rescue.main, **options(storage, state="unrescued"))
    assert task(vm_status.main, name="web1", state="active")["vms"][0]["status"] == "RESCUE"
    task(vm_rescue.main, **options(storage, state="unrescued"))
    assert (original(kvm), files(storage)) == (before, OWN)


def test_a_vm_whose_rescue_was_cleared_by_hand_is_rid_of_its_files_by_the_next(
    kvm: Hypervisor, task: Task, storage: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    define(kvm, storage)
    with monkeypatch.context() as patched:
        killed(patched, flows._Rescue, "swap")
        task(vm_rescue.main, **options(storage, state="rescued", image=image))
    task(vm_status.main, name="web1", state="active")
    assert len(files(storage)) == 4
    task(vm_rescue.main, **options(storage, state="rescued", image=image))
    assert len(files(storage)) == 4
    assert ET.fromstring(kvm.recall().marks[0].data["definition"]).get("type") == "test"
    assert kvm.guest().state()[0] == libvirt.VIR_DOMAIN_RUNNING
