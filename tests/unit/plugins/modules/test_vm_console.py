# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vm_console on libvirt's in-memory driver, with logs in files."""

from __future__ import annotations

import base64
import typing as t
from pathlib import Path

import pytest
from jwcrypto import jwk

from ansible_collections.kvmops.lifecycle.plugins.module_utils._flows import console
from ansible_collections.kvmops.lifecycle.plugins.module_utils._libvirt.guest import Guest
from ansible_collections.kvmops.lifecycle.plugins.modules import vm_console
from tests.unit.hypervisor import Hypervisor, Task

VNC = "<graphics type='vnc' port='5901' listen='127.0.0.1'/>"


def define(kvm: Hypervisor, name: str, devices: str, *, running: bool = True) -> None:
    """A VM with these devices."""
    kvm.define(name, running=False)
    xml = kvm.guest(name).text(inactive=True).replace("</devices>", f"{devices}</devices>")
    domain = kvm.connection.defineXML(xml)
    if running:
        domain.create()


def logged(path: Path, append: str = "on") -> str:
    """A console that is written to a file."""
    return f"<serial type='file'><source path='{path}' append='{append}'/></serial>"


def ask(task: Task, **params: t.Any) -> dict[str, t.Any]:
    """What it says of web1."""
    told = task(vm_console.main, **{"name": "web1", "wait_timeout": 0, **params})
    (vm,) = told["vms"]
    assert not told["changed"]
    return t.cast("dict[str, t.Any]", vm)


def test_a_log_is_told_and_waited_for(kvm: Hypervisor, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "log"
    define(kvm, "web1", logged(path))
    missing = ask(task)
    assert (missing["log"], missing["source"]) == ("", str(path))
    assert str(path) in missing["reason"]
    path.write_bytes(b"one\r\ntwo\r\nthr")
    found = ask(task, wait_for="^t(w)o$", after=missing["position"], lines=1)
    assert (found["match"], found["groups"], found["log"], found["reason"]) == ("two", ["w"], "thr", "")
    with path.open("ab") as file:
        file.write(b"ee\r\n")
    rest = ask(task, after=found["position"])
    assert (rest["log"], rest["truncated"]) == ("\nthree\n", False)
    late = ask(task, after=rest["position"], wait_for="three")
    assert (late["code"], late["matched"], late["match"], late["log"]) == ("timed_out", False, None, "")
    assert late["position"] == rest["position"]
    kvm.connection.lookupByName("web1").destroy()
    off = ask(task, wait_for="four")
    assert "The VM is off" in off["msg"]
    assert (off["log"], off["status"]) == ("one\ntwo\nthree\n", "SHUTOFF")


def test_a_pattern_is_found_across_pieces_and_in_all_that_came(
    kvm: Hypervisor, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    define(kvm, "web1", logged(path))
    position = ask(task)["position"]
    monkeypatch.setattr(console, "_PIECE", 5)
    path.write_bytes(b"x" * 99 + b"\r\nneedle\r\n" + b"y\r\n" * 99)
    found = ask(task, wait_for="^needle$", after=position, max_size=10)
    assert (found["match"], found["log"], found["truncated"]) == ("needle", "y\ny\ny\n", True)
    assert ask(task, wait_for="needle", max_size=10)["code"] == "timed_out"
    assert ask(task, after=found["position"])["log"] == "\n" + "y\n" * 99


def test_a_log_that_each_boot_begins_anew_is_new_after_a_boot(kvm: Hypervisor, task: Task, tmp_path: Path) -> None:
    path = tmp_path / "log"
    define(kvm, "web1", logged(path, append="off"))
    path.write_bytes(b"boot\n")
    position = ask(task, lines=0)["position"]
    assert ask(task, after=position)["log"] == ""
    domain = kvm.connection.lookupByName("web1")
    domain.destroy()
    assert ask(task, after=position)["log"] == ""  # off, and so not begun anew
    domain.create()
    path.write_bytes(b"boot\n")
    anew = ask(task, after=position)
    assert anew["log"] == "boot\n"
    assert ask(task, after=anew["position"])["log"] == ""


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"wait_for": "("}, "no regular expression"),
        ({"after": ["x"]}, "no position"),
        ({"lines": -1}, "lines is -1"),
        ({"max_size": 0}, "max_size is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(kvm: Hypervisor, task: Task, params: dict[str, t.Any], said: str) -> None:
    define(kvm, "web1", "<serial type='pty'/>")
    vm = ask(task, **params)
    assert vm["code"] == "invalid"
    assert said in vm["msg"]


def test_a_vm_without_a_console_says_so(kvm: Hypervisor, task: Task) -> None:
    define(kvm, "web1", "")
    assert "no serial console" in ask(task)["reason"]
    assert ask(task, wait_for="x")["code"] == "unsupported"


class Said:
    """A console on which the VM says *pieces*; ``b""`` is its end."""

    def __init__(self, pieces: list[bytes | None]) -> None:
        self.pieces = pieces
        self.opened = self.closed = 0

    def __call__(self, _guest: Guest) -> Said:
        self.opened += 1
        return self

    def read(self) -> bytes | None:
        return self.pieces.pop(0) if self.pieces else None

    def __enter__(self) -> Said:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.closed += 1


def test_a_console_without_a_log_is_listened_to(kvm: Hypervisor, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    define(kvm, "web1", "<serial type='pty'/>")
    said = Said([b"bo", b"ot\r\n", None, b"", b"log", None, b"in: ", None, b"more"])
    monkeypatch.setattr(console, "Terminal", said)
    vm = ask(task, wait_for="^login: $", wait_timeout=60, lines=1)
    assert (vm["match"], vm["log"], vm["source"], said.opened) == ("login: ", "login: ", "", 2)
    assert ask(task, listen=0)["log"] == "more"
    silent = ask(task, listen=0)
    assert silent["log"] == ""
    assert "said nothing" in silent["reason"]
    kvm.connection.lookupByName("web1").destroy()
    assert "is off" in ask(task)["reason"]
    assert "The VM is off" in ask(task, wait_for="x")["msg"]
    assert said.opened == said.closed == 4


def test_a_console_that_cannot_be_opened_is_an_error_unless_the_vm_went_off(kvm: Hypervisor, task: Task) -> None:
    define(kvm, "web1", "<serial type='pty'/>")
    assert ask(task, wait_for="x")["code"] == "unsupported"  # this driver has none


def test_displays_are_told_and_a_link_is_no_more_than_that(kvm: Hypervisor, task: Task) -> None:
    define(kvm, "web1", VNC)
    define(kvm, "off", VNC, running=False)
    key = jwk.JWK.generate(kty="EC", crv="P-256").export_to_pem(private_key=True, password=None).decode()
    plain = ask(task, type="url")
    assert plain["url"] == plain["displays"][0]["url"] == "vnc://127.0.0.1:5901"
    proxy = {"url": "https://proxy:6080", "key": key}
    link = ask(task, type="url", proxy=proxy)
    assert link["url"].startswith(
        "https://proxy:6080/vnc.html?autoconnect=true&resize=scale&path=websockify%3Ftoken%3D"
    )
    assert "expires" in link
    both = task(vm_console.main, name=["off", "web1"], type="url", proxy=proxy)
    assert both["failed"]
    assert key.splitlines()[1] not in str(both)
    assert [vm.get("code") for vm in both["vms"]] == ["refused", None]
    assert both["vms"][1]["url"].startswith("https://proxy:6080/")


def test_a_screen_comes_with_the_result(kvm: Hypervisor, task: Task, tmp_path: Path) -> None:
    define(kvm, "web1", f"{VNC}<video><model type='vga'/></video>")
    vm = ask(task, type="screenshot", dest=str(tmp_path))
    assert base64.b64decode(vm["png"]).startswith(b"\x89PNG")
    kvm.connection.lookupByName("web1").destroy()
    assert ask(task, type="screenshot", dest=str(tmp_path))["code"] == "refused"
    told = task(vm_console.main, name="web1", type="screenshot")
    assert "dest" in told["msg"]
