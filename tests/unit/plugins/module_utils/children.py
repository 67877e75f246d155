# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of tests that need a process of their own."""

from __future__ import annotations

import os
import resource
import traceback
from typing import Any, Callable


def in_child(work: Callable[[], Any]) -> int:
    """Run something in a child and return its exit code, or the negative number of the signal that killed it."""
    user = os.geteuid()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException:
            traceback.print_exc()
            code = 70
        # Where coverage is measured, os._exit() writes it first, which another user, or a file size limit, does not allow.
        if os.geteuid() != user or resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            os.execv("/bin/sh", ["sh", "-c", f"exit {code}"])
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
