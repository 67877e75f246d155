# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Renames that can be undone or finished after a crash at any point, because inode numbers (and a server's own) tell which were done."""

from __future__ import annotations

import glob
import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Type, TypeVar, Union

from .._core.errors import OpskitError
from .._core.files import NO_FLAGS, exchange, fsync_dir, move_new, publish_json, read_json, remove_tree
from .._core.protocols import ServerTarget
from .errors import BackupError
from .manifest import get_text, put_text

STAGING = "staging"
"""The copy is being put beside the live state; what is there of it is worth nothing yet."""
STAGED = "staged"
"""The copy lies beside the live state, which is untouched."""
EXCHANGING = "exchanging"
"""Some renames may be done: a rerun undoes them."""
COMMITTED = "committed"
"""All are done; the old state is kept aside."""
ROLLING_BACK = "rolling back"
"""Some may be undone: a rerun undoes the rest."""
ROLLED_BACK = "rolled back"

PHASES = (STAGING, STAGED, EXCHANGING, COMMITTED, ROLLING_BACK, ROLLED_BACK)

KEPT = ".kept-"
"""What is added to the name of logs, with a number, when others lie at their place by now."""


SomeSwap = TypeVar("SomeSwap", bound="Swap")


class Swap:
    """Two names change places; or, with nothing at one of them, a name moves.

    :param live: the path that the application uses
    :param staged: the path beside it
    The inodes are those before: None where nothing was. At most one of the two may be missing.
    """

    def __init__(self, live: str, staged: str, live_inode: Optional[int], staged_inode: Optional[int]) -> None:
        self.live = live
        self.staged = staged
        self.live_inode = live_inode
        self.staged_inode = staged_inode

    @classmethod
    def planned(cls: Type[SomeSwap], live: str, staged: str) -> SomeSwap:
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
                move_new(self.live, self.staged)
            move_new(self.spare, self.live)
        elif spare is not None and spare == self.staged_inode:
            # In the middle of the way back.
            if inode(self.live) is None:
                move_new(self.staged, self.live)
            move_new(self.spare, self.staged)
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
            move_new(self.live, self.staged)
        elif live_inode is None:
            move_new(self.staged, self.live)
        else:
            try:
                exchange(self.live, self.staged)
            except OSError as error:
                if error.errno not in NO_FLAGS:
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

    @classmethod
    def from_json(cls: Type[SomeSwap], value: Dict[str, Any]) -> SomeSwap:
        """Read what :meth:`as_json` wrote. Raises what a wrong shape raises."""
        return cls(get_text(value, "live"), get_text(value, "staged"), value["live_inode"], value["staged_inode"])


def kept_logs(log: str) -> List[str]:
    """Return what :meth:`Carry.undo` has put beside logs."""
    return sorted(glob.glob(f"{glob.escape(log)}{KEPT}[0-9]*"))


class Carry:
    """What stays live is moved into the staged tree before that takes the live one's place, and back again.

    :param live: the path as the application uses it
    :param staged: the same path in the staged tree; nothing may be there
    :param precious: it holds logs, so that none of it is given up
    Both name what they say only while the trees around them are where they were before the exchange. What is moved is
    known by its name alone: an application makes its sockets and pid files anew each time.
    """

    def __init__(self, live: str, staged: str, precious: bool) -> None:
        self.live = live
        self.staged = staged
        self.precious = precious

    def do(self) -> None:
        """Move it into the staged tree. Raises :class:`OSError`."""
        _move_keeping_time(self.live, self.staged)

    def is_undone(self) -> bool:
        """True when nothing is left in the staged tree."""
        return inode(self.staged) is None

    def undo(self) -> None:
        """Move it back, if it is there. Raises :class:`OSError`.

        Where the application has made another one meanwhile, logs are put beside that one; anything else is left to be
        removed with the staged tree.
        """
        if self.is_undone():
            return
        if inode(self.live) is None:
            _move_keeping_time(self.staged, self.live)
        elif self.precious:
            number = 1
            while inode(f"{self.live}{KEPT}{number}") is not None:
                number += 1
            _move_keeping_time(self.staged, f"{self.live}{KEPT}{number}")

    def as_json(self) -> Dict[str, Any]:
        """Return what the journal holds."""
        value: Dict[str, Any] = {"carry": True, "precious": self.precious}
        put_text(value, "live", self.live)
        put_text(value, "staged", self.staged)
        return value


class Kept(NamedTuple):
    """A database beside a live one: staged, or from before a restore."""

    database: str
    """The name of the live one in a set."""
    name: str
    """The name in the server."""


class Rename:
    """A database that was loaded takes the name of the live one, which is kept aside; the server does both or none.

    The identities are those before: None where there is no live one.
    """

    def __init__(self, target: ServerTarget, staged: str, aside: str, live_id: Optional[int], staged_id: int) -> None:
        self.target = target
        self.live = target.database
        self.staged = staged
        self.aside = aside
        self.live_id = live_id
        self.staged_id = staged_id

    def is_done(self) -> bool:
        """True when the loaded one is the live one, and the one before is aside."""
        if self.target.identity(self.live) != self.staged_id:
            return False
        return self.live_id is None or self.target.identity(self.aside) == self.live_id

    def is_undone(self) -> bool:
        """True when both have the names that they had before."""
        return self.target.identity(self.live) == self.live_id and self.target.identity(self.staged) == self.staged_id

    def do(self) -> None:
        """Rename. Raises :class:`OpskitError`; then nothing is renamed."""
        moves = [(self.live, self.aside, self.live_id)] if self.live_id is not None else []
        self.target.rename([*moves, (self.staged, self.live, self.staged_id)], self.aside)

    def undo(self) -> None:
        """Rename back; nothing to do is fine."""
        if self.target.identity(self.live) == self.live_id:
            if self.live_id is not None:
                # The names did not change, but it may have been closed for that.
                self.target.open_again(self.live)
        elif self.is_done():
            moves = [(self.aside, self.live, self.live_id)] if self.live_id is not None else []
            self.target.rename([(self.live, self.staged, self.staged_id), *moves], self.staged)
        else:
            raise BackupError(
                "the database is neither the old nor the restored one, so it was left alone",
                self.live,
                f"Look at it and at {self.aside}, give the right one this name, then run again",
            )

    def as_json(self) -> Dict[str, Any]:
        """Return what the journal holds."""
        return {
            "database": self.target.name,
            "staged": self.staged,
            "aside": self.aside,
            "live_id": self.live_id,
            "staged_id": self.staged_id,
        }


class Password:
    """A role gets the password of the set's environment file, and on the way back that of the one before.

    The journal holds where the two files lie and no secret. Undone last, when the file from before is in place again.

    :param live: empty where the application could not log in with the file before either
    """

    def __init__(self, target: ServerTarget, live: str, staged: str) -> None:
        self.target = target
        self.live = live
        self.staged = staged

    @classmethod
    def planned(cls, target: ServerTarget, live: str, staged: str) -> Password:
        """Return the step for the files as they are now."""
        try:
            works = inode(live) is not None and not target.refusal(_content(live), "the environment file", [])
        except OpskitError:
            # It sets no URL.
            works = False
        return cls(target, live if works else "", staged)

    def do(self) -> None:
        """Set the staged file's password. Raises :class:`OpskitError`."""
        self.target.set_password(_content(self.staged), "the restored environment file")

    def is_undone(self) -> bool:
        """True when the application can log in as before, or could not do so then either."""
        return not self.live or not self.target.refusal(_content(self.live), "the environment file", [])

    def undo(self) -> None:
        """Set the live file's password."""
        if not self.is_undone():
            self.target.set_password(_content(self.live), "the environment file")

    def as_json(self) -> Dict[str, Any]:
        """Return what the journal holds."""
        value: Dict[str, Any] = {"password": self.target.name}
        put_text(value, "live", self.live)
        put_text(value, "staged", self.staged)
        return value


def _content(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


Step = Union[Swap, Carry, Rename, Password]
Servers = Mapping[str, ServerTarget]
"""The databases of the description that lie in servers, by the name they have in a set."""


def server_of(servers: Servers, database: str) -> ServerTarget:
    """Return where a database is brought back to. Raises :class:`BackupError` when the description does not say."""
    if database not in servers:
        raise BackupError(
            f"the database {database} was restored here, and the description does not name it any more",
            todo=f"Name {database} under databases again until nothing is kept of that restore",
        )
    return servers[database]


def _step_from_json(value: Dict[str, Any], servers: Servers) -> Step:
    if "database" in value:
        target = server_of(servers, value["database"])
        return Rename(target, value["staged"], value["aside"], value["live_id"], value["staged_id"])
    live, staged = get_text(value, "live"), get_text(value, "staged")
    if "password" in value:
        return Password(server_of(servers, value["password"]), live, staged)
    if "carry" in value:
        return Carry(live, staged, value["precious"])
    return Swap.from_json(value)


def _move_keeping_time(source: str, target: str) -> None:
    """Move a name without changing the times of the two folders: they are part of what is restored."""
    folders = [os.path.dirname(source), os.path.dirname(target)]
    times = [os.stat(folder) for folder in folders]
    move_new(source, target)
    for folder, state in zip(folders, times):
        os.utime(folder, ns=(state.st_atime_ns, state.st_mtime_ns))
        fsync_dir(folder)


class Journal:
    """The one file that says how far a restore has come. Fsynced before each step that it announces.

    :param store: identity of the store that the set is from
    :param label: what the names of this restore's staging folders begin with
    :param stages: the folders that hold the staged copy, and after the exchange the old state
    :param previous: the journal of the restore before, as long as that can still be gone back from
    """

    def __init__(
        self,
        path: str,
        store: str,
        label: str,
        set_id: str,
        stages: List[str],
        previous: Optional[Dict[str, Any]],
        servers: Servers,
    ) -> None:
        self.path = path
        self.store = store
        self.label = label
        self.set_id = set_id
        self.stages = stages
        self.previous = previous
        self.servers = servers
        self.phase = STAGING
        self.steps: List[Step] = []
        self.beside: List[Kept] = []
        """The names that databases of this restore and of those before have beside the live ones; none of them has to exist."""

    @classmethod
    def read(cls, path: str, store: str, servers: Servers) -> Optional[Journal]:
        """Return the journal, None when there is none. Raises :class:`BackupError` for a damaged one or another store's."""
        try:
            value = read_json(path)
        except FileNotFoundError:
            return None
        try:
            journal = cls.from_json(path, value, servers)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackupError(
                f"the record of the last restore is damaged ({error!r})",
                path,
                "See that the live state is whole, move this file away, and run again",
            ) from None
        if journal.store != store:
            raise BackupError("the last restore recorded here was from another store", path, "Give each application a state_dir of its own")
        return journal

    @classmethod
    def from_json(cls, path: str, value: Dict[str, Any], servers: Servers) -> Journal:
        """Read what :meth:`as_json` wrote. Raises what a wrong shape raises."""
        stages = paths_from_json(value["stages"])
        journal = cls(path, value["store"], value["label"], value["set"], stages, value["previous"], servers)
        journal.phase = PHASES[PHASES.index(value["phase"])]
        journal.steps = [_step_from_json(step, servers) for step in value["steps"]]
        journal.beside = [Kept(**item) for item in value.get("beside", [])]
        journal.before()
        return journal

    def as_json(self) -> Dict[str, Any]:
        """Return what is written."""
        return {
            "store": self.store,
            "label": self.label,
            "set": self.set_id,
            "phase": self.phase,
            "stages": paths_as_json(self.stages),
            "steps": [step.as_json() for step in self.steps],
            "beside": [item._asdict() for item in self.beside],
            "previous": self.previous,
        }

    def write(self, phase: str) -> None:
        """Record a phase, durably."""
        self.phase = phase
        publish_json(self.path, self.as_json())

    def before(self) -> Optional[Journal]:
        """Return the journal of the restore before; reading this one made sure that there is no damage in it."""
        return Journal.from_json(self.path, self.previous, self.servers) if self.previous is not None else None

    @property
    def is_interrupted(self) -> bool:
        """True when a process died between the renames."""
        return self.phase in (EXCHANGING, ROLLING_BACK)

    def undo(self) -> None:
        """Bring back the state before, whatever was done of the steps."""
        for step in reversed(self.steps):
            step.undo()


def remove_stage(stage: str) -> None:
    """Remove a staging folder, and those of the store and of all stores around it where nothing else is in them."""
    remove_tree(stage)
    for folder in (os.path.dirname(stage), os.path.dirname(os.path.dirname(stage))):
        if os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)


def paths_as_json(paths: Iterable[str]) -> List[Dict[str, Any]]:
    """Return what a journal holds of paths, whatever bytes they are made of."""
    found: List[Dict[str, Any]] = []
    for path in paths:
        found.append({})
        put_text(found[-1], "path", path)
    return found


def paths_from_json(value: Iterable[Dict[str, Any]]) -> List[str]:
    """Read what :func:`paths_as_json` wrote. Raises what a wrong shape raises."""
    return [get_text(one, "path") for one in value]


def interrupted_set(path: str) -> str:
    """Return the set whose exchange a run died in, by its journal; empty where none did."""
    try:
        value = read_json(path)
        return str(value["set"]) if value["phase"] in (EXCHANGING, ROLLING_BACK) else ""
    except FileNotFoundError:
        return ""
    except (KeyError, TypeError) as error:
        raise BackupError(f"the record of the last restore is damaged ({error!r})", path, "See that the live state is whole") from None


def inode(path: str) -> Optional[int]:
    """Return the inode number at a name, None where nothing is."""
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
