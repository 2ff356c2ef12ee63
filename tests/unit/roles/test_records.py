# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program of the role host_prepare that keeps records, on a file system of its own."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import typing as t
from pathlib import Path

import jinja2
import pytest
import yaml

from ansible_collections.kvmops.lifecycle.plugins.module_utils._model import instance, records

PROGRAM = Path(__file__).resolve().parents[3] / "roles/host_prepare/files/kvmops-records"
UUID = "11111111-2222-3333-4444-555555555555"


def _load() -> t.Any:
    loader = importlib.machinery.SourceFileLoader("kvmops_records", str(PROGRAM))
    spec = importlib.util.spec_from_loader("kvmops_records", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> t.Any:
    """The program, whose log goes nowhere."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    module = _load()
    monkeypatch.setattr(module, "say", lambda message: None)
    return module


class Machine:
    """A host's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shared = root / "shared/kvm1"
        for directory in ("etc/kvmops", "etc/libvirt/qemu/autostart", "run/libvirt/qemu", "var/lib/libvirt/qemu/save"):
            (root / directory).mkdir(parents=True)
        self.shared.mkdir(parents=True)
        settings = {"directory": str(root / "shared"), "host": "kvm1"}
        (root / "etc/kvmops/records.json").write_text(json.dumps(settings), encoding="utf-8")

    def xml(self, generation: str = "", memory: int = 32) -> str:
        """The VM's definition."""
        inner = f"<k:instance schema='1'><k:generation>{generation}</k:generation></k:instance>" if generation else ""
        return (
            f"<domain type='qemu'><name>web1</name><uuid>{UUID}</uuid>"
            f"<metadata xmlns:k='{instance.NAMESPACE}'>{inner}</metadata><memory unit='MiB'>{memory}</memory></domain>"
        )

    def define(self, **said: t.Any) -> None:
        """libvirt has the VM."""
        (self.root / "etc/libvirt/qemu/web1.xml").write_text(f"<!-- ours -->\n{self.xml(**said)}", encoding="utf-8")

    def status(self, state: str, reason: str = "user") -> None:
        """libvirt says that it is on."""
        text = f"<domstatus state='{state}' reason='{reason}'>{self.xml()}</domstatus>"
        (self.root / "run/libvirt/qemu/web1.xml").write_text(text, encoding="utf-8")

    def record(self) -> dict[str, t.Any] | None:
        """What is recorded of it."""
        path = self.shared / records.record_name(UUID)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def bury(self, generation: str = "0") -> None:
        """Another host has evacuated it."""
        text = json.dumps({"to": "kvm2", "at": "2026-01-01T00:00:00Z", "token": "ab"})
        (self.shared / records.tombstone_name(UUID, generation)).write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host without VMs."""
    return Machine(tmp_path)


def test_a_record_says_what_the_collection_reads(program: t.Any, machine: Machine) -> None:
    places = program.Places(str(machine.root))
    machine.define(generation="ab12")
    (machine.root / "etc/libvirt/qemu/autostart/web1.xml").symlink_to("../web1.xml")
    assert program.sync(places) == 1
    record = records.read_record(machine.record() or {})
    assert (record.name, record.uuid, record.host, record.state) == ("web1", UUID, "kvm1", "off")
    assert (record.autostart, record.persistent, record.generation) == (True, True, "ab12")
    assert record.instance.generation == "ab12"
    assert record.node == program.node_name()
    assert program.sync(places) == 0, "nothing has changed"
    assert (machine.shared / records.record_name(UUID)).stat().st_mode & 0o777 == 0o600


def test_the_state_is_what_libvirts_files_say_or_will_say_in_a_moment(program: t.Any, machine: Machine) -> None:
    places = program.Places(str(machine.root))
    machine.define()
    seen = []
    for state, reason in (("running", "booted"), ("paused", "user"), ("paused", "migration")):
        machine.status(state, reason)
        program.sync(places, everything=False)
        seen.append((machine.record() or {})["state"])
    assert seen == ["running", "paused", "running"]
    program.sync(places, event=("web1", "stopped"), everything=False)
    assert (machine.record() or {})["state"] == "off"
    (machine.root / "run/libvirt/qemu/web1.xml").unlink()
    program.sync(places, event=("web1", "started"), everything=False)
    assert (machine.record() or {})["state"] == "running"
    (machine.root / "var/lib/libvirt/qemu/save/web1.save").touch()
    program.sync(places, everything=False)
    assert (machine.record() or {})["state"] == "suspended"


def test_a_vm_that_goes_takes_its_record_along(program: t.Any, machine: Machine) -> None:
    places = program.Places(str(machine.root))
    arriving = machine.xml().encode()
    program.sync(places, event=("web1", "started"), xml=arriving, everything=False)
    assert (machine.record() or {})["persistent"] is False
    machine.status("running")
    program.sync(places, event=("web1", "stopped"), everything=False)
    assert machine.record() is None
    machine.define()
    program.sync(places)
    (machine.root / "run/libvirt/qemu/web1.xml").unlink()
    (machine.root / "etc/libvirt/qemu/web1.xml").unlink()
    assert program.sync(places, everything=False) == 1
    assert machine.record() is None


def test_what_was_changed_in_a_definition_is_seen(program: t.Any, machine: Machine) -> None:
    places = program.Places(str(machine.root))
    machine.define()
    program.sync(places)
    machine.define(memory=64)
    assert program.sync(places, everything=False) == 1
    assert ">64<" in (machine.record() or {})["xml"]


def test_the_guard_takes_stale_definitions_away_and_keeps_a_copy(program: t.Any, machine: Machine) -> None:
    places = program.Places(str(machine.root))
    machine.define()
    (machine.root / "etc/libvirt/qemu/autostart/web1.xml").symlink_to("../web1.xml")
    (machine.root / "var/lib/libvirt/qemu/save/web1.save").write_text("memory", encoding="utf-8")
    program.sync(places)
    machine.bury()
    assert program.guard(places) == ["web1"]
    assert [path.name for path in (machine.root / "etc/libvirt/qemu").rglob("*")] == ["autostart"]
    kept = machine.root / f"var/lib/kvmops/removed/{UUID}.0"
    assert sorted(path.name for path in kept.iterdir()) == ["web1.save", "web1.xml"]
    program.sync(places)
    assert machine.record() is None
    machine.define(generation="ab")
    assert program.guard(places) == [], "the VM came back"
    assert (machine.root / "etc/libvirt/qemu/web1.xml").exists()


def test_only_a_stale_definition_is_kept_from_starting(
    program: t.Any, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    places = program.Places(str(machine.root))
    assert program.qemu_hook(places, "web1", "prepare", machine.xml().encode()) == 0
    machine.bury()
    assert program.qemu_hook(places, "web1", "prepare", machine.xml().encode()) == 1
    assert "evacuated from kvm1 to kvm2" in capsys.readouterr().err
    assert program.qemu_hook(places, "web1", "prepare", machine.xml(generation="ab").encode()) == 0
    machine.bury("ab")
    assert program.qemu_hook(places, "web1", "prepare", machine.xml(generation="ab").encode()) == 1


def test_nothing_starts_after_a_boot_before_the_records_were_seen(
    program: t.Any, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    places = program.Places(str(machine.root))
    away = machine.shared.rename(machine.root / "away")
    assert program.qemu_hook(places, "web1", "prepare", machine.xml().encode()) == 1
    assert "could not be read since the host was booted" in capsys.readouterr().err
    away.rename(machine.shared)
    assert program.qemu_hook(places, "web1", "prepare", machine.xml().encode()) == 0
    machine.shared.rename(away)
    assert program.qemu_hook(places, "web1", "prepare", machine.xml().encode()) == 0
    assert program.qemu_hook(places, "web1", "stopped", b"") == 0, "records that cannot be written stop nothing"


def test_a_storage_that_hangs_is_not_waited_for(program: t.Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def hang() -> str:
        with pipe.open("rb"):
            return "late"

    assert program.bounded(lambda: "told") == "told"
    assert program.bounded(hang, seconds=0.05) is None
    pipe.open("wb").close()


def test_without_settings_a_hook_does_nothing_and_a_command_says_so(program: t.Any, machine: Machine) -> None:
    (machine.root / "etc/kvmops/records.json").unlink()
    places = program.Places(str(machine.root))
    hook = "/etc/libvirt/hooks/daemon.d/kvmops-records"
    assert program.main([hook, "-", "start", "-", "start"], places) == 0
    assert program.main(["kvmops-records"], places) == 2
    with pytest.raises(program.Failed, match=r"is missing"):
        program.main(["kvmops-records", "sync"], places)


def test_the_daemon_hook_guards_and_writes(program: t.Any, machine: Machine) -> None:
    machine.define()
    places = program.Places(str(machine.root))
    hook = "/etc/libvirt/hooks/daemon.d/kvmops-records"
    assert program.main([hook, "-", "start", "-", "start"], places) == 0
    assert machine.record() is not None
    machine.bury()
    assert program.main([hook, "-", "start", "-", "start"], places) == 0
    assert not (machine.root / "etc/libvirt/qemu/web1.xml").exists()


def test_systemd_understands_the_units_and_no_limit_ends_the_watch(tmp_path: Path) -> None:
    role = PROGRAM.parents[1]
    known = yaml.safe_load((role / "vars/main.yml").read_text(encoding="utf-8"))
    units = [tmp_path / Path(unit).name for unit in known["host_prepare__units"]]
    for unit in units:
        text = (role / "templates" / f"{unit.name}.j2").read_text(encoding="utf-8")
        template = jinja2.Template(text, undefined=jinja2.StrictUndefined)
        unit.write_text(template.render(ansible_managed="managed", host_prepare__script="/bin/true"), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, units)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # What is watched starts the service of the same name.
    assert [unit.name for unit in units] == ["kvmops-records.path", "kvmops-records.service"]
    assert "StartLimitIntervalSec=0" in units[1].read_text(encoding="utf-8")
