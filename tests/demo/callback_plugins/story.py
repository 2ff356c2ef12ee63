# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Callback that tells a playbook as a story: what became of each VM and what proves it. The rest is silent."""

from __future__ import annotations

import textwrap
import time
import typing as t

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: story
type: stdout
short_description: Tells a playbook as a story
description:
  - A play with the variable C(about) is a chapter.
  - Of the tasks of this collection it prints what became of every VM, of assertions what they found out, of others
    nothing unless they fail.
"""

WIDTH = 110
# What room there is for the steps that were taken.
STEPS = 50


class CallbackModule(CallbackBase):
    """See above."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "story"

    def __init__(self) -> None:
        super().__init__()
        self.chapters: list[tuple[str, float]] = []
        self.heading = ""

    def _say(self, text: str, color: str | None = None) -> None:
        self._display.display(text, color=color)

    # ---- chapters

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        """A chapter begins."""
        about = str(play.get_vars().get("about", ""))
        if not about:
            return
        self.chapters.append((play.get_name(), time.monotonic()))
        self._say(f"\n{len(self.chapters)}. {play.get_name()}", constants.COLOR_HIGHLIGHT)
        self._say(textwrap.fill(about, WIDTH, initial_indent="   ", subsequent_indent="   ") + "\n")

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """The end: how long each chapter took."""
        ends = [began for _name, began in self.chapters[1:]] + [time.monotonic()]
        self._say("")
        for number, ((name, began), end) in enumerate(zip(self.chapters, ends), 1):
            self._say(f"   {number:2}. {name:58} {end - began:6.1f} s")

    # ---- tasks

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        """A task begins; it is announced with its first line, and one that shows its progress at once."""
        self.heading = task.get_name()
        if task.action == "kvmops.lifecycle.vm_migrate":
            self._announce()

    def _announce(self) -> None:
        if self.heading:
            self._say(f"   {self.heading}")
            self.heading = ""

    def v2_runner_on_ok(self, result: t.Any) -> None:
        """A task ended as it should; one that had to be refused was."""
        told, host = result.result, result.host.get_name()
        if "vms" in told and all("changed" in vm for vm in told["vms"]):
            self._announce()
            diffs = {diff["before_header"]: diff for diff in told.get("diff", []) if diff}
            for vm in told["vms"]:
                self._tell_vm(host, vm, diffs.get(vm["name"]), check_mode=bool(result.task.check_mode))
        elif "results" not in told:
            self._tell_proof(result)

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        """The same, for one item of a loop."""
        self._tell_proof(result)

    def _tell_proof(self, result: t.Any) -> None:
        if result.task.action == "ansible.builtin.assert" and self.chapters:
            self._announce()
            self._point("✓", f"{result.host.get_name()}: {result.result['msg']}", constants.COLOR_OK)

    def _tell_vm(self, host: str, vm: dict[str, t.Any], diff: dict[str, t.Any] | None, *, check_mode: bool) -> None:
        before, after = (diff["before"], diff["after"]) if diff else ({}, {})
        then, now = before.get("status"), vm.get("status", "")
        status = f"{then} → {now}" if then and then != now else now
        note, color = ", ".join(vm.get("steps", [])), constants.COLOR_CHANGED
        if check_mode:
            status, note = f"would: {status}", note or "nothing to do"
        if vm.get("failed"):
            note, color = f"{vm['code']}, see below", constants.COLOR_WARN
        elif not vm["changed"]:
            note, color = note or "unchanged", constants.COLOR_OK
        seconds = f"{vm['seconds']:6.1f} s" if "seconds" in vm else ""
        steps = note
        if len(steps) > STEPS:
            note = f"{len(vm['steps'])} steps"
        self._say(f"     {host:5} {vm['name']:8} {status:31} {note:{STEPS}}{seconds}".rstrip(), color)
        if note != steps:
            self._point("·", steps, color)
        for key in before:
            if key not in ("status", "power_state") and before[key] != after.get(key):
                self._point("·", f"{key}: {_short(before[key])} → {_short(after.get(key))}", color)
        if vm.get("failed"):
            self._point("»", vm["msg"], constants.COLOR_WARN)

    def _point(self, sign: str, text: str, color: str) -> None:
        self._say(textwrap.fill(text, WIDTH, initial_indent=f"     {sign} ", subsequent_indent="       "), color)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        """Something is not as told."""
        told = result.result
        self._announce()
        self._point("✗", f"{result.host.get_name()}: {told.get('msg', 'failed')}", constants.COLOR_ERROR)
        for key in ("assertion", "stdout", "stderr", "module_stderr"):
            if told.get(key):
                self._say(textwrap.indent(f"{key}: {told[key]}", "       "), constants.COLOR_ERROR)

    def v2_runner_item_on_failed(self, result: t.Any) -> None:
        """The same, for one item of a loop."""
        self.v2_runner_on_failed(result)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        """A host does not answer."""
        self.v2_runner_on_failed(result)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """A play without hosts."""
        self._say("     ✗ no hosts matched", constants.COLOR_ERROR)


def _short(value: t.Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_short(each) for each in value) or "none"
    return "none" if value is None else str(value).rpartition("/")[2]
