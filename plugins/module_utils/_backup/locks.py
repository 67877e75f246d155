# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what in a store at the same time: one writer, and readers that each hold on to their set."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager
from typing import Iterator

from .._core.files import make_dir, remove_tree
from .._core.lock import GRACE_S, NO_LOCKS, acquire, busy, is_effective, release, remote_type
from .errors import BackupError
from .source import is_below

PROOF_S = 60.0
"""Seconds to wait for somebody who writes a proof; that takes a moment."""
READER = "reader-"
"""What the names of folders begin with that a reader needs for a while."""


class Locks:
    """The locks of one store: on its own files, or in a folder of a local disk.

    A writer locks the file ``lock``. A reader holds a shared lock on the manifest of its set; who wants to move the set away needs
    it exclusively, and who got the shared one looks whether the set is still there. There is nothing to clean up
    after a process that died.

    In a lock folder, each of these is a file in a folder named after the store, because several stores may share it.

    :param store: the store's real path
    :param lock_dir: the lock folder; empty: the store's own files
    """

    def __init__(self, store: str, lock_dir: str) -> None:
        self.store = store
        self.lock_dir = os.path.realpath(lock_dir) if lock_dir else ""
        # The role lease writes down this name too.
        name = f"{os.path.basename(store)[:40]}-{hashlib.sha256(os.fsencode(store)).hexdigest()[:16]}"
        self.folder = os.path.join(self.lock_dir, name) if lock_dir else ""
        self.is_probed = False

    def require(self) -> None:
        """Refuse a place where no lock can be relied on, as far as that can be told without taking one."""
        if not self.lock_dir:
            kind = remote_type(self.store)
            if kind:
                raise self._refusal(f"the store lies on a file system ({kind}) whose locks can't be relied on", self.store)
            return
        if self.lock_dir == self.store or is_below(self.lock_dir, self.store):
            raise self._refusal("the folder for locks lies inside the store", self.lock_dir)
        kind = remote_type(self.lock_dir)
        if kind:
            raise self._refusal(f"the folder for locks lies on a file system ({kind}) whose locks can't be relied on", self.lock_dir)
        if os.path.lexists(self.lock_dir) and not os.path.isdir(self.lock_dir):
            raise self._refusal("the folder for locks is no folder", self.lock_dir)

    @contextmanager
    def writer(self, wait_s: float) -> Iterator[None]:
        """Be the only one that changes the store. Raises :class:`OpskitError` when somebody else is for longer."""
        path = self._at(os.path.join(self.store, "lock"), "writer")
        with self._locked(path, os.O_RDWR | os.O_CREAT, max(wait_s, GRACE_S)) as held:
            if not held:
                raise busy(path)
            yield

    @contextmanager
    def reader(self, set_id: str, manifest: str, wait_s: float, make: bool) -> Iterator[bool]:
        """Keep a set from being moved away while the block runs. Gives False when it is not there any more.

        :param make: make a file in the lock folder; without one there is no lock, only a look
        """
        path = self._at(manifest, set_id)
        try:
            with self._locked(path, self._flags(make), max(wait_s, GRACE_S), shared=True) as held:
                if not held:
                    raise busy(path)
                # It may have gone while this waited.
                there = os.path.exists(manifest)
                if not there:
                    self._forget(set_id)
                yield there
        except _Missing:
            # Nobody holds what is not there. Without a lock folder it is the set itself.
            yield os.path.exists(manifest)

    @contextmanager
    def claim(self, set_id: str, manifest: str, make: bool) -> Iterator[bool]:
        """Keep readers away from a set while the block moves it. Gives False when one has it, without waiting.

        :param make: make a file in the lock folder; without one nobody can have the set
        """
        try:
            with self._locked(self._at(manifest, set_id), self._flags(make), 0.0) as held:
                yield held
                if held and not os.path.exists(manifest):
                    self._forget(set_id)
        except _Missing:
            yield True

    @contextmanager
    def proofs(self, folder: str) -> Iterator[None]:
        """Be the only one that writes a proof."""
        path = self._at(folder, "proofs")
        with self._locked(path, self._flags(True), PROOF_S) as held:
            if not held:
                raise busy(path)
            yield

    @contextmanager
    def scratch(self, parent: str) -> Iterator[str]:
        """Have a folder while the block runs, which no writer sweeps away. That of a process that died is swept."""
        while True:
            folder = tempfile.mkdtemp(prefix=READER, dir=parent)
            name = os.path.basename(folder)
            try:
                with self._locked(self._at(folder, name), self._flags(True), GRACE_S) as held:
                    # A writer may have come between the two.
                    if held and os.path.isdir(folder):
                        try:
                            yield folder
                            return
                        finally:
                            remove_tree(folder)
                            self._forget(name)
            except _Missing:
                continue

    def sweep(self, parent: str) -> None:
        """Remove the folders that readers had whose process died."""
        for name in os.listdir(parent):
            if name.startswith(READER):
                path = os.path.join(parent, name)
                try:
                    with self._locked(self._at(path, name), self._flags(True), 0.0) as held:
                        if held:
                            remove_tree(path)
                            self._forget(name)
                except _Missing:
                    continue

    def _at(self, path: str, name: str) -> str:
        """Return what is locked."""
        return os.path.join(self.folder, f"{name}.lock") if self.folder else path

    def _flags(self, make: bool) -> int:
        if not self.folder:
            return os.O_RDONLY
        return os.O_RDWR | os.O_CREAT if make else os.O_RDWR

    def _forget(self, name: str) -> None:
        """Remove a lock that is of no use any more, by who holds it."""
        if self.folder:
            try:
                os.unlink(self._at("", name))
            except FileNotFoundError:
                pass

    @contextmanager
    def _locked(self, path: str, flags: int, wait_s: float, shared: bool = False) -> Iterator[bool]:
        if self.folder and flags & os.O_CREAT:
            make_dir(self.folder)
        try:
            handle = os.open(path, flags | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise _Missing from None
        try:
            yield self._acquire(handle, path, wait_s, shared)
        finally:
            release(handle)

    def _acquire(self, handle: int, path: str, wait_s: float, shared: bool) -> bool:
        try:
            held = acquire(handle, wait_s, shared)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise self._refusal(f"there are no locks on this file system ({error.strerror})", path) from None
        # What was moved away while this waited has another name, or none.
        if held and not self.is_probed and _names(path, handle):
            if not is_effective(path):
                raise self._refusal("a lock on this file system does not keep another process out", path)
            self.is_probed = True
        return held

    def _refusal(self, what: str, where: str) -> BackupError:
        other = "another folder" if self.lock_dir else "a folder"
        return BackupError(what, where, f"Name {other} on a local disk for the locks of this store (lock_dir)")


def _names(path: str, handle: int) -> bool:
    """True when a path leads to an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return False


class _Missing(Exception):
    """What should be locked is not there."""
