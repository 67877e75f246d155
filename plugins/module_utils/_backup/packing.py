# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making objects of what lies on disk: shards of files, images of databases."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from typing import List, NamedTuple, Optional, Set, Tuple

from .._core.clock import rfc3339
from .._core.files import free_bytes, fsync_file, hash_file
from . import archive, images, shards
from .errors import BackupError
from .manifest import Image, Record, Shard, tree_hash
from .past import Past, is_whole
from .records import stored_records
from .source import Entry, look
from .store import Store
from .survey import Live


class Packed(NamedTuple):
    """An archive in tmp/."""

    path: str
    entries: List[Entry]
    """Its good members as they were when it was written."""
    records: List[Record]
    stale: List[Record]
    """Of members that changed while they were read."""


class Packer:
    """Stores what one new set needs. Its methods may be called from several threads.

    :param level: of the compressor
    :param begun: the moment of the set
    """

    def __init__(self, store: Store, past: Past, level: int, begun: datetime) -> None:
        self.store = store
        self.past = past
        self.level = level
        self.begun = begun
        self.codec = archive.writer_codec()
        self.fresh: Set[str] = set()
        """Objects that the last set does not have."""
        self.notes: List[str] = []
        """What an operator is warned of."""

    def plain(self, live: Live) -> str:
        """Return where the plain image of a database is written."""
        return self.store.at("tmp", f"{live.database.name}.image")

    def store_image(self, live: Live, plain: str) -> Image:
        facts = live.database.facts(plain)
        image = Image(live.database.name, live.database.engine, live.root, live.file, "", 0, facts, live.declared)
        image = self._store_same(image, plain) or self._store_patch(image, plain) or self._store_whole(image, plain)
        if os.path.lexists(beside(plain)):
            facts["beside"] = {"bytes": os.path.getsize(beside(plain)), "sha256": hash_file(beside(plain))}
            name, stored = self._store_plain(beside(plain), "sql")
            image = image._replace(beside=name, beside_bytes=stored)
        known = self.past.image(live.database.name)
        self.fresh.update({image.object, image.beside} - ({known.object, known.beside} if known else set()) - {""})
        return image

    def _store_same(self, image: Image, plain: str) -> Optional[Image]:
        """Take the last set's object for an image of the same bytes, which a lost cache, or a commit of nothing, makes."""
        known = self.past.image(image.name)
        if known is None or known.facts["sha256"] != image.facts["sha256"] or not is_whole(self.store, self.past, *known.stored):
            return None
        os.unlink(plain)
        return known._replace(root=image.root, file=image.file, facts=image.facts, declared=image.declared, beside="", beside_bytes=0)

    def _store_whole(self, image: Image, plain: str) -> Image:
        name, stored = self._store_plain(plain, "dump")
        return image._replace(object=name, stored_bytes=stored, full_at=rfc3339(self.begun))

    def _store_patch(self, image: Image, plain: str) -> Optional[Image]:
        """Store an image as what differs from a whole one; None where there is none, or no room, or it would be hardly smaller."""
        base = images.base_of(self.past.image(image.name), self.begun)
        size = os.path.getsize(plain)
        if self.codec != archive.ZSTD or base is None or not is_whole(self.store, self.past, (base.object, base.stored_bytes)):
            return None
        if not images.can_patch(base, size, images.available_memory(), free_bytes(self.store.at("tmp"))):
            return None
        whole, target = f"{plain}.base", f"{plain}.delta"
        try:
            archive.decompress(self.store.object_path(base.object), whole)
            archive.patch_from(whole, plain, target, self.level)
        except BackupError as error:
            # Damage that no verification has met yet; a whole image needs nothing of it.
            self.notes.append(f"no delta was made against {base.object}: {error}")
            return None
        finally:
            if os.path.lexists(whole):
                os.unlink(whole)
        stored = os.path.getsize(target)
        if not images.is_worth_it(base, stored):
            os.unlink(target)
            return None
        _flush_instead(target, plain)
        name = self.store.adopt(target, f"delta.{archive.ZSTD.ending}", self.past.suspects)
        memory = images.memory_to_apply(base, size)
        return image._replace(
            object=name,
            stored_bytes=stored,
            full_at=base.full_at,
            base=base.object,
            base_bytes=base.stored_bytes,
            base_image_bytes=base.image_bytes,
            restore_memory=memory,
        )

    def _store_plain(self, plain: str, kind: str) -> Tuple[str, int]:
        """Compress a file of tmp/ into an object; returns its name and stored bytes. The plain file is gone then."""
        target = f"{plain}.{self.codec.ending}"
        archive.compress(plain, target, self.codec, self.level)
        _flush_instead(target, plain)
        stored = os.path.getsize(target)
        return self.store.adopt(target, f"{kind}.{self.codec.ending}", self.past.suspects), stored

    def store_shard(self, group: shards.Group) -> Tuple[Optional[shards.Kept], List[Entry]]:
        """Make an object of a group, as far as its members stand still; see :meth:`pack`."""
        packed, moved = self.pack(group, self.codec)
        return self._adopt_shard(group, packed) if packed is not None else None, moved

    def compress(self, group: shards.Group, packed: Packed) -> shards.Kept:
        """Make an object of what was copied plain."""
        target = f"{packed.path}.{self.codec.ending}"
        archive.compress(packed.path, target, self.codec, self.level)
        _flush_instead(target, packed.path)
        return self._adopt_shard(group, packed._replace(path=target))

    def pack(self, group: shards.Group, codec: Optional[archive.Codec]) -> Tuple[Optional[Packed], List[Entry]]:
        """Write a shard's archive to tmp/, plain without a codec, and return it with the members that need another one.

        Those changed while they were read; they are as they are by now. There is no archive where that is most of them.
        """
        target = self.store.at("tmp", hashlib.sha256(group.id.encode("utf-8")).hexdigest()[:16])
        members = archive.pack(group.root.base, [entry.path for entry in group.entries], target, codec, self.level, group.bytes)
        records, stale, moved = stored_records(group, group.entries, members)
        packed: Optional[Packed] = None
        if (shards.is_tree(group.id) and moved) or len(stale) > shards.STALE_MEMBERS or not records:
            # Folders and links take no time to read, so they stay together.
            moved = group.entries
            os.unlink(target)
        else:
            gone = {entry.path for entry in moved}
            packed = Packed(target, [entry for entry in group.entries if entry.path not in gone], records, stale)
        now = (look(group.root.base, entry.path) for entry in moved)
        return packed, [entry for entry in now if entry is not None]

    def _adopt_shard(self, group: shards.Group, packed: Packed) -> shards.Kept:
        """Give an archive its place, unless the last set has one of the same members."""
        records = packed.records
        for value in records:
            value["shard"] = group.id
        for value in packed.stale:
            value["shard"] = group.id
        tree = tree_hash([*records, *packed.stale])
        size = sum(value.get("size", 0) for value in records)
        known = self.past.shards.get(group.id)
        if (
            known is not None
            and known.shard.tree == tree
            and is_whole(self.store, self.past, (known.shard.object, known.shard.stored_bytes))
        ):
            os.unlink(packed.path)
            shard = known.shard._replace(files=len(records), bytes=size)
            return shards.Kept(shards.Known(shard, records, packed.stale), packed.entries)
        stored = os.path.getsize(packed.path)
        name = self.store.adopt(packed.path, f"tar.{self.codec.ending}", self.past.suspects)
        self.fresh.add(name)
        shard = Shard(group.id, group.root.name, name, tree, len(records), size, stored, group.logs)
        return shards.Kept(shards.Known(shard, records, packed.stale), packed.entries)


def _flush_instead(stored: str, plain: str) -> None:
    """Flush a file to the disk, and remove the plain one before: a journalling file system may else write that out with it."""
    os.unlink(plain)
    fsync_file(stored)


def beside(plain: str) -> str:
    """Return where what belongs with an image is written, beside it in tmp/."""
    return plain + ".beside"
