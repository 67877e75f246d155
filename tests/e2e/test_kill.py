# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL at many points of a backup and of a restore; one more run of the same command makes everything good.

What is killed: "all" is what a lost machine is (ansible-playbook and all below it, at one moment), "controller" is
ansible-playbook alone (the module goes on for a while), "module" is the module alone (the runbook goes on to its rescue).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.conftest import Make
from ansible_collections.opskit.runbooks.tests.e2e.world import (
    SOAK,
    Application,
    State,
    World,
    descendants,
    freeze,
    freeze_tree,
    is_in_state,
    send,
    wait_until,
)

TRIES = 6  # a point that is a few milliseconds long can be missed


@dataclass
class Moment:
    """What can be seen of a run from outside."""

    application: Application
    seconds: float
    """Since its start."""
    usual_seconds: float
    """That a whole one takes."""
    sets: list[str]
    """Those that were there before it."""
    objects: int
    """Likewise, how many."""
    inodes: list[int]
    """Likewise, of the live paths."""


@dataclass
class Point:
    what: str
    name: str
    reached: Callable[[Moment], bool]

    def __str__(self) -> str:
        return f"{self.what}-{self.name}"


def after(share: float) -> Callable[[Moment], bool]:
    return lambda run: run.seconds > share * run.usual_seconds


def is_storing(run: Moment) -> bool:
    return any((run.application.store / "tmp").iterdir())


def has_new_object(run: Moment) -> bool:
    return len(run.application.objects()) > run.objects


def is_published(run: Moment) -> bool:
    return len(run.application.sets()) > len(run.sets)


def is_staging(run: Moment) -> bool:
    record = run.application.record()
    return record.get("phase") == "staging" and any(os.path.exists(stage["path"]) for stage in record["stages"])


def is_in_phase(phase: str) -> Callable[[Moment], bool]:
    return lambda run: run.application.phase() == phase and not run.application.process_lives()


def is_half_exchanged(run: Moment) -> bool:
    """One path is the set's, and another still the old one."""
    if run.application.phase() != "exchanging":
        return False
    old = [now == before for now, before in zip(run.application.inodes(), run.inodes, strict=True)]
    return any(old) and not all(old)


def is_started(run: Moment) -> bool:
    """The application runs on what was restored by this run; an earlier one left the same phase behind."""
    return run.application.phase() == "committed" and run.application.process_lives() and run.seconds > run.usual_seconds / 2


BACKUP = [Point("all", "storing", is_storing), Point("module", "storing", has_new_object), Point("all", "published", is_published)]
RESTORE = [
    Point("all", "staging", is_staging),
    Point("module", "exchanging", is_half_exchanged),
    Point("all", "committed", is_in_phase("committed")),
]
if SOAK:
    BACKUP += [
        Point("controller", "storing", is_storing),
        Point("module", "published", is_published),
        Point("all", "one object", has_new_object),
        *(Point("all", f"after {share:.0%}", after(share)) for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)),
    ]
    RESTORE += [
        Point("all", "stopped", is_in_phase("staged")),
        Point("all", "exchanging", is_half_exchanged),
        Point("all", "started", is_started),
        Point("controller", "staging", is_staging),
        Point("controller", "exchanging", is_in_phase("exchanging")),
        Point("module", "staging", is_staging),
        Point("module", "committed", is_in_phase("committed")),
        *(Point("all", f"after {share:.0%}", after(share)) for share in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)),
    ]


class Rounds:
    """One application through all the points."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.application = world.application
        self.seed = 0
        self.usual_seconds = 0.0
        self.states: dict[str, tuple[State, State]] = {}

    def write(self) -> None:
        self.seed += 1
        self.application.write(self.seed)

    def back_up(self) -> str:
        self.play_after_kill("backup")
        newest = self.application.sets()[-1]
        self.states[newest] = self.application.now()
        return newest

    def play_after_kill(self, runbook: str, *words: str) -> None:
        """Run to the end; a lease that was left behind is taken over at once and said from whom, and none is left."""
        left = self.application.lease.exists()
        run = self.world.play(runbook, *words)
        assert (f"The lease was taken over from {runbook} " in run.said()) is left
        assert not self.application.lease.exists()

    def interrupt(self, point: Point, module: str, runbook: str, *words: str, meanwhile: Callable[[], None] | None = None) -> bool:
        """Run and kill at the point; False when the run came to its end before the point was seen.

        :param meanwhile: what happens when everything stands still, before the kill
        """
        application = self.application
        moment = Moment(application, 0.0, self.usual_seconds, application.sets(), len(application.objects()), application.inodes())
        started = time.monotonic()
        process = self.world.start_to_kill(runbook, *words)
        modules: set[int] = set()
        try:
            while process.poll() is None:
                if point.what == "module" and all(is_in_state(pid, b"ZX") for pid in modules):
                    # The module itself, and not the shells around it.
                    script = f"/AnsiballZ_{module}.py\0".encode()
                    below = descendants(process.pid)
                    modules = {pid for pid, command in below.items() if command.endswith(script) and b"\0-c\0" not in command}
                moment.seconds = time.monotonic() - started
                if point.reached(moment):
                    if point.what == "all":
                        found = freeze_tree(process.pid)
                    else:
                        found = {process.pid} if point.what == "controller" else modules
                        freeze(found)
                    # Only what is still so when nothing moves any more is what was meant.
                    if point.reached(moment):
                        if meanwhile:
                            meanwhile()
                        send(signal.SIGKILL, found)
                        # A module that had just ended was not killed; the runbook then ends well.
                        return process.wait(120) != 0
                    send(signal.SIGCONT, found)
            return False
        finally:
            if process.poll() is None:
                send(signal.SIGKILL, freeze_tree(process.pid))
                process.wait()
            wait_until(self.world.is_quiet, "what was left of the killed run has ended", 60)


@pytest.fixture(scope="module")
def rounds(make_world: Make) -> Rounds:
    made = Rounds(make_world("one"))
    made.write()
    started = time.monotonic()
    made.back_up()
    made.usual_seconds = time.monotonic() - started
    return made


@pytest.mark.parametrize("point", BACKUP, ids=str)
def test_backup(rounds: Rounds, point: Point) -> None:
    application = rounds.application
    previous = application.sets()[-1]
    for _round in range(TRIES):
        rounds.write()
        if rounds.interrupt(point, "backup_set", "backup"):
            break
    else:
        pytest.fail(f"the point was not met in {TRIES} runs")
    assert application.ready()
    # Some of the points that are a share of the time lie before it is taken.
    assert application.lease.exists() is (point.what != "module") or "after" in point.name
    if previous in rounds.states:
        assert application.by_hand(previous) == rounds.states[previous]
    newest = rounds.back_up()
    assert application.by_hand(newest) == rounds.states[newest]
    application.assert_store_whole()
    assert application.journal()[-1]["outcome"] == "ok"


@pytest.mark.parametrize("point", RESTORE, ids=str)
def test_restore(rounds: Rounds, point: Point) -> None:
    application = rounds.application
    wanted = application.sets()[-1]
    restored = rounds.states[wanted]
    words = ("-e", "opskit_confirm=one", "-e", f"restore_set={wanted}")
    for _round in range(TRIES):
        if not application.running:
            application.start()
        rounds.write()
        old, inodes = application.now(), application.inodes()
        if rounds.interrupt(point, "backup_restore", "restore", *words):
            break
    else:
        pytest.fail(f"the point was not met in {TRIES} runs")
    if point.what == "module":
        # The runbook lived on, so it has brought the application back by itself, with the files that it had before.
        assert application.ready()
        assert application.now() == old
        assert application.inodes() == inodes
        assert application.phase() not in ("exchanging", "rolling back")
        assert application.journal()[-1]["outcome"] == "failed"
    assert application.lease.exists() is (point.what != "module") or "after" in point.name
    assert application.by_hand(wanted) == restored
    rounds.play_after_kill("restore", *words)
    assert application.ready()
    assert application.now() == restored


def test_restore_that_cannot_be_undone_stays_closed(rounds: Rounds) -> None:
    """Neither the one nor the other state is at one of the paths, so nothing is guessed and nothing runs on a mixture."""
    application = rounds.application
    wanted = application.sets()[-1]
    words = ("-e", "opskit_confirm=one", "-e", f"restore_set={wanted}")
    live, away = application.root / "config", application.base / "config"

    def replace() -> None:
        live.rename(away)
        live.mkdir()

    for _round in range(TRIES):
        rounds.write()
        if rounds.interrupt(Point("module", "exchanging", is_half_exchanged), "backup_restore", "restore", *words, meanwhile=replace):
            break
    else:
        pytest.fail(f"the point was not met in {TRIES} runs")
    assert not application.running
    entry = application.journal()[-1]
    assert (entry["outcome"], entry["details"]["state"]) == ("failed", "mixed")
    assert f"{live}: what is here is neither the old nor the restored state" in entry["error"]
    live.rmdir()
    away.rename(live)
    rounds.world.play("restore", *words)
    assert application.ready()
    assert application.now() == rounds.states[wanted]


def test_restore_that_can_not_be_looked_at_stays_closed(rounds: Rounds) -> None:
    """What made the module end keeps it from looking, too; the record tells that something was begun."""
    application = rounds.application
    wanted = application.sets()[-1]
    words = ("-e", "opskit_confirm=one", "-e", f"restore_set={wanted}")
    away = application.store.with_name("away")

    def hide() -> None:
        application.store.rename(away)

    for _round in range(TRIES):
        rounds.write()
        point = Point("module", "exchanging", is_half_exchanged)
        if rounds.interrupt(point, "backup_restore", "restore", *words, meanwhile=hide):
            break
        if away.exists():
            away.rename(application.store)
    else:
        pytest.fail(f"the point was not met in {TRIES} runs")
    assert not application.running
    entry = application.journal()[-1]
    assert (entry["outcome"], entry["details"]["state"]) == ("failed", "mixed")
    away.rename(application.store)
    rounds.world.play("restore", *words)
    assert application.ready()
    assert application.now() == rounds.states[wanted]
