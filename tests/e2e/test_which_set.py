# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three in the morning: a file of a project has gone bad, nobody knows when. Which set still has the good one?"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Application, Run, World


@dataclass
class Case:
    """The world, the file, and the sets: two with the good one, one with the bad one. By now it is gone."""

    world: World
    path: Path
    good: list[str]
    bad: str
    between: str
    """A moment after the good ones and before the bad one."""

    @property
    def application(self) -> Application:
        return self.world.application

    def play(self, runbook: str, *words: str, fails: bool = False, **variables: str) -> Run:
        return self.world.play(runbook, *words, "-e", json.dumps(variables), fails=fails)


@pytest.fixture(scope="module")
def case(make_world: Make) -> Case:
    world = make_world("one", rows=60, projects=2, uploads=2)
    path = world.application.root / "projects/at $(x)\nlas/plan.txt"
    path.parent.mkdir()

    def back_up(number: int) -> str:
        (world.application.root / "config/note").write_text(f"{number}\n")
        return str(world.module("backup_set", "one")["set"]["id"])

    path.write_text("good\n")
    good = [back_up(0), back_up(1)]
    time.sleep(1)  # a set's time is in whole seconds
    between = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    path.write_text("bad\n")
    bad = back_up(2)
    path.unlink()
    return Case(world, path, good, bad, between)


def test_the_sets_and_what_one_holds(case: Case) -> None:
    before = case.application.now(), sorted(case.application.store.rglob("*"))
    run = case.play("backup_info")
    lines = run.one("Print what is there")["msg"]
    assert lines[0].startswith(f"gateway in {case.application.store}: 3 set(s), ")
    assert [line.split()[0] for line in lines[1:]] == [case.bad, *reversed(case.good)]
    assert all(line.endswith("verified: content") for line in lines[1:])
    assert run.stats["opskit_backup_info"]["one"]["newest_verified"] == case.bad
    lines = case.play("backup_info", backup_info_set="latest").one("Print what is there")["msg"]
    assert "project at $(x)?las: 1 files, 4 B" in lines
    assert "table gateway.users: 3 rows" in lines
    assert run.changed() == []
    assert (case.application.now(), sorted(case.application.store.rglob("*"))) == before


def test_which_set_has_the_good_file(case: Case) -> None:
    run = case.play("backup_info", backup_info_path=str(case.path))
    lines = run.one("Print what is there")["msg"]
    assert len(lines) == 4, lines
    assert "/projects/at $(x)?las/plan.txt, the newest first:" in lines[1]
    assert "(1 set(s)): file, 4 B, modified " in lines[2]
    assert lines[2].endswith(f"restore_set={case.bad}")
    assert "(2 set(s)): file, 5 B, modified " in lines[3]
    assert lines[3].endswith(f"restore_set={case.good[1]}")
    assert case.application.journal()[-1]["runbook"] == "backup_info"


def test_the_command_that_is_printed_means_the_same(case: Case) -> None:
    """The path has a space, a quote and a line break in it."""
    path = f"{case.application.base}/it's\nelsewhere"
    refused = case.play("backup_info", backup_info_path=path, fails=True)
    assert "this path lies outside of what is saved" in refused.said()
    words = shlex.split(refused.command("Once the cause is mended"))
    assert json.loads(words[-2]) == {"backup_info_path": path}


def test_how_it_differs_from_what_is_live(case: Case) -> None:
    before = case.application.now(), sorted(case.application.store.rglob("*"))
    run = case.play("backup_diff", "--diff")
    entry = run.stats["opskit_backup_diff"]["one"]
    assert (entry["set"], entry["is_equal"]) == (case.bad, False)
    assert entry["counts"] == {"added": 0, "removed": 1, "changed": 0, "same": entry["counts"]["same"]}
    lines = run.one("Print what differs")["msg"]
    assert lines[0].endswith(f" and what is live: 0 added, 1 removed, 0 changed, {entry['counts']['same']} the same")
    assert lines[1] == f"only in set {case.bad}: {case.path!s}".replace("\n", "?")
    assert lines[2] == "database gateway: the same"

    run = case.play(
        "backup_diff", backup_diff_set=f"before {case.between}", backup_diff_other=case.bad, backup_diff_path=str(case.path.parent)
    )
    lines = run.one("Print what differs")["msg"]
    assert lines[0].startswith(f"set {case.good[1]} of ")
    assert lines[1:] == [f"differs: {case.path!s} (size, mtime, content)".replace("\n", "?")]
    assert run.changed() == []
    assert (case.application.now(), sorted(case.application.store.rglob("*"))) == before


def test_a_restore_takes_the_set_before_a_time(case: Case) -> None:
    run = case.play("restore", "--tags", "plan", opskit_confirm="one", restore_set=f"before {case.between}")
    assert f"put gateway back to set {case.good[1]}, stop it for the exchange" in run.said()
