# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Imported by the Python of a module under test (it is on its PYTHONPATH): strikes before a step of its plan.

``KVMOPS_KILL_AT`` names the step. The journal that announces the step has been written by then; ``end`` is the moment
after the last step, before the journal is cleared. The module is killed; or, where ``KVMOPS_RUN`` is a script for the
shell, that is run and the module goes on.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import subprocess
import sys
import typing as t

_MODULE = "ansible_collections.kvmops.lifecycle.plugins.module_utils._module"


def _strike() -> None:
    if "KVMOPS_RUN" not in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    subprocess.run(["sh", "-c", os.environ["KVMOPS_RUN"]], check=True, stdout=subprocess.DEVNULL)


def _patch(module: t.Any) -> None:
    target, write = os.environ["KVMOPS_KILL_AT"], module._write_journal

    def write_and_strike(subject: t.Any) -> None:
        if subject.journal is None and target == "end":
            _strike()
        write(subject)
        if subject.journal is not None and subject.journal.step == target:
            _strike()

    module._write_journal = write_and_strike


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_rest: t.Any) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: t.Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: t.Any) -> None:
            execute(module)
            if module.__name__ == _MODULE:
                _patch(module)

        loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
