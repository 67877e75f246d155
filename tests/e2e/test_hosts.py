# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two applications on one machine under two names: neither sees the other's, and how they fail together."""

from __future__ import annotations

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import Application, State, World


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
