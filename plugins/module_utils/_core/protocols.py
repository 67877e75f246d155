# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rooms offer each other. Only ``_application`` puts them together."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Protocol, Sequence, Tuple

from .rows import RowMerge


class DatabaseSource(Protocol):
    """One database of the application, as the backup store sees it."""

    name: str
    """The name it has in a set."""
    engine: str
    """``sqlite`` or ``postgresql``."""

    def files(self) -> List[str]:
        """Return the absolute paths that belong to the database itself and are never saved as files, its main file first.

        None where it lies in a server.
        """

    def missing(self) -> List[str]:
        """Return the Debian packages that have to be installed before anything but :meth:`require` can be asked."""

    def require(self) -> None:
        """Raise :class:`OpskitError` when the database is missing or can't be read. Opens no file, makes nothing."""

    def size(self) -> int:
        """Return the upper bound of an image's bytes."""

    def fingerprint(self) -> str:
        """Return what moves with every commit, cheap to have.

        One that is written at this very moment gives a fingerprint that never comes again.
        """

    def is_as(self, facts: Dict[str, Any]) -> bool:
        """True when the database holds what the image with these facts holds. May read all of it."""

    def contents(self) -> Dict[str, Any]:
        """Return what :meth:`facts` knows of tables and definitions, of the database as it is now. Reads all of it, and leaves nothing."""

    def pinned(self, target: str) -> ContextManager[Callable[[], None]]:
        """Hold the database as it is now; what is given then writes an image of this moment to a new file, mode 0600.

        Entering is quick where an engine can hold a moment while others write. Where it can't, the image is written at once.
        """

    def copy_beside(self, target: str) -> bool:
        """Write what is needed with an image and belongs to the whole server to a new file, mode 0600.

        False, and no file, where there is nothing of the kind.
        """

    def facts(self, image: str) -> Dict[str, Any]:
        """Return what is to be remembered of an image: plain JSON, ``bytes`` and ``sha256`` and what the engine knows."""


class Names(NamedTuple):
    """What a restored database and the one before it are called while they are not the live one."""

    staged: str
    aside: str


class ServerTarget(Protocol):
    """A database in a server, as a restore sees it: a copy is loaded beside it, then the two change names."""

    name: str
    """The name it has in a set."""
    database: str
    """The name it has in the server."""
    url_variable: str
    """The variable of the environment file that holds the URL the application logs in with; empty where there is none."""

    def missing(self) -> List[str]:
        """Return the Debian packages that have to be installed before anything else can be asked."""

    def names(self, label: str) -> Names:
        """Return the names beside the live one, the same for the same label."""

    def identity(self, name: str) -> Optional[int]:
        """Return the number that a database keeps when it is renamed, None where no database has this name."""

    def difference(self, facts: Dict[str, Any]) -> str:
        """Say how the live database differs from what was recorded of an image; empty when it does not."""

    def check(self, facts: Dict[str, Any], globals_there: bool) -> List[str]:
        """Return the roles that will be made. Raises :class:`OpskitError` for what can't be restored here."""

    def load(self, image: str, globals_sql: str, facts: Dict[str, Any], name: str) -> None:
        """Make a new database of an image and compare it with the facts; one of this name is replaced."""

    def drop(self, name: str) -> None:
        """Remove a database that is not the live one; none of this name is fine."""

    def rename(self, moves: List[Tuple[str, str, int]], closed: str) -> None:
        """Give databases other names (present name, new name, identity), all or none, and end the sessions in them.

        :param closed: the new name that takes no connections afterwards
        """

    def open_again(self, name: str) -> None:
        """Let a database take connections, which a run that was cut off has closed."""

    def refusal(self, settings: bytes, whose: str, made: Sequence[str]) -> str:
        """Say why the application can't log in with an environment file's URL; empty when it can, or as a role that is still to be made."""

    def check_set_password(self, settings: bytes, whose: str) -> str:
        """Return the role that :meth:`set_password` would change. Raises :class:`OpskitError` where it could not."""

    def set_password(self, settings: bytes, whose: str) -> None:
        """Give the role of an environment file's URL the password that stands there."""

    def with_live_url(self, settings: bytes, live: bytes) -> bytes:
        """Return an environment file's content with the URL of the live one."""


class RowTarget(Protocol):
    """A live database that chosen rows of an image come back to, while the application goes on using it."""

    name: str
    """The name it has in a set."""

    def missing(self) -> List[str]:
        """Return the Debian packages that have to be installed before anything else can be asked."""

    def schema_version(self) -> str:
        """Return what the application calls its live schema; empty for one without a version."""

    def beside(self, image: str, facts: Dict[str, Any]) -> ContextManager[RowMerge]:
        """Have an image opened, or loaded, beside the live database while the block runs. The image's file may be written to."""

    def alone(self) -> ContextManager[RowMerge]:
        """Have the live database alone while the block runs, to see what was committed."""


class Pause(Protocol):
    """A moment in which the application writes nothing. The process that begins it ends it; it never outlives its limit."""

    guarantee: str
    """What a set that was made in it can promise: ``paused`` (the application holds its writes) or ``stopped``."""

    def recover(self) -> str:
        """End what a run that died has left behind, and say what that was; empty when there was nothing."""

    def begin(self) -> None:
        """Have the application write nothing any more. Raises :class:`OpskitError`; then it goes on writing."""

    def lost(self) -> str:
        """Say why the pause has not held from its beginning to this moment; empty when it has."""

    def end(self) -> None:
        """Let the application write again. Raises :class:`OpskitError` when it does not."""
