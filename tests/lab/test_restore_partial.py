# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One part comes back on both Debians with both engines, while the application serves: exactly that, with all policies, killed in the middle.

The tests are steps of one story: each goes on where the one before it ended.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import Run, wait_until
from ansible_collections.opskit.runbooks.tests.lab.world import SOAK, Application, Look, Variables, World, parallel

PROJECT = "project-00001"
USER = "user-00001"
TRIES = 8

# What goes wrong, in SQL that both engines take and in the shell, by scope.
LOSE = {
    "project": (
        f"DELETE FROM usage WHERE project_id = (SELECT id FROM projects WHERE slug = '{PROJECT}');"
        f"DELETE FROM uploads WHERE project_id = (SELECT id FROM projects WHERE slug = '{PROJECT}');"
        f"DELETE FROM projects WHERE slug = '{PROJECT}';",
        f"rm -r projects/{PROJECT}",
    ),
    "provider_settings": ("UPDATE providers SET settings = '{}', api_key = 'lost';", ""),
    "user_preferences": (f"DELETE FROM user_preferences WHERE user_id = (SELECT id FROM users WHERE name = '{USER}');", ""),
    "config": ("", "echo '# by mistake' >>config/gateway.toml"),
    "loose_uploads": (
        "DELETE FROM uploads WHERE path = 'data/uploads/upload-000001.bin';",
        "rm data/uploads/upload-000001.bin; printf other >data/uploads/upload-000002.bin",
    ),
}
ALL_SCOPES = {"project": PROJECT, "user_preferences": USER, "provider_settings": "", "config": "", "loose_uploads": ""}
SAME = ("files", "rows", "databases")


@dataclass
class Story:
    world: World
    saved: dict[str, Look] = field(default_factory=dict)
    which: str = ""
    """The sets of then: a restore makes newer ones."""

    @property
    def all(self) -> list[str]:
        return list(self.world.applications)

    @property
    def some(self) -> list[Application]:
        """One of each engine, on another Debian; in the size of the soak all."""
        found = list(self.world.applications.values())
        return found if SOAK else [one for one in found if (one.host.name == "debian12") == bool(one.database)]

    def given(self, scope: str, policy: str) -> Variables:
        return {"restore_scope": scope, "restore_scope_value": ALL_SCOPES[scope], "restore_policy": policy, "restore_set": self.which}

    def restore(self, scope: str, policy: str, *words: str, fails: bool = False) -> Run:
        given = {**self.given(scope, policy), "restore_backup_first": False}
        return self.world.play("restore_partial", [one.inventory_name for one in self.some], "-e", json.dumps(given), *words, fails=fails)

    def save(self, applications: Iterable[Application]) -> None:
        names = [one.inventory_name for one in applications]
        self.world.play("backup", names)
        time.sleep(1)
        self.which = datetime.now(UTC).strftime("before %Y-%m-%dT%H:%M:%SZ")
        self.saved = {name: self.world.applications[name].look() for name in names}

    def look(self) -> dict[str, Look]:
        return {name: one.look() for name, one in self.world.applications.items()}

    def look_at_some(self) -> dict[str, Look]:
        return {one.inventory_name: one.look() for one in self.some}


def change(one: Application, sql: str, shell: str = "") -> None:
    """Change rows and files under the running application, as its owner would by mistake."""
    if sql and one.database:
        one.host.sql(sql, one.database)
    elif sql:
        script = f"import sqlite3; c = sqlite3.connect('{one.root}/data/gateway.db', timeout=30); c.executescript({sql!r}); c.close()"
        one.host.run("runuser", "-u", one.name, "--", "python3", "-c", script)
    if shell:
        one.host.run("runuser", "-u", one.name, "--", "sh", "-c", f"cd {one.root} && {shell}")


def rows(one: Application, query: str) -> list[str]:
    if one.database:
        return one.host.sql(query, one.database).splitlines()
    script = f"import sqlite3\nfor r in sqlite3.connect('file:{one.root}/data/gateway.db?mode=ro', uri=True).execute({query!r}): print(*r, sep='|')"
    return one.host.run("python3", "-c", script).splitlines()


def for_each(applications: Iterable[Application], work: Callable[[Application], None]) -> None:
    parallel(*(partial(work, one) for one in applications))


def assert_same(now: dict[str, Look], then: dict[str, Look]) -> None:
    for name, look in now.items():
        for what in SAME:
            # Rows come back in another order, and folders get new times when something is put into them.
            ours, theirs = look[what], then[name][what]
            if what == "rows":
                ours, theirs = sorted(ours), sorted(theirs)
            elif what == "files":
                ours, theirs = (
                    {path: seen[:3] + [seen[3] * bool(seen[4])] + seen[4:] for path, seen in one.items()} for one in (ours, theirs)
                )
            assert ours == theirs, (name, what)


@pytest.fixture(scope="module")
def story(world: World) -> Story:
    found = Story(world)
    for_each(world.applications.values(), lambda one: one.traffic(0.5))
    found.save(world.applications.values())
    return found


def test_each_scope_comes_back_while_the_application_serves(story: Story) -> None:
    """A play restores another scope on each host; few plays bring each scope to both engines, all of them each to every host."""
    world = story.world
    scopes, names = list(ALL_SCOPES), story.all
    plays = [dict(zip(names, (scopes * 2)[shift:], strict=False)) for shift in range(len(scopes) if SOAK else 3)]
    for name, one in world.applications.items():
        one.host.sh(f"rm -f {one.ledger}")
        for scope in {play[name] for play in plays}:
            change(one, *LOSE[scope])
    with contextlib.ExitStack() as stack:
        for one in world.applications.values():
            stack.enter_context(one.host.background(f"{one.name} traffic --ledger {one.ledger} --seconds 600 --rate 5"))
        for one in world.applications.values():
            wait_until(partial(has_lines, one, 20), "20 acknowledged writes", 60)
        for number, play in enumerate(plays):
            more = {}
            for name, scope in play.items():
                one = world.applications[name]
                policy = "fail" if scope in ("project", "user_preferences") else "replace"
                given = story.given(scope, policy)
                more[name] = {
                    **one.description(world.connections[one.host.name]),
                    **given,
                    "restore_backup_first": number == 0 and name == names[0],
                }
            result = world.play("restore_partial", names, more=more).stats["opskit_restore_partial"]
            assert {result[name]["changed"] for name in names} == {True}
            assert {result[name]["set"] for name in names} == {story.saved[name]["sets"][-1] for name in names}
            assert [name for name in names if result[name]["before"]] == names[: number == 0]
    for name, one in world.applications.items():
        assert one.ready()
        checked = one.cli("ledger-check", "--ledger", one.ledger)
        assert checked["checked"] >= 20
        # Nothing that was acknowledged meanwhile is lost or other, and each scope is what it was.
        assert (checked["missing"], checked["different"]) == ([], []), name
        now = one.look()
        for path, seen in story.saved[name]["files"].items():
            assert now["files"][path][4] == seen[4], (name, path)
        missing = set(story.saved[name]["rows"]) - set(now["rows"])
        assert [line for line in missing if "setval" not in line and "sqlite_sequence" not in line] == [], name


def has_lines(one: Application, count: int) -> bool:
    return int(one.host.sh(f"cat {one.ledger} 2>/dev/null | wc -l")) >= count


def test_exactly_the_scope_changes_under_each_policy(story: Story) -> None:
    """Nobody writes now, so that everything else can be compared to the last byte."""
    story.save(story.some)
    title = f"UPDATE projects SET title = 'other' WHERE slug = '{PROJECT}';"
    usage = (
        f"DELETE FROM usage WHERE id = (SELECT max(u.id) FROM usage u JOIN projects p ON p.id = u.project_id WHERE p.slug = '{PROJECT}');"
    )
    for_each(
        story.some,
        lambda one: change(one, title + usage, f"printf x >'projects/{PROJECT}/files/note 0 é.txt'; rm 'projects/{PROJECT}/project.json'"),
    )
    changed = story.look_at_some()
    refused = story.restore("project", "fail", fails=True)
    assert refused.output.count("differ in title") >= len(story.some)
    assert_same(story.look_at_some(), changed)
    foretold = story.restore("project", "skip", "--check", "--diff")
    assert_same(story.look_at_some(), changed)
    skipped = story.restore("project", "skip")
    assert foretold.changed() == skipped.changed() != []
    for one in story.some:
        assert rows(one, f"SELECT title FROM projects WHERE slug = '{PROJECT}'") == ["other"]
    story.restore("project", "replace")
    assert_same(story.look_at_some(), story.saved)
    assert story.restore("project", "replace").changed() == []


def test_killed_in_the_middle_it_is_nothing_or_all_and_one_more_run_finishes(story: Story) -> None:
    points = [("writing", True), ("pg_restore", True), ("staging", False)] if SOAK else [("writing", True)]

    def kill_and_run_again(one: Application, point: str, everything: bool) -> None:
        name = one.inventory_name
        given = {"restore_scope": "project", "restore_scope_value": PROJECT, "restore_policy": "replace", "restore_backup_first": False}
        words = ("-e", json.dumps(given), "-e", f"restore_set={story.saved[name]['sets'][-1]}")
        for _try in range(TRIES):
            change(one, *LOSE["project"])
            lost = one.look()
            if world.strike(one, "backup_restore_scope", point, everything, world.argv("restore_partial", [name], words)):
                break
            world.play("restore_partial", [name], *words)
        else:
            raise AssertionError(f"{point} was not met in {TRIES} runs")
        struck = one.look()
        assert sorted(struck["rows"]) in (sorted(lost["rows"]), sorted(story.saved[name]["rows"]))
        world.play("restore_partial", [name], *words)
        assert one.ready()
        assert_same({name: one.look()}, {name: story.saved[name]})
        assert one.look()["half"] == []
        assert one.look()["beside"] == lost["beside"]

    world = story.world
    for point, everything in points:
        struck = [one for one in story.some if one.database or point != "pg_restore"]
        parallel(*(partial(kill_and_run_again, one, point, everything) for one in struck if one.database))
        parallel(*(partial(kill_and_run_again, one, point, everything) for one in struck if not one.database))


def test_refusals_say_why_and_change_nothing(story: Story) -> None:
    world = story.world
    before = story.look()
    another = world.applications["shelf-debian12"]
    keyless = world.applications["shelf-debian13"]
    described: dict[str, Variables] = {name: one.description(world.connections[one.host.name]) for name, one in world.applications.items()}
    wrong = {"rows": [{"table": "projects", "identity": ["slug"], "where": "slug = = 1"}]}
    project = {"restore_scope": "project", "restore_scope_value": PROJECT}
    plays: list[dict[str, tuple[Variables, str]]] = [
        {
            "shelf-debian12": ({"restore_scope": "provider_settings", "restore_policy": "replace"}, "something else by now"),
            "ledger-debian12": ({"restore_scope": "wrong", "application_scopes": {"wrong": wrong}}, "is wrong"),
            "shelf-debian13": (project, "under another APP_SECRET_KEY"),
            "ledger-debian13": ({**project, "restore_scope_value": "project-99999"}, "holds nothing of the project"),
        },
        {
            "shelf-debian12": ({"restore_scope": "nothing"}, "no scope nothing"),
            "ledger-debian12": ({"restore_scope": "config", "restore_scope_value": "x"}, "takes no value"),
            "shelf-debian13": ({"restore_scope": "project"}, "needs a value"),
            "ledger-debian13": ({**project, "restore_scope_value": "../config"}, "can't be the name"),
        },
    ]
    # A row of another thing under the same key, and another key of the application.
    change(another, "UPDATE providers SET name = 'another' WHERE name = 'provider-1';")
    keyless.host.sh(f"cp -a {keyless.root}/.env {keyless.root}/data/cache/.env && sed -i 's/^APP_SECRET_KEY=/&x/' {keyless.root}/.env")
    try:
        for play in plays if SOAK else plays[:1]:
            more = {name: {**described[name], **given} for name, (given, _words) in play.items()}
            run = world.play("restore_partial", story.all, fails=True, more=more)
            for name, (_given, words) in play.items():
                message = run.stats["opskit_restore_partial"][name]["message"]
                assert words in message, (name, message)
    finally:
        keyless.host.sh(f"mv {keyless.root}/data/cache/.env {keyless.root}/.env")
        change(another, "UPDATE providers SET name = 'provider-1' WHERE name = 'another';")
    assert_same(story.look(), before)
