# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""examples/awx as AWX runs it: the project under ansible-runner, with the answers of the surveys, on a real application."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import (
    COLLECTION,
    EXPECTED_WARNING,
    PLAYBOOK_SECONDS,
    Application,
    State,
    World,
    free_port,
)

AWX = COLLECTION / "examples/awx"
# As plain values; types for PyYAML are not among what these tests install.
DATA = json.loads(json.dumps(DataLoader().load_from_file(str(AWX / "job_templates.yml"))))
TEMPLATES: dict[str, dict[str, Any]] = {Path(template["playbook"]).stem: template for template in DATA["job_templates"]}


def questions(runbook: str) -> dict[str, dict[str, Any]]:
    return {question["variable"]: question for question in TEMPLATES[runbook].get("survey_spec", {}).get("spec", [])}


def accepts(question: dict[str, Any], answer: object) -> bool:
    """Whether AWX takes an answer (awx/main/models/mixins.py, SurveyJobTemplateMixin)."""
    if question["type"] == "multiplechoice":
        return answer in question["choices"]
    if question["type"] == "integer":
        return isinstance(answer, int) and not isinstance(answer, bool) and question["min"] <= answer <= question["max"]
    return isinstance(answer, str) and question["min"] <= len(answer) <= question["max"]


def numbers(runbook: str, limit: str) -> dict[str, int]:
    """Every integer question answered with its lowest ("min") or highest ("max") value."""
    return {name: question[limit] for name, question in questions(runbook).items() if question["type"] == "integer"}


def empty(runbook: str) -> dict[str, str]:
    """Every optional text left empty, as the web page sends it; the API may leave it out."""
    return {name: "" for name, question in questions(runbook).items() if question["type"] == "text" and not question["required"]}


@dataclass
class Job:
    """What AWX sees of a job: its events."""

    status: str
    output: str
    events: list[dict[str, Any]]

    @property
    def artifacts(self) -> dict[str, Any]:
        (stats,) = (event for event in self.events if event["event"] == "playbook_on_stats")
        return dict(stats["event_data"].get("artifact_data", {}))

    def arguments(self, module: str) -> dict[str, Any]:
        """Return what the module was given the last time."""
        action = f"opskit.runbooks.{module}"
        # Lines that Ansible prints between tasks are events without data.
        told = [event["event_data"] for event in self.events if "event_data" in event]
        done = [data["res"] for data in told if data.get("task_action") == action and "res" in data]
        return dict(done[-1]["invocation"]["module_args"])

    def messages(self, task: str) -> dict[str, Any]:
        """Return what a task printed, by host."""
        found = [event["event_data"] for event in self.events if event["event"] == "runner_on_ok"]
        return {event["host"]: event["res"]["msg"] for event in found if event["task"] == task}


class Awx:
    """The folders that AWX prepares for a job: the project, its collections installed beside it, the inventory, extra variables as JSON."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folder = world.folder / "awx"
        shutil.copytree(AWX, self.folder / "project")
        (self.folder / "inventory").mkdir()
        shutil.copy(world.inventory, self.folder / "inventory")
        installed = self.folder / "requirements_collections"
        self.env = {**world.env, "ANSIBLE_COLLECTIONS_PATH": str(installed), "ANSIBLE_PIPELINING": "true"}
        # The collection as its users get it: from the artifact.
        self.command("ansible-galaxy", "collection", "build", "--output-path", str(self.folder), str(COLLECTION))
        (artifact,) = self.folder.glob("opskit-runbooks-*.tar.gz")
        self.command("ansible-galaxy", "collection", "install", str(artifact), "--collections-path", str(installed), "--offline")
        self.count = 0

    def command(self, *argv: str) -> None:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=PLAYBOOK_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def launch(
        self,
        runbook: str,
        given: Mapping[str, object] | None = None,
        *,
        limit: str = "one",
        job_type: str = "run",
        user: str = "anna",
        fails: bool = False,
    ) -> Job:
        """Launch a job template with answers to its survey; a question without one gets its default, if it has any."""
        template, survey = TEMPLATES[runbook], questions(runbook)
        assert [name for name, answer in (given or {}).items() if not accepts(survey[name], answer)] == []
        assert job_type == template["job_type"] or template["ask_job_type_on_launch"]
        assert template["ask_limit_on_launch"]
        answers = {name: question["default"] for name, question in survey.items() if "default" in question}
        answers.update(given or {})
        assert [name for name, question in survey.items() if question["required"] and name not in answers] == []
        shutil.rmtree(self.folder / "env", ignore_errors=True)  # ansible-runner keeps the options of the job before in it
        (self.folder / "env").mkdir()
        (self.folder / "env/extravars").write_text(json.dumps({**answers, "awx_user_name": user}))
        self.count += 1
        argv = ["ansible-runner", "run", str(self.folder), "--playbook", template["playbook"], "--ident", str(self.count)]
        argv += ["--limit", limit] if limit else []
        argv += ["--cmdline=--check --diff"] if job_type == "check" else []
        done = subprocess.run(
            argv, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PLAYBOOK_SECONDS, check=False
        )
        place = self.folder / "artifacts" / str(self.count)
        assert place.exists(), done.stdout + done.stderr
        output = (place / "stdout").read_text()
        files = sorted((place / "job_events").glob("*.json"), key=lambda path: int(path.name.partition("-")[0]))
        job = Job((place / "status").read_text(), output, [json.loads(path.read_text()) for path in files])
        assert job.status == ("failed" if fails else "successful"), output
        assert [line for line in output.splitlines() if "WARNING]" in line and EXPECTED_WARNING not in line] == [], output
        assert "Traceback (most recent call last)" not in output
        return job


@dataclass
class Site:
    """AWX and its applications, of which "one" is backed up once, with every question as it stands."""

    awx: Awx
    rehearsal: Job
    backup: Job

    @property
    def one(self) -> Application:
        return self.awx.world.applications["one"]

    def state(self) -> tuple[State, State, bytes, list[str]]:
        return (*self.one.now(), (self.one.base / "service.pid").read_bytes(), self.one.sets())


@pytest.fixture(scope="module")
def site(make_world: Make) -> Iterator[Site]:
    awx = Awx(make_world("one", "two", rows=60, projects=2, uploads=2))
    rehearsal = awx.launch("backup", empty("backup"), limit="", job_type="check")
    assert [application.store.exists() for application in awx.world.applications.values()] == [False, False]
    yield Site(awx, rehearsal, awx.launch("backup"))
    two = awx.world.applications["two"]
    assert (two.store.exists(), two.journal()) == (False, [])  # no job was for it


def test_backup(site: Site) -> None:
    """The rehearsal had every text empty, the first backup nothing but the defaults."""
    one = site.one
    rehearsed = site.rehearsal.artifacts["opskit_backup"]
    assert {host: (entry["ok"], entry["check_mode"]) for host, entry in rehearsed.items()} == {"one": (True, True), "two": (True, True)}
    published = site.backup.artifacts["opskit_backup"]
    assert [published["one"]["set"]["id"]] == one.sets()
    assert list(published) == ["one"]
    entry = published["one"]
    assert (entry["ok"], entry["check_mode"], entry["changed"], entry["operator"], entry["reason"]) == (True, False, True, "anna", "")
    unanswered = site.backup.arguments("backup_set")
    assert (unanswered["compression_level"], unanswered["unchanged_interval"], unanswered["store"]) == (3, 72000, str(one.store))

    lowest = numbers("backup", "min")
    job = site.awx.launch("backup", {**empty("backup"), **lowest})
    assert {name: job.arguments("backup_set")[name.removeprefix("backup_")] for name in lowest} == lowest
    assert len(one.sets()) == 2  # 0 seconds after the first, with nothing changed

    highest = numbers("backup", "max")
    job = site.awx.launch("backup", {"opskit_serial": "100%", "opskit_reason": "before the upgrade", **highest}, user="ben")
    assert {name: job.arguments("backup_set")[name.removeprefix("backup_")] for name in highest} == highest
    assert job.artifacts["opskit_backup"]["one"]["changed"] is False
    assert len(one.sets()) == 2
    assert (one.journal()[-1]["operator"], one.journal()[-1]["reason"]) == ("ben", "before the upgrade")


def test_backup_verify(site: Site) -> None:
    job = site.awx.launch("backup_verify", {**empty("backup_verify"), **numbers("backup_verify", "min")}, job_type="check")
    newest = site.one.sets()[-1]
    assert job.artifacts["opskit_backup_verify"]["one"]["sets"] == [newest]
    assert job.artifacts["opskit_backup_verify"]["one"]["level"] == "content"
    job = site.awx.launch(
        "backup_verify",
        {"opskit_serial": "1", "backup_verify_set": "all", "backup_verify_level": "stored", **numbers("backup_verify", "max")},
    )
    assert job.artifacts["opskit_backup_verify"]["one"]["sets"] == site.one.sets()
    assert job.artifacts["opskit_backup_verify"]["one"]["level"] == "stored"


def test_backup_info_and_backup_diff(site: Site) -> None:
    job = site.awx.launch("backup_info", {**empty("backup_info"), **numbers("backup_info", "min")})
    assert job.artifacts["opskit_backup_info"]["one"]["sets"] == site.one.sets()[::-1]
    job = site.awx.launch("backup_diff", {**empty("backup_diff"), "backup_diff_content": "true", **numbers("backup_diff", "max")})
    assert job.arguments("backup_diff")["content"] is True
    assert job.artifacts["opskit_backup_diff"]["one"]["set"] == site.one.sets()[-1]


def test_restore_without_the_right_confirmation(site: Site) -> None:
    before = site.state()
    job = site.awx.launch("restore", {"opskit_confirm": "two"}, user="ben", fails=True)
    assert site.state() == before
    published = job.artifacts["opskit_restore"]["one"]
    assert published["ok"] is False
    assert "confirmed for two instead" in published["message"]
    assert site.one.phase() == ""
    job = site.awx.launch("restore_rollback", {**empty("restore_rollback"), **numbers("restore_rollback", "min")}, fails=True)
    assert "not confirmed" in job.artifacts["opskit_restore_rollback"]["one"]["message"]
    assert site.state() == before


def test_restore_and_the_ways_back(site: Site) -> None:
    """What is compared are the files and rows."""
    one, launch = site.one, site.awx.launch
    saved = one.now()
    one.set_environment(LOG_LEVEL="DEBUG")
    (one.root / "projects/later").write_text("not in the set\n")
    one.cli("traffic", "--ledger", str(one.base / "ledger"), "--seconds", "1", "--rate", "10")
    later = one.now()
    assert later != saved

    before = site.state()
    job = launch("restore", {**empty("restore"), **numbers("restore", "min")}, job_type="check")
    rehearsed = job.artifacts["opskit_restore"]["one"]
    assert (rehearsed["check_mode"], rehearsed["changed"], rehearsed["set"]) == (True, True, one.sets()[-1])
    assert job.arguments("backup_restore")["owner"] == "name"
    assert site.state() == before
    job = launch(
        "restore",
        {"opskit_confirm": "one", "restore_owner": "id", "restore_set": one.sets()[0], "opskit_serial": "1", "opskit_reason": "lost"},
    )
    assert job.artifacts["opskit_restore"]["one"]["set"] == one.sets()[0]
    assert job.arguments("backup_restore")["owner"] == "id"
    assert same(one, saved)

    before = site.state()
    job = launch("restore", {**empty("restore"), "restore_state": "rolled_back", **numbers("restore", "max")}, job_type="check")
    assert job.artifacts["opskit_restore_rollback"]["one"]["changed"] is True
    assert site.state() == before
    job = launch("restore_rollback", {**empty("restore_rollback"), "opskit_confirm": "one", **numbers("restore_rollback", "max")})
    assert job.artifacts["opskit_restore_rollback"]["one"]["state"] == "rolled_back"
    assert same(one, later)

    kept = job.artifacts["opskit_restore_rollback"]["one"]["aside"]
    assert kept
    assert all(os.path.lexists(path) for path in kept)
    launch("restore", {**empty("restore"), "restore_state": "purged", "opskit_confirm": "one"})
    assert not any(os.path.lexists(path) for path in kept)
    assert same(one, later)


def same(application: Application, state: tuple[State, State]) -> bool:
    """Whether files and rows are those, and the application is ready."""
    return application.ready() and application.now() == state


def test_backup_prune(site: Site) -> None:
    one = site.one
    sets = one.sets()
    job = site.awx.launch("backup_prune", {**empty("backup_prune"), **numbers("backup_prune", "min")}, job_type="check")
    assert job.artifacts["opskit_backup_prune"]["one"]["deleted"] == sets[:-1]  # they are all of one day
    assert one.sets() == sets
    job = site.awx.launch("backup_prune", {"backup_delete_more_than_half": "true", **numbers("backup_prune", "max")})
    assert job.arguments("backup_prune")["delete_more_than_half"] is True
    job = site.awx.launch("backup_prune", empty("backup_prune"))
    unanswered = job.arguments("backup_prune")
    assert [unanswered[name] for name in ("daily", "weekly", "monthly", "delete_more_than_half")] == [7, 4, 3, False]
    assert one.sets() == sets[-1:]


def test_journal(site: Site) -> None:
    """Last, on what the jobs above have left, and on a line that is too old."""
    one = site.one
    entries = one.journal()
    assert {entry["outcome"] for entry in entries} == {"ok", "failed"}
    old = {
        "time": "2020-01-01T00:00:00Z",
        "runbook": "backup",
        "outcome": "failed",
        "host": "one",
        "application": "gateway",
        "error": "too old",
    }
    path = one.state / "journal.jsonl"
    path.write_text(json.dumps(old) + "\n" + path.read_text())
    job = site.awx.launch("journal", limit="")
    said = job.messages("Say what it tells")
    assert list(said) == ["one"]
    assert job.messages("Say that nothing is recorded") == {"two": "no runbook is recorded on this host"}
    last = [entry for entry in entries if (entry["runbook"], entry["outcome"]) == ("backup", "ok")][-1]
    failed = [f"  {entry['time']} {entry['runbook']}: {entry['error']}" for entry in entries if entry["outcome"] == "failed"]
    assert len(failed) == 2
    lines = iter(said["one"])
    assert next(lines) == f"last successful backup: {last['time']} {one.sets()[-1]}"
    since = next(lines)
    assert since.startswith(f"failures since {time.strftime('%Y-%m-', time.gmtime(time.time() - 30 * 86400))}")
    assert since.endswith(": 2")
    assert [next(lines), next(lines)] == failed
    runs = {name: [entry["runbook"] for entry in entries if entry["operator"] == name] for name in ("anna", "ben")}
    counted = [f"runs by {name}: {len(those)} ({', '.join(sorted(set(those)))})" for name, those in runs.items()]
    assert list(lines) == [*counted, "runs by unknown: 1 (backup)"]


@pytest.mark.parametrize("task", ["Load the project", "Load the job templates"])
def test_the_modules_take_what_configure_gives_them(site: Site, task: str) -> None:
    """Modules of awx.awx refuse a wrong argument before they look for AWX; here each gets as far as that nobody answers."""
    server = {"CONTROLLER_HOST": f"http://127.0.0.1:{free_port()}", "CONTROLLER_OAUTH_TOKEN": "none"}
    done = subprocess.run(
        ["ansible-playbook", "configure.yml", "-e", "awx_project_url=https://git.example.org/awx.git", "--start-at-task", task],
        cwd=site.awx.folder / "project",
        env={**site.awx.env, **server, "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false"},
        capture_output=True,
        text=True,
        timeout=PLAYBOOK_SECONDS,
        check=False,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith(("failed: ", "fatal: "))]
    assert [line for line in results if "trying to connect" not in line or "Connection refused" not in line] == []
    wanted = [f"(item={template['name']})" for template in TEMPLATES.values()] if task.endswith("templates") else ["fatal: [localhost]"]
    assert len(results) == len(wanted), done.stdout + done.stderr
    assert [name for name, line in zip(wanted, results, strict=True) if name not in line] == []
