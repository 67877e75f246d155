# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PostgreSQL database: is it there, did it change, a consistent dump of it, and is a dump good."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List

from .._core.command import CommandError, last_words, run, start
from .._core.files import hash_file
from .._core.operation import Check
from .clients import client, major_of, newest_client, version_text
from .contents import ask, contents_of, difference, owners_of, roles_of, sequences_in, tablespaces_of
from .errors import PostgresError
from .login import IDENTIFIER_BYTES, Login, missing_driver

READ_S = 24 * 3600
"""Seconds that one pass over a database or a dump may take."""

MAGIC = b"PGDMP"
"""How a custom-format archive begins (src/bin/pg_dump/pg_backup_archiver.c)."""

_IDENTITY = """
    SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()),
           (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()),
           pg_catalog.txid_current_snapshot()::text,
           oid
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""


class PostgresDatabase:
    """A database in a server. Implements ``DatabaseSource``; an image is an archive in pg_dump's custom format.

    :param name: the name it has in a set
    :param database: the name it has in the server
    :param deadline_s: seconds to wait for a lock of the application
    :param schema_query: SQL that gives the version of the schema in one value; empty for an application without one
    :param compression: gzip's level for an archive; 0, none, is for a store that compresses itself
    """

    engine = "postgresql"

    def __init__(self, name: str, database: str, login: Login, deadline_s: float, schema_query: str = "", compression: int = 0) -> None:
        self.name = name
        self.database = database
        self.login = login
        self.deadline_s = deadline_s
        self.schema_query = schema_query
        self.compression = compression
        self._learned: Dict[str, Dict[str, Any]] = {}

    @property
    def where(self) -> str:
        """Return the database as a person would name it."""
        return f"{self.database} on {self.login.where}"

    def files(self) -> List[str]:
        """Return nothing: the server's own files are no business of a client."""
        return []

    def missing(self) -> List[str]:
        """Return the Debian packages without which the server can't be asked anything."""
        return [package for package in [missing_driver()] if package]

    def require(self) -> None:
        """Raise :class:`PostgresError` when the database can't be reached, or no installed client can dump it."""
        check_name(self.database)
        self.login.check()
        if self.missing():
            # Said by missing(): in a rehearsal on a blank host it is about to be installed.
            return
        with self.login.session(self.database) as connection:
            client("pg_dump", major_of(connection.server_version))
            client("pg_restore", major_of(connection.server_version))
            self._schema_version(connection)

    def size(self) -> int:
        """Return the upper bound of an image's bytes: text can be longer than what the server stores, so it is not exact."""
        with self.login.session(self.database) as connection:
            return int(ask(connection, "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")[0][0])

    def fingerprint(self) -> str:
        """Return what moves with every commit in the server: its identity, timeline, and the transactions that it has seen.

        Another database of the same server moves it, too; :meth:`is_as` settles whether this one has changed.
        """
        with self.login.session(self.database) as connection:
            return "/".join(str(value) for value in ask(connection, _IDENTITY)[0])

    def is_as(self, facts: Dict[str, Any]) -> bool:
        """True when a dump made now would hold what the one with these facts holds, and what is beside it, too. Reads every row if it has to."""
        if "beside" in facts and hashlib.sha256(self.globals_sql()).hexdigest() != facts["beside"]["sha256"]:
            return False
        with self.login.session(self.database, lock_s=self._lock_s) as connection:
            same_major = major_of(connection.server_version) == major_of(facts["server_version"])
            return same_major and not difference(connection, self.login, self.database, facts)

    def contents(self) -> Dict[str, Any]:
        """Return ``tables``, ``sequences``, ``schema`` and ``properties`` as in :meth:`facts`, as they are now."""
        with self.login.session(self.database, lock_s=self._lock_s) as connection:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
            return contents_of(connection, self.login, self.database)

    def copy(self, target: str) -> None:
        """Write a dump as of one moment to a new file, mode 0600; not yet flushed to the disk.

        Rows, definitions and the facts are all of the same snapshot. Of pg_dump's compressions only gzip has a checksum of
        the content.
        Raises :class:`PostgresError`, or :class:`OSError` when the disk is full; then there is no target.
        """
        with self.pinned(target) as write:
            write()

    @contextmanager
    def pinned(self, target: str) -> Iterator[Callable[[], None]]:
        """Hold the database as it is now, by an exported snapshot; what is given then writes the dump that :meth:`copy` would
        have made at this moment."""
        with self._removed_on_error(target), self.login.session(self.database, lock_s=self._lock_s) as connection:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True, autocommit=False)
            snapshot = ask(connection, "SELECT pg_catalog.pg_export_snapshot()")[0][0]
            yield lambda: self._dump(connection, snapshot, target)

    def _dump(self, connection: Any, snapshot: str, target: str) -> None:
        version = connection.server_version
        program = client("pg_dump", major_of(version))
        argv = [program, "--format=custom", f"--compress={self.compression}", "--no-password", f"--snapshot={snapshot}"]
        argv.append(f"--lock-wait-timeout={int(self._lock_s * 1000)}")
        # Its own encoding, which holds every text in it, and not what the role has set for its sessions.
        argv.append(f"--encoding={ask(connection, 'SHOW server_encoding')[0][0]}")
        # Written through a descriptor of ours: the user that the dump runs as has no rights in the store.
        with open(target, "xb", opener=_private) as stream:
            process = start(self.login.as_user(argv), stdout=stream.fileno(), env=self.login.environment(self.database), cwd="/")
        try:
            # The server has more than one core; what is compared later is read while it is dumped.
            learned = contents_of(connection, self.login, self.database, snapshot)
            learned.update(
                database=self.database,
                owners=owners_of(connection),
                tablespaces=tablespaces_of(connection),
                database_bytes=ask(connection, "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")[0][0],
                roles=roles_of(connection),
                schema_version=self._schema_version(connection),
                server_version=version,
            )
            _finish(process, argv[0], self.where, target)
            learned["sequences"] = sequences_in(connection, target)
        finally:
            end(process)
        self._learned[target] = learned

    def copy_beside(self, target: str) -> bool:
        """Write :meth:`globals_sql` to a new file, mode 0600."""
        with self._removed_on_error(target):
            text = self.globals_sql()
            with open(target, "xb", opener=_private) as stream:
                stream.write(text)
        return True

    def globals_sql(self) -> bytes:
        """Return roles, memberships and tablespaces of the whole server as SQL, the same each time as long as they are.

        With the verifiers of passwords where the login may read them, else without.
        """
        with self.login.session(self.database) as connection:
            program = client("pg_dumpall", major_of(connection.server_version))
            readable = ask(connection, "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0][0]
        # From the database that the login is for; without it, pg_dumpall takes one that it may have no right to.
        argv = [program, "--globals-only", "--no-password", f"--database={conninfo(self.database)}"]
        argv += ["--no-role-passwords"] * (not readable) + ["--encoding=UTF8"]
        text = run(self.login.as_user(argv), READ_S, env=self.login.environment(self.database), cwd="/").stdout
        # A random key for psql alone, which makes two dumps of the same roles differ (psql, \restrict).
        return b"".join(line for line in text.splitlines(keepends=True) if not line.startswith((b"\\restrict ", b"\\unrestrict ")))

    def facts(self, image: str) -> Dict[str, Any]:
        """Return what is to be remembered of an image that :meth:`copy` made.

        ``bytes`` and ``sha256`` of the archive; ``tables`` (rows and a sum over their content, by name), ``sequences``,
        ``schema`` (SHA-256 of all definitions), ``properties`` (what a dump without ``--create`` leaves out), ``roles``
        (that own something or have rights), ``owners`` (that own something), ``tablespaces``, ``schema_version``,
        ``server_version`` (150018 is 15.18), ``database``, ``database_bytes`` (on the server's disk).
        """
        return {**self._learned.pop(image), "bytes": os.stat(image).st_size, "sha256": hash_file(image)}

    @property
    def _lock_s(self) -> float:
        return max(self.deadline_s, 1)

    def live_schema_version(self) -> str:
        """Return what the application calls the schema that is live; empty for an application without versions."""
        with self.login.session(self.database) as connection:
            return self._schema_version(connection)

    def _schema_version(self, connection: Any) -> str:
        if not self.schema_query:
            return ""
        # The operator wrote it with the names that the application uses.
        ask(connection, "RESET search_path")
        rows = ask(connection, self.schema_query)
        ask(connection, "SET search_path = ''")
        if len(rows) != 1 or len(rows[0]) != 1 or rows[0][0] is None:
            raise PostgresError(
                f"the query for the schema's version gives {len(rows)} rows instead of one value", self.where, "Correct schema_query"
            )
        return str(rows[0][0])

    @contextmanager
    def _removed_on_error(self, target: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if os.path.lexists(target) and not isinstance(error, FileExistsError):
                os.unlink(target)
            if isinstance(error, CommandError):
                raise PostgresError(error.what, self.where, f"Try it by hand: {error.where}") from None
            raise


def check_image(path: str, facts: Dict[str, Any]) -> List[Check]:
    """Compare a dump with its facts by hash, and have pg_restore read all of it. Asks no server."""
    size, digest = os.stat(path).st_size, hash_file(path)
    checks = [
        Check("size", size == facts["bytes"], f"{size} bytes, {facts['bytes']} recorded"),
        Check("sha256", digest == facts["sha256"], f"{digest}, {facts['sha256']} recorded"),
    ]
    if all(check.ok for check in checks):
        # The list of contents stands at the head: reading that alone passes on an archive that was cut in half.
        try:
            run([newest_client("pg_restore"), "--exit-on-error", "--file=/dev/null", path], READ_S)
            checks.append(Check("pg_restore", True, "read to its end"))
        except CommandError as error:
            checks.append(Check("pg_restore", False, error.what))
    return checks


def conninfo(database: str) -> str:
    """Return a connection string: a bare name with an equals sign in it would be taken for one (libpq, 34.1.1)."""
    escaped = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{escaped}'"


def check_name(database: str) -> None:
    """Raise :class:`PostgresError` for a name that a server would cut or refuse."""
    size = len(os.fsencode(database))
    if not database or "\0" in database:
        raise PostgresError("the name of the database is empty", todo="Name it in the description")
    if size > IDENTIFIER_BYTES:
        raise PostgresError(
            f"the name of the database has {size} bytes; a server cuts names after {IDENTIFIER_BYTES} and would mean another one",
            database,
            "Correct the name in the description",
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a program that has not ended, and close what it was read by."""
    process.kill()
    with process:
        process.wait()


def _finish(process: subprocess.Popen[bytes], program: str, where: str, target: str) -> None:
    """Wait for a dump. Raises :class:`PostgresError`, or :class:`OSError` when the disk is full."""
    try:
        _out, err = process.communicate(timeout=READ_S)
    except subprocess.TimeoutExpired:
        raise PostgresError(f"{program} still runs after {READ_S} s", where, "Look what holds it: pg_stat_activity") from None
    if process.returncode == 0:
        return
    # The server's own disk can be full, too: then it is an error of the server.
    if (os.strerror(errno.ENOSPC).encode() in err and b"ERROR: " not in err) or shutil.disk_usage(os.path.dirname(target)).free == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
    raise PostgresError(f"{program} failed: {last_words(err)}", where, "Mend what it names and run again")


def describe_version(facts: Dict[str, Any]) -> str:
    """Return the server's version at the time of a dump, for people."""
    return version_text(facts["server_version"])
