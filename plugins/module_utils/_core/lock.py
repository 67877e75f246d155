# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that die with the process that holds them."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from .errors import OpskitError

POLL_S = 0.2
GRACE_S = 2.0
"""A child that was being started when its parent was killed holds the parent's lock until it has become another program."""


@contextmanager
def flock(path: str, wait_s: float = 0.0) -> Iterator[int]:
    """Hold a lock on a file, which is made (mode 0600) if it is not there, and give its descriptor: who inherits that holds it too.

    :param wait_s: seconds to wait for it before :class:`OpskitError` is raised; it is never less than :data:`GRACE_S`
    """
    # O_CLOEXEC is Python's default, so no child keeps the lock after this process is gone.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        if not _acquire(handle, wait_s):
            raise OpskitError(
                "another run is at work here",
                path,
                f"Wait for it to end, or look for it with: fuser -v {path}",
            )
        yield handle
    finally:
        os.close(handle)


def _acquire(handle: int, wait_s: float) -> bool:
    deadline = time.monotonic() + max(wait_s, GRACE_S)
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
