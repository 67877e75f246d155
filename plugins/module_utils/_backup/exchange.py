# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Renames that can be undone or finished after a crash at any point, because inode numbers tell which were done."""

from __future__ import annotations

import errno
import os
from typing import Any, Dict, List, Optional, Union

from .._core.files import exchange, fsync_dir, move_new, publish_json, read_json
from .errors import BackupError
from .manifest import get_text, put_text

STAGED = "staged"
"""The copy lies beside the live state, which is untouched."""
EXCHANGING = "exchanging"
"""Some renames may be done: a rerun undoes them."""
COMMITTED = "committed"
"""All are done; the old state is kept aside."""
ROLLING_BACK = "rolling back"
"""Some may be undone: a rerun undoes the rest."""
ROLLED_BACK = "rolled back"

# What renameat2(2) says where a file system knows no exchange.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class Swap:
    """Two names change places; or, with nothing at one of them, a name moves.

    :param live: the path that the application uses
    :param staged: the path beside it
    The inodes are those before: None where nothing was. Exactly one of live and staged may be missing.
    """

    def __init__(self, live: str, staged: str, live_inode: Optional[int], staged_inode: Optional[int]) -> None:
        self.live = live
        self.staged = staged
        self.live_inode = live_inode
        self.staged_inode = staged_inode

    @classmethod
    def planned(cls, live: str, staged: str) -> Swap:
        """Return the swap of what is at the two names now."""
        return cls(live, staged, inode(live), inode(staged))

    @property
    def spare(self) -> str:
        """A third name, used where the file system knows no exchange."""
        return self.staged + ".spare"

    def is_done(self) -> bool:
        """True when both names hold what they shall hold afterwards."""
        return inode(self.live) == self.staged_inode and inode(self.staged) == self.live_inode

    def is_undone(self) -> bool:
        """True when both names hold what they held before."""
        return inode(self.live) == self.live_inode and inode(self.staged) == self.staged_inode

    def do(self) -> None:
        """Swap. Raises :class:`OSError`."""
        self._swap(self.live_inode, self.staged_inode)

    def undo(self) -> None:
        """Swap back, also from the middle of a swap in three renames; nothing to do is fine. Raises :class:`OSError`."""
        if self.is_undone():
            return
        spare = inode(self.spare)
        if spare is not None and spare == self.live_inode:
            # In the middle of the way there.
            if inode(self.live) is not None:
                _move(self.live, self.staged)
            _move(self.spare, self.live)
        elif spare is not None and spare == self.staged_inode:
            # In the middle of the way back.
            if inode(self.live) is None:
                _move(self.staged, self.live)
            _move(self.spare, self.staged)
        elif self.is_done():
            self._swap(self.staged_inode, self.live_inode)
        else:
            raise BackupError(
                "what is here is neither the old nor the restored state, so it was left alone",
                self.live,
                f"Look at it and at {self.staged}, put the right one in place, then run again",
            )
        self.sync()

    def _swap(self, live_inode: Optional[int], staged_inode: Optional[int]) -> None:
        if staged_inode is None:
            _move(self.live, self.staged)
        elif live_inode is None:
            _move(self.staged, self.live)
        else:
            try:
                exchange(self.live, self.staged)
            except OSError as error:
                if error.errno not in _NO_EXCHANGE:
                    raise
                os.rename(self.live, self.spare)
                os.rename(self.staged, self.live)
                os.rename(self.spare, self.staged)
        self.sync()

    def sync(self) -> None:
        """Make the names durable."""
        for folder in sorted({os.path.dirname(self.live), os.path.dirname(self.staged)}):
            fsync_dir(folder)

    def as_json(self) -> Dict[str, Any]:
        """Return what the journal holds."""
        value: Dict[str, Any] = {"live_inode": self.live_inode, "staged_inode": self.staged_inode}
        put_text(value, "live", self.live)
        put_text(value, "staged", self.staged)
        return value


class Carry:
    """What stays live is moved into the staged tree before that takes the live one's place, and back again.

    :param live: the path as the application uses it
    :param staged: the same path in the staged tree; nothing may be there
    Both name what they say only while the trees around them are where they were before the exchange. What is moved is
    known by its name alone: an application makes its sockets and pid files anew each time.
    """

    def __init__(self, live: str, staged: str) -> None:
        self.live = live
        self.staged = staged

    def do(self) -> None:
        """Move it into the staged tree. Raises :class:`OSError`."""
        _move_keeping_time(self.live, self.staged)

    def is_undone(self) -> bool:
        """True when nothing is left in the staged tree."""
        return inode(self.staged) is None

    def undo(self) -> None:
        """Move it back, if it is there. Raises :class:`OSError`."""
        if not self.is_undone() and inode(self.live) is None:
            _move_keeping_time(self.staged, self.live)

    def as_json(self) -> Dict[str, Any]:
        """Return what the journal holds."""
        value: Dict[str, Any] = {"carry": True}
        put_text(value, "live", self.live)
        put_text(value, "staged", self.staged)
        return value


Step = Union[Swap, Carry]


def _step_from_json(value: Dict[str, Any]) -> Step:
    live, staged = get_text(value, "live"), get_text(value, "staged")
    return Carry(live, staged) if "carry" in value else Swap(live, staged, value["live_inode"], value["staged_inode"])


def _move(source: str, target: str) -> None:
    """Rename to a name that must be free, also on a file system that can't promise that. Raises :class:`OSError`."""
    try:
        move_new(source, target)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE or os.path.lexists(target):
            raise
        os.rename(source, target)


def _move_keeping_time(source: str, target: str) -> None:
    """Move a name without changing the times of the two folders: they are part of what is restored."""
    folders = [os.path.dirname(source), os.path.dirname(target)]
    times = [os.stat(folder) for folder in folders]
    _move(source, target)
    for folder, state in zip(folders, times):
        os.utime(folder, ns=(state.st_atime_ns, state.st_mtime_ns))
        fsync_dir(folder)


class Journal:
    """The one file that says how far a restore has come. Fsynced before each step that it announces."""

    def __init__(self, path: str, set_id: str, phase: str, stages: List[str], steps: List[Step]) -> None:
        self.path = path
        self.set_id = set_id
        self.phase = phase
        self.stages = stages
        """The folders that hold the staged copy, and after the exchange the old state."""
        self.steps = steps

    @classmethod
    def read(cls, path: str) -> Optional[Journal]:
        """Return the journal, None when there is none."""
        try:
            value = read_json(path)
        except FileNotFoundError:
            return None
        try:
            return cls(
                path,
                value["set"],
                value["phase"],
                [get_text(stage, "path") for stage in value["stages"]],
                [_step_from_json(step) for step in value["steps"]],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BackupError(
                f"the record of the last restore is damaged ({error!r})",
                path,
                "See that the live state is whole, move this file away, and run again",
            ) from None

    def write(self, phase: str) -> None:
        """Record a phase, durably."""
        self.phase = phase
        stages: List[Dict[str, Any]] = []
        for stage in self.stages:
            stages.append({})
            put_text(stages[-1], "path", stage)
        publish_json(
            self.path,
            {"set": self.set_id, "phase": phase, "stages": stages, "steps": [step.as_json() for step in self.steps]},
        )

    @property
    def is_interrupted(self) -> bool:
        """True when a process died between the renames."""
        return self.phase in (EXCHANGING, ROLLING_BACK)

    def undo(self) -> None:
        """Bring back the state before, whatever was done of the steps."""
        for step in reversed(self.steps):
            step.undo()


def inode(path: str) -> Optional[int]:
    """Return the inode number at a name, None where nothing is."""
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
