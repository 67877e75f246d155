# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of databases as objects: whole on the first set of a week and of a month, between them what differs from that one."""

from __future__ import annotations

import os
import tempfile
from datetime import datetime
from typing import NamedTuple, Optional

from .._core.clock import parse_rfc3339
from .._core.errors import OpskitError
from .._core.files import human_size
from . import archive
from .manifest import Image
from .store import Store

PATCH_BYTES = int(1.9 * (1 << 30))
"""Images from this size on are stored whole: zstd's window ends at 2 GiB (zstd(1), --long)."""
PATCH_MEMORY = 3.5
"""Bytes of memory for each byte of an image, measured with zstd 1.5.4: 3.0 to make a delta, 2.0 to apply one."""


class Base(NamedTuple):
    """A whole image in the store that a delta can be made against."""

    object: str
    stored_bytes: int
    image_bytes: int
    full_at: str


def base_of(known: Optional[Image], moment: datetime) -> Optional[Base]:
    """Return the whole image that one of this moment may be a delta against: that of the same ISO week and month (UTC).

    :param known: the database in the last set
    """
    if known is None or not known.full_at:
        return None
    then = parse_rfc3339(known.full_at)
    if (then.isocalendar()[:2], then.month) != (moment.isocalendar()[:2], moment.month):
        return None
    if known.base:
        return Base(known.base, known.base_bytes, known.base_image_bytes, known.full_at)
    return Base(known.object, known.stored_bytes, known.facts["bytes"], known.full_at)


def can_patch(base: Base, size: int, memory: int, free: int) -> bool:
    """True when a delta can be made here.

    :param size: bytes of the new image
    :param memory: bytes of memory that are available
    :param free: bytes of disk, on which the base's plain image and the delta have to have room beside the new image
    """
    fits = max(size, base.image_bytes) < PATCH_BYTES and memory > PATCH_MEMORY * max(size, base.image_bytes)
    return fits and base.object.endswith("." + archive.ZSTD.ending) and free > base.image_bytes + base.stored_bytes


def is_worth_it(base: Base, stored: int) -> bool:
    """True for a delta that is under half of a whole one."""
    return stored * 2 < base.stored_bytes


def memory_to_apply(base: Base, size: int) -> int:
    """Return the bytes of memory that applying a delta takes."""
    return base.image_bytes + size


def available_memory() -> int:
    """Return the bytes of memory that are available without swapping (proc(5), MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        return next(_kib(line) for line in stream if line.startswith("MemAvailable:"))


def _kib(line: str) -> int:
    return int(line.split()[1]) << 10


def require_memory(image: Image) -> None:
    """Raise :class:`OpskitError` where the memory to decompress an image is not there."""
    if image.restore_memory > available_memory():
        raise OpskitError(
            f"decompressing the database {image.name} takes {human_size(image.restore_memory)} of memory, "
            f"{human_size(available_memory())} are available",
            todo="Stop what takes the memory, or take the store to a host with more",
        )


def disk_to_unpack(image: Image) -> int:
    """Return the bytes of disk that :func:`unpack` takes at the most."""
    return int(image.facts["bytes"]) + image.base_image_bytes


def unpack_whole(store: Store, image: Image, target: str, aside: str) -> None:
    """:func:`unpack`, of objects that were read before and hold the bytes that they are named by."""
    for name, _size in image.stored:
        store.whole_object(name)
    unpack(store, image, target, aside)


def unpack(store: Store, image: Image, target: str, aside: str) -> None:
    """Write an image's plain bytes to a new file, mode 0600. Raises :class:`BackupError` when an object is damaged.

    :param aside: a folder for what is only needed meanwhile; beside the target any name may be that of a file of the set
    """
    if not image.base:
        archive.decompress(store.object_path(image.object), target)
        return
    with tempfile.TemporaryDirectory(dir=aside) as folder:
        base = os.path.join(folder, "base")
        archive.decompress(store.object_path(image.base), base)
        archive.decompress(store.object_path(image.object), target, base)
