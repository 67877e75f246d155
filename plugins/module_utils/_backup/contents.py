# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one set holds, by the paths that the application knows."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Pattern, Sequence, Set, TypeVar

from .._core.clock import rfc3339
from .errors import BackupError
from .manifest import STALE, Image, Manifest, Record, get_text
from .source import is_below, require_absolute
from .store import Store

PROJECTS = "projects"
"""The name of the saved path with one folder a project, unless another folder is named."""

VALUE = "{value}"
"""What stands in the path of a scope for one of several names."""

T = TypeVar("T")


class Shape(NamedTuple):
    """A part of an application that can be restored by name."""

    name: str
    paths: Sequence[str]
    """Absolute, with :data:`VALUE` for the name of one of several."""
    database: str
    """Empty for the only one of a set."""
    tables: Sequence[str]


class Holding(NamedTuple):
    """What one set holds, by absolute path."""

    files: Dict[str, Record]
    logs: Dict[str, Record]
    databases: Dict[str, Image]
    """Those that lie in files."""

    def records(self, path: str) -> Dict[str, Record]:
        """Return what is at and below a path; logs only for a path of logs."""
        return at(self.files, path) or at(self.logs, path)


def read_holding(store: Store, manifest: Manifest, places: Mapping[str, str]) -> Holding:
    """Return what a set holds. Raises :class:`BackupError` as :meth:`Store.require_whole`.

    :param places: where its saved paths lie, by name
    """
    store.require_whole(manifest)
    log_shards = {shard.id for shard in manifest.shards if shard.logs}
    holding = Holding({}, {}, {})
    for value in store.members(manifest):
        if STALE not in value:
            part = holding.logs if value["shard"] in log_shards else holding.files
            part[_place(manifest, places, value["root"], get_text(value, "path"))] = value
    for image in manifest.databases:
        if image.file:
            path = get_text(image.file, "path")
            holding.databases[_place(manifest, places, image.root, path) if image.root else path] = image
    return holding


def places_of(sets: Iterable[Manifest]) -> Dict[str, str]:
    """Return where the saved paths of sets lay, by name; the later one counts."""
    return {name: get_text(root, "path") for manifest in sets for name, root in manifest.roots.items()}


def _place(manifest: Manifest, places: Mapping[str, str], root: str, path: str) -> str:
    # A single file may have another name by now.
    if path == "." or manifest.roots[root]["type"] == "file":
        return places[root]
    return f"{places[root].rstrip('/')}/{path}"


def at(found: Mapping[str, T], path: str) -> Dict[str, T]:
    """Return what is at and below a path."""
    return {key: value for key, value in found.items() if key == path or is_below(key, path)}


def spellings(path: str) -> List[str]:
    """Return what a path may mean: as it stands, and with the links on the way to it resolved.

    A byte that is not UTF-8 may be written as results print it: ``\\udcff``. Raises :class:`BackupError` for one that is not absolute.
    """
    require_absolute(path)
    # Two leading slashes would stay.
    plain = "/" + os.path.normpath(path).lstrip("/")
    decoded = re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda match: chr(int(match.group(1), 16)), plain)
    found: List[str] = []
    for spelling in (plain, decoded):
        folder, name = os.path.split(spelling)
        for one in (spelling, os.path.join(os.path.realpath(folder), name), os.path.realpath(spelling)):
            if one not in found:
                found.append(one)
    return found


def saved_spellings(path: str, sets: Sequence[Manifest], places: Mapping[str, str]) -> List[str]:
    """Return those meanings of a path that lie in what sets were made of, or above it. Raises :class:`BackupError` for none."""
    saved = list(places.values())
    for manifest in sets:
        saved += [get_text(image.file, "path") for image in manifest.databases if image.file and not image.root]
    inside = [one for one in spellings(path) if any(one == place or is_below(one, place) or is_below(place, one) for place in saved)]
    if not inside:
        raise BackupError(
            "this path lies outside of what is saved",
            path,
            f"Name one in {', '.join(sorted(set(saved)))}" if saved else "Make a backup first",
        )
    return inside


def moment(nanoseconds: int) -> str:
    """Write a file's time (RFC 3339, UTC); one beyond the calendar as ``@`` and seconds, as date(1) takes it."""
    try:
        return rfc3339(datetime.fromtimestamp(nanoseconds // 10**9, timezone.utc))
    except (OverflowError, ValueError):
        return f"@{nanoseconds // 10**9}"


def describe(path: str, value: Record) -> Dict[str, Any]:
    """Return what results say about an entry of a file list: metadata only."""
    return {
        "path": path,
        "type": value["type"],
        "size": value.get("size", 0),
        "mtime": moment(value["mtime_ns"]),
        "mode": f"{value['mode']:04o}",
        "owner": value["user"] or str(value["uid"]),
        "group": value["group"] or str(value["gid"]),
        "sha256": value.get("sha256", ""),
        "target": get_text(value, "target"),
    }


def describe_image(path: str, image: Image) -> Dict[str, Any]:
    """Return the same about a database in a file."""
    size, sha256 = image.facts["bytes"], image.facts["sha256"]
    return {**describe(path, image.file), "type": "database", "size": size, "sha256": sha256}


def tables_of(facts: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Return for each table of a database ``rows``, and ``sum`` over their content, null where the engine knows none."""
    if "tables" in facts:
        return dict(facts["tables"])
    return {name: {"rows": count, "sum": None} for name, count in facts.get("rows", {}).items()}


def contents(manifest: Manifest, holding: Holding, places: Mapping[str, str], projects: Optional[str]) -> Dict[str, Any]:
    """Return what a set holds as results say it: ``paths``, ``projects``, ``logs`` and ``databases``.

    :param projects: the folder with one folder a project
    """
    return {
        "paths": [
            {"name": name, "path": places[name], "type": root["type"], "files": root["files"], "bytes": root["bytes"]}
            for name, root in sorted(manifest.roots.items())
        ],
        "projects": _projects(holding, os.path.realpath(projects) if projects else places.get(PROJECTS, "")),
        "logs": _totals(holding.logs.values()),
        "databases": [
            {
                "name": image.name,
                "engine": image.engine,
                "path": next((path for path, other in holding.databases.items() if other is image), ""),
                "bytes": image.facts["bytes"],
                "schema_version": str(image.facts.get("schema_version") or ""),
                "tables": [{"name": name, "rows": table["rows"]} for name, table in sorted(tables_of(image.facts).items())],
            }
            for image in manifest.databases
        ],
    }


def scopes_in(manifest: Manifest, holding: Holding, scopes: Iterable[Shape], limit: int) -> List[Dict[str, Any]]:
    """Return what a set holds of each scope: files and bytes of its paths, its tables with all their rows, and by which names it can be asked for.

    :param limit: the most names that are listed
    """
    found = []
    for scope in scopes:
        records: List[Record] = []
        values: Set[str] = set()
        for pattern in map(_pattern, scope.paths):
            for path, value in holding.files.items():
                match = pattern.match(path)
                if match:
                    records.append(value)
                    values.update(match.groups())
        image = next((image for image in manifest.databases if scope.database in ("", image.name)), None)
        tables = tables_of(image.facts) if image is not None else {}
        rows = [{"name": name, "rows": tables.get(name, tables.get(f"public.{name}", {})).get("rows")} for name in scope.tables]
        found.append(
            {"name": scope.name, **_totals(records), "values": sorted(values)[:limit], "values_total": len(values), "tables": rows}
        )
    return found


def _pattern(path: str) -> Pattern[str]:
    """Return what matches a scope's path and what is below; the links on the way to what it leaves open are resolved."""
    fixed, open_part, rest = path.partition(VALUE)
    folder, name = os.path.split(fixed)
    plain = os.path.join(os.path.realpath(folder), name) if open_part else os.path.realpath(path)
    return re.compile(re.escape(plain) + (f"([^/]+){re.escape(rest)}" if open_part else "") + r"(?:/.*)?\Z", re.DOTALL)


def _totals(records: Iterable[Record]) -> Dict[str, int]:
    sizes = [value["size"] for value in records if value["type"] == "file"]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _projects(holding: Holding, folder: str) -> List[Dict[str, Any]]:
    found: Dict[str, List[Record]] = {}
    for path, value in at(holding.files, folder).items() if folder else ():
        name, slash, _rest = path[len(folder.rstrip("/")) + 1 :].partition("/")
        if name and (slash or value["type"] == "dir"):
            found.setdefault(name, []).append(value)
    return [{"name": name, **_totals(values)} for name, values in sorted(found.items())]
