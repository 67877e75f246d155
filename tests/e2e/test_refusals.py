# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused before anything is touched, and the inputs as AWX gives them."""

from __future__ import annotations

import json

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Application, Run, World

RUNBOOKS = ("backup", "backup_verify", "backup_info", "backup_diff", "backup_prune", "restore", "restore_rollback")


@pytest.fixture(scope="module")
def world(make_world: Make) -> World:
    made = make_world("one")
    made.play("backup")
    return made


def process_id(application: Application) -> bytes:
    return (application.base / "service.pid").read_bytes()


def refuse(world: World, *words: str) -> Run:
    """Restore, which has to fail with the application running on, in the same process and with the same files."""
    application = world.application
    before = process_id(application), application.files(), application.rows()
    run = world.play("restore", *words, fails=True)
    assert application.ready()
    assert (process_id(application), application.files(), application.rows()) == before
    assert application.phase() in ("", "staging")
    assert list((application.root / ".opskit-restore").glob("*/*")) == []
    entry = application.journal()[-1]
    assert (entry["runbook"], entry["outcome"]) == ("restore", "failed")
    assert run.stats["opskit_restore"]["one"]["ok"] is False
    return run


@pytest.mark.parametrize(("words", "says"), [((), "not confirmed"), (("-e", "opskit_confirm=two"), "confirmed for two instead")])
def test_restore_without_the_right_confirmation(world: World, words: tuple[str, ...], says: str) -> None:
    run = refuse(world, *words)
    assert says in run.said()
    assert "-e opskit_confirm=one" in run.said()
    assert run.of("Reach staged") == []


def test_unknown_set(world: World) -> None:
    run = refuse(world, "-e", "opskit_confirm=one", "-e", "restore_set=20200101T000000Z-0000")
    assert "20200101T000000Z-0000" in run.said()


def test_a_set_that_fails_its_hashes(make_world: Make) -> None:
    world = make_world("one")
    world.play("backup")
    application = world.application
    biggest = max(application.objects(), key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 1
    biggest.chmod(0o600)
    biggest.write_bytes(content)
    (only,) = application.sets()
    run = refuse(world, "-e", "opskit_confirm=one", "-e", f"restore_set={only}")
    assert biggest.name in run.said()
    # Found and written down, it is no longer the latest.
    found = world.play("backup_verify", fails=True)
    assert biggest.name in found.said()
    assert "no verified set" in refuse(world, "-e", "opskit_confirm=one").said()
    # The next backup heals the store.
    world.play("backup")
    application.assert_newest_whole()
    world.play("backup_verify")


@pytest.mark.parametrize("runbook", RUNBOOKS)
def test_parts_that_guard_each_other_cannot_be_left_out(world: World, runbook: str) -> None:
    application = world.application
    before = application.sets(), application.journal(), process_id(application)
    words = ("--skip-tags", "preflight") if runbook == "restore" else ("--tags", "act")
    run = world.play(runbook, *words, "-e", "opskit_confirm=one", fails=True)
    assert "only --tags preflight or --tags plan may be selected" in run.said()
    assert (application.sets(), application.journal(), process_id(application)) == before


@pytest.mark.parametrize(
    ("runbook", "tag", "last", "says"),
    # An empty answer means the default place.
    [
        ("backup", "plan", "Plan | Print it", "into /var/backups/opskit/gateway"),
        ("restore", "preflight", "Look for the set", "newest_verified"),
    ],
)
def test_preflight_and_plan_work_alone(world: World, runbook: str, tag: str, last: str, says: str) -> None:
    application = world.application
    before = application.sets(), application.journal(), process_id(application)
    store = ["-e", "backup_store="] if runbook == "backup" else []
    run = world.play(runbook, "--tags", tag, *store, "-e", "opskit_confirm=one")
    assert says in str(run.one(last))
    assert run.of("Make a set") == run.of("Reach staged") == run.changed() == []
    assert (application.sets(), application.journal(), process_id(application)) == before


def survey(**answers: str) -> tuple[str, str]:
    common = {"opskit_become": "false", "opskit_hosts": "", "opskit_serial": "", "opskit_operator": "", "opskit_reason": ""}
    return "-e", json.dumps({**common, **answers})


def test_backup_with_the_answers_of_a_survey(world: World) -> None:
    """Every answer is a string, and an optional one that was left out is empty."""
    application = world.application
    before = application.sets()
    numbers = {"backup_lock_timeout": "0", "backup_shrink_limit": "0", "backup_compression_level": "1", "backup_database_timeout": "5"}
    world.play("backup", *survey(backup_unchanged_interval="72000", **numbers))
    assert application.sets() == before
    (application.root / "data/uploads").rename(application.base / "uploads")
    refused = world.play("backup", *survey(backup_unchanged_interval="0", **{**numbers, "backup_shrink_limit": "10"}), fails=True)
    assert "data has" in refused.said()
    (application.base / "uploads").rename(application.root / "data/uploads")
    world.play("backup", *survey(backup_unchanged_interval="0", opskit_reason="because", opskit_operator="anna", **numbers))
    assert len(application.sets()) == len(before) + 1
    entry = application.journal()[-1]
    assert (entry["operator"], entry["reason"]) == ("anna", "because")


def test_the_rest_with_the_answers_of_a_survey(world: World) -> None:
    application = world.application
    world.play("backup_verify", *survey(backup_verify_set="", backup_verify_level="stored"))
    assert application.journal()[-1]["details"]["level"] == "stored"
    world.play("backup_prune", *survey(backup_daily="7", backup_weekly="4", backup_monthly="3", backup_delete_more_than_half="false"))
    restored = world.play("restore", *survey(opskit_confirm="one", restore_set="", restore_state="restored", restore_lock_timeout="0"))
    assert restored.stats["opskit_restore"]["one"]["ok"] is True
    assert application.ready()
