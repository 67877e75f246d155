# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the last set holds, and what of the store can be relied on."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Set, Tuple

from . import shards
from .manifest import Image, Manifest
from .store import Store

OF_SET = "set"
"""The key under which the cache says which set it is of."""


class Past(NamedTuple):
    """The store as a new set finds it."""

    last: Optional[Manifest]
    shards: Dict[str, shards.Known]
    """Of the last set, by id."""
    cache: Dict[str, Dict[str, str]]
    """What tells without reading that files are what the last set holds; empty when it is lost."""
    suspects: Set[str]
    """Objects that failed a verification."""
    damage: str
    """What is wrong with the last set's own files; then nothing of it is relied on."""

    def image(self, name: str) -> Optional[Image]:
        """Return a database as the last set holds it."""
        images = self.last.databases if self.last and not self.damage else []
        return next((image for image in images if image.name == name), None)


def read_past(store: Store) -> Past:
    """Read the store's newest set. Raises :class:`BackupError`."""
    if not store.exists():
        return Past(None, {}, {}, set(), "")
    store.open()
    sets = store.sets()
    suspects = store.suspects()
    if not sets:
        return Past(None, {}, {}, suspects, "")
    last = sets[-1]
    damage = store.set_damage(last)
    if damage:
        # Everything is read and stored again, so that one damaged file does not end all backups.
        return Past(last, {}, {}, suspects, f"set {last.id} is damaged, so nothing of it is relied on: {damage[0]}")
    cache = store.read_cache()
    known = shards.known_shards(last.shards, store.members(last))
    return Past(last, known, cache if cache.get(OF_SET) == {"id": last.id} else {}, suspects, "")


def is_whole(store: Store, past: Past, *objects: Tuple[str, int]) -> bool:
    """True when objects, by name and stored bytes, are there and none has failed a verification."""
    return all(name not in past.suspects and store.has_object(name, size) for name, size in objects)
