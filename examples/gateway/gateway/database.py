# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, the two engines and the state of the schema."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import urllib.parse
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.pool import QueuePool

from gateway import GatewayError, metrics

BUSY_SECONDS = 5.0
POOL_SIZE = 16

metadata = sa.MetaData()
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows by itself only for INTEGER
Time = sa.DateTime(timezone=True)


def _column(target: str, **options: Any) -> sa.Column[Any]:
    name = target.split(".")[0].removesuffix("s") + "_id"
    return sa.Column(name, Id, sa.ForeignKey(target, ondelete="CASCADE"), **options)


users = sa.Table(
    "users",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("created_at", Time, nullable=False),
)
user_preferences = sa.Table(
    "user_preferences",
    metadata,
    _column("users.id", primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
providers = sa.Table(
    "providers",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False, unique=True),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("api_key", sa.String(256)),
)
projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("slug", sa.String(64), nullable=False, unique=True),
    sa.Column("title", sa.String(256), nullable=False),
    _column("users.id"),
    sa.Column("created_at", Time, nullable=False),
)
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _column("projects.id", nullable=False, index=True),
    sa.Column("provider_id", Id, sa.ForeignKey("providers.id"), nullable=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("created_at", Time, nullable=False),
    sa.CheckConstraint("type IN ('input', 'cache_read', 'cache_write', 'output', 'reasoning')", name="usage_type"),
)
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", Id, primary_key=True),
    _column("projects.id", index=True),  # null: not a project's file
    sa.Column("path", sa.String(512), nullable=False, unique=True),  # relative to the root
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.String(64), nullable=False),
    sa.Column("created_at", Time, nullable=False),
)


def now() -> datetime:
    return datetime.now(UTC)


def sign(secret_key: str, path: str, sha256: str) -> str:
    """Bind an upload's row to its content and to this application's APP_SECRET_KEY."""
    return hmac.new(secret_key.encode(), f"{path}\0{sha256}".encode(), hashlib.sha256).hexdigest()


class Database:
    """The engine with one reader's and one writer's way to begin a transaction; `connect` opens one."""

    name = ""  # what messages call it; never a password
    engine: Engine

    def _open(self, **options: Any) -> None:
        """Make the engine and see that the database answers."""
        try:
            self.engine = sa.create_engine(
                poolclass=QueuePool,
                pool_size=POOL_SIZE,
                max_overflow=0,
                pool_timeout=BUSY_SECONDS,
                hide_parameters=True,  # an error's text goes to the log, values do not
                **options,
            )
        except ModuleNotFoundError as exc:
            raise GatewayError(f"{self.name} needs the Python module {exc.name}: apt-get install python3-{exc.name}") from None
        self.writer: Engine = self.engine.execution_options(write=True)
        event.listen(self.engine, "begin", self._begin)
        try:
            with self.engine.begin() as connection:
                connection.execute(sa.select(sa.literal(1)))
                self._opened(connection)
        except (sa.exc.DBAPIError, OSError) as exc:
            self.engine.dispose()
            raise GatewayError(f"{self.name} cannot be used: {self._advised(reason(exc))}") from None

    def _begin(self, connection: Connection) -> None:
        raise NotImplementedError

    def _opened(self, connection: Connection) -> None:
        """Look at the database once, when it is opened."""

    def _advised(self, said: str) -> str:
        """What the driver said, with what to do about it where that is known."""
        return said

    def replaced(self) -> bool:
        """Whether another database, or none, is now where the opened one was, and only a restart helps."""
        return False

    def lock(self, connection: Connection) -> None:
        """Take the lock that every writer needs and no reader; `connection` is a writer's, in its transaction."""

    def close(self, checkpoint: bool = False) -> None:
        """Close all connections; with `checkpoint` move what a log beside the database holds into it before."""
        self.engine.dispose()

    def tables(self) -> int:
        """How many tables are there, whosesoever."""
        with self.engine.begin() as connection:
            return len(sa.inspect(connection).get_table_names())

    def revision(self) -> str | None:
        """The schema's revision, None for an empty database."""
        with self.engine.begin() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return found

    def check_schema(self) -> None:
        current, head = self.revision(), known_revisions()[0]
        if current == head:
            return
        if current is None or current in known_revisions():
            raise GatewayError(
                f"the schema of {self.name} is at revision {current or 'none'}, this version needs {head}: run `python -m gateway migrate --root DIR`"
            )
        raise _newer(self.name, current)

    def migrate(self, target: str | None = None) -> tuple[str | None, str]:
        """Bring the schema to `target` (default: head), up or down, in one transaction; (before, after)."""
        known = known_revisions()
        current, goal = self.revision(), target or known[0]
        if current is not None and current not in known:
            raise _newer(self.name, current)
        if goal not in known:
            raise GatewayError(f"revision {goal} is unknown, known are {', '.join(reversed(known))}")
        if current != goal:
            config = _config()
            with self.engine.execution_options(write="schema").connect() as connection:
                config.attributes["connection"] = connection
                down = current is not None and known.index(goal) > known.index(current)
                (command.downgrade if down else command.upgrade)(config, goal)
        return current, goal


class Sqlite(Database):
    """One file. A writer's transaction begins with the only write lock, a reader's sees one state to its end."""

    def __init__(self, url: URL, create: bool) -> None:
        self.path = Path(url.database or "")
        self.name = f"the database {self.path}"
        if not create and not self.path.is_file():
            raise GatewayError(f"{self.name} is missing: restore it (a server never creates one)")
        uri = f"file:{urllib.parse.quote(str(self.path))}?mode={'rwc' if create else 'rw'}"

        def connect() -> sqlite3.Connection:
            # isolation_level None: the driver begins no transaction of its own, _begin does
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                    connection.execute(f"PRAGMA {pragma}").close()
            except BaseException:
                connection.close()
                raise
            return connection

        self._open(url=url, creator=connect)

    def _begin(self, connection: Connection) -> None:
        if connection.get_execution_options().get("write"):
            # IMMEDIATE waits for the lock; a reader that turns writer would fail at once instead
            with metrics.DB_LOCK_WAIT.time():
                connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    def _opened(self, connection: Connection) -> None:
        connection.execute(sa.text("SELECT count(*) FROM sqlite_master"))
        found = self.path.stat()
        self._identity = (found.st_dev, found.st_ino)

    def replaced(self) -> bool:
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def close(self, checkpoint: bool = False) -> None:
        try:
            if checkpoint:
                raw = self.engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    raw.close()
        finally:
            super().close()


class Postgresql(Database):
    """A database of a server. Rows are locked, not the whole; a reader's transaction sees one state to its end.

    Whatever ends the sessions (a restart, a restore that lets another database take the name), the next
    transaction finds it out before it begins and connects anew, by name.
    """

    def __init__(self, url: URL, application: str) -> None:
        host = url.query.get("host") or (f"[{url.host}]" if ":" in (url.host or "") else url.host) or "the default socket"
        self.name = f"the database {url.database} on {host if isinstance(host, str) else ','.join(host)}"
        self.name += f" port {url.port}" if url.port else ""
        settings = {"application_name": application}
        if "connect_timeout" not in url.query:
            settings["connect_timeout"] = str(int(BUSY_SECONDS))
        self._open(url=url, connect_args=settings, pool_pre_ping=True)

    def _begin(self, connection: Connection) -> None:
        # SET LOCAL, not the connection's options: those do not pass a pooler.
        limit = f"SET LOCAL lock_timeout = {int(BUSY_SECONDS * 1000)}"
        write = connection.get_execution_options().get("write")
        if not write:
            connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; {limit}")
            return
        with metrics.DB_LOCK_WAIT.time():
            if write == "schema":  # one migration at a time; there may be no table to lock
                connection.exec_driver_sql(f"{limit}; SELECT pg_advisory_xact_lock(hashtext('gateway schema'))")
            else:  # what each write takes anyway, here all at once, so that waiting for it can be seen
                connection.exec_driver_sql(f"{limit}; LOCK TABLE {_TABLES} IN ROW EXCLUSIVE MODE")

    def lock(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"LOCK TABLE {_TABLES} IN EXCLUSIVE MODE")

    def _advised(self, said: str) -> str:
        if "authentication failed" in said or "no password supplied" in said or ("role " in said and "does not exist" in said):
            return f"{said}; correct user and password in DATABASE_URL of .env"
        if "does not exist" in said:
            return f"{said}; restore it, or correct DATABASE_URL of .env (a server never creates one)"
        return f"{said}; start the PostgreSQL server, or correct DATABASE_URL of .env"

    def tables(self) -> int:
        select = (
            "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') "
            "AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')"
        )
        with self.engine.begin() as connection:
            return int(connection.execute(sa.text(select)).scalar() or 0)


_TABLES = ", ".join(table.name for table in metadata.sorted_tables)


def connect(url: URL, application: str = "gateway", create: bool = False) -> Database:
    """Open the database of a URL that `settings.database_url` has checked. `create` makes a missing SQLite file;
    a database of PostgreSQL has to be there. `application` is what the server's list of sessions shows."""
    if url.get_backend_name() == "sqlite":
        return Sqlite(url, create)
    return Postgresql(url, application)


def reason(exc: Exception) -> str:
    """What a driver said, on one line. It is the server's or the driver's text: no parameters, no URL."""
    lines = str(getattr(exc, "orig", None) or exc).splitlines()
    return " ".join(" ".join(dict.fromkeys(lines)).split())  # libpq says it twice where it tried with and without TLS


def _newer(name: str, revision: str) -> GatewayError:
    return GatewayError(
        f"the schema of {name} is at revision {revision}, which this version does not know "
        f"(it knows up to {known_revisions()[0]}): install the version that made it, or restore a backup from before"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def known_revisions() -> list[str]:
    """Every revision this code knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def upsert(connection: Connection, table: sa.Table, key: str, values: dict[str, Any], replace: Iterable[str]) -> None:
    """Insert a row, or where the key is there already replace the named columns; two at once do not fail each other."""
    make: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    statement = make(table).values(values)
    if replace:
        connection.execute(statement.on_conflict_do_update(index_elements=[key], set_={name: values[name] for name in replace}))
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=[key]))


def add_providers(database: Database, wanted: list[dict[str, Any]]) -> list[str]:
    """Insert the configured providers that the database does not know; returns their names."""
    with database.engine.begin() as connection:
        known = set(connection.execute(sa.select(providers.c.name)).scalars())
    missing = [entry for entry in wanted if entry["name"] not in known]
    if missing:
        with database.writer.begin() as connection:
            for entry in missing:
                upsert(connection, providers, "name", entry, ())
    return [entry["name"] for entry in missing]
