# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of vm_migrate, with a job that is what it is told to be."""

from __future__ import annotations

import json
import types
import typing as t

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.kvmops.lifecycle.plugins.action import vm_migrate
from ansible_collections.kvmops.lifecycle.plugins.action.vm_migrate import (
    ActionModule,
    Lines,
    cleaned,
    read,
    sentence,
    whole,
)

Result = dict[str, t.Any]

DONE: Result = {"changed": True, "vms": [{"name": "web1", "changed": True}], "warnings": ["a warning"]}
JOB: Result = {"ansible_job_id": "j12.34", "results_file": "/root/.ansible_async/j12.34", "started": True}
RUNNING = json.dumps({"started": True, "finished": False, "ansible_job_id": "j12.34"})
PROCESS = "/proc/77/cmdline\n"


def printed(processes: str = PROCESS, told: t.Sequence[Result] = (), head: str = RUNNING) -> str:
    """What a look prints."""
    return processes + "--\n" + "".join(f"{json.dumps(each):500}\n" for each in told) + "--\n" + head


def record(name: str, **progress: t.Any) -> Result:
    """What stands in the file of a lock."""
    return {"name": name, "action": "live_migrate", "progress": progress}


class Action(ActionModule):
    """One whose job is seen as *looks* say, the last of which is the end."""

    def __init__(self, *looks: str | Exception, job: Result | None = None, **task: t.Any) -> None:
        task = {"args": {"name": ["web1"]}, "check_mode": False, "async_val": 0, "no_log": False, **task}
        self._task = types.SimpleNamespace(  # type: ignore[assignment]
            action="vm_migrate", diff=False, environment=[{"A": "b"}], **task
        )
        shell = types.SimpleNamespace(tmpdir=None, remove=lambda path: f"rm {path}")
        self._connection = types.SimpleNamespace(  # type: ignore[assignment]
            _shell=shell, always_pipeline_modules=False, reset=lambda: self.done.append("reset")
        )
        self._looks = list(looks)
        self._job = JOB if job is None else job
        self.done: list[str] = []
        self.environment: list[Result] = []

    def _execute_module(self, *args: t.Any, wrap_async: bool = False, **options: t.Any) -> Result:
        if wrap_async and self._task.async_val == vm_migrate.FOREVER:
            self.done.append("begin")
            self.environment = list(self._task.environment)
            return dict(self._job)
        self.done.append(options.get("module_name", "run"))
        if "module_name" not in options:
            return dict(DONE)
        assert options["module_args"] == {"jid": "j12.34", "_async_dir": "/root/.ansible_async"}
        return {**DONE, "ansible_job_id": "j12.34", "finished": True}

    def _low_level_execute_command(self, cmd: str, *args: t.Any, **options: t.Any) -> Result:
        if cmd.startswith("rm "):
            self.done.append(cmd)
            return {"stdout": ""}
        seen = self._looks.pop(0)
        if isinstance(seen, Exception):
            raise seen
        return {"stdout": seen}


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were shown. Nobody waits."""
    lines: list[str] = []
    monkeypatch.setattr(vm_migrate, "LOOK", 0)
    monkeypatch.setattr(vm_migrate, "_display", types.SimpleNamespace(display=lines.append))
    return lines


ENDED = ["ansible.legacy.async_status", "rm /root/.ansible_async/j12.34"]


def test_progress_is_shown_and_the_result_is_the_modules_own(shown: list[str]) -> None:
    told = {**record("web1", phase="memory", percent=40), "dest": "qemu+tls://kvm2/system"}
    action = Action(printed(), printed(told=[told]), printed(head="{..."))
    assert action.run(task_vars={"inventory_hostname": "kvm1"}) == DONE
    assert shown == ["[kvm1] web1 to kvm2: memory, 40 %"]
    assert action.done == ["begin", *ENDED]


def test_the_job_is_named_for_as_long_as_it_is_begun() -> None:
    action = Action(printed(head="{..."))
    action.run(task_vars={})
    assert action.environment[0] == {"A": "b"}
    assert len(action.environment[1]["KVMOPS_TASK"]) == 16
    assert action._task.environment == [{"A": "b"}]
    assert action._task.async_val == 0


@pytest.mark.parametrize(
    "task",
    [
        {"check_mode": True},
        {"async_val": 60},
        {"no_log": True},
        {"args": {"progress": False}},
        {"args": {"progress": "no"}},
        {"args": {"state": "checked"}},
        {"args": {"state": "aborted"}},
    ],
)
def test_the_module_runs_by_itself_when_nobody_watches(task: Result, shown: list[str]) -> None:
    action = Action(**task)
    assert action.run(task_vars={}) == DONE
    assert action.done == ["run"]
    assert shown == []


def test_a_job_that_cannot_begin_is_told() -> None:
    action = Action(job={"failed": True, "msg": "no room", "changed": True})
    assert action.run(task_vars={}) == {"failed": True, "msg": "no room", "changed": False}


def test_a_connection_that_breaks_for_a_moment_is_made_again() -> None:
    action = Action(printed(), AnsibleConnectionFailure("gone"), printed(), printed(head="{..."))
    assert action.run(task_vars={}) == DONE
    assert action.done == ["begin", "reset", *ENDED]


def test_a_host_that_stays_away_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm_migrate, "PATIENCE", -1)
    with pytest.raises(AnsibleConnectionFailure, match="gone"):
        Action(AnsibleConnectionFailure("gone")).run(task_vars={})


def test_a_job_that_was_killed_is_told() -> None:
    action = Action(printed(), printed(processes=""))
    result = action.run(task_vars={})
    assert result["failed"]
    assert result["msg"].startswith("MODULE FAILURE: ")
    assert action.done == ["begin", ENDED[1]]


def test_a_job_that_ended_between_two_looks_has_a_result() -> None:
    assert Action(printed(processes="", head=json.dumps(DONE))).run(task_vars={}) == DONE


def test_where_python_was_found_is_kept() -> None:
    facts = {"discovered_interpreter_python": "/usr/bin/python3"}
    result = Action(printed(head="{..."), job={**JOB, "ansible_facts": facts}).run(task_vars={})
    assert result == {**DONE, "ansible_facts": facts}


def test_a_module_without_a_result_is_told_as_one_that_was_killed() -> None:
    wrapped = {
        "failed": True,
        "cmd": "x",
        "data": "",
        "stderr": "Killed",
        "msg": "Traceback",
        "ansible_job_id": "j12.34",
    }
    assert cleaned(wrapped)["module_stderr"] == "Killed"
    assert cleaned({"failed": True, "msg": "refused", "finished": True}) == {"failed": True, "msg": "refused"}


def test_what_anybody_may_write_does_no_harm() -> None:
    assert read('/proc/7/cmdline\n--\nnonsense\n[]\n{"name": 1}\n--\n' + RUNNING) == (True, True, [{"name": 1}])
    assert read("") == (False, False, [])
    shown: list[str] = []
    lines = Lines("kvm1", shown.append, lambda: 0.0)
    lines.show(
        [{}, {"name": "a", "progress": 3}, record("x\x1b[2J", phase="p\n", percent="9", rate=-1, remaining=1e300)]
    )
    assert shown == ["[kvm1] x[2J: p"]


def test_a_vm_has_one_line_every_few_seconds_and_only_news() -> None:
    now, shown = [100.0], list[str]()
    lines = Lines("kvm1", shown.append, lambda: now[0])
    for second, percent in enumerate((1, 2, 3, 4, 4, 4, 4, 5)):
        now[0] = 100.0 + second
        lines.show([record("web1", phase="memory", percent=percent), record("web2", phase="queued")])
    assert [line for line in shown if "web1" in line] == [f"[kvm1] web1: memory, {each} %" for each in (1, 4, 5)]
    assert [line for line in shown if "web2" in line] == ["[kvm1] web2: queued"]


def test_the_whole_task_is_told_of_when_vms_have_ended() -> None:
    now, shown = [100.0], list[str]()
    lines = Lines("kvm1", shown.append, lambda: now[0])
    moving = [{"name": name, "progress": {"moves": True}} for name in "ab"]
    waiting = {"name": "c", "progress": {"phase": "queued", "why": "2 leave kvm1 already"}}
    for second, (ended, failed) in enumerate([(0, 0), (3, 0), (4, 1), (4, 1), (4, 1), (4, 1)]):
        now[0] = 100.0 + second
        lines.show([*moving, waiting, record("", total=12, ended=ended, failed=failed)])
    assert [line for line in shown if "done" in line] == [
        "[kvm1] 3 of 12 VMs done, 2 under way",
        "[kvm1] 3 of 12 VMs done, 2 under way, 1 failed",
    ]
    assert whole([record("", total=2, ended=2, failed=0)]) == "2 of 2 VMs done"
    for nonsense in ({"total": "x", "ended": 1, "failed": 0}, {"total": 3}, {"total": 3, "ended": -1, "failed": 0}):
        assert whole([{"progress": nonsense}, {"progress": 3}, {}]) == ""


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        ({}, ""),
        ({"moves": True}, ""),
        ({"phase": "queued", "why": "2 go there already"}, "queued, 2 go there already"),
        ({"phase": "disks", "percent": 0, "remaining": 0, "rate": 0, "expected_downtime_ms": 0}, "disks"),
        ({"phase": "disks", "percent": 0, "remaining": 10}, "disks, 0 %, 10 B left"),
        (
            {"phase": "memory", "percent": 62, "remaining": 50 << 20, "rate": 10 << 20, "expected_downtime_ms": 85},
            "memory, 62 %, 10 MiB/s, 50 MiB left, about 5 s, downtime of 85 ms expected",
        ),
        (
            {"phase": "disks", "percent": 1, "remaining": 3 << 40, "rate": 200 << 20},
            "disks, 1 %, 200 MiB/s, 3 TiB left, about 4.4 h",
        ),
        (
            {"phase": "disks", "percent": 1, "remaining": 2000 << 20, "rate": 10 << 20},
            "disks, 1 %, 10 MiB/s, 1.95 GiB left, about 3 min",
        ),
    ],
)
def test_progress_is_told_in_a_sentence(progress: Result, said: str) -> None:
    assert sentence(progress) == said
