# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role host_prepare: what it sets up, mends and takes away while guests run, and what its matrix says."""

from __future__ import annotations

import typing as t

import pytest

from tests.integration.harness import Lab, Playbook, Played, define, task

RECORDS = "/srv/kvmops/shared/records"
# What the role puts on a host, but for blocks in files that are there anyway.
PLACES = (
    "/etc/kvmops/ca",
    "/etc/kvmops/tls",
    "/etc/kvmops/loaded.json",
    "/etc/kvmops/records.json",
    "/usr/local/sbin/kvmops-records",
    "/etc/libvirt/hooks/qemu.d/90-kvmops-records",
    "/etc/libvirt/hooks/daemon.d/90-kvmops-records",
)
RUN = "/run/kvmops/*records* /run/kvmops/.records*"
OPTIONS: dict[str, t.Any] = {
    "host_prepare_packages": [],
    "host_prepare_storage": [{"path": "/var/lib/libvirt/images"}, {"path": "/srv/kvmops/shared", "mounted": True}],
    "host_prepare_records_directory": RECORDS,
}


KEPT = "/etc/hosts /etc/resolv.conf /etc/pki /etc/libvirt/libvirtd.conf /etc/libvirt/qemu.conf"
# An admin's firewall, which lets nothing in that begins outside but ssh.
WALL = """
nft add table inet filter
nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'
nft add rule inet filter input ct state established,related accept
nft add rule inet filter input iif lo accept
nft add rule inet filter input tcp dport 22 accept
"""
# A certificate of the role's authority for kvm2 that has expired, in the place of the good one.
EXPIRE = """
cd /etc/kvmops
openssl req -new -key /run/their.pem -subj /CN=kvm2 -out /run/request.pem
openssl x509 -req -in /run/request.pem -CA ca/certificate.pem -CAkey ca/key.pem -set_serial 2 -days -1 2>/run/said
"""


@pytest.fixture
def clear(lab: Lab) -> t.Iterator[None]:
    """The hosts' files are afterwards as they were, whatever the role did."""
    for host in lab.hosts:
        lab.sh(host, f"tar -C / -cf /var/lib/kept.tar {KEPT}")
    yield
    for host in lab.hosts:
        lab.sh(
            host,
            f"nft delete table inet filter; rm -rf /etc/pki /etc/nftables.conf {RUN} {' '.join(PLACES)}",
            check=False,
        )
        lab.sh(host, "tar -C / -xf /var/lib/kept.tar && rm /var/lib/kept.tar")
        lab.sh(host, "pkill -x libvirtd; while pgrep -x libvirtd; do sleep 0.1; done", check=False)
        lab.fault(host, "start-libvirtd")
    lab.sh("kvm1", f"rm -rf {RECORDS} {RECORDS}.away")


def files(lab: Lab, host: str) -> str:
    """Certificates and settings of a host, as sums."""
    return lab.sh(host, "find /etc/pki /etc/libvirt/*.conf /etc/hosts -type f -exec sha256sum {} + | sort")


def changed(played: Played) -> list[str]:
    """The tasks that changed something."""
    played.ok()
    return [each["task"] for each in played.results if each["result"].get("changed")]


def look(play: Playbook, **options: t.Any) -> t.Any:
    """What the two modules say, when the hosts look at each other: the matrix."""
    seen = task(
        "host_readiness",
        names=["{{ inventory_hostname }}"],
        peers=[{"name": "{{ 'kvm2' if inventory_hostname == 'kvm1' else 'kvm1' }}"}],
        peer_timeout=2,
        **options,
    )
    judged = task(
        "readiness_matrix", hosts={host: f"{{{{ hostvars.{host}.seen.readiness }}}}" for host in ("kvm1", "kvm2")}
    )
    done = play([{**seen, "register": "seen"}, {**judged, "run_once": True}], host="kvm_hosts").ok()
    return done["result"]["matrix"]


def codes(matrix: t.Any, source: str, destination: str) -> set[str]:
    """Those of one way, but for storage, of which each host has some of its own."""
    return set(matrix[source][destination]["codes"]) - {"storage_not_shared"}


@pytest.mark.usefixtures("clear")
def test_hosts_are_made_ready_and_mended_while_guests_run_and_let_go_of(lab: Lab, play: Playbook) -> None:
    define(lab, "web1")
    lab.sh("kvm1", "virsh -q start web1")
    guest = lab.sh("kvm1", "pgrep -f '[g]uest=web1'")
    hooks = "/etc/libvirt/hooks/qemu.d"
    lab.sh(
        "kvm1",
        f"mkdir -p {hooks}; printf '#!/bin/sh\\ncat >/dev/null\\n' > {hooks}/10-admin; chmod 755 {hooks}/10-admin",
    )
    for host in lab.hosts:  # nobody waits for a DNS server that the lab does not have
        lab.sh(host, "echo nameserver 127.0.0.1 > /etc/resolv.conf")
    before = {host: files(lab, host) for host in lab.hosts}

    # From nothing. What the lab had is not trusted any more; guests run on.
    assert changed(play.ours("prepare", **OPTIONS))
    assert lab.sh("kvm1", "pgrep -f '[g]uest=web1'") == guest
    authority = lab.sh("kvm2", "cat /etc/kvmops/tls/authority.pem")
    for host, other in (("kvm1", "kvm2"), ("kvm2", "kvm1")):
        assert lab.sh(host, "cat /etc/pki/CA/cacert.pem") == authority
        assert "QEMU" in lab.sh(host, f"virsh -c qemu+tls://{other}/system version")
        assert lab.sh(host, "stat -c %a /etc/kvmops/tls/key.pem /etc/pki/libvirt/private/serverkey.pem") == "600\n600"
    assert lab.sh("kvm2", "ls /etc/kvmops/ca", check=False) == ""
    uuid = lab.sh("kvm1", "virsh -q domuuid web1")
    assert lab.sh("kvm1", f"ls {RECORDS}/kvm1") == f"{uuid}.json"
    for host, dest in (("kvm1", "kvm2"), ("kvm2", "kvm1")):
        play(task("vm_migrate", name="web1", dest=dest), host=host).ok()
    guest = lab.sh("kvm1", "pgrep -f '[g]uest=web1'")

    # A name, the records and a clock; then ports. Clocks are the machine's, so it is asked as if it were earlier.
    lab.sh("kvm1", "cp /etc/hosts /run/hosts; grep -v kvm2 /run/hosts > /etc/hosts")
    lab.sh("kvm2", f"{WALL}\nmv {RECORDS} {RECORDS}.away")
    found = look(play, asked_at="{{ now().timestamp() - (100 if inventory_hostname == 'kvm2' else 0) }}")
    assert codes(found, "kvm1", "kvm2") == {"name_unresolved", "records_missing", "clock_skew"}
    lab.sh("kvm1", "cat /run/hosts > /etc/hosts")
    lab.sh("kvm2", f"mv {RECORDS}.away {RECORDS}")
    found = look(play)
    assert codes(found, "kvm1", "kvm2") == {"port_unreachable", "migration_port_unreachable"}
    assert codes(found, "kvm2", "kvm1") == set()

    # An expired certificate on one host, and the certificates of another authority on the other.
    key = lab.sh("kvm2", "cat /etc/kvmops/tls/key.pem")
    lab.kvm.run_in("kvm1", "sh", "-c", "umask 077; cat > /run/their.pem", stdin=key + "\n")
    expired = lab.sh("kvm1", EXPIRE)
    for place in (
        "/etc/pki/libvirt/servercert.pem",
        "/etc/pki/qemu/server-cert.pem",
        "/etc/kvmops/tls/certificate.pem",
    ):
        lab.kvm.run_in("kvm2", "sh", "-c", f"cat > {place}", stdin=expired + "\n")
    kept = "find /etc/pki -name '*.before-kvmops'"
    lab.sh("kvm1", f"for file in $({kept}); do cp $file ${{file%.before-kvmops}}; done")
    lab.sh("kvm2", "nft insert rule inet filter input accept")
    found = look(play)
    refused = {"connection_failed", "certificate_not_valid", "certificate_rejected", "authority_differs"}
    assert codes(found, "kvm1", "kvm2") == refused
    assert codes(found, "kvm2", "kvm1") == {"authority_differs"}
    lab.sh("kvm2", f"nft delete table inet filter\n{WALL}")
    lab.sh("kvm1", "grep -v kvm2 /run/hosts > /etc/hosts")

    # The role mends all of it.
    options = {**OPTIONS, "host_prepare_firewall": True, "host_prepare_require_ready": True}
    assert changed(play.ours("prepare", **options))
    assert "16514" in lab.sh("kvm2", "nft list chain inet filter input")
    assert "16514" in lab.sh("kvm2", "cat /etc/nftables.conf")
    assert "kvm2" in lab.sh("kvm1", "sed -n '/BEGIN kvmops/,/END kvmops/p' /etc/hosts")

    # Where nothing is mounted no records are kept; with settings that libvirt does not start with it goes on as it was.
    few: dict[str, t.Any] = {f"host_prepare_{name}": False for name in ("tls", "verify")}
    few.update(host_prepare_packages=[], host_prepare_hosts_file="none")
    lost = play.ours("prepare", **few, host_prepare_records_directory="/nowhere/records").error()
    assert "there is no directory /nowhere" in lost["result"]["msg"]
    bad = play.ours("prepare", **few, host_prepare_libvirtd_settings={"max_workers": "many"}).error()
    assert "did not start with the new settings" in bad["result"]["msg"]
    assert lab.sh("kvm1", "virsh -q domstate web1") == "running"

    # Gone, and as it was.
    assert changed(play.ours("prepare", **options, host_prepare_state="absent"))
    lab.sh("kvm1", "cat /run/hosts > /etc/hosts")
    lab.sh("kvm2", "nft delete table inet filter")
    assert {host: files(lab, host) for host in lab.hosts} == before
    assert lab.sh("kvm1", f"ls -d {' '.join(PLACES)}", check=False) == ""
    assert lab.sh("kvm1", f"ls {hooks}") == "10-admin"
    assert "kvm2" in lab.sh("kvm1", "virsh -c qemu+tls://kvm2/system uri")
    assert lab.sh("kvm1", "pgrep -f '[g]uest=web1'") == guest


@pytest.fixture
def ufw(lab: Lab) -> t.Iterator[None]:
    """An admin's ufw on kvm2, which lets ssh in."""
    lab.sh("kvm2", "ufw allow 22/tcp && ufw --force enable")
    yield
    lab.sh("kvm2", "ufw --force reset")


@pytest.mark.usefixtures("clear", "ufw")
def test_ports_are_opened_in_ufw_for_who_needs_them_and_closed_again(lab: Lab, play: Playbook) -> None:
    def rules() -> list[str]:
        return [line for line in lab.sh("kvm2", "ufw show added").splitlines() if "kvmops" in line]

    # Nothing but this, and on this host alone: no certificates, no records.
    options: dict[str, t.Any] = {f"host_prepare_{name}": False for name in ("tls", "verify")}
    options.update(host_prepare_packages=[], host_prepare_hosts_file="none", host_prepare_firewall=True)
    options.update(host_prepare_hosts="kvm2", host_prepare_firewall_sources=["10.8.0.1"])
    assert [task for task in changed(play.ours("prepare", "--check", **options)) if "Say what would" in task]
    assert rules() == []
    assert changed(play.ours("prepare", **options))
    mark = "proto tcp comment 'kvmops.lifecycle.host_prepare'"
    opened = [f"ufw allow from 10.8.0.1 to any port {ports} {mark}" for ports in ("16514", "49152:49215")]
    assert sorted(rules()) == opened
    assert changed(play.ours("prepare", **options)) == []
    # Others are let in, and those not any more; then nobody is.
    options["host_prepare_firewall_sources"] = ["10.9.0.0/16"]
    play.ours("prepare", **options).ok()
    assert sorted(rules()) == [line.replace("10.8.0.1", "10.9.0.0/16") for line in opened]
    assert changed(play.ours("prepare", **options, host_prepare_state="absent"))
    assert rules() == []
    assert "22/tcp" in lab.sh("kvm2", "ufw show added")
    assert changed(play.ours("prepare", **options, host_prepare_state="absent")) == []
