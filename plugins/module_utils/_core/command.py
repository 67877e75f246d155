# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running other programs: no shell, a deadline, and no child that outlives us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import Dict, List, Optional, Sequence

from .errors import OpskitError
from .redact import redact


class CommandError(OpskitError):
    """A program failed, was killed or ran over its deadline."""


class CommandTimeout(CommandError):
    """A program ran over its deadline and was killed, with everything that it had started."""


def find_program(name: str, package: str) -> str:
    """Return the program's path, or raise :class:`OpskitError` that names the Debian package to install."""
    path = shutil.which(name)
    if path is None:
        raise OpskitError(f"the program {name} is not installed", todo=f"Install it: apt-get install {package}")
    return path


def environment() -> Dict[str, str]:
    """Return the environment for a program whose output is read: messages in English, file names as bytes."""
    env = dict(os.environ)
    env.update(LC_ALL="C", TZ="UTC")
    return env


def bound(argv: Sequence[str]) -> List[str]:
    """Return the argument vector of a child that the kernel kills when this process dies.

    ``setpriv`` (util-linux, essential in Debian) sets PR_SET_PDEATHSIG (prctl(2)); a ``preexec_fn`` would not be safe
    in a process with threads.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def start(
    argv: Sequence[str],
    stdin: Optional[int] = subprocess.DEVNULL,
    stdout: Optional[int] = subprocess.PIPE,
    stderr: Optional[int] = subprocess.PIPE,
    env: Optional[Dict[str, str]] = None,
    cwd: Optional[str] = None,
) -> subprocess.Popen[bytes]:
    """Start a program that is bound to this process."""
    return subprocess.Popen(bound(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env or environment(), cwd=cwd)


def run(
    argv: Sequence[str],
    deadline_s: float,
    data: Optional[bytes] = None,
    env: Optional[Dict[str, str]] = None,
    cwd: Optional[str] = None,
    ok: Sequence[int] = (0,),
    stdin: int = subprocess.DEVNULL,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end and return its output.

    :param deadline_s: seconds after which it is killed
    :param data: what it reads on standard input
    :param ok: exit codes that are no failure
    :param stdin: an open file that it reads instead
    Raises :class:`CommandTimeout`, or :class:`CommandError` with the program's own last words, redacted.
    """
    process = subprocess.Popen(
        bound(argv),
        stdin=stdin if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env or environment(),
        cwd=cwd,
        # A group of its own, so that the deadline ends its children too.
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(data, timeout=deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise CommandTimeout(f"still running after {deadline_s:g} s and killed", argv[0]) from None
    if process.returncode not in ok:
        raise CommandError(f"exit code {process.returncode}: {last_words(err)}", argv[0])
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def last_words(stderr: bytes, lines: int = 3) -> str:
    """Return the last lines that a program said, decoded, redacted and on one line."""
    text = stderr.decode("utf-8", errors="replace").strip().splitlines()
    return redact(" | ".join(line.strip() for line in text[-lines:])) or "it said nothing"
