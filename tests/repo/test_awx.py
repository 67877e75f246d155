# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""examples/awx: what the surveys ask is what the roles take, in a form that AWX takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AWX = ROOT / "examples/awx"
TEMPLATES = yaml.safe_load((AWX / "job_templates.yml").read_text())["job_templates"]
SURVEYS = [template for template in TEMPLATES if template["survey_enabled"]]
QUESTIONS = [
    pytest.param(question, id=f"{template['name']}-{question['variable']}")
    for template in SURVEYS
    for question in template["survey_spec"]["spec"]
]
# Which of AWX's question types may feed an option of a type. A path is where something lies, which is for the inventory to say.
TYPES = {"str": {"text", "multiplechoice"}, "int": {"integer"}, "bool": {"multiplechoice"}}


def options() -> dict[str, list[dict[str, Any]]]:
    """Each option of a role, with its description at every entry point."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            for name, option in (spec.get("options") or {}).items():
                found.setdefault(name, []).append(option)
    return found


def operator_variables() -> set[str]:
    """The variables opskit_* that playbooks and roles read."""
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.yml")]
    return {name for path in files for name in re.findall(r"\bopskit_[a-z]+\b(?= \| default)", path.read_text())}


def test_every_runbook_has_a_job_template() -> None:
    runbooks = {f"playbooks/{path.name}" for path in (ROOT / "playbooks").glob("*.yml")}
    assert sorted(template["playbook"] for template in TEMPLATES) == sorted(runbooks | {"playbooks/journal.yml"})
    for template in TEMPLATES:
        (play, *others) = yaml.safe_load((AWX / template["playbook"]).read_text())
        if template["playbook"] in runbooks:
            assert others == []
            assert play["ansible.builtin.import_playbook"] == f"opskit.runbooks.{Path(template['playbook']).stem}"
    assert len({template["name"] for template in TEMPLATES}) == len(TEMPLATES)


def test_the_project_wants_this_collection() -> None:
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    wanted = yaml.safe_load((AWX / "collections/requirements.yml").read_text())["collections"]
    assert {"name": "opskit.runbooks", "version": version} in wanted


@pytest.mark.parametrize("template", SURVEYS, ids=lambda template: template["name"])
def test_survey_is_one_that_awx_takes(template: dict[str, Any]) -> None:
    """As awx/api/views JobTemplateSurveySpec checks it."""
    survey = template["survey_spec"]
    assert {key: type(value) for key, value in survey.items()} == {"name": str, "description": str, "spec": list}
    variables = [question["variable"] for question in survey["spec"]]
    assert variables
    assert len(set(variables)) == len(variables)


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_is_one_that_awx_takes(question: dict[str, Any]) -> None:
    known = {"question_name", "question_description", "required", "type", "variable", "min", "max", "default", "choices"}
    assert set(question) <= known
    assert all(isinstance(question[key], str) and question[key] for key in ("question_name", "question_description", "type", "variable"))
    assert isinstance(question["required"], bool)
    if question["type"] == "multiplechoice":
        # AWX sends an answer always, so one has to be there.
        assert question["required"]
        assert all(isinstance(choice, str) and choice for choice in question["choices"])
        assert question["default"] in question["choices"]
    else:
        assert "choices" not in question
        assert all(isinstance(question[key], int) for key in ("min", "max"))
        assert question["min"] < question["max"]
        assert not question["required"]
    if question["type"] == "integer":
        # Without a default an answer that is left out leaves the inventory's value alone.
        assert "default" not in question
    if question["type"] == "text":
        assert question["min"] == 0
        assert isinstance(question.get("default", ""), str)


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_feeds_an_option(question: dict[str, Any]) -> None:
    name = question["variable"]
    if name.startswith("opskit_"):
        assert name in operator_variables()
        assert question["type"] == "text"
        return
    described = options().get(name, [])
    assert described, f"no role has {name}"
    for option in described:
        assert question["type"] in TYPES.get(option["type"], set())
        if question["type"] == "multiplechoice":
            assert question["choices"] == (["true", "false"] if option["type"] == "bool" else option["choices"])
            assert question["default"] == str(option["default"]).lower()
        else:
            assert "choices" not in option
        if "default" in question and question["type"] == "text":
            assert question["default"] == option["default"]
        if question["type"] == "integer":
            assert question["min"] <= option["default"] <= question["max"]
            assert re.search(rf"(?i)default {option['default']}\b", question["question_description"])


def test_execution_environment(tmp_path: Path) -> None:
    """ansible-builder takes the file; the image itself is not built here."""
    shutil.copytree(AWX, tmp_path / "awx")
    # Told, because it names the file after the program that it finds.
    argv = ["ansible-builder", "create", "-f", "execution-environment.yml", "-c", "context", "--output-filename", "Containerfile"]
    done = subprocess.run(argv, cwd=tmp_path / "awx", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    containerfile = (tmp_path / "awx/context/Containerfile").read_text()
    requirements = (tmp_path / "awx/context/_build/requirements.yml").read_text()
    assert "ansible-core==2.19" in containerfile
    assert "opskit.runbooks" in requirements
