# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL on hosts in the middle of a backup and of a restore; one more run of the same command makes everything good.

Killed is the module alone (the runbook goes on to its rescue), or the module and ansible-playbook with it (as a lost machine). A round
does the same on each host at once, with a point for each. What the databases are called is asked of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest

from ansible_collections.opskit.runbooks.tests.lab.world import SOAK, Application, Look, World, parallel

TRIES = 6  # a point that is a few milliseconds long can be missed


@dataclass(frozen=True)
class Point:
    name: str
    everything: bool
    """ansible-playbook as well."""
    seconds: float = 0

    def __str__(self) -> str:
        return f"{self.name}{f'-{self.seconds:g}-s' if self.seconds else ''}-{'all' if self.everything else 'module'}"


BACKUP = [(Point("pg_dump", True), Point("storing", False))]
RESTORE = [(Point("pg_restore", True), Point("exchanging", False)), (Point("exchanging", True), Point("committed", True))]
if SOAK:
    times = [Point("after", number % 2 == 0, 0.1 * number) for number in range(1, 31)]
    BACKUP += list(zip(times, reversed(times), strict=True))
    RESTORE += [*((second, first) for first, second in RESTORE), *zip(times, reversed(times), strict=True)]


@pytest.fixture(scope="module")
def saved(world: World) -> dict[str, Look]:
    """What each ledger is in its newest set."""
    world.play("backup", [one.inventory_name for one in world.ledgers()])
    return {one.inventory_name: one.look() for one in world.ledgers()}


def assert_one_of_two(before: Look, now: Look) -> None:
    """The names are as before the exchange or as after it, and never half."""
    (old,) = (oid for name, oid, _open in before["databases"] if name == "ledger")
    ((live, _is_open),) = ((oid, is_open) for name, oid, is_open in now["databases"] if name == "ledger")
    elsewhere = {oid: name for name, oid, _open in now["databases"] if name != "ledger"}
    if live == old:
        assert not any(name.startswith("ledger_b_") for oid, name in elsewhere.items() if oid not in numbers(before))
    else:
        assert elsewhere[old].startswith("ledger_b_")


def numbers(look: Look) -> set[str]:
    return {oid for _name, oid, _open in look["databases"]}


@pytest.mark.parametrize("points", BACKUP, ids=lambda points: "+".join(map(str, points)))
def test_backup(world: World, saved: dict[str, Look], points: tuple[Point, Point]) -> None:
    def kill_and_run_again(one: Application, point: Point) -> None:
        name = one.inventory_name
        for _try in range(TRIES):
            one.traffic(0.5)
            before = one.look()
            if world.strike(one, "backup_set", point.name, point.everything, world.argv("backup", [name], ()), point.seconds):
                break
        else:
            raise AssertionError(f"{point} was not met in {TRIES} runs")
        struck = one.look()
        assert struck["databases"] == before["databases"]
        assert set(before["sets"]) <= set(struck["sets"])
        world.play("backup", [name])
        now = one.look()
        assert len(now["sets"]) > len(before["sets"])
        assert now["half"] == []
        assert (now["files"], now["rows"]) == (before["files"], before["rows"])
        saved[name] = now
        one.host.sh(f"cd {one.store}/sets/{now['sets'][-1]} && sha256sum --quiet --check SHA256SUMS")

    parallel(*(partial(kill_and_run_again, one, point) for one, point in zip(world.ledgers(), points, strict=False)))


@pytest.mark.parametrize("points", RESTORE, ids=lambda points: "+".join(map(str, points)))
def test_restore(world: World, saved: dict[str, Look], points: tuple[Point, Point]) -> None:
    def kill_and_run_again(one: Application, point: Point) -> None:
        name = one.inventory_name
        words = ("-e", f"restore_set={saved[name]['sets'][-1]}")
        for _try in range(TRIES):
            if not one.ready():
                one.host.run("systemctl", "start", one.unit)
            one.traffic(0.5)
            before = one.look()
            argv = world.argv("restore", [name], words)
            if world.strike(one, "backup_restore", point.name, point.everything, argv, point.seconds):
                break
        else:
            raise AssertionError(f"{point} was not met in {TRIES} runs")
        struck = one.look()
        assert_one_of_two(before, struck)
        if not point.everything:
            # The runbook lived on, so it has brought the application back by itself.
            assert one.ready()
            assert struck["journal"][-1]["outcome"] == "failed"
            assert struck["restore"]["phase"] not in ("exchanging", "rolling back")
            if point.name != "committed":
                assert [struck[what] for what in ("files", "rows", "inodes")] == [before[what] for what in ("files", "rows", "inodes")]
        world.play("restore", [name], *words)
        now = one.look()
        assert one.ready()
        assert (now["files"], now["rows"]) == (saved[name]["files"], saved[name]["rows"])
        assert_one_of_two(before, now)
        assert now["restore"]["phase"] == "committed"

    parallel(*(partial(kill_and_run_again, one, point) for one, point in zip(world.ledgers(), points, strict=False)))
