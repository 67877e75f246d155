# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a set differs from another one, or from what is live."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .._core.errors import OpskitError
from .._core.operation import Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource
from . import shards
from .comparison import LINK, InSet, Item, OnDisk, Owners, content_differences, metadata_differences, rights_differences
from .contents import at, moment, places_of, read_holding, saved_spellings, tables_of
from .create import summary
from .errors import BackupError
from .exchange import Servers
from .manifest import Image, Manifest, Record, get_text
from .past import Past, read_past
from .placement import Placement, Target
from .source import Entry, Root, Source, is_below, look
from .store import Store

LIVE = "live"
"""What stands in place of a set for what is live."""
BESIDE_TABLES = ("schema", "sequences", "properties", "schema_version")
"""What two databases are compared by beside their tables."""
SAME, DIFFERS, UNKNOWN, ADDED, REMOVED = "same", "differs", "unknown", "added", "removed"


class Options(NamedTuple):
    """What is compared, and how."""

    which: str
    """A set as an operator names it."""
    other: str
    """Another one, or ``live``."""
    path: str
    """Only what is at and below this absolute path; empty for everything."""
    content: bool
    """Read all content, also where size and times say that it is the same."""
    limit: int
    """The most paths that each list names."""
    lock_timeout_s: float


class Pair(NamedTuple):
    """A database on both sides."""

    name: str
    engine: str
    path: str
    """Empty for one in a server."""
    then: Optional[Mapping[str, Any]]
    """What is known of it, None where it is missing."""
    now: Optional[Mapping[str, Any]]
    rights: Sequence[str] = ()
    """In what owner, mode and attributes of its file differ."""
    error: str = ""
    """Why nothing is known of it as it is now."""


class Sides(NamedTuple):
    """What is compared, by absolute path."""

    then: Dict[str, Record]
    now: Dict[str, Item]
    names: Tuple[Dict[str, object], Dict[str, object]]
    """For each side and each file something that all names of one file have in common."""
    pairs: List[Pair]


class Diff(Operation):
    """Compare a set with another one, or with what is live. Changes nothing.

    :param servers: where databases in servers are brought back to
    :param adopt: returns the database of a file, by name and path
    """

    def __init__(
        self, store: Store, source: Source, options: Options, servers: Servers, adopt: Callable[[str, str], DatabaseSource]
    ) -> None:
        self.store = store
        self.source = source
        self.options = options
        self.servers = servers
        self.adopt = adopt
        self.owners = Owners("name")
        self.found: Dict[str, Any] = {}
        self.warnings: List[str] = []
        self.is_real = False
        """Not a rehearsal."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.is_real = True
        yield

    def plan(self) -> Plan:
        self.store.open()
        self.store.require_locks()
        with ExitStack() as held:
            manifest = self._held(self.options.which, held)
            self.found["set"] = summary(self.store, manifest)
            if self.options.other == LIVE:
                self.found["other"] = {"id": LIVE}
                self._compare(*self._with_live(manifest))
            else:
                other = self._held(self.options.other, held)
                self.found["other"] = summary(self.store, other)
                self._compare(*self._with_set(manifest, other))
        return Plan("none")

    def _held(self, which: str, locks: ExitStack) -> Manifest:
        return self.store.held(which, self.options.lock_timeout_s, locks, make=self.is_real)

    # the two sides --------------------------------------------------------------------------------

    def _with_set(self, manifest: Manifest, other: Manifest) -> Tuple[Sides, List[str]]:
        # By the places of the later one: an application that has moved since is still the same.
        sets = sorted([manifest, other], key=lambda one: one.seq)
        places = places_of(sets)
        meanings = self._meanings(sets, places)
        then, now = (read_holding(self.store, one, places) for one in (manifest, other))
        images = [{image.name: image for image in one.databases} for one in (manifest, other)]
        files = {image.name: path for holding in (then, now) for path, image in holding.databases.items()}
        pairs = []
        for name in sorted({*images[0], *images[1]}):
            old, new = images[0].get(name), images[1].get(name)
            facts = [image.facts if image is not None else None for image in (old, new)]
            engine = next(image.engine for image in (new, old) if image is not None)
            rights = self._rights(old.file, InSet(new.file, self.owners)) if old and new and old.file and new.file else []
            pairs.append(Pair(name, engine, files.get(name, ""), facts[0], facts[1], rights))
        items: Dict[str, Item] = {path: InSet(value, self.owners) for path, value in now.files.items()}
        return Sides(then.files, items, (_names_in_set(then.files), _names_in_set(now.files)), pairs), meanings

    def _with_live(self, manifest: Manifest) -> Tuple[Sides, List[str]]:
        self.store.require_whole(manifest)
        members = self.store.members(manifest)
        placement = Placement(self.store, self.source, manifest, members, "diff", self.owners.policy, self.servers, self.adopt)
        roots = self.source.outermost()
        meanings = self._meanings([manifest], roots)
        past = read_past(self.store)
        then: Dict[str, Record] = {}
        now: Dict[str, OnDisk] = {}
        names: Dict[str, object] = {}
        for target in placement.targets:
            then.update((_full(target, path), value) for path, value in placement.wanted(target, logs=False))
            self._add_live(
                target.name, {_full(target, path): entry for path, entry in _entries(placement, target).items()}, past, now, names
            )
        for name in sorted(set(roots) - set(manifest.roots)):
            # Saved only since.
            if os.path.lexists(roots[name]):
                root = Root(name, roots[name], os.path.isfile(roots[name]))
                target = Target(name, root.is_file, root.path, "")
                self._add_live(name, {_full(target, entry.path): entry for entry in self.source.scan(root).saved}, past, now, names)
        items: Dict[str, Item] = dict(now)
        return Sides(then, items, (_names_in_set(then), names), list(self._live_pairs(manifest, placement, past, meanings))), meanings

    def _add_live(self, root: str, entries: Dict[str, Entry], past: Past, now: Dict[str, OnDisk], names: Dict[str, object]) -> None:
        known = {} if self.options.content else _known_contents(past, root)
        for path, entry in entries.items():
            print_then, sha256 = known.get(entry.path, ("", ""))
            # What lstat(2) says is what it said of the file that the last set holds.
            now[path] = OnDisk(path, entry, sha256 if print_then == shards.member_print(entry) else "")
            if entry.type == "file":
                names[path] = (entry.device, entry.inode)

    def _live_pairs(self, manifest: Manifest, placement: Placement, past: Past, meanings: List[str]) -> Iterator[Pair]:
        declared = {database.name: database for database in self.source.databases}
        places = {placed.image.name: placed.live for placed in placement.placed}
        for image in manifest.databases:
            path = places.get(image.name, "")
            if self._is_meant(path, meanings):
                database = declared.get(image.name) or self.adopt(image.name, path)
                yield self._live_pair(database, path, image, past)
        for name in sorted(set(declared) - {image.name for image in manifest.databases}):
            path = next(iter(declared[name].files()), "")
            if self._is_meant(path, meanings) and (not path or os.path.lexists(path)):
                yield Pair(name, declared[name].engine, path, None, {})

    def _live_pair(self, database: DatabaseSource, path: str, image: Image, past: Past) -> Pair:
        then = image.facts
        pair = Pair(database.name, database.engine, path, then, None)
        if path:
            entry = look("/", path)
            if entry is None:
                return pair
            pair = pair._replace(rights=self._rights(image.file, OnDisk(path, entry)))
        try:
            packages = database.missing()
            if packages:
                return pair._replace(error=f"{', '.join(packages)} has to be installed before it can be looked at")
            database.require()
            last = past.image(database.name)
            cached = past.cache.get(f"database {database.name}", {})
            if last is not None and cached.get("object") == last.object and cached.get("fingerprint") == database.fingerprint():
                return pair._replace(now=last.facts)
            # As a restore leaves it. Of one in a server this is found out by reading what is compared here.
            if path and database.is_as(then):
                return pair._replace(now=then)
            return pair._replace(now=database.contents())
        except OpskitError as error:
            # The files are worth comparing while the server is down.
            return pair._replace(error=str(error))

    def _rights(self, file: Record, now: Item) -> List[str]:
        return [difference.what for difference in rights_differences(file, now, self.owners, True)]

    def _meanings(self, sets: Sequence[Manifest], places: Mapping[str, str]) -> List[str]:
        return saved_spellings(self.options.path, sets, places) if self.options.path else []

    @staticmethod
    def _is_meant(path: str, meanings: List[str]) -> bool:
        """True for a database that is compared: one in a server only where everything is."""
        return not meanings or any(path == meaning or is_below(path, meaning) for meaning in meanings)

    # comparison -----------------------------------------------------------------------------------

    def _compare(self, sides: Sides, meanings: List[str]) -> None:
        then, now = sides.then, sides.now
        pairs = sides.pairs
        if meanings:
            there = [*then, *now, *(pair.path for pair in pairs)]
            chosen = next((one for one in meanings if any(path == one or is_below(path, one) for path in there)), meanings[0])
            then, now = at(then, chosen), at(now, chosen)
            pairs = [pair for pair in pairs if self._is_meant(pair.path, [chosen])]
            if not then and not now and not pairs:
                raise BackupError(
                    "neither side has anything here that is compared",
                    chosen,
                    "Look for it with backup_set_info; logs and volatile paths are never compared",
                )
        both = sorted(path for path in then if path in now)
        removed = {path for path in then if path not in now}
        relinked = _relinked(both, *sides.names)
        changed: Dict[str, List[str]] = {}
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            for path, what in zip(both, pool.map(lambda path: self._differing(then[path], now[path]), both, chunksize=64)):
                if what is None:
                    removed.add(path)
                elif what or path in relinked:
                    changed[path] = [*what, *[LINK] * (path in relinked)]
        added = sorted(path for path in now if path not in then)
        databases = [_compare_pair(pair, self.options.limit) for pair in pairs]
        self.warnings += [f"database {pair.name} could not be compared: {pair.error}" for pair in pairs if pair.error]
        limit = self.options.limit
        lists = {
            "added": [_item(path, now[path]) for path in added[:limit]],
            "removed": [_item(path, InSet(then[path], self.owners)) for path in sorted(removed)[:limit]],
            "changed": [
                {**_item(path, InSet(then[path], self.owners)), **_item_after(now[path]), "what": what}
                for path, what in sorted(changed.items())[:limit]
            ],
        }
        counts = {"added": len(added), "removed": len(removed), "changed": len(changed)}
        self.found.update(
            paths=lists,
            counts={**counts, "same": len(both) - len(changed) - len(removed.intersection(both))},
            truncated=any(count > limit for count in counts.values()),
            databases=databases,
            is_equal=not any(counts.values()) and all(database["state"] == SAME for database in databases),
        )

    def _differing(self, value: Record, now: Item) -> Optional[List[str]]:
        """Return in what a path differs; None when it went meanwhile. The time of a folder moves whenever something passes through."""
        try:
            found = [difference.what for difference in metadata_differences(value, now, self.owners, value["type"] != "dir", True)]
            if now.type == value["type"]:
                found += [difference.what for difference in content_differences(value, now)]
            return found
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise BackupError("this file can't be read", error.filename, "Run as a user who may read it (become)") from None

    def difference(self) -> str:
        paths = self.found["paths"]
        lines = [f"{entry['path']}: removed" for entry in paths["removed"]]
        lines += [f"{entry['path']}: added" for entry in paths["added"]]
        lines += [f"{entry['path']}: {', '.join(entry['what'])}" for entry in paths["changed"]]
        lines += [f"database {database['name']}: {database['state']}" for database in self.found["databases"] if database["state"] != SAME]
        return "".join(f"{line}\n" for line in sorted(lines))

    def result(self) -> Dict[str, Any]:
        return {**self.found, "warnings_": self.warnings}


def _full(target: Target, path: str) -> str:
    return target.live if target.is_file or path == "." else f"{target.live.rstrip('/')}/{path}"


def _entries(placement: Placement, target: Target) -> Dict[str, Entry]:
    """Return what is live in the place of a target; the place alone where that is of another kind."""
    if not os.path.lexists(target.live):
        return {}
    if stat.S_ISREG(os.stat(target.live).st_mode) == target.is_file:
        return placement.found(target)
    entry = look(os.path.dirname(target.live), os.path.basename(target.live))
    return {} if entry is None else {".": entry}


def _known_contents(past: Past, root: str) -> Dict[str, Tuple[str, str]]:
    """Return for each file of the last set its print and the hash of its content, where the cache has them."""
    found: Dict[str, Tuple[str, str]] = {}
    for key, known in past.shards.items():
        if known.shard.root == root:
            printed = shards.printed(known, past.cache.get(key, {}).get("prints", ""))
            found.update((path, (printed[path], value.get("sha256", ""))) for path, value in _by_path(known.records))
    return found


def _by_path(records: Iterable[Record]) -> Iterator[Tuple[str, Record]]:
    return ((get_text(value, "path"), value) for value in records)


def _names_in_set(records: Mapping[str, Record]) -> Dict[str, object]:
    return {
        path: (value["root"], get_text(value, "link") or get_text(value, "path"))
        for path, value in records.items()
        if value["type"] == "file"
    }


def _relinked(both: List[str], then: Mapping[str, object], now: Mapping[str, object]) -> List[str]:
    """Return the paths that are names of one file on one side, and of two on the other."""
    firsts: Tuple[Dict[object, str], Dict[object, str]] = ({}, {})
    found = []
    for path in both:
        if path in then and path in now and firsts[0].setdefault(then[path], path) != firsts[1].setdefault(now[path], path):
            found.append(path)
    return found


def _item(path: str, item: Item) -> Dict[str, Any]:
    return {"path": path, "type": item.type, "size": item.size, "mtime": moment(item.mtime_ns)}


def _item_after(item: Item) -> Dict[str, Any]:
    return {"other_type": item.type, "other_size": item.size, "other_mtime": moment(item.mtime_ns)}


def _compare_pair(pair: Pair, limit: int) -> Dict[str, Any]:
    said: Dict[str, Any] = {"name": pair.name, "engine": pair.engine, "path": pair.path, "what": [], "tables": [], "error": pair.error}
    if pair.error:
        return {**said, "state": UNKNOWN}
    if pair.then is None or pair.now is None:
        return {**said, "state": ADDED if pair.then is None else REMOVED}
    then, now = pair.then, pair.now
    if then.get("sha256", "") == now.get("sha256", None):
        return {**said, "what": [*pair.rights], "state": DIFFERS if pair.rights else SAME}
    what = [*pair.rights]
    what += [name for name in BESIDE_TABLES if name in then and name in now and _words(then[name]) != _words(now[name])]
    tables = [table for table in _compare_tables(tables_of(then), tables_of(now)) if table["content"] != SAME]
    differs = bool(what) or any(table["content"] == DIFFERS for table in tables)
    # SQLite's images differ, which says nothing of a table with as many rows.
    unknown = any(table["content"] == UNKNOWN for table in tables) or pair.engine == "sqlite"
    return {**said, "what": what, "tables": tables[:limit], "state": DIFFERS if differs else UNKNOWN if unknown else SAME}


def _words(value: Any) -> Any:
    """Return what definitions are compared by: as a server tells them of what was loaded, too."""
    return value["words"] if isinstance(value, dict) and "words" in value else value


def _compare_tables(then: Dict[str, Dict[str, Any]], now: Dict[str, Dict[str, Any]]) -> Iterator[Dict[str, Any]]:
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        rows = [table["rows"] if table is not None else None for table in (old, new)]
        if old is None or new is None or old != new:
            content = DIFFERS
        else:
            content = UNKNOWN if old["rows"] and old["sum"] is None else SAME
        yield {"name": name, "rows": rows[0], "other_rows": rows[1], "content": content}
