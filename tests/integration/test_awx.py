# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The job templates, run as AWX runs them, in what the execution environment has in it; and what AWX is told."""

from __future__ import annotations

import json
import shutil
import typing as t
from pathlib import Path

import pytest

from tests.awx import job_template, load
from tests.integration.harness import Lab, Playbook, define, order, task
from tests.integration.runner import BIN, Environment, command

# The environment is made once: all of them are one worker's.
pytestmark = pytest.mark.xdist_group("awx")

# The options of the modules of awx.awx 24.6.1 that are used here, as its documentation has them.
NAMED = {"name": {"required": True}, "description": {}, "organization": {}, "state": {"default": "present"}}
AWX_MODULES: dict[str, dict[str, t.Any]] = {
    "execution_environment": {**NAMED, "image": {}, "pull": {"default": "missing"}},
    "project": {
        **NAMED,
        "scm_type": {"choices": ["manual", "git", "svn", "insights", "archive"]},
        "scm_url": {},
        "scm_branch": {},
        "default_environment": {},
    },
    "job_template": {
        **NAMED,
        "project": {},
        "playbook": {},
        "inventory": {},
        "credentials": {"type": "list", "elements": "str"},
        "execution_environment": {},
        "job_type": {"choices": ["run", "check"]},
        "diff_mode": {"type": "bool"},
        "extra_vars": {"type": "dict"},
        "ask_variables_on_launch": {"type": "bool"},
        "ask_job_type_on_launch": {"type": "bool"},
        "allow_simultaneous": {"type": "bool"},
        "survey_enabled": {"type": "bool"},
        "survey_spec": {"type": "dict"},
    },
    "workflow_job_template": {
        **NAMED,
        "allow_simultaneous": {"type": "bool"},
        "ask_variables_on_launch": {"type": "bool"},
        "survey_enabled": {"type": "bool"},
        "survey_spec": {"type": "dict"},
        "workflow_nodes": {"type": "list", "elements": "dict"},
        "destroy_current_nodes": {"type": "bool", "default": False},
    },
    "schedule": {
        **NAMED,
        "unified_job_template": {},
        "rrule": {},
        "extra_data": {"type": "dict"},
        "enabled": {"type": "bool"},
    },
}
# What stands in for such a module: it takes the same options, and writes down what it was given.
STAND_IN = """\
import json
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule(argument_spec={spec!r})
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, module.params]) + "\\n")
module.exit_json(changed=True)
"""


@pytest.fixture(scope="module")
def awx(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The execution environment."""
    return Environment(tmp_path_factory.mktemp("awx"))


def test_the_execution_environment_is_what_the_collection_needs(awx: Environment) -> None:
    # The image is the user's, and no registry is named by us.
    recipe = (awx.context / "Containerfile").read_text(encoding="utf-8")
    assert "ARG EE_BASE_IMAGE" in recipe
    assert (awx.context / "_build/artefact/kvmops-lifecycle.tar.gz").is_file()
    # Packages are those that this machine has, which the libraries were built and the jobs are run with.
    command(BIN / "bindep", "-b", "-f", awx.packages)
    # Everything that the modules may import where they run is there.
    libraries = ("cryptography", "jwcrypto", "libvirt", "openstack", "oslo_utils.imageutils", "PIL", "pycdlib")
    command(awx.bin / "python", "-c", "import " + ", ".join(libraries))
    assert "kvmops.lifecycle" in command(awx.bin / "ansible-galaxy", "collection", "list", settings=awx.settings())


def test_awx_is_told_of_every_template_workflow_and_schedule(awx: Environment, tmp_path: Path) -> None:
    modules = tmp_path / "ansible_collections/awx/awx/plugins/modules"
    modules.mkdir(parents=True)
    log = tmp_path / "log"
    for name, spec in AWX_MODULES.items():
        text = STAND_IN.format(spec=spec, log=str(log), name=name)
        (modules / f"{name}.py").write_text(text, encoding="utf-8")
    shutil.copytree(awx.collections / "ansible_collections/kvmops", tmp_path / "ansible_collections/kvmops")
    told = {"scm_url": "URL", "image": "IMAGE", "inventory": "hosts", "credential": "key"}
    variables = json.dumps({f"kvmops_awx_{name}": value for name, value in told.items()})
    playbook = (awx.bin / "ansible-playbook", "kvmops.lifecycle.awx.configure", "-e", variables)
    command(*playbook, settings=awx.settings(ANSIBLE_COLLECTIONS_PATH=str(tmp_path)))

    made: dict[str, list[dict[str, t.Any]]] = {name: [] for name in AWX_MODULES}
    for line in log.read_text(encoding="utf-8").splitlines():
        name, given = json.loads(line)
        made[name].append(given)
    assert [each["image"] for each in made["execution_environment"]] == ["IMAGE"]
    assert [each["scm_url"] for each in made["project"]] == ["URL"]
    for template, given in zip(load("job_templates"), made["job_template"], strict=True):
        assert {name: given[name] for name in template} == template
    for workflow, given in zip(load("workflows"), made["workflow_job_template"], strict=True):
        assert given["survey_spec"] == workflow["survey_spec"]
        nodes = [node["unified_job_template"] for node in given["workflow_nodes"]]
        organizations = [node["organization"]["name"] for node in nodes if node["type"] == "job_template"]
        assert organizations == ["Default"] * len(organizations)
    assert [each["name"] for each in made["schedule"]] == [each["name"] for each in load("schedules")]


def test_hosts_are_prepared_and_shelves_are_emptied_by_jobs(lab: Lab, awx: Environment, play: Playbook) -> None:
    prepared = awx.run(job_template("prepare hosts"), lab.inventory, {}, check=True).ok()
    assert len(prepared.results("kvmops.lifecycle.readiness_matrix")) == 1

    store = {"path": f"{lab.vars['lab_private']}/shelves"}
    play(task("vm", **order(lab, "waits", start=False))).ok()
    told: dict[str, t.Any] = {"vm_backups_hosts": "kvm1", "vm_backups_image_store": store}
    (done,) = awx.run(job_template("back up VMs"), lab.inventory, told).ok().results("kvmops.lifecycle.vm_snapshot")
    assert [(vm["name"], vm["changed"]) for vm in done["vms"]] == [("waits", True)]

    play(task("vm_shelve", name="waits", state="shelved", image_store=store)).ok()
    told = {"shelf_offload_hosts": "kvm1", "shelf_offload_older_than": 0, "shelf_offload_image_store": store}
    (done,) = (
        awx.run(job_template("offload shelved VMs"), lab.inventory, told).ok().results("kvmops.lifecycle.vm_shelve")
    )
    assert [(vm["name"], vm["status"]) for vm in done["vms"]] == [("waits", "SHELVED_OFFLOADED")]
    assert lab.domains("kvm1") == []

    # A proxy without a key is refused by the role, and the job has failed.
    refused = awx.run(job_template("console proxy"), lab.inventory, {"console_proxy_hosts": "kvm1"}, check=True)
    assert refused.status == "failed"
    assert "console_proxy_public_key" in refused.output


def test_a_maintenance_goes_from_job_to_job(lab: Lab, awx: Environment) -> None:
    for name in ("one", "two"):
        define(lab, name)
        lab.sh("kvm1", f"virsh -q start {name}")
    define(lab, "spare")
    # What a user types is no template, whatever it looks like.
    answers = {"host_drain_host": "kvm1", "host_drain_reason": "{{ 7 * 7 }} new disks"}

    plan = awx.run(job_template("step of a maintenance, plan"), lab.inventory, answers).ok()
    assert sorted(move["vm"] for move in json.loads(plan.artefacts["host_drain_plan"])["moves"]) == ["one", "two"]
    assert sorted(lab.domains("kvm1")) == ["one", "spare", "two"]

    drained = awx.run(job_template("step of a maintenance, drain"), lab.inventory, answers, plan.artefacts).ok()
    assert (lab.domains("kvm1"), sorted(lab.domains("kvm2"))) == (["spare"], ["one", "two"])
    moved = [
        vm["name"] for each in drained.results("kvmops.lifecycle.vm_migrate") for vm in each["vms"] if vm["changed"]
    ]
    assert sorted(moved) == ["one", "two"]
    assert "{{ 7 * 7 }} new disks" in lab.sh("kvm1", "cat /var/lib/kvmops/scheduling.json")

    awx.run(job_template("step of a maintenance, restore"), lab.inventory, answers, plan.artefacts).ok()
    assert (sorted(lab.domains("kvm1")), lab.domains("kvm2")) == (["one", "spare", "two"], [])


def test_a_host_that_lives_is_not_evacuated_and_a_roll_is_foreseen(lab: Lab, awx: Environment) -> None:
    define(lab, "one")
    lab.sh("kvm1", "virsh -q start one")
    answers = {"host_evacuate_host": "kvm1", "host_evacuate_confirmed": "kvm1", "host_evacuate_reason": "I think so"}
    refused = awx.run(job_template("evacuate a host"), lab.inventory, answers)
    assert refused.status == "failed"
    assert "answers" in refused.output
    assert refused.results("kvmops.lifecycle.vm_evacuate") == []

    foreseen = awx.run(job_template("roll through the cluster"), lab.inventory, {}, check=True).ok()
    assert foreseen.results("kvmops.lifecycle.drain_plan")
    assert (lab.domains("kvm1"), lab.domains("kvm2")) == (["one"], [])
    assert lab.sh("kvm1", "cat /var/lib/kvmops/scheduling.json", check=False) == ""
