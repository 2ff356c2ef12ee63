# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of vm_console, with a module that returns what it is told to."""

from __future__ import annotations

import base64
import types
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader

from ansible_collections.kvmops.lifecycle.plugins.action.vm_console import ActionModule
from ansible_collections.kvmops.lifecycle.plugins.module_utils._console import as_png

Result = dict[str, t.Any]

ONE, TWO = (as_png(b"P6\n2 1\n255\n" + pixels, called="a test") for pixels in (b"abcdef", b"ABCDEF"))


class Action(ActionModule):
    """One whose module told *vms*."""

    def __init__(self, vms: list[Result] | None, *, check: bool = False, asynchronous: int = 0, **args: t.Any) -> None:
        self._task = types.SimpleNamespace(  # type: ignore[assignment]
            args=args, check_mode=check, async_val=asynchronous, action="vm_console", diff=False
        )
        self._loader = DataLoader()
        self._connection = types.SimpleNamespace(_shell=types.SimpleNamespace(tmpdir="/nowhere"))  # type: ignore[assignment]
        self._vms = vms
        self.wrapped: list[bool] = []

    def _execute_module(self, *args: t.Any, wrap_async: bool = False, **options: t.Any) -> Result:
        self.wrapped.append(wrap_async)
        if self._vms is None:
            return {"failed": True, "msg": "no host"}
        failed = [vm for vm in self._vms if vm.get("failed")]
        told: Result = {"vms": [dict(vm) for vm in self._vms], "changed": False}
        return {**told, "failed": True, "msg": "a VM failed."} if failed else told


def shot(content: bytes, name: str = "web1") -> Result:
    """What the module says of a VM's screen."""
    return {"name": name, "changed": False, "png": base64.b64encode(content).decode()}


def take(vms: list[Result] | None, dest: str, *, check: bool = False) -> Result:
    """Run it for screenshots."""
    return Action(vms, check=check, type="screenshot", dest=dest).run(task_vars={})


def test_a_picture_is_written_when_it_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "new/web1.png"
    foreseen = take([shot(ONE)], str(path), check=True)
    assert not path.parent.exists()
    assert take([shot(ONE)], str(path)) == foreseen
    assert foreseen["changed"]
    (vm,) = foreseen["vms"]
    assert (vm["dest"], vm["width"], vm["height"], vm["changed"]) == (str(path), 2, 1, True)
    assert path.read_bytes() == ONE
    assert path.stat().st_mode & 0o777 == 0o600
    for check in (False, True):
        assert not take([shot(ONE)], str(path), check=check)["changed"]
    assert take([shot(TWO)], str(path), check=True)["changed"]
    assert path.read_bytes() == ONE
    assert take([shot(TWO)], str(path))["changed"]
    assert path.read_bytes() == TWO
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("dest", ["", "/", "/new/"])
def test_a_directory_takes_a_file_a_vm(tmp_path: Path, dest: str) -> None:
    directory = Path(f"{tmp_path}{dest}")
    take([shot(ONE)], f"{tmp_path}{dest}")
    assert (directory / "web1.png").read_bytes() == ONE
    told = take([shot(ONE), shot(TWO, "web2")], f"{tmp_path}{dest}")
    assert [vm["changed"] for vm in told["vms"]] == [False, True]
    assert (directory / "web2.png").read_bytes() == TWO


def test_many_vms_make_a_directory_also_when_all_but_one_fail(tmp_path: Path) -> None:
    failed = {"name": "web2", "changed": False, "failed": True, "msg": "it is off"}
    told = take([shot(ONE), failed], str(tmp_path / "new"))
    assert (told["failed"], told["changed"]) == (True, True)
    assert told["vms"][1] == failed
    assert (tmp_path / "new/web1.png").read_bytes() == ONE


@pytest.mark.parametrize("name", ["../web1", "/etc/web1", "a/b", "a\0b"])
def test_no_name_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    told = take([shot(ONE, name), shot(TWO, "web2")], str(tmp_path / "new"))
    assert told["failed"]
    assert told["vms"][0]["failed"]
    assert "png" not in told["vms"][0]
    assert [path.name for path in tmp_path.rglob("*.png")] == ["web2.png"]


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n" * 9, ONE[:20]])
def test_what_is_no_picture_is_not_written(tmp_path: Path, content: bytes) -> None:
    told = take([shot(content)], str(tmp_path / "web1.png"))
    assert "no PNG" in told["msg"]
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_fails_its_vm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = take([shot(ONE)], str(tmp_path / "file/web1.png"))
    assert (told["failed"], told["vms"][0]["failed"], told["changed"]) == (True, True, False)
    assert "on the controller" in told["msg"]


def test_a_module_that_failed_is_told_as_it_is(tmp_path: Path) -> None:
    assert take(None, str(tmp_path))["msg"] == "no host"


def test_only_what_needs_no_file_may_be_left_running(tmp_path: Path) -> None:
    log = Action([{"name": "web1", "changed": False, "log": "x"}], asynchronous=60, type="log")
    assert log.run(task_vars={})["vms"][0]["log"] == "x"
    assert log.wrapped == [True]
    with pytest.raises(AnsibleActionFail, match="async"):
        Action([shot(ONE)], asynchronous=60, type="screenshot", dest=str(tmp_path)).run(task_vars={})
