# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Callback that writes the result of every task as a line of JSON, for the tests to look at."""

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: results
type: aggregate
short_description: Writes results as lines of JSON
description:
  - Appends one line a task result to the file that the environment variable E(KVMOPS_RESULTS) names.
"""


class CallbackModule(CallbackBase):
    """See above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "results"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, outcome: str, result: t.Any) -> None:
        line = {"host": result._host.get_name(), "task": result._task.get_name(), "outcome": outcome}
        with open(os.environ["KVMOPS_RESULTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "result": result._result}, default=str) + "\n")

    def v2_runner_on_ok(self, result: t.Any, **_kwargs: t.Any) -> None:
        """A task ended well."""
        self._write("ok", result)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False, **_kwargs: t.Any) -> None:
        """A task failed."""
        self._write("failed", result)

    def v2_runner_on_skipped(self, result: t.Any, **_kwargs: t.Any) -> None:
        """A task was skipped."""
        self._write("skipped", result)

    def v2_runner_on_unreachable(self, result: t.Any, **_kwargs: t.Any) -> None:
        """A host was not reached."""
        self._write("unreachable", result)
