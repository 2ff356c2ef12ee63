# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What this machine tells of itself: names, ports, certificates, settings."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt import machine
from ansible_collections.kvmops.lifecycle.plugins.module_utils._model.preflight import Paper


def test_settings_are_words_and_numbers_that_are_not_commented_out(tmp_path: Path) -> None:
    path = tmp_path / "qemu.conf"
    path.write_text(
        '# migration_port_min = 1\nmigration_port_min = 50000\n  migration_host= "kvm1-mig"\nkeepalive_count = -1\n'
        'namespaces = [ "mount" ]\nuser = ""\n'
    )
    settings = machine.read_settings(str(path))
    assert settings == {"migration_port_min": 50000, "migration_host": "kvm1-mig", "keepalive_count": -1, "user": ""}
    assert machine.migration_ports(settings) == (50000, 49215)


def test_settings_that_may_not_be_read_are_unknown_and_libvirts_own_hold(tmp_path: Path) -> None:
    assert machine.read_settings(str(tmp_path / "none")) is None
    assert machine.migration_ports(None) == (49152, 49215)
    assert machine.checks_clients(None)
    assert not machine.checks_clients({"default_tls_x509_verify": 0})
    assert machine.checks_clients({"default_tls_x509_verify": 0, "migrate_tls_x509_verify": 1})


def test_names_are_resolved_or_not() -> None:
    assert "127.0.0.1" in machine.resolve("localhost")
    assert machine.resolve("192.0.2.7") == ["192.0.2.7"]
    assert machine.resolve("nowhere.invalid") == []
    assert machine.resolve("x" * 300) == []


def test_a_port_that_nobody_listens_on_is_reached_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert machine.gets_there("127.0.0.1", port, timeout=30)
    assert machine.gets_there("127.0.0.1", port, timeout=30)
    assert not machine.gets_there("nowhere.invalid", port, timeout=30)


def test_addresses_of_this_machine_are_known() -> None:
    assert machine.is_own("127.0.0.1")
    assert not machine.is_own("192.0.2.1")
    assert not machine.is_own("2001:db8::1")


def test_the_kernels_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "  sl  local_address rem_address   st tx_queue\n"
    tables = {
        "tcp": f"{head}   0: 0100007F:0016 00000000:0000 0A 0\n   1: 0A01A8C0:4082 00000000:0000 0A 0\n"
        "   2: 0A01A8C0:4082 0B01A8C0:9000 01 0\n   3: 00000000:0050 00000000:0000 0A 0\n",
        "tcp6": f"{head}   0: 00000000000000000000000000000000:4082 {'0' * 32}:0000 0A 0\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_TABLES", ((str(tmp_path / "tcp"), 4), (str(tmp_path / "tcp6"), 16), ("/none", 4)))
    assert machine.listening() == [
        {"service": "ssh", "port": 22, "address": "127.0.0.1"},
        {"service": "tls", "port": 16514, "address": "192.168.1.10"},
        {"service": "tls", "port": 16514, "address": "::"},
    ]


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "with space" / "vms"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    mounts = tmp_path / "mounts"
    escaped = str(real).replace(" ", "\\040")
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} xfs rw 0 0\nc {escaped} nfs4 rw 0 0\nd {escaped}x cifs rw 0 0\n")
    monkeypatch.setattr(machine, "_MOUNTS", str(mounts))
    assert machine.file_system(str(real / "a.qcow2")) == "nfs4"
    assert machine.file_system(str(tmp_path / "link/a.qcow2")) == "nfs4"
    assert machine.file_system(str(tmp_path / "b.qcow2")) == "xfs"
    assert machine.file_system("/elsewhere") == "ext4"
    monkeypatch.setattr(machine, "_MOUNTS", str(tmp_path / "none"))
    assert machine.file_system("/elsewhere") == ""


def papers(settings: machine.Settings | None) -> dict[tuple[str, str], Paper]:
    """By purpose and role."""
    return {(paper.purpose, paper.role): paper for paper in machine.papers(settings)}


def test_certificates_are_looked_for_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PKI", str(tmp_path))
    found = papers(None)
    assert found["qemu", "client"].missing == (f"{tmp_path}/qemu/client-cert.pem", f"{tmp_path}/qemu/client-key.pem")
    assert found["libvirt", "authority"].missing == (f"{tmp_path}/CA/cacert.pem",)
    assert papers({"default_tls_x509_cert_dir": "/d"})["qemu", "server"].path == "/d/server-cert.pem"
    both: machine.Settings = {"default_tls_x509_cert_dir": "/d", "migrate_tls_x509_cert_dir": "/m"}
    assert papers(both)["qemu", "server"].path == "/m/server-cert.pem"
    (tmp_path / "libvirt-migrate").mkdir()
    assert papers(None)["qemu", "server"].path == f"{tmp_path}/libvirt-migrate/server-cert.pem"


def test_what_is_no_certificate_is_a_problem_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PKI", str(tmp_path))
    (tmp_path / "CA").mkdir()
    (tmp_path / "CA/cacert.pem").write_bytes(b"\xff\xfe")
    (tmp_path / "libvirt/private").mkdir(parents=True)
    (tmp_path / "libvirt/clientcert.pem").mkdir()
    (tmp_path / "libvirt/private/clientkey.pem").touch()
    found = papers(None)
    assert (found["libvirt", "authority"].missing, found["libvirt", "authority"].problem) == (
        (),
        "There is no certificate in it.",
    )
    assert (found["libvirt", "client"].missing, found["libvirt", "client"].problem) == ((), "Is a directory.")
