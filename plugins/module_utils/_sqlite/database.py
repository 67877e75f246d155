# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One SQLite database: is it there, did it change, a consistent image of it, and is an image good."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from contextlib import closing, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import quote

from .._core.files import fsync_file, hash_file
from .._core.operation import Check
from .errors import SqliteError

MAGIC = b"SQLite format 3\x00"
HEADER_BYTES = 100
SIDE_FILES = ("-wal", "-shm", "-journal")

# Two commits within one tick of the kernel's clock (up to 10 ms) can leave the same times, and a -wal that is written
# over from its start the same size and salts.
_UNSETTLED_S = 0.1


def is_empty_or_absent(path: str) -> bool:
    """True where there is no file of this name, or one without a byte."""
    try:
        return os.stat(path).st_size == 0
    except FileNotFoundError:
        return True


class SqliteDatabase:
    """A database in one main file and what SQLite keeps beside it. Implements ``DatabaseSource``."""

    engine = "sqlite"

    def __init__(self, name: str, path: str, deadline_s: float, schema_query: str = "") -> None:
        """Look at nothing yet.

        :param schema_query: SQL that gives the version of the schema in one value; empty for an application without one
        :param path: the main file; links are resolved, as SQLite does when it names the files beside it
        :param deadline_s: seconds to wait for locks of the application
        """
        self.name = name
        self.path = os.path.realpath(path)
        self.deadline_s = deadline_s
        self.schema_query = schema_query

    def files(self) -> List[str]:
        """Return the main file, ``-wal``, ``-shm`` and ``-journal``, whether they exist or not."""
        return [self.path] + [self.path + suffix for suffix in SIDE_FILES]

    def missing(self) -> List[str]:
        """Return nothing: Python brings what is needed."""
        return []

    def require(self) -> None:
        """Raise :class:`SqliteError` unless there is a readable file with SQLite's header. Opens it with nothing but read."""
        problem = _header_problem(self.path)
        if problem:
            raise SqliteError(problem, self.path, "Correct the path, or put the database back; it is never made here")

    def size(self) -> int:
        """Return the upper bound of an image's bytes: each page in the ``-wal`` may be a new one."""
        total = os.stat(self.path).st_size
        wal = self.path + "-wal"
        return total if is_empty_or_absent(wal) else total + os.stat(wal).st_size

    def fingerprint(self) -> str:
        """Return a digest that moves with every commit, without opening the database.

        It is made of size, time and change counter of the main file and of size, time and salts of the ``-wal`` (the
        main file alone does not move on a commit in WAL mode; https://www.sqlite.org/fileformat2.html sections 1.3
        and 4.1). A database that is being written at this very moment gives a digest that never comes again.
        """
        seen, changed_ns = self._look()
        for _attempt in range(2):
            # A time in the future is not young but wrong; it moves all the same.
            age_s = (time.time_ns() - changed_ns) / 1e9
            if not 0 <= age_s < _UNSETTLED_S:
                return hashlib.sha256(repr(seen).encode("ascii")).hexdigest()
            time.sleep(_UNSETTLED_S - age_s)
            seen, changed_ns = self._look()
        return hashlib.sha256(repr(seen).encode("ascii") + os.urandom(16)).hexdigest()

    def is_as(self, facts: Dict[str, Any]) -> bool:
        """True when the database is byte for byte the image with these facts, with nothing beside it that is not in it yet."""
        if any(not is_empty_or_absent(self.path + suffix) for suffix in ("-wal", "-journal")):
            return False
        state = os.lstat(self.path) if os.path.lexists(self.path) else None
        return (
            state is not None
            and stat.S_ISREG(state.st_mode)
            and state.st_size == facts["bytes"]
            and hash_file(self.path) == facts["sha256"]
        )

    def contents(self) -> Dict[str, Any]:
        """Return ``rows`` and ``schema`` as in :meth:`facts`, as they are now; others go on reading and, in WAL mode, writing.

        Raises :class:`SqliteError` where nobody could tell, or only with files left beside it.
        """
        self.require()
        beside = [os.path.exists(self.path + suffix) for suffix in ("-wal", "-shm")]
        if _is_wal(self.path) and not all(beside):
            # Nobody has it open, and opening it as usual would leave a -wal and -shm behind.
            if not is_empty_or_absent(self.path + "-wal"):
                raise SqliteError(
                    "its -wal is still to be played back, which would make a -shm beside it", self.path, "Start the application once"
                )
            before = self.fingerprint()
            found = self._rows_and_schema("mode=ro&immutable=1")
            if self.fingerprint() != before:
                raise SqliteError("somebody opened it while it was read", self.path, "Run again")
            return found
        return self._rows_and_schema("mode=ro")

    def _rows_and_schema(self, query: str) -> Dict[str, Any]:
        try:
            with closing(open_database(self.path, query, self.deadline_s)) as connection:
                connection.execute("BEGIN")
                rows, schema, _notes = _rows_and_schema(connection)
                return {"rows": rows, "schema": schema}
        except sqlite3.Error as error:
            raise self._explain(error) from None

    def _look(self) -> Tuple[Tuple[object, ...], int]:
        try:
            with open(self.path, "rb") as stream:
                header = stream.read(HEADER_BYTES)
                main = os.fstat(stream.fileno())
        except FileNotFoundError:
            raise SqliteError("it went while it was looked at", self.path, "Run again") from None
        seen: Tuple[object, ...] = (main.st_size, main.st_mtime_ns, header[24:28])
        try:
            with open(self.path + "-wal", "rb") as stream:
                salts = stream.read(32)[16:24]
                wal = os.fstat(stream.fileno())
        except FileNotFoundError:
            return seen, main.st_mtime_ns
        if wal.st_size == 0:
            # What a reader leaves behind when it opens a closed database in WAL mode: the same as none.
            return seen, main.st_mtime_ns
        return seen + (wal.st_size, wal.st_mtime_ns, salts), max(main.st_mtime_ns, wal.st_mtime_ns)

    def copy(self, target: str) -> None:
        """Write a consistent image to a new file, mode 0600, nothing beside it; not yet flushed to the disk.

        Everything that was committed before the call is in it; the application goes on reading and, in WAL mode,
        writing. Copied in one step: a stepped copy starts again with each commit and never ends under writes.
        Raises :class:`SqliteError`; then there is no target.
        """
        with self.pinned(target) as write:
            write()

    @contextmanager
    def pinned(self, target: str) -> Iterator[Callable[[], None]]:
        """Hold the database as it is now; what is given then writes the image that :meth:`copy` would have made at this moment.

        In WAL mode an open read transaction holds it while others write (https://www.sqlite.org/isolation.html). Else such a
        transaction would keep others from writing, so the image is written before this is entered.

        While it is held, nothing in this process may open the database's files, not even to read a byte: see below.
        """
        self.require()
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with self._removed_on_error(target), closing(open_database(self.path, "mode=ro", self.deadline_s)) as source:
            os.chmod(target, 0o600)
            # Waits for the application's lock within the deadline, and pins the snapshot: backup() itself would try a
            # locked database again for ever.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            # Asked of the connection. From here on the file must not be opened in any other way: closing it gives up all locks
            # that this process has on it (fcntl(2), https://www.sqlite.org/howtocorrupt.html section 2.2).
            if source.execute("PRAGMA journal_mode").fetchone() == (b"wal",):
                yield lambda: _write_image(source, target)
            else:
                _write_image(source, target)
                source.execute("COMMIT")
                yield lambda: None

    def copy_beside(self, target: str) -> bool:
        """Return False: a file has no server."""
        return False

    def facts(self, image: str) -> Dict[str, Any]:
        """Return what is to be remembered of an image.

        ``bytes``, ``sha256``, ``rows`` (table: count), ``schema`` (SHA-256 of all definitions), ``user_version``,
        ``application_id``, ``page_size``, ``journal_mode`` (``wal`` or ``rollback``), ``foreign_key_violations`` (a
        number, or null where SQLite can't tell), ``notes`` about what could not be counted, and ``schema_version``, which the
        application gives it.
        Raises :class:`SqliteError`; then there is no image any more.
        """
        with self._removed_on_error(image), closing(_open_immutable(image)) as connection:
            return {**_facts(image), "schema_version": self.schema_version(connection)}

    def schema_version(self, connection: sqlite3.Connection) -> str:
        """Return what the application calls the schema of an opened database; empty for an application without versions."""
        if not self.schema_query:
            return ""
        try:
            rows = connection.execute(self.schema_query).fetchmany(2)
        except sqlite3.Error as error:
            raise SqliteError(f"the query for the schema's version failed: {error}", self.path, "Correct schema_query") from None
        if len(rows) != 1 or len(rows[0]) != 1 or rows[0][0] is None:
            raise SqliteError("the query for the schema's version does not give one value", self.path, "Correct schema_query")
        value = rows[0][0]
        return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)

    def image(self, target: str) -> Dict[str, Any]:
        """Write a consistent image as :meth:`copy` does, flush it to the disk, and return its :meth:`facts`."""
        self.copy(target)
        fsync_file(target)
        return self.facts(target)

    @contextmanager
    def _removed_on_error(self, target: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            for path in [target] + [target + suffix for suffix in SIDE_FILES]:
                if os.path.lexists(path):
                    os.unlink(path)
            if isinstance(error, sqlite3.Error):
                raise self._explain(error) from None
            raise

    def locked(self, text: str) -> SqliteError:
        """Return what to raise when another process has not let go of the database in time."""
        return SqliteError(
            f"locked by another process for longer than {self.deadline_s:g} s ({text})",
            self.path,
            f"Look for who holds it with: fuser -v {self.path}; or give it more time",
        )

    def _explain(self, error: sqlite3.Error) -> SqliteError:
        text = str(error)
        if "locked" in text or "busy" in text:
            return self.locked(text)
        if "readonly" in text and not is_empty_or_absent(self.path + "-journal"):
            return SqliteError(
                "a transaction was cut off and its rollback journal is still to be played back, which needs a writer",
                self.path,
                "Start the application once, or open the database once for writing with sqlite3, and run this again",
            )
        if "readonly" in text or "unable to open" in text:
            return SqliteError(
                f"SQLite can't make or write the -wal and -shm files beside it ({text})",
                self.path,
                "Run this as the owner of the database or as root, and look that its file system is not mounted read-only",
            )
        if "full" in text:
            return SqliteError(f"no space left for the image ({text})", self.path, "Make room and run this again")
        return SqliteError(f"SQLite can't copy it: {text}", self.path, "Check it with: PRAGMA integrity_check")

    def check_image(self, path: str, facts: Dict[str, Any]) -> List[Check]:
        """Compare an image with its facts, by hash and by SQLite's own checks. Makes and leaves nothing."""
        problem = _header_problem(path)
        checks = [Check("header", not problem, problem or "SQLite format 3")]
        if problem:
            return checks
        size = os.stat(path).st_size
        checks.append(Check("size", size == facts["bytes"], f"{size} bytes, {facts['bytes']} recorded"))
        digest = hash_file(path)
        checks.append(Check("sha256", digest == facts["sha256"], f"{digest}, {facts['sha256']} recorded"))
        if not all(check.ok for check in checks):
            # SQLite would only say in more words that these are other bytes.
            return checks
        try:
            with closing(_open_immutable(path)) as connection:
                found = [row[0].decode("utf-8", errors="replace") for row in connection.execute("PRAGMA integrity_check(5)")]
                checks.append(Check("integrity_check", found == ["ok"], "; ".join(found)))
                contents = _contents(connection)
        except sqlite3.Error as error:
            checks.append(Check("integrity_check", False, f"SQLite can't read it: {error}"))
            return checks
        for name in ("foreign_key_violations", "schema", "rows"):
            same = contents[name] == facts[name]
            detail = _difference(contents[name], facts[name]) if name == "rows" else f"{contents[name]}, {facts[name]} recorded"
            checks.append(Check(name, same, detail))
        return checks


def _write_image(source: sqlite3.Connection, target: str) -> None:
    with closing(open_database(target, "mode=rw")) as copy:
        # The copy is thrown away unless it is whole and on disk, so it needs no journal of its own.
        copy.execute("PRAGMA journal_mode=OFF")
        copy.execute("PRAGMA synchronous=OFF")
        source.backup(copy, pages=-1)


def _is_wal(path: str) -> bool:
    # Bytes 18 and 19: file format write and read version (https://www.sqlite.org/fileformat2.html section 1.3.3).
    with open(path, "rb") as stream:
        return stream.read(HEADER_BYTES)[18:20] == b"\x02\x02"


def _header_problem(path: str) -> str:
    """Return why a file can't be a SQLite database, or nothing."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return "this is not a regular file"
        if state.st_size == 0:
            return "the file is empty"
        with open(path, "rb") as stream:
            header = stream.read(HEADER_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:
        return f"the file can't be read ({error.strerror})"
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        return "this is not a SQLite database (its header says something else)"
    return ""


def uri_of(path: str, query: str) -> str:
    """Return the URI of a database file, with how it is opened."""
    # quote() leaves no byte that has a meaning in a URI (https://www.sqlite.org/uri.html), whatever the encoding.
    return f"file://{quote(os.fsencode(os.path.abspath(path)))}?{query}"


def open_database(path: str, query: str, timeout_s: float = 0.0) -> sqlite3.Connection:
    """Open a database file in autocommit; texts come as bytes. Raises :class:`sqlite3.Error`."""
    connection = sqlite3.connect(uri_of(path, query), timeout=timeout_s, isolation_level=None, uri=True)
    connection.text_factory = bytes
    return connection


def _open_immutable(path: str) -> sqlite3.Connection:
    # Else a look at an image in WAL mode would leave a -wal and -shm beside it.
    return open_database(path, "mode=ro&immutable=1")


def _facts(path: str) -> Dict[str, Any]:
    with closing(_open_immutable(path)) as connection:
        facts = _contents(connection)
        for name in ("user_version", "application_id", "page_size"):
            facts[name] = connection.execute(f"PRAGMA {name}").fetchone()[0]
    facts["journal_mode"] = "wal" if _is_wal(path) else "rollback"
    facts["bytes"] = os.stat(path).st_size
    facts["sha256"] = hash_file(path)
    return facts


def _rows_and_schema(connection: sqlite3.Connection) -> Tuple[Dict[str, int], str, List[str]]:
    """Return rows by table, SHA-256 of all definitions, and notes about what could not be counted."""
    rows: Dict[str, int] = {}
    notes: List[str] = []
    definitions: List[bytes] = []
    for kind, raw, sql in connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
        definitions.append(sql or b"")
        if kind != b"table":
            continue
        name = raw.decode("utf-8", errors="backslashreplace")
        if name.encode("utf-8") != raw:
            notes.append(f"rows of {name} not counted: its name is not UTF-8")
            continue
        quoted = name.replace('"', '""')
        try:
            rows[name] = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]
        except sqlite3.OperationalError as error:
            if not (sql or b"").upper().startswith(b"CREATE VIRTUAL TABLE"):
                raise
            notes.append(f"rows of the virtual table {name} not counted: {error}")
    digest = hashlib.sha256()
    for definition in sorted(definitions):
        digest.update(definition + b"\0")
    return rows, digest.hexdigest(), notes


def _contents(connection: sqlite3.Connection) -> Dict[str, Any]:
    rows, schema, notes = _rows_and_schema(connection)
    violations: Optional[int] = None
    try:
        violations = sum(1 for _row in connection.execute("PRAGMA foreign_key_check"))
    except sqlite3.OperationalError as error:
        # A parent without a unique key, or a table whose module is not here.
        notes.append(f"foreign keys not checked: {error}")
    return {"rows": rows, "schema": schema, "foreign_key_violations": violations, "notes": sorted(notes)}


def _difference(found: Dict[str, int], recorded: Dict[str, int]) -> str:
    """Say how many rows and tables agree, or name the first tables that do not."""
    differing = sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))
    if not differing:
        return f"{sum(found.values())} rows in {len(found)} tables"
    return "; ".join(f"{name}: {found.get(name)}, {recorded.get(name)} recorded" for name in differing[:5])
