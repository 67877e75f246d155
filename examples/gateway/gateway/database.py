# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, the engine and the state of the schema."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
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
    """The engine with one reader's and one writer's way to begin a transaction."""

    def __init__(self, path: Path, create: bool = False) -> None:
        if not create and not path.is_file():
            raise GatewayError(f"the database {path} is missing: restore it (a server never creates one)")
        self.path = path
        uri = f"file:{urllib.parse.quote(str(path))}?mode={'rwc' if create else 'rw'}"

        def connect() -> sqlite3.Connection:
            # isolation_level None: the driver begins no transaction of its own, the handler below does
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
                    connection.execute(f"PRAGMA {pragma}").close()
            except BaseException:
                connection.close()
                raise
            return connection

        self.engine: Engine = sa.create_engine(
            f"sqlite:///{urllib.parse.quote(str(path))}",
            creator=connect,
            poolclass=QueuePool,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=BUSY_SECONDS,
            hide_parameters=True,  # an error's text goes to the log, values do not
        )
        self.writer: Engine = self.engine.execution_options(write=True)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get("write"):
                # IMMEDIATE waits for the lock; a reader that turns writer would fail at once instead
                with metrics.DB_LOCK_WAIT.time():
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql("BEGIN")

        try:
            with self.engine.begin() as connection:
                connection.execute(sa.text("SELECT count(*) FROM sqlite_master"))
            found = path.stat()
        except (sa.exc.DBAPIError, OSError) as exc:
            self.engine.dispose()
            raise GatewayError(f"the database {path} cannot be used: {getattr(exc, 'orig', exc)}") from None
        self._identity = (found.st_dev, found.st_ino)

    def replaced(self) -> bool:
        """Whether another file, or none, is now where the opened database was."""
        try:
            found = self.path.stat()
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def close(self, checkpoint: bool = False) -> None:
        """Close all connections; with `checkpoint` move the WAL into the database file before."""
        try:
            if checkpoint:
                raw = self.engine.raw_connection()
                try:
                    raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    raw.close()
        finally:
            self.engine.dispose()

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
                f"the schema of {self.path} is at revision {current or 'none'}, this version needs {head}: run `python -m gateway migrate --root DIR`"
            )
        raise _newer(self.path, current)

    def migrate(self, target: str | None = None) -> tuple[str | None, str]:
        """Bring the schema to `target` (default: head), up or down, in one transaction; (before, after)."""
        known = known_revisions()
        current, goal = self.revision(), target or known[0]
        if current is not None and current not in known:
            raise _newer(self.path, current)
        if goal not in known:
            raise GatewayError(f"revision {goal} is unknown, known are {', '.join(reversed(known))}")
        if current != goal:
            config = _config()
            with self.writer.connect() as connection:
                config.attributes["connection"] = connection
                down = current is not None and known.index(goal) > known.index(current)
                (command.downgrade if down else command.upgrade)(config, goal)
        return current, goal


def _newer(path: Path, revision: str) -> GatewayError:
    return GatewayError(
        f"the schema of {path} is at revision {revision}, which this version does not know "
        f"(it knows up to {known_revisions()[0]}): install the version that made it, or restore a backup from before"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config


def known_revisions() -> list[str]:
    """Every revision this code knows, newest first."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def add_providers(database: Database, wanted: list[dict[str, Any]]) -> list[str]:
    """Insert the configured providers that the database does not know; returns their names."""
    with database.engine.begin() as connection:
        known = set(connection.execute(sa.select(providers.c.name)).scalars())
    missing = [entry for entry in wanted if entry["name"] not in known]
    if missing:
        with database.writer.begin() as connection:
            connection.execute(sa.insert(providers), missing)
    return [entry["name"] for entry in missing]
