# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pause of writes under systemd: a backup that is killed in it, with all processes of its session, leaves no application that waits.

On each host one application pauses its writes and the other is stopped; the engines change places between the hosts. What strikes a host
strikes every backup on it, so there is one at a time then.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import wait_until
from ansible_collections.opskit.runbooks.tests.lab.world import Application, World, parallel

PAUSE_SECONDS = 60
GOES_ON_SECONDS = 20  # far below the pause's own end
TRIES = 6


@dataclass(frozen=True)
class Case:
    one: Application
    kind: str

    @property
    def words(self) -> tuple[str, ...]:
        return ("-e", f"backup_pause={self.kind}", "-e", "backup_require_pause=true", "-e", f"backup_pause_seconds={PAUSE_SECONDS}")


@pytest.fixture(scope="module")
def cases(world: World) -> list[Case]:
    found = []
    for number, host in enumerate(world.hosts.values()):
        shelf, ledger = (one for one in world.applications.values() if one.host is host)
        kinds = ("hook", "stop") if number % 2 else ("stop", "hook")
        found += [Case(shelf, kinds[0]), Case(ledger, kinds[1])]
    return found


def record(one: Application) -> str:
    return one.host.sh(f"cat {one.state}/pause/pause.json 2>/dev/null || true")


def writes(one: Application) -> bool:
    """Say whether the application runs and answers to a write at once."""
    if not one.ready():
        return False
    before = time.monotonic()
    one.traffic(0.2)
    return time.monotonic() - before < 5


def kill_in_the_pause(world: World, case: Case) -> None:
    one = case.one
    for _try in range(TRIES):
        one.traffic(0.5)
        argv = world.argv("backup", [one.inventory_name], case.words)
        if world.strike(one, "backup_set", "paused", True, argv, session=True):
            return
    raise AssertionError(f"the pause of {one.inventory_name} was not met in {TRIES} runs")


def test_a_set_of_one_moment(world: World, cases: list[Case]) -> None:
    def back_up(case: Case) -> None:
        one = case.one
        with one.host.background(f"{one.name} traffic --ledger {one.ledger} --seconds 120 --rate 50"):
            time.sleep(2)
            run = world.play("backup", [one.inventory_name], *case.words)
        made = run.stats["opskit_backup"][one.inventory_name]["set"]
        assert made["guarantee"] == {"hook": "paused", "stop": "stopped"}[case.kind]
        assert 0 < made["pause_s"] < 30
        assert record(one) == ""
        wait_until(partial(writes, one), "the application goes on", GOES_ON_SECONDS)

    parallel(*(partial(back_up, case) for case in cases))


def test_killed_in_the_pause(world: World, cases: list[Case]) -> None:
    """The watchdog is a unit of its own, so it lives on; the next run needs nobody's help."""

    def check(case: Case) -> None:
        one = case.one
        kill_in_the_pause(world, case)
        wait_until(partial(writes, one), "the application goes on", GOES_ON_SECONDS)
        wait_until(lambda: record(one) == "", "the record is gone", GOES_ON_SECONDS)
        run = world.play("backup", [one.inventory_name], *case.words)
        assert run.stats["opskit_backup"][one.inventory_name]["set"]["guarantee"] != "none"
        assert one.look()["half"] == []

    parallel(*(partial(check, case) for case in cases if case.one.database))


def test_the_unit_at_boot(world: World, cases: list[Case]) -> None:
    """Neither the run nor its watchdog is left, as after a power cut: what the boot starts makes the application go on."""

    def check(case: Case) -> None:
        one = case.one
        unit = f"opskit-pause-{one.inventory_name}.service"
        assert one.host.run("systemctl", "is-enabled", unit).strip() == "enabled"
        # What a killed run leaves behind, on an application that stands still.
        kill_in_the_pause(world, case)
        wait_until(lambda: record(one) == "", "the record is gone", GOES_ON_SECONDS)
        wait_until(partial(writes, one), "the application goes on", GOES_ON_SECONDS)
        words = ["systemctl", "start", one.unit] if case.kind == "stop" else [f"/usr/local/bin/{one.name}", "resume"]
        left = {"version": 1, "id": "0123456789abcdef", "kind": case.kind, "end": words, "begun": "2026-01-01T00:00:00Z", "seconds": 60}
        folder = f"{one.state}/pause"
        one.host.run("sh", "-c", f"umask 077 && cat >{folder}/pause.json", text=json.dumps(left, indent=1))
        one.host.sh(f"sed -i 's/^id=.*/id=0123456789abcdef/' {folder}/resume")
        if case.kind == "stop":
            one.host.run("systemctl", "stop", one.unit)
        else:
            one.host.run(one.name, "pause", "300")
        # The target pulls in what it wants and what does not run, as it does at boot.
        one.host.run("systemctl", "start", "multi-user.target")
        wait_until(lambda: record(one) == "", "the record is gone", GOES_ON_SECONDS)
        wait_until(partial(writes, one), "the application goes on", GOES_ON_SECONDS)

    parallel(*(partial(check, case) for case in cases if not case.one.database))


def test_without_a_pause_the_unit_goes(world: World, cases: list[Case]) -> None:
    names = [case.one.inventory_name for case in cases]
    first = world.play("backup", names, "-e", "backup_pause=none", "--check")
    run = world.play("backup", names, "-e", "backup_pause=none")
    assert first.changed() == run.changed() != []
    for case in cases:
        assert case.one.host.sh("ls -d /etc/systemd/system/opskit-pause-* 2>/dev/null || true") == ""
