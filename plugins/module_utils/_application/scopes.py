# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery scopes: named parts of an application, each some paths and some rows, that come back without the rest."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .._core.errors import OpskitError
from .._core.rows import RowSet, uses_value

PLACE = "{value}"
"""What stands in a path for the value that an operator gives."""

VALUES = ("none", "optional", "required")
"""Whether an operator says which one (a project's name, say), by the option ``value`` of a scope."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")

_SCOPE = {"description": str, "value": str, "paths": list, "database": str, "rows": list, "key_bound": bool}
_ROWS = {"table": str, "key": list, "identity": list, "where": str, "restore": bool, "fire_triggers": bool}


class Scope(NamedTuple):
    """One part of an application."""

    name: str
    description: str
    value: str
    """One of :data:`VALUES`."""
    paths: Tuple[str, ...]
    """Absolute; with :data:`PLACE` in it, where it depends on the value."""
    database: str
    """The name that the database of the rows has in a set; empty where the scope has no rows."""
    rows: Tuple[RowSet, ...]
    key_bound: bool
    """The rows are of use only with the application's keys that they were written under."""

    def placed(self, value: str) -> List[str]:
        """Return the paths for a value."""
        return [path.replace(PLACE, value) for path in self.paths]

    def check_value(self, value: str) -> None:
        """Raise :class:`OpskitError` for a value that the scope does not take."""
        if self.value == "none" and value:
            raise OpskitError(f"the scope {self.name} takes no value, but {value!r} was given", todo="Leave the value out")
        if self.value == "required" and not value:
            raise OpskitError(f"the scope {self.name} needs a value: which one", todo=f"Name it. {self.description}".rstrip(". "))
        if self.rows and not _is_text(value):
            raise OpskitError(f"{value!r} can't be a value in the database of the scope {self.name}", todo="Correct the value")
        if any(PLACE in path for path in self.paths) and ("/" in value or "\0" in value or value in ("", ".", "..")):
            raise OpskitError(f"{value!r} can't be the name of a file or folder of the scope {self.name}", todo="Correct the value")


def read_scopes(described: Dict[str, Any], databases: Optional[Sequence[str]]) -> Dict[str, Scope]:
    """Return the scopes of a description, by name. Raises :class:`OpskitError` for the first mistake.

    :param described: by name, see the option ``scopes`` of the module ``backup_restore_scope``
    :param databases: the names of the application's databases, the first one first; None where they are not known
    """
    for finding in mistakes(described, databases):
        raise OpskitError(finding, "scopes", "Correct the description of the scope; nothing was touched")
    found = {}
    for name, value in described.items():
        rows = value.get("rows") or []
        found[name] = Scope(
            name,
            value.get("description") or "",
            value.get("value") or "none",
            tuple(os.path.normpath(path) for path in value.get("paths") or []),
            value.get("database") or (databases[0] if rows and databases else ""),
            tuple(
                RowSet(
                    row["table"],
                    tuple(row.get("key") or ()),
                    tuple(row["identity"]),
                    row.get("where") or "",
                    row.get("restore", True),
                    row.get("fire_triggers", False),
                )
                for row in rows
            ),
            value.get("key_bound", True),
        )
    return found


def find_scope(scopes: Dict[str, Scope], name: str) -> Scope:
    """Return the scope that an operator names. Raises :class:`OpskitError` for an unknown one."""
    if name not in scopes:
        raise OpskitError(
            f"there is no scope {name!r}; known are {', '.join(sorted(scopes)) or 'none'}", todo="Name one of them, or describe it"
        )
    return scopes[name]


def mistakes(described: Dict[str, Any], databases: Optional[Sequence[str]]) -> Iterator[str]:
    """Yield every mistake of a description of scopes as one sentence that begins with the scope's name."""
    for name, value in described.items():
        if not isinstance(name, str) or not NAME.match(name):
            yield f"{name!r} is no name for a scope; use letters, digits, dot, dash and underscore"
        elif not isinstance(value, dict):
            yield f"{name}: this is not a description but {value!r}"
        else:
            for mistake in _scope_mistakes(value, databases):
                yield f"{name}: {mistake}"


def _scope_mistakes(value: Dict[str, Any], databases: Optional[Sequence[str]]) -> Iterator[str]:
    wrong = list(_shape(value, _SCOPE))
    yield from wrong
    if wrong:
        return
    kind = value.get("value") or "none"
    if kind not in VALUES:
        yield f"value is {kind!r}, but has to be one of {', '.join(VALUES)}"
    paths, rows = value.get("paths") or [], value.get("rows") or []
    if not paths and not rows:
        yield "it has neither paths nor rows"
    for path in paths:
        if not isinstance(path, str) or not os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
            yield f"{path!r} is not an absolute path"
        elif PLACE in path and kind != "required":
            yield f"the path {path} depends on a value, so value has to be required"
    if rows and databases is not None and not databases:
        yield "it has rows, but the application has no database"
    elif value.get("database") and databases is not None and value["database"] not in databases:
        yield f"the application has no database {value['database']!r}; it has {', '.join(databases)}"
    for row in rows:
        yield from _row_mistakes(row, kind)


def _row_mistakes(row: Any, kind: str) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{row!r} is not a description of rows"
        return
    wrong = list(_shape(row, _ROWS))
    yield from wrong
    if wrong:
        return
    if not row.get("table"):
        yield "rows without a table"
        return
    for option in ("key", "identity"):
        if not all(isinstance(column, str) and column for column in row.get(option) or []):
            yield f"{option} of {row['table']} is not a list of columns"
    if not row.get("identity"):
        yield f"the rows of {row['table']} name no identity: the columns that say what a row is of, beside its key"
    for option in ("table", "where"):
        if not _is_text(row.get(option) or ""):
            yield f"{option} is {row[option]!r}, which is no text in UTF-8"
    if uses_value(row.get("where") or "") and kind == "none":
        yield f"the condition on {row['table']} depends on a value, but the scope takes none"


def _shape(value: Dict[str, Any], known: Dict[str, type]) -> Iterator[str]:
    for option, given in value.items():
        if option not in known:
            yield f"the option {option!r} is not known; known are {', '.join(known)}"
        elif given is not None and not isinstance(given, known[option]):
            yield f"{option} is {given!r}, which is not a {_KINDS[known[option]]}"


def _is_text(value: str) -> bool:
    """True for what a database takes as a text."""
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)


_KINDS = {str: "text", list: "list", bool: "boolean"}
