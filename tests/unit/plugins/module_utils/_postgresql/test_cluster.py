# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The throw-away server: a dump is loaded into a real one, and what is wrong with it is named."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.environment import value_of, with_value
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import cluster as module
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.cluster import (
    Cluster,
    Limits,
    check_host,
    first_broken,
    is_at_fault,
    require_socket,
)
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.contents import ask
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.credentials import moved_url
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.errors import PostgresError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.restore import MAINTENANCE, PostgresTarget
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import Cluster as Live

ROWS = """
    CREATE ROLE app LOGIN PASSWORD 'right';
    CREATE TABLE note (id int PRIMARY KEY, text text);
    INSERT INTO note SELECT n, 'note ' || n FROM generate_series(1, 3000) AS n;
    ALTER TABLE note OWNER TO app;
"""
USER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
LIMITS = Limits(1 << 30, 2)


class Running:
    """A throw-away server that runs."""

    def __init__(self, folder: str) -> None:
        self.cluster = Cluster(folder, folder, USER, postgres.majors()[0])
        self.cluster.prepare()
        self.as_user: List[str] = []
        if os.geteuid() == 0:
            entry = pwd.getpwnam(USER)
            self.as_user = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        self.command(self.cluster.make())

    def command(self, argv: List[str]) -> None:
        subprocess.run([*self.as_user, *argv], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    def start(self) -> None:
        argv = [*(self.as_user or ["setpriv"]), "--pdeathsig=KILL", *self.cluster.serve(LIMITS)]
        self.process = subprocess.Popen(argv, cwd="/", stderr=subprocess.DEVNULL)
        self.cluster.require_answer(30, lambda: None)

    def stop(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


@pytest.fixture(scope="module")
def drilling() -> Iterator[Running]:
    folder = tempfile.mkdtemp(prefix="drill-")
    patch = pytest.MonkeyPatch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        patch.setattr(module, "PORT", probe.getsockname()[1])
    try:
        found = Running(folder)
        found.start()
        yield found
        found.stop(signal.SIGQUIT)
    finally:
        patch.undo()
        shutil.rmtree(folder)


@pytest.fixture
def fresh(drilling: Running) -> Iterator[Running]:
    yield drilling
    with drilling.cluster.login.session(MAINTENANCE) as connection:
        ask(connection, "DROP DATABASE IF EXISTS app WITH (FORCE)")
        ask(connection, "DROP ROLE IF EXISTS app")


def dumped(live: Live) -> Tuple[str, str, Dict[str, Any]]:
    """A dump, the roles' definitions and the facts."""
    database = live.make("app", ROWS, "")
    image, facts = live.dump(database)
    beside = live.file()
    database.copy_beside(beside)
    return image, beside, facts


def loaded(running: Running, image: str, beside: str, facts: Dict[str, Any]) -> PostgresTarget:
    target = running.cluster.target("app", "app", "DATABASE_URL")
    running.cluster.load(target, image, beside, facts, 2)
    return target


def test_a_dump_comes_back_under_its_own_name_and_nothing_of_the_comparison_stays(cluster: Live, fresh: Running) -> None:
    image, beside, facts = dumped(cluster)
    target = loaded(fresh, image, beside, facts)
    assert fresh.cluster.difference(target, facts, 2) == ""
    with fresh.cluster.login.session("app") as connection:
        assert ask(connection, "SELECT count(*) FROM public.note") == [(3000,)]
        assert ask(connection, "SELECT extname FROM pg_extension") == [("plpgsql",)]
    with fresh.cluster.login.session(MAINTENANCE) as connection:
        settings = dict(ask(connection, "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'archive_mode', 'wal_level')"))
    assert settings == {"fsync": "off", "archive_mode": "off", "wal_level": "minimal"}


def test_the_application_logs_in_as_it_did(cluster: Live, fresh: Running) -> None:
    image, beside, facts = dumped(cluster)
    target = loaded(fresh, image, beside, facts)
    right = f"A=1\nDATABASE_URL=postgresql://app:right@127.0.0.1:{module.PORT}/app\n".encode()
    assert fresh.cluster.settle(target, right, "it") == right
    assert target.refusal(right, "it", []) == ""
    assert "authentication failed" in target.refusal(right.replace(b"right", b"wrong"), "it", [])


def test_a_url_that_leads_elsewhere_is_turned_here(cluster: Live, fresh: Running) -> None:
    image, beside, facts = dumped(cluster)
    target = loaded(fresh, image, beside, facts)
    for url in ("postgresql+psycopg://app:right@db.example.org:6432/app?sslmode=disable", "postgresql://app:right@127.0.0.1:1/app"):
        settled = fresh.cluster.settle(target, f"DATABASE_URL={url}\n".encode(), "it")
        assert f"@127.0.0.1:{module.PORT}/app" in settled.decode()
        assert target.refusal(settled, "it", []) == ""


def test_roles_that_no_superuser_saved_are_made_with_the_password_of_the_url(cluster: Live, fresh: Running) -> None:
    image, _beside, facts = dumped(cluster)
    target = loaded(fresh, image, "", facts)
    settings = f"DATABASE_URL=postgresql://app:other@localhost:{module.PORT}/app\n".encode()
    assert fresh.cluster.settle(target, settings, "it") == settings
    assert target.refusal(settings, "it", []) == ""
    assert fresh.cluster.difference(target, facts, 1) == ""


def test_what_is_not_as_recorded_is_named(cluster: Live, fresh: Running) -> None:
    image, beside, facts = dumped(cluster)
    target = loaded(fresh, image, beside, facts)
    with fresh.cluster.login.session("app") as connection:
        ask(connection, "DELETE FROM public.note WHERE id = 7")
    assert fresh.cluster.difference(target, facts, 2) == "1 tables differ, first public.note: 2999 rows, 3000 recorded"
    with fresh.cluster.login.session("app") as connection:
        ask(connection, "CREATE TABLE public.more ()")
    assert "definitions" in fresh.cluster.difference(target, facts, 2)


def test_an_index_that_misses_a_row_is_named(cluster: Live, fresh: Running) -> None:
    """Every row is there, so that only amcheck sees it."""
    image, beside, facts = dumped(cluster)
    target = loaded(fresh, image, beside, facts)
    with fresh.cluster.login.session("app") as connection:
        ((path, size),) = ask(connection, "SELECT pg_relation_filepath('public.note_pkey'), pg_relation_size('public.note_pkey')")
    fresh.stop()
    with open(os.path.join(fresh.cluster.folder, "data", path), "r+b") as stream:
        # Of the second page, a leaf, the last line pointer is turned into that of another row.
        stream.seek(8192 + 24 + 8)
        pointer = stream.read(4)
        stream.seek(8192 + 24 + 12)
        stream.write(pointer)
    fresh.start()
    assert size > 8192
    found = fresh.cluster.difference(target, facts, 2)
    assert found.startswith("amcheck: public.note_pkey"), found


def test_rows_that_break_a_constraint_are_the_datas_fault(cluster: Live, fresh: Running) -> None:
    """As a server has them whose index was broken."""
    database = cluster.make("app", "CREATE TABLE t (n int); INSERT INTO t VALUES (1), (1); CREATE UNIQUE INDEX u ON t (n) WHERE n > 1")
    cluster.sql("UPDATE pg_index SET indpred = NULL WHERE indexrelid = 'u'::regclass", "app")
    image, facts = cluster.dump(database)
    with pytest.raises(PostgresError) as caught:
        loaded(fresh, image, "", facts)
    assert is_at_fault(caught.value), caught.value
    assert not is_at_fault(PostgresError("pg_restore failed: extension not available"))


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    def dead() -> None:
        raise OpskitError("it ended")

    with pytest.raises(OpskitError, match="it ended"):
        Cluster(str(tmp_path), str(tmp_path), USER, postgres.majors()[0]).require_answer(30, dead)
    with pytest.raises(PostgresError, match="No such file"):
        Cluster(str(tmp_path), str(tmp_path), USER, postgres.majors()[0]).require_answer(0, lambda: None)


def test_hosts_that_do_not_fit_are_refused() -> None:
    newest = postgres.majors()[0]
    assert check_host(USER, newest * 10000 + 3) == newest
    assert check_host(USER, 90000) == postgres.majors()[-1]
    with pytest.raises(PostgresError, match=f"the dump is of PostgreSQL {newest + 1}.1, and this host has .*{newest}"):
        check_host(USER, (newest + 1) * 10000 + 1)
    with pytest.raises(PostgresError, match="no user 'nobody-here'"):
        check_host("nobody-here", newest * 10000)
    with pytest.raises(PostgresError, match="too long"):
        require_socket("/" + "x" * 100)


@pytest.mark.parametrize(
    ("report", "says"),
    [
        (
            'btree index "app.public.note_pkey":\n    ERROR:  heap tuple (0,7) from table "note" lacks matching index tuple within index\n',
            'amcheck: public.note_pkey: ERROR:  heap tuple (0,7) from table "note" lacks matching index tuple within index',
        ),
        ('heap table "app.public.note", block 3, offset 4:\n    xmin 5 is bad\n', "amcheck: public.note, block 3, offset 4: xmin 5 is bad"),
        ("something else\n", "amcheck: something else"),
        ("", "amcheck: it found damage and did not say where"),
    ],
)
def test_the_first_thing_that_amcheck_finds(report: str, says: str) -> None:
    assert first_broken(report) == says


@pytest.mark.parametrize("value", ["plain", "", "a b", 'quo"te', "back\\slash", "dollar$HOME", "postgresql://a:b%20@h/d?x=y"])
def test_values_in_an_environment_file(value: str) -> None:
    settled = with_value(b"# kept\nA=old\nB=2", "A", value)
    assert settled.startswith(b"# kept\nA=")
    assert settled.endswith(b"\nB=2")
    script = '. {} && printf %s "$A"'
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(settled.replace(b"?", b"\\?").replace(b"&", b"\\&") if value.startswith("postgresql") else settled)
        stream.flush()
        assert subprocess.run(["sh", "-c", script.format(stream.name)], stdout=subprocess.PIPE, check=True).stdout.decode() == value
    assert b"\nC=new\n" in with_value(b"A=1", "C", "new")


@pytest.mark.parametrize(
    ("url", "moved"),
    [
        ("postgresql://u:p%40@db/app", "postgresql://u:p%40@127.0.0.1:1/app"),
        ("postgresql+psycopg2://u@[::2]:9/app?sslmode=require&port=7", "postgresql+psycopg2://u@127.0.0.1:1/app?sslmode=require"),
        ("postgresql:///app?host=/srv/socket", "postgresql://127.0.0.1:1/app"),
    ],
)
def test_moved_url(url: str, moved: str) -> None:
    assert moved_url(url, "127.0.0.1", 1) == moved
    assert value_of(f"X={moved}".encode(), "X") == moved
