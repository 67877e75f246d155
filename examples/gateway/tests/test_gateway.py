# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The application as an operator meets it: real processes, a real port on loopback, files looked at from outside."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import postgres
import pytest
import sqlalchemy as sa
import websockets
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gateway.cli import main
from gateway.database import connect, metadata
from gateway.settings import load
from sqlalchemy.engine import make_url

SOURCE = Path(__file__).resolve().parents[1]

BOTH = pytest.mark.parametrize("engine", ["sqlite", "postgresql"], indirect=True, scope="module")
POSTGRESQL = pytest.mark.parametrize("engine", ["postgresql"], indirect=True, scope="module")
PASSWORD = "s3cret/pass:word?é"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Application:
    """One root, and the server that runs on it."""

    def __init__(self, root: Path, server: postgres.Server | None = None) -> None:
        self.root, self.port, self.server = root, 0, server
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process, "not started"
        return self._process

    def argv(self, command: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "gateway", command, "--root", str(self.root), *map(str, arguments)]

    def run(self, command: str, *arguments: object) -> Any:
        """Run one command as an operator does; its JSON. Half a second each: `cli` where another test does it already."""
        argv = self.argv(command, *arguments)
        done = subprocess.run(argv, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return json.loads(done.stdout)

    def cli(self, command: str, *arguments: object, code: int = 0) -> Any:
        """Run one command in this process, which lets an exception through; its JSON, or the one line that it says as it fails."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
            assert main(self.argv(command, *arguments)[3:]) == code, out.getvalue() + error.getvalue()
        if out.getvalue():
            assert error.getvalue() == ""
            return json.loads(out.getvalue())
        assert code
        assert re.fullmatch(r"gateway: .+\n", error.getvalue()), error.getvalue()
        return error.getvalue()

    def start(self, *arguments: object) -> Application:
        argv = self.argv("serve", *arguments)
        self._process = subprocess.Popen(argv, env=ENVIRONMENT, cwd="/", stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line.startswith("gateway "), line
        self.port = int((self.root / "data/run/gateway.port").read_text())
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode

    def kill(self) -> None:
        """End what a test has left running."""
        if self._process and self._process.poll() is None:
            self.stop(signal.SIGKILL)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, quote(path, safe="/?=&%"), data, headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.env()['ADMIN_TOKEN']}"}

    def admin(self, method: str, path: str, body: Any = None) -> Answer:
        return self.call(method, path, body, self.token())

    def hold_lock(self) -> None:
        """Take the database's write lock; it is held until hold_lock_seconds is set to 0."""

        def held() -> int:
            return sum("write lock is held" in entry["message"] for entry in self.log("app"))

        before = held()
        assert self.admin("POST", "/admin/faults", {"hold_lock_seconds": 60}).status == 200
        wait_for(lambda: held() > before)

    def env(self) -> dict[str, str]:
        lines = (self.root / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))

    def set_env(self, key: str, value: str) -> None:
        path = self.root / ".env"
        path.write_text(re.sub(rf"(?m)^{key}=.*$", f"{key}={value}", path.read_text()))

    def set_limit(self, key: str, value: int) -> None:
        path = self.root / "config/gateway.toml"
        text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", path.read_text())
        assert count == 1
        path.write_text(text)

    @property
    def database(self) -> str:
        """Name of its database on the server."""
        return str(make_url(self.env()["DATABASE_URL"]).database)

    def copy(self, root: Path) -> Application:
        """Another application with the same content."""
        shutil.copytree(self.root, root)
        other = Application(root, self.server)
        if self.server:
            name = _new_name()
            self.server.run(f'CREATE DATABASE {name} TEMPLATE "{self.database}" OWNER app')
            other.set_env("DATABASE_URL", _url(self.server, name))
        return other

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.server:
            url = f"postgresql+psycopg2://{self.server.superuser}@/{self.database}?host={self.server.host}&port={self.server.port}"
            engine = sa.create_engine(url, json_deserializer=str, poolclass=sa.pool.NullPool, execution_options={"no_parameters": True})
            with engine.begin() as session:
                found = session.exec_driver_sql(query)
                return [tuple(row) for row in found] if found.returns_rows else []
        with contextlib.closing(sqlite3.connect(self.root / "data/gateway.db")) as connection:
            rows = connection.execute(query).fetchall()
            connection.commit()
            return rows

    def log(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / f"data/logs/{name}.log").read_text().splitlines()]


_numbers = itertools.count(1)


def _new_name() -> str:
    return f"app_{next(_numbers)}"


def _url(server: postgres.Server, database: str, password: str = PASSWORD, port: int = 0) -> str:
    return f"postgresql://app:{quote(password, safe='')}@127.0.0.1:{port or server.port}/{database}"


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    with postgres.server() as server:
        server.run(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        yield server


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the application's database: SQLite where a test does not ask for others."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="module")
def template(engine: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Application:
    folder = tmp_path_factory.mktemp("new")
    app = Application(folder / "a folder, ünd %41")
    arguments: list[object] = []
    if engine == "postgresql":
        app.server = request.getfixturevalue("server")
        name = _new_name()
        app.server.run(f"CREATE DATABASE {name} OWNER app")
        (folder / "url").write_text(_url(app.server, name) + "\n")
        arguments = ["--database-url-file", folder / "url"]
    app.run("init", "--port", 0, *arguments)
    app.run("seed", "--rows", 600, "--projects", 6, "--uploads", 4, "--upload-bytes", 1000)
    return app


@pytest.fixture
def stopped(template: Application, tmp_path: Path) -> Iterator[Application]:
    app = template.copy(tmp_path / template.root.name)
    yield app
    app.kill()


@pytest.fixture
def app(stopped: Application) -> Application:
    return stopped.start()


@pytest.fixture(scope="module")
def running(template: Application, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    app = template.copy(tmp_path_factory.mktemp("shared") / "app")
    yield app.start("--colour", "green")
    assert app.stop() == 0


@pytest.fixture(scope="module")
def running_limited(template: Application, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    app = template.copy(tmp_path_factory.mktemp("limited") / "app")
    app.set_limit("upload_max_bytes", 1000)
    app.set_limit("request_max_bytes", 500)
    app.set_limit("write_wait_seconds", 1)
    app.set_limit("provider_timeout_seconds", 1)
    yield app.start()
    assert app.stop() == 0


def _as_before(app: Application) -> None:
    faults = app.admin("GET", "/admin/faults").json
    assert app.admin("POST", "/admin/faults", dict.fromkeys(faults, 0)).status == 200
    assert app.admin("POST", "/admin/writes/resume").status == 200


@pytest.fixture
def shared(running: Application) -> Iterator[Application]:
    """A server for the tests that leave nothing behind that another one would notice; faults and pauses end with each."""
    yield running
    _as_before(running)


@pytest.fixture
def limited(running_limited: Application) -> Iterator[Application]:
    """The same with low limits."""
    yield running_limited
    _as_before(running_limited)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


class Background(threading.Thread):
    """A request that is on its way while the test goes on."""

    def __init__(self, app: Application, *call: Any) -> None:
        super().__init__(daemon=True)
        self._run = lambda: app.call(*call)
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._run()
        self.seconds = time.monotonic()

    def result(self) -> Answer:
        self.join(30)
        assert self.answer is not None
        return self.answer


# -- command line -------------------------------------------------------------------------------------------------


def test_init_makes_a_private_application_and_never_a_second_one(template: Application, stopped: Application) -> None:
    assert (template.root / ".env").stat().st_mode & 0o777 == 0o600
    assert not [path for path in template.root.rglob("*") if path.stat().st_mode & 0o007]
    before = (stopped.root / ".env").read_bytes()
    assert "exists" in stopped.cli("init", code=2)
    assert (stopped.root / ".env").read_bytes() == before
    (stopped.root / ".env").unlink()
    (stopped.root / "config/gateway.toml").unlink()
    assert "gateway.db exists" in stopped.cli("init", code=2)
    assert not (stopped.root / ".env").exists()


def test_secrets_differ_between_applications(tmp_path: Path, template: Application) -> None:
    other = Application(tmp_path / "other")
    other.cli("init")
    for key in ("APP_SECRET_KEY", "ADMIN_TOKEN", "FAKE_API_KEY"):
        assert other.env()[key] != template.env()[key]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL must be one of"),
        ("GATEWAY_PORT", "http", "GATEWAY_PORT must be a number"),
        ("GATEWAY_PORT", "70000", "GATEWAY_PORT must be a number"),
        ("APP_SECRET_KEY", "short", "APP_SECRET_KEY is missing or shorter"),
        ("FAULT_ERROR_RATE", "1.5", "error_rate must be a number from 0 to 1"),
        ("DATABASE_URL", "mysql://u:secretpw@h/d", "DATABASE_URL must be sqlite"),
        ("DATABASE_URL", "postgresql://u:secretpw@d", "names no database"),
        ("DATABASE_URL", "postgresql://u:p@secretpw@h/d", "more than one @"),
        ("DATABASE_URL", "postgresql://u:p@h:secretpw/d", "not a database URL"),
        ("DATABASE_URL", "postgresql+asyncpg://u:secretpw@h/d", "DATABASE_URL must be sqlite"),
        ("DATABASE_URL", "nonsense", "not a database URL"),
        ("DATABASE_URL", "sqlite:///data/other.db", "other.db is missing"),
    ],
)
def test_wrong_settings_are_refused(stopped: Application, key: str, value: str, says: str) -> None:
    stopped.set_env(key, value)
    error = stopped.cli("serve", code=2)
    assert says in error
    assert "secretpw" not in error
    assert not (stopped.root / "data/other.db").exists()


def test_what_is_missing_or_open_is_named(stopped: Application) -> None:
    env = stopped.root / ".env"
    env.chmod(0o604)
    assert "open to every user" in stopped.cli("serve", code=2)
    env.chmod(0o600)
    (stopped.root / "config/gateway.toml").write_text("[limits]\nupload_max_bytes = -1\n")
    assert "limit upload_max_bytes" in stopped.cli("serve", code=2)
    (stopped.root / "config/gateway.toml").write_text("[[providers]\n")
    assert "gateway.toml cannot be read" in stopped.cli("serve", code=2)
    (stopped.root / "config/gateway.toml").unlink()
    assert "gateway.toml is missing" in stopped.cli("serve", code=2)
    env.write_text(env.read_text() + "sk-oops a secret pasted alone\n")
    error = stopped.cli("serve", code=2)
    assert re.search(r"\.env line \d+ is not KEY=value", error)
    assert "oops" not in error
    env.unlink()
    assert ".env is missing" in stopped.cli("serve", code=2)


def test_a_missing_or_broken_database_is_never_created(stopped: Application) -> None:
    shutil.rmtree(stopped.root / "data")
    for command in ("serve", "migrate", "schema", "seed"):
        assert "gateway.db is missing: restore it" in stopped.cli(command, code=2)
    assert not (stopped.root / "data").exists()
    (stopped.root / "data").mkdir()
    (stopped.root / "data/gateway.db").write_bytes(b"this is no database" * 500)
    assert "not a database" in stopped.cli("serve", code=2)


def test_commands_that_need_a_server_say_that_none_runs(stopped: Application, tmp_path: Path) -> None:
    for arguments in (("pause", "5"), ("resume",), ("paused",), ("traffic", "--ledger", tmp_path / "ledger")):
        assert "no server is running" in stopped.cli(*arguments, code=3)
    assert not (tmp_path / "ledger").exists()
    status = stopped.cli("status", code=3)
    assert status["running"] is False
    assert status["revision"] == status["head"] == "0002"


def test_one_server_a_root_and_a_port(app: Application, tmp_path: Path, template: Application) -> None:
    assert f"by process {app.process.pid}" in app.cli("serve", code=2)
    status = app.run("status")
    assert (status["pid"], status["port"], status["ready"]) == (app.process.pid, app.port, True)
    other = template.copy(tmp_path / "other")
    assert f"port {app.port} cannot be listened on" in other.cli("serve", "--port", app.port, code=2)
    assert app.stop(signal.SIGKILL) == -signal.SIGKILL
    assert app.cli("status", code=3)["running"] is False  # the pid file that is left means nothing
    app.start()
    assert app.cli("status")["pid"] == app.process.pid


@BOTH
def test_seed_is_deterministic_and_only_for_a_new_application(stopped: Application, tmp_path: Path) -> None:
    assert "only a new application" in stopped.cli("seed", code=2)
    other = Application(tmp_path / "other", stopped.server)
    url: list[object] = []
    if stopped.server:
        name = _new_name()
        stopped.server.run(f"CREATE DATABASE {name} OWNER app")
        url = ["--database-url", _url(stopped.server, name)]
    other.cli("init", "--port", 0, *url)
    made = other.cli("seed", "--rows", 600, "--projects", 6, "--uploads", 4, "--upload-bytes", 1000)["rows"]
    assert made == {"users": 3, "user_preferences": 9, "providers": 4, "projects": 6, "usage": 600, "uploads": 22}
    for table in ("users", "user_preferences", "projects", "usage"):
        assert other.rows(f"SELECT * FROM {table}") == stopped.rows(f"SELECT * FROM {table}")
    for path, sha256, size in other.rows("SELECT path, sha256, bytes FROM uploads"):
        content = (other.root / path).read_bytes()
        assert content == (stopped.root / path).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (sha256, size)


# -- schema -------------------------------------------------------------------------------------------------------


@BOTH
def test_migration_moves_preferences_and_back(stopped: Application) -> None:
    everything = "SELECT name, key, value FROM users JOIN user_preferences ON id = user_id ORDER BY 1, 2"
    before = stopped.rows(everything)
    assert len(before) == 9
    assert stopped.cli("migrate")["changed"] is False
    assert stopped.run("migrate", "--to", "0001") == {"before": "0002", "after": "0001", "changed": True}
    stored = {name: json.loads(value) for name, value in stopped.rows("SELECT name, preferences FROM users")}
    assert stored == {name: {key: json.loads(str(value)) for n, key, value in before if n == name} for name in {row[0] for row in before}}
    assert "python -m gateway migrate" in stopped.cli("serve", code=2)
    assert "at revision 0001" in stopped.cli("seed", code=2)
    assert stopped.run("schema") == {"revision": "0001", "head": "0002", "current": False}
    stopped.rows("INSERT INTO users (name, created_at) VALUES ('none', '2026-01-01 00:00:00')")
    assert stopped.cli("migrate") == {"before": "0001", "after": "0002", "changed": True}
    assert stopped.rows(everything) == before
    if not stopped.server:
        assert stopped.rows("PRAGMA foreign_key_check") == []
        assert stopped.rows("PRAGMA integrity_check") == [("ok",)]
    assert "revision 0009 is unknown" in stopped.cli("migrate", "--to", "0009", code=2)


@BOTH
def test_a_failed_migration_changes_nothing(stopped: Application) -> None:
    stopped.cli("migrate", "--to", "0001")
    stopped.rows("UPDATE users SET preferences = '[1, 2]' WHERE id = 2")
    query = "SELECT name, sql FROM sqlite_master ORDER BY 1"
    if stopped.server:
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    schema = stopped.rows(query)
    done = subprocess.run(stopped.argv("migrate"), env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert b"no attribute 'items'" in done.stderr  # after the table was made
    assert stopped.rows(query) == schema
    assert stopped.rows("SELECT version_num FROM alembic_version") == [("0001",)]


def test_known_revisions_need_no_application(tmp_path: Path) -> None:
    argv = Application(tmp_path / "none").argv("schema", "--known")
    assert subprocess.run(argv, env=ENVIRONMENT, cwd="/", stdout=subprocess.PIPE, text=True, check=True).stdout == "0001\n0002\n"


@BOTH
def test_a_newer_schema_is_refused(stopped: Application) -> None:
    stopped.rows("UPDATE alembic_version SET version_num = '0099'")
    for command in ("serve", "migrate"):
        error = stopped.cli(command, code=2)
        assert "revision 0099, which this version does not know" in error
        assert "install the version" in error


@BOTH
def test_migrations_make_the_tables_that_the_code_uses(stopped: Application) -> None:
    database = connect(load(stopped.root).database)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


# -- endpoints ----------------------------------------------------------------------------------------------------


def test_health_and_headers(shared: Application) -> None:
    for path in ("/healthz", "/readyz", "/nothing", "/api/projects/none"):
        answer = shared.call("GET", path, headers={"X-Request-ID": "from-the-proxy"})
        assert answer.status == (200 if path.endswith("z") else 404)
        assert answer.headers["X-Gateway-Colour"] == "green"
        assert re.fullmatch(r"\d+\.\d+\.\d+", answer.headers["X-Gateway-Version"])
        assert answer.headers["X-Request-ID"] == "from-the-proxy"
    assert shared.call("GET", "/readyz").json["ready"] is True
    assert shared.call("HEAD", "/healthz").status == 200
    assert shared.call("POST", "/healthz").status == 405
    assert shared.call("GET", "/healthz", headers={"X-Request-ID": 'x"\t{'}).headers["X-Request-ID"] != 'x"\t{'


@BOTH
def test_projects(shared: Application) -> None:
    body = {"slug": "one", "title": "The först", "owner": "ann"}
    made = shared.call("POST", "/api/projects", body)
    assert made.status == 201
    assert {**made.json, **body} == made.json
    assert json.loads((shared.root / "projects/one/project.json").read_text()) == made.json
    assert shared.call("POST", "/api/projects", body).status == 409
    assert shared.call("GET", "/api/projects/one").json == {**made.json, "tokens": {}, "files": []}
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = shared.call("GET", f"/api/projects?limit=3&after={after}").json
        assert len(page["projects"]) <= 3
        seen += [entry["slug"] for entry in page["projects"]]
        after = page["next"]
    assert seen == sorted(slug for (slug,) in shared.rows("SELECT slug FROM projects"))
    assert "one" in seen
    assert shared.call("PUT", "/api/projects/one/files/a.txt", b"x").status == 201
    assert shared.call("DELETE", "/api/projects/one").status == 204
    assert not list(shared.root.glob("projects/*one*"))
    assert not list(shared.root.glob("projects/.*"))
    assert shared.rows("SELECT * FROM uploads WHERE path LIKE 'projects/one/%'") == []
    assert shared.call("DELETE", "/api/projects/one").status == 404
    assert [entry["project"] for entry in shared.log("audit") if entry["message"] == "project.delete"] == ["one"]


@pytest.mark.parametrize(
    "body", [{}, [], b"{", {"slug": "UP"}, {"slug": "../x"}, {"slug": "a" * 65}, {"slug": 7}, b'{"slug": "a", "title": "\\\\\\u0000"}']
)
def test_bad_projects_are_refused(shared: Application, body: Any) -> None:
    answer = shared.call("POST", "/api/projects", body)
    assert answer.status == 400
    assert answer.json["error"]


@BOTH
def test_files(shared: Application) -> None:
    for folder, place in (("projects/project-00001/files", "projects/project-00001/files"), ("uploads", "data/uploads")):
        first, second = os.urandom(300_000), b""
        path = f"/api/{folder}/zwölf @ 12.bin"
        stored = shared.call("PUT", path, first)
        assert stored.status == 201
        target = shared.root / place / "zwölf @ 12.bin"
        assert target.read_bytes() == first == shared.call("GET", path).body
        sha256 = hashlib.sha256(first).hexdigest()
        row = f"SELECT sha256, bytes FROM uploads WHERE path = '{place}/zwölf @ 12.bin'"
        assert stored.json["sha256"] == sha256
        assert shared.rows(row) == [(sha256, 300_000)]
        assert shared.call("PUT", path, second).status == 200
        assert target.read_bytes() == second == shared.call("GET", path).body
        assert shared.rows(row) == [(hashlib.sha256(second).hexdigest(), 0)]
        for name in (".hidden", "..", "%2e%2e", "a%2fb", "%00", "a%0ab", "ü" * 101, "x" * 129):
            assert shared.call("PUT", f"/api/{folder}/{name}", b"x").status in (400, 404, 405), name
    assert shared.call("PUT", "/api/projects/none/files/a", b"x").status == 404
    assert not (shared.root / "projects/none").exists()
    assert not list(shared.root.rglob("*.tmp"))


def test_a_file_is_served_only_if_it_is_what_was_recorded(shared: Application, stopped: Application) -> None:
    path, place = "/api/uploads/upload-000001.bin", shared.root / "data/uploads/upload-000001.bin"
    content = place.read_bytes()
    assert shared.call("GET", path).body == content
    place.write_bytes(content[:-1] + b"!")
    assert "not what the database recorded" in shared.call("GET", path).json["error"]
    place.unlink()
    assert "the file is missing" in shared.call("GET", path).json["error"]
    place.write_bytes(content)
    assert shared.call("GET", path).status == 200
    stopped.set_env("APP_SECRET_KEY", "x" * 32)  # a .env that does not belong to this database
    answer = stopped.start().call("GET", path)
    assert answer.status == 500
    assert "APP_SECRET_KEY" in answer.json["error"]
    assert stopped.log("error")[-1]["request_id"] == answer.headers["X-Request-ID"]


def test_limits(limited: Application) -> None:
    assert limited.call("PUT", "/api/uploads/a", b"x" * 1000).status == 201
    assert limited.call("PUT", "/api/uploads/b", b"x" * 1001).status == 413
    assert not (limited.root / "data/uploads/b").exists()
    assert limited.call("POST", "/api/projects", {"slug": "a", "title": "x" * 600}).status == 413


@BOTH
def test_preferences(shared: Application) -> None:
    path = "/api/users/jörg/preferences"
    assert shared.call("GET", path).status == 404
    first = {"theme": "dark", "list": [1, None, {"a": "ü"}]}
    assert shared.call("PUT", path, first).json == first == shared.call("GET", path).json
    assert shared.call("PUT", path, {"theme": "light"}).status == 200
    assert shared.call("GET", path).json == {"theme": "light"}
    assert shared.call("PUT", path, [1]).status == 400
    assert shared.call("PUT", path, {"k" * 129: 1}).status == 400


@BOTH
def test_providers_never_show_keys(shared: Application) -> None:
    answer = shared.call("GET", "/api/providers")
    keys = [key for (key,) in shared.rows("SELECT api_key FROM providers")]
    assert len(answer.json["providers"]) == len(keys) == 4
    assert all(keys)
    assert all(provider["api_key_set"] is True for provider in answer.json["providers"])
    assert not any(key.encode() in answer.body for key in keys)


@BOTH
def test_chat_records_disjoint_usage(shared: Application) -> None:
    call = {"project": "project-00002", "provider": "fake", "model": "fake-large-think", "prompt": "word " * 1000}
    before = shared.call("GET", "/api/projects/project-00002").json["tokens"]
    first, second = (shared.call("POST", "/api/chat", call).json for _turn in range(2))
    counts = {row["type"]: row["tokens"] for row in first["usage"]}
    assert set(counts) == {"input", "cache_read", "cache_write", "output", "reasoning"}
    assert counts["input"] + counts["cache_read"] + counts["cache_write"] == 1250
    assert len(first["reply"].split()) == counts["output"]
    assert first["reply"] == second["reply"]
    assert counts == {row["type"]: row["tokens"] for row in second["usage"]}
    ids = ", ".join(str(row["id"]) for row in first["usage"])
    assert dict(shared.rows(f"SELECT type, tokens FROM usage WHERE id IN ({ids})")) == counts
    after = shared.call("GET", "/api/projects/project-00002").json["tokens"]
    assert {kind: after[kind] - before.get(kind, 0) for kind in after} == {k: 2 * n for k, n in counts.items()}
    for change in ({"project": "none"}, {"provider": "none"}, {"model": "none"}, {"prompt": ""}, {"prompt": 5}):
        assert shared.call("POST", "/api/chat", {**call, **change}).status in (400, 404)


def _events(body: bytes) -> list[tuple[str, Any]]:
    found = re.findall(r"event: (\w+)\ndata: (.*)\n\n", body.decode())
    return [(kind, json.loads(data)) for kind, data in found]


def test_server_sent_events(shared: Application) -> None:
    answer = shared.call("GET", "/api/chat/stream?project=project-00003&prompt=hello%20there&provider=fake")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *chunks, (last, done) = _events(answer.body)
    plain = shared.call("POST", "/api/chat", {"project": "project-00003", "prompt": "hello there", "provider": "fake"})
    assert last == "done"
    assert {kind for kind, _text in chunks} == {"chunk"}
    assert "".join(text for _kind, text in chunks).strip() == plain.json["reply"]
    assert [row["tokens"] for row in done["usage"]] == [row["tokens"] for row in plain.json["usage"]]
    assert shared.call("GET", "/api/chat/stream?project=none&prompt=x").status == 404


def test_websocket(shared: Application) -> None:
    async def talk() -> list[dict[str, Any]]:
        async with websockets.connect(f"ws://127.0.0.1:{shared.port}/ws/chat") as connection:
            client: Any = connection  # websockets before 14 has the attribute response_headers
            headers = client.response.headers if hasattr(client, "response") else client.response_headers
            assert headers["X-Gateway-Colour"] == "green"
            seen: list[dict[str, Any]] = []
            for text in ("no json", '{"project": "none", "prompt": "x"}', '{"project": "project-00001", "prompt": "x"}'):
                await connection.send(text)
                while not seen or seen[-1]["event"] == "chunk" or text:
                    text = ""
                    seen.append(json.loads(await connection.recv()))
            metrics = await asyncio.to_thread(shared.call, "GET", "/metrics")
            assert b'app_open_connections{kind="websocket"} 1.0' in metrics.body
            return seen

    seen = asyncio.run(talk())
    assert [message["event"] for message in seen[:2]] == ["error", "error"]
    assert "JSON" in seen[0]["data"]["error"]
    assert seen[-1]["event"] == "done"
    assert len(seen) == 3 + seen[-1]["data"]["usage"][1]["tokens"]
    wait_for(lambda: b'app_open_connections{kind="websocket"} 0.0' in shared.call("GET", "/metrics").body)
    wait_for(lambda: any(entry["route"] == "/ws/chat" and entry["status"] == 101 for entry in shared.log("access")))


def test_a_stream_that_is_left_is_cleaned_up(shared: Application) -> None:
    ((settings,),) = shared.rows("SELECT settings FROM providers WHERE name = 'fake'")
    shared.rows("UPDATE providers SET settings = json_set(settings, '$.chunk_seconds', 0.2) WHERE name = 'fake'")
    errors = shared.log("error")
    before = shared.rows("SELECT count(*) FROM usage")
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    connection.request("GET", "/api/chat/stream?project=project-00001&provider=fake&prompt=x")
    response = connection.getresponse()
    assert response.readline() == b"event: chunk\n"
    assert b'app_open_connections{kind="sse"} 1.0' in shared.call("GET", "/metrics").body
    shared.rows(f"UPDATE providers SET settings = '{settings}' WHERE name = 'fake'")
    response.close()
    connection.close()
    wait_for(lambda: b'app_open_connections{kind="sse"} 0.0' in shared.call("GET", "/metrics").body)
    wait_for(lambda: b'operation_duration_seconds_count{error_type="cancelled"' in shared.call("GET", "/metrics").body)
    assert shared.rows("SELECT count(*) FROM usage") == before
    with socket.create_connection(("127.0.0.1", shared.port)) as upload:
        upload.sendall(b"PUT /api/uploads/half HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf of it")
        time.sleep(0.2)
    wait_for(lambda: [line["status"] for line in shared.log("access") if line["path"] == "/api/uploads/half"] == [499])
    assert not (shared.root / "data/uploads/half").exists()
    assert shared.log("error") == errors


def test_stop_closes_websockets_at_once(app: Application) -> None:
    async def talk() -> int:
        async with websockets.connect(f"ws://127.0.0.1:{app.port}/ws/chat") as connection:
            stopping = asyncio.ensure_future(asyncio.to_thread(app.stop))
            with pytest.raises(websockets.ConnectionClosed):
                await connection.recv()
            return await stopping

    started = time.monotonic()
    assert asyncio.run(talk()) == 0
    assert time.monotonic() - started < 8


def test_metrics(shared: Application) -> None:
    shared.call("POST", "/api/chat", {"project": "project-00004", "prompt": "count me", "provider": "fake"})
    shared.call("GET", "/api/uploads/upload-000000.bin")
    shared.call("GET", "/api/projects/project-00004")
    shared.call("BREW", "/no/such/path")
    text = shared.call("GET", "/metrics").body.decode()
    for wanted in (
        'http_server_request_duration_seconds_bucket{http_request_method="GET",http_response_status_code="200",http_route="/api/uploads/{name}",le="320.0"}',
        'http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="200",http_route="/api/projects/{slug}"}',
        'http_server_request_duration_seconds_count{http_request_method="_OTHER",http_response_status_code="404",http_route=""}',
        'http_server_active_requests{http_request_method="GET"} 1.0',
        'app_open_connections{kind="sse"} 0.0',
        'gen_ai_client_operation_duration_seconds_count{error_type="",gen_ai_operation_name="chat",'
        'gen_ai_provider_name="fake",gen_ai_request_model="fake-small"}',
        "gen_ai_client_operation_time_to_first_chunk_seconds_bucket{",
        'gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="fake",gen_ai_request_model="fake-small",gen_ai_token_type="output"}',
        'app_llm_tokens_total{gen_ai_provider_name="fake",gen_ai_request_model="fake-small",type="input"}',
        'app_db_pool_connections{state="used"}',
        "app_db_lock_wait_seconds_bucket{",
        'app_build_info{colour="green",version="',
        'app_health_status{check="database"} 1.0',
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ):
        assert f"\n{wanted}" in text, wanted
    assert "project-00004" not in text
    assert "no/such" not in text


# -- logs ---------------------------------------------------------------------------------------------------------


def test_logs_reopen_and_change_level(app: Application) -> None:
    folder = app.root / "data/logs"
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("access.log", "app.log", "audit.log", "error.log"), 0o640
    )
    app.call("GET", "/healthz", headers={"X-Request-ID": "before"})
    wait_for(lambda: app.log("access"))
    for path in list(folder.iterdir()):
        path.rename(f"{path}.1")
    app.call("GET", "/healthz", headers={"X-Request-ID": "between"})
    assert not (folder / "access.log").exists()
    app.process.send_signal(signal.SIGUSR1)
    wait_for((folder / "audit.log").exists)
    open_files = {os.readlink(path) for path in Path(f"/proc/{app.process.pid}/fd").iterdir()}
    assert not [path for path in open_files if path.endswith(".1")]
    app.call("GET", "/api/projects/x?secret=query", headers={"X-Request-ID": "after"})
    wait_for(lambda: app.log("access"))
    (line,) = app.log("access")
    assert (line["request_id"], line["status"], line["path"]) == ("after", 404, "/api/projects/x")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    old = [json.loads(text)["request_id"] for text in (folder / "access.log.1").read_text().splitlines()]
    assert old == ["before", "between"]

    app.set_env("LOG_LEVEL", "ERROR")
    app.process.send_signal(signal.SIGHUP)
    wait_for(lambda: app.log("audit"))
    assert app.log("audit")[-1]["log_level"] == "ERROR"
    lines = len(app.log("app"))
    app.process.send_signal(signal.SIGUSR1)
    time.sleep(0.3)
    assert len(app.log("app")) == lines
    app.set_env("LOG_LEVEL", "NONSENSE")
    app.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "LOG_LEVEL must be one of" in json.dumps(app.log("error")))
    assert app.call("GET", "/healthz").status == 200


@BOTH
def test_no_secret_reaches_a_log_or_an_answer(app: Application) -> None:
    secrets = [app.env()[key] for key in ("APP_SECRET_KEY", "ADMIN_TOKEN", "FAKE_API_KEY")]
    secrets += [key for (key,) in app.rows("SELECT api_key FROM providers")]
    bodies: list[bytes] = []
    if app.server:
        secrets += [PASSWORD, quote(PASSWORD, safe="")]
        app.server.run(f"ALTER DATABASE {app.database} ALLOW_CONNECTIONS false")
        app.server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{app.database}'")
        bodies = [app.call(*call).body for call in (("GET", "/readyz"), ("PUT", "/api/uploads/x", b"x"), ("GET", "/metrics"))]
        assert b"not currently accepting connections" in bodies[0]
        app.server.run(f"ALTER DATABASE {app.database} ALLOW_CONNECTIONS true")
    app.cli("pause", "1")
    app.cli("resume")
    app.admin("POST", "/admin/faults", {"error_rate": 1})
    bodies.append(app.call("GET", "/api/providers").body)
    app.admin("POST", "/admin/faults", {"error_rate": 0})
    for path in ("/api/providers", "/metrics", "/readyz", "/admin/writes", "/admin/faults", "/api/projects"):
        bodies.append(app.admin("GET", path).body)
    assert Path(f"/proc/{app.process.pid}/cmdline").read_bytes().count(secrets[1].encode()) == 0
    assert app.stop() == 0
    logs = b"".join(path.read_bytes() for path in (app.root / "data/logs").iterdir())
    assert b"error_rate asks for it" in logs
    assert not [secret for secret in secrets if secret.encode() in logs + b"".join(bodies)]


# -- pause of writes ----------------------------------------------------------------------------------------------


@BOTH
def test_pause_holds_writes_and_lets_reads_through(shared: Application) -> None:
    state = shared.run("pause", "20")
    assert state["paused"]
    assert 19 < state["remaining_seconds"] <= 20
    assert state["in_flight"] == 0
    before = shared.rows("SELECT max(id), count(*) FROM usage")
    writes = [
        Background(shared, "POST", "/api/projects", {"slug": "late"}),
        Background(shared, "PUT", "/api/uploads/late", b"late"),
        Background(shared, "PUT", "/api/users/late/preferences", {"a": 1}),
        Background(shared, "POST", "/api/chat", {"project": "project-00001", "prompt": "late"}),
        Background(shared, "GET", "/api/chat/stream?project=project-00001&prompt=late"),
        Background(shared, "DELETE", "/api/projects/project-00005"),
    ]
    wait_for(lambda: shared.admin("GET", "/admin/writes").json["waiting"] == len(writes))
    assert shared.call("GET", "/api/projects").status == shared.call("GET", "/readyz").status == 200
    assert shared.rows("SELECT max(id), count(*) FROM usage") == before
    assert not (shared.root / "projects/late").exists()
    assert not (shared.root / "data/uploads/late").exists()
    assert (shared.root / "projects/project-00005").exists()
    assert all(write.answer is None for write in writes)
    renewed = shared.cli("pause", "30")
    assert renewed["pause_id"] == state["pause_id"]
    assert renewed["remaining_seconds"] > 29
    assert shared.run("resume") == {"was_paused": True, "pause_id": state["pause_id"]}
    assert [write.result().status for write in writes] == [201, 201, 200, 200, 200, 204]
    assert (shared.root / "projects/late/project.json").exists()
    assert shared.cli("resume") == {"was_paused": False, "pause_id": None}


def paused(application: Application) -> tuple[int, str]:
    argv = application.argv("paused")
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout


def test_paused_tells_one_pause_from_the_next(shared: Application) -> None:
    assert paused(shared) == (1, "")
    first = shared.cli("pause", "20")["pause_id"]
    assert paused(shared) == paused(shared) == (0, f"{first}\n")
    shared.cli("resume")
    assert paused(shared) == (1, "")
    assert shared.cli("pause", "20")["pause_id"] != first
    assert paused(shared)[0] == 0
    shared.cli("resume")


def test_pause_expires_by_itself(shared: Application) -> None:
    audited = len(shared.log("audit"))
    started = time.monotonic()
    shared.cli("pause", "0.8")
    write = Background(shared, "PUT", "/api/uploads/expired", b"late")
    assert write.result().status == 201
    assert 0.8 <= write.seconds - started < 6
    state = shared.admin("GET", "/admin/writes").json
    assert state == {"paused": False, "pause_id": None, "remaining_seconds": 0.0, "in_flight": 0, "waiting": 0}
    assert [entry["message"] for entry in shared.log("audit")[audited:]] == ["writes.pause", "writes.expire"]


def test_a_write_gives_up_waiting(limited: Application) -> None:
    limited.cli("pause", "20")
    answer = limited.call("PUT", "/api/uploads/late", b"late")
    assert answer.status == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert not (limited.root / "data/uploads/late").exists()


def test_pause_returns_only_when_writes_in_flight_are_done(shared: Application) -> None:
    shared.hold_lock()
    write = Background(shared, "PUT", "/api/uploads/busy", b"x" * 10)
    wait_for(lambda: shared.admin("GET", "/admin/writes").json["in_flight"] == 1)
    pause = Background(shared, "POST", "/admin/writes/pause", {"seconds": 20}, shared.token())
    wait_for(lambda: shared.admin("GET", "/admin/writes").json["paused"])
    assert pause.answer is write.answer is None
    shared.admin("POST", "/admin/faults", {"hold_lock_seconds": 0})
    assert (pause.result().status, pause.result().json["in_flight"]) == (200, 0)
    assert shared.rows("SELECT bytes FROM uploads WHERE path = 'data/uploads/busy'") == [(10,)]
    assert write.result().status == 201
    shared.cli("resume")
    shared.hold_lock()
    write = Background(shared, "PUT", "/api/uploads/busy2", b"x")
    wait_for(lambda: shared.admin("GET", "/admin/writes").json["in_flight"] == 1)
    refused = shared.admin("POST", "/admin/writes/pause", {"seconds": 0.5})
    assert refused.status == 503
    assert "not paused" in refused.json["error"]
    state = shared.admin("GET", "/admin/writes").json
    assert (state["paused"], state["in_flight"]) == (False, 1)
    shared.admin("POST", "/admin/faults", {"hold_lock_seconds": 0})
    assert write.result().status == 201


def test_administration_needs_the_token(shared: Application) -> None:
    for method, path in (("GET", "/admin/writes"), ("POST", "/admin/writes/pause"), ("POST", "/admin/faults")):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": shared.env()["ADMIN_TOKEN"]}):
            assert shared.call(method, path, {"seconds": 5}, header).status == 401
    for seconds in (0, -1, 601, "5", True, None):
        assert shared.admin("POST", "/admin/writes/pause", {"seconds": seconds}).status == 400
    assert shared.admin("GET", "/admin/writes").json["paused"] is False
    outside = {**shared.token(), "X-Forwarded-For": "192.0.2.7"}
    assert shared.call("GET", "/admin/writes", headers=outside).status == 403
    assert shared.call("GET", "/metrics", headers=outside).status == 200
    assert shared.call("GET", "/metrics", headers={"X-Forwarded-For": "192.0.2.7"}).status == 401
    assert {entry["message"] for entry in shared.log("audit")} >= {"admin.denied"}


# -- faults -------------------------------------------------------------------------------------------------------


def test_error_rate_and_unknown_faults(shared: Application) -> None:
    assert shared.admin("POST", "/admin/faults", {"error_rate": 0.25}).json["error_rate"] == 0.25
    answers = [shared.call("GET", "/api/projects") for _turn in range(8)]
    assert [answer.status for answer in answers].count(500) == 2
    failed = next(answer for answer in answers if answer.status == 500)
    errors = [entry for entry in shared.log("error") if entry["request_id"] == failed.json["request_id"]]
    assert len(errors) == 1
    assert "Traceback" in errors[0]["exception"]
    assert b"Traceback" not in failed.body
    assert shared.call("GET", "/readyz").status == 200
    for body in ({"error_rate": 2}, {"nonsense": 1}, {"leak_bytes": "x"}, {"error_rate": float("nan")}):
        assert shared.admin("POST", "/admin/faults", body).status == 400


def test_slow_provider_and_its_time_limit(limited: Application) -> None:
    call = {"project": "project-00001", "prompt": "x"}
    limited.admin("POST", "/admin/faults", {"slow_provider_seconds": 0.3})
    started = time.monotonic()
    assert limited.call("POST", "/api/chat", call).status == 200
    assert time.monotonic() - started > 0.3
    limited.admin("POST", "/admin/faults", {"slow_provider_seconds": 5})
    before = limited.rows("SELECT count(*) FROM usage")
    plain = Background(limited, "POST", "/api/chat", call)
    ((kind, data),) = _events(limited.call("GET", "/api/chat/stream?project=project-00001&prompt=x").body)
    assert kind == "error"
    assert "in time" in data["error"]
    assert plain.result().status == 504
    assert limited.rows("SELECT count(*) FROM usage") == before
    assert b'operation_duration_seconds_count{error_type="timeout"' in limited.call("GET", "/metrics").body


@BOTH
def test_held_lock_stops_writes_and_not_reads(shared: Application) -> None:
    shared.hold_lock()
    if shared.server:
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            shared.rows("SET lock_timeout = '50ms'; DELETE FROM users")
    else:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite3.connect(shared.root / "data/gateway.db", timeout=0, isolation_level=None).execute("BEGIN IMMEDIATE")
    assert shared.call("GET", "/readyz").status == shared.call("GET", "/api/projects").status == 200
    answer = shared.call("PUT", "/api/uploads/locked", b"x")
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert ("lock timeout" if shared.server else "locked") in json.dumps(shared.log("error"))
    assert not (shared.root / "data/uploads/locked").exists()
    assert shared.admin("POST", "/admin/faults", {"hold_lock_seconds": 0}).json["hold_lock_seconds"] == 0
    assert shared.call("PUT", "/api/uploads/locked", b"x").status == 201


def test_leak(shared: Application) -> None:
    def resident() -> float:
        text = shared.call("GET", "/metrics").body.decode()
        return float(re.search(r"^process_resident_memory_bytes (.*)$", text, re.M).group(1))  # type: ignore[union-attr]

    before = resident()
    shared.admin("POST", "/admin/faults", {"leak_bytes": 8 << 20})
    for _turn in range(5):
        shared.call("GET", "/healthz")
    assert resident() - before > 32 << 20
    shared.admin("POST", "/admin/faults", {"leak_bytes": 0})
    wait_for(lambda: resident() - before < 32 << 20)


def test_readiness_names_what_is_wrong(shared: Application) -> None:
    shared.rows("UPDATE alembic_version SET version_num = '0099'")
    answer = shared.call("GET", "/readyz")
    assert answer.status == 503
    assert answer.json["checks"]["database"] == "ok"
    assert "0099" in answer.json["checks"]["schema"]
    shared.rows("UPDATE alembic_version SET version_num = '0002'")
    assert shared.call("GET", "/readyz").status == 200
    database = shared.root / "data/gateway.db"
    database.rename(f"{database}.gone")
    answer = shared.call("GET", "/readyz")
    alive, metrics, made = shared.call("GET", "/healthz"), shared.call("GET", "/metrics"), database.exists()
    Path(f"{database}.gone").rename(database)
    assert answer.status == 503
    assert "removed or replaced" in answer.json["checks"]["database"]
    assert alive.status == 200
    assert not made
    assert b'app_health_status{check="database"} 0.0' in metrics.body
    assert shared.call("GET", "/readyz").status == 200


# -- PostgreSQL ---------------------------------------------------------------------------------------------------


@POSTGRESQL
def test_a_database_that_cannot_be_used_is_named_without_the_password(stopped: Application) -> None:
    server, name = stopped.server, stopped.database
    assert server
    for url, says in (
        (_url(server, name, "wrong-secret"), "password authentication failed.*; correct user and password in DATABASE_URL"),
        (_url(server, "no_such"), 'database "no_such" does not exist; restore it, or correct DATABASE_URL'),
        (_url(server, name, port=1), "Connection refused.*; start the PostgreSQL server"),
        (f"postgresql://app:{quote(PASSWORD, safe='')}@/{name}?host={server.folder}", "No such file.*; start the PostgreSQL server"),
        (f"postgresql://nobody:wrong-secret@/{name}?host={server.host}&port={server.port}", "correct user and password"),
        (_url(server, name) + "?sslmode=wrong", "sslmode"),
    ):
        stopped.set_env("DATABASE_URL", url)
        for command in ("serve", "migrate", "ledger-check"):
            error = stopped.cli(command, *(["--ledger", "none"] if command == "ledger-check" else []), code=2)
            assert re.search(says, error), error
            assert PASSWORD not in error
            assert "secret" not in error
    assert server.run("SELECT count(*) FROM pg_database WHERE datname = 'no_such'") == "0"
    stopped.set_env("DATABASE_URL", f"postgresql+psycopg2://app:{quote(PASSWORD, safe='')}@/{name}?host={server.host}&port={server.port}")
    assert stopped.cli("schema")["current"] is True


@POSTGRESQL
def test_init_takes_only_an_empty_database(stopped: Application, tmp_path: Path) -> None:
    assert stopped.server
    other = Application(tmp_path / "other", stopped.server)
    url = stopped.env()["DATABASE_URL"]
    assert "has 7 tables: restore" in other.cli("init", "--database-url", url, code=2)
    assert not other.root.exists()
    name = _new_name()
    stopped.server.run(f"CREATE DATABASE {name}")  # not the user's own: nothing can be made in it
    refused = other.cli("init", "--database-url", _url(stopped.server, name), code=2)
    assert "permission denied" in refused
    stopped.server.run(f"ALTER DATABASE {name} OWNER TO app")
    assert other.cli("init", "--database-url", _url(stopped.server, name))["revision"] == "0002"
    assert other.rows("SELECT name FROM providers") == [("fake",)]


@POSTGRESQL
def test_sessions_are_named_and_their_end_is_survived(shared: Application) -> None:
    server, name = shared.server, shared.database
    assert server
    sessions = f"FROM pg_stat_activity WHERE datname = '{name}'"
    assert shared.call("GET", "/readyz").status == 200
    assert server.run(f"SELECT DISTINCT application_name {sessions}") == "gateway-green"
    _swap(server, name)
    assert shared.call("PUT", "/api/users/swapped/preferences", {"a": 1}).status == 200
    assert shared.rows("SELECT name FROM users WHERE name IN ('swapped', 'of the other')") == [("of the other",), ("swapped",)]
    assert shared.call("GET", "/readyz").status == 200
    server.stop()
    answer = shared.call("GET", "/readyz")
    assert answer.status == 503
    assert "refused" in answer.json["checks"]["database"]
    assert shared.call("PUT", "/api/uploads/down", b"x").status == 503
    assert shared.call("GET", "/healthz").status == 200
    assert b'app_health_status{check="database"} 0.0' in shared.call("GET", "/metrics").body
    server.start()
    assert shared.call("GET", "/readyz").status == 200
    assert shared.call("PUT", "/api/uploads/down", b"x").status == 201
    assert b"app_db_lock_wait_seconds_count" in shared.call("GET", "/metrics").body


def _swap(server: postgres.Server, name: str) -> None:
    """Let another database take the name, as a restore does."""
    server.run(
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;"
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}';"
        f"CREATE DATABASE {name}_new TEMPLATE {name} OWNER app"
    )
    server.run("INSERT INTO users (name, created_at) VALUES ('of the other', now())", f"{name}_new")
    server.run(f"BEGIN; ALTER DATABASE {name} RENAME TO {name}_old; ALTER DATABASE {name}_new RENAME TO {name}; COMMIT")


@POSTGRESQL
def test_writes_at_the_same_time_do_not_fail_each_other(shared: Application) -> None:
    body = {"slug": "twice", "owner": "both"}
    made = [Background(shared, "POST", "/api/projects", body) for _turn in range(8)]
    assert sorted(one.result().status for one in made) == [201] + [409] * 7
    stored = [Background(shared, "PUT", "/api/projects/twice/files/same", os.urandom(1000)) for _turn in range(8)]
    assert {one.result().status for one in stored} <= {200, 201}
    assert shared.call("GET", "/api/projects/twice/files/same").status == 200
    kept = [Background(shared, "PUT", "/api/users/same/preferences", {"number": n, "b": n}) for n in range(8)]
    assert {one.result().status for one in kept} == {200}
    preferences = shared.call("GET", "/api/users/same/preferences").json
    assert preferences["number"] == preferences["b"]
    mixed = [Background(shared, "PUT", f"/api/projects/twice/files/{n}", b"x") for n in range(4)]
    mixed.append(Background(shared, "DELETE", "/api/projects/twice"))
    assert {one.result().status for one in mixed} <= {201, 204, 404}
    assert not list(shared.root.glob("projects/*twice*"))
    assert shared.rows("SELECT * FROM uploads WHERE path LIKE 'projects/twice/%'") == []


@POSTGRESQL
def test_times_are_utc_whatever_the_server_thinks(stopped: Application) -> None:
    assert stopped.server
    stopped.server.run(f"ALTER DATABASE {stopped.database} SET timezone = 'Asia/Tokyo'")
    assert stopped.start().call("GET", "/api/projects/project-00001").json["created_at"] == "2026-01-01T00:00:00Z"


# -- stop and crash -----------------------------------------------------------------------------------------------


def test_stop_finishes_what_is_in_flight(stopped: Application) -> None:
    stopped.set_env("FAULT_SLOW_PROVIDER_SECONDS", "1.5")
    app = stopped.start()
    assert app.admin("GET", "/admin/faults").json["slow_provider_seconds"] == 1.5
    write = Background(app, "POST", "/api/chat", {"project": "project-00001", "prompt": "x"})
    wait_for(lambda: b'http_server_active_requests{http_request_method="POST"} 1.0' in app.call("GET", "/metrics").body)
    assert app.stop() == 0
    assert write.result().status == 200
    ids = [row["id"] for row in write.result().json["usage"]]
    assert len(app.rows(f"SELECT id FROM usage WHERE id IN ({', '.join(map(str, ids))})")) == len(ids)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", app.port), 2)
    left = {path.name for path in (app.root / "data").iterdir()} | {path.name for path in (app.root / "data/run").iterdir()}
    assert not left & {"gateway.db-wal", "gateway.db-shm", "gateway.pid", "gateway.port"}
    assert [entry["message"] for entry in app.log("app")][-1] == "stopped"


def test_stop_ends_even_if_a_request_does_not(stopped: Application) -> None:
    stopped.set_env("FAULT_SLOW_PROVIDER_SECONDS", "50")
    stopped.set_env("FAULT_HOLD_LOCK_SECONDS", "60")
    stopped.set_limit("stop_grace_seconds", 1)
    app = stopped.start()
    wait_for(lambda: "write lock is held" in json.dumps(app.log("app")))
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)
    connection.request("POST", "/api/chat", json.dumps({"project": "project-00001", "prompt": "x"}))
    wait_for(lambda: b'http_server_active_requests{http_request_method="POST"} 1.0' in app.call("GET", "/metrics").body)
    started = time.monotonic()
    assert app.stop() == 0
    assert 0.9 < time.monotonic() - started < 8
    assert "cut off" in json.dumps(app.log("error"))
    connection.close()


def test_stop_during_a_pause_turns_waiting_writes_away(app: Application) -> None:
    app.cli("pause", "60")
    write = Background(app, "PUT", "/api/uploads/late", b"late")
    wait_for(lambda: app.admin("GET", "/admin/writes").json["waiting"] == 1)
    assert app.stop() == 0
    assert write.result().status == 503
    assert not (app.root / "data/uploads/late").exists()


@BOTH
def test_acknowledged_writes_survive_a_kill(app: Application, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    assert "outside the root" in app.cli("traffic", "--ledger", app.root / "ledger", code=2)
    argv = app.argv("traffic", "--ledger", ledger, "--seconds", 3, "--rate", 200)
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as client:
        wait_for(lambda: ledger.exists() and ledger.read_text().count("\n") > 60)
        app.stop(signal.SIGKILL)
        (app.root / "projects/project-00001/files/.upload-left.tmp").write_bytes(b"half")
        (app.root / "projects/.deleted-left-over/files").mkdir(parents=True)
        app.start()  # on another port: what the client still sends fails
        summary = json.loads(client.communicate(timeout=30)[0])
    assert client.returncode == 0
    assert summary["failed"]
    assert set(summary["acknowledged"]) == {"projects", "uploads", "usage", "user_preferences"}
    assert not list(app.root.rglob("*.tmp"))
    assert not list(app.root.rglob(".deleted-*"))
    if not app.server:
        assert app.rows("PRAGMA integrity_check") == [("ok",)]
    checked = app.run("ledger-check", "--ledger", ledger)
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert checked == {"checked": len(lines), "missing": [], "different": []}
    half = lines[len(lines) // 2]["time"]
    assert app.cli("ledger-check", "--ledger", ledger, "--until", half)["checked"] < len(lines)

    lost = {table: next(line["id"] for line in lines if line["table"] == table) for table in summary["acknowledged"]}
    app.rows(f"DELETE FROM usage WHERE id = {lost['usage']}")
    app.rows("UPDATE user_preferences SET value = '0' WHERE key = 'number' AND user_id = "
             f"(SELECT id FROM users WHERE name = '{lost['user_preferences']}')")  # fmt: skip
    (app.root / lost["uploads"]).write_bytes(b"")
    found = app.cli("ledger-check", "--ledger", ledger, code=1)
    assert found["missing"] == [f"usage {lost['usage']}"]
    assert set(found["different"]) == {f"uploads {lost['uploads']}", f"user_preferences {lost['user_preferences']}"}
