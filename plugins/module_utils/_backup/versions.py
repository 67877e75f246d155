# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which versions of a path or of a table the sets of a store hold, so that one sees which set still has the good one."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Sequence

from .._core.clock import rfc3339
from .contents import Holding, at, describe, describe_image, moment, tables_of
from .manifest import Image, Manifest, Record, put_text, tree_hash

MISSING = "missing"
UNREADABLE = "unreadable"


class Version(NamedTuple):
    """What one set holds of a path or a table."""

    identity: str
    """Two sets with the same one hold the same."""
    says: Dict[str, Any]
    """What results say about it: ``type``, and what such a thing has."""

    @property
    def holds(self) -> bool:
        """True where the set has it."""
        return self.says["type"] not in (MISSING, UNREADABLE)


NONE = Version(MISSING, {"type": MISSING})


class Seen(NamedTuple):
    """A version and the set that holds it."""

    manifest: Manifest
    verified: bool
    version: Version


def unreadable(reason: str) -> Version:
    """Return what is said of a set that can't be read."""
    return Version(UNREADABLE + reason, {"type": UNREADABLE, "error": reason})


def version_of_path(holding: Holding, path: str) -> Version:
    """Return what a set holds at a path.

    Two folders are the same when everything in them is but the times of folders, which move whenever something passes through.
    Databases in a folder do not count, nor do logs but in a path of logs.
    """
    image = holding.databases.get(path)
    if image is not None:
        said = describe_image(path, image)
        return Version(str(image.facts["sha256"]) + _identity({"": image.file}, ""), _without_path(said))
    records = holding.records(path)
    if not records:
        # Nothing but databases: there is such a folder, of which the set has no line of its own.
        return Version("dir", _folder({}, "")) if at(holding.databases, path) else NONE
    identity = _identity(records, path)
    own = records.get(path)
    if own is None or own["type"] == "dir":
        return Version(identity, _folder(records, identity))
    return Version(identity, _without_path(describe(path, own)))


def _without_path(said: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in said.items() if key != "path" and (value != "" or key == "sha256")}


def _folder(records: Dict[str, Record], identity: str) -> Dict[str, Any]:
    inside = [value for value in records.values() if value["type"] != "dir"]
    return {
        "type": "dir",
        "files": sum(value["type"] == "file" for value in inside),
        "size": sum(value.get("size", 0) for value in inside),
        "mtime": moment(max(value["mtime_ns"] for value in inside)) if inside else "",
        "sha256": identity,
    }


def _identity(records: Dict[str, Record], top: str) -> str:
    def bare(path: str, value: Record) -> Record:
        # Where it lies in the store, and which of its names comes first there, is no part of what it is.
        left_out = {"root", "path", "path_b64", "shard", "link", "link_b64"} | ({"mtime_ns"} if value["type"] == "dir" else set())
        kept = {key: item for key, item in value.items() if key not in left_out}
        put_text(kept, "path", path[len(top) :])
        return kept

    return tree_hash(bare(path, records[path]) for path in sorted(records))


def version_of_table(image: Image, table: str) -> Version:
    """Return what a database of a set holds of a table; of SQLite only the number of rows is known.

    :param table: in PostgreSQL with its schema, but for ``public``
    """
    tables = tables_of(image.facts)
    known = tables.get(table, tables.get(f"public.{table}"))
    if known is None:
        return NONE
    return Version(f"{known['rows']} {known['sum']}", {"type": "table", "rows": known["rows"], "sum": known["sum"]})


def joined(seen: Sequence[Seen]) -> List[Dict[str, Any]]:
    """Return the versions, the newest first, equal ones of sets that follow each other as one.

    :param seen: by seq, the oldest first
    """
    runs: List[List[Seen]] = []
    for one in seen:
        if runs and runs[-1][-1].version.identity == one.version.identity:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [_as_one(run) for run in reversed(runs)]


def _as_one(run: List[Seen]) -> Dict[str, Any]:
    first, last = run[0].manifest, run[-1].manifest
    return {
        **run[-1].version.says,
        "first_set": first.id,
        "first_time": rfc3339(first.time),
        "last_set": last.id,
        "last_time": rfc3339(last.time),
        "count": len(run),
        "verified_set": next((one.manifest.id for one in reversed(run) if one.verified), ""),
    }
