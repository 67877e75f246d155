# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that die with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from . import command
from .errors import OpskitError

POLL_S = 0.2
GRACE_S = 2.0
"""A child that was being started when its parent was killed holds the parent's lock until it has become another program."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""What flock(2) says where a file system knows no locks, or its server gives none."""

REMOTE = frozenset(
    "9p acfs afs beegfs ceph cifs coda fuse gfs2 gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs prl_fs pvfs2 smb3 smbfs vboxsf virtiofs vmhgfs".split()
)
"""File systems, as mountinfo names them, whose files lie on another machine or are shared with one.

There a lock is the server's, which may lose it when it starts anew while its holder goes on, or it is kept by this machine for
this one mount alone (nfs with nolock or local_lock, cifs with nobrl, 9p, virtiofs), so that whoever comes by another way
does not see it. Nothing that two processes of this machine try on one mount shows that. Any ``fuse`` and ``fuse.*`` is one of
them, because its name does not say where a program has the files from: fuse.sshfs and fuse.s3fs are remote, and a mount
that only passes a local folder on does not show its locks in that folder. ``fuseblk`` has a disk of this machine below it.
"""

CONFLICT = 75
"""What flock(1) is told to exit with when somebody else holds the lock."""

PROBE_S = 30


@contextmanager
def flock(path: str, wait_s: float = 0.0) -> Iterator[int]:
    """Hold a lock on a file, which is made (mode 0600) if it is not there, and give its descriptor: who inherits that holds it too.

    :param wait_s: seconds to wait for it before :class:`OpskitError` is raised; it is never less than :data:`GRACE_S`
    """
    # O_CLOEXEC is Python's default, so no child keeps the lock after this process is gone.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if not acquire(handle, max(wait_s, GRACE_S)):
            raise busy(path)
        yield handle
    finally:
        release(handle)


def busy(path: str) -> OpskitError:
    """Return what to raise when somebody else holds the lock on a file."""
    return OpskitError(
        "another run is at work here",
        path,
        f"Wait for it to end, or look for it with: fuser -v {path}",
    )


def acquire(handle: int, wait_s: float, shared: bool = False) -> bool:
    """Lock an open file. False: others held it for so long; 0 asks once. Raises :class:`OSError` where there are no locks."""
    deadline = time.monotonic() + wait_s
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)


def release(handle: int) -> None:
    """Close a file that may be locked."""
    try:
        # Closing alone would leave it to a child that is being started at this moment, until that has become another program.
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(handle)


def is_effective(path: str) -> bool:
    """True when another process can't lock a file that this one holds a lock on; asked by flock(1) of util-linux.

    Raises :class:`OpskitError` when that can't be asked.
    """
    program = command.find_program("flock", "util-linux")
    argv = [program, "--nonblock", "--conflict-exit-code", str(CONFLICT), path, "true"]
    return command.run(argv, PROBE_S, ok=(0, CONFLICT)).returncode == CONFLICT


def remote_type(path: str) -> str:
    """Return the type of the file system that a path, or its nearest existing parent, lies on, if it is one of :data:`REMOTE`.

    Empty for any other. Told by the mount that a file there is opened through (proc(5), fdinfo and mountinfo): neither a
    longest prefix nor a device number is right where mounts hide others, or volumes have numbers of their own.
    """
    while True:
        try:
            # Only opening makes an automounter mount what belongs here.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            break
        except PermissionError:
            handle = os.open(path, os.O_PATH)
            break
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path.rstrip("/")) or "/"
    try:
        with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as stream:
            numbers = [line.split()[1] for line in stream if line.startswith("mnt_id:")]
    finally:
        os.close(handle)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            before, _dash, after = line.partition(" - ")
            if before.split()[0] in numbers:
                kind = after.split()[0]
                return kind if kind in REMOTE or kind.startswith("fuse.") else ""
    # A mount from outside of this process's root: nothing is known, and what two processes find has to do.
    return ""
