# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One part of an application comes back from a set, and nothing else moves: both engines, all policies, killed anywhere."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application.restore_scope import Record, RestoreScope
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.rows import RowMerge, RowSet, predicate, uses_value
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.rows import SqliteRows
from ansible_collections.opskit.runbooks.tests.shared import postgres
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    SOAK,
    App,
    killed_at,
    plan_of,
)

SCHEMA = """
    CREATE TABLE users (id {id}, name varchar(100) NOT NULL UNIQUE);
    CREATE TABLE projects (id {id}, slug varchar(100) NOT NULL UNIQUE, title varchar(100), user_id integer REFERENCES users(id));
    CREATE TABLE usage (id {id}, project_id integer NOT NULL REFERENCES projects(id) ON DELETE CASCADE, day varchar(20), tokens integer);
    CREATE TABLE preferences (user_id integer REFERENCES users(id), key varchar(50), value {json}, PRIMARY KEY (user_id, key));
    CREATE TABLE providers (id {id}, name varchar(100) UNIQUE, settings {json}, api_key varchar(100));
    CREATE TABLE audit (what varchar(100));
    CREATE TABLE version (number varchar(10));
    INSERT INTO version VALUES ('2');
    INSERT INTO users (name) VALUES ('ann'), ('bob');
    INSERT INTO projects (slug, title, user_id) VALUES ('a', 'A', 1), ('b', 'B', 2), ('c 100%', 'It''s', NULL);
    INSERT INTO usage (project_id, day, tokens) VALUES (1, 'mon', 10), (1, 'tue', 20), (2, 'mon', 5), (3, 'mon', 7);
    INSERT INTO preferences VALUES (1, 'theme', '"dark"'), (1, 'page', '20'), (2, 'theme', '"light"');
    INSERT INTO providers (name, settings, api_key) VALUES ('one', '{{"a":  1}}', 'canary-1'), ('two', '{{}}', 'canary-2');
"""
# Each copy is a database that is made and removed. What is asked of Python is the same in each, so one has to do in the usual size.
ENGINES = ["sqlite", "postgresql"] if SOAK or sys.version_info < (3, 12) else ["sqlite"]
TABLES = ("users", "projects", "usage", "preferences", "providers", "audit")

ROWS_OF_PROJECT = [
    {
        "table": "users",
        "identity": ["name"],
        "where": "id IN (SELECT user_id FROM projects WHERE slug = :value)",
        "restore": False,
    },
    {"table": "usage", "identity": ["project_id", "day"], "where": "project_id IN (SELECT id FROM projects WHERE slug = :value)"},
    {"table": "projects", "identity": ["slug"], "where": "slug = :value -- that one"},
]


class Partial(App):
    """An application with projects, users, preferences and providers."""

    engine = "sqlite"

    def build(self, rows: int = 0) -> Partial:
        super().build(rows=1)
        os.unlink(self.at("data/app.db"))
        self.make_database()
        os.makedirs(self.at("projects/c 100%"))
        self.write("projects/c 100%/n", "c\n")
        self.params["scopes"] = {
            "project": {"value": "required", "paths": [self.at("projects/{value}")], "rows": ROWS_OF_PROJECT},
            "config": {"paths": [self.at("config")]},
            "providers": {"rows": [{"table": "providers", "identity": ["name"]}]},
            "preferences": {
                "value": "optional",
                "rows": [
                    {"table": "users", "identity": ["name"], "where": ":value IS NULL OR name = :value", "restore": False},
                    {
                        "table": "preferences",
                        "identity": ["user_id", "key"],
                        "where": ":value IS NULL OR user_id IN (SELECT id FROM users WHERE name = :value)",
                    },
                ],
            },
        }
        return self

    def make_database(self) -> None:
        self.params["databases"][0]["schema_query"] = "SELECT number FROM version"
        with closing(sqlite3.connect(self.at("data/app.db"))) as connection:
            connection.execute("PRAGMA journal_mode=wal")
            connection.executescript(SCHEMA.format(id="INTEGER PRIMARY KEY AUTOINCREMENT", json="TEXT"))

    def sql(self, text: str) -> None:
        with closing(sqlite3.connect(self.at("data/app.db"))) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.executescript(text)

    def ask(self, text: str) -> List[List[str]]:
        with closing(sqlite3.connect(self.at("data/app.db"))) as connection:
            return [[str(value) for value in row] for row in connection.execute(text)]

    def rows(self) -> Dict[str, List[List[str]]]:
        return {table: sorted(self.ask(f"SELECT * FROM {table}")) for table in TABLES}

    def definitions(self) -> Any:
        return sorted(self.ask("SELECT name, sql FROM sqlite_master"))

    def leftover_databases(self) -> List[str]:
        return []

    def remove(self) -> None:
        """Nothing outlives the folder."""


class PostgresPartial(Partial):
    engine = "postgresql"

    def __init__(self, top: str, server: postgres.Server) -> None:
        super().__init__(top)
        self.server = server
        item = {"host": server.host, "port": server.port, "user": server.superuser, "schema_query": "SELECT number FROM public.version"}
        self.params["databases"] = [{"name": "app", "engine": "postgresql", "database": "app data", **item}]

    def make_database(self) -> None:
        self.remove()
        self.server.run("CREATE ROLE app")
        self.server.run('CREATE DATABASE "app data" OWNER app')
        self.sql("SET ROLE app;" + SCHEMA.format(id="integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY", json="json"))

    def sql(self, text: str) -> None:
        self.server.run(text, "app data")

    def ask(self, text: str) -> List[List[str]]:
        return [line.split("|") for line in self.server.run(text, "app data").splitlines()]

    def definitions(self) -> Any:
        return self.ask("SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1")

    def leftover_databases(self) -> List[str]:
        return self.server.run("SELECT datname FROM pg_database WHERE datname LIKE 'app data_%'").splitlines()

    def remove(self) -> None:
        for name in self.server.run("SELECT datname FROM pg_database WHERE datname LIKE 'app data%'").splitlines():
            self.server.run(f'DROP DATABASE "{name}" WITH (FORCE)')
        self.server.run("DROP ROLE IF EXISTS app")


@pytest.fixture(scope="module")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as running:
        yield running


@pytest.fixture(params=ENGINES)
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Partial]:
    if request.param == "sqlite":
        made: Partial = Partial(str(tmp_path)).build()
    else:
        made = PostgresPartial(str(tmp_path), request.getfixturevalue("server")).build()
    try:
        yield made
        assert made.leftover_databases() == []
        assert made.leftovers() == []
        assert not os.path.exists(os.path.join(made.state_dir, "restore_partial.json"))
    finally:
        made.remove()


def files(app: Partial, *without: str) -> Dict[str, Any]:
    """All files with their content; times and inodes of folders move when something is put into them."""
    found = {}
    for name, seen in app.live().items():
        for path, value in seen.items():
            if not any(os.fsdecode(path).startswith(one) for one in without) and not os.fsdecode(path).endswith((".db",)):
                found[f"{name}{os.fsdecode(path)}"] = value[:3] + (value[3:6] if value[5] is not None else [])
    return found


def refused(app: Partial, *words: str, **options: Any) -> str:
    """A restore that is refused in both modes, with the same words, and changes nothing."""
    rows, seen, said = app.rows(), files(app), []
    for check in (True, False):
        with pytest.raises(OpskitError) as error:
            app.restore_scope(check=check, **options)
        said.append(str(error.value))
    assert (app.rows(), files(app)) == (rows, seen)
    assert said[0] == said[1]
    for word in words:
        assert word in said[0], said[0]
    return said[0]


def honest(app: Partial, **options: Any) -> Dict[str, Any]:
    """Check, run, check, run: changed, changed, not, not, and the first two with the same plan."""
    foretold, result = app.restore_scope(check=True, **options), app.restore_scope(**options)
    assert plan_of(foretold) == plan_of(result)
    assert foretold["changed"]
    assert result["changed"]
    assert [app.restore_scope(check=check, **options)["changed"] for check in (True, False)] == [False, False]
    return result


def lose_project(app: Partial) -> None:
    app.sql("DELETE FROM usage WHERE project_id = 1; DELETE FROM projects WHERE id = 1")
    shutil.rmtree(app.at("projects/a"))


def test_a_lost_project_comes_back_with_its_folder_and_rows_and_nothing_else_moves(app: Partial) -> None:
    app.backup()
    rows, seen = app.rows(), files(app)
    lose_project(app)
    app.sql("INSERT INTO usage (project_id, day, tokens) VALUES (2, 'wed', 1); UPDATE providers SET api_key = 'new'")
    app.write("config/gateway.toml", "level = 2\n")
    now = app.rows()
    result = honest(app, scope="project", value="a")
    assert app.rows() == {
        **now,
        "projects": rows["projects"],
        "usage": sorted(now["usage"] + [row for row in rows["usage"] if row[1] == "1"]),
    }
    assert {key: value for key, value in files(app).items() if key.startswith("projects")} == {
        key: value for key, value in seen.items() if key.startswith("projects")
    }
    assert [(table["table"].split(".")[-1].strip('"'), table["inserted"], table["updated"]) for table in result["tables"]] == [
        ("projects", 1, 0),
        ("usage", 2, 0),
    ]
    # The numbers go on after what came back.
    app.sql("INSERT INTO projects (slug) VALUES ('new')")


def test_policies(app: Partial) -> None:
    app.backup()
    app.sql("UPDATE projects SET title = 'other' WHERE id = 1; DELETE FROM usage WHERE id = 2; UPDATE usage SET tokens = 99 WHERE id = 1")
    app.write("projects/a/files/1.txt", "other\n")
    os.unlink(app.at("projects/a/files/2.txt"))
    app.write("projects/a/files/new.txt", "new\n")
    said = refused(app, "rows of", "title", "tokens", "id=1", "skip", scope="project", value="a")
    assert "other" not in said
    assert "99" not in said
    with_skip = honest(app, scope="project", value="a", policy="skip")
    assert app.ask("SELECT id, tokens FROM usage WHERE project_id = 1 ORDER BY 1") == [["1", "99"], ["2", "20"]]
    assert app.ask("SELECT title FROM projects WHERE id = 1") == [["other"]]
    assert Path(app.at("projects/a/files/1.txt")).read_text() == "other\n"
    assert Path(app.at("projects/a/files/2.txt")).read_text() == "a 2\n" * 3
    assert with_skip["files"]["kept"] == [app.at("projects/a/files/1.txt")]
    result = honest(app, scope="project", value="a", policy="replace")
    assert app.ask("SELECT id, tokens FROM usage WHERE project_id = 1 ORDER BY 1") == [["1", "10"], ["2", "20"]]
    assert app.ask("SELECT title FROM projects WHERE id = 1") == [["A"]]
    assert Path(app.at("projects/a/files/1.txt")).read_text() == "a 1\n" * 2
    # What is not in the set stays.
    assert Path(app.at("projects/a/files/new.txt")).read_text() == "new\n"
    assert {name for table in result["tables"] for name in table["columns"]} == {"title", "tokens"}


def test_settings_of_providers_and_preferences_of_one_user_or_all(app: Partial) -> None:
    app.backup()
    rows = app.rows()
    app.sql("UPDATE providers SET settings = '{}', api_key = 'x'; DELETE FROM preferences")
    result = honest(app, scope="providers", policy="replace")
    assert "canary" not in json.dumps(result)
    assert app.rows()["providers"] == rows["providers"]
    assert app.rows()["preferences"] == []
    honest(app, scope="preferences", value="bob")
    assert [row[0] for row in app.rows()["preferences"]] == ["2"]
    honest(app, scope="preferences")
    assert app.rows() == rows


def test_a_row_that_is_something_else_by_now_is_refused_under_every_policy(app: Partial) -> None:
    app.backup()
    lose_project(app)
    overriding = "OVERRIDING SYSTEM VALUE " if app.engine == "postgresql" else ""
    app.sql(f"INSERT INTO projects (id, slug) {overriding}VALUES (1, 'mine')")
    for policy in ("fail", "skip", "replace"):
        refused(app, "something else by now", "slug", "id=1", scope="project", value="a", policy=policy)
    app.sql("DELETE FROM projects WHERE id = 1; INSERT INTO projects (slug) VALUES ('a')")
    for policy in ("fail", "skip", "replace"):
        refused(app, "slug is taken", "id=1 by id=", scope="project", value="a", policy=policy)


def test_rows_need_what_they_build_on(app: Partial) -> None:
    app.backup()
    lose_project(app)
    app.sql("UPDATE users SET name = 'eve' WHERE id = 1")
    refused(app, "something else by now", "name", scope="project", value="a")
    app.sql("DELETE FROM preferences WHERE user_id = 1; DELETE FROM users WHERE id = 1")
    refused(app, "that the scope builds on", "id=1", scope="project", value="a")
    app.params["scopes"]["project"]["rows"] = ROWS_OF_PROJECT[1:]
    refused(app, "refer to 1 rows of", "id=1", scope="project", value="a")


def test_numbers_go_on_after_what_came_back(app: Partial) -> None:
    app.sql("INSERT INTO users (name) SELECT 'user ' || id FROM usage")
    app.backup()
    app.sql("DELETE FROM users WHERE id > 2")
    app.sql(
        "ALTER TABLE users ALTER id RESTART WITH 3"
        if app.engine == "postgresql"
        else "UPDATE sqlite_sequence SET seq = 2 WHERE name = 'users'"
    )
    app.params["scopes"]["users"] = {"rows": [{"table": "users", "identity": ["name"]}]}
    honest(app, scope="users")
    app.sql("INSERT INTO users (name) VALUES ('last')")
    assert app.ask("SELECT id FROM users WHERE name = 'last'") == [["7"]]
    if app.engine == "postgresql":
        down = (
            "CREATE SEQUENCE down INCREMENT -1; CREATE TABLE down_from (id integer PRIMARY KEY DEFAULT nextval('down'), name text UNIQUE);"
        )
        app.sql(f"SET ROLE app; {down} INSERT INTO down_from (name) VALUES ('a'), ('b'), ('c')")
        app.params["scopes"]["down"] = {"rows": [{"table": "down_from", "identity": ["name"]}]}
        app.backup()
        app.sql("DELETE FROM down_from WHERE id < -1; ALTER SEQUENCE down RESTART WITH -2")
        honest(app, scope="down")
        app.sql("INSERT INTO down_from (name) VALUES ('d')")
        assert app.ask("SELECT id FROM down_from WHERE name = 'd'") == [["-4"]]


def test_triggers_are_at_rest_unless_told_otherwise(app: Partial) -> None:
    if app.engine == "postgresql":
        app.sql(
            "SET ROLE app; CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO public.audit VALUES (TG_OP); RETURN NULL; END$$;"
            "CREATE TRIGGER note AFTER INSERT OR UPDATE ON providers FOR EACH ROW EXECUTE FUNCTION noted();"
            "CREATE TRIGGER often AFTER INSERT ON providers FOR EACH ROW EXECUTE FUNCTION noted();"
            "ALTER TABLE providers ENABLE ALWAYS TRIGGER often; CREATE TRIGGER never AFTER INSERT ON providers EXECUTE FUNCTION noted();"
            "ALTER TABLE providers DISABLE TRIGGER never"
        )
    else:
        app.sql(
            "CREATE TRIGGER IF NOT EXISTS note AFTER INSERT ON providers BEGIN INSERT INTO audit VALUES ('INSERT'); END;"
            "CREATE TRIGGER main.\"it's\" AFTER UPDATE ON providers BEGIN INSERT INTO audit VALUES ('UPDATE'); END;"
        )
    app.backup()
    definitions = app.definitions()
    app.sql("DELETE FROM providers; DELETE FROM audit")
    honest(app, scope="providers")
    assert app.rows()["audit"] == []
    assert app.definitions() == definitions
    app.sql("DELETE FROM providers; DELETE FROM audit")
    app.params["scopes"]["providers"]["rows"][0]["fire_triggers"] = True
    honest(app, scope="providers")
    assert set(map(tuple, app.rows()["audit"])) == {("INSERT",)}
    assert app.definitions() == definitions


@pytest.mark.parametrize("deferrable", [False, True])
def test_tables_that_refer_to_each_other(app: Partial, deferrable: bool) -> None:
    later = "DEFERRABLE INITIALLY DEFERRED" if deferrable or app.engine == "sqlite" else ""
    if app.engine == "postgresql":
        app.sql(
            "SET ROLE app; CREATE TABLE hen (id integer PRIMARY KEY, egg integer); CREATE TABLE egg (id integer PRIMARY KEY, hen integer "
            f"REFERENCES hen(id)); INSERT INTO hen VALUES (1, 1); INSERT INTO egg VALUES (1, 1);"
            f"ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg(id) {later}"
        )
    else:
        app.sql(
            f"CREATE TABLE hen (id integer PRIMARY KEY, egg integer REFERENCES egg(id) {later}); CREATE TABLE egg (id integer PRIMARY KEY, "
            f"hen integer REFERENCES HEN(id)); BEGIN; INSERT INTO hen VALUES (1, 1); INSERT INTO egg VALUES (1, 1); COMMIT"
        )
    app.params["scopes"]["eggs"] = {"rows": [{"table": "egg", "identity": ["id"]}, {"table": "hen", "identity": ["id"]}]}
    app.backup()
    app.sql("UPDATE hen SET egg = NULL; DELETE FROM egg; DELETE FROM hen")
    if app.engine == "postgresql" and not deferrable:
        refused(app, "refer to each other", "hen", "egg", scope="eggs")
    else:
        honest(app, scope="eggs")
        assert app.ask("SELECT hen.egg, egg.hen FROM hen, egg") == [["1", "1"]]


def test_a_set_says_what_it_holds_of_each_scope(app: Partial) -> None:
    app.backup()
    found = app.info("latest", contents=True, scopes=app.params["scopes"])["contents"]["scopes"]
    told = {
        scope["name"]: (scope["files"], scope["values"], [(table["name"], table["rows"]) for table in scope["tables"]]) for scope in found
    }
    assert told["project"] == (10, ["a", "b", "c 100%"], [("users", 2), ("usage", 4), ("projects", 3)])
    assert told["config"] == (1, [], [])
    assert told["preferences"] == (0, [], [("users", 2), ("preferences", 3)])
    with pytest.raises(OpskitError, match="neither paths nor rows"):
        app.info("latest", contents=True, scopes={"it": {}})


def test_bad_input_is_refused_and_nothing_changes(app: Partial) -> None:
    scopes = app.params["scopes"]
    scopes["wrong sql"] = {}
    refused(app, "is no name for a scope", scope="project", value="a")
    del scopes["wrong sql"]
    refused(app, "no backup store", scope="project", value="a")
    app.backup()
    refused(app, "no scope 'nothing'", "config, preferences, project, providers", scope="nothing")
    refused(app, "needs a value", scope="project")
    refused(app, "takes no value", scope="config", value="x")
    refused(app, "can't be the name", scope="project", value="../config")
    refused(app, "holds nothing of the project 'zz'", scope="project", value="zz")
    refused(app, "there is no set", scope="project", value="a", set="20200101T000000Z-abcd")
    refused(app, "no UTC time", scope="project", value="a", set="before yesterday")

    def rows(table: str, **more: Any) -> Dict[str, Any]:
        return {"rows": [{"table": table, "identity": ["slug"], **more}]}

    for described, words in (
        (rows("projects", where="slug = = 1"), "is wrong"),
        (rows("projects", where="nothing = 1"), "is wrong"),
        (rows("projects", where="1 = 1; DROP TABLE users"), "more than one statement"),
        (rows("projects", where="slug = ';' OR slug = '--' OR 1 = 1 /* ; */ -- ;"), ""),
        (rows("nothing"), "no table"),
        (rows("projects", key=["title"]), "no unique index"),
        (rows("projects", key=["nothing"]), "no column 'nothing'"),
        ({"rows": [{"table": "audit", "identity": ["what"]}]}, "no primary key"),
        ({"rows": [{"table": "projects", "identity": ["slug"]}] * 2}, "more than once"),
        ({"paths": ["/etc"]}, "not among what is saved"),
        ({"paths": [app.at("data/logs")]}, "lies in logs"),
        ({"paths": ["config"]}, "not an absolute path"),
        ({"rows": [{"table": "projects"}]}, "name no identity"),
        (rows("projects", where="slug = :value"), "depends on a value"),
        ({**rows("projects"), "database": "other"}, "no database 'other'"),
        ({}, "neither paths nor rows"),
        ({**rows("projects"), "more": 1}, "'more' is not known"),
        ({"rows": {}}, "is not a list"),
    ):
        scopes["it"] = described
        if words:
            refused(app, words, scope="it")
        else:
            assert not app.restore_scope("it")["changed"]
    del scopes["it"]
    app.sql("ALTER TABLE providers ADD extra integer")
    refused(app, "other columns", scope="providers")
    app.sql("UPDATE version SET number = '3'")
    refused(app, "is 2 in set", "3 live", scope="project", value="a")


def test_rows_of_another_key_are_refused(app: Partial) -> None:
    app.backup()
    keys: Dict[str, Any] = {"key_variables": ["TOKEN"]}
    refused(app, "does not say under which TOKEN", scope="providers", **keys)
    app.write(".env", "TOKEN=two\n", 0o600)
    app.backup(**keys)
    app.sql("DELETE FROM providers")
    manifest = Path(app.set_file(app.info("latest")["sets"][0]["id"], "manifest.json")).read_text()
    assert list(json.loads(manifest)["keys"]) == ["TOKEN"]
    app.write(".env", "TOKEN=three\n", 0o600)
    refused(app, "under another TOKEN", "key_bound", scope="providers", **keys)
    app.params["scopes"]["providers"]["key_bound"] = False
    assert app.restore_scope("providers", **keys)["changed"]
    app.sql("DELETE FROM providers")
    app.params["scopes"]["providers"]["key_bound"] = True
    app.write(".env", "TOKEN='two'\n", 0o600)
    assert app.restore_scope("providers", **keys)["changed"]


def test_files_are_put_where_they_belong_whatever_is_in_the_way(app: Partial, tmp_path: Path) -> None:
    app.write("config/x", "x\n")
    os.link(app.at("config/x"), app.at("config/y"))
    os.symlink("x", app.at("config/z"))
    app.backup()
    seen = files(app)
    shutil.rmtree(app.at("config"))
    honest(app, scope="config")
    assert files(app) == seen
    assert os.stat(app.at("config/x")).st_ino == os.stat(app.at("config/y")).st_ino
    # The second name of an inode alone.
    app.params["scopes"]["y"] = {"paths": [app.at("config/y")]}
    os.unlink(app.at("config/y"))
    assert app.restore_scope("y")["files"]["changed"] == [app.at("config/y")]
    assert Path(app.at("config/y")).read_text() == "x\n"
    os.unlink(app.at("config/x"))
    os.mkdir(app.at("config/x"))
    app.write("config/x/mine", "mine\n")
    refused(app, "a folder is live", scope="config", policy="replace")
    shutil.rmtree(app.at("config/x"))
    # A folder that became a link elsewhere is not followed.
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(app.at("projects/a"))
    os.symlink(str(outside), app.at("projects/a"))
    app.params["scopes"]["part"] = {"paths": [app.at("projects/a/files/1.txt")]}
    refused(app, "a folder is expected", scope="part", policy="replace")
    app.restore_scope("project", "a", policy="replace")
    assert Path(app.at("projects/a/files/1.txt")).read_text() == "a 1\n" * 2
    assert list(outside.iterdir()) == []


def test_one_folder_of_many(app: Partial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than tar can be told to leave out, in a folder that nothing may fall into."""
    for number in range(1100):
        os.mkdir(app.at(f"projects/p{number}"), 0o700)
        Path(app.at(f"projects/p{number}/empty")).touch()
    app.params["scopes"]["project"]["rows"] = []
    app.backup()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = os.stat(elsewhere)
    monkeypatch.chdir(elsewhere)
    seen = files(app)
    shutil.rmtree(app.at("projects/p7"))
    honest(app, scope="project", value="p7")
    assert files(app) == seen
    assert list(elsewhere.iterdir()) == []
    assert os.stat(elsewhere)[:7] == before[:7]


def test_postgresql_without_a_superuser(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        passfile = Path(app.write("../passfile", "*:*:*:helper:secret\n", 0o600))
        server.run("CREATE ROLE helper LOGIN CREATEDB PASSWORD 'secret'")
        app.params["databases"][0].update(admin_user="helper", admin_passfile=str(passfile))
        app.backup()
        app.sql("DELETE FROM providers")
        for check in (True, False):
            with pytest.raises(OpskitError, match="permission denied"):
                app.restore_scope("providers", check=check)
        server.run("GRANT app TO helper")
        honest(app, scope="providers")
        assert len(app.rows()["providers"]) == 2
        # What the owner of the table may not do is refused, too: a superuser's rights are not for what the owner has written.
        app.sql(
            "SET ROLE app; CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN ALTER ROLE app SUPERUSER; RETURN NEW; END$$"
        )
        app.sql("SET ROLE app; CREATE TRIGGER evil BEFORE INSERT ON providers FOR EACH ROW EXECUTE FUNCTION evil()")
        app.backup()
        app.sql("DELETE FROM providers")
        app.params["databases"][0].update(admin_user=None, admin_passfile=None)
        app.params["scopes"]["providers"]["rows"][0]["fire_triggers"] = True
        with pytest.raises(OpskitError, match=r"permission denied|must be superuser"):
            app.restore_scope("providers")
        assert app.ask("SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == [["f"]]
    finally:
        app.remove()
        server.run("DROP ROLE IF EXISTS helper")


def test_a_commit_makes_no_file_beside_the_image(tmp_path: Path) -> None:
    """A super-journal there would be swept after a kill, and then the half of a transaction that was written would stay."""
    app = Partial(str(tmp_path)).build()
    app.sql("PRAGMA journal_mode=delete")
    # A name that leaves no room for what SQLite adds for a super-journal.
    image = tmp_path / ("i" * 245)
    shutil.copy(app.at("data/app.db"), image)
    app.sql("DELETE FROM providers")
    with SqliteRows(SqliteDatabase("app", app.at("data/app.db"), 1)).beside(str(image), {}) as merge:
        merge.plan([RowSet("providers", (), ("name",), "")], None, "fail")
        with merge.written("fail"):
            pass
    assert len(app.rows()["providers"]) == 2


def test_what_is_no_table_of_sqlite_is_refused(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql("CREATE VIEW seen AS SELECT * FROM projects")
    app.backup()
    for name in ("seen", "sqlite_master", "json_each"):
        app.params["scopes"]["it"] = {"rows": [{"table": name, "identity": ["slug"]}]}
        refused(app, "is not a table", scope="it")


def test_a_trigger_rests_however_it_writes_its_table(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql("CREATE TRIGGER note AFTER INSERT ON Providers BEGIN INSERT INTO audit VALUES ('INSERT'); END")
    app.backup()
    app.sql("DELETE FROM providers")
    honest(app, scope="providers")
    assert app.rows()["audit"] == []


def test_a_constraint_that_replaces_does_not_remove_live_rows(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql("CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT, UNIQUE (name COLLATE NOCASE) ON CONFLICT REPLACE)")
    app.sql("INSERT INTO tags VALUES (1, 'Ann')")
    app.backup()
    app.sql("DELETE FROM tags; INSERT INTO tags VALUES (5, 'ann')")
    app.params["scopes"]["it"] = {"rows": [{"table": "tags", "identity": ["name"]}]}
    for policy in ("fail", "skip", "replace"):
        with pytest.raises(OpskitError, match="UNIQUE"):
            app.restore_scope("it", policy=policy)
        assert app.ask("SELECT * FROM tags") == [["5", "ann"]]


def test_texts_of_sqlite_of_whatever_bytes(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql(
        "CREATE TABLE odd (k TEXT PRIMARY KEY, v TEXT); INSERT INTO odd VALUES (CAST(x'ff41' AS TEXT), 'x'), ('n', 'a' || char(0) || 'b')"
    )
    app.backup()
    app.sql("DELETE FROM odd WHERE v = 'x'; UPDATE odd SET v = 'a' || char(0) || 'c'")
    app.params["scopes"]["it"] = {"rows": [{"table": "odd", "identity": ["k"]}]}
    honest(app, scope="it", policy="replace")
    assert app.ask("SELECT hex(k), hex(v) FROM odd ORDER BY 1") == [["6E", "610062"], ["FF41", "78"]]


def test_a_database_in_utf_16(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    os.unlink(app.at("data/app.db"))
    app.sql("PRAGMA encoding = 'UTF-16le'; CREATE TABLE none (id)")
    app.make_database()
    app.backup()
    app.sql("DELETE FROM providers")
    honest(app, scope="providers")


def test_a_column_that_is_called_like_an_error(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql("CREATE TABLE jobs (id INTEGER PRIMARY KEY, locked_full TEXT); CREATE UNIQUE INDEX one ON jobs (locked_full) WHERE id > 0")
    app.sql("INSERT INTO jobs VALUES (1, 'v')")
    app.backup()
    app.sql("UPDATE jobs SET id = 2")
    app.params["scopes"]["it"] = {"rows": [{"table": "jobs", "identity": ["locked_full"]}]}
    with pytest.raises(OpskitError, match="SQLite refuses: UNIQUE"):
        app.restore_scope("it")
    app.params["database_timeout"] = 0
    with closing(sqlite3.connect(app.at("data/app.db"), isolation_level=None)) as other:
        other.execute("DELETE FROM jobs")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OpskitError, match="locked by another process"):
            app.restore_scope("it")


def test_what_no_database_takes_is_refused(app: Partial) -> None:
    app.backup()
    for wrong in ("a\0", "\udcff"):
        refused(app, "can't be a value", scope="preferences", value=wrong)
        for described in ({"table": wrong}, {"table": "users", "where": f"name = '{wrong}'"}):
            app.params["scopes"]["it"] = {"rows": [{"identity": ["name"], **described}]}
            refused(app, "no text in UTF-8", scope="it")
        del app.params["scopes"]["it"]


def test_a_row_that_becomes_something_else_after_the_plan_is_not_written_over(app: Partial, monkeypatch: pytest.MonkeyPatch) -> None:
    app.params["scopes"]["it"] = {"rows": [{"table": "providers", "identity": ["name"]}]}
    app.backup()
    app.sql("UPDATE providers SET api_key = 'new' WHERE id = 1")
    written = RowMerge.written

    def late(merge: RowMerge, policy: str) -> Any:
        app.sql("UPDATE providers SET name = 'mine', api_key = 'mine' WHERE id = 1")
        return written(merge, policy)

    monkeypatch.setattr(RowMerge, "written", late)
    with pytest.raises(OpskitError, match="changed by somebody else meanwhile: id=1"):
        app.restore_scope("it", policy="replace")
    assert app.ask("SELECT name, api_key FROM providers WHERE id = 1") == [["mine", "mine"]]


def test_a_key_in_other_case_is_another_thing(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.sql("CREATE TABLE tags (name TEXT COLLATE NOCASE PRIMARY KEY, kind TEXT, v TEXT); INSERT INTO tags VALUES ('Ann', 'k', 'v')")
    app.backup()
    app.sql("UPDATE tags SET name = 'ANN'")
    app.params["scopes"]["it"] = {"rows": [{"table": "tags", "identity": ["kind"]}]}
    refused(app, "something else by now, because name differs", scope="it", policy="replace")


def test_a_trigger_that_keeps_a_row_from_being_written_is_told(app: Partial) -> None:
    if app.engine == "sqlite":
        app.sql("CREATE TRIGGER no BEFORE INSERT ON providers BEGIN SELECT RAISE(IGNORE); END")
    else:
        app.sql("SET ROLE app; CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$")
        app.sql("SET ROLE app; CREATE TRIGGER no BEFORE INSERT ON providers FOR EACH ROW EXECUTE FUNCTION no()")
    app.backup()
    app.sql("DELETE FROM providers")
    app.params["scopes"]["providers"]["rows"][0]["fire_triggers"] = True
    with pytest.raises(OpskitError, match=r"id=1 of .* was not written"):
        app.restore_scope("providers")
    assert app.rows()["providers"] == []


def test_what_is_computed_may_be_unique_and_refer(app: Partial) -> None:
    app.sql("CREATE TABLE kinds (id integer PRIMARY KEY); INSERT INTO kinds VALUES (2)")
    app.sql(
        "CREATE TABLE made (id integer PRIMARY KEY, name varchar(9), low varchar(9) GENERATED ALWAYS AS (lower(name)) STORED UNIQUE, "
        "kind integer GENERATED ALWAYS AS (id + 1) STORED REFERENCES kinds(id))"
    )
    app.sql("INSERT INTO made (id, name) VALUES (1, 'A')")
    app.backup()
    app.sql("DELETE FROM made")
    app.params["scopes"]["it"] = {"rows": [{"table": "made", "identity": ["name"]}]}
    honest(app, scope="it")
    assert app.ask("SELECT * FROM made") == [["1", "A", "a", "2"]]


def test_what_other_rows_follow_is_never_updated(app: Partial) -> None:
    app.sql("CREATE TABLE kinds (id integer PRIMARY KEY, name varchar(9), code varchar(9) UNIQUE)")
    app.sql("CREATE TABLE things (id integer PRIMARY KEY, code varchar(9) REFERENCES kinds(code) ON UPDATE CASCADE)")
    app.sql("INSERT INTO kinds VALUES (1, 'n', 'x'); INSERT INTO things VALUES (1, 'x')")
    app.params["scopes"]["it"] = {"rows": [{"table": "kinds", "identity": ["name"]}]}
    app.params["scopes"]["named"] = {"rows": [{"table": "users", "key": ["name"], "identity": ["name"]}]}
    app.params["scopes"]["providers"]["rows"][0]["key"] = ["name"]
    app.backup()
    app.sql("UPDATE kinds SET code = 'y'; UPDATE providers SET api_key = 'new'")
    refused(app, "would get another code", "id=1", scope="it", policy="replace")
    assert app.ask("SELECT code FROM things") == [["y"]]
    # By another key than the number, which only the database gives.
    honest(app, scope="providers", policy="replace")
    app.sql("DELETE FROM usage WHERE project_id = 2; DELETE FROM projects WHERE user_id = 2; DELETE FROM preferences WHERE user_id = 2")
    app.sql("DELETE FROM users WHERE id = 2")
    app.sql("INSERT INTO users (name) VALUES ('bob')")
    refused(app, "would get another id", "name=bob", scope="named", policy="replace")


def test_types_of_postgresql_that_the_application_made(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        app.sql("SET ROLE app; CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE DOMAIN few AS integer CHECK (VALUE < 9)")
        app.sql("SET ROLE app; CREATE TABLE moods (id integer PRIMARY KEY, mood mood, few few, moods mood[], n numeric(4, 2))")
        app.sql("INSERT INTO moods VALUES (1, 'sad', 5, '{ok,sad}', 1.5)")
        app.backup()
        app.sql("DELETE FROM moods")
        app.params["scopes"]["it"] = {"rows": [{"table": "moods", "identity": ["id"]}]}
        honest(app, scope="it")
        assert app.ask("SELECT * FROM moods") == [["1", "sad", "5", "{ok,sad}", "1.50"]]
        app.sql("ALTER TABLE moods ALTER n TYPE numeric(5, 2)")
        refused(app, "other columns", scope="it")
    finally:
        app.remove()


def test_triggers_of_a_table_whose_keys_wait(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        app.sql("ALTER TABLE usage ALTER CONSTRAINT usage_project_id_fkey DEFERRABLE INITIALLY DEFERRED")
        app.sql("SET ROLE app; CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'fired'; END$$")
        app.sql("SET ROLE app; CREATE TRIGGER note BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION noted()")
        app.backup()
        definitions = app.definitions()
        lose_project(app)
        honest(app, scope="project", value="a")
        assert app.definitions() == definitions == [["note", "O"]]
    finally:
        app.remove()


def test_rules_are_at_rest(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        app.sql("SET ROLE app; CREATE RULE no AS ON INSERT TO providers DO INSTEAD NOTHING")
        app.backup()
        app.sql("DELETE FROM providers")
        honest(app, scope="providers")
        assert len(app.rows()["providers"]) == 2
        assert app.ask("SELECT ev_enabled FROM pg_rewrite WHERE rulename = 'no'") == [["O"]]
    finally:
        app.remove()


def test_a_table_that_others_inherit_from_is_refused(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        app.sql("SET ROLE app; CREATE TABLE old (why text) INHERITS (audit); CREATE TABLE note (id integer PRIMARY KEY)")
        app.sql("CREATE TABLE more (what text) INHERITS (note); INSERT INTO more VALUES (1, 'x')")
        app.backup()
        app.sql("DELETE FROM note")
        app.params["scopes"]["it"] = {"rows": [{"table": "note", "identity": ["id"]}]}
        refused(app, "inherit from note", scope="it")
    finally:
        app.remove()


def test_partitioned_tables_and_keys_to_them(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    try:
        app.sql("SET ROLE app; CREATE TABLE lots (id integer PRIMARY KEY, name text) PARTITION BY RANGE (id)")
        app.sql("SET ROLE app; CREATE TABLE low PARTITION OF lots FOR VALUES FROM (0) TO (10)")
        app.sql("SET ROLE app; CREATE TABLE high PARTITION OF lots FOR VALUES FROM (10) TO (20)")
        app.sql("SET ROLE app; CREATE TABLE items (id integer PRIMARY KEY, lot integer REFERENCES lots(id))")
        app.sql("INSERT INTO lots VALUES (1, 'a'), (11, 'b'); INSERT INTO items VALUES (1, 1), (2, 11)")
        app.backup()
        app.sql("DELETE FROM items; DELETE FROM lots")
        app.params["scopes"]["it"] = {"rows": [{"table": "items", "identity": ["lot"]}, {"table": "lots", "identity": ["name"]}]}
        honest(app, scope="it")
        assert app.ask("SELECT tableoid::regclass, name FROM lots ORDER BY 1") == [["low", "a"], ["high", "b"]]
    finally:
        app.remove()


def test_the_words_of_postgresql_hold_no_values(tmp_path: Path, server: postgres.Server) -> None:
    app = PostgresPartial(str(tmp_path), server).build()
    scope = app.params["scopes"]["providers"]["rows"][0]
    try:
        app.sql("SET ROLE app; CREATE UNIQUE INDEX one ON providers (api_key) WHERE id > 0")
        app.backup()
        app.sql("DELETE FROM providers; INSERT INTO providers (name, api_key) VALUES ('x', 'canary-1')")
        said = []
        for change, where in (
            ("", ""),
            ("DELETE FROM providers; ALTER TABLE providers ADD CONSTRAINT no CHECK (api_key <> 'canary-1')", ""),
            ("", "api_key::integer = 1"),
        ):
            app.sql(change or "SELECT 1")
            scope["where"] = where
            with pytest.raises(OpskitError) as error:
                app.restore_scope("providers")
            said.append(str(error.value))
        assert "canary" not in "".join(said)
        assert '"one"' in said[0]
        assert '"no"' in said[1]
        assert "api_key::integer" in said[2]
    finally:
        app.remove()


def test_names_and_paths_that_are_none_are_refused(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.backup()
    app.params["scopes"]["it"] = {"paths": ["/a\0b"]}
    refused(app, "not an absolute path", scope="it")
    app.params["scopes"] = {1: {"paths": [app.at("config")]}}
    refused(app, "no name for a scope", scope="1")


def test_rows_that_were_changed_since_give_no_wrong_verdict(app: Partial, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backup()
    app.sql("UPDATE projects SET title = 'other' WHERE id = 1")
    app.write("projects/a/files/1.txt", "other\n")

    def dies(_record: Record) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # The rows are committed, and the journal does not say so yet.
        patch.setattr(Record, "close", dies)
        with pytest.raises(KeyboardInterrupt):
            app.restore_scope("project", "a", policy="replace")
    app.sql("UPDATE projects SET title = 'later' WHERE id = 1")
    with pytest.raises(OpskitError, match="can't be told"):
        app.restore_scope("config")
    assert Path(app.at("projects/a/files/1.txt")).read_text() == "a 1\n" * 2
    app.sql("UPDATE projects SET title = 'A' WHERE id = 1")
    assert "finished" in app.restore_scope("config")["recovered"]
    # Nor does the check after a run fail for it.
    app.sql("UPDATE projects SET title = 'other' WHERE id = 1")
    verify = RestoreScope.verify

    def late(operation: RestoreScope) -> Any:
        app.sql("UPDATE projects SET title = 'later' WHERE id = 1")
        return verify(operation)

    monkeypatch.setattr(RestoreScope, "verify", late)
    assert app.restore_scope("project", "a", policy="replace")["changed"]


def test_a_value_stands_in_no_text_of_a_condition() -> None:
    for text in (
        r"E'it\'s :value'",
        "'it''s :value'",
        '"a :value"',
        "$x$ ' :value $x$",
        "-- :value",
        "/* ' :value */",
        "a::value",
        r"e'\\'",
    ):
        assert predicate(f"{text}\n", "X", "%") == f"{text}\n"
        assert not uses_value(text)
    assert predicate(r"E'\'' = :value AND like'\' || :value", "X", "%") == r"E'\'' = X AND like'\' || X"


def test_what_was_begun_is_settled_also_when_the_next_run_is_refused(tmp_path: Path) -> None:
    app = Partial(str(tmp_path)).build()
    app.backup()
    seen = files(app)
    number = 1
    while True:
        app.sql("UPDATE projects SET title = 'other' WHERE id = 1")
        app.write("projects/a/files/1.txt", "other\n")
        assert killed_at(number, lambda: app.restore_scope("project", "a", policy="replace"))
        # Renamed, and not committed.
        if files(app) == seen and app.ask("SELECT title FROM projects WHERE id = 1") == [["other"]]:
            break
        number += 1
    with pytest.raises(OpskitError, match="holds nothing"):
        app.restore_scope("project", "zz")
    assert Path(app.at("projects/a/files/1.txt")).read_text() == "other\n"


def test_killed_anywhere_it_is_nothing_or_all_and_one_more_run_finishes(app: Partial) -> None:
    app.backup()
    rows, seen = app.rows(), files(app)
    outcomes: Set[bool] = set()

    def mess(app: Partial) -> None:
        app.sql("UPDATE projects SET title = 'other' WHERE id = 1; DELETE FROM usage WHERE project_id = 1 AND day = 'mon'")
        app.write("projects/a/files/1.txt", "other\n")
        os.unlink(app.at("projects/a/files/2.txt"))

    number = 1
    while True:
        mess(app)
        broken = app.rows()
        if not killed_at(number, lambda: app.restore_scope("project", "a", policy="replace")):
            break
        # Whatever runs next settles it: another scope, even one that changes nothing.
        app.restore_scope("providers")
        is_new = app.rows() == rows
        assert is_new or app.rows() == broken, number
        assert (Path(app.at("projects/a/files/1.txt")).read_text() == "other\n") is not is_new, number
        assert os.path.exists(app.at("projects/a/files/2.txt")) is is_new, number
        app.restore_scope("project", "a", policy="replace")
        assert (app.rows(), files(app)) == (rows, seen), number
        outcomes.add(is_new)
        number += 1 if SOAK else 9
    assert number > 40
    assert outcomes == {False, True}
