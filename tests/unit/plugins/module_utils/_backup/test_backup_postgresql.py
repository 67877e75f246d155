# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets with a database in a real PostgreSQL server: saved, restored beside the live one, exchanged, killed anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql import contents, database, restore
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import SOAK, App, flip_bit, plan_of
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

PASSWORD = "p@ss:w/rd%41"
QUOTED = "p%40ss%3Aw%2Frd%2541"
DATABASE = "app data"

TABLES = """
    CREATE TABLE note (id serial PRIMARY KEY, text text NOT NULL);
    CREATE TABLE tag (note_id integer REFERENCES note(id), label text);
    CREATE TABLE version (number text);
    INSERT INTO version VALUES ('2');
    INSERT INTO note (text) SELECT 'note ' || n FROM generate_series(1, 300) n;
    INSERT INTO tag SELECT id, 'tag' FROM note;
"""


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


class PostgresApp(App):
    """The application with its database in a server; a role owns it and logs in with the URL in ``.env``."""

    def __init__(self, top: str, server: postgres.Server) -> None:
        super().__init__(top)
        self.server = server
        self.item: Dict[str, Any] = {
            "name": "app",
            "engine": "postgresql",
            "database": DATABASE,
            "host": server.host,
            "port": server.port,
            "user": server.superuser,
            "schema_query": "SELECT number FROM public.version",
            "url_variable": "DATABASE_URL",
        }
        self.params["databases"] = [self.item]

    def build(self, rows: int = 0) -> PostgresApp:
        super().build()
        os.unlink(self.at("data/app.db"))
        self.write_env(QUOTED)
        self.reset()
        self.server.run("DROP ROLE IF EXISTS clerk; DROP ROLE IF EXISTS app")
        self.server.run(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE clerk")
        self.server.run(f'CREATE DATABASE "{DATABASE}" OWNER app')
        self.sql(f"SET ROLE app; {TABLES} GRANT SELECT ON note TO clerk")
        self.server.run(f'ALTER DATABASE "{DATABASE}" SET search_path TO public, "$user"; COMMENT ON DATABASE "{DATABASE}" IS \'it\'\'s\'')
        return self

    def write_env(self, quoted: str) -> None:
        path = self.write(
            ".env", f"TOKEN=1\nDATABASE_URL=postgresql+psycopg2://app:{quoted}@127.0.0.1:{self.server.port}/app%20data\n", 0o600
        )
        os.utime(path, (1000000000, 1000000000))

    def reset(self) -> None:
        for name in self.databases():
            self.server.run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def sql(self, text: str) -> str:
        return self.server.run(text, DATABASE)

    def databases(self) -> List[str]:
        return self.server.run("SELECT datname FROM pg_database WHERE datname LIKE 'app%' ORDER BY 1").splitlines()

    def dump(self, whole: bool = True) -> List[str]:
        """What pg_dump says of the live database, without the order of rows, which a restore does not keep."""
        argv = [str(self.server.bin / "pg_dump"), "-h", self.server.host, "-p", str(self.server.port), "-U", self.server.superuser]
        done = subprocess.run([*argv, *["--create"] * whole, "-d", DATABASE], capture_output=True, check=True, cwd="/")
        return sorted(line for line in done.stdout.decode().splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


@pytest.fixture
def app(tmp_path: Path, server: postgres.Server) -> Iterator[PostgresApp]:
    made = PostgresApp(str(tmp_path), server).build()
    yield made
    made.reset()


def test_a_set_holds_files_and_database_and_comes_back_after_everything_is_gone(app: PostgresApp) -> None:
    planned, made = app.backup(check=True), app.backup()
    assert plan_of(planned) == plan_of(made)
    assert made["set"]["schema_versions"] == {"app": "2"}
    assert made["set"]["verified"] == "content"
    files, rows = app.live(), app.dump()
    assert not app.backup()["changed"]
    app.destroy()
    app.reset()
    app.server.run("DROP ROLE clerk; DROP ROLE app")
    foretold, result = app.restore(check=True), app.restore()
    assert plan_of(foretold) == plan_of(result)
    assert {"step": "make role", "target": "clerk"}.items() <= next(step for step in result["plan"] if step["target"] == "clerk").items()
    assert app.live() == files
    assert app.dump() == rows
    assert not app.restore()["changed"]
    # The role has the password of then.
    env = {**os.environ, "PGPASSWORD": PASSWORD}
    argv = [str(app.server.bin / "psql"), "-h", "127.0.0.1", "-p", str(app.server.port), "-U", "app", "-d", DATABASE, "-Atc"]
    assert subprocess.run([*argv, "SELECT count(*) FROM note"], env=env, capture_output=True, check=True, cwd="/").stdout == b"300\n"


def test_another_database_of_the_server_is_no_change(app: PostgresApp) -> None:
    app.backup()
    app.server.run("CREATE TABLE elsewhere (n int); INSERT INTO elsewhere VALUES (1); DROP TABLE elsewhere")
    assert not app.backup()["changed"]
    app.sql("UPDATE note SET text = 'other' WHERE id = 7")
    result = app.backup()
    assert [step["target"] for step in result["plan"]] == ["app", "<new>"]


def test_how_tables_differ(app: PostgresApp) -> None:
    def differing(**options: Any) -> Dict[str, Any]:
        (found,) = app.diff(**options)["databases"]
        tables = [(table["name"], table["rows"], table["other_rows"], table["content"]) for table in found["tables"]]
        return {"state": found["state"], "what": found["what"], "tables": tables}

    same = {"state": "same", "what": [], "tables": []}
    first = app.backup()["set"]["id"]
    assert differing() == same
    os.unlink(os.path.join(app.store, "cache/fingerprints.json"))
    assert differing() == same
    # As many rows as before, but another one.
    app.sql("UPDATE note SET text = 'other' WHERE id = 1; DELETE FROM tag WHERE note_id = 2; CREATE TABLE empty (id integer)")
    wanted = {
        "state": "differs",
        "what": ["schema"],
        "tables": [("public.empty", None, 0, "differs"), ("public.note", 300, 300, "differs"), ("public.tag", 300, 299, "differs")],
    }
    assert differing() == wanted
    second = app.backup()["set"]["id"]
    assert differing(which=first, other=second) == wanted
    assert differing() == same
    # Not where a path is asked for; and what can't be asked hides no file.
    assert app.diff(path=app.at("projects"))["databases"] == []
    app.write("config/new", "x")
    os.unlink(os.path.join(app.store, "cache/fingerprints.json"))
    app.item["port"] = 1
    result = app.diff()
    assert (result["databases"][0]["state"], result["counts"]["added"], result["is_equal"]) == ("unknown", 1, False)
    assert result["databases"][0]["error"] in result["warnings_"][0]
    # Which set has which rows.
    versions = [app.info(table=f"app.{name}")["versions"] for name in ("note", "public.note", "tag")]
    assert versions[0] == versions[1]
    assert [[(one["rows"], one["last_set"]) for one in found] for found in versions[1:]] == [
        [(300, second), (300, first)],
        [(299, second), (300, first)],
    ]
    assert versions[0][0]["sum"] != versions[0][1]["sum"]
    tables = app.info(first, contents=True)["contents"]["databases"][0]["tables"]
    assert [(table["name"], table["rows"]) for table in tables] == [("public.note", 300), ("public.tag", 300), ("public.version", 1)]


def test_forth_and_back_and_purged(app: PostgresApp) -> None:
    app.backup()
    saved = app.dump()
    app.sql("DELETE FROM tag; DELETE FROM note WHERE id < 100; CREATE TABLE later (n int)")
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    later, files = app.dump(), app.live()
    assert app.restore(state="staged")["changed"]
    assert not app.restore(state="staged")["changed"]
    assert app.dump() == later
    result = app.restore()
    assert app.dump() == saved
    aside = [line for line in result["aside"] if line.startswith("database ")]
    assert [f"database {name}" for name in app.databases() if name != DATABASE] == aside
    app.restore(state="rolled_back")
    assert app.dump() == later
    assert app.live() == files
    app.restore()
    assert app.dump() == saved
    assert len(app.databases()) == 3
    app.restore(state="purged")
    assert app.databases() == [DATABASE]
    assert not app.restore(state="purged")["changed"]


def other_password(app: PostgresApp) -> None:
    app.server.run("ALTER ROLE app PASSWORD 'new one'")
    app.write_env("new%20one")


def test_an_env_that_can_not_log_in_is_refused_before_anything_is_touched(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    before = (app.live(), app.databases(), os.listdir(app.root))
    for check in (True, False):
        with pytest.raises(OpskitError, match=r"could not log in to its database app data.*password authentication failed") as caught:
            app.restore(check=check)
        assert PASSWORD not in str(caught.value)
        assert QUOTED not in str(caught.value)
    assert (app.live(), app.databases(), os.listdir(app.root)) == before


def test_the_live_url_is_kept(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    app.write(".env", Path(app.at(".env")).read_text() + "LATER=1\n", 0o600)
    app.sql("DELETE FROM tag")
    assert app.restore(credentials="keep_live")["changed"]
    assert "new%20one@" in Path(app.at(".env")).read_text()
    assert "LATER" not in Path(app.at(".env")).read_text()
    assert not app.restore(credentials="keep_live")["changed"]


def test_the_role_gets_the_password_of_the_set_and_back(app: PostgresApp) -> None:
    app.backup()
    other_password(app)
    planned, result = app.restore(check=True, credentials="set_role"), app.restore(credentials="set_role")
    assert plan_of(planned) == plan_of(result)
    assert ("set password", "app") in [(step["step"], step["target"]) for step in result["plan"]]
    journal = Path(app.state_dir, "restore.json").read_text()
    assert PASSWORD not in journal
    assert "SCRAM" not in journal
    assert not app.restore(credentials="set_role")["changed"]
    app.restore(state="rolled_back")
    # The .env from before is back, and the role takes its password.
    app.restore(check=True, credentials="keep_live")


def test_no_secret_in_any_result(app: PostgresApp) -> None:
    said = [app.backup(), app.info(), app.verify(), app.restore(check=True)]
    app.sql("DELETE FROM tag")
    said += [app.restore(), app.restore(state="rolled_back")]
    text = json.dumps(said)
    assert not any(secret in text for secret in (PASSWORD, QUOTED, "SCRAM", "TOKEN=1"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda app: app.item.update(database="x" * 64), "has 64 bytes"),
        (lambda app: app.item.update(admin_user="nobody_known", admin_os_user=""), "no password supplied"),
        (lambda app: app.item.update(port=1), "port 1|Connection refused|No such file"),
        (lambda app: app.params.update(databases=[]), "names no server"),
    ],
    ids=["name too long", "unknown admin", "no server", "not described"],
)
def test_refused_before_anything_is_touched(app: PostgresApp, spoil: Callable[[PostgresApp], None], words: str) -> None:
    app.backup()
    app.sql("DELETE FROM tag")
    before = (app.dump(), app.live(), app.databases(), sorted(os.listdir(app.root)))
    spoil(app)
    for check in (True, False):
        with pytest.raises(OpskitError, match=words):
            app.restore(check=check)
    app.item.update(database=DATABASE)
    assert (app.dump(), app.live(), app.databases(), sorted(os.listdir(app.root))) == before


def test_a_name_of_63_bytes(app: PostgresApp) -> None:
    name = "app" + "é" * 30
    assert len(name.encode()) == 63
    app.server.run(f'ALTER DATABASE "{DATABASE}" RENAME TO "{name}"')
    app.item.update(database=name, url_variable="")
    app.backup()
    app.server.run("DELETE FROM tag", name)
    app.restore()
    assert app.server.run("SELECT count(*) FROM tag", name) == "300"
    app.restore(state="purged")
    assert app.databases() == [name]


@pytest.mark.parametrize("kind", ["dump.", "sql."])
def test_a_flipped_bit_is_found_and_heals(app: PostgresApp, kind: str) -> None:
    app.backup()
    damaged = app.objects(kind)[0]
    flip_bit(damaged)
    assert app.verify()["failure"] != ""
    with pytest.raises(OpskitError, match="there is no verified set"):
        app.restore()
    result = app.backup()
    assert result["changed"]
    assert app.verify()["failure"] == ""


def test_by_hand(app: PostgresApp, tmp_path: Path) -> None:
    """With sh, tar, zstd, sha256sum and PostgreSQL's own programs alone."""
    made = app.backup()
    to = tmp_path / "by hand"
    done = subprocess.run(["sh", app.set_file(made["set"]["id"], "restore.sh"), str(to)], capture_output=True, check=True)
    assert b"pg_restore --exit-on-error --dbname='app data' postgresql.dump" in done.stdout
    rows = app.dump(whole=False)
    app.reset()
    where = ["-h", app.server.host, "-p", str(app.server.port), "-U", app.server.superuser]
    subprocess.run([app.server.bin / "createdb", *where, "--template=template0", "--owner=app", DATABASE], check=True, cwd="/")
    dump = to / "databases/app/postgresql.dump"
    subprocess.run([app.server.bin / "pg_restore", *where, "--exit-on-error", f"--dbname={DATABASE}", str(dump)], check=True, cwd="/")
    assert app.dump(whole=False) == rows
    assert "CREATE ROLE app;" in (to / "databases/app/globals.sql").read_text()
    assert (to / "databases/app/globals.sql").stat().st_mode & 0o077 == 0


# killed ---------------------------------------------------------------------------------------------


def calls_in(work: Callable[[], Any], kill_at: int = 0) -> int:
    """Run something in a child and return how often it asked a server; 0 where it was killed in place of the n-th time."""
    reader, writer = os.pipe()

    def child() -> None:
        seen = 0
        for module in (contents, database, restore):
            real = module.ask

            def counted(*args: Any, real: Any = real) -> Any:
                nonlocal seen
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            vars(module)["ask"] = counted
        work()
        os.write(writer, str(seen).encode())

    code = in_child(child)
    os.close(writer)
    with os.fdopen(reader) as stream:
        total = stream.read()
    assert code == (-signal.SIGKILL if kill_at else 0)
    return int(total or 0)


def points(total: int, count: int) -> List[int]:
    assert total > count, "the server was hardly asked"
    return list(range(1, total + 1)) if SOAK else sorted({1 + round(number * (total - 1) / (count - 1)) for number in range(count)})


@pytest.mark.parametrize("state", ["restored", "rolled_back"])
def test_killed_anywhere(app: PostgresApp, state: str) -> None:
    """The database is all of one state at any time, and one more run of the same call finishes."""
    app.backup()
    saved, saved_files = app.dump(), app.live()
    app.sql("DELETE FROM tag; DELETE FROM note WHERE id < 100")
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    later, later_files = app.dump(), app.live()
    if state == "rolled_back":
        app.restore()
    wanted = (saved, saved_files) if state == "restored" else (later, later_files)
    other = "rolled_back" if state == "restored" else "restored"
    total = calls_in(lambda: app.restore(state=state))
    assert (app.dump(), app.live()) == wanted
    recovered = 0
    for number in points(total, 9):
        app.restore(state=other)
        if state == "restored":
            app.restore(state="purged")
        calls_in(lambda: app.restore(state=state), number)
        allowed = app.server.run(f"SELECT datallowconn FROM pg_database WHERE datname = '{DATABASE}'")
        if allowed == "t":
            assert app.dump() in (saved, later), number
        result = app.restore(state=state)
        recovered += result["recovered"] != ""
        assert (app.dump(), app.live()) == wanted, number
        assert app.server.run(f"SELECT datallowconn FROM pg_database WHERE datname = '{DATABASE}'") == "t"
        assert not app.restore(state=state)["changed"] or state == "rolled_back"
    assert recovered > 0
    app.restore(state="purged")
    assert app.databases() == [DATABASE]


def test_killed_backup(app: PostgresApp) -> None:
    total = calls_in(app.backup)
    for number in points(total, 6):
        app.sql(f"INSERT INTO version SELECT '2' WHERE false; INSERT INTO note (text) VALUES ('{number}')")
        before = [one["id"] for one in app.info()["sets"]]
        calls_in(app.backup, number)
        assert app.verify(set=before[0], check=True)["failure"] == ""
        result = app.backup()
        assert result["set"]["verified"] == "content"
        assert app.leftovers() == []
        # The dump of a run that was killed does not go on by itself.
        sessions = app.server.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opskit'")
        assert sessions == "0"


def test_sessions_that_come_back_do_not_keep_it_from_being_exchanged(app: PostgresApp) -> None:
    app.backup()
    app.sql("DELETE FROM tag")
    program = (
        "import psycopg2, sys, time\n"
        "end = time.monotonic() + 60\n"
        "print('there', flush=True)\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        psycopg2.connect(sys.argv[1]).cursor().execute('SELECT pg_sleep(0.01)')\n"
        "    except psycopg2.Error:\n"
        "        pass\n"
    )
    where = f"host=127.0.0.1 port={app.server.port} user=app password='{PASSWORD}' dbname='{DATABASE}'"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    with subprocess.Popen([sys.executable, "-c", program, where], stdout=subprocess.PIPE, env=env) as busy:
        assert busy.stdout
        assert busy.stdout.readline() == b"there\n"
        try:
            app.restore(database_timeout=20)
        finally:
            busy.kill()
    assert app.sql("SELECT count(*) FROM tag") == "300"


def test_a_login_of_its_own(app: PostgresApp) -> None:
    """A role that may read, by a passfile, makes backups; it can't restore, and that is said before anything is touched."""
    app.server.run("DROP ROLE IF EXISTS saver; CREATE ROLE saver LOGIN PASSWORD 'x' IN ROLE pg_read_all_data")
    passfile = app.write("../passfile", "*:*:*:saver:x\n", 0o600)
    app.item.update(host="127.0.0.1", user="saver", passfile=os.path.realpath(passfile))
    app.backup()
    app.sql("DELETE FROM tag")
    before = (app.dump(), app.live(), app.databases())
    with pytest.raises(OpskitError, match="may not make databases"):
        app.restore()
    assert (app.dump(), app.live(), app.databases()) == before
