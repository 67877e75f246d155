# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on both Debians with both engines: back up under traffic, destroy everything, restore; and that no secret is seen.

The tests are steps of one story: each goes on where the one before it ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import Run, wait_until
from ansible_collections.opskit.runbooks.tests.lab.world import SCRATCH, Application, Look, World

SAME = ("files", "rows", "password")


@dataclass
class Story:
    world: World
    under_traffic: dict[str, str] = field(default_factory=dict)
    """The set of each application that was made while it wrote."""
    before: dict[str, Look] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    command_lines: dict[str, list[str]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> list[str]:
        return list(self.world.applications)

    def look(self) -> dict[str, Look]:
        return {name: one.look() for name, one in self.world.applications.items()}

    def watched(self, runbook: str, hosts: list[str], *words: str) -> Run:
        """Run as loudly as it goes, with all command lines on the hosts looked at, and modules as files."""
        with contextlib.ExitStack() as stack:
            for host in self.world.hosts.values():
                stack.enter_context(host.command_lines(self.command_lines.setdefault(host.name, [])))
            run = self.world.play(runbook, hosts, "-vvv", "--diff", "-e", "ansible_pipelining=false", *words)
        self.runs.append(run)
        return run


@pytest.fixture(scope="module")
def story(world: World) -> Story:
    found = Story(world)
    for name, one in world.applications.items():
        found.secrets.update({f"{name}: {what}": value for what, value in one.secrets().items()})
    return found


def assert_same(now: dict[str, Look], then: dict[str, Look]) -> None:
    for name, look in now.items():
        for what in SAME:
            assert look[what] == then[name][what], (name, what)


def has_lines(one: Application, count: int) -> bool:
    return int(one.host.sh(f"cat {one.ledger} 2>/dev/null | wc -l")) >= count


def test_backup_under_traffic_and_restore_after_everything_is_destroyed(story: Story) -> None:
    world = story.world
    with contextlib.ExitStack() as stack:
        for one in world.applications.values():
            stack.enter_context(one.host.background(f"{one.name} traffic --ledger {one.ledger} --seconds 300 --rate 20"))
        for one in world.applications.values():
            wait_until(partial(has_lines, one, 50), "50 acknowledged writes", 60)
        time.sleep(1)  # the ledger's times are compared by the second
        begun = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        backup = story.watched("backup", story.all, "-e", "backup_require_pause=true")
    made = {name: backup.stats["opskit_backup"][name]["set"] for name in story.all}
    story.under_traffic = {name: one["id"] for name, one in made.items()}
    assert {one["guarantee"] for one in made.values()} == {"paused"}
    for host in world.hosts.values():
        assert host.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "zstd") == "installed"
    for number, one in enumerate(world.applications.values()):
        one.destroy(role=number % 4 == 3)
        assert not one.ready()
    restore = story.watched("restore", story.all)
    for name, one in world.applications.items():
        assert restore.stats["opskit_restore"][name]["set"] == story.under_traffic[name]
        assert one.ready()
        checked = one.cli("ledger-check", "--ledger", one.ledger, "--until", begun)
        assert checked["checked"] >= 50
        assert (checked["missing"], checked["different"]) == ([], [])
        one.traffic(1)
        story.before[name] = one.look()
        assert [entry["runbook"] for entry in story.before[name]["journal"]] == ["backup", "restore"]


def test_everything_is_back_to_the_letter_whoever_reconnects(story: Story) -> None:
    """Nothing writes while it is saved, so the restored state is the saved one, byte by byte and in the words of pg_dump."""
    world = story.world
    world.play("backup", story.all)
    saved = story.look()
    assert_same(saved, story.before)
    for one in world.applications.values():
        one.traffic(1)
    story.before = story.look()
    assert story.before[story.all[0]]["files"] != saved[story.all[0]]["files"]
    # As a superuser, who may go beyond every limit of connections.
    again = "while :; do runuser --user postgres -- psql -X -d ledger -c 'SELECT pg_sleep(60)'; done"
    with contextlib.ExitStack() as stack:
        for host in world.hosts.values():
            stack.enter_context(host.background(again))
        restore = world.play("restore", story.all)
    assert all(restore.stats["opskit_restore"][name]["changed"] for name in story.all)
    now = story.look()
    assert_same(now, saved)
    assert all(one.ready() for one in world.applications.values())
    # The one before is closed and lies beside.
    for one in world.ledgers():
        kept = {name: oid for name, oid, is_open in now[one.inventory_name]["databases"] if is_open == "f"}
        (old,) = (oid for name, oid, _open in story.before[one.inventory_name]["databases"] if name == "ledger")
        assert old in kept.values()


def test_again_changes_nothing(story: Story) -> None:
    hosts = [one.inventory_name for one in story.world.ledgers()]
    before = {name: story.world.applications[name].look() for name in hosts}
    run = story.world.play("restore", hosts)
    assert run.changed() == []
    for name in hosts:
        now = story.world.applications[name].look()
        assert now["databases"] == before[name]["databases"]
        assert (now["inodes"], now["unit"]) == (before[name]["inodes"], before[name]["unit"])


def test_rollback_brings_the_state_before(story: Story) -> None:
    run = story.world.play("restore_rollback", story.all)
    assert all(run.stats["opskit_restore_rollback"][name]["changed"] for name in story.all)
    now = story.look()
    assert_same(now, story.before)
    for one in story.world.ledgers():
        live = [[name, oid] for name, oid, _open in now[one.inventory_name]["databases"] if name == "ledger"]
        assert live == [[name, oid] for name, oid, _open in story.before[one.inventory_name]["databases"] if name == "ledger"]
    assert all(one.ready() for one in story.world.applications.values())


def test_neither_application_of_a_host_sees_the_other(story: Story) -> None:
    world = story.world
    for host in world.hosts.values():
        shelf, ledger = (one for one in world.applications.values() if one.host is host)
        for one, other in ((shelf, ledger), (ledger, shelf)):
            found = host.sh(f"grep -rlF -e /opt/{other.name} -e {other.inventory_name} {one.store}/sets {one.state} {one.root} || true")
            assert found == ""
            assert set(one.look()["sets"]) & set(other.look()["sets"]) == set()
            assert {entry["host"] for entry in one.look()["journal"]} == {one.inventory_name}
            assert one.look()["lease"] == ""


def test_secrets_are_nowhere(story: Story) -> None:
    """In no output, argument, log, temporary folder, record, or file that others may read."""
    assert len(story.secrets) == 2 * 2 + 2 * 4 + 1
    places = {f"output {number}": run.output for number, run in enumerate(story.runs)}
    for host in story.world.hosts.values():
        seen = "\n".join(story.command_lines[host.name])
        assert all(word in seen for word in ("AnsiballZ_backup_set", "AnsiballZ_backup_restore", "pg_dump", "pg_restore"))
        places[f"command lines on {host.name}"] = seen
        places[f"systemd journal of {host.name}"] = host.run("journalctl", "--no-pager", "--output=cat", "--all")
        places[f"PostgreSQL's log on {host.name}"] = host.sh("cat /var/log/postgresql/*")
        folders = "/tmp /var/tmp /root/.ansible ~ops/.ansible ~postgres /run/shm /dev/shm"
        places[f"temporary folders of {host.name}"] = host.sh(
            f"for one in {folders}; do [ ! -d $one ] || find $one -type f -size -20M ! -path '*/main/*' -exec cat {{}} +; done"
        )
        places[f"records on {host.name}"] = host.sh(
            "cat /var/lib/opskit/*/*; find /var/backups/opskit -type f ! -path '*/objects/*' ! -name '*.zst' -exec cat {} +; "
            "find /var/backups/opskit -name files.jsonl.zst -exec zstd -dcq {} +"
        )
        open_to_all = host.sh("find /var/lib/opskit /var/backups/opskit /opt -type f -perm /007").splitlines()
        assert open_to_all == []
    if os.environ.get("ANSIBLE_LOG_PATH"):
        places["Ansible's log"] = Path(os.environ["ANSIBLE_LOG_PATH"]).read_text(errors="replace")
    for number, path in enumerate(path for path in story.world.folder.rglob("*") if path.is_file()):
        places[f"file {number} of the controller: {path}"] = path.read_text(errors="replace")
    assert [(place, what) for place, text in places.items() for what, value in story.secrets.items() if value in text] == []
    assert all("Permission denied" not in text for place, text in places.items() if place.startswith("output"))
    assert SCRATCH not in "".join(run.output for run in story.runs)
