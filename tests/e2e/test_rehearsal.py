# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rehearsals: what --check predicts is what the run then does, also before there is a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Run, World

CONFIRM = ("-e", "opskit_confirm=one")
DEFAULT_STORE = Path("/var/backups/opskit/gateway")


@pytest.fixture(scope="module")
def world(make_world: Make) -> World:
    return make_world("one")


def steps(run: Run, task: str) -> list[tuple[str, str, str]]:
    return [(step["step"], step["target"], step["reason"]) for step in run.one(task)["plan"]]


def result(run: Run, runbook: str) -> dict[str, object]:
    return dict(run.stats[f"opskit_{runbook}"]["one"])


@pytest.mark.parametrize("runbook", ["backup_verify", "backup_info", "backup_diff", "backup_prune", "restore"])
def test_without_a_store_there_is_nothing_to_work_on(world: World, runbook: str) -> None:
    # An empty answer means the default place.
    run = world.play(runbook, "--check", "-e", "backup_store=", "-e", "restore_set=", fails=True)
    assert f"{DEFAULT_STORE}: there is no backup store here" in run.said()
    assert run.changed() == []
    assert world.application.ready()
    assert not DEFAULT_STORE.exists()
    assert not world.application.state.exists()


def test_backup(world: World) -> None:
    application, task = world.application, "Set | Make a set"
    rehearsal = world.play("backup", "--check", "--diff")
    assert not application.store.exists()
    assert not application.state.exists()
    real = world.play("backup")
    assert steps(rehearsal, task) == steps(real, task) != []
    assert rehearsal.changed() == real.changed() == ["backup : Set | Make a set"]
    assert (result(rehearsal, "backup")["check_mode"], result(real, "backup")["check_mode"]) == (True, False)

    objects = application.objects()
    again, nothing = world.play("backup", "--check", "--diff"), world.play("backup")
    assert again.changed() == nothing.changed() == []
    assert steps(again, task) == steps(nothing, task) == []
    assert (len(application.sets()), application.objects()) == (1, objects)


def test_verify(world: World) -> None:
    rehearsal, real = world.play("backup_verify", "--check"), world.play("backup_verify")
    assert rehearsal.changed() == real.changed() == []
    assert result(real, "backup_verify")["sets"] == world.application.sets()


def test_restore(world: World) -> None:
    application = world.application
    application.destroy()
    rehearsal = world.play("restore", "--check", "--diff")
    assert not (application.root / "config").exists()
    assert not (application.root / ".opskit-restore").exists()
    assert application.running
    real = world.play("restore", *CONFIRM)
    both = steps(rehearsal, "Module | Reach staged"), steps(rehearsal, "Module | Reach restored")
    assert both[0] == steps(real, "Module | Reach staged") != []
    # What is staged by the task before is, in a rehearsal, not there yet.
    assert [step for step in both[1] if step[0] != "stage"] == steps(real, "Module | Reach restored")
    predicted = [task for task in rehearsal.changed() if "Module |" in task]
    assert predicted == [task for task in real.changed() if "Module |" in task] != []
    assert application.ready()

    application.stop()
    world.module("backup_restore", "one", state="restored", state_dir=str(application.state))
    assert world.play("restore", "--check", "--diff").changed() == []
    application.start()


def test_rollback(world: World) -> None:
    rehearsal, real = world.play("restore_rollback", "--check"), world.play("restore_rollback", *CONFIRM)
    assert steps(rehearsal, "Module | Reach rolled_back") == steps(real, "Module | Reach rolled_back") != []
    assert world.application.ready()


def test_prune(world: World) -> None:
    application, task = world.application, "Retention | Apply the policy"
    application.write_uploads(1, 100_000, seed=1)
    world.play("backup")
    old, new = application.sets()
    rehearsal = world.play("backup_prune", "--check", "--diff")
    assert application.sets() == [old, new]
    real = world.play("backup_prune")
    assert steps(rehearsal, task) == steps(real, task) != []
    assert application.sets() == [new]
    assert [entry["id"] for entry in real.one(task)["deleted"]] == [old]
    assert [(entry["id"], bool(entry["reasons"])) for entry in real.one(task)["kept"]] == [(new, True)]
    assert world.play("backup_prune", "--check").changed() == []
    application.assert_store_whole()
