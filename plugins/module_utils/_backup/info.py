# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a store: its sets, what one holds, and which one still has the good version of something."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, ContextManager, Dict, Iterator, List, NamedTuple, Optional, Sequence

from .._core.files import free_bytes
from .._core.operation import Operation
from .._core.plan import Plan
from .contents import (
    Holding,
    Shape,
    at,
    contents,
    describe,
    describe_image,
    places_of,
    read_holding,
    saved_spellings,
    scopes_in,
    tables_of,
)
from .create import summary
from .errors import BackupError
from .manifest import Manifest
from .store import Store
from .versions import NONE, Seen, Version, joined, unreadable, version_of_path, version_of_table


class Question(NamedTuple):
    """What one wants to know."""

    which: str
    """One set as an operator names it, or empty for all."""
    contents: bool
    """What that set holds."""
    projects: Optional[str]
    """The folder with one folder a project; None for the saved path of this name."""
    path: str
    """What the sets hold at this absolute path; empty for nothing."""
    table: str
    """What they hold of this table, ``<database>.<table>``; empty for nothing."""
    limit: int
    """The most entries that are listed."""
    scopes: Sequence[Shape] = ()
    """What can be restored by name, for the contents."""


class SetInfo(Operation):
    """List a store's sets, and what they hold. Changes nothing."""

    def __init__(self, store: Store, question: Question, lock_timeout_s: float) -> None:
        self.store = store
        self.question = question
        self.lock_timeout_s = lock_timeout_s
        self.sets: List[Manifest] = []
        self.places: Dict[str, str] = {}
        """Where the saved paths lie, by name."""
        self.found: Dict[str, Any] = {}
        self.warnings: List[str] = []
        self.is_real = False
        """Not a rehearsal."""
        if question.contents and not question.which:
            raise BackupError("contents are those of one set, and none is named", "set", "Name it, for example latest")
        if question.path and question.table:
            raise BackupError("path and table are two questions", question.path, "Ask one after the other")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.is_real = True
        yield

    def plan(self) -> Plan:
        self.store.open()
        question, everything = self.question, self.store.sets()
        self.sets = [self.store.find(question.which)] if question.which else everything
        self.places = places_of(everything)
        if question.contents or question.path:
            # A set that is read must not go meanwhile. Everything else stands in its manifest.
            self.store.require_locks()
            meanings = saved_spellings(question.path, everything, self.places) if question.path else []
            if question.which:
                self._look_at_one(self.sets[0], meanings)
            else:
                self._look_at_all(meanings)
        if question.table:
            self._look_at_table()
        return Plan("none")

    def _held(self, manifest: Manifest) -> ContextManager[bool]:
        """Keep a set from being deleted while the block runs. Gives False when it was."""
        return self.store.reading(manifest.id, self.lock_timeout_s, make=self.is_real)

    def _look_at_one(self, manifest: Manifest, meanings: List[str]) -> None:
        """Find what a named set holds."""
        question = self.question
        with self._held(manifest) as there:
            if not there:
                raise BackupError(f"set {manifest.id} was pruned just now", self.store.path, "List the sets with backup_set_info")
            holding = read_holding(self.store, manifest, self.places)
        if question.contents:
            self.found["contents"] = contents(manifest, holding, self.places, question.projects)
            self.found["contents"]["scopes"] = scopes_in(manifest, holding, question.scopes, question.limit)
        if question.path:
            path = self._choose(meanings, [{meaning: version_of_path(holding, meaning) for meaning in meanings}])
            entries = _entries(holding, path)
            self.found["entries"] = entries[: question.limit]
            self.found["entries_total"] = len(entries)
            self.found["truncated"] = len(entries) > question.limit

    def _look_at_all(self, meanings: List[str]) -> None:
        """Find the versions of a path."""
        there: List[Manifest] = []
        found: List[Dict[str, Version]] = []
        before = ""
        for manifest in self.sets:
            # A set of the same files and databases, of which there are many, is not read again.
            same = f"{manifest.files} {[(image.object, image.file) for image in manifest.databases]}"
            with self._held(manifest) as is_there:
                if not is_there:
                    continue
                there.append(manifest)
                try:
                    self.store.require_whole(manifest)
                    if same != before:
                        holding = read_holding(self.store, manifest, self.places)
                        versions = {meaning: version_of_path(holding, meaning) for meaning in meanings}
                        before = same
                    found.append(versions)
                except BackupError as error:
                    # One that is damaged is no reason to say nothing of the others.
                    self.warnings.append(str(error))
                    found.append(dict.fromkeys(meanings, unreadable(error.what)))
        self.sets = there
        self._choose(meanings, found)

    def _choose(self, meanings: List[str], found: List[Dict[str, Version]]) -> str:
        """Take that of the meanings of a path at which the chosen sets hold anything."""
        chosen = next((one for one in meanings if any(versions[one].holds for versions in found)), meanings[0])
        self.found["versions"] = joined([self._seen(manifest, versions[chosen]) for manifest, versions in zip(self.sets, found)])
        return chosen

    def _seen(self, manifest: Manifest, version: Version) -> Seen:
        return Seen(manifest, self.store.verified(manifest.id), version)

    def _look_at_table(self) -> None:
        images = {image.name for manifest in self.sets for image in manifest.databases}
        name = max((name for name in images if self.question.table.startswith(name + ".")), key=len, default="")
        if not name:
            raise BackupError(
                f"{self.question.table} is no table of a database of these sets",
                self.store.path,
                f"Write <database>.<table>; the databases are {', '.join(sorted(images)) or 'none'}",
            )
        table = self.question.table[len(name) + 1 :]
        seen = []
        for manifest in self.sets:
            image = next((image for image in manifest.databases if image.name == name), None)
            version = version_of_table(image, table) if image is not None else NONE
            seen.append(self._seen(manifest, version))
        if not any(one.version.holds for one in seen):
            raise BackupError(f"no set holds a table {table} of the database {name}", self.store.path, _known_tables(name, self.sets[-1]))
        self.found["versions"] = joined(seen)

    def result(self) -> Dict[str, Any]:
        verified = [manifest.id for manifest in self.store.sets() if self.store.verified(manifest.id)]
        objects: Dict[str, int] = {}
        for manifest in self.sets:
            objects.update(manifest.objects)
        return {
            "sets": [summary(self.store, manifest) for manifest in reversed(self.sets)],
            "newest_verified": verified[-1] if verified else "",
            "store": {
                "uuid": self.store.uuid,
                "bytes": sum(objects.values()),
                "free_bytes": free_bytes(self.store.path),
            },
            **self.found,
            "warnings_": self.warnings,
        }


def _entries(holding: Holding, path: str) -> List[Dict[str, Any]]:
    """Return what is at and below a path, by path."""
    found = [describe(key, value) for key, value in holding.records(path).items()]
    found += [describe_image(key, image) for key, image in at(holding.databases, path).items()]
    return sorted(found, key=lambda entry: str(entry["path"]))


def _known_tables(name: str, manifest: Manifest) -> str:
    image = next((image for image in manifest.databases if image.name == name), None)
    tables = sorted(tables_of(image.facts)) if image is not None else []
    return f"The newest has {', '.join(tables[:20])}{' and more' if len(tables) > 20 else ''}" if tables else "Name another one"
