# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of tests that need a process of their own."""

from __future__ import annotations

import os
import resource
import signal
import time
import traceback
from typing import Any, Callable, List, Sequence


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


def killed_after(seconds: float, work: Callable[[], Any]) -> bool:
    """Run something in a child and kill it, with every program that it has started, after a while. False: it had ended before."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    try:
        # Also here: whoever comes first.
        os.setpgid(child, child)
    except (PermissionError, ProcessLookupError):
        pass
    time.sleep(seconds)
    # It is a zombie at least, so the number is still its own.
    os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def at_once(works: Sequence[Callable[[], Any]]) -> List[str]:
    """Run several things at the same moment, each in a child; returns what each raised as text, empty where nothing."""
    begin, start = os.pipe()
    children = []
    for work in works:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(begin, 1)
            try:
                work()
            except BaseException as error:
                os.write(writer, f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:4000])
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
    os.close(begin)
    os.close(start)
    said = []
    for child, reader in children:
        with os.fdopen(reader) as stream:
            said.append(stream.read())
        assert os.waitpid(child, 0)[1] == 0
    return said
