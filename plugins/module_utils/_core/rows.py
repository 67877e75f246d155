# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing chosen rows of one database back into another of the same schema, which goes on being used meanwhile.

The rows are staged in tables of the session, compared there with what is live, and written in one transaction. Nothing is ever
deleted: what is live and not in the copy stays.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from .errors import OpskitError

FAIL = "fail"
"""A row that is live and differs is a conflict, and nothing is changed."""
SKIP = "skip"
"""A row that is live stays as it is."""
REPLACE = "replace"
"""A row that is live and differs becomes that of the copy."""
POLICIES = (FAIL, SKIP, REPLACE)

SHOWN = 20
"""Keys that a message or a step of a plan names; a result has more of them."""
LISTED = 1000
"""Keys that a result lists for a table."""
MARKS = 20
"""Changed rows that a journal remembers, to see after a kill whether the transaction was committed."""

VALUE = ":value"
"""What stands in a predicate for the value that an operator gives."""

_TOKEN = re.compile(
    r"""\b[eE]'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(\w*)\$.*?\$\1\$|::|:value\b|[;%]""", re.DOTALL
)


GIVEN = "\0"
"""What stands in a statement for a value: no name has it."""


class RowSet(NamedTuple):
    """The rows of one table that belong to a scope."""

    table: str
    key: Tuple[str, ...]
    """Columns that tell a row from all others; empty for the primary key."""
    identity: Tuple[str, ...]
    """Columns that say what a row is of. Where they differ under the same key, it is another thing, whatever the policy."""
    where: str
    """A condition on the copy's rows; empty for all."""
    restore: bool = True
    """False: these rows have to be live already, as the same things, and stay as they are."""
    fire_triggers: bool = False
    """Have the table's own triggers fire. By default rows come back as they were, and nothing else changes."""


class Foreign(NamedTuple):
    """A foreign key of a table."""

    columns: Tuple[str, ...]
    parent: str
    parent_columns: Tuple[str, ...]
    deferrable: bool


class Table(NamedTuple):
    """What is known of a table, live and in the copy the same."""

    name: str
    """As the engine's catalog says it, the same in both databases."""
    columns: Tuple[str, ...]
    """Those that hold values of their own; what is computed from others is not among them."""
    primary: Tuple[str, ...]
    uniques: Tuple[Tuple[str, ...], ...]
    """Columns of each unique index that is of whole columns and rows, the primary key among them."""
    foreign: Tuple[Foreign, ...]
    bound: Tuple[str, ...]
    """Columns that are never updated: foreign keys lead to them, and other rows might follow; or the engine alone gives their values."""


class TableChange(NamedTuple):
    """What the rows of one table come to. Keys are texts, values are never shown."""

    table: str
    inserted: List[str]
    updated: List[Tuple[str, Tuple[str, ...]]]
    """With the columns that change."""
    kept: List[Tuple[str, Tuple[str, ...]]]
    """Live rows that differ and stay as they are, with the columns that differ."""
    same: int

    @property
    def changes(self) -> bool:
        return bool(self.inserted or self.updated)

    def as_dict(self) -> Dict[str, Any]:
        """Return what a result shows: counts, and up to :data:`LISTED` keys of each kind."""
        return {
            "table": self.table,
            "inserted": len(self.inserted),
            "updated": len(self.updated),
            "kept": len(self.kept),
            "same": self.same,
            "columns": sorted({column for _key, columns in self.updated for column in columns}),
            "inserted_keys": self.inserted[:LISTED],
            "updated_keys": [key for key, _columns in self.updated[:LISTED]],
            "kept_keys": [key for key, _columns in self.kept[:LISTED]],
        }


class Mark(NamedTuple):
    """A row as the transaction leaves it: the key's texts, and hashes over the texts of some columns."""

    table: str
    key_columns: List[str]
    key: List[str]
    columns: List[str]
    before: Optional[str]
    """None where there was no such row."""
    digest: str


class _Staged(NamedTuple):
    """The rows of one table, in a table of the session."""

    rows: RowSet
    table: Table
    key: Tuple[str, ...]
    place: str
    """The session's table, ready for SQL."""


class RowMerge:
    """Rows of a copy and the live database side by side in one session. An engine's class is a subclass.

    :param where: the live database as a person would name it
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._staged: List[_Staged] = []

    # what an engine knows -------------------------------------------------------------------------

    def query(self, statement: str, values: Sequence[str] = ()) -> List[Tuple[Any, ...]]:
        """Return the rows that a statement gives in the session. :data:`GIVEN` stands for each of the values."""
        raise NotImplementedError

    def table(self, name: str) -> Table:
        """Return what is known of a table. Raises :class:`OpskitError` where it is missing or not the same in both databases."""
        raise NotImplementedError

    def stage(self, number: int, table: Table, where: str, value: Optional[str]) -> str:
        """Put the copy's rows that a condition holds for into a new table of the session, and return its name, ready for SQL.

        Raises :class:`OpskitError` for wrong SQL.
        """
        raise NotImplementedError

    def live(self, table: str) -> str:
        """Return the live table's name, ready for SQL."""
        raise NotImplementedError

    def text(self, column: str) -> str:
        """Return an expression that gives a text for each value, and another one for each other value."""
        raise NotImplementedError

    def shown(self, text: str) -> str:
        """Return how a text of :meth:`text` is shown to people."""
        raise NotImplementedError

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin one that defers what can be deferred; commit it when the block ends well, roll it back otherwise."""
        raise NotImplementedError

    @contextmanager
    def writing(self, table: Table, fire_triggers: bool) -> Iterator[None]:
        """Let statements write to a live table, by its owner's rights, with its triggers at rest unless told otherwise."""
        raise NotImplementedError

    def advance(self, table: Table, place: str) -> None:
        """Have the live table's sequences go on after the highest numbers that were inserted."""
        raise NotImplementedError

    # plan -----------------------------------------------------------------------------------------

    def plan(self, wanted: Sequence[RowSet], value: Optional[str], policy: str) -> List[TableChange]:
        """Stage the rows of a scope and return what they come to, table by table in the order in which they are written.

        :param value: what the operator gives for :data:`VALUE`
        Raises :class:`OpskitError` for whatever keeps them from being written; then nothing was touched.
        """
        self._staged = self._in_order([self._stage(number, rows, value) for number, rows in enumerate(wanted)])
        changes = [self._change(one, policy) for one in self._staged]
        if policy == FAIL:
            self._refuse_conflicts(changes)
        for one in self._staged:
            if one.rows.restore:
                self._refuse_taken(one, policy)
                for foreign in one.table.foreign:
                    self._refuse_orphans(one, foreign, policy)
        return [change for change, one in zip(changes, self._staged) if one.rows.restore]

    def staged_rows(self) -> int:
        """Return how many rows of the copy belong to the scope, without those that only have to be there."""
        return sum(self.query(f"SELECT count(*) FROM {one.place}")[0][0] for one in self._staged if one.rows.restore)

    def _stage(self, number: int, rows: RowSet, value: Optional[str]) -> _Staged:
        table = self.table(rows.table)
        key = rows.key or table.primary
        for column in [*key, *rows.identity]:
            if column not in table.columns:
                raise self._wrong(f"the table {table.name} has no column {column!r}", "Correct key or identity of the scope")
        if not key:
            raise self._wrong(f"the table {table.name} has no primary key", "Name the key columns in the scope")
        if set(key) not in [set(unique) for unique in table.uniques]:
            raise self._wrong(
                f"no unique index of the table {table.name} is on {', '.join(key)} alone, so they do not tell its rows apart",
                "Correct the key of the scope",
            )
        place = self.stage(number, table, rows.where, value)
        nothing = " OR ".join(f"{quote(column)} IS NULL" for column in key)
        if self.query(f"SELECT count(*) FROM {place} WHERE {nothing}")[0][0]:
            raise self._wrong(f"rows of the table {table.name} have no value in their key", "Choose another key for the scope")
        return _Staged(rows, table, key, place)

    def _in_order(self, staged: List[_Staged]) -> List[_Staged]:
        """Return parents before children. Raises :class:`OpskitError` where that can't be and the keys can't wait."""
        names = [one.table.name for one in staged]
        for name in names:
            if names.count(name) > 1:
                raise self._wrong(f"the scope names the table {name} more than once", "Join the conditions with OR")
        done: List[_Staged] = []
        rest = list(staged)
        while rest:
            left = {one.table.name for one in rest}
            free = [one for one in rest if not self._parents(one, left, deferrable=True)]
            # What is checked at the end of the transaction may come in any order.
            free = free or [one for one in rest if not self._parents(one, left, deferrable=False)][:1]
            if not free:
                raise self._wrong(
                    f"the tables {', '.join(sorted(left))} refer to each other by foreign keys that are checked at once, so none can be first",
                    "Make one of these keys DEFERRABLE, or restore the whole set",
                )
            done += free
            rest = [one for one in rest if one not in free]
        return done

    @staticmethod
    def _parents(one: _Staged, among: Set[str], deferrable: bool) -> Set[str]:
        keys = [foreign for foreign in one.table.foreign if deferrable or not foreign.deferrable]
        return {foreign.parent for foreign in keys} & among - {one.table.name}

    def _change(self, one: _Staged, policy: str) -> TableChange:
        """Compare the staged rows of one table with the live ones."""
        change = TableChange(one.table.name, [], [], [], 0)
        same = 0
        others: List[str] = []
        bound: List[str] = []
        telling: Set[str] = set()
        missing: List[str] = []
        for key, differing in self._compare(one):
            if differing is None:
                (change.inserted if one.rows.restore else missing).append(key)
            elif set(differing) & {*one.key, *one.rows.identity}:
                others.append(key)
                telling.update(set(differing) & {*one.key, *one.rows.identity})
            elif not differing:
                same += 1
            elif policy == REPLACE and one.rows.restore:
                if set(differing) & set(one.table.bound):
                    bound.append(key)
                    telling.update(set(differing) & set(one.table.bound))
                change.updated.append((key, differing))
            else:
                change.kept.append((key, differing))
        if others:
            raise self._wrong(
                f"{len(others)} rows of {one.table.name} are something else by now, because {' and '.join(sorted(telling))} differs "
                f"under the same key: {some(others)}",
                "Restore another set, or give the live rows other keys; no policy writes one thing over another",
            )
        if bound:
            raise self._wrong(
                f"{len(bound)} rows of {one.table.name} would get another {' and '.join(sorted(telling))}, which foreign keys lead to or the "
                f"database alone gives: {some(bound)}",
                "Choose the policy skip (the live rows stay), or restore the whole set",
            )
        if missing:
            raise self._wrong(
                f"{len(missing)} rows of {one.table.name} that the scope builds on are not there: {some(missing)}",
                "Restore those first",
            )
        return change._replace(same=same)

    def _compare(self, one: _Staged) -> Iterator[Tuple[str, Optional[Tuple[str, ...]]]]:
        """Yield each staged row's key and the columns that differ in the live row, None where there is none."""
        keys = [f"{self.text('s.' + quote(column))}" for column in one.key]
        flags = [f"{self.text('s.' + quote(column))} <> {self.text('l.' + quote(column))}" for column in one.table.columns]
        found = self.query(
            f"SELECT l.{quote(one.key[0])} IS NULL, {', '.join(keys + flags)} FROM {one.place} AS s "
            f"LEFT JOIN {self.live(one.table.name)} AS l ON {_equal('l', one.key, 's', one.key)} ORDER BY {', '.join(keys)}"
        )
        for absent, *values in found:
            name = self._key_text(one.key, values[: len(one.key)])
            differing = tuple(column for column, flag in zip(one.table.columns, values[len(one.key) :]) if flag)
            yield name, None if absent else differing

    def _key_text(self, columns: Sequence[str], texts: Sequence[Any]) -> str:
        return ", ".join(f"{column}={self.shown(as_text(text))}" for column, text in zip(columns, texts))

    def _refuse_conflicts(self, changes: List[TableChange]) -> None:
        conflicts = [change for change in changes if change.kept]
        for change, one in zip(changes, self._staged):
            if not one.rows.restore and change in conflicts:
                # They only have to be the same things.
                conflicts.remove(change)
        if conflicts:
            parts = []
            for change in conflicts:
                columns = sorted({column for _key, differing in change.kept for column in differing})
                keys = [key for key, _differing in change.kept]
                parts.append(f"{len(keys)} rows of {change.table} differ in {', '.join(columns)} ({some(keys)})")
            raise self._wrong(
                f"what is live is not what the set has: {'; '.join(parts)}",
                "Choose the policy replace (the set's rows count) or skip (the live rows stay)",
            )

    def _written(self, one: _Staged, policy: str) -> str:
        """Return the condition on staged rows ``s``, beside live ones ``l``, that are written."""
        absent = f"l.{quote(one.key[0])} IS NULL"
        if policy != REPLACE:
            return absent
        differs = [f"{self.text('s.' + quote(column))} <> {self.text('l.' + quote(column))}" for column in one.table.columns]
        return f"({' OR '.join([absent, *differs])})"

    def _refuse_taken(self, one: _Staged, policy: str) -> None:
        """Refuse a row that a live row of another key leaves no room for in a unique index."""
        live = self.live(one.table.name)
        for unique in one.table.uniques:
            # What is computed is not staged. The engine itself refuses what collides there.
            if set(unique) == set(one.key) or not set(unique) <= set(one.table.columns):
                continue
            keys = [self.text(f"{place}.{quote(column)}") for place in ("s", "o") for column in one.key]
            found = self.query(
                f"SELECT {', '.join(keys)} FROM {one.place} AS s JOIN {live} AS o ON {_equal('o', unique, 's', unique)} "
                f"LEFT JOIN {live} AS l ON {_equal('l', one.key, 's', one.key)} "
                f"WHERE {self._written(one, policy)} AND NOT ({_equal('o', one.key, 's', one.key)})"
            )
            if found:
                pairs = [(row[: len(one.key)], row[len(one.key) :]) for row in found]
                taken = [f"{self._key_text(one.key, ours)} by {self._key_text(one.key, theirs)}" for ours, theirs in pairs]
                raise self._wrong(
                    f"{len(found)} rows of {one.table.name} can't come back, because {' and '.join(unique)} is taken by live rows "
                    f"of another key: {some(taken)}",
                    "Rename or remove the live rows, then run again; no policy writes one thing over another",
                )

    def _refuse_orphans(self, one: _Staged, foreign: Foreign, policy: str) -> None:
        """Refuse a row whose parent is neither live nor among the staged rows."""
        parent = next((other for other in self._staged if other.table.name == foreign.parent and other.rows.restore), None)
        if not set(foreign.columns) <= set(one.table.columns) or (
            parent is not None and not set(foreign.parent_columns) <= set(parent.table.columns)
        ):
            # What is computed is not staged. The engine itself refuses what has no parent.
            return
        given = " AND ".join(f"s.{quote(column)} IS NOT NULL" for column in foreign.columns)
        match = _equal("p", foreign.parent_columns, "s", foreign.columns)
        absent = [f"NOT EXISTS (SELECT 1 FROM {self.live(foreign.parent)} AS p WHERE {match})"]
        if parent is not None:
            absent.append(f"NOT EXISTS (SELECT 1 FROM {parent.place} AS p WHERE {match})")
        texts = [self.text("s." + quote(column)) for column in foreign.columns]
        found = self.query(
            f"SELECT DISTINCT {', '.join(texts)} FROM {one.place} AS s "
            f"LEFT JOIN {self.live(one.table.name)} AS l ON {_equal('l', one.key, 's', one.key)} "
            f"WHERE {self._written(one, policy)} AND {given} AND {' AND '.join(absent)} ORDER BY {', '.join(texts)}"
        )
        if found:
            missing = [self._key_text(foreign.parent_columns, row) for row in found]
            raise self._wrong(
                f"rows of {one.table.name} refer to {len(found)} rows of {foreign.parent} that are not there: {some(missing)}",
                f"Add {foreign.parent} to the scope, or restore those rows first",
            )

    # apply ----------------------------------------------------------------------------------------

    @contextmanager
    def written(self, policy: str) -> Iterator[List[Mark]]:
        """Write the staged rows in one transaction, look at them in it, and commit when the block ends well.

        Gives some of the changed rows as the transaction leaves them. Raises :class:`OpskitError` when what is live has changed since
        the plan in a way that does not allow it; then nothing is written.
        """
        with self.transaction():
            marks: List[Mark] = []
            for one in self._staged:
                if one.rows.restore:
                    changed = self._changed_keys(one, policy)
                    if changed:
                        noted = changed[: MARKS - len(marks)]
                        before = self._digests(one.table.name, one.key, noted, one.table.columns)
                        with self.writing(one.table, one.rows.fire_triggers):
                            self.query(self._insert(one, policy))
                            self.advance(one.table, one.place)
                        marks += self._marks(one, noted, before)
            for one in self._staged:
                self._refuse_difference(one, policy)
            yield marks

    def _changed_keys(self, one: _Staged, policy: str) -> List[List[str]]:
        keys = [self.text("s." + quote(column)) for column in one.key]
        found = self.query(
            f"SELECT {', '.join(keys)} FROM {one.place} AS s LEFT JOIN {self.live(one.table.name)} AS l "
            f"ON {_equal('l', one.key, 's', one.key)} WHERE {self._written(one, policy)}"
        )
        return [[as_text(text) for text in row] for row in found]

    def _insert(self, one: _Staged, policy: str) -> str:
        names = ", ".join(quote(column) for column in one.table.columns)
        values = ", ".join("s." + quote(column) for column in one.table.columns)
        # Not the identity: what has become another thing since the plan is found as that afterwards.
        others = [quote(column) for column in one.table.columns if column not in (*one.key, *one.rows.identity, *one.table.bound)]
        action = ""
        if policy == SKIP or not others:
            action = "DO NOTHING"
        elif policy == REPLACE:
            action = f"DO UPDATE SET {', '.join(f'{column} = excluded.{column}' for column in others)}"
        conflict = f" ON CONFLICT ({', '.join(map(quote, one.key))}) {action}" if policy != FAIL else ""
        return (
            f"{self.insert} {self.live(one.table.name)} ({names}) {self.overriding}SELECT {values} FROM {one.place} AS s "
            f"LEFT JOIN {self.live(one.table.name)} AS l ON {_equal('l', one.key, 's', one.key)} "
            f"WHERE {self._written(one, policy)}{conflict}"
        )

    insert = "INSERT INTO"
    """How a statement begins that puts rows in and removes none for them."""
    overriding = ""
    """What an engine needs between columns and values so that identity columns take them."""

    def _refuse_difference(self, one: _Staged, policy: str) -> None:
        """See in the transaction that the live rows are those that were meant, whatever others have done since the plan."""
        allowed = (
            set(one.table.columns) - {*one.key, *one.rows.identity}
            if policy == SKIP or not one.rows.restore or one.rows.fire_triggers
            else set()
        )
        wrong = [key for key, differing in self._compare(one) if differing is None or not set(differing) <= allowed]
        if wrong:
            raise self._wrong(
                f"{len(wrong)} rows of {one.table.name} were changed by somebody else meanwhile: {some(wrong)}",
                "Nothing was written; run again",
            )

    def _marks(self, one: _Staged, keys: List[List[str]], before: Dict[Tuple[str, ...], str]) -> List[Mark]:
        columns = list(one.table.columns)
        after = self._digests(one.table.name, one.key, keys, columns)
        marks = []
        for key in keys:
            if tuple(key) not in after:
                raise self._wrong(
                    f"the row {self._key_text(one.key, key)} of {one.table.name} was not written, or under another key",
                    "Look for a trigger or rule that does that; nothing was written",
                )
            marks.append(Mark(one.table.name, list(one.key), key, columns, before.get(tuple(key)), after[tuple(key)]))
        # A trigger may have left a row as it was, which tells nothing.
        return [mark for mark in marks if mark.digest != mark.before]

    def _digests(
        self, table: str, key_columns: Sequence[str], keys: Sequence[Sequence[str]], columns: Sequence[str]
    ) -> Dict[Tuple[str, ...], str]:
        """Return the hashes of live rows' texts by their keys' texts, in one pass through the table."""
        if not keys:
            return {}
        own = ", ".join(self.text("l." + quote(column)) for column in key_columns)
        texts = ", ".join(self.text("l." + quote(column)) for column in columns)
        given = ", ".join(f"({', '.join([GIVEN] * len(key_columns))})" for _key in keys)
        found = {}
        for row in self.query(
            f"SELECT {own}, {texts} FROM {self.live(table)} AS l WHERE ({own}) IN (VALUES {given})", [text for key in keys for text in key]
        ):
            key, values = row[: len(key_columns)], row[len(key_columns) :]
            digest = hashlib.sha256()
            for text in values:
                digest.update(as_text(text).encode("utf-8", "surrogateescape") + b"\0")
            found[tuple(map(as_text, key))] = digest.hexdigest()
        return found

    def is_committed(self, marks: Sequence[Mark]) -> Optional[bool]:
        """True when a transaction that left these rows was committed, False when not, None when others have changed all of them since."""
        now: List[Optional[str]] = []
        for _table, group in groupby(marks, key=lambda mark: mark.table):
            same = list(group)
            found = self._digests(same[0].table, same[0].key_columns, [mark.key for mark in same], same[0].columns)
            now += [found.get(tuple(mark.key)) for mark in same]
        if any(digest == mark.digest for digest, mark in zip(now, marks)):
            return True
        return False if any(digest == mark.before for digest, mark in zip(now, marks)) else None

    def _wrong(self, what: str, todo: str) -> OpskitError:
        return OpskitError(what, self.where, todo)


def quote(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def as_text(value: Any) -> str:
    """Return a text that an engine gave, whatever bytes it is made of."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def predicate(where: str, placeholder: str, percent: str) -> str:
    """Return a scope's condition as an engine takes it. Raises :class:`OpskitError` for more than one statement.

    :param placeholder: what stands for the value
    :param percent: what stands for a ``%``
    """

    def replaced(match: re.Match[str]) -> str:
        token = match.group()
        if token == VALUE:
            return placeholder
        if token == ";":
            raise OpskitError(f"the condition {where!r} is more than one statement", todo="Correct the scope")
        return token.replace("%", percent)

    return _TOKEN.sub(replaced, where)


def uses_value(where: str) -> bool:
    """True for a condition in which the operator's value stands."""
    return any(match.group() == VALUE for match in _TOKEN.finditer(where))


def _equal(one: str, columns: Sequence[str], other: str, others: Sequence[str]) -> str:
    # The live one first: SQLite compares by the collation of the left one.
    return " AND ".join(f"{one}.{quote(column)} = {other}.{quote(same)}" for column, same in zip(columns, others))


def some(items: Sequence[str], between: str = "; ") -> str:
    """Name the first few of many."""
    more = len(items) - SHOWN
    return between.join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
