# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is refused on hosts before anything is touched, and what the operator chooses then.

Many faults are met in one run: each is an application of its own in the inventory, with the files, database and store of a healthy one.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ansible_collections.opskit.runbooks.tests.e2e.world import Run, wait_until
from ansible_collections.opskit.runbooks.tests.lab.world import SCRATCH, SMALL, SOAK, Application, Host, Look, Variables, World, parallel

LONGEST = "ledger_" + "ü" * 28
assert len(LONGEST.encode()) == 63
WRONG, PLAIN, FAR = (f"{SCRATCH}/{name}.pgpass" for name in ("wrong", "plain", "far"))
PORT = 5499


@dataclass
class Fault:
    name: str
    says: str
    variables: Variables


BACKUP = [
    Fault("missing", 'database "ledger_nowhere" does not exist', {"application_database_name": "ledger_nowhere"}),
    Fault("wrong", "password authentication failed", Application.login("ledger_wrong", WRONG)),
    Fault("name64", "64 bytes", {"application_database_name": LONGEST + "x"}),
    Fault("space", "are free", {"backup_store": f"{SMALL}/store"}),
]
# A description that asks for nothing but what it is about: none of the others would be met before it.
QUIET: Variables = {"application_database_url_variable": "", "application_database_schema_query": "", "application_schema_command": []}


def other_database(name: str, **login: Any) -> list[dict[str, Any]]:
    """The set's database, brought back to another one."""
    return [{"name": "ledger", "engine": "postgresql", "database": name, "os_user": "postgres", **login}]


RESTORE = [
    Fault("wrong", "password authentication failed", {**QUIET, **Application.login("ledger_wrong", WRONG)}),
    Fault("plain", "ledger_plain may not make databases", Application.login("ledger_plain", PLAIN)),
    Fault("name64", "64 bytes", {**QUIET, "application_databases": other_database(LONGEST + "x")}),
    Fault("prepared", "1 prepared transactions hold the database", {**QUIET, "application_databases": other_database("ledger_prepared")}),
    Fault("rotated", "could not log in to its database ledger: ", {}),
    Fault("newer", "does not know: it is newer", {**QUIET, "application_schema_command": ["/usr/bin/echo", "0001"]}),
    Fault(
        "older",
        "is older than the installed release",
        {**QUIET, "application_schema_command": ["/usr/bin/printf", "0001\\n0002\\n0003\\n"], "application_migrate_command": []},
    ),
    Fault("files", "are both kept here; that needs", {**QUIET, "application_data_dir": f"{SMALL}/data"}),
    Fault("server", "are both kept; that needs", {**QUIET, "application_databases": other_database("ledger", port=PORT)}),
]


@pytest.fixture(scope="module")
def saved(world: World) -> World:
    """Each application has a set, and the faults their surroundings."""
    world.play("backup", list(world.applications))
    parallel(*(partial(surround, host) for host in world.hosts.values()))
    first, *_others, last = world.ledgers()
    password = secrets.token_hex(8)
    World.login(last.host, "ledger_far", password, f"{SCRATCH}/unused.pgpass", "SUPERUSER")
    first.host.run("sh", "-c", f"umask 077 && cat >{FAR}", text=f"*:*:*:ledger_far:{password}\n")
    return world


def surround(host: Host) -> None:
    World.login(host, "ledger_plain", secrets.token_hex(8), PLAIN)
    host.sql("CREATE DATABASE ledger_prepared")
    host.sql("BEGIN; CREATE TABLE t (n int); PREPARE TRANSACTION 'opskit-lab'", "ledger_prepared")
    host.sh(f"""
        set -e
        umask 077
        echo '*:*:*:ledger_wrong:nothing' >{WRONG}
        mountpoint -q {SMALL} || (mkdir -p {SMALL} && mount -t tmpfs -o size=64m,mode=755 tmpfs {SMALL})
        version=$(ls /etc/postgresql)
        pg_createcluster $version small --port {PORT} --datadir {SMALL}/server -- --wal-segsize=1 --no-sync >/dev/null
        pg_ctlcluster $version small start
        free=$(df --output=avail -B1024 {SMALL} | tail -n 1)
        head -c $(( (free - 256) * 1024 )) /dev/zero >{SMALL}/full
    """)


def on_some_host(world: World, faults: list[Fault]) -> dict[str, tuple[Fault, Application]]:
    """Spread the faults over the hosts; in the large size each is on all."""
    ledgers = world.ledgers()
    found = {}
    for number, fault in enumerate(faults):
        for one in ledgers if SOAK else [ledgers[number % len(ledgers)]]:
            found[f"{fault.name}-{one.host.name}"] = (fault, one)
    return found


def described(world: World, faults: dict[str, tuple[Fault, Application]]) -> dict[str, Variables]:
    """Like the healthy one beside the fault, logging in by peer."""
    found = {}
    for name, (fault, one) in faults.items():
        description = one.description(world.connections[one.host.name])
        found[name] = {key: value for key, value in description.items() if not key.startswith("application_database_a")}
        for key in ("application_database_user", "application_database_passfile"):
            found[name].pop(key, None)
        found[name].update(fault.variables)
    return found


def newer_server(world: World) -> dict[str, tuple[Fault, Application]]:
    """The oldest host's application, with its database on the newest host's server."""
    first, *_others, last = world.ledgers()
    fault = Fault("newer-server", "; the newest installed is 15", {**QUIET, **Application.login("ledger_far", FAR, last.host.address)})
    return {fault.name: (fault, first)}


def mini(world: World, one: Application) -> Variables:
    """An application of one folder and a database with the longest name."""
    root = f"{SCRATCH}/long"
    return {
        **world.connections[one.host.name],
        "application_name": "long",
        "application_root": root,
        **{f"application_{name}": "" for name in ("data_dir", "environment_file", "projects_dir")},
        "application_databases": [{"name": "long", "engine": "postgresql", "database": LONGEST, "os_user": "postgres"}],
        "application_service_manager": "command",
        "application_start_command": ["touch", f"{root}/runs"],
        "application_stop_command": ["rm", "-f", f"{root}/runs"],
        "application_status_command": ["test", "-e", f"{root}/runs"],
        "application_smoke_checks": [{"id": "server", "type": "tcp", "port": 5432}],
        "backup_store": f"{SCRATCH}/long-store",
    }


def looks(world: World) -> dict[str, Look]:
    return {name: one.look() for name, one in world.applications.items()}


def assert_untouched(now: dict[str, Look], before: dict[str, Look], *but: str) -> None:
    for name, look in now.items():
        for what in set(look) - {"journal", *but}:
            assert look[what] == before[name][what], (name, what)


def assert_refused(run: Run, runbook: str, faults: dict[str, tuple[Fault, Application]]) -> None:
    for name, (fault, _one) in faults.items():
        entry = run.stats[f"opskit_{runbook}"][name]
        assert entry["ok"] is False
        assert fault.says in " ".join(entry["message"].split()), (name, entry)


def test_backups_that_fail_beside_others_that_are_made(saved: World) -> None:
    world = saved
    last = world.ledgers()[-1]
    faults = {**on_some_host(world, BACKUP), **newer_server(world)}
    more = described(world, faults)
    more["gone"] = {**last.description(world.connections[last.host.name]), "ansible_port": 1}
    more["long"] = mini(world, last)
    last.host.sh(f"mkdir -p {SCRATCH}/long/config && echo 1 >{SCRATCH}/long/config/a && touch {SCRATCH}/long/runs")
    last.host.sql(f'CREATE DATABASE "{LONGEST}"')
    last.host.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS n", LONGEST)
    shelf = next(one for one in world.applications.values() if not one.database)
    shelf.traffic(1)
    before = looks(world)
    journal = world.folder / "controller.jsonl"
    run = world.play("backup", [*more, shelf.inventory_name], "-e", f"record_controller_journal={journal}", more=more, fails=True)
    assert_refused(run, "backup", faults)
    assert run.stats["opskit_backup"]["gone"]["ok"] is False
    assert [(entry["host"], entry["outcome"]) for entry in map(json.loads, journal.read_text().splitlines())] == [("gone", "failed")]
    for name in (shelf.inventory_name, "long"):
        assert run.stats["opskit_backup"][name]["ok"] is run.stats["opskit_backup"][name]["changed"] is True
    now = looks(world)
    assert len(now[shelf.inventory_name]["sets"]) == len(before[shelf.inventory_name]["sets"]) + 1
    assert_untouched(now, before, "sets")
    assert {name: look["sets"] for name, look in now.items() if name != shelf.inventory_name} == {
        name: look["sets"] for name, look in before.items() if name != shelf.inventory_name
    }


def rotate(world: World) -> None:
    """Make the passwords of all ledgers others than those in their sets."""
    for one in world.ledgers():
        one.set_password(secrets.token_hex(8))
        wait_until(one.ready, f"{one.inventory_name} is ready", 60)


def test_a_fleet_that_fails_before_anything_is_touched(saved: World) -> None:
    world = saved
    rotate(world)
    faults = {**on_some_host(world, RESTORE), **newer_server(world)}
    more = described(world, faults)
    healthy = [one.inventory_name for one in world.applications.values() if not one.database]
    before = looks(world)
    run = world.play("restore", [*more, *healthy], more=more, fails=True)
    assert_refused(run, "restore", faults)
    for one in healthy:
        assert "failed on another host" in run.stats["opskit_restore"][one]["message"]
    assert_untouched(looks(world), before)


def test_credentials_that_are_kept_and_a_schema_that_is_migrated(saved: World) -> None:
    """The set is older than the release and has another password than the role has now."""
    world = saved
    hosts = [one.inventory_name for one in world.ledgers()]
    for one in world.ledgers():
        one.host.run("systemctl", "stop", one.unit)
        one.cli("migrate", "--to", "0001")
    # It does not run, so it can't be asked to pause.
    made = world.play("backup", hosts, "-e", "backup_pause=stop")
    for one in world.ledgers():
        one.cli("migrate")
    rotate(world)
    before = looks(world)
    run = world.play("restore", hosts, "-e", "restore_database_credentials=keep_live")
    now = looks(world)
    for one in world.ledgers():
        name = one.inventory_name
        assert run.stats["opskit_restore"][name]["set"] == made.stats["opskit_backup"][name]["set"]["id"]
        assert now[name]["password"] == before[name]["password"]
        assert now[name]["files"][".env"][4] == before[name]["files"][".env"][4]
        assert "0002" in one.host.sql("SELECT version_num FROM alembic_version", one.database)
        assert one.ready()


def test_credentials_that_are_set_and_the_longest_name(saved: World) -> None:
    world = saved
    last = world.ledgers()[-1]
    hosts = [one.inventory_name for one in world.ledgers()]
    sets = {one.inventory_name: one.look()["sets"][0] for one in world.ledgers()}
    (oid,) = last.host.sql(f"SELECT oid FROM pg_database WHERE datname = '{LONGEST}'").splitlines()
    last.host.sql("DELETE FROM t", LONGEST)
    rotate(world)
    before = looks(world)
    more = {"long": mini(world, last)}
    first_sets = json.dumps({"restore_set": "{{ __sets[inventory_hostname] | default('latest') }}", "__sets": sets})
    world.play("restore", [*hosts, "long"], "-e", first_sets, "-e", "restore_database_credentials=set_role", more=more)
    now = looks(world)
    for one in world.ledgers():
        name = one.inventory_name
        assert now[name]["password"] != before[name]["password"]
        assert now[name]["files"][".env"][4] != before[name]["files"][".env"][4]
        assert one.ready()
    assert last.host.sql("SELECT count(*) FROM t", LONGEST) == "100"
    assert last.host.sql(f"SELECT octet_length(datname) FROM pg_database WHERE oid = {oid}") != "63"


def test_sessions_that_do_not_end_stop_the_batch_in_which_they_are(saved: World) -> None:
    """One application after the other: the first is restored, the second can't be, the third is spared."""
    world = saved
    first, second, third, *_last = world.applications.values()
    for one in (first, second, third):
        one.traffic(1)
    host = second.host
    with host.background("runuser --user postgres -- psql -X -d ledger -c 'SELECT pg_sleep(3600)'"):
        find = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3600)'"
        wait_until(lambda: host.sql(find) != "", "the session is there", 30)
        pid = host.sql(find)
        host.run("kill", "-STOP", pid)  # as one that waits for a disk that does not answer
        before = looks(world)
        # The newest set has a password that is not the role's any more.
        words = ("-e", "opskit_serial=1", "-e", "restore_database_timeout=3", "-e", "restore_database_credentials=keep_live")
        try:
            run = world.play("restore", [one.inventory_name for one in (first, second, third)], *words, fails=True)
        finally:
            host.run("kill", "-CONT", pid)
            host.sql(f"SELECT pg_terminate_backend({pid})")
    messages = {name: entry["message"] for name, entry in run.stats["opskit_restore"].items()}
    assert {name for name, message in messages.items() if not message} == {first.inventory_name}, messages
    message = messages[second.inventory_name]
    assert f"1 sessions did not end within 3 s, first process {pid} of postgres (psql)" in message
    now = looks(world)
    assert now[first.inventory_name]["inodes"] != before[first.inventory_name]["inodes"]
    # It was stopped for the exchange, and runs again with all that it had.
    assert_untouched({second.inventory_name: now[second.inventory_name]}, before, "unit", "restore", "beside", "databases")
    live = [one for one in now[second.inventory_name]["databases"] if one[0] == "ledger"]
    assert live == [one for one in before[second.inventory_name]["databases"] if one[0] == "ledger"]
    assert second.ready()
    assert_untouched({third.inventory_name: now[third.inventory_name]}, before)
