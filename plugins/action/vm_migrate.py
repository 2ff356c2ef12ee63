# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vm_migrate does on the controller: it shows how far the VMs are.

The module runs as an asynchronous job of Ansible, so that it ends its work whatever becomes of the controller and of
the connection. What it tells stands in the files of locks on the host (``_core/lock.py``); a look at them is one short
command, without Python.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import time
import typing as t
from urllib.parse import urlsplit

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.kvmops.lifecycle.plugins.module_utils._core import lock

Result = dict[str, t.Any]

# Seconds between two looks, and at the least between two lines about the same VM.
LOOK, LINE = 1.0, 3.0
# Seconds for which a host may be out of reach before it counts as unreachable.
PATIENCE = 120.0
# Seconds after which Ansible's wrapper ends the job. The module has limits of its own.
FOREVER = 30 * 24 * 3600
# States in which something moves.
MOVING = ("migrated", "recovered", "reverted")
# How much of the file of a job is read to know whether it still runs.
_HEAD = 300
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
# Between the parts of what is printed.
_RULE = "--"
# What Ansible adds to the result of a job.
_JOB_KEYS = ("ansible_job_id", "started", "finished", "results_file")

_display = Display()


class ActionModule(ActionBase):
    """Runs the module, and shows its progress."""

    _supports_async = True

    def run(self, tmp: str | None = None, task_vars: Result | None = None) -> Result:
        """See ``ActionBase``."""
        result: Result = super().run(tmp, task_vars)
        if self._shown():
            result.update(self._followed(task_vars))
        else:
            result.update(self._execute_module(task_vars=task_vars, wrap_async=bool(self._task.async_val)))
        return result

    def _shown(self) -> bool:
        """Whether there is a progress that somebody wants to see."""
        wanted = str(self._task.args.get("progress", True)).lower() in ("true", "yes", "on", "1", "y", "t")
        moving = self._task.args.get("state", "migrated") in MOVING
        alone = not (self._task.check_mode or self._task.async_val or self._task.no_log)
        return wanted and moving and alone and not self._connection.always_pipeline_modules

    # ---- the job

    def _followed(self, task_vars: Result | None) -> Result:
        """Begin the module as a job, and show what it tells until it has ended."""
        name = secrets.token_hex(8)
        job = self._begun(name, task_vars)
        if "ansible_job_id" not in job:
            return {**job, "changed": False}
        lines = Lines(str((task_vars or {}).get("inventory_hostname", "")), _display.display, time.monotonic)
        heard = time.monotonic()
        while True:
            time.sleep(LOOK)
            try:
                result = self._looked(name, job, lines, task_vars)
            except AnsibleConnectionFailure:
                if time.monotonic() - heard > PATIENCE:
                    raise
                # Whether it helps, or there is anything to reset, the next look shows.
                with contextlib.suppress(AnsibleConnectionFailure, NotImplementedError):
                    self._connection.reset()
                continue
            if result is not None:
                return result
            heard = time.monotonic()

    def _begun(self, name: str, task_vars: Result | None) -> Result:
        """Begin the job. Afterwards the task is as it was: to Ansible it has no job."""
        environment = self._task.environment
        self._task.async_val = FOREVER
        self._task.environment = [*(environment or []), {lock.TASK: name}]
        try:
            return t.cast("Result", self._execute_module(task_vars=task_vars, wrap_async=True))
        finally:
            self._task.async_val = 0
            self._task.environment = environment

    def _looked(self, name: str, job: Result, lines: Lines, task_vars: Result | None) -> Result | None:
        """Show what there is to say. When the job has ended: its result."""
        seen = self._low_level_execute_command(_look(name, job["ansible_job_id"], job["results_file"]))
        alive, running, told = read(seen["stdout"])
        lines.show(told)
        if alive and running:
            return None
        result = _died(f"No process of it is left, and {job['results_file']} has no result.")
        if not running:
            arguments = {"jid": job["ansible_job_id"], "_async_dir": job["results_file"].rpartition("/")[0]}
            status = "ansible.legacy.async_status"
            result = cleaned(self._execute_module(module_name=status, module_args=arguments, task_vars=task_vars))
        self._low_level_execute_command(self._connection._shell.remove(job["results_file"]))
        if "ansible_facts" in job:  # where Python was found
            result["ansible_facts"] = {**job["ansible_facts"], **result.get("ansible_facts", {})}
        return result


def _look(name: str, job: str, place: str) -> str:
    """A command that prints which processes of the job there are, what the module told, and how the job's file begins.

    The order matters: a job whose processes are gone has written its file, if it ever does.
    """
    # Words of command lines end with NUL. In brackets, so that the pattern does not find the command that looks for it.
    pattern = f"[{job[0]}]{job[1:].partition('.')[0]}"
    return "; ".join(
        (
            f"grep -l -s -z -x -e {shlex.quote(pattern)} /proc/[0-9]*/cmdline",
            f"echo {_RULE}",
            f"grep -h -s -F -e {shlex.quote(name)} {lock.DIRECTORY}/*.lock",
            f"echo {_RULE}",
            f"head -c {_HEAD} {shlex.quote(place)}",
        )
    )


def read(printed: str) -> tuple[bool, bool, list[Result]]:
    """Of what :func:`_look` printed: whether the job has processes, whether its file has no result, what was told."""
    parts = f"\n{printed}".replace("\r", "").split(f"\n{_RULE}")
    processes, told, head = [*parts, "", ""][:3]
    job = _record(head)
    running = bool(job.get("started")) and not job.get("finished")
    return bool(processes.strip()), running, [found for found in map(_record, told.splitlines()) if found]


def _record(line: str) -> Result:
    """What a file says that anybody may write into; nothing when it is no JSON object."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def cleaned(result: Result) -> Result:
    """The result of a job as the module's own, which has nothing of the job in it."""
    if result.get("failed") and "cmd" in result and ("data" in result or "outdata" in result):
        return _died(str(result.get("stderr", "")))
    return {key: value for key, value in result.items() if key not in _JOB_KEYS}


def _died(why: str) -> Result:
    return {
        "failed": True,
        "changed": False,
        "msg": "MODULE FAILURE: the module was ended on the host before it could say what it had done. Run the task"
        " again: it looks how far that came, and goes on from there.",
        "module_stderr": why,
    }


# ---- what is shown


class Lines:
    """Shows what VMs tell: at most one line about a VM every few seconds, and only what is new.

    :param host: The host's name in the inventory.
    :param show: Prints a line.
    :param clock: Seconds that go by.
    """

    def __init__(self, host: str, show: t.Callable[[str], object], clock: t.Callable[[], float]) -> None:
        self._host = host
        self._show = show
        self._clock = clock
        self._said: dict[str, tuple[float, str]] = {}

    def show(self, told: t.Sequence[Result]) -> None:
        """Show what there is to say about it."""
        for each in told:
            progress = each.get("progress")
            if not isinstance(progress, dict):
                continue
            dest = _plain(_host(each.get("dest")))
            name = _plain(each.get("name", "")) + (f" to {dest}" if dest else "")
            self._say(name, sentence(progress), f"{name}: ")
        self._say("", whole(told), "")

    def _say(self, what: str, said: str, before: str) -> None:
        """
        :param what: What it is about.
        :param before: What stands before it in the line.
        """
        now = self._clock()
        since, last = self._said.get(what, (now - LINE, ""))
        if said and said != last and now - since >= LINE:
            self._said[what] = (now, said)
            self._show(f"[{self._host}] {before}{said}")


def whole(told: t.Iterable[Result]) -> str:
    """How far the whole task is; nothing when nobody tells, or nothing has ended yet."""
    moving = 0
    counts: list[float | None] = []
    for each in told:
        progress = each.get("progress")
        if isinstance(progress, dict):
            moving += progress.get("moves") is True
            if "total" in progress:
                counts = [_number(progress, key) for key in ("total", "ended", "failed")]
    if None in counts or not counts:
        return ""
    total, ended, failed = (number or 0 for number in counts)
    if not ended:
        return ""
    parts = [f"{ended - failed:.0f} of {total:.0f} VMs done"]
    if moving:
        parts.append(f"{moving} under way")
    if failed:
        parts.append(f"{failed:.0f} failed")
    return ", ".join(parts)


def _host(uri: t.Any) -> str:
    """The host in a connection URI; nothing when it is none."""
    try:
        return urlsplit(str(uri)).hostname or ""
    except ValueError:
        return ""


def sentence(progress: t.Mapping[str, t.Any]) -> str:
    """How far a VM is. What is not known is left out; nothing when it does not say what is being done.

    :param progress: ``phase``; ``percent``; ``remaining`` bytes; ``rate`` in bytes a second; ``expected_downtime_ms``;
        ``why``.
    """
    if not progress.get("phase"):
        return ""
    parts = [_plain(progress["phase"])]
    numbers = ("percent", "remaining", "rate", "expected_downtime_ms")
    percent, remaining, rate, downtime = (_number(progress, key) for key in numbers)
    if percent or remaining:
        parts.append(f"{percent:.0f} %")
    if rate:
        parts.append(f"{_size(rate)}/s")
    if remaining:
        parts.append(f"{_size(remaining)} left")
    if remaining and rate:
        parts.append(f"about {_span(remaining / rate)}")
    if downtime:
        parts.append(f"downtime of {downtime:.0f} ms expected")
    if progress.get("why"):
        parts.append(_plain(progress["why"]))
    return ", ".join(parts)


def _number(progress: t.Mapping[str, t.Any], key: str) -> float | None:
    value = progress.get(key)
    return value if isinstance(value, (int, float)) and 0 <= value < 2**63 else None


def _plain(text: t.Any) -> str:
    """What a terminal shows as it stands, and no more than a line takes."""
    return "".join(char for char in str(text) if char.isprintable())[:100]


def _size(number: float) -> str:
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} {_UNITS[-1]}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
