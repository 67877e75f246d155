# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two applications on one machine under two names: neither sees the other's, and how they fail together.

A third host, where there is one, is not reached: nobody listens at its port.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Application, State, World, free_port


@pytest.fixture(scope="module")
def world(make_world: Make) -> World:
    return make_world("one", "two")


@pytest.fixture(scope="module")
def saved(world: World) -> dict[str, State]:
    """Both are backed up in one run; returns what was saved."""
    for number, application in enumerate(world.applications.values()):
        application.write_uploads(2, 10_000, seed=number)
    found = {host: application.files() for host, application in world.applications.items()}
    run = world.play("backup", "-e", "opskit_serial=1")
    assert {host: entry["ok"] for host, entry in run.stats["opskit_backup"].items()} == {"one": True, "two": True}
    return found


def damage(application: Application) -> tuple[str, bytes]:
    """Flip a bit of the largest object; returns what to write where to mend it."""
    biggest = max(application.objects(), key=lambda path: path.stat().st_size)
    content = biggest.read_bytes()
    biggest.chmod(0o600)
    biggest.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    return str(biggest), content


def mend(found: tuple[str, bytes]) -> None:
    with open(found[0], "wb") as stream:
        stream.write(found[1])


def test_each_has_its_own_store_state_and_journal(world: World, saved: dict[str, State]) -> None:
    one, two = world.applications.values()
    assert [len(one.sets()), len(two.sets())] == [1, 1]
    assert one.sets() != two.sets()
    for host, application in world.applications.items():
        assert [(entry["host"], entry["runbook"]) for entry in application.journal()] == [(host, "backup")]
        other = two if application is one else one
        for path in [*application.store.rglob("*.json"), application.state / "journal.jsonl"]:
            assert str(other.base) not in path.read_text()
        files, _rows = application.by_hand(application.sets()[0])
        assert files == saved[host]


@pytest.mark.usefixtures("saved")
def test_a_backup_that_fails_on_one_is_made_on_the_other(world: World) -> None:
    one, two = world.applications.values()
    database = one.root / "data/gateway.db"
    one.stop()
    database.rename(one.base / "away.db")
    two.write_uploads(1, 10_000, seed=7)
    run = world.play("backup", fails=True)
    published = run.stats["opskit_backup"]
    assert (published["one"]["ok"], published["two"]["ok"]) == (False, True)
    assert str(database) in published["one"]["message"]
    assert not database.exists()
    assert [len(one.sets()), len(two.sets())] == [1, 2]
    assert [application.journal()[-1]["outcome"] for application in (one, two)] == ["failed", "ok"]
    (one.base / "away.db").rename(database)
    one.start()


@pytest.mark.parametrize(
    ("failing", "serial", "restored"),
    # In this order: a host that was staged once needs its objects no more.
    [("one", "1", []), ("two", "100%", []), ("two", "1", ["one"])],
    ids=["first of two batches", "one batch", "second of two batches"],
)
def test_a_restore_that_fails_on_one_spares_what_is_not_done(
    world: World, saved: dict[str, State], failing: str, serial: str, restored: list[str]
) -> None:
    for host, application in world.applications.items():
        application.write_uploads(1, 10_000, seed=100 + len(host) + len(restored))
    before = {host: (application.files(), application.journal()) for host, application in world.applications.items()}
    pids = {host: (application.base / "service.pid").read_bytes() for host, application in world.applications.items()}
    damaged = damage(world.applications[failing])
    run = world.play("restore", "-e", "opskit_confirm=two,one", "-e", f"opskit_serial={serial}", fails=True)
    mend(damaged)
    for host, application in world.applications.items():
        assert application.ready()
        entry = application.journal()[-1]
        assert (entry["runbook"], entry["outcome"]) == ("restore", "ok" if host in restored else "failed")
        assert len(application.journal()) == len(before[host][1]) + 1
        assert run.stats["opskit_restore"][host]["ok"] is (host in restored)
        if host in restored:
            assert application.files() == saved[host]
        else:
            assert application.files() == before[host][0]
            assert (application.base / "service.pid").read_bytes() == pids[host]


def not_reached() -> dict[str, Any]:
    return {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()}


def everything(world: World) -> list[object]:
    """What a run that touches nothing leaves alone."""
    return [
        (application.files(), application.sets(), application.phase(), (application.base / "service.pid").read_bytes())
        for application in world.applications.values()
    ]


@pytest.mark.usefixtures("saved")
def test_a_host_that_is_not_reached_is_recorded_on_the_controller(world: World) -> None:
    before = len(world.controller_journal())
    for application in world.applications.values():
        application.write_uploads(1, 10_000, seed=21)
    sets = {host: len(application.sets()) for host, application in world.applications.items()}
    with world.inventory_with(gone={**world.description(world.applications["one"]), **not_reached()}):
        run = world.play("backup", "-e", "opskit_serial=1", "-e", "opskit_operator=anna", fails=True)
        alone = world.play("backup", "--limit", "gone", fails=True)
    assert (run.status, alone.status) == (2, 2)
    published = run.stats["opskit_backup"]
    assert {host: entry["ok"] for host, entry in published.items()} == {"one": True, "two": True, "gone": False}
    assert "Connection refused" in published["gone"]["message"]
    assert alone.stats["opskit_backup"]["gone"]["ok"] is False
    for host, application in world.applications.items():
        assert len(application.sets()) == sets[host] + 1
        assert (application.journal()[-1]["host"], application.journal()[-1]["outcome"]) == (host, "ok")
        assert not application.lease.exists()
    entries = world.controller_journal()[before:]
    assert [(entry["runbook"], entry["host"], entry["outcome"]) for entry in entries] == [("backup", "gone", "failed")] * 2
    assert entries[0]["operator"] == "anna"
    assert "Connection refused" in entries[0]["error"]
    assert " --limit gone " in run.command("Once the cause is mended", "gone")
    assert run.command("Once the cause is mended", "gone").endswith(" opskit.runbooks.backup")


@pytest.mark.parametrize("reason", ["not reached", "wrong description"])
def test_a_restore_that_fails_preflight_on_one_touches_nothing_anywhere(world: World, saved: dict[str, State], reason: str) -> None:
    for application in world.applications.values():
        application.write_uploads(1, 10_000, seed=31)
    before = everything(world)
    journals = {host: len(application.journal()) for host, application in world.applications.items()}
    wrong = not_reached() if reason == "not reached" else {"application_owner": "no-such-user-here"}
    with world.inventory_with(two=wrong):
        run = world.play("restore", "-e", "opskit_confirm=one,two", fails=True)
    assert run.status == 2
    assert everything(world) == before
    assert world.applications["one"].files() != saved["one"]
    assert run.of("Reach staged") == run.of("Have the lease taken") == []
    published = run.stats["opskit_restore"]
    assert [published[host]["ok"] for host in ("one", "two")] == [False, False]
    assert "failed on another host" in published["one"]["message"]
    assert ("Connection refused" if reason == "not reached" else "no-such-user-here") in published["two"]["message"]
    assert world.applications["one"].journal()[-1]["outcome"] == "failed"
    if reason == "not reached":
        assert (world.controller_journal()[-1]["runbook"], world.controller_journal()[-1]["host"]) == ("restore", "two")
    assert len(world.applications["two"].journal()) == journals["two"] + (reason != "not reached")
    for host in world.applications:
        command = run.command("Once the cause is mended", host)
        assert f" --limit {host} " in command
        assert f" -e opskit_confirm={host} " in command
        assert command.endswith(" opskit.runbooks.restore")


@pytest.mark.usefixtures("saved")
def test_a_host_that_is_lost_on_the_way_is_recorded_by_the_others(world: World) -> None:
    """It is there until it has taken the lease, which stays there and is taken over by the next run."""
    one, two = world.applications.values()
    one.write_uploads(1, 10_000, seed=41)
    two.write_uploads(1, 10_000, seed=42)
    sets, lines = len(one.sets()), len(two.journal())
    away = {**not_reached(), "ansible_connection": "{{ 'ssh' if __lease_taken is defined else 'local' }}"}
    with world.inventory_with(two=away):
        run = world.play("backup", fails=True)
    assert run.status == 4  # Ansible's own, for hosts that are unreachable at the end
    published = run.stats["opskit_backup"]
    assert {host: entry["ok"] for host, entry in published.items()} == {"one": True, "two": False}
    assert len(one.sets()) == sets + 1
    assert len(two.journal()) == lines
    assert (world.controller_journal()[-1]["host"], world.controller_journal()[-1]["outcome"]) == ("two", "failed")
    (said,) = run.of("Lost | Say what comes next for two")
    assert " --limit two " in said.value["msg"][-1]
    assert (one.lease.exists(), two.lease.exists()) == (False, True)
    again = world.paste(said.value["msg"][-1].strip() + " -v")
    assert "The lease was taken over from backup " in again.said()
    assert not two.lease.exists()


def leave_lease(application: Application, minutes: int) -> None:
    """As a restore leaves it that was killed: its time limit is over in so many minutes."""
    now = datetime.now(UTC)
    times = {"since": now, "expires": now + timedelta(minutes=minutes)}
    written = {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in times.items()}
    lease = {"runbook": "restore", "operator": "ben", "run": "another", "seconds": 3600, "controller": "admin1", **written}
    application.lease.write_text(json.dumps(lease))


@pytest.mark.usefixtures("saved")
def test_another_runbook_is_kept_away_from_one_and_not_from_the_other(world: World) -> None:
    one, two = world.applications.values()
    for application in world.applications.values():
        application.write_uploads(1, 10_000, seed=51)
    sets = len(one.sets()), len(two.sets())
    leave_lease(one, 50)
    content = one.lease.read_bytes()
    run = world.play("backup", fails=True)
    assert run.status == 2
    published = run.stats["opskit_backup"]
    assert (published["one"]["ok"], published["two"]["ok"]) == (False, True)
    for part in ("another runbook is at work: restore by ben on admin1, since 20", "-e opskit_lease_steal=true"):
        assert part in published["one"]["message"]
    assert (len(one.sets()), len(two.sets())) == (sets[0], sets[1] + 1)
    assert one.lease.read_bytes() == content
    assert not two.lease.exists()

    stolen = world.play("backup", "--limit", "one", "-e", "opskit_lease_steal=true")
    assert "The lease was taken over from restore by ben on admin1" in stolen.said()
    assert "stolen, as was asked for" in stolen.said()
    assert len(one.sets()) == sets[0] + 1
    assert not one.lease.exists()
