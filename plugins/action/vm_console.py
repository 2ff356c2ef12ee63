# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vm_console does on the controller: it writes the pictures of screens, which the module has in its result."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import struct
import tempfile
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.errors import LifecycleError
from ansible_collections.kvmops.lifecycle.plugins.module_utils._core.files import working

Result = dict[str, t.Any]

# A PNG file begins with its signature and its size (PNG Specification, 5.2 and 11.2.2).
_HEAD = struct.Struct(">8s4x4sII")
_SIGNATURE = (b"\x89PNG\r\n\x1a\n", b"IHDR")


class ActionModule(ActionBase):
    """Runs the module; for screenshots, writes what came of it."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """See ``ActionBase``."""
        result: Result = super().run(tmp, task_vars)
        pictures = self._task.args.get("type") == "screenshot"
        asynchronous = bool(self._task.async_val)
        if pictures and asynchronous:
            raise AnsibleActionFail("A screenshot cannot be taken with async: it is written when the module has ended.")
        result.update(self._execute_module(task_vars=task_vars, wrap_async=asynchronous))
        if pictures:
            self._write_all(result)
        return result

    def _write_all(self, result: Result) -> None:
        vms: list[Result] = result.get("vms", [])
        dest = str(self._task.args.get("dest", ""))
        path = self._loader.path_dwim(dest)
        directory = len(vms) > 1 or dest.endswith("/") or os.path.isdir(path)
        for vm in vms:
            picture = vm.pop("png", None)
            if picture is None:
                continue
            try:
                vm.update(self._write(picture, os.path.join(path, _file_of(vm["name"])) if directory else path))
            except LifecycleError as exc:
                vm.update(failed=True, msg=str(exc), code=exc.code, details=exc.details)
                result.update(failed=True, msg=f"{result.get('msg', '')} {exc}".lstrip())
        result["changed"] = any(vm["changed"] for vm in vms)

    def _write(self, picture: str, path: str) -> Result:
        """Write one, unless it is there already, and tell of it."""
        content = base64.b64decode(picture)
        if len(content) < _HEAD.size or (head := _HEAD.unpack_from(content))[:2] != _SIGNATURE:
            raise LifecycleError(f"Failed to write {path}: what the module returned is no PNG.")
        told = {"dest": path, "checksum": hashlib.sha256(content).hexdigest(), "width": head[2], "height": head[3]}
        with working(f"write {path} on the controller"):
            changed = _read(path) != content
            if changed and not self._task.check_mode:
                _replace(path, content)
        return {**told, "changed": changed}


def _file_of(name: str) -> str:
    """The name of the file for VM *name*, which the host told."""
    file = f"{name}.png"
    if os.path.basename(file) != file or "\0" in file:
        raise LifecycleError(f"Failed to write a file for VM {name!r}: that cannot be the name of one.")
    return file


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _replace(path: str, content: bytes) -> None:
    """In one go, so that whoever looks at it sees the old or the new one."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".png", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
