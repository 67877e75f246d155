# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading a dump beside the live database, who may, and the exchange of names: all or nothing, also when killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any, Dict, Tuple

import psycopg2
import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import contents, restore
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.errors import PostgresError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.restore import PostgresTarget
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import PASSWORD, Cluster
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

DATA = "CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 100)"


def session(cluster: Cluster, database: str = "app", **who: Any) -> Any:
    return psycopg2.connect(host=cluster.server.host, port=cluster.server.port, dbname=database, **{"user": "postgres", **who})


def staged(target: PostgresTarget, facts: Dict[str, Any], image: str) -> Tuple[int, int]:
    """Load a copy and return the identities of the live one and of the copy."""
    target.load(image, "", facts, "app_n")
    live, copy = target.identity("app"), target.identity("app_n")
    assert live is not None
    assert copy is not None
    return live, copy


@pytest.mark.parametrize(
    "options",
    [
        "",
        "TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'",
        "TEMPLATE template0 ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C'",
        "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-AT'",
    ],
)
def test_what_a_dump_leaves_out_comes_back(cluster: Cluster, options: str) -> None:
    cluster.sql("CREATE ROLE app; CREATE ROLE clerk; CREATE ROLE chief")
    database = cluster.make(options=f"{options} OWNER app CONNECTION LIMIT 33", sql=f"{DATA}; COMMENT ON DATABASE app IS 'it''s é'")
    cluster.sql(
        """
        REVOKE ALL ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO clerk; GRANT CREATE ON DATABASE app TO chief WITH GRANT OPTION;
        ALTER DATABASE app SET search_path TO "$user", public, 'x y', 'qu"ote', ''; ALTER DATABASE app SET shop.greeting TO 'he''llo, "all"';
        ALTER ROLE clerk IN DATABASE app SET work_mem TO '7MB'; ALTER ROLE clerk IN DATABASE app SET search_path TO '';
        ALTER DATABASE app SET default_transaction_read_only TO on
        """
    )
    image, facts = cluster.dump(database)
    assert facts["roles"] == ["app", "chief", "clerk"]
    cluster.target().load(image, "", facts, "beside")
    there = cluster.text("beside", "--create", "--schema-only")
    assert [line.replace("beside", "app") for line in there] == cluster.text("app", "--create", "--schema-only")
    assert cluster.target().difference(facts, "beside") == ""


def test_load_replaces_what_a_cut_off_run_left_and_leaves_nothing_when_it_fails(cluster: Cluster) -> None:
    image, facts = cluster.dump(cluster.make(sql=DATA))
    target = cluster.target()
    cluster.make("beside", "CREATE TABLE rubbish (x int)")
    target.load(image, "", facts, "beside")
    assert target.difference(facts, "beside") == ""
    other = {**facts, "tables": {"public.t": {"rows": 99, "sum": "1"}}}
    with pytest.raises(PostgresError, match=r"public\.t: 100 rows, 99 recorded"):
        target.load(image, "", other, "beside")
    assert cluster.databases() == ["app"]
    broken = cluster.file("no archive")
    with pytest.raises(PostgresError, match="pg_restore failed"):
        target.load(broken, "", facts, "beside")
    assert cluster.databases() == ["app"]
    assert target.difference(facts, "beside") == "it is missing"


def test_roles_are_made_as_they_were(cluster: Cluster) -> None:
    cluster.sql(
        f"""
        CREATE ROLE "Ow;ner" LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 7; CREATE ROLE staff; CREATE ROLE boss; CREATE ROLE stranger;
        COMMENT ON ROLE "Ow;ner" IS E'two\nlines; it''s \\\\ one'; ALTER ROLE "Ow;ner" SET work_mem TO '9MB';
        GRANT staff TO "Ow;ner" WITH ADMIN OPTION; GRANT "Ow;ner" TO boss
        """
    )
    database = cluster.make(options='OWNER "Ow;ner"', sql='SET ROLE "Ow;ner"; CREATE SCHEMA s; CREATE TABLE s.t (x int)')
    image, facts = cluster.dump(database)
    globals_sql = cluster.file()
    database.copy_beside(globals_sql)
    look = "SELECT rolname, rolcanlogin, rolconnlimit, rolpassword, shobj_description(a.oid, 'pg_authid') FROM pg_authid a WHERE rolname = 'Ow;ner'"
    members = "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members WHERE roleid >= 16384 ORDER BY 1, 2"
    settings = "SELECT setconfig FROM pg_db_role_setting"
    before = [cluster.sql(text) for text in (look, members, settings)]
    cluster.sql('DROP DATABASE app; DROP ROLE "Ow;ner"; DROP ROLE staff; DROP ROLE stranger')
    target = cluster.target()
    assert target.check(facts, True) == ["Ow;ner"]
    with pytest.raises(PostgresError, match="the roles Ow;ner own objects"):
        target.check(facts, False)
    target.load(image, globals_sql, facts, "app_n")
    assert [cluster.sql(text) for text in (look, members, settings)] == before
    assert cluster.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'stranger'") == "0"
    with open(cluster.server.folder / "log", "rb") as stream:
        assert b"SCRAM-SHA-256$" not in stream.read()


def test_rights(cluster: Cluster) -> None:
    cluster.sql(f"CREATE ROLE app; CREATE ROLE reader; CREATE ROLE deputy LOGIN PASSWORD '{PASSWORD}'")
    database = cluster.make(
        options="OWNER app", sql="SET ROLE app; CREATE SCHEMA s; CREATE TABLE s.t (x int); GRANT SELECT ON s.t TO reader"
    )
    image, facts = cluster.dump(database)
    target = cluster.target(login=cluster.login("deputy"))
    for words, mend in (
        ("may not make databases", "ALTER ROLE deputy CREATEDB"),
        ("can't give objects to app", "GRANT app TO deputy"),
        ("may not end the sessions of others", "GRANT pg_signal_backend TO deputy"),
    ):
        with pytest.raises(PostgresError, match=words) as caught:
            target.check(facts, True)
        assert mend.split()[1] in caught.value.todo
        cluster.sql(mend)
    assert target.check(facts, True) == []
    cluster.sql(f"CREATE ROLE visitor LOGIN PASSWORD '{PASSWORD}'")
    stranger = session(cluster, user="visitor", password=PASSWORD)
    target.load(image, "", facts, "app_n")
    live, copy = target.identity("app"), target.identity("app_n")
    assert live is not None
    assert copy is not None
    target.rename([("app", "app_b", live), ("app_n", "app", copy)], "app_b")
    with pytest.raises(psycopg2.OperationalError):
        stranger.cursor().execute("SELECT 1")
    assert target.difference(facts) == ""
    with pytest.raises(PostgresError, match="the roles gone own"):
        target.check({**facts, "roles": ["gone"]}, True)


def test_what_holds_a_database_is_refused_first(cluster: Cluster) -> None:
    database = cluster.make(sql=DATA)
    facts = cluster.dump(database)[1]
    target = cluster.target()
    assert target.check(facts, False) == []
    with pytest.raises(PostgresError, match="are free"):
        target.check({**facts, "database_bytes": 1 << 60}, False)
    with pytest.raises(PostgresError, match="needs pg_restore"):
        target.check({**facts, "server_version": 990001}, False)
    with pytest.raises(PostgresError, match="tablespaces fast"):
        target.check({**facts, "tablespaces": ["fast"]}, False)


def test_a_prepared_transaction_and_a_slot_are_refused(held: Cluster) -> None:
    facts = held.dump(held.make(sql=DATA))[1]
    held.sql("BEGIN; INSERT INTO t VALUES (0); PREPARE TRANSACTION 'left'", "app")
    with pytest.raises(PostgresError, match="1 prepared transactions hold the database, first 'left'"):
        held.target().check(facts, False)
    held.sql("ROLLBACK PREPARED 'left'; SELECT pg_create_logical_replication_slot('feed', 'pgoutput')", "app")
    with pytest.raises(PostgresError, match="replication slots hold the database, first 'feed'"):
        held.target().check(facts, False)
    held.sql("SELECT pg_drop_replication_slot('feed')")
    assert held.target().check(facts, False) == []


@pytest.fixture
def held(cluster: Cluster) -> Cluster:
    if cluster.sql("SHOW max_prepared_transactions") == "0":
        cluster.sql("ALTER SYSTEM SET max_prepared_transactions = 5")
        cluster.sql("ALTER SYSTEM SET wal_level = logical")
        cluster.server.stop()
        cluster.server.start()
    return cluster


def test_sessions_that_come_back_are_kept_out(cluster: Cluster) -> None:
    image, facts = cluster.dump(cluster.make(sql=DATA))
    target = cluster.target()
    live, copy = staged(target, facts, image)
    stop, seen = threading.Event(), []

    def insist() -> None:
        while not stop.is_set():
            try:
                connection = session(cluster)
                while not stop.is_set():
                    cursor = connection.cursor()
                    cursor.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
                    seen.append(cursor.fetchone()[0])
                    time.sleep(0.005)
            except psycopg2.Error:
                time.sleep(0.005)

    workers = [threading.Thread(target=insist) for _number in range(3)]
    for worker in workers:
        worker.start()
    try:
        wait_for(lambda: live in seen)
        target.rename([("app", "app_b", live), ("app_n", "app", copy)], "app_b")
        wait_for(lambda: copy in seen)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert seen.index(copy) > max(number for number, oid in enumerate(seen) if oid == live)
    with pytest.raises(psycopg2.OperationalError, match="not currently accepting connections"):
        session(cluster, "app_b")


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_session_that_does_not_end_stops_the_exchange(cluster: Cluster) -> None:
    image, facts = cluster.dump(cluster.make(sql=DATA))
    target = cluster.target(deadline_s=0.3)
    live, copy = staged(target, facts, image)
    held = session(cluster, application_name="stubborn")
    pid = held.get_backend_pid()
    # As one that the operating system does not let end, on a disk that hangs.
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(PostgresError, match=rf"1 sessions did not end within 0.3 s, first process {pid} of postgres \(stubborn\)"):
            target.rename([("app", "app_b", live), ("app_n", "app", copy)], "app_b")
    finally:
        os.kill(pid, signal.SIGCONT)
    held.close()
    assert (target.identity("app"), target.identity("app_n"), target.identity("app_b")) == (live, copy, None)
    session(cluster).close()
    session(cluster, "app_n").close()


def test_another_database_of_the_name_is_left_alone(cluster: Cluster) -> None:
    image, facts = cluster.dump(cluster.make(sql=DATA))
    target = cluster.target()
    live, copy = staged(target, facts, image)
    with pytest.raises(PostgresError, match="another database has this name by now"):
        target.rename([("app", "app_b", live), ("app_n", "app", live)], "app_b")
    cluster.make("app_b")
    with pytest.raises(PostgresError, match='"app_b" already exists'):
        target.rename([("app", "app_b", live), ("app_n", "app", copy)], "app_b")
    assert (target.identity("app"), target.identity("app_n")) == (live, copy)
    session(cluster).close()
    with pytest.raises(PostgresError, match="the live database is never removed"):
        target.drop("app")
    target.drop("nothing of this name")
    assert cluster.databases() == ["app", "app_b", "app_n"]


def test_killed_anywhere_both_names_change_or_none(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    image, facts = cluster.dump(cluster.make(sql=DATA))
    target = cluster.target()
    live, copy = staged(target, facts, image)
    moves = [("app", "app_b", live), ("app_n", "app", copy)]
    outcomes = []
    for number in range(1, 60):

        def work(number: int = number) -> None:
            asked = [0]

            def killed(*args: Any) -> Any:
                asked[0] += 1
                if asked[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return contents.ask(*args)

            # The child's own: what it asks the server next, it does not live to ask.
            monkeypatch.setattr(restore, "ask", killed)
            target.rename(moves, "app_b")

        code = in_child(work)
        done = target.identity("app") == copy
        outcomes.append(done)
        if done:
            assert target.identity("app_b") == live
            break
        assert (code, target.identity("app"), target.identity("app_n"), target.identity("app_b")) == (-signal.SIGKILL, live, copy, None)
        target.open_again("app")
        session(cluster).close()
    assert outcomes == [False] * (len(outcomes) - 1) + [True]
    assert len(outcomes) > 8
    target.rename([("app", "app_n", copy), ("app_b", "app", live)], "app_n")
    assert (target.identity("app"), target.identity("app_n")) == (live, copy)
    assert target.difference(facts) == ""
