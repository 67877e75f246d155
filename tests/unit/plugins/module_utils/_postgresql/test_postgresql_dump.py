# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a database, when it has changed, and that a dump is of one moment."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from typing import Any, Dict, List

import psycopg2
import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.contents import rows_of, sequences_of
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.database import check_image, check_name
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.errors import PostgresError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._postgresql.cluster import PASSWORD, Cluster

EVERY_KIND = """
    CREATE TABLE plain (id serial PRIMARY KEY, text text, number numeric, at timestamptz, bytes bytea, tags text[], doc jsonb);
    INSERT INTO plain (text, number, at, bytes, tags, doc)
        SELECT 'row ' || n, n / 7.0, '2026-01-01', decode('00ff5c27', 'hex'), ARRAY['a,b', NULL, '"'], '{"a": [1, null]}'
        FROM generate_series(1, 50) n;
    INSERT INTO plain (text) VALUES (NULL), (''), (E'tab\\t\\\\N\\nline');
    CREATE TABLE identity (id bigint GENERATED ALWAYS AS IDENTITY (START -100 INCREMENT -5), x int, twice int GENERATED ALWAYS AS (x * 2) STORED);
    INSERT INTO identity (x) VALUES (1), (2);
    CREATE SEQUENCE never; CREATE SEQUENCE set_back; SELECT setval('set_back', 77, false);
    CREATE TABLE parted (day int, x text) PARTITION BY RANGE (day);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
    CREATE TABLE parted_2 PARTITION OF parted DEFAULT;
    INSERT INTO parted VALUES (1, 'a'), (99, 'b');
    CREATE TABLE child (extra int) INHERITS (plain); INSERT INTO child (id, extra) VALUES (1000, 1);
    CREATE UNLOGGED TABLE unlogged (x int); INSERT INTO unlogged VALUES (1);
    CREATE TABLE "Mixed Case.with dot" ("t" int, "a=b" text); INSERT INTO "Mixed Case.with dot" VALUES (1, 'x');
    CREATE SCHEMA "s'q""uoted"; CREATE TABLE "s'q""uoted"."naïve ☃" (); INSERT INTO "s'q""uoted"."naïve ☃" DEFAULT VALUES;
    CREATE SEQUENCE "s'q""uoted"."it's \\ one"; SELECT nextval($$"s'q""uoted"."it's \\ one"$$);
    CREATE TABLE empty (x int);
    CREATE TABLE secret (x int); ALTER TABLE secret ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON secret USING (x > 1);
    INSERT INTO secret VALUES (1), (2);
    CREATE TABLE choice (x varchar(9) CHECK (x IN ('a', 'b')));
    CREATE VIEW chosen AS SELECT x FROM choice WHERE x IN ('a', 'b');
    CREATE MATERIALIZED VIEW old AS SELECT count(*) FROM empty e, plain p; CREATE MATERIALIZED VIEW unfilled AS SELECT 1 WITH NO DATA;
    CREATE MATERIALIZED VIEW stale AS SELECT x FROM choice; INSERT INTO choice VALUES ('a');
    CREATE EXTENSION hstore; CREATE TABLE pairs (h hstore); INSERT INTO pairs VALUES ('a=>1');
    SELECT lo_from_bytea(4711, 'large'); SELECT lo_put(4711, 3000000, 'far behind a hole'); SELECT lo_create(4712);
    SELECT lo_from_bytea(4713, convert_to(repeat('x', 2000000), 'UTF8'));
    CREATE FUNCTION loud() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER loud ON ddl_command_end EXECUTE FUNCTION loud();
"""


def tables(cluster: Cluster, database: str = "app") -> Dict[str, Dict[str, Any]]:
    with cluster.admin.session(database) as connection:
        return rows_of(connection)


def test_every_kind_comes_back(cluster: Cluster) -> None:
    database = cluster.make(sql=EVERY_KIND)
    image, facts = cluster.dump(database)
    target = cluster.target()
    target.load(image, "", facts, "beside")

    counts = {name: value["rows"] for name, value in facts["tables"].items()}
    assert counts == {
        "public.plain": 53,
        "public.identity": 2,
        "public.parted_1": 1,
        "public.parted_2": 1,
        "public.child": 1,
        "public.unlogged": 1,
        "public.Mixed Case.with dot": 1,
        "s'q\"uoted.naïve ☃": 1,
        "public.empty": 0,
        "public.secret": 2,
        "public.choice": 1,
        "public.pairs": 1,
        "(large objects)": 3,
    }
    assert facts["sequences"] == {
        "public.plain_id_seq": [53, True],
        "public.identity_id_seq": [-105, True],
        "public.never": [1, False],
        "public.set_back": [77, False],
        "s'q\"uoted.it's \\ one": [1, True],
    }
    assert target.difference(facts, "beside") == ""
    assert cluster.text("beside", "--data-only", "--inserts") == cluster.text("app", "--data-only", "--inserts")
    # The same again from the copy: a restored database differs from its set in nothing, however the server words a condition.
    cluster.sql("DROP DATABASE app; ALTER DATABASE beside RENAME TO app")
    assert target.difference(facts) == ""


CHANGES = (
    "UPDATE plain SET text = 'other' WHERE id = 7",
    "UPDATE plain SET text = '' WHERE text IS NULL",
    'UPDATE "Mixed Case.with dot" SET "a=b" = \'y\'',
    "DELETE FROM empty; INSERT INTO empty VALUES (1)",
    "SELECT lo_put(4711, 1, 'X')",
    "SELECT lo_unlink(4712)",
    "SELECT lo_put(4713, 1999999, 'y')",
    "SELECT nextval('never')",
    "SELECT setval('set_back', 78, false)",
    "ALTER TABLE empty ADD y int",
    "GRANT SELECT ON empty TO PUBLIC",
    "CREATE OR REPLACE VIEW chosen AS SELECT x FROM choice WHERE x IN ('a', 'c')",
    "UPDATE secret SET x = 3 WHERE x = 1",
    "COMMENT ON DATABASE app IS 'x'",
    "ALTER DATABASE app SET work_mem = '5MB'",
    "REVOKE CONNECT ON DATABASE app FROM PUBLIC",
)


def test_every_change_is_seen(cluster: Cluster) -> None:
    database = cluster.make(sql=EVERY_KIND)
    facts = cluster.dump(database)[1]
    assert database.is_as(facts)
    for change in CHANGES:
        cluster.sql(change, "app")
        assert not database.is_as(facts), change
        assert cluster.target().difference(facts), change
        facts = cluster.dump(database)[1]
    assert database.is_as(facts)


def test_rows_have_no_order(cluster: Cluster) -> None:
    cluster.make("one", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
    cluster.make("two", "CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n ORDER BY n % 7, -n")
    assert tables(cluster, "one") == tables(cluster, "two")


def test_rows_that_an_extension_left_to_the_user_count(cluster: Cluster) -> None:
    cluster.make(
        sql="""
        CREATE EXTENSION hstore; CREATE TABLE jobs (x int); CREATE TABLE own (x int); CREATE SEQUENCE ticks; SELECT nextval('ticks');
        ALTER EXTENSION hstore ADD TABLE jobs; ALTER EXTENSION hstore ADD TABLE own; ALTER EXTENSION hstore ADD SEQUENCE ticks;
        UPDATE pg_extension SET extconfig = ARRAY['jobs'::regclass::oid], extcondition = ARRAY['WHERE x > 1'] WHERE extname = 'hstore';
        INSERT INTO jobs VALUES (1), (2), (3);
        """
    )
    assert {name: value["rows"] for name, value in tables(cluster).items()} == {"public.jobs": 2}
    with cluster.admin.session("app") as connection:
        assert sequences_of(connection) == {}


def test_code_of_a_tables_owner_does_not_run_as_the_one_who_reads(cluster: Cluster) -> None:
    cluster.sql("CREATE ROLE mallory; CREATE ROLE trusted")
    database = cluster.make(
        options="OWNER mallory",
        sql="""
        SET ROLE mallory; CREATE SCHEMA m; CREATE TABLE m.t (a int); INSERT INTO m.t VALUES (1);
        CREATE FUNCTION m.f(m.t) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'ran as %', current_user; END$$;
        CREATE CAST (m.t AS text) WITH FUNCTION m.f(m.t);
        """,
    )
    facts = cluster.dump(database)[1]
    cluster.sql("UPDATE m.t SET a = 2", "app")
    assert not database.is_as(facts)


def connect(cluster: Cluster, database: str = "app") -> Any:
    return psycopg2.connect(host=cluster.server.host, port=cluster.server.port, user="postgres", dbname=database)


def test_fingerprint_moves_with_each_commit_and_only_then(cluster: Cluster) -> None:
    database = cluster.make(sql="CREATE TABLE t (x int)")
    first, second = connect(cluster), connect(cluster)
    first.cursor().execute("INSERT INTO t VALUES (1)")
    second.cursor().execute("INSERT INTO t VALUES (2)")
    before = database.fingerprint()
    cluster.sql("SELECT count(*) FROM t; CHECKPOINT", "app")
    assert database.fingerprint() == before
    seen = [before]
    for connection in (second, first):
        connection.commit()
        assert database.fingerprint() not in seen
        seen.append(database.fingerprint())
        connection.close()
    assert database.fingerprint() == seen[-1]


def test_a_dump_is_of_one_moment(cluster: Cluster) -> None:
    """Two tables that agree in every commit, and a sequence that never stands still."""
    database = cluster.make(
        sql="CREATE TABLE a (id serial, x int); CREATE TABLE b (x int); CREATE TABLE padding AS SELECT repeat('x', 500) FROM generate_series(1, 30000)"
    )
    done: List[int] = []
    stop = threading.Event()

    def write() -> None:
        connection = connect(cluster)
        while not stop.is_set():
            with connection, connection.cursor() as cursor:
                cursor.execute("INSERT INTO a (x) VALUES (%s); INSERT INTO b VALUES (%s)", [len(done), len(done)])
            done.append(0)
        connection.close()

    # A process reads the database as another user by changing its own, which is why only the writer is a thread.
    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(done) < 20:
            stop.wait(0.01)
        before = len(done)
        image, facts = cluster.dump(database)
        assert len(done) > before
    finally:
        stop.set()
        writer.join()
    assert facts["tables"]["public.a"]["rows"] == facts["tables"]["public.b"]["rows"] >= before
    cluster.target().load(image, "", facts, "beside")
    assert cluster.sql("SELECT count(*) FROM a FULL JOIN b USING (x) WHERE a IS NULL OR b IS NULL", "beside") == "0"


def test_a_lock_of_the_application_ends_a_dump_in_time(cluster: Cluster) -> None:
    database = cluster.make(sql="CREATE TABLE t (x int)")
    facts = cluster.dump(database)[1]
    holder, target = connect(cluster), cluster.file()
    holder.cursor().execute("LOCK TABLE t")
    with pytest.raises(PostgresError, match="lock timeout"):
        database.copy(target)
    assert not os.path.exists(target)
    with pytest.raises(PostgresError, match="statement timeout"):
        database.is_as(facts)
    holder.close()


def test_an_image(cluster: Cluster) -> None:
    database = cluster.make(sql="CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 2000) n")
    image, facts = cluster.dump(database)
    assert stat.S_IMODE(os.stat(image).st_mode) == 0o600
    assert (facts["bytes"], facts["database"], facts["schema_version"]) == (os.path.getsize(image), "app", "")
    assert facts["owners"] == ["postgres"]
    assert facts["server_version"] // 10000 == cluster.server.major
    assert all(check.ok for check in check_image(image, facts))
    with open(image, "rb") as stream:
        content = stream.read()
    for offset in range(0, len(content), len(content) // 40):
        damaged = cluster.file("-")
        with open(damaged, "wb") as stream:
            stream.write(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        assert [check.check for check in check_image(damaged, facts) if not check.ok] == ["sha256"]
    with open(damaged, "wb") as stream:
        stream.write(content[: len(content) // 2])
    assert {check.check for check in check_image(damaged, facts) if not check.ok} == {"size", "sha256"}
    half = {**facts, "bytes": os.path.getsize(damaged), "sha256": hash_of(damaged)}
    assert [check.check for check in check_image(damaged, half) if not check.ok] == ["pg_restore"]
    with pytest.raises(FileExistsError):
        database.copy(image)
    with open(image, "rb") as stream:
        assert stream.read() == content


def hash_of(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def test_globals(cluster: Cluster) -> None:
    cluster.sql(f'CREATE ROLE app LOGIN PASSWORD \'{PASSWORD}\'; CREATE ROLE "Group; 1"; GRANT "Group; 1" TO app')
    database = cluster.make(options="OWNER app")
    path, plain = cluster.file(), cluster.file()
    assert database.copy_beside(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    assert 'GRANT "Group; 1" TO app' in text
    assert "SCRAM-SHA-256$" in text
    assert PASSWORD not in text
    assert text.encode() == database.globals_sql()
    assert cluster.database(login=cluster.login("app")).copy_beside(plain)
    with open(plain, encoding="utf-8") as stream:
        text = stream.read()
    assert "CREATE ROLE app;" in text
    assert "SCRAM" not in text


def test_the_schemas_version(cluster: Cluster) -> None:
    cluster.make(sql="CREATE SCHEMA shop; CREATE TABLE shop.version (n int); INSERT INTO shop.version VALUES (7)")
    cluster.sql("ALTER DATABASE app SET search_path TO shop")
    for query in ("SELECT n FROM version", "SELECT n FROM shop.version"):
        assert cluster.dump(cluster.database(schema_query=query))[1]["schema_version"] == "7"
    for query, words in (
        ("SELECT n FROM version WHERE false", "0 rows"),
        ("SELECT 1, 2", "instead of one value"),
        ("SELECT NULL", "instead of one value"),
        ("SELECT nothing", 'column "nothing" does not exist'),
    ):
        with pytest.raises(PostgresError, match=words):
            cluster.database(schema_query=query).require()


def test_what_may_not_be_read_fails_the_dump(cluster: Cluster) -> None:
    cluster.sql(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    cluster.make(options="OWNER app", sql="CREATE TABLE closed (x int); INSERT INTO closed VALUES (1)")
    target = cluster.file()
    with pytest.raises(PostgresError, match="permission denied for table closed"):
        cluster.database(login=cluster.login("app")).copy(target)
    cluster.sql("GRANT SELECT ON closed TO app; ALTER TABLE closed ENABLE ROW LEVEL SECURITY", "app")
    with pytest.raises(PostgresError, match="row-level security"):
        cluster.database(login=cluster.login("app")).copy(target)
    assert not os.path.exists(target)


def test_names(cluster: Cluster) -> None:
    for name in (' it\'s "quoted" \\', "a=b", "postgresql://☃", "x" * 63):
        check_name(name)
        database = cluster.make(name, "CREATE TABLE t (x int); INSERT INTO t VALUES (1)")
        database.require()
        image, facts = cluster.dump(database)
        target = cluster.target(name)
        names = target.names("label")
        assert all(len(beside.encode()) <= 63 for beside in names)
        target.load(image, "", facts, names.staged)
        live, staged = target.identity(name), target.identity(names.staged)
        assert live is not None
        assert staged is not None
        target.rename([(name, names.aside, live), (names.staged, name, staged)], names.aside)
        assert (target.identity(name), target.identity(names.aside)) == (staged, live)
        target.drop(names.aside)
        assert database.is_as(facts)
    for name in ("x" * 64, "ä" * 32, "", "a\0b"):
        with pytest.raises(PostgresError):
            cluster.database(name).require()
