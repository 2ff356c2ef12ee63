# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A roll that is tried first, that skips, that loses its host and its controller, and goes on. How it goes when all is
well, or when the tasks fail, is shown by molecule's scenario ``roll``."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml

from tests.integration.harness import LAB, Lab, Playbook, Played, Result, define, run, task, wait_for

SCHEDULING = "/var/lib/kvmops/scheduling.json"

pytestmark = pytest.mark.usefixtures("healed")


def report(played: Played) -> Result:
    facts = (each["result"].get("ansible_facts", {}) for each in played.results)
    found = [each["cluster_roll_report"] for each in facts if "cluster_roll_report" in each]
    assert found, played.output
    return t.cast("Result", found[-1])


def tasks(directory: Path, *each: t.Any) -> str:
    """A file with the tasks of a maintenance."""
    file = directory / "maintenance.yml"
    file.write_text(yaml.safe_dump(list(each)), encoding="utf-8")
    return str(file)


def on(lab: Lab) -> dict[str, list[str]]:
    """What runs where."""
    return {host: sorted(lab.sh(host, "virsh -q list --name").split()) for host in lab.hosts}


def test_a_roll_is_tried_skips_loses_its_host_and_goes_on(lab: Lab, play: Playbook, tmp_path: Path) -> None:
    for name, host in (("a", "kvm1"), ("b", "kvm2")):
        define(lab, name, host=host)
        lab.sh(host, f"virsh -q start {name}")
    before = {"kvm1": ["a"], "kvm2": ["b"]}
    trace = tmp_path / "roll.ndjson"
    options: dict[str, t.Any] = {"cluster_roll_trace": str(trace), "cluster_roll_timeout": 5}

    # Tried: it says whose turn it would be, in which order, and does nothing.
    tried = play.ours("roll", "--check", **options, cluster_roll_order=["kvm2", "kvm1"])
    assert tried.returncode == 0, tried.output
    assert (report(tried)["state"], report(tried)["left"]) == ("planned", ["kvm2", "kvm1"])
    assert on(lab) == before
    assert not trace.exists()

    # One that cannot be drained stops all, or is skipped with the reason.
    play(task("vm_lock", name="a", state="locked", reason="no")).ok()
    refused = play.ours("roll", **options)
    assert refused.returncode != 0
    assert [(each["host"], each["code"]) for each in report(refused)["skipped"]] == [("kvm1", "undrainable")], (
        refused.output
    )
    assert on(lab) == before
    noted = tasks(tmp_path, {"ansible.builtin.command": "touch /tmp/maintained"})
    skipped = play.ours("roll", **options, cluster_roll_skip_undrainable=True, cluster_roll_tasks=noted)
    assert skipped.returncode == 0, skipped.output
    told = report(skipped)
    assert (told["state"], told["done"], told["left"]) == ("done", ["kvm2"], [])
    assert "a is locked" in told["skipped"][0]["message"]
    assert on(lab) == before
    assert [lab.sh(host, "ls /tmp/maintained", check=False) != "" for host in lab.hosts] == [False, True]
    play(task("vm_lock", name="a", state="unlocked")).ok()

    # A host that is lost in the middle of the tasks keeps nothing from running, and no other host has its turn.
    off = tasks(
        tmp_path,
        {"ansible.builtin.command": f"{LAB} fault {{{{ inventory_hostname }}}} power-off", "delegate_to": "localhost"},
        {"ansible.builtin.command": "true"},
    )
    lost = play.ours("roll", **options, cluster_roll_tasks=off)
    assert lost.returncode != 0
    told = report(lost)
    assert (told["failed"]["host"], told["failed"]["phase"]) == ("kvm1", "maintenance"), lost.output
    assert "not reached any more" in told["failed"]["message"]
    assert "stays out of scheduling" in told["failed"]["left"]
    assert (told["done"], told["left"]) == ([], ["kvm1", "kvm2"])
    lab.fault("kvm1", "boot")
    assert on(lab) == {"kvm1": [], "kvm2": ["a", "b"]}
    assert "drained" in lab.sh("kvm1", f"cat {SCHEDULING}")

    # It is back, and the roll begins with it again. The controller dies in the second turn; the next run has only that.
    wait = {"ansible.builtin.wait_for": {"path": "/tmp/go", "timeout": 200}}
    lab.sh("kvm1", "touch /tmp/go")
    with play.ours_running("roll", **options, cluster_roll_tasks=tasks(tmp_path, wait)) as process:
        wait_for(lambda: on(lab) == {"kvm1": ["a", "b"], "kvm2": []} or process.poll() is not None, 200)
        assert process.poll() is None, process.text()
        wait_for(lambda: "rolled" in trace.read_text(encoding="utf-8"))
        run(["pkill", "-KILL", "-P", str(process.pid)], check=True, timeout=30)
        process.kill()
        process.wait(30)
    lab.sh("kvm2", "touch /tmp/go")
    again = play.ours("roll", **options, cluster_roll_resume=True, cluster_roll_tasks=tasks(tmp_path, wait))
    assert again.returncode == 0, again.output
    told = report(again)
    assert (told["state"], told["before"], told["done"]) == ("done", ["kvm1"], ["kvm2"])
    assert on(lab) == before
    assert not any(lab.sh(host, f"ls {SCHEDULING}", check=False) for host in lab.hosts)
    events = [json.loads(line)["event"] for line in trace.read_text(encoding="utf-8").splitlines()]
    assert (events.count("refused"), events.count("skipped"), events.count("rolled")) == (1, 1, 3)
