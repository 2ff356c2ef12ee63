# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records of VMs, and what stands in the way of an evacuation."""

from __future__ import annotations

import json
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import (
    Invalid,
    NotFound,
    Refused,
    Unsupported,
)
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.records import Vault
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import instance as memory
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import records
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.flavor import Flavor
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.instance import Instance, Launch, Mark, OwnDisk
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.records import Loss, Record, Survivor, Tombstone

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"
DEVICES = """
<disk type='file' device='disk'><source file='/shared/a.qcow2'/><target dev='vda'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/></interface>
<interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/></interface>
"""
HERE = Survivor("kvm2", vms={}, macs={}, networks=["lan"], links=["br0"])
STONE = Tombstone("kvm2", "2026-01-01T00:00:00Z", "ab", "root@kvm2", "its power was cut")


def told(*, state: str = "running", system: str = "", devices: str = DEVICES, **said: t.Any) -> dict[str, t.Any]:
    """A record as it is in its file."""
    xml = f"<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid><os{system}/><devices>{devices}</devices></domain>"
    return {
        "schema": 1,
        "host": "kvm1",
        "node": "kvm1.example.com",
        "name": "web1",
        "uuid": UUID,
        "at": "2026-01-01T00:00:00Z",
        "state": state,
        "autostart": True,
        "persistent": True,
        "generation": "0",
        "xml": xml,
        **said,
    }


OWN = tuple(
    OwnDisk(role, target, f"/vms/{role}")
    for role, target in (("root", "vda"), ("ephemeral", "vdb"), ("swap", "vdc"), ("config", "sda"))
)
LAUNCHED = Instance(
    flavor=Flavor(name="small", vcpus=1, memory=64, root=2, ephemeral=(1,), swap=16),
    launch=Launch("2026-01-01T00:00:00Z", "root@kvm1", "/images/a.qcow2", "", "qcow2", "", "/vms"),
    disks=OWN,
)
# Where a host sees nothing of it.
GONE = replace(HERE, missing=[disk.path for disk in OWN[:3]], vacant=[disk.path for disk in OWN])


def launched(known: Instance = LAUNCHED, extra: str = "", **said: t.Any) -> Record:
    """The record of a VM that we launched."""
    disks = "".join(
        f"<disk type='file' device='{'cdrom' if disk.role == 'config' else 'disk'}'><source file='{disk.path}'/>"
        f"<target dev='{disk.target}'/></disk>"
        for disk in OWN
    )
    xml = str(told(devices=disks + extra)["xml"])
    element = memory.dump(known).replace("<instance", f"<instance xmlns='{memory.NAMESPACE}'", 1)
    return record(xml=xml.replace("<devices>", f"<metadata>{element}</metadata><devices>"), **said)


def record(**said: t.Any) -> Record:
    """A record."""
    return records.read_record(told(**said))


def codes(found: Record, survivor: Survivor = HERE, **said: t.Any) -> list[str]:
    """What stands in its way."""
    others, stone = said.pop("others", []), said.pop("stone", None)
    return [finding.code for finding in records.judge(found, others, stone, survivor, **said)]


def test_nothing_stands_in_the_way_of_what_is_all_there() -> None:
    assert codes(record()) == []
    assert codes(record(), replace(HERE, vms={UUID: "web1"}), stone=STONE) == [], "a run that was killed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"vms": {UUID: "web1"}}, "uuid_taken"),
        ({"vms": {OTHER: "web1"}}, "name_taken"),
        ({"vms": {OTHER: "db1"}, "macs": {"52:54:00:00:00:01": OTHER}}, "mac_taken"),
        ({"networks": []}, "network_missing"),
        ({"links": []}, "bridge_missing"),
        ({"missing": ["/shared/a.qcow2"]}, "disk_missing"),
        ({"unsupported": "no such machine"}, "unsupported"),
    ],
)
def test_what_the_survivor_lacks_is_told(change: dict[str, t.Any], code: str) -> None:
    assert codes(record(), replace(HERE, **change)) == [code]


def test_a_record_elsewhere_counts_when_it_runs_there_or_is_newer() -> None:
    there = record(host="kvm3", state="off", at="2025-01-01T00:00:00Z")
    assert codes(record(), others=[there]) == []
    assert codes(record(), others=[replace(there, state="running")]) == ["elsewhere"]
    assert codes(record(), others=[replace(there, at="2026-02-01T00:00:00Z")]) == ["elsewhere"]
    assert codes(record(), stone=replace(STONE, to="kvm3")) == ["evacuated"]


def test_what_would_be_lost_is_lost_only_when_told() -> None:
    nvram = "/var/lib/libvirt/qemu/nvram/web1_VARS.fd"
    tpm = f"{DEVICES}<tpm model='tpm-crb'><backend type='emulator'/></tpm>"
    lost = record(state="suspended", system=" firmware='efi'", devices=tpm)
    there = replace(HERE, missing=[nvram])
    assert codes(lost, there) == ["nvram", "memory", "tpm"]
    assert codes(lost, there, lose=["nvram", "tpm"]) == ["memory"]
    assert codes(lost, HERE, lose=["memory", "tpm"]) == []


def test_disks_of_a_launch_are_made_anew_when_that_is_told() -> None:
    assert codes(launched(), GONE) == ["disk_missing"] * 3
    assert codes(launched(), GONE, lose=["disks"]) == []
    assert [(loss.role, loss.target, loss.path) for loss in records.losses(launched(), GONE)] == [
        (disk.role, disk.target, disk.path) for disk in OWN
    ]
    assert records.sizes_anew(LAUNCHED) == {"vda": 2 << 30, "vdb": 1 << 30, "vdc": 16 << 20}
    imageless = replace(GONE, imageless="There is no file /images/a.qcow2 on kvm2.")
    found = records.judge(launched(), [], None, imageless, lose=["disks"])
    assert [each.code for each in found] == ["image_missing"]
    assert "cannot be made anew from the image /images/a.qcow2: There is no file" in found[0].message
    kept = replace(imageless, missing=["/vms/ephemeral", "/vms/swap"])
    assert codes(launched(), kept, lose=["disks"]) == [], "an image is needed for root disks alone"
    assert [loss.role for loss in records.losses(launched(), kept)] == ["ephemeral", "swap"], "the config drive too"


def test_what_cannot_be_made_anew_is_missing_whatever_is_told() -> None:
    rescued = replace(LAUNCHED, marks=(Mark("rescued", "2026-01-01T00:00:00Z"),))
    other = replace(LAUNCHED, disks=(OwnDisk("root", "vda", "/vms/before"), *OWN[1:]))
    more = "<disk type='file' device='disk'><source file='/vms/data'/><target dev='vdd'/></disk>"
    for found, there in (
        (launched(), replace(GONE, vacant=["/vms/ephemeral", "/vms/swap"])),
        (launched(rescued), GONE),
        (launched(replace(LAUNCHED, launch=None)), GONE),
        (launched(replace(LAUNCHED, flavor=None)), GONE),
        (launched(other), GONE),
        (launched(extra=more), replace(GONE, missing=[*GONE.missing, "/vms/data"], vacant=[*GONE.vacant, "/vms/data"])),
    ):
        assert set(codes(found, there, lose=["disks"])) == {"disk_missing"}
    failed = replace(LAUNCHED, marks=(Mark("error", "2026-01-01T00:00:00Z"),))
    assert codes(launched(failed), GONE, lose=["disks"]) == []


def test_every_code_is_explained_in_the_guide() -> None:
    guide = Path(__file__).resolve().parents[5] / "docs/docsite/rst/guide_evacuate.rst"
    text = guide.read_text(encoding="utf-8")
    assert [code for code in records.CODES if f"``{code}``" not in text] == []


def test_a_vm_does_what_it_did_unless_it_is_told() -> None:
    wanted = [
        records.wanted_state(record(state=state), "recorded") for state in ("running", "paused", "off", "suspended")
    ]
    assert wanted == ["running", "paused", "off", "off"]
    assert records.wanted_state(record(state="off"), "running") == "running"
    assert records.wanted_state(record(), "stopped") == "off"


def test_a_record_that_cannot_be_meant_is_none() -> None:
    for change in ({"state": "dead"}, {"name": "db1"}, {"xml": "<domain"}, {"schema": "x"}):
        with pytest.raises(Invalid):
            records.read_record({**told(), **change})
    with pytest.raises(Invalid):
        records.read_record({})
    with pytest.raises(Unsupported, match=r"has schema 2"):
        records.read_record(told(schema=2))


def test_one_host_alone_sets_a_tombstone(tmp_path: Path) -> None:
    (tmp_path / "kvm1").mkdir()
    (tmp_path / "kvm1" / records.record_name(UUID)).write_text(json.dumps(told()), encoding="utf-8")
    (tmp_path / "kvm1" / records.record_name(OTHER)).write_text("{", encoding="utf-8")
    vault = Vault(str(tmp_path), "kvm1")
    found, problems = vault.read()
    assert ([each.name for each in found], len(problems)) == (["web1"], 1)
    vault.bury(found[0], STONE)
    with pytest.raises(Refused, match=r"is being evacuated to kvm2"):
        vault.bury(found[0], replace(STONE, to="kvm3", token="cd"))
    assert vault.tombstones() == {(UUID, "0"): STONE}
    vault.unbury(found[0], replace(STONE, token="cd"))
    assert vault.tombstone(found[0]) == STONE, "it is another's"
    lost = replace(STONE, lost=(Loss("disks", "/vms/root", "vda", "root"), Loss("memory")))
    vault.settle(found[0], lost)
    assert vault.tombstone(found[0]) == replace(lost, settled=True)
    assert records.read_tombstone({"to": "kvm2", "lost": ["nonsense"]}).lost == ()
    vault.bury(replace(found[0], generation="ab"), replace(STONE, token="cd"))
    vault.unbury(found[0], STONE)
    assert list(vault.tombstones()) == [(UUID, "ab")]
    (tmp_path / "kvm3").mkdir()
    (tmp_path / "kvm3" / records.record_name(UUID)).write_text(json.dumps(told(host="kvm3")), encoding="utf-8")
    assert [each.host for each in vault.others()[UUID]] == ["kvm3"]


def test_records_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"There are no records of kvm9"):
        Vault(str(tmp_path), "kvm9")
    with pytest.raises(Invalid, match=r"is no name of a host"):
        Vault(str(tmp_path), "../etc")
