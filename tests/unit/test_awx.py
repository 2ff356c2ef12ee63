# Copyright (c) 2026 kvmops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What AWX is told is what the roles understand. That the jobs run is another matter: tests/integration/test_awx.py."""

from __future__ import annotations

import re
import typing as t

import pytest
import yaml

from tests.awx import REPO, Data, load

# Kinds of questions that AWX knows, and the types of options that can take their answers.
TYPES = {
    "text": {"str", "path"},
    "textarea": {"str"},
    "password": {"str"},
    "integer": {"int", "float"},
    "float": {"float"},
    "multiplechoice": {"str", "bool"},
    "multiselect": {"list"},
}
# What AWX knows of a question.
KEYS = {"type", "question_name", "question_description", "variable", "required", "default", "choices", "min", "max"}

TEMPLATES = load("job_templates")
WORKFLOWS = load("workflows")
SURVEYS = [each for each in [*TEMPLATES, *WORKFLOWS] if "survey_spec" in each]


def find(name: str) -> Data:
    """The job template of that name."""
    (found,) = (each for each in TEMPLATES if each["name"] == name)
    return found


def options(template: Data) -> dict[str, Data]:
    """What the roles of a template's playbook can be told, and which hosts it is about."""
    text = (REPO / template["playbook"]).read_text(encoding="utf-8")
    found: dict[str, Data] = {name: {"type": "str"} for name in re.findall(r"^  hosts: \"{{ (\w+)", text, re.M)}
    for role in set(re.findall(r"kvmops\.lifecycle\.(\w+)", text)):
        specs = REPO / f"roles/{role}/meta/argument_specs.yml"
        if specs.is_file():
            found.update(yaml.safe_load(specs.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"])
    return found


def about(survey: Data) -> dict[str, Data]:
    """What the jobs of a template or workflow can be told."""
    if "playbook" in survey:
        return options(survey)
    nodes = [node["unified_job_template"] for node in survey["workflow_nodes"]]
    jobs = [find(node["name"]) for node in nodes if node["type"] == "job_template"]
    return {name: option for job in jobs for name, option in options(job).items()}


def problems(question: Data, option: Data) -> t.Iterator[str]:
    """Where a question and the option that takes its answer disagree."""
    kind = question["type"]
    if option["type"] not in TYPES[kind]:
        yield f"the option is of the type {option['type']}"
    if option.get("no_log", False) != (kind == "password"):
        yield "a secret is asked for as a password, and nothing else is"
    choices = ["true", "false"] if option["type"] == "bool" else option.get("choices")
    if kind == "multiplechoice" and not (choices and set(question["choices"]) <= set(choices)):
        yield f"the option takes {choices}"
    if kind != "multiplechoice" and choices:
        yield "the option has choices, and the question has none"
    default = option.get("default", "")
    if default != "" and question["default"] != (str(default).lower() if isinstance(default, bool) else default):
        yield f"the option's default is {default!r}"


@pytest.mark.parametrize("survey", SURVEYS, ids=lambda survey: survey["name"])
def test_a_survey_asks_what_the_roles_take(survey: Data) -> None:
    known = about(survey)
    found = []
    for question in survey["survey_spec"]["spec"]:
        assert set(question) <= KEYS
        assert {"type", "question_name", "variable", "default"} <= set(question)
        # An empty text is none for Ansible (!unsafe ""), and roles need not know what to do with that.
        assert question["required"] is True
        assert question["variable"] in known
        if "choices" in question:
            assert question.get("default", "") in ["", *question["choices"]]
        found += [f"{question['variable']}: {each}" for each in problems(question, known[question["variable"]])]
    assert found == []
    names = [question["variable"] for question in survey["survey_spec"]["spec"]]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["name"])
def test_what_a_template_sets_is_known_to_the_roles(template: Data) -> None:
    known = options(template)
    assert set(template.get("extra_vars", {})) <= set(known)
    assert template["name"].startswith("kvmops: ")
    # Nobody sits before a job.
    text = (REPO / template["playbook"]).read_text(encoding="utf-8")
    assert "vars_prompt" not in text


def test_every_playbook_is_a_template_and_nothing_in_a_role_waits_for_somebody() -> None:
    ours = {f"playbooks/{path.name}" for path in (REPO / "playbooks").glob("*.yml")}
    assert {template["playbook"] for template in TEMPLATES} == ours
    tasks = "\n".join(path.read_text(encoding="utf-8") for path in (REPO / "roles").glob("*/tasks/*.yml"))
    assert "ansible.builtin.pause" not in tasks
    names = [each["name"] for each in [*TEMPLATES, *WORKFLOWS, *load("schedules")]]
    assert len(names) == len(set(names))


def test_a_workflow_leads_through_all_of_its_nodes() -> None:
    for workflow in WORKFLOWS:
        nodes = {node["identifier"]: node for node in workflow["workflow_nodes"]}
        order = [workflow["workflow_nodes"][0]["identifier"]]
        while behind := nodes[order[-1]].get("related", {}).get("success_nodes"):
            order += [node["identifier"] for node in behind]
        assert sorted(order) == sorted(nodes)
        kinds = [nodes[name]["unified_job_template"]["type"] for name in order]
        # Somebody looks at the plan before anything is done.
        assert kinds[:3] == ["job_template", "workflow_approval", "job_template"]
        asked = {question["variable"] for question in workflow["survey_spec"]["spec"]}
        for node in nodes.values():
            if node["unified_job_template"]["type"] == "job_template":
                template = find(node["unified_job_template"]["name"])
                # AWX starts no job of a workflow whose own survey has open questions.
                assert "survey_spec" not in template
                role = template["playbook"].rpartition("/")[2].removesuffix(".yml")
                assert f"host_{role}_host" in asked | set(template.get("extra_vars", {}))


def test_a_schedule_has_all_that_its_template_asks_for() -> None:
    for schedule in load("schedules"):
        template = find(schedule["unified_job_template"])
        questions = template["survey_spec"]["spec"]
        open_questions = {each["variable"] for each in questions if each["default"] == ""}
        assert open_questions <= set(schedule.get("extra_data", {}))
        assert re.fullmatch(r"DTSTART:\d{8}T\d{6}Z RRULE:FREQ=[A-Z]+;INTERVAL=\d+", schedule["rrule"])
