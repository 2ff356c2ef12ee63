# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Callback that writes how long every task took, and what it came to, as lines of JSON."""

from __future__ import annotations

import json
import os
import time
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: taken
type: aggregate
short_description: Writes how long tasks took
description:
  - Appends a line for every result of a module of this collection to the file that the environment variable
    E(KVMOPS_TAKEN) names, with the seconds since the task began.
"""


class CallbackModule(CallbackBase):
    """See above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "taken"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        """A task begins."""
        self.began[task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result: t.Any, **_kwargs: t.Any) -> None:
        """A task ended well."""
        task = result._task
        if task.action.startswith("kvmops.lifecycle."):
            line = {"action": task.action, "seconds": time.monotonic() - self.began[task._uuid]}
            with open(os.environ["KVMOPS_TAKEN"], "a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "result": result._result}, default=str) + "\n")
