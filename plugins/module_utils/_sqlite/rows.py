# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chosen rows of a SQLite image back into the live file, which goes on being used."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing, contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .._core.rows import GIVEN, VALUE, Foreign, RowMerge, Table, as_text, predicate, quote, uses_value
from .database import SqliteDatabase, open_database, uri_of
from .errors import SqliteError

LIVE = "opskit_live"
"""What the live database is called in the session. The image is ``main``, so that the names in a scope's conditions mean it."""

CREATE_TRIGGER = "CREATE TRIGGER "


class SqliteRows:
    """Where rows come back to in a file. Implements ``RowTarget``."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.name = database.name
        self.database = database

    def missing(self) -> List[str]:
        """Return nothing: Python brings what is needed."""
        return []

    def schema_version(self) -> str:
        """Return what the application calls its live schema; empty for one without a version."""
        self.database.require()
        try:
            with closing(open_database(self.database.path, "mode=rw", self.database.deadline_s)) as connection:
                return self.database.schema_version(connection)
        except sqlite3.Error as error:
            raise self._explained(error) from None

    @contextmanager
    def beside(self, image: str, facts: Dict[str, Any]) -> Iterator[RowMerge]:
        """Open an image, which is ours alone, with the live database beside it. Raises :class:`OpskitError`."""
        with self._opened(image, "mode=rw") as merge:
            # BEGIN IMMEDIATE begins to write here, too. With a journal on disk a commit would need a super-journal beside the image, and
            # the live journal without that file counts as committed (https://www.sqlite.org/atomiccommit.html, section 5).
            merge.query("PRAGMA main.journal_mode = MEMORY")
            yield merge

    @contextmanager
    def alone(self) -> Iterator[RowMerge]:
        """Open the live database alone. Raises :class:`OpskitError`."""
        # As the main one, too: what is attached has to be of the encoding of that.
        with self._opened(self.database.path, "mode=rw") as merge:
            yield merge

    @contextmanager
    def _opened(self, image: str, query: str) -> Iterator[RowMerge]:
        self.database.require()
        try:
            with closing(open_database(image, query, self.database.deadline_s)) as connection:
                yield SqliteMerge(connection, self.database)
        except sqlite3.Error as error:
            raise self._explained(error) from None

    def _explained(self, error: sqlite3.Error) -> SqliteError:
        text = str(error)
        # Whole words of SQLite's (sqlite3ErrStr()): a column can be called like a part of them.
        if text.startswith("database") and text.endswith(("is locked", "is locked: " + LIVE)):
            return self.database.locked(text)
        if text == "database or disk is full":
            return SqliteError(f"no space left beside it ({text})", self.database.path, "Make room and run again; nothing was written")
        return SqliteError(f"SQLite refuses: {text}", self.database.path, "Mend what it names and run again; nothing was written")


class SqliteMerge(RowMerge):
    """A session with both databases."""

    # Else a table that is defined with ON CONFLICT REPLACE would lose a live row.
    insert = "INSERT OR ABORT INTO"

    def __init__(self, connection: sqlite3.Connection, database: SqliteDatabase) -> None:
        super().__init__(database.path)
        self.database = database
        self.connection = connection
        # Not read-only: who opens a database in WAL mode for reading alone leaves its side files behind.
        connection.execute(f"ATTACH ? AS {LIVE}", [uri_of(database.path, "mode=rw")])
        connection.execute("PRAGMA foreign_keys = ON")

    def query(self, statement: str, values: Sequence[str] = ()) -> List[Tuple[Any, ...]]:
        # A text that is not UTF-8 goes as bytes.
        given = [value.encode("utf-8", "surrogateescape") if re.search("[\udc80-\udcff]", value) else value for value in values]
        return self.connection.execute(statement.replace(GIVEN, "CAST(? AS TEXT)"), given).fetchall()

    def live(self, table: str) -> str:
        return f"{LIVE}.{quote(table)}"

    def text(self, column: str) -> str:
        # quote() ends a text at its first NUL.
        return f"(quote({column}) || CASE WHEN typeof({column}) = 'text' AND instr({column}, char(0)) THEN hex({column}) ELSE '' END)"

    def shown(self, text: str) -> str:
        return text[1:-1].replace("''", "'") if text.startswith("'") else text

    def table(self, name: str) -> Table:
        found = {place: self._columns(place, name) for place in ("main", LIVE)}
        for place, columns in found.items():
            if not columns:
                raise SqliteError(
                    f"{'the set' if place == 'main' else 'the live database'} has no table {name!r}", self.where, "Correct the scope"
                )
        if found["main"] != found[LIVE]:
            raise SqliteError(
                f"the table {name} has other columns in the set than live", self.where, "Restore rows of a set with the same schema alone"
            )
        proper = self._proper(name)
        if not proper:
            raise SqliteError(f"{name} is not a table", self.where, "Correct the scope")
        own = [column for column, _type, _position, hidden in found[LIVE] if hidden == 0]
        primary = sorted((position, column) for column, _type, position, _hidden in found[LIVE] if position)
        key = tuple(column for _position, column in primary)
        uniques = [key] if key else []
        for index in self.query(f"PRAGMA {LIVE}.index_list({quote(proper)})"):
            if index[2] and not index[4]:
                columns = [row[2] for row in self.query(f"PRAGMA {LIVE}.index_info({quote(as_text(index[1]))})")]
                if None not in columns:
                    uniques.append(tuple(map(as_text, columns)))
        return Table(proper, tuple(own), key, tuple(dict.fromkeys(uniques)), self._foreign(proper), self._bound(proper))

    def _columns(self, place: str, name: str) -> List[Tuple[str, str, int, int]]:
        rows = self.query(f"PRAGMA {place}.table_xinfo({quote(name)})")
        # 0: an ordinary one; 1: of a virtual table; 2 and 3: computed (https://www.sqlite.org/pragma.html#pragma_table_xinfo).
        return sorted((as_text(row[1]), as_text(row[2]).upper(), row[5], row[6]) for row in rows)

    def _query_text(self, statement: str, values: Sequence[Any]) -> List[str]:
        return [as_text(row[0]) for row in self.query(statement, values)]

    def _foreign(self, name: str) -> Tuple[Foreign, ...]:
        keys: Dict[int, List[Tuple[Any, ...]]] = {}
        for row in self.query(f"PRAGMA {LIVE}.foreign_key_list({quote(name)})"):
            keys.setdefault(row[0], []).append(row)
        found = []
        for rows in keys.values():
            parent = as_text(rows[0][2])
            columns = tuple(as_text(row[3]) for row in rows)
            if rows[0][4] is None:
                primary = sorted((position, column) for column, _type, position, _hidden in self._columns(LIVE, parent) if position)
                others = tuple(column for _position, column in primary)
            else:
                others = tuple(as_text(row[4]) for row in rows)
            # All of them can wait for the end of the transaction (https://www.sqlite.org/pragma.html#pragma_defer_foreign_keys).
            found.append(Foreign(columns, self._proper(parent) or parent, others, True))
        return tuple(found)

    def _bound(self, name: str) -> Tuple[str, ...]:
        """Return the columns that foreign keys lead to, but for the primary key."""
        query = (
            f"SELECT DISTINCT c.name FROM {LIVE}.sqlite_master AS t JOIN pragma_foreign_key_list(t.name, '{LIVE}') AS f "
            f"JOIN pragma_table_xinfo({GIVEN}, '{LIVE}') AS c ON lower(c.name) = lower(f.\"to\") "
            f"WHERE t.type = 'table' AND lower(f.\"table\") = lower({GIVEN}) ORDER BY 1"
        )
        return tuple(self._query_text(query, [name, name]))

    def _proper(self, name: str) -> str:
        """Return a live table's name as its definition has it, which others may write in other case; empty where it is no table."""
        found = self._query_text(f"SELECT name FROM {LIVE}.sqlite_master WHERE type = 'table' AND lower(name) = lower({GIVEN})", [name])
        return found[0] if found else ""

    def stage(self, number: int, table: Table, where: str, value: Optional[str]) -> str:
        place = f"temp.opskit_rows_{number}"
        columns = ", ".join(map(quote, table.columns))
        condition = predicate(where, VALUE, "%") or "1"
        values: Dict[str, Any] = {VALUE[1:]: value} if uses_value(where) else {}
        self.connection.execute(f"CREATE TEMP TABLE opskit_rows_{number} AS SELECT {columns} FROM main.{quote(table.name)} WHERE 0")
        try:
            # The condition on a line of its own, so that a comment at its end hides nothing.
            self.connection.execute(f"INSERT INTO {place} SELECT {columns} FROM main.{quote(table.name)} WHERE (\n{condition}\n)", values)
        except sqlite3.Error as error:
            raise SqliteError(f"the condition {where!r} on {table.name} is wrong: {error}", self.where, "Correct the scope") from None
        self.connection.execute(
            f"CREATE INDEX temp.opskit_rows_{number}_key ON opskit_rows_{number} ({', '.join(map(quote, table.primary or table.columns[:1]))})"
        )
        return place

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            self.connection.execute("PRAGMA defer_foreign_keys = ON")
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    @contextmanager
    def writing(self, table: Table, fire_triggers: bool) -> Iterator[None]:
        # Only the newest Python can switch triggers off. Their definitions are in the transaction like everything else.
        # The table's name stands there as the trigger's definition wrote it.
        query = f"SELECT name, sql FROM {LIVE}.sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower({GIVEN}) ORDER BY rowid"
        triggers = [] if fire_triggers else [(as_text(name), as_text(sql)) for name, sql in self.query(query, [table.name])]
        for name, _sql in triggers:
            self.query(f"DROP TRIGGER {LIVE}.{quote(name)}")
        yield
        for _name, sql in triggers:
            # A stored definition begins with these words and the name (src/trigger.c, sqlite3FinishTrigger()).
            self.query(f"{CREATE_TRIGGER}{LIVE}.{sql[len(CREATE_TRIGGER) :]}")

    def advance(self, table: Table, place: str) -> None:
        """Do nothing: SQLite goes on after the highest number by itself, with and without AUTOINCREMENT."""
