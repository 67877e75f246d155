# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chosen rows of a dump back into the live database: the dump is loaded beside it for a while, the rows are copied over."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from .._core.rows import GIVEN, Foreign, RowMerge, Table, predicate, quote
from .contents import NO_VIEWS, ask, beside_values
from .database import PostgresDatabase
from .errors import PostgresError
from .login import refused
from .restore import PostgresTarget

SCRATCH = "rows of a set"
"""What tells the name of the database that a dump is loaded into from those of restores."""

# The types by their whole names: what format_type() says of them depends on the search_path, which is not that of the live session.
_COLUMNS = """
    SELECT a.attname, ARRAY[n.nspname, t.typname, a.atttypmod::text], a.attgenerated <> ''
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""

# A unique index that waits for the end of the transaction can't decide a conflict (INSERT, ON CONFLICT).
_UNIQUES = """
    SELECT i.indisprimary, ARRAY(SELECT a.attname::text FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(number, position)
                                 JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.position)
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = %s AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    ORDER BY i.indisprimary DESC, i.indexrelid
"""

# One to a partitioned table has others below it, one to each partition.
_FOREIGN = """
    SELECT n.nspname, c.relname, f.condeferrable,
           ARRAY(SELECT a.attname::text FROM unnest(f.conkey) WITH ORDINALITY AS k(number, position)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.number ORDER BY k.position),
           ARRAY(SELECT a.attname::text FROM unnest(f.confkey) WITH ORDINALITY AS k(number, position)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.number ORDER BY k.position)
    FROM pg_catalog.pg_constraint f JOIN pg_catalog.pg_class c ON c.oid = f.confrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE f.conrelid = %s AND f.contype = 'f'
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint w WHERE w.oid = f.conparentid AND w.conrelid = f.conrelid)
    ORDER BY f.conname
"""

# Columns that foreign keys lead to, and those whose numbers a statement can give to new rows alone (UPDATE, SET).
_BOUND = """
    SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = %s AND (a.attidentity = 'a' OR EXISTS (
        SELECT FROM pg_catalog.pg_constraint f WHERE f.confrelid = a.attrelid AND f.contype = 'f' AND a.attnum = ANY (f.confkey)))
    ORDER BY a.attnum
"""

_TABLE = """
    SELECT c.oid, n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner), c.relkind,
           EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = pg_catalog.to_regclass(%s)
"""

# What is switched off for a moment, with how it is switched on again: O fires for the application's sessions, A always.
_TRIGGERS = """
    SELECT 'TRIGGER', tgname, CASE tgenabled WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END FROM pg_catalog.pg_trigger
    WHERE tgrelid = %s AND NOT tgisinternal AND tgenabled IN ('O', 'A')
    UNION ALL
    SELECT 'RULE', rulename, CASE ev_enabled WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END FROM pg_catalog.pg_rewrite
    WHERE ev_class = %s AND ev_enabled IN ('O', 'A') ORDER BY 1, 2
"""

# Sequences that a column's default takes numbers from, or that belong to one.
_SEQUENCES = """
    SELECT DISTINCT a.attname, n.nspname, c.relname, s.seqincrement, s.seqcache
    FROM pg_catalog.pg_depend d
         JOIN pg_catalog.pg_class c ON c.relkind = 'S' AND c.oid IN (d.objid, d.refobjid)
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
         LEFT JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND f.oid = d.objid
         JOIN pg_catalog.pg_attribute a ON a.attrelid = %s AND a.atttypid = ANY ('{smallint,integer,bigint}'::pg_catalog.regtype[])
              AND (a.attrelid, a.attnum) IN ((d.refobjid, d.refobjsubid), (f.adrelid, f.adnum))
    WHERE d.deptype IN ('a', 'i', 'n')
"""


class PostgresRows:
    """Where rows come back to in a server. Implements ``RowTarget``."""

    def __init__(self, database: PostgresDatabase, target: PostgresTarget) -> None:
        self.name = database.name
        self.database = database
        self.target = target

    def missing(self) -> List[str]:
        """Return the Debian packages without which the server can't be asked anything."""
        return self.target.missing()

    def schema_version(self) -> str:
        """Return what the application calls its live schema; empty for one without a version."""
        return self.database.live_schema_version()

    @contextmanager
    def beside(self, image: str, facts: Dict[str, Any]) -> Iterator[RowMerge]:
        """Load a dump into a database of its own, with sessions in it and in the live one; it is gone afterwards.

        Raises :class:`PostgresError`, also for what the block asks of the two.
        """
        target = self.target
        name = target.names(SCRATCH).staged
        with target.scratch(image, facts, name), target.admin.session(name) as copy, self._live() as live:
            copy.set_session(readonly=True)
            ask(copy, "SELECT pg_catalog.set_config('search_path', %s, false)", [_search_path(facts)])
            with tempfile.TemporaryFile(dir=os.path.dirname(image)) as spool:
                yield PostgresMerge(copy, live, target.where, spool)

    @contextmanager
    def alone(self) -> Iterator[RowMerge]:
        """Have a session in the live database alone. Raises :class:`PostgresError`."""
        with self._live() as live:
            yield PostgresMerge(None, live, self.target.where, None)

    @contextmanager
    def _live(self) -> Iterator[Any]:
        with self.target.admin.session(self.target.database, lock_s=self.target.deadline_s) as live:
            ask(live, NO_VIEWS, ["view, foreign-table"])
            yield live


class PostgresMerge(RowMerge):
    """A session in each of the two databases."""

    overriding = "OVERRIDING SYSTEM VALUE "

    def __init__(self, copy: Any, live: Any, where: str, spool: Any) -> None:
        super().__init__(where)
        self.copy = copy
        self.session = live
        self.spool = spool
        self._tables: Dict[str, Tuple[int, str]] = {}
        """Number and owner of each live table, by its name."""
        self._resting: List[Tuple[str, str]] = []
        """What ends the rest of triggers, with the role to do it as."""

    def query(self, statement: str, values: Sequence[str] = ()) -> List[Tuple[Any, ...]]:
        return ask(self.session, beside_values(statement).replace(GIVEN, "%s") if values else statement, values)

    def live(self, table: str) -> str:
        return table

    def text(self, column: str) -> str:
        # Not a cast: the owner of a table may define what that does, and it would run as this role.
        return f"pg_catalog.textin(pg_catalog.record_out(ROW({column})))"

    def shown(self, text: str) -> str:
        text = text[1:-1]
        return text[1:-1].replace('""', '"') if text.startswith('"') else text

    def table(self, name: str) -> Table:
        oid, qualified, _owner = self._look_up(self.copy, name, "the set")
        live_oid, _same, owner = self._look_up(self.session, qualified, "the live database")
        columns = ask(self.session, _COLUMNS, [live_oid])
        if sorted(columns) != sorted(ask(self.copy, _COLUMNS, [oid])):
            raise PostgresError(
                f"the table {name} has other columns in the set than live", self.where, "Restore rows of a set with the same schema alone"
            )
        uniques = ask(self.session, _UNIQUES, [live_oid])
        foreign = tuple(
            Foreign(tuple(own), f"{quote(schema)}.{quote(table)}", tuple(others), deferrable)
            for schema, table, deferrable, own, others in ask(self.session, _FOREIGN, [live_oid])
        )
        self._tables[qualified] = (live_oid, owner)
        return Table(
            qualified,
            tuple(column for column, _type, generated in columns if not generated),
            next((tuple(unique) for primary, unique in uniques if primary), ()),
            tuple(dict.fromkeys(tuple(unique) for _primary, unique in uniques)),
            foreign,
            tuple(column for (column,) in ask(self.session, _BOUND, [live_oid])),
        )

    def _look_up(self, connection: Any, name: str, whose: str) -> Tuple[int, str, str]:
        found = ask(connection, _TABLE, [name])
        if not found:
            raise PostgresError(f"{whose} has no table {name}", self.where, "Correct the scope")
        oid, schema, table, owner, kind, has_heirs = found[0]
        if kind not in ("r", "p"):
            raise PostgresError(f"{name} is not a table", self.where, "Correct the scope")
        if kind == "r" and has_heirs:
            # Their rows are seen in it, and would be written into it.
            raise PostgresError(f"other tables inherit from {name}", self.where, "Name these tables in the scope, or restore the whole set")
        return oid, f"{quote(schema)}.{quote(table)}", owner

    def stage(self, number: int, table: Table, where: str, value: Optional[str]) -> str:
        place = f"pg_temp.opskit_rows_{number}"
        columns = ", ".join(map(quote, table.columns))
        condition = predicate(where, "%(value)s", "%%") or "true"
        statement = f"SELECT {beside_values(columns)} FROM {beside_values(table.name)} WHERE (\n{condition}\n)"
        with self.copy.cursor() as cursor:
            # Without values a % stays doubled.
            bound = cursor.mogrify(statement, {"value": value}).decode("utf-8")
            self.spool.seek(0)
            self.spool.truncate()
            # The condition is on a line of its own, so that a comment at its end hides nothing.
            with refused(partial(self._wrong_condition, where, table)):
                cursor.copy_expert(f"COPY (\n{bound}\n) TO STDOUT", self.spool)
        ask(self.session, f"CREATE TEMP TABLE opskit_rows_{number} AS SELECT {columns} FROM {table.name} WITH NO DATA")
        self.spool.seek(0)
        with self.session.cursor() as cursor:
            cursor.copy_expert(f"COPY {place} ({columns}) FROM STDIN", self.spool)
        ask(self.session, f"GRANT SELECT ON {place} TO {quote(self._tables[table.name][1])}")
        ask(self.session, f"ANALYZE {place}")
        return place

    def _wrong_condition(self, where: str, table: Table, said: str) -> PostgresError:
        return PostgresError(f"the condition {where!r} on {table.name} is wrong: {said}", self.where, "Correct the scope")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.session.autocommit = False
        try:
            ask(self.session, "SET CONSTRAINTS ALL DEFERRED")
            yield
            # Before the commit, so that what is wrong is an error of the transaction.
            ask(self.session, "SET CONSTRAINTS ALL IMMEDIATE")
            # Not earlier: a table with checks that wait can't be altered.
            for owner, statement in self._resting:
                ask(self.session, f"SET LOCAL ROLE {quote(owner)}")
                ask(self.session, statement)
            self.session.commit()
        finally:
            self._resting = []
            self.session.rollback()
            self.session.autocommit = True

    @contextmanager
    def writing(self, table: Table, fire_triggers: bool) -> Iterator[None]:
        oid, owner = self._tables[table.name]
        # Checks, defaults and indexes run what the owner has written; a superuser's rights are not for them.
        ask(self.session, f"SET LOCAL ROLE {quote(owner)}")
        ask(self.session, NO_VIEWS, [""])
        triggers = [] if fire_triggers else ask(self.session, _TRIGGERS, [oid, oid])
        for kind, name, _how in triggers:
            ask(self.session, f"ALTER TABLE {table.name} DISABLE {kind} {quote(name)}")
        yield
        self._resting += [(owner, f"ALTER TABLE {table.name} {how} {kind} {quote(name)}") for kind, name, how in triggers]
        ask(self.session, NO_VIEWS, ["view, foreign-table"])
        ask(self.session, "RESET ROLE")

    def advance(self, table: Table, place: str) -> None:
        oid, _owner = self._tables[table.name]
        for column, schema, name, increment, cache in ask(self.session, _SEQUENCES, [oid]):
            sequence = f"{quote(schema)}.{quote(name)}"
            # The last one that was given to a row: of a descending sequence the lowest.
            last = ask(self.session, f"SELECT {'max' if increment > 0 else 'min'}({quote(column)}) FROM {place}")[0][0]
            if last is None or not self._is_behind(sequence, last, increment):
                continue
            # What changes nothing but locks: from here on nobody takes a number until the end (ALTER SEQUENCE, notes).
            ask(self.session, f"ALTER SEQUENCE {sequence} CACHE {int(cache)}")
            if self._is_behind(sequence, last, increment):
                ask(self.session, f"ALTER SEQUENCE {sequence} RESTART WITH {int(last) + int(increment)}")

    def _is_behind(self, sequence: str, number: int, increment: int) -> bool:
        at, called = ask(self.session, f"SELECT last_value, is_called FROM {sequence}")[0]
        ahead = (number - at) * (1 if increment > 0 else -1)
        return bool(ahead > 0 or (ahead == 0 and not called))


def _search_path(facts: Dict[str, Any]) -> str:
    """Return where names without a schema are looked for: where the database itself says, else as the server does."""
    found = [value for role, name, value in facts["properties"]["settings"] if not role and name.lower() == "search_path"]
    return found[0] if found else "public"
